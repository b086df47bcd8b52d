/*
 * How libllama comes to call the hook on Linux; a part of layerskip.c, which includes it.
 *
 * ELF libraries look for a function by its name alone, in the program first, if that exports its
 * functions (-rdynamic), or in a preloaded library. So nothing has to be done but to have one of the name.
 */
#include "hook_dlopen.c"

const char *layerskip_divert(void *libllama, const char *name, void *function) {
    (void)libllama;
    /* Global scope first: what this finds is what the libraries bind to. */
    return dlsym(RTLD_DEFAULT, name) == function ? NULL : "link the program with -rdynamic";
}
