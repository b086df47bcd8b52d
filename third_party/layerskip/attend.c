/*
 * Attention that reads each cached token once for all query heads that share it; a part of layerskip.c,
 * which includes it.
 *
 * Most models have several query heads to one head of keys and values. ggml's kernels on a CPU go through the cache
 * for each query head anew, and turn its 16-bit floats into 32-bit ones each time. Here a cached token is read and
 * converted once for up to eight query heads. Scores and sums are 32-bit floats throughout; ggml's flash attention
 * sums values in 16 bits.
 *
 * It takes the place of a FLASH_ATTN_EXT node's operation; what llama.cpp built stays as it is otherwise:
 *
 *     CUSTOM(q, k, v, mask)
 *
 * A row's result does not depend on other rows, on the cells that hold its tokens, or on the number of
 * threads: the cells that its mask shows are taken in their order, BLOCK of them at a time, and what SEGMENT of them
 * come to is merged in order.
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
    LANES = 8,        /* numbers of a vector */
    HEADS = LANES,    /* query heads at once */
    BLOCK = 32,       /* visible cells whose scores are computed before their values are added */
    SEGMENT = 8 * BLOCK,
    MOST_WIDTH = 256, /* numbers of a head */
    AHEAD = 32,       /* cells between those that are read and those that come soon */
    MOST_ROWS = 63,   /* of a node that is computed row by row */
};

/* Places in the op_params of the node, behind what ggml keeps of a CUSTOM operation. */
enum { ATTEND_SCALE = 12, ATTEND_CAP = 13 };

#define UNROLL _Pragma("GCC unroll 8") /* so that sums stay in registers, at any level of optimisation */

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t int_lanes __attribute__((vector_size(4 * LANES)));

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
ATTEND static inline lanes multiply_add(lanes a, lanes b, lanes c) { return (lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
ATTEND static inline lanes load_halfs(const uint16_t *x) { return (lanes)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x)); }
ATTEND static inline float half(uint16_t x) { return _cvtsh_ss(x); }
#else
static inline lanes multiply_add(lanes a, lanes b, lanes c) { return a * b + c; }
static inline lanes load_halfs(const uint16_t *x) {
    const float16x8_t h = vld1q_f16((const __fp16 *)x);
    const float32x4_t low = vcvt_f32_f16(vget_low_f16(h)), high = vcvt_high_f32_f16(h);
    lanes r;
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

ATTEND static inline lanes load(const float *x) {
    lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}
ATTEND static inline lanes all_lanes(float x) { return (lanes){x, x, x, x, x, x, x, x}; }
ATTEND static inline lanes larger(lanes a, lanes b) {
    const int_lanes more = a > b;
    return (lanes)(((int_lanes)a & more) | ((int_lanes)b & ~more));
}

/* e to the x, for x from -87 to 87 and within 2 units in the last place; from -87 downwards next to 0. */
ATTEND static inline lanes exponential(lanes x) {
    x = larger(x, all_lanes(-87.0f));
    const lanes magic = all_lanes(12582912.0f); /* 1.5 * 2^23: adding it rounds to whole numbers */
    const lanes shifted = multiply_add(x, all_lanes(1.44269504f), magic), n = shifted - magic;
    const lanes r = multiply_add(n, all_lanes(2.12194440e-4f), multiply_add(n, all_lanes(-0.693359375f), x)); /* ln 2 in two parts */
    lanes p = all_lanes(1.0f / 720);
    p = multiply_add(p, r, all_lanes(1.0f / 120));
    p = multiply_add(p, r, all_lanes(1.0f / 24));
    p = multiply_add(p, r, all_lanes(1.0f / 6));
    p = multiply_add(p, r, all_lanes(0.5f));
    p = multiply_add(p, r, all_lanes(1.0f));
    p = multiply_add(p, r, all_lanes(1.0f));
    return (lanes)((int_lanes)p + ((int_lanes)shifted << 23));
}

/* What a segment of a row's visible cells comes to, for up to HEADS query heads. */
struct layerskip_partial {
    float most[HEADS], sum[HEADS];   /* the largest score, and the sum of e to the scores less that */
    float values[HEADS][MOST_WIDTH] __attribute__((aligned(4 * LANES))); /* likewise of the values */
};

/* A row of a node's attention, for a head of keys and some of its query heads. */
struct attend_row {
    const struct ggml_tensor *t, *q, *k, *v;
    const char *keys, *values; /* of the stream and head of keys */
    const uint16_t *mask;      /* (n_kv,); NULL = all cells are visible */
    int64_t n_kv;
    int heads; /* up to HEADS */
    float cap; /* of scores; 0 = none */
    float queries[HEADS][MOST_WIDTH] __attribute__((aligned(4 * LANES))); /* scaled */
};

enum { HIDDEN = 0xfc00 }; /* -infinity */

/* The next visible cells from *cell on, up to n of them. */
static int next_visible(const struct attend_row *r, int64_t *cell, int32_t *visible, int n) {
    int found = 0;
    int64_t at = *cell;
    while (at < r->n_kv && found < n) {
        uint64_t four;
        if (r->mask != NULL && at + 4 <= r->n_kv && (memcpy(&four, r->mask + at, sizeof four), four == 0xfc00fc00fc00fc00u)) {
            at += 4;
            continue;
        }
        if (r->mask == NULL || r->mask[at] != HIDDEN) {
            visible[found++] = (int32_t)at;
        }
        at++;
    }
    *cell = at;
    return found;
}

/* The cell behind the first n visible ones. */
ATTEND static int64_t behind_visible(const struct attend_row *r, int64_t n) {
    typedef uint16_t eight __attribute__((vector_size(16)));
    const eight hidden = {HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN};
    int64_t at = 0;
    if (r->mask == NULL) {
        return n < r->n_kv ? n : r->n_kv;
    }
    while (n >= 8 && at + 8 <= r->n_kv) {
        eight x;
        uint64_t shown[2];
        memcpy(&x, r->mask + at, sizeof x);
        x = (eight)(x != hidden);
        memcpy(shown, &x, sizeof shown);
        n -= (__builtin_popcountll(shown[0]) + __builtin_popcountll(shown[1])) / 16;
        at += 8;
    }
    for (; n > 0 && at < r->n_kv; at++) {
        n -= r->mask[at] != HIDDEN;
    }
    return at;
}

/* Has the processor begin to read n 16-bit floats. */
static inline void fetch(const char *x, int n) {
    for (int at = 0; at < 2 * n; at += 64) {
        __builtin_prefetch(x + at);
    }
}

#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

/* Sums of neighbours in two vectors; three rounds of it make the sums of eight. */
ATTEND static inline lanes add_pairs(lanes a, lanes b) { return SHUFFLE(a, b, 0, 2, 8, 10, 4, 6, 12, 14) + SHUFFLE(a, b, 1, 3, 9, 11, 5, 7, 13, 15); }
ATTEND static inline lanes sums_of(const lanes *x) {
    const lanes low = add_pairs(add_pairs(x[0], x[1]), add_pairs(x[2], x[3])), high = add_pairs(add_pairs(x[4], x[5]), add_pairs(x[6], x[7]));
    return SHUFFLE(low, high, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(low, high, 4, 5, 6, 7, 12, 13, 14, 15);
}

/* Scores of n visible cells by head, -infinity behind the last, and the largest of each head so far. */
ATTEND static void scores_of(const struct attend_row *r, const int32_t *visible, int n, lanes (*scores)[BLOCK / LANES], float *most) {
    const int width = (int)r->k->ne[0];
    float keys[LANES][MOST_WIDTH] __attribute__((aligned(4 * LANES)));
    for (int i = 0; i < n; i += LANES) {
        lanes hides = {0};
        for (int c = 0; c < LANES; c++) {
            const int64_t cell = visible[i + c < n ? i + c : n - 1], ahead = cell + AHEAD;
            if (ahead < r->n_kv) {
                fetch(r->keys + (size_t)ahead * r->k->nb[1], width);
            }
            fetch(r->values + (size_t)cell * r->v->nb[1], (int)r->v->ne[0]);
            const uint16_t *key = (const uint16_t *)(r->keys + (size_t)cell * r->k->nb[1]);
            for (int d = 0; d < width; d += LANES) {
                *(lanes *)&keys[c][d] = load_halfs(key + d);
            }
            hides[c] = i + c >= n ? -INFINITY : r->mask != NULL ? half(r->mask[cell]) : 0;
        }
        for (int h = 0; h < r->heads; h++) {
            lanes s[LANES] = {0};
            for (int d = 0; d < width; d += LANES) {
                const lanes q = *(const lanes *)&r->queries[h][d];
                UNROLL
                for (int c = 0; c < LANES; c++) {
                    s[c] = multiply_add(q, *(const lanes *)&keys[c][d], s[c]);
                }
            }
            lanes x = sums_of(s);
            if (r->cap != 0) { /* cap * tanh(x) */
                x = r->cap - 2 * r->cap / (exponential(-larger(-2 * x, all_lanes(-87.0f))) + 1);
            }
            x += hides;
            scores[h][i / LANES] = x;
            for (int c = 0; c < LANES; c++) {
                most[h] = x[c] > most[h] ? x[c] : most[h];
            }
        }
    }
}

/* Adds the values of n cells, each times its weight, to the sums of HEADS heads from first on. */
#define ADD_VALUES(HEADS)                                                                             \
    for (int d = 0; d < width; d += 2 * LANES) {                                                      \
        lanes low[HEADS], high[HEADS];                                                                \
        UNROLL                                                                                        \
        for (int h = 0; h < (HEADS); h++) {                                                           \
            low[h] = *(lanes *)&p->values[first + h][d] * shrink[first + h];                          \
            high[h] = *(lanes *)&p->values[first + h][d + LANES] * shrink[first + h];                 \
        }                                                                                             \
        for (int i = 0; i < n; i++) {                                                                 \
            const uint16_t *value = (const uint16_t *)(r->values + (size_t)visible[i] * r->v->nb[1]); \
            const lanes x = load_halfs(value + d), y = load_halfs(value + d + LANES);                 \
            UNROLL                                                                                    \
            for (int h = 0; h < (HEADS); h++) {                                                       \
                const lanes w = all_lanes(weights[first + h][i]);                                     \
                low[h] = multiply_add(w, x, low[h]);                                                  \
                high[h] = multiply_add(w, y, high[h]);                                                \
            }                                                                                         \
        }                                                                                             \
        UNROLL                                                                                        \
        for (int h = 0; h < (HEADS); h++) {                                                           \
            *(lanes *)&p->values[first + h][d] = low[h];                                              \
            *(lanes *)&p->values[first + h][d + LANES] = high[h];                                     \
        }                                                                                             \
    }

ATTEND static void add_values(const struct attend_row *r, struct layerskip_partial *p, const int32_t *visible, int n,
                              float (*weights)[BLOCK], const float *shrink) {
    const int width = (int)r->v->ne[0];
    for (int first = 0; first < r->heads; first += 4) {
        switch (r->heads - first) {
        case 1: ADD_VALUES(1) break;
        case 2: ADD_VALUES(2) break;
        case 3: ADD_VALUES(3) break;
        default: ADD_VALUES(4)
        }
    }
}

/* Attends to a row's next visible cells, SEGMENT of them at most. False: there were none. */
ATTEND static bool attend_segment(const struct attend_row *r, int64_t *cell, struct layerskip_partial *p) {
    int32_t visible[BLOCK];
    int n, all = 0;
    for (int h = 0; h < HEADS; h++) {
        p->most[h] = -INFINITY;
        p->sum[h] = 0;
    }
    memset(p->values, 0, (size_t)r->heads * sizeof p->values[0]);
    while (all < SEGMENT && (n = next_visible(r, cell, visible, BLOCK)) > 0) {
        lanes weights[HEADS][BLOCK / LANES];
        float most[HEADS], shrink[HEADS];
        memcpy(most, p->most, sizeof most);
        scores_of(r, visible, n, weights, most);
        const lanes before = load(p->most), now = load(most), less = exponential(before - now);
        memcpy(shrink, &less, sizeof shrink);
        for (int h = 0; h < r->heads; h++) {
            lanes sum = {0};
            for (int i = 0; i * LANES < n; i++) {
                const int_lanes shown = weights[h][i] > all_lanes(-INFINITY);
                sum += weights[h][i] = (lanes)((int_lanes)exponential(weights[h][i] - most[h]) & shown);
            }
            p->sum[h] = p->sum[h] * shrink[h] + (((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7])));
            p->most[h] = most[h];
        }
        add_values(r, p, visible, n, (float(*)[BLOCK])weights, shrink);
        all += n;
    }
    return all > 0;
}

/* Adds what more cells come to. */
ATTEND static void merge(const struct attend_row *r, struct layerskip_partial *to, const struct layerskip_partial *more) {
    const lanes most = larger(load(to->most), load(more->most));
    const lanes a = exponential(load(to->most) - most), b = exponential(load(more->most) - most);
    for (int h = 0; h < r->heads; h++) {
        to->sum[h] = to->sum[h] * a[h] + more->sum[h] * b[h];
        to->most[h] = most[h];
        for (int d = 0; d < (int)r->v->ne[0]; d += LANES) {
            *(lanes *)&to->values[h][d] = *(lanes *)&to->values[h][d] * a[h] + *(const lanes *)&more->values[h][d] * b[h];
        }
    }
}

/* Work is divided into items: a row, a head of keys and up to HEADS of its query heads. */
struct attend_item {
    int64_t row, stream;
    int head, first; /* of keys; of the query heads */
};

ATTEND static void begin_row(struct attend_row *r, const struct attend_item *it) {
    const struct ggml_tensor *t = r->t, *mask = t->src[3];
    float scale;
    memcpy(&scale, &t->op_params[ATTEND_SCALE], sizeof scale);
    memcpy(&r->cap, &t->op_params[ATTEND_CAP], sizeof r->cap);
    r->n_kv = r->k->ne[1];
    r->keys = (const char *)r->k->data + (size_t)it->head * r->k->nb[2] + (size_t)it->stream * r->k->nb[3];
    r->values = (const char *)r->v->data + (size_t)it->head * r->v->nb[2] + (size_t)it->stream * r->v->nb[3];
    r->mask = mask == NULL ? NULL : (const uint16_t *)((const char *)mask->data + (size_t)it->row * mask->nb[1] + (size_t)(it->stream % mask->ne[3]) * mask->nb[3]);
    for (int h = 0; h < r->heads; h++) {
        const float *q = (const float *)((const char *)r->q->data + (size_t)it->row * r->q->nb[1] + (size_t)(it->first + h) * r->q->nb[2] +
                                         (size_t)it->stream * r->q->nb[3]);
        for (int d = 0; d < (int)r->k->ne[0]; d++) {
            r->queries[h][d] = q[d] * scale;
        }
    }
}

ATTEND static void end_row(const struct attend_row *r, const struct attend_item *it, const struct layerskip_partial *p) {
    for (int h = 0; h < r->heads; h++) {
        float *out = (float *)((char *)r->t->data + (size_t)(it->first + h) * r->t->nb[1] + (size_t)it->row * r->t->nb[2] + (size_t)it->stream * r->t->nb[3]);
        const float part = p->sum[h] > 0 ? 1 / p->sum[h] : 0;
        for (int d = 0; d < (int)r->v->ne[0]; d++) {
            out[d] = p->values[h][d] * part;
        }
    }
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

#include "tiles.c"

/* The next segment of a row, by its tile if it has one. */
static bool next_segment(const struct attend_row *r, struct tile *tile, int64_t *cell, struct layerskip_partial *p) {
    return tile != NULL ? tile_segment(tile, cell, p) : attend_segment(r, cell, p);
}

/* A thread's part of a node with few rows. */
ATTEND static void attend_rows(struct ggml_tensor *t, int thread, int n_threads, struct layerskip_attend *a, struct tile *tile) {
    struct attend_row r = {.t = t, .q = t->src[0], .k = t->src[1], .v = t->src[2]};
    const struct attend_work w = work_of(t);
    const int64_t rows = r.q->ne[1], items = w.items, segments = w.segments;
    const bool shared = items <= LAYERSKIP_ITEMS && items * segments <= a->room && segments > 1 && n_threads > 1;
    struct layerskip_partial p, more;
    /* A thread's unit is an item, or a segment for all items: their keys and values lie side by side. */
    for (int64_t unit = thread; unit < (shared ? segments : items); unit += n_threads) {
        for (int64_t item = shared ? 0 : unit; item < (shared ? items : unit + 1); item++) {
            struct attend_item it;
            int64_t i = item, cell = 0;
            it.first = (int)(i % w.parts) * HEADS, i /= w.parts; /* within the group */
            it.head = (int)(i % r.k->ne[2]), i /= r.k->ne[2];
            it.row = i % rows, it.stream = i / rows;
            r.heads = w.group - it.first < HEADS ? w.group - it.first : HEADS;
            it.first += it.head * w.group;
            begin_row(&r, &it);
            if (tile != NULL) {
                tile_of_row(tile, &r);
            }
            if (!shared) {
                next_segment(&r, tile, &cell, &p);
                while (next_segment(&r, tile, &cell, &more)) {
                    merge(&r, &p, &more);
                }
                end_row(&r, &it, &p);
                continue;
            }
            struct layerskip_partial *const of_item = a->partials + item * segments;
            cell = behind_visible(&r, unit * SEGMENT);
            if (!next_segment(&r, tile, &cell, &of_item[unit])) {
                of_item[unit].sum[0] = 0;
            }
            if (__atomic_add_fetch(&a->done[item], 1, __ATOMIC_ACQ_REL) < segments) {
                continue;
            }
            __atomic_store_n(&a->done[item], 0, __ATOMIC_RELAXED); /* the last one merges */
            for (int64_t s = 1; s < segments && of_item[s].sum[0] > 0; s++) {
                merge(&r, of_item, &of_item[s]);
            }
            end_row(&r, &it, of_item);
        }
    }
}

#if defined(TILES)
static void attend_tile_rows(struct ggml_tensor *t, int thread, int n_threads, struct layerskip_attend *a) {
    struct tile tile; /* 280 kB, which are set as far as they are used */
    attend_rows(t, thread, n_threads, a, &tile);
}
#else
static void attend_tile_rows(struct ggml_tensor *t, int thread, int n_threads, struct layerskip_attend *a) {}
#endif

/* A thread's part of a node. */
static void attend_node(struct ggml_tensor *t, int thread, int n_threads, void *data) {
    struct layerskip_attend *a = data;
    if (t->src[0]->ne[1] > MOST_ROWS) {
        attend_tiles(t, n_threads, a);
    } else if (a->wide) {
        attend_tile_rows(t, thread, n_threads, a);
    } else {
        attend_rows(t, thread, n_threads, a, NULL);
    }
}

/* Whether a node is attention as it is computed here. */
static bool is_grouped(const struct ggml_tensor *t, bool wide) {
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
    return bias == 0 && t->src[4] == NULL && widths && types && heads && masks && here && (q->ne[1] <= MOST_ROWS || (wide && rows_of_tile(t) > 0));
}

/* Lets attention be computed here, wherever it can be. */
static void attend(struct ggml_cgraph *graph, struct layerskip_attend *a) {
    const int n = real.n_nodes(graph);
    enum { NODE = 4096, ALL_THREADS = -1 };
    const struct ggml_tensor *made = NULL; /* an operation like those that are needed */
    int64_t partials = 0;
    if (a->nodes == NULL) {
        a->nodes = real.init((struct ggml_init_params){.mem_size = NODE, .no_alloc = true});
        a->wide = a->wide && tiles_run_here();
    }
    a->replaced = 0;
    memset(a->done, 0, sizeof a->done);
    a->claimed = 0;
    for (int i = 0; i < n && a->nodes != NULL; i++) {
        struct ggml_tensor *t = real.node(graph, i);
        if (!is_grouped(t, a->wide)) {
            continue;
        }
        if (made == NULL) {
            real.reset(a->nodes);
            made = real.custom_4d(a->nodes, t->type, t->ne[0], t->ne[1], t->ne[2], t->ne[3], t->src, 3, attend_node, ALL_THREADS, a);
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
