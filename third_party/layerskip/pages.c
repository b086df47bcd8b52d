/*
 * Large buffers in huge pages.
 *
 * A decoded token reads all weights once, from one end of memory to the other. In pages of 4 KiB the
 * processor looks up a quarter of a million of them for a gigabyte, stops reading ahead at each one's
 * end, and how fast that goes depends on where the pages happen to lie. Linux has pages of 2 MiB for
 * who asks for them, where it may give them ("madvise", the default of most distributions, or "always").
 *
 * ggml takes all of its buffers on the CPU (weights that it rearranges, the KV cache, what lies between
 * a graph's operations) from one function, which it calls through the dynamic linker. That finds the one
 * below first, which asks for huge pages and else does what ggml's does. Weights that are read straight
 * from the file are in the system's cache, in pages of the system's choice.
 */
#define _GNU_SOURCE
#include "layerskip.h"

#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>

typedef void *aligned_malloc(size_t);

__attribute__((visibility("default"))) void *ggml_aligned_malloc(size_t size) {
    enum { HUGE_PAGE = 2 << 20 };
    static aligned_malloc *_Atomic real; /* any thread may find it first, and all find the same */
    if (atomic_load(&real) == NULL) {
        atomic_store(&real, (aligned_malloc *)layerskip_real(__builtin_return_address(0), "ggml_aligned_malloc"));
    }
    char *const buffer = atomic_load(&real)(size);
    if (buffer != NULL && size >= 2 * HUGE_PAGE) {
        const uintptr_t before = (uintptr_t)buffer % HUGE_PAGE;
        const size_t skip = before == 0 ? 0 : HUGE_PAGE - before;
        madvise(buffer + skip, (size - skip) / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE); /* refused: small ones serve */
    }
    return buffer;
}
