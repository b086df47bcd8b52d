/* Opening libllama where there is dlopen; a part of hook_linux.c and hook_darwin.c. */
#include <dlfcn.h>

void *layerskip_open(const char *path, const char **why) {
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    *why = lib == NULL ? dlerror() : NULL;
    return lib;
}

/* A search by handle goes through the library's own dependencies, so it finds the real functions and not ours. */
void *layerskip_function(void *libllama, const char *name) { return dlsym(libllama, name); }

void *layerskip_function_near(const void *address, const char *name) {
    Dl_info at;
    void *lib = dladdr(address, &at) != 0 ? dlopen(at.dli_fname, RTLD_LAZY | RTLD_NOLOAD) : NULL;
    if (lib == NULL) {
        abort(); /* cannot be: the address was called */
    }
    void *function = dlsym(lib, name);
    dlclose(lib);
    return function;
}
