/*
 * Attention that reads each cached token once for all query heads that share it; a part of layerskip.c,
 * which includes it. tiles.c has the kernel.
 *
 * Most models have several query heads to one head of keys and values. ggml's kernels on a CPU go through the cache
 * for each query head anew, and turn its 16-bit floats into 32-bit ones each time. Here a cached token is read and
 * converted once for up to eight query heads, or for all rows of a prompt's tile. Scores and sums are 32-bit floats
 * throughout; ggml's flash attention sums values in 16 bits.
 *
 * It takes the place of a FLASH_ATTN_EXT node's operation; what llama.cpp built stays as it is otherwise:
 *
 *     CUSTOM(q, k, v, mask)
 *
 * With few rows, a row's result does not depend on other rows, on the cells that hold its tokens, or on the number of
 * threads: the cells that its mask shows are taken in their order, and what SEGMENT of them come to is merged in order.
 */
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#define ATTEND __attribute__((target("avx2,fma,f16c")))
#elif defined(__aarch64__)
#include <arm_neon.h>
#define ATTEND
#endif

#if defined(ATTEND) && !defined(_WIN32) /* mingw may put 32-byte vectors on a stack that is aligned for 16 bytes */

enum {
    LANES = 8,          /* numbers of a vector that every processor here has */
    HEADS = LANES,      /* query heads at once, of one row */
    QUERIES = 4,        /* whose sums are in registers at once */
    TILE_CELLS = 64,    /* cells whose keys and values are converted at once */
    SEGMENT = 4 * TILE_CELLS,
    MOST_WIDTH = 256,   /* numbers of a head */
    MOST_ROWS = 63,     /* of a node that is computed row by row; ggml has tiles from 64 on, too */
    HIDDEN = 0xfc00,    /* -infinity in a mask */
    TILE_ROWS = 64,     /* at most */
    TILE_NUMBERS = 1 << 14, /* of a tile's queries, at most: what is kept of a tile stays in the second cache */
};

/* Places in the op_params of the node, behind what ggml keeps of a CUSTOM operation. */
enum { ATTEND_SCALE = 12, ATTEND_CAP = 13 };

#define UNROLL _Pragma("GCC unroll 16") /* so that sums stay in registers, at any level of optimisation */
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

/* Names end with how many numbers a vector has; tiles.c is compiled for each. */
typedef float wide8 __attribute__((vector_size(4 * LANES)));
typedef int32_t int_wide8 __attribute__((vector_size(4 * LANES)));

static bool attend_runs_here(void) {
#if defined(__x86_64__)
    enum { FMA = 1 << 12, XSAVE = 1 << 27, F16C = 1 << 29, AVX2 = 1 << 5, REGISTERS = 6 }; /* kept by the system */
    unsigned a, b, c, d, kept;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (FMA | XSAVE | F16C)) != (FMA | XSAVE | F16C)) {
        return false;
    }
    __asm__("xgetbv" : "=a"(kept), "=d"(d) : "c"(0));
    return (kept & REGISTERS) == REGISTERS && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & AVX2) != 0;
#else
    return true;
#endif
}

#if defined(__x86_64__)
ATTEND static inline wide8 multiply_add8(wide8 a, wide8 b, wide8 c) { return (wide8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
ATTEND static inline wide8 load_halfs8(const uint16_t *x) { return (wide8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x)); }
ATTEND static inline float half(uint16_t x) { return _cvtsh_ss(x); }
#else
static inline wide8 multiply_add8(wide8 a, wide8 b, wide8 c) { return a * b + c; }
static inline wide8 load_halfs8(const uint16_t *x) {
    const float16x8_t h = vld1q_f16((const __fp16 *)x);
    const float32x4_t low = vcvt_f32_f16(vget_low_f16(h)), high = vcvt_high_f32_f16(h);
    wide8 r;
    memcpy(&r, &low, sizeof low);
    memcpy((char *)&r + sizeof low, &high, sizeof high);
    return r;
}
static inline float half(uint16_t x) {
    __fp16 h;
    memcpy(&h, &x, sizeof h);
    return h;
}
#endif

ATTEND static inline wide8 load(const float *x) {
    wide8 v;
    memcpy(&v, x, sizeof v);
    return v;
}
ATTEND static inline wide8 all8(float x) { return (wide8){x, x, x, x, x, x, x, x}; }
ATTEND static inline wide8 larger8(wide8 a, wide8 b) {
    const int_wide8 more = a > b;
    return (wide8)(((int_wide8)a & more) | ((int_wide8)b & ~more));
}

/*
 * e to the x, for x from -87 to 87 and within 2 units in the last place; next to 0 below, and 0 of -infinity. Adding
 * 1.5 * 2^23 rounds to whole numbers; ln 2 is in two parts.
 */
#define EXPONENTIAL(WIDTH, TARGET)                                                                                             \
    TARGET static inline wide##WIDTH exponential##WIDTH(wide##WIDTH x) {                                                       \
        const int_wide##WIDTH some = x > all##WIDTH(-INFINITY);                                                                \
        x = larger##WIDTH(x, all##WIDTH(-87.0f));                                                                              \
        const wide##WIDTH magic = all##WIDTH(12582912.0f);                                                                     \
        const wide##WIDTH shifted = multiply_add##WIDTH(x, all##WIDTH(1.44269504f), magic), n = shifted - magic;               \
        const wide##WIDTH r =                                                                                                  \
            multiply_add##WIDTH(n, all##WIDTH(2.12194440e-4f), multiply_add##WIDTH(n, all##WIDTH(-0.693359375f), x));          \
        wide##WIDTH p = all##WIDTH(1.0f / 720);                                                                                \
        p = multiply_add##WIDTH(p, r, all##WIDTH(1.0f / 120));                                                                 \
        p = multiply_add##WIDTH(p, r, all##WIDTH(1.0f / 24));                                                                  \
        p = multiply_add##WIDTH(p, r, all##WIDTH(1.0f / 6));                                                                   \
        p = multiply_add##WIDTH(p, r, all##WIDTH(0.5f));                                                                       \
        p = multiply_add##WIDTH(p, r, all##WIDTH(1.0f));                                                                       \
        p = multiply_add##WIDTH(p, r, all##WIDTH(1.0f));                                                                       \
        return (wide##WIDTH)(((int_wide##WIDTH)p + ((int_wide##WIDTH)shifted << 23)) & some);                                  \
    }

EXPONENTIAL(8, ATTEND)
ATTEND static inline float most_of8(wide8 x) {
    x = larger8(x, SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3));
    x = larger8(x, SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5));
    return x[0] > x[1] ? x[0] : x[1];
}
ATTEND static inline float sum_of8(wide8 x) {
    x += SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
    x += SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
    return x[0] + x[1];
}
/* x + mask, and -infinity where the mask is that, whatever x is there. */
ATTEND static inline wide8 add_shown8(wide8 x, wide8 mask) {
    const int_wide8 shown = mask > all8(-INFINITY);
    return (wide8)(((int_wide8)(x + mask) & shown) | ((int_wide8)all8(-INFINITY) & ~shown));
}
/* Which of 8 cells a mask shows: bit n for the n-th. */
static inline unsigned shown_of8(const uint16_t *mask) {
    unsigned shown = 0;
    for (int i = 0; i < LANES; i++) {
        shown |= (unsigned)(mask[i] != HIDDEN) << i;
    }
    return shown;
}
/* Swaps rows and columns of 8 vectors: three times every row is mixed with the one 4 below it. */
ATTEND static inline void transpose8(wide8 x[LANES]) {
    for (int round = 0; round < 3; round++) {
        wide8 y[LANES];
        UNROLL
        for (int i = 0; i < LANES / 2; i++) {
            y[2 * i] = SHUFFLE(x[i], x[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            y[2 * i + 1] = SHUFFLE(x[i], x[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        memcpy(x, y, sizeof y);
    }
}

#if defined(__x86_64__) && !defined(__APPLE__) /* few Macs have AVX-512, and Clang's releases name its features otherwise */
#define WIDER __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))

static bool wider_runs_here(void) {
    enum { F = 1 << 16, DQ = 1 << 17, BW = 1 << 30, REGISTERS = 0xe6 }; /* kept by the system */
    const unsigned VL = 1u << 31, all = F | DQ | BW | VL;
    unsigned a, b, c, d, kept;
    if (!attend_runs_here() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & all) != all) {
        return false;
    }
    __asm__("xgetbv" : "=a"(kept), "=d"(d) : "c"(0));
    return (kept & REGISTERS) == REGISTERS;
}

typedef float wide16 __attribute__((vector_size(64)));
typedef int32_t int_wide16 __attribute__((vector_size(64)));
WIDER static inline wide16 all16(float x) { return (wide16)_mm512_set1_ps(x); }
WIDER static inline wide16 multiply_add16(wide16 a, wide16 b, wide16 c) { return (wide16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
WIDER static inline wide16 load_halfs16(const uint16_t *x) { return (wide16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x)); }
WIDER static inline wide16 larger16(wide16 a, wide16 b) { return (wide16)_mm512_max_ps((__m512)a, (__m512)b); }
WIDER static inline float most_of16(wide16 x) { return _mm512_reduce_max_ps((__m512)x); }
WIDER static inline float sum_of16(wide16 x) { return _mm512_reduce_add_ps((__m512)x); }
WIDER static inline wide16 add_shown16(wide16 x, wide16 mask) {
    const __m512 none = _mm512_set1_ps(-INFINITY);
    return (wide16)_mm512_mask_add_ps(none, _mm512_cmpneq_ps_mask((__m512)mask, none), (__m512)x, (__m512)mask);
}
WIDER static inline unsigned shown_of16(const uint16_t *mask) {
    return _mm256_cmpneq_epi16_mask(_mm256_loadu_si256((const __m256i *)mask), _mm256_set1_epi16((short)HIDDEN));
}
EXPONENTIAL(16, WIDER)
WIDER static inline void transpose16(wide16 x[16]) {
    UNROLL
    for (int round = 0; round < 4; round++) {
        wide16 y[16];
        UNROLL
        for (int i = 0; i < 8; i++) {
            y[2 * i] = SHUFFLE(x[i], x[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            y[2 * i + 1] = SHUFFLE(x[i], x[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        UNROLL
        for (int i = 0; i < 16; i++) {
            x[i] = y[i];
        }
    }
}
#endif

/* What a segment of a row's visible cells comes to, for up to HEADS query heads. */
struct layerskip_partial {
    float most[HEADS], sum[HEADS];   /* the largest score, and the sum of e to the scores less that */
    float values[HEADS][MOST_WIDTH] __attribute__((aligned(4 * LANES))); /* likewise of the values */
};

/* Has the processor begin to read n 16-bit floats. */
static inline void fetch(const char *x, int n) {
    for (int at = 0; at < 2 * n; at += 64) {
        __builtin_prefetch(x + at);
    }
}

/* Adds what more cells come to, for so many heads with values of a width. */
ATTEND static void merge(struct layerskip_partial *to, const struct layerskip_partial *more, int heads, int width) {
    const wide8 most = larger8(load(to->most), load(more->most));
    const wide8 a = exponential8(load(to->most) - most), b = exponential8(load(more->most) - most);
    for (int h = 0; h < heads; h++) {
        to->sum[h] = to->sum[h] * a[h] + more->sum[h] * b[h];
        to->most[h] = most[h];
        for (int d = 0; d < width; d += LANES) {
            *(wide8 *)&to->values[h][d] = *(wide8 *)&to->values[h][d] * a[h] + *(const wide8 *)&more->values[h][d] * b[h];
        }
    }
}

/* The cell behind the first n that a mask shows of n_kv cells; mask NULL = it shows all. */
ATTEND static int64_t behind_visible(const uint16_t *mask, int64_t n_kv, int64_t n) {
    typedef uint16_t eight __attribute__((vector_size(16)));
    const eight hidden = {HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN};
    int64_t at = 0;
    if (mask == NULL) {
        return n < n_kv ? n : n_kv;
    }
    while (n >= 8 && at + 8 <= n_kv) {
        eight x;
        uint64_t shown[2];
        memcpy(&x, mask + at, sizeof x);
        x = (eight)(x != hidden);
        memcpy(shown, &x, sizeof shown);
        n -= (__builtin_popcountll(shown[0]) + __builtin_popcountll(shown[1])) / 16;
        at += 8;
    }
    for (; n > 0 && at < n_kv; at++) {
        n -= mask[at] != HIDDEN;
    }
    return at;
}

/* Into what a node's work is divided. */
struct attend_work {
    int group, parts;        /* query heads of a head of keys, and items that they make */
    int64_t items, segments; /* segments of an item, at most */
};

static struct attend_work work_of(const struct ggml_tensor *t) {
    const struct ggml_tensor *q = t->src[0], *k = t->src[1];
    struct attend_work w = {.group = (int)(q->ne[2] / k->ne[2]), .segments = (k->ne[1] + SEGMENT - 1) / SEGMENT};
    w.parts = (w.group + HEADS - 1) / HEADS;
    w.items = q->ne[1] * k->ne[2] * w.parts * q->ne[3];
    return w;
}

/* How many rows a tile of a node has at most; 0 = the node's heads are too many or too wide. */
static int rows_of_tile(const struct ggml_tensor *t) {
    const int64_t group = t->src[0]->ne[2] / t->src[1]->ne[2], width = t->src[1]->ne[0] > t->src[2]->ne[0] ? t->src[1]->ne[0] : t->src[2]->ne[0];
    const int64_t rows = TILE_NUMBERS / width / QUERIES * QUERIES / group;
    return (int)(rows < TILE_ROWS ? rows : TILE_ROWS);
}

#define WIDE 8
#define COLUMNS 2 /* vectors of sums of a query in registers */
#define TILES ATTEND
#include "tiles.c"
#if defined(WIDER)
#define WIDE 16
#define COLUMNS 4
#define TILES WIDER
#include "tiles.c"
#else
static bool wider_runs_here(void) { return false; }
#define attend_node16 attend_node8
#endif
#if defined(__x86_64__)
enum { TILED = true };
#else
enum { TILED = false }; /* no tile was ever timed beside ggml's there */
#endif

/* Whether a node is attention as it is computed here. */
static bool is_grouped(const struct ggml_tensor *t) {
    const struct ggml_tensor *q = t->src[0], *k = t->src[1], *v = t->src[2], *mask = t->src[3];
    float bias;
    if (t->op != op.flash_attn) {
        return false;
    }
    memcpy(&bias, &t->op_params[1], sizeof bias);
    const bool widths = k->ne[0] % (2 * LANES) == 0 && v->ne[0] % (2 * LANES) == 0 && k->ne[0] <= MOST_WIDTH && v->ne[0] <= MOST_WIDTH;
    const bool types = q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_F16 && v->type == GGML_TYPE_F16 && q->nb[0] == 4 && k->nb[0] == 2 && v->nb[0] == 2;
    const bool heads = k->ne[2] > 0 && q->ne[2] % k->ne[2] == 0 && k->ne[2] == v->ne[2] && q->ne[3] == k->ne[3] && k->ne[3] == v->ne[3];
    const bool masks = mask == NULL || (mask->type == GGML_TYPE_F16 && mask->nb[0] == 2 && mask->ne[0] == k->ne[1] && mask->ne[1] >= q->ne[1] && mask->ne[2] == 1);
    const bool here = k->view_src != NULL && (k->view_src->buffer == NULL || real.is_host(k->view_src->buffer));
    return bias == 0 && t->src[4] == NULL && widths && types && heads && masks && here && (q->ne[1] <= MOST_ROWS || (TILED && rows_of_tile(t) > 0));
}

/* Lets attention be computed here, wherever it can be. */
static void attend(struct ggml_cgraph *graph, struct layerskip_attend *a) {
    const int n = real.n_nodes(graph);
    enum { NODE = 4096, ALL_THREADS = -1 };
    const struct ggml_tensor *made = NULL; /* an operation like those that are needed */
    int64_t partials = 0;
    if (a->nodes == NULL) {
        a->nodes = real.init((struct ggml_init_params){.mem_size = NODE, .no_alloc = true});
        a->wide = a->wide && wider_runs_here();
    }
    a->replaced = 0;
    memset(a->done, 0, sizeof a->done);
    a->claimed = 0;
    for (int i = 0; i < n && a->nodes != NULL; i++) {
        struct ggml_tensor *t = real.node(graph, i);
        if (!is_grouped(t)) {
            continue;
        }
        if (made == NULL) {
            real.reset(a->nodes);
            made = real.custom_4d(a->nodes, t->type, t->ne[0], t->ne[1], t->ne[2], t->ne[3], t->src, 3, a->wide ? attend_node16 : attend_node8, ALL_THREADS, a);
        }
        float scale, cap;
        memcpy(&scale, &t->op_params[0], sizeof scale);
        memcpy(&cap, &t->op_params[2], sizeof cap);
        scale = cap != 0 ? scale / cap : scale;
        t->op = made->op;
        memcpy(t->op_params, made->op_params, sizeof t->op_params);
        memcpy(&t->op_params[ATTEND_SCALE], &scale, sizeof scale);
        memcpy(&t->op_params[ATTEND_CAP], &cap, sizeof cap);
        a->replaced++;
        const struct attend_work w = work_of(t);
        if (t->src[0]->ne[1] <= MOST_ROWS && w.items <= LAYERSKIP_ITEMS && w.items * w.segments > partials) {
            partials = w.items * w.segments;
        }
    }
    if (partials > a->room) { /* without it rows are computed by one thread each */
        free(a->partials);
        a->partials = aligned_alloc(64, (size_t)partials * sizeof *a->partials);
        a->room = a->partials != NULL ? partials : 0;
    }
}

static void free_attend(struct layerskip_attend *a) {
    free(a->partials);
    if (a->nodes != NULL) {
        real.free_context(a->nodes);
    }
    *a = (struct layerskip_attend){0};
}

bool layerskip_attends(void) { return attend_runs_here(); }

#else

static void attend(struct ggml_cgraph *graph, struct layerskip_attend *a) {}
static void free_attend(struct layerskip_attend *a) {}
bool layerskip_attends(void) { return false; }

#endif
