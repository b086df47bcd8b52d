/*
 * Tokens of a batch that come out as if each had come alone.
 *
 * Some of ggml's CPU kernels add up in another order for several tokens than for one. The last bits
 * that differ become other steps where quantised models round, enough to turn an answer at a
 * near-tie, and too much for a verified draft that is to be the plain answer:
 *
 *   attention   For one token and 512 cached positions or more, flash attention gives each thread a
 *               share of the positions and adds up what they found; for several tokens, each is one
 *               thread's.
 *   products    Weights rearranged for the CPU are multiplied with four tokens at a time by other
 *               code than with one. In Q4_0 both give the same bits, in Q4_K they do not.
 *
 * The CPU module calls its own functions through the dynamic linker, which finds those below first.
 * Where layerskip.c marked the operation, they hand its rows to the real function one by one. All
 * else passes through.
 */
#define _GNU_SOURCE
#include "layerskip.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdlib.h>

/* ggml's, of v0.5.0: what a thread knows of the operation that it computes a part of. */
struct ggml_compute_params {
    int ith, nth; /* this thread, of how many */
    size_t wsize;
    void *wdata;
    struct ggml_threadpool *threadpool;
    bool use_ref;
};

typedef void attention(const struct ggml_compute_params *, struct ggml_tensor *);
typedef bool product(struct ggml_compute_params *, struct ggml_tensor *);

/* The real functions; any thread may find them first, and all find the same. */
static struct {
    attention *_Atomic attention;
    product *_Atomic product;
    atomic_bool found;
} cpu;

static void find_real(const void *return_address) {
    if (atomic_load_explicit(&cpu.found, memory_order_acquire)) {
        return;
    }
    Dl_info caller;
    void *module = dladdr(return_address, &caller) != 0 ? dlopen(caller.dli_fname, RTLD_LAZY | RTLD_NOLOAD) : NULL;
    if (module == NULL) {
        abort(); /* cannot be: it is running */
    }
    atomic_store(&cpu.attention, (attention *)dlsym(module, "ggml_compute_forward_flash_attn_ext"));
    atomic_store(&cpu.product, (product *)dlsym(module, "ggml_cpu_extra_compute_forward"));
    atomic_store_explicit(&cpu.found, true, memory_order_release);
    dlclose(module);
}

/* Whether the rows of an operation on so many are to be computed one by one. */
static bool by_rows(const struct ggml_tensor *dst, int64_t rows) {
    return dst->op_params[LAYERSKIP_ROWS_PARAM] == LAYERSKIP_ROWS && rows > 1 && dst->ne[3] == 1;
}

/* llama.cpp gives a decode the used part of the KV cache, rounded up to this many cells. */
enum { CELLS = 256 };

/* How many cells a decode of the row's token alone would be given: up to the last one that it attends to. */
static int64_t cells_alone(const struct ggml_tensor *mask, const char *row, int64_t n) {
    enum { MINUS_INFINITY = 0xfc00 }; /* as a 16-bit float */
    const uint16_t *weights = (const uint16_t *)row;
    int64_t last = mask->ne[0] < n ? mask->ne[0] : n;
    while (last > 1 && weights[last - 1] == MINUS_INFINITY) {
        last--;
    }
    const int64_t cells = (last + CELLS - 1) / CELLS * CELLS;
    return cells < n ? cells : n;
}

__attribute__((visibility("default"))) void ggml_compute_forward_flash_attn_ext(const struct ggml_compute_params *params,
                                                                                struct ggml_tensor *dst) {
    find_real(__builtin_return_address(0));
    const struct ggml_tensor *q = dst->src[0], *mask = dst->src[3];
    if (!by_rows(dst, q->ne[1]) || mask == NULL || mask->type != GGML_TYPE_F16) {
        cpu.attention(params, dst);
        return;
    }
    for (int64_t i = 0; i < q->ne[1]; i++) {
        struct ggml_tensor out = *dst, one = *q, k = *dst->src[1], v = *dst->src[2], seen = *mask;
        one.ne[1] = seen.ne[1] = out.ne[2] = 1;
        one.data = (char *)q->data + i * q->nb[1];
        seen.data = (char *)mask->data + i * mask->nb[1];
        out.data = (char *)dst->data + i * dst->nb[2];
        k.ne[1] = v.ne[1] = cells_alone(mask, seen.data, k.ne[1]);
        out.src[0] = &one;
        out.src[1] = &k;
        out.src[2] = &v;
        out.src[3] = &seen;
        cpu.attention(params, &out);
        ggml_barrier(params->threadpool); /* the next row uses the same working memory */
    }
}

/* The real function says whether the operation is its own; others go on to ggml's usual code. */
__attribute__((visibility("default"))) bool ggml_cpu_extra_compute_forward(struct ggml_compute_params *params,
                                                                           struct ggml_tensor *dst) {
    find_real(__builtin_return_address(0));
    if (!by_rows(dst, dst->ne[1]) || dst->ne[2] != 1) {
        return cpu.product(params, dst);
    }
    const struct ggml_tensor *all = dst->src[1];
    for (int64_t i = 0; i < dst->ne[1]; i++) {
        struct ggml_tensor out = *dst, one = *all;
        one.ne[1] = out.ne[1] = 1;
        one.data = (char *)all->data + i * all->nb[1];
        out.data = (char *)dst->data + i * dst->nb[1];
        out.src[1] = &one;
        if (!cpu.product(params, &out)) {
            return false;
        }
        ggml_barrier(params->threadpool);
    }
    return true;
}
