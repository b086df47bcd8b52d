/*
 * The kernel of attend.c, which includes this once for each width of vectors: WIDE numbers, COLUMNS of them for a
 * query's sums, by functions for the processors of TILES.
 *
 * A tile is some rows of a node with query heads that share a head of keys: its queries. The cells that any of its
 * rows sees are taken in their order, TILE_CELLS at a time: their keys and values are converted once for all queries
 * of the tile, and scores and values are products of small matrices whose sums stay in registers.
 *
 * A prompt's rows are computed in tiles of many. With fewer rows each is a tile of its own, in segments.
 */
#define JOIN(name, width) name##width
#define NAMED(name, width) JOIN(name, width)
#define wide NAMED(wide, WIDE)
#define all_wide NAMED(all, WIDE)
#define wide_multiply_add NAMED(multiply_add, WIDE)
#define wide_halfs NAMED(load_halfs, WIDE)
#define wide_larger NAMED(larger, WIDE)
#define wide_exponential NAMED(exponential, WIDE)
#define most_of NAMED(most_of, WIDE)
#define sum_of NAMED(sum_of, WIDE)
#define add_shown NAMED(add_shown, WIDE)
#define shown_of NAMED(shown_of, WIDE)
#define transpose NAMED(transpose, WIDE)
#define tile NAMED(tile, WIDE)
#define mask_of NAMED(mask_of, WIDE)
#define next_of_tile NAMED(next_of_tile, WIDE)
#define take_cells NAMED(take_cells, WIDE)
#define attend_queries NAMED(attend_queries, WIDE)
#define restart_tile NAMED(restart_tile, WIDE)
#define begin_tile NAMED(begin_tile, WIDE)
#define tile_of_node NAMED(tile_of_node, WIDE)
#define end_query NAMED(end_query, WIDE)
#define attend_cells NAMED(attend_cells, WIDE)
#define attend_segment NAMED(attend_segment, WIDE)
#define attend_rows NAMED(attend_rows, WIDE)
#define attend_tiles NAMED(attend_tiles, WIDE)
#define attend_node NAMED(attend_node, WIDE)

/* What is kept of a tile. */
struct tile {
    const struct ggml_tensor *t, *q, *k, *v, *mask;
    const char *keys, *values, *masks; /* of the head, the stream and the first row; masks may be NULL */
    int64_t row, stream;               /* the first row's */
    int rows, first, group, queries;   /* rows, query heads from first on; queries = rows * group, up to a multiple of QUERIES */
    int width, value_width;
    float scale, cap; /* of scores; cap 0 = none */

    float most[TILE_NUMBERS / LANES], sum[TILE_NUMBERS / LANES];
    float q_of[TILE_NUMBERS] __attribute__((aligned(64)));   /* (queries, width), scaled */
    float out_of[TILE_NUMBERS] __attribute__((aligned(64))); /* (queries, value_width), sums of values */

    /* Of the cells at hand. */
    int32_t cells[TILE_CELLS + WIDE];
    bool shows[TILE_ROWS];                                                 /* whether a row sees one of them */
    float hides[TILE_ROWS][TILE_CELLS] __attribute__((aligned(64)));       /* by row: what the mask adds to scores */
    float keys_of[MOST_WIDTH * TILE_CELLS] __attribute__((aligned(64)));   /* (width, TILE_CELLS) */
    float values_of[TILE_CELLS * MOST_WIDTH] __attribute__((aligned(64))); /* (TILE_CELLS, value_width) */
};

static inline const uint16_t *mask_of(const struct tile *t, int row) { return (const uint16_t *)(t->masks + (size_t)row * t->mask->nb[1]); }

/* Finds the next cells from *cell on that some row sees. */
TILES static int next_of_tile(struct tile *t, int64_t *cell) {
    const unsigned all = (1u << WIDE) - 1;
    const int64_t n_kv = t->k->ne[1];
    int n = 0;
    int64_t at = *cell;
    for (; at < n_kv && n < TILE_CELLS; at += WIDE) {
        unsigned shown = 0;
        const int64_t left = n_kv - at;
        if (t->masks == NULL) {
            shown = left < WIDE ? (1u << left) - 1 : all;
        }
        for (int row = t->rows - 1; row >= 0 && shown != all && t->masks != NULL; row--) { /* the last row sees most */
            if (left >= WIDE) {
                shown |= shown_of(mask_of(t, row) + at);
            }
            for (int i = 0; i < left && left < WIDE; i++) {
                shown |= (unsigned)(mask_of(t, row)[at + i] != HIDDEN) << i;
            }
        }
        if (shown == all) {
            for (int i = 0; i < WIDE; i++) {
                t->cells[n++] = (int32_t)at + i;
            }
            continue;
        }
        for (; shown != 0; shown &= shown - 1) {
            t->cells[n++] = (int32_t)at + __builtin_ctz(shown);
        }
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
            UNROLL
            for (int i = 0; i < WIDE; i++) {
                const int64_t ahead = t->cells[c + i] + TILE_CELLS;
                x[i] = wide_halfs((const uint16_t *)(t->keys + (size_t)t->cells[c + i] * t->k->nb[1]) + d);
                if (ahead < t->k->ne[1] && d % 32 == 0) {
                    __builtin_prefetch(t->keys + (size_t)ahead * t->k->nb[1] + 2 * d);
                }
            }
            transpose(x);
            UNROLL
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
        t->shows[row] = most_of(most) > -INFINITY;
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
    for (int from = 0; from < TILE_CELLS; from += COLUMNS * WIDE) {
        wide scores[QUERIES][COLUMNS] = {{{0}}};
        const float *queries = &t->q_of[first * t->width];
        MULTIPLY(COLUMNS, scores, queries, t->width, &t->keys_of[from], TILE_CELLS, t->width)
        UNROLL
        for (int i = 0; i < QUERIES; i++) {
            UNROLL
            for (int c = 0; c < COLUMNS; c++) {
                *(wide *)&weights[i * TILE_CELLS + from + c * WIDE] = scores[i][c];
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
        const float before = t->most[query], now = most_of(wide_larger(most, all_wide(before)));
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
        t->sum[query] = t->sum[query] * shrink[i] + sum_of(sum);
    }
    const int width = t->value_width;
    float *out = &t->out_of[first * width];
    for (int d = 0; d < width; d += COLUMNS * WIDE) {
        switch ((width - d) / WIDE) {
        case 1: ADD_WEIGHTED(1) break;
        case 2: ADD_WEIGHTED(2) break;
        case 3: ADD_WEIGHTED(3) break;
        default: ADD_WEIGHTED(COLUMNS)
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

/* Sets what is the same for all tiles of a node. */
static void tile_of_node(struct tile *t, const struct ggml_tensor *node) {
    t->t = node, t->q = node->src[0], t->k = node->src[1], t->v = node->src[2], t->mask = node->src[3];
    t->width = (int)t->k->ne[0], t->value_width = (int)t->v->ne[0];
    memcpy(&t->scale, &node->op_params[ATTEND_SCALE], sizeof t->scale);
    memcpy(&t->cap, &node->op_params[ATTEND_CAP], sizeof t->cap);
}

/* Takes the queries of a tile: rows from row on, and heads query heads from first on, which share a head of keys. */
static void begin_tile(struct tile *t, int64_t stream, int64_t row, int rows, int head, int first, int heads) {
    t->stream = stream, t->row = row, t->rows = rows, t->first = first, t->group = heads;
    t->queries = (rows * heads + QUERIES - 1) / QUERIES * QUERIES;
    t->keys = (const char *)t->k->data + (size_t)head * t->k->nb[2] + (size_t)stream * t->k->nb[3];
    t->values = (const char *)t->v->data + (size_t)head * t->v->nb[2] + (size_t)stream * t->v->nb[3];
    t->masks = t->mask == NULL ? NULL : (const char *)t->mask->data + (size_t)row * t->mask->nb[1] + (size_t)(stream % t->mask->ne[3]) * t->mask->nb[3];
    for (int query = 0; query < t->queries; query++) {
        const bool there = query < rows * heads; /* or it stands for none */
        const float *q = (const float *)((const char *)t->q->data + (size_t)(row + query / heads) * t->q->nb[1] +
                                         (size_t)(first + query % heads) * t->q->nb[2] + (size_t)stream * t->q->nb[3]);
        for (int d = 0; d < t->width; d++) {
            t->q_of[query * t->width + d] = there ? q[d] * t->scale : 0;
        }
    }
}

/* Writes a query's result: the values, as far as they are sums. */
static void end_query(const struct tile *t, int query, const float *values, float sum) {
    float *out = (float *)((char *)t->t->data + (size_t)(t->first + query % t->group) * t->t->nb[1] + (size_t)(t->row + query / t->group) * t->t->nb[2] +
                           (size_t)t->stream * t->t->nb[3]);
    const float part = sum > 0 ? 1 / sum : 0;
    for (int d = 0; d < t->value_width; d++) {
        out[d] = values[d] * part;
    }
}

/* Attends to the next cells that a tile sees, a multiple of TILE_CELLS of them at most. False: there were none. */
TILES static bool attend_cells(struct tile *t, int64_t *cell, int64_t most) {
    int64_t all = 0;
    for (int n; all < most && (n = next_of_tile(t, cell)) > 0; all += n) {
        take_cells(t, n);
        for (int query = 0; query < t->queries; query += QUERIES) {
            attend_queries(t, query, n);
        }
    }
    return all > 0;
}

/* Attends to the next segment of a row, whose tile it is. False: there was none. */
static bool attend_segment(struct tile *t, int64_t *cell, struct layerskip_partial *p) {
    restart_tile(t);
    const bool some = attend_cells(t, cell, SEGMENT);
    for (int h = 0; h < HEADS; h++) {
        p->most[h] = h < t->group ? t->most[h] : -INFINITY;
        p->sum[h] = h < t->group ? t->sum[h] : 0;
    }
    for (int h = 0; h < t->group; h++) {
        memcpy(p->values[h], &t->out_of[h * t->value_width], sizeof(float) * (size_t)t->value_width);
    }
    return some;
}

/* A thread's part of a node with few rows. */
static void attend_rows(struct ggml_tensor *node, int thread, int n_threads, struct layerskip_attend *a) {
    struct tile t; /* 280 kB, which are set as far as they are used */
    struct layerskip_partial p, more;
    tile_of_node(&t, node);
    const struct attend_work w = work_of(node);
    const int64_t rows = t.q->ne[1], heads = t.k->ne[2], items = w.items, segments = w.segments;
    const bool shared = items <= LAYERSKIP_ITEMS && items * segments <= a->room && segments > 1 && n_threads > 1;
    /* A thread's unit is an item, or a segment for all items: their keys and values lie side by side. */
    for (int64_t unit = thread; unit < (shared ? segments : items); unit += n_threads) {
        for (int64_t item = shared ? 0 : unit; item < (shared ? items : unit + 1); item++) {
            int64_t cell = 0;
            const int part = (int)(item % w.parts) * HEADS, head = (int)(item / w.parts % heads);
            const int64_t row = item / w.parts / heads % rows, stream = item / w.parts / heads / rows;
            begin_tile(&t, stream, row, 1, head, head * w.group + part, w.group - part < HEADS ? w.group - part : HEADS);
            struct layerskip_partial *all = &p;
            if (!shared) {
                attend_segment(&t, &cell, &p);
                while (attend_segment(&t, &cell, &more)) {
                    merge(&p, &more, t.group, t.value_width);
                }
            } else {
                all = a->partials + item * segments;
                cell = behind_visible((const uint16_t *)t.masks, t.k->ne[1], unit * SEGMENT);
                if (!attend_segment(&t, &cell, &all[unit])) {
                    all[unit].sum[0] = 0;
                }
                if (__atomic_add_fetch(&a->done[item], 1, __ATOMIC_ACQ_REL) < segments) {
                    continue;
                }
                __atomic_store_n(&a->done[item], 0, __ATOMIC_RELAXED); /* the last one merges */
                for (int64_t s = 1; s < segments && all[s].sum[0] > 0; s++) {
                    merge(all, &all[s], t.group, t.value_width);
                }
            }
            for (int h = 0; h < t.group; h++) {
                end_query(&t, h, all->values[h], all->sum[h]);
            }
        }
    }
}

/* A thread's tiles of a node: whichever is next, as other programs may hold a thread up. */
static void attend_tiles(struct ggml_tensor *node, int n_threads, struct layerskip_attend *a) {
    struct tile t;
    tile_of_node(&t, node);
    const int64_t heads = t.k->ne[2], rows = t.q->ne[1], step = rows_of_tile(node), tiles = (rows + step - 1) / step, units = tiles * heads * t.q->ne[3];
    const int group = (int)(t.q->ne[2] / heads);
    for (;;) {
        const int64_t unit = __atomic_fetch_add(&a->claimed, 1, __ATOMIC_RELAXED);
        if (unit >= units) {
            if (unit == units + n_threads - 1) { /* of the last thread that asks */
                __atomic_store_n(&a->claimed, 0, __ATOMIC_RELAXED);
            }
            return;
        }
        const int64_t row = unit / heads % tiles * step;
        int64_t cell = 0;
        const int head = (int)(unit % heads);
        begin_tile(&t, unit / heads / tiles, row, (int)(rows - row < step ? rows - row : step), head, head * group, group);
        restart_tile(&t);
        attend_cells(&t, &cell, t.k->ne[1]);
        for (int query = 0; query < t.rows * t.group; query++) {
            end_query(&t, query, &t.out_of[query * t.value_width], t.sum[query]);
        }
    }
}

/* A thread's part of a node. */
static void attend_node(struct ggml_tensor *t, int thread, int n_threads, void *data) {
    if (t->src[0]->ne[1] > MOST_ROWS) {
        attend_tiles(t, n_threads, data);
    } else {
        attend_rows(t, thread, n_threads, data);
    }
}

#undef JOIN
#undef NAMED
#undef wide
#undef all_wide
#undef wide_multiply_add
#undef wide_halfs
#undef wide_larger
#undef wide_exponential
#undef most_of
#undef sum_of
#undef add_shown
#undef shown_of
#undef transpose
#undef tile
#undef mask_of
#undef next_of_tile
#undef take_cells
#undef attend_queries
#undef restart_tile
#undef begin_tile
#undef tile_of_node
#undef end_query
#undef attend_cells
#undef attend_segment
#undef attend_rows
#undef attend_tiles
#undef attend_node
#undef MULTIPLY
#undef ADD_WEIGHTED
#undef WIDE
#undef COLUMNS
#undef TILES
