/*
 * Tokens of a batch that come out as if each had come alone.
 *
 * Some of ggml's CPU kernels add up in another order for several tokens than for one. The last bits
 * that differ become other steps where quantised models round, enough to turn an answer at a
 * near-tie, and too much for a verified draft that is to be the plain answer:
 *
 *   attention   For one token and 512 cached positions or more, flash attention gives each thread a
 *               share of the positions and adds up what they found; for several tokens, each is one
 *               thread's. Marked attention is computed row by row.
 *   products    Weights as they are in the file are multiplied with several tokens by kernels for
 *               tiles: llamafile_sgemm's for floats, Q4_0, Q5_0, Q8_0 and IQ4_NL, iqp's for other IQ
 *               types. For Q4_0 and Q8_0 these add up in the same order as for one where the
 *               processor has AVX2, else not, nor do floats' anywhere. Where a product is marked, both
 *               say that it is not theirs, and ggml multiplies each token by its code for one.
 *   rearranged  Weights rearranged for the CPU are multiplied with four tokens at a time by other
 *               code than with one. In Q4_0 both give the same bits, k-quants do not, if only now and
 *               then. Those rearranged for AMX, whose code takes up to 32 tokens, give the same bits in
 *               F16, Q4_0, Q4_1, Q8_0 and IQ4_XS. Products marked for it are computed row by row; so
 *               are, of weights as they are, those whose type's code takes two rows at a time (on ARM).
 *
 * The CPU module calls its own functions through the dynamic linker, which finds those below first.
 * What layerskip.c did not mark passes through.
 */
#define _GNU_SOURCE
#include "layerskip.h"

#include <stdatomic.h>

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
typedef void plain_product(const struct ggml_compute_params *, struct ggml_tensor *);
typedef bool tiles(const struct ggml_compute_params *, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b,
                   int64_t ldb, void *c, int64_t ldc, int a_type, int b_type, int c_type);
typedef bool supports(const struct ggml_tensor *);

typedef const struct ggml_type_traits_cpu *traits(int type);

/* The real functions; any thread may find them first, and all find the same. */
static struct {
    attention *_Atomic attention;
    product *_Atomic product;
    plain_product *_Atomic plain_product;
    tiles *_Atomic tiles;
    supports *_Atomic iq_tiles;
    supports *_Atomic iq_tiles_of_experts;
    traits *_Atomic traits;
    atomic_bool found;
} cpu;

/* Whether this thread multiplies for a marked operation. */
static _Thread_local bool untiled;

static void find_real(const void *return_address) {
    if (atomic_load_explicit(&cpu.found, memory_order_acquire)) {
        return;
    }
    atomic_store(&cpu.attention, (attention *)layerskip_function_near(return_address, "ggml_compute_forward_flash_attn_ext"));
    atomic_store(&cpu.product, (product *)layerskip_function_near(return_address, "ggml_cpu_extra_compute_forward"));
    atomic_store(&cpu.plain_product, (plain_product *)layerskip_function_near(return_address, "ggml_compute_forward_mul_mat"));
    atomic_store(&cpu.tiles, (tiles *)layerskip_function_near(return_address, "llamafile_sgemm"));
    atomic_store(&cpu.iq_tiles, (supports *)layerskip_function_near(return_address, "ggml_cpu_iqp_supports_mul_mat"));
    atomic_store(&cpu.iq_tiles_of_experts, (supports *)layerskip_function_near(return_address, "ggml_cpu_iqp_supports_mul_mat_id"));
    atomic_store(&cpu.traits, (traits *)layerskip_function_near(return_address, "ggml_get_type_traits_cpu"));
    atomic_store_explicit(&cpu.found, true, memory_order_release);
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

/* How the row i of a product is computed alone. */
static struct ggml_tensor one_row(const struct ggml_tensor *dst, int64_t i, struct ggml_tensor *src1) {
    struct ggml_tensor out = *dst;
    *src1 = *dst->src[1];
    src1->ne[1] = out.ne[1] = 1;
    src1->data = (char *)src1->data + i * src1->nb[1];
    out.data = (char *)out.data + i * out.nb[1];
    out.src[1] = src1;
    return out;
}

/* The real function says whether the operation is its own; others go on to ggml's usual code. */
__attribute__((visibility("default"))) bool ggml_cpu_extra_compute_forward(struct ggml_compute_params *params,
                                                                           struct ggml_tensor *dst) {
    find_real(__builtin_return_address(0));
    if (!by_rows(dst, dst->ne[1]) || dst->ne[2] != 1) {
        return cpu.product(params, dst);
    }
    for (int64_t i = 0; i < dst->ne[1]; i++) {
        struct ggml_tensor one, out = one_row(dst, i, &one);
        if (!cpu.product(params, &out)) {
            return false;
        }
        ggml_barrier(params->threadpool);
    }
    return true;
}

static bool marked(const struct ggml_tensor *dst) {
    return dst->op_params[LAYERSKIP_ROWS_PARAM] == LAYERSKIP_ROWS || dst->op_params[LAYERSKIP_ROWS_PARAM] == LAYERSKIP_UNTILED;
}

__attribute__((visibility("default"))) void ggml_compute_forward_mul_mat(const struct ggml_compute_params *params,
                                                                         struct ggml_tensor *dst) {
    find_real(__builtin_return_address(0));
    untiled = marked(dst);
    if (by_rows(dst, dst->ne[1]) && cpu.traits(dst->src[0]->type)->nrows > 1) {
        for (int64_t i = 0; i < dst->ne[1]; i++) {
            struct ggml_tensor one, out = one_row(dst, i, &one);
            cpu.plain_product(params, &out);
            ggml_barrier(params->threadpool);
        }
    } else {
        cpu.plain_product(params, dst);
    }
    untiled = false;
}

__attribute__((visibility("default"))) bool llamafile_sgemm(const struct ggml_compute_params *params, int64_t m, int64_t n, int64_t k,
                                                            const void *a, int64_t lda, const void *b, int64_t ldb, void *c,
                                                            int64_t ldc, int a_type, int b_type, int c_type) {
    find_real(__builtin_return_address(0));
    return !untiled && cpu.tiles(params, m, n, k, a, lda, b, ldb, c, ldc, a_type, b_type, c_type);
}

/* The size of the working memory is planned by these two as well, which is why they go by the mark itself. */
__attribute__((visibility("default"))) bool ggml_cpu_iqp_supports_mul_mat(const struct ggml_tensor *dst) {
    find_real(__builtin_return_address(0));
    return !marked(dst) && cpu.iq_tiles(dst);
}

__attribute__((visibility("default"))) bool ggml_cpu_iqp_supports_mul_mat_id(const struct ggml_tensor *dst) {
    find_real(__builtin_return_address(0));
    return !marked(dst) && cpu.iq_tiles_of_experts(dst);
}
