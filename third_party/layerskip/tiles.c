/*
 * Attention with the 32 registers of 16 numbers that AVX-512 has; a part of attend.c, which includes it.
 *
 * A tile is some rows of a node with query heads that share a head of keys: its queries. The cells that any of its
 * rows sees are taken in their order, TILE_CELLS at a time: their keys and values are converted once for all queries
 * of the tile, and scores and values are products of small matrices whose sums stay in registers. Scores and sums are
 * 32-bit floats.
 *
 * A prompt's rows are computed in tiles of many. With fewer rows each is a tile of its own, in segments as attend.c
 * has them, so that its result depends on nothing else.
 */
#if defined(__x86_64__)

enum {
    WIDE = 16,              /* numbers of a vector */
    TILE_CELLS = 4 * WIDE,       /* whose keys and values are converted at once */
    QUERIES = 4,            /* whose sums are in registers at once */
    TILE_ROWS = 64,         /* at most */
    TILE_NUMBERS = 1 << 14, /* of a tile's queries, at most: what is kept of a tile stays in the second cache */
};

#define TILES __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))

typedef float wide __attribute__((vector_size(4 * WIDE)));
typedef int32_t int_wide __attribute__((vector_size(4 * WIDE)));

static bool tiles_run_here(void) {
    enum { F = 1 << 16, DQ = 1 << 17, BW = 1 << 30, XSAVE = 1 << 27, REGISTERS = 0xe6 }; /* kept by the system */
    const unsigned VL = 1u << 31, all = F | DQ | BW | VL;
    unsigned a, b, c, d, kept;
    if (!attend_runs_here() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & all) != all) {
        return false;
    }
    __asm__("xgetbv" : "=a"(kept), "=d"(d) : "c"(0));
    return (kept & REGISTERS) == REGISTERS;
}

TILES static inline wide all_wide(float x) { return (wide)_mm512_set1_ps(x); }
TILES static inline wide wide_multiply_add(wide a, wide b, wide c) { return (wide)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
TILES static inline wide wide_halfs(const uint16_t *x) { return (wide)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x)); }
TILES static inline wide wide_larger(wide a, wide b) { return (wide)_mm512_max_ps((__m512)a, (__m512)b); }
TILES static inline __mmask16 shown_in(wide x) { return _mm512_cmpneq_ps_mask((__m512)x, _mm512_set1_ps(-INFINITY)); }
/* x + mask, and -infinity where the mask is that, whatever x is there. */
TILES static inline wide add_shown(wide x, wide mask) { return (wide)_mm512_mask_add_ps(_mm512_set1_ps(-INFINITY), shown_in(mask), (__m512)x, (__m512)mask); }

/* As exponential, of more numbers; 0 of -infinity. */
TILES static inline wide wide_exponential(wide x) {
    const int_wide shown = x > all_wide(-INFINITY);
    x = wide_larger(x, all_wide(-87.0f));
    const wide magic = all_wide(12582912.0f);
    const wide shifted = wide_multiply_add(x, all_wide(1.44269504f), magic), n = shifted - magic;
    const wide r = wide_multiply_add(n, all_wide(2.12194440e-4f), wide_multiply_add(n, all_wide(-0.693359375f), x));
    wide p = all_wide(1.0f / 720);
    p = wide_multiply_add(p, r, all_wide(1.0f / 120));
    p = wide_multiply_add(p, r, all_wide(1.0f / 24));
    p = wide_multiply_add(p, r, all_wide(1.0f / 6));
    p = wide_multiply_add(p, r, all_wide(0.5f));
    p = wide_multiply_add(p, r, all_wide(1.0f));
    p = wide_multiply_add(p, r, all_wide(1.0f));
    return (wide)(((int_wide)p + ((int_wide)shifted << 23)) & shown);
}

/* Swaps rows and columns of 16 vectors: four times every row is mixed with the one 8 below it. */
TILES static inline void transpose(wide x[WIDE]) {
    UNROLL
    for (int round = 0; round < 4; round++) {
        wide y[WIDE];
#pragma GCC unroll 16
        for (int i = 0; i < WIDE / 2; i++) {
            y[2 * i] = SHUFFLE(x[i], x[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            y[2 * i + 1] = SHUFFLE(x[i], x[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
#pragma GCC unroll 16
        for (int i = 0; i < WIDE; i++) {
            x[i] = y[i];
        }
    }
}

/* What is kept of a tile. */
struct tile {
    const struct ggml_tensor *t, *q, *k, *v, *mask;
    const char *keys, *values, *masks; /* of the head, the stream and the first row; masks may be NULL */
    int rows, group, queries;          /* queries = rows * group, up to a multiple of QUERIES */
    int width, value_width;
    float cap;

    float most[TILE_NUMBERS / WIDE], sum[TILE_NUMBERS / WIDE];
    float q_of[TILE_NUMBERS] __attribute__((aligned(64)));   /* (queries, width), scaled */
    float out_of[TILE_NUMBERS] __attribute__((aligned(64))); /* (queries, value_width), sums of values */

    /* Of the cells at hand. */
    int32_t cells[TILE_CELLS + WIDE];
    bool shows[TILE_ROWS];                                           /* whether a row sees one of them */
    float hides[TILE_ROWS][TILE_CELLS] __attribute__((aligned(64)));      /* by row: what the mask adds to scores */
    float keys_of[MOST_WIDTH * TILE_CELLS] __attribute__((aligned(64)));  /* (width, TILE_CELLS) */
    float values_of[TILE_CELLS * MOST_WIDTH] __attribute__((aligned(64))); /* (TILE_CELLS, value_width) */
};

static inline const uint16_t *mask_of(const struct tile *t, int row) { return (const uint16_t *)(t->masks + (size_t)row * t->mask->nb[1]); }

/* Finds the next cells from *cell on that some row sees. */
TILES static int next_of_tile(struct tile *t, int64_t *cell) {
    const int64_t n_kv = t->k->ne[1];
    const __m256i hidden = _mm256_set1_epi16((short)HIDDEN);
    const __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    int n = 0;
    int64_t at = *cell;
    for (; at < n_kv && n < TILE_CELLS; at += WIDE) {
        const __mmask16 there = (__mmask16)(n_kv - at < WIDE ? (1 << (n_kv - at)) - 1 : 0xffff);
        __mmask16 shown = t->masks == NULL ? there : 0;
        for (int row = t->rows - 1; row >= 0 && shown != there; row--) { /* the last row sees most */
            shown |= _mm256_mask_cmpneq_epi16_mask(there, _mm256_maskz_loadu_epi16(there, mask_of(t, row) + at), hidden);
        }
        _mm512_storeu_si512(t->cells + n, _mm512_add_epi32(_mm512_maskz_compress_epi32(shown, places), _mm512_set1_epi32((int32_t)at)));
        n += __builtin_popcount(shown);
    }
    if (n > TILE_CELLS) { /* the last ones come once more */
        at = t->cells[TILE_CELLS];
        n = TILE_CELLS;
    }
    *cell = at;
    return n;
}

/* Converts what the tile reads of n cells. What stands behind the last one is seen by no row. */
TILES static void take_cells(struct tile *t, int n) {
    for (int i = n; i < TILE_CELLS; i++) { /* whole vectors of cells are read */
        t->cells[i] = t->cells[n - 1];
    }
    for (int c = 0; c < n; c += WIDE) {
        for (int d = 0; d < t->width; d += WIDE) {
            wide x[WIDE];
#pragma GCC unroll 16
            for (int i = 0; i < WIDE; i++) {
                const int64_t ahead = t->cells[c + i] + TILE_CELLS;
                x[i] = wide_halfs((const uint16_t *)(t->keys + (size_t)t->cells[c + i] * t->k->nb[1]) + d);
                if (ahead < t->k->ne[1] && d % (2 * WIDE) == 0) {
                    __builtin_prefetch(t->keys + (size_t)ahead * t->k->nb[1] + 2 * d);
                }
            }
            transpose(x);
#pragma GCC unroll 16
            for (int i = 0; i < WIDE; i++) {
                *(wide *)&t->keys_of[(d + i) * TILE_CELLS + c] = x[i];
            }
        }
    }
    for (int c = 0; c < n; c++) {
        const uint16_t *value = (const uint16_t *)(t->values + (size_t)t->cells[c] * t->v->nb[1]);
        for (int d = 0; d < t->value_width; d += WIDE) {
            *(wide *)&t->values_of[c * t->value_width + d] = wide_halfs(value + d);
        }
    }
    const bool neighbours = n == TILE_CELLS && t->cells[TILE_CELLS - 1] - t->cells[0] == TILE_CELLS - 1;
    for (int row = 0; row < t->rows; row++) {
        wide most = all_wide(-INFINITY);
        for (int c = 0; c < TILE_CELLS; c += WIDE) {
            wide *const hides = (wide *)&t->hides[row][c];
            if (neighbours && t->masks != NULL) {
                *hides = wide_halfs(mask_of(t, row) + t->cells[0] + c);
            } else {
                for (int i = 0; i < WIDE; i++) {
                    t->hides[row][c + i] = c + i >= n ? -INFINITY : t->masks != NULL ? half(mask_of(t, row)[t->cells[c + i]]) : 0;
                }
            }
            most = wide_larger(most, *hides);
        }
        t->shows[row] = shown_in(most) != 0;
    }
}

/* Adds the products of QUERIES rows of a, each depth long, with VECTORS vectors of columns of b to sums. */
#define MULTIPLY(VECTORS, sums, a, a_row, b, b_row, depth)                          \
    for (int k = 0; k < (depth); k++) {                                             \
        wide x[VECTORS];                                                            \
        UNROLL                                                                      \
        for (int c = 0; c < (VECTORS); c++) {                                       \
            x[c] = *(const wide *)&(b)[k * (b_row) + c * WIDE];                     \
        }                                                                           \
        UNROLL                                                                      \
        for (int i = 0; i < QUERIES; i++) {                                         \
            const wide w = all_wide((a)[i * (a_row) + k]);                          \
            UNROLL                                                                  \
            for (int c = 0; c < (VECTORS); c++) {                                   \
                (sums)[i][c] = wide_multiply_add(w, x[c], (sums)[i][c]);            \
            }                                                                       \
        }                                                                           \
    }

/* Adds n cells' values, times their weights, to VECTORS vectors of QUERIES queries' sums, which shrink first. */
#define ADD_WEIGHTED(VECTORS)                                                                          \
    {                                                                                                  \
        wide sums[QUERIES][VECTORS];                                                                   \
        UNROLL                                                                                         \
        for (int i = 0; i < QUERIES; i++) {                                                            \
            UNROLL                                                                                     \
            for (int c = 0; c < (VECTORS); c++) {                                                      \
                sums[i][c] = *(const wide *)&out[i * width + d + c * WIDE] * all_wide(shrink[i]);      \
            }                                                                                          \
        }                                                                                              \
        MULTIPLY(VECTORS, sums, weights, TILE_CELLS, &t->values_of[d], width, n)                            \
        UNROLL                                                                                         \
        for (int i = 0; i < QUERIES; i++) {                                                            \
            UNROLL                                                                                     \
            for (int c = 0; c < (VECTORS); c++) {                                                      \
                *(wide *)&out[i * width + d + c * WIDE] = sums[i][c];                                  \
            }                                                                                          \
        }                                                                                              \
    }

/* Attends with QUERIES queries from first on to the cells at hand. */
TILES static void attend_queries(struct tile *t, int first, int n) {
    float weights[QUERIES * TILE_CELLS] __attribute__((aligned(64))), shrink[QUERIES];
    bool shown = false;
    for (int i = first; i < first + QUERIES && i < t->rows * t->group; i++) {
        shown |= t->shows[i / t->group];
    }
    if (!shown) {
        return;
    }
    {
        wide scores[QUERIES][TILE_CELLS / WIDE] = {{{0}}};
        const float *queries = &t->q_of[first * t->width];
        MULTIPLY(TILE_CELLS / WIDE, scores, queries, t->width, t->keys_of, TILE_CELLS, t->width)
        UNROLL
        for (int i = 0; i < QUERIES; i++) {
            UNROLL
            for (int c = 0; c < TILE_CELLS / WIDE; c++) {
                *(wide *)&weights[i * TILE_CELLS + c * WIDE] = scores[i][c];
            }
        }
    }
    for (int i = 0; i < QUERIES; i++) {
        wide x[TILE_CELLS / WIDE], most = all_wide(-INFINITY), sum = all_wide(0);
        const int query = first + i, row = query / t->group < t->rows ? query / t->group : t->rows - 1;
        UNROLL
        for (int c = 0; c < TILE_CELLS / WIDE; c++) {
            x[c] = *(const wide *)&weights[i * TILE_CELLS + c * WIDE];
            if (t->cap != 0) { /* cap * tanh(x) */
                x[c] = t->cap - 2 * t->cap / (wide_exponential(-wide_larger(-2 * x[c], all_wide(-87.0f))) + 1);
            }
            x[c] = add_shown(x[c], *(const wide *)&t->hides[row][c * WIDE]);
            most = wide_larger(most, x[c]);
        }
        for (int c = query * TILE_CELLS / t->queries; t->rows == 1 && c < (query + 1) * TILE_CELLS / t->queries; c++) {
            const int64_t ahead = t->cells[c] + TILE_CELLS;
            if (ahead < t->k->ne[1]) {
                fetch(t->values + (size_t)ahead * t->v->nb[1], t->value_width);
            }
        }
        const float before = t->most[query], now = _mm512_reduce_max_ps((__m512)wide_larger(most, all_wide(before)));
        if (now == -INFINITY) {
            memset(&weights[i * TILE_CELLS], 0, TILE_CELLS * sizeof *weights);
            shrink[i] = 1;
            continue;
        }
        UNROLL
        for (int c = 0; c < TILE_CELLS / WIDE; c++) {
            x[c] = wide_exponential(x[c] - now);
            *(wide *)&weights[i * TILE_CELLS + c * WIDE] = x[c];
            sum += x[c];
        }
        shrink[i] = before == now ? 1 : wide_exponential(all_wide(before - now))[0];
        t->most[query] = now;
        t->sum[query] = t->sum[query] * shrink[i] + _mm512_reduce_add_ps((__m512)sum);
    }
    const int width = t->value_width;
    float *out = &t->out_of[first * width];
    for (int d = 0; d < width; d += 4 * WIDE) {
        switch ((width - d) / WIDE) {
        case 1: ADD_WEIGHTED(1) break;
        case 2: ADD_WEIGHTED(2) break;
        case 3: ADD_WEIGHTED(3) break;
        default: ADD_WEIGHTED(4)
        }
    }
}

/* Forgets all cells. */
static void restart_tile(struct tile *t) {
    for (int query = 0; query < t->queries; query++) {
        t->most[query] = -INFINITY;
        t->sum[query] = 0;
    }
    memset(t->out_of, 0, sizeof(float) * (size_t)(t->queries * t->value_width));
}

/* Takes a tile's queries. */
TILES static void begin_tile(struct tile *t, int head, int64_t row, int64_t stream, float scale) {
    t->keys = (const char *)t->k->data + (size_t)head * t->k->nb[2] + (size_t)stream * t->k->nb[3];
    t->values = (const char *)t->v->data + (size_t)head * t->v->nb[2] + (size_t)stream * t->v->nb[3];
    t->masks = t->mask == NULL ? NULL : (const char *)t->mask->data + (size_t)row * t->mask->nb[1] + (size_t)(stream % t->mask->ne[3]) * t->mask->nb[3];
    for (int query = 0; query < t->queries; query++) {
        const bool there = query < t->rows * t->group; /* or it stands for none */
        const float *q = (const float *)((const char *)t->q->data + (size_t)(row + query / t->group) * t->q->nb[1] +
                                         (size_t)(head * t->group + query % t->group) * t->q->nb[2] + (size_t)stream * t->q->nb[3]);
        for (int d = 0; d < t->width; d++) {
            t->q_of[query * t->width + d] = there ? q[d] * scale : 0;
        }
    }
    restart_tile(t);
}

TILES static void end_tile(const struct tile *t, int head, int64_t row, int64_t stream) {
    for (int query = 0; query < t->rows * t->group; query++) {
        float *out = (float *)((char *)t->t->data + (size_t)(head * t->group + query % t->group) * t->t->nb[1] + (size_t)(row + query / t->group) * t->t->nb[2] +
                               (size_t)stream * t->t->nb[3]);
        const float part = t->sum[query] > 0 ? 1 / t->sum[query] : 0;
        for (int d = 0; d < t->value_width; d++) {
            out[d] = t->out_of[query * t->value_width + d] * part;
        }
    }
}

/* As attend_segment, by a tile that the row's queries are in. */
TILES static bool tile_segment(struct tile *t, int64_t *cell, struct layerskip_partial *p) {
    int all = 0;
    restart_tile(t);
    for (int n; all < SEGMENT && (n = next_of_tile(t, cell)) > 0; all += n) {
        take_cells(t, n);
        for (int query = 0; query < t->queries; query += QUERIES) {
            attend_queries(t, query, n);
        }
    }
    for (int h = 0; h < HEADS; h++) {
        p->most[h] = h < t->group ? t->most[h] : -INFINITY;
        p->sum[h] = h < t->group ? t->sum[h] : 0;
    }
    for (int h = 0; h < t->group; h++) {
        memcpy(p->values[h], &t->out_of[h * t->value_width], sizeof(float) * (size_t)t->value_width);
    }
    return all > 0;
}

/* Takes a row's queries. */
TILES static void tile_of_row(struct tile *t, const struct attend_row *r) {
    t->t = r->t, t->q = r->q, t->k = r->k, t->v = r->v;
    t->keys = r->keys, t->values = r->values, t->masks = (const char *)r->mask, t->mask = r->t->src[3];
    t->rows = 1, t->group = r->heads, t->queries = (r->heads + QUERIES - 1) / QUERIES * QUERIES;
    t->width = (int)r->k->ne[0], t->value_width = (int)r->v->ne[0], t->cap = r->cap;
    for (int h = 0; h < t->queries; h++) {
        for (int d = 0; d < t->width; d++) {
            t->q_of[h * t->width + d] = h < r->heads ? r->queries[h][d] : 0;
        }
    }
}

/* How many rows a tile of a node has at most; 0 = the node's heads are too many or too wide. */
static int rows_of_tile(const struct ggml_tensor *t) {
    const int64_t group = t->src[0]->ne[2] / t->src[1]->ne[2], width = t->src[1]->ne[0] > t->src[2]->ne[0] ? t->src[1]->ne[0] : t->src[2]->ne[0];
    const int64_t rows = TILE_NUMBERS / width / QUERIES * QUERIES / group;
    return (int)(rows < TILE_ROWS ? rows : TILE_ROWS);
}

/* A thread's tiles of a node: whichever is next, as other programs may hold a thread up. */
TILES static void attend_tiles(struct ggml_tensor *node, int n_threads, struct layerskip_attend *a) {
    struct tile t; /* 280 kB, which are set as far as they are used */
    const int64_t heads = node->src[1]->ne[2], all = node->src[0]->ne[1], step = rows_of_tile(node), tiles = (all + step - 1) / step;
    const int64_t units = tiles * heads * node->src[0]->ne[3];
    float scale;
    memcpy(&scale, &node->op_params[ATTEND_SCALE], sizeof scale);
    memcpy(&t.cap, &node->op_params[ATTEND_CAP], sizeof t.cap);
    t.t = node, t.q = node->src[0], t.k = node->src[1], t.v = node->src[2], t.mask = node->src[3];
    t.width = (int)t.k->ne[0], t.value_width = (int)t.v->ne[0], t.group = (int)(t.q->ne[2] / heads);
    for (;;) {
        const int64_t unit = __atomic_fetch_add(&a->claimed, 1, __ATOMIC_RELAXED);
        if (unit >= units) {
            if (unit == units + n_threads - 1) { /* of the last thread that asks */
                __atomic_store_n(&a->claimed, 0, __ATOMIC_RELAXED);
            }
            return;
        }
        const int head = (int)(unit % heads);
        const int64_t stream = unit / heads / tiles, row = unit / heads % tiles * step;
        int64_t cell = 0;
        t.rows = (int)(all - row < step ? all - row : step);
        t.queries = (t.rows * t.group + QUERIES - 1) / QUERIES * QUERIES;
        begin_tile(&t, head, row, stream, scale);
        for (int n; (n = next_of_tile(&t, &cell)) > 0;) {
            take_cells(&t, n);
            for (int query = 0; query < t.queries; query += QUERIES) {
                attend_queries(&t, query, n);
            }
        }
        end_tile(&t, head, row, stream);
    }
}

#else

struct tile;
static bool tiles_run_here(void) { return false; }
static int rows_of_tile(const struct ggml_tensor *t) { return 0; }
static void attend_tiles(struct ggml_tensor *node, int n_threads, struct layerskip_attend *a) {}
static void tile_of_row(struct tile *t, const struct attend_row *r) {}
static bool tile_segment(struct tile *t, int64_t *cell, struct layerskip_partial *p) { return false; }

#endif
