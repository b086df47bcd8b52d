/*
 * How libllama comes to call the hook on macOS; a part of layerskip.c, which includes it.
 *
 * A Mach-O library remembers which library each function that it calls is in, so that one of the same
 * name elsewhere is never looked at. It calls through a pointer (macho.c), which is overwritten. A page
 * that the loader has made read-only is made writable for that moment.
 */
#include "hook_dlopen.c"
#include "macho.c"

#include <mach/mach.h>

const char *layerskip_divert(void *libllama, const char *name, void *function) {
    const void *inside = dlsym(libllama, "llama_decode");
    struct macho_pointer pointer;
    Dl_info image;
    /* The loader has checked the image's tables, whose end is not known here. */
    if (inside == NULL || dladdr(inside, &image) == 0 || macho_find(image.dli_fbase, UINT64_MAX / 2, name, &pointer, 1) != 1) {
        return "this library calls what builds its graphs in another way than through one symbol pointer";
    }
    char *slot = (char *)image.dli_fbase + pointer.offset;
    const vm_address_t page = (vm_address_t)slot & ~(vm_address_t)(vm_page_size - 1);
    if (pointer.read_only && vm_protect(mach_task_self(), page, vm_page_size, false,
                                        VM_PROT_READ | VM_PROT_WRITE | VM_PROT_COPY) != KERN_SUCCESS) {
        return "macOS does not let the library's symbol pointers be changed";
    }
    __atomic_store_n((void **)slot, function, __ATOMIC_RELEASE);
    if (pointer.read_only) {
        vm_protect(mach_task_self(), page, vm_page_size, false, VM_PROT_READ);
    }
    return NULL;
}
