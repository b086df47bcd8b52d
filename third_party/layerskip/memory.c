/*
 * Buffers in huge pages, and tensors that begin with a cache line.
 *
 * A decoded token reads all weights once, from one end of memory to the other. In pages of 4 KiB the
 * processor looks up a quarter of a million of them for a gigabyte, stops reading ahead at each one's
 * end, and how fast that goes depends on where the pages happen to lie. Linux has pages of 2 MiB for
 * who asks for them, where it may give them ("madvise", the default of most distributions, or "always").
 * ggml takes all of its large buffers on the CPU from one function: weights that it rearranges, the KV
 * cache, what lies between a graph's operations. Weights that are read straight from the file are in
 * the system's cache, in pages of the system's choice.
 *
 * ggml plans the place of a graph's tensors in steps of 32 bytes, half a cache line. llama.cpp's first
 * plan is for batches of hundreds of tokens, whose tensors all are multiples of a line. A graph that
 * has changed gets a plan of its own, for a few tokens: their numbers and positions take half a line
 * each, and from there on every tensor begins in the middle of one. That took 5 % of a decode's speed.
 *
 * Both functions are called through the dynamic linker, which finds those below first.
 */
#define _GNU_SOURCE
#include "layerskip.h"

#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>

typedef void *aligned_malloc(size_t);
typedef size_t get_alignment(struct ggml_backend_buffer_type *);

/* The real functions; any thread may find them first, and all find the same. */
static struct {
    aligned_malloc *_Atomic aligned_malloc;
    get_alignment *_Atomic get_alignment;
} memory;

__attribute__((visibility("default"))) void *ggml_aligned_malloc(size_t size) {
    enum { HUGE_PAGE = 2 << 20 };
    if (atomic_load(&memory.aligned_malloc) == NULL) {
        atomic_store(&memory.aligned_malloc, (aligned_malloc *)layerskip_function_near(__builtin_return_address(0), "ggml_aligned_malloc"));
    }
    char *const buffer = atomic_load(&memory.aligned_malloc)(size);
    if (buffer != NULL && size >= 2 * HUGE_PAGE) {
        const uintptr_t before = (uintptr_t)buffer % HUGE_PAGE;
        const size_t skip = before == 0 ? 0 : HUGE_PAGE - before;
        madvise(buffer + skip, (size - skip) / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE); /* refused: small ones serve */
    }
    return buffer;
}

__attribute__((visibility("default"))) size_t ggml_backend_buft_get_alignment(struct ggml_backend_buffer_type *type) {
    enum { CACHE_LINE = 64 };
    if (atomic_load(&memory.get_alignment) == NULL) {
        atomic_store(&memory.get_alignment,
                     (get_alignment *)layerskip_function_near(__builtin_return_address(0), "ggml_backend_buft_get_alignment"));
    }
    const size_t alignment = atomic_load(&memory.get_alignment)(type);
    return alignment < CACHE_LINE ? CACHE_LINE : alignment;
}
