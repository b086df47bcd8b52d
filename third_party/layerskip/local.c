/*
 * Attention that sees a window; a part of layerskip.c, which includes it.
 *
 * Under *local* attention a token sees the first tokens of its sequence (sinks) and the last ones
 * (the window), itself included. llama.cpp's attention reads all cells of the KV cache that any
 * sequence uses, and an attention mask tells each token which of them are its own:
 *
 *     FLASH_ATTN_EXT(q, PERMUTE(VIEW(cache_k)), PERMUTE(VIEW(cache_v)), mask)
 *
 * A mask alone saves no time. So where all tokens of the batch are local in a layer, a node of ours gathers
 * the cells that some token sees from the view, as they are, whatever their type, and attention reads these:
 *
 *     FLASH_ATTN_EXT(q, PERMUTE(GATHER(VIEW(cache_k))), PERMUTE(GATHER(VIEW(cache_v))), seen)
 *
 * seen has the mask's own numbers for the gathered cells, and -infinity for those outside a token's own window,
 * so what a token sees does not depend on what it is decoded with. Where some tokens attend to everything,
 * all cells are read, and only seen is ours. Cells are gathered in their order in the cache: kernels that go from
 * cell to cell sum in the same order. Without flash attention it is MUL_MAT, SOFT_MAX, MUL_MAT.
 *
 * Which cells a token sees is known only once llama.cpp has found places for the batch's tokens, and it uses its
 * last graph again for other places. So it is worked out in front of each computation of a graph, where libllama
 * calls ggml_backend_sched_graph_compute_async: a function of that name here comes first, as for the other hook.
 * By then the graph's inputs say into which cells its tokens go, and a list of the cells of each sequence's
 * positions is kept from that, for every decode whatever its mask. Who changes the cache in other ways
 * tells (layerskip_forget_cells and so on). What is restored from a copy comes back in the order of the copy's
 * cells, into cells that the next attention mask shows.
 */
#include <math.h>

/* Where the list of a cache's cells cannot be trusted. */
enum { NO_CELL = -1 };

/* ---- which cell has which position ---- */

static struct layerskip_sequence *sequence(struct layerskip_local *l, int seq) {
    if (seq >= l->n_sequences) {
        struct layerskip_sequence *more = realloc(l->sequences, (size_t)(seq + 1) * sizeof *more);
        if (more == NULL) {
            return NULL;
        }
        memset(more + l->n_sequences, 0, (size_t)(seq + 1 - l->n_sequences) * sizeof *more);
        l->sequences = more;
        l->n_sequences = seq + 1;
    }
    return &l->sequences[seq];
}

static void clear_sequence(struct layerskip_sequence *s) {
    for (int k = 0; k < LAYERSKIP_CACHES; k++) {
        s->in[k].n = 0;
        s->n_restored[k] = 0;
    }
    s->lost = false;
}

static void free_sequence(struct layerskip_sequence *s) {
    for (int k = 0; k < LAYERSKIP_CACHES; k++) {
        free(s->in[k].cells);
        free(s->restored[k]);
    }
    *s = (struct layerskip_sequence){0};
}

/* Notes that a position is in a cell. False: there is no memory. */
static bool set_cell(struct layerskip_cells *in, int32_t position, int32_t cell) {
    enum { MOST = 1 << 26 }; /* positions of a sequence in a cache; no context has more */
    if (in->n == 0) {
        in->first = position;
    }
    const int64_t before = in->first > position ? (int64_t)in->first - position : 0;
    const int64_t need = (int64_t)position - in->first + 1 > in->n ? (int64_t)position - in->first + 1 : in->n;
    if (need + before > MOST) {
        return false;
    }
    if (need + before > in->room) {
        const int64_t room = 2 * (need + before) + 64;
        int32_t *cells = realloc(in->cells, (size_t)room * sizeof *cells);
        if (cells == NULL) {
            return false;
        }
        in->cells = cells;
        in->room = (int32_t)room;
    }
    if (before > 0) {
        memmove(in->cells + before, in->cells, (size_t)in->n * sizeof *in->cells);
        for (int64_t i = 0; i < before; i++) {
            in->cells[i] = NO_CELL;
        }
        in->first = position;
        in->n += (int32_t)before;
    }
    for (; in->n <= position - in->first; in->n++) {
        in->cells[in->n] = NO_CELL;
    }
    in->cells[position - in->first] = cell;
    return true;
}

static int32_t cell_of(const struct layerskip_cells *in, int32_t position) {
    return position >= in->first && position - in->first < in->n ? in->cells[position - in->first] : NO_CELL;
}

/* Notes positions of which it will show where they are. False: there is no memory. */
static bool come_back(struct layerskip_sequence *s, int k, const int32_t *positions, int32_t n) {
    int32_t *restored = realloc(s->restored[k], (size_t)(n + 1) * sizeof *restored);
    if (restored == NULL) {
        return false;
    }
    memcpy(restored, positions, (size_t)n * sizeof *restored);
    s->restored[k] = restored;
    s->n_restored[k] = n;
    return true;
}

void layerskip_forget_cells(struct layerskip_state *state, int32_t seq, int32_t from, int32_t to) {
    struct layerskip_local *l = &state->local;
    for (int i = seq < 0 ? 0 : seq; i < (seq < 0 ? l->n_sequences : seq + 1) && i < l->n_sequences; i++) {
        struct layerskip_sequence *s = &l->sequences[i];
        if (from <= 0 && to < 0) {
            clear_sequence(s);
            continue;
        }
        for (int k = 0; k < LAYERSKIP_CACHES; k++) {
            struct layerskip_cells *in = &s->in[k];
            for (int32_t at = 0; at < in->n; at++) {
                if (in->first + at >= from && (to < 0 || in->first + at < to)) {
                    in->cells[at] = NO_CELL;
                }
            }
            if (to < 0 && from - in->first < in->n) {
                in->n = from > in->first ? from - in->first : 0;
            }
            int32_t kept = 0;
            for (int32_t at = 0; at < s->n_restored[k]; at++) {
                const int32_t position = s->restored[k][at];
                if (position < from || (to >= 0 && position >= to)) {
                    s->restored[k][kept++] = position;
                }
            }
            s->n_restored[k] = kept;
        }
    }
}

void layerskip_copy_cells(struct layerskip_state *state, int32_t src, int32_t dst, int32_t from, int32_t to) {
    struct layerskip_local *l = &state->local;
    if (src == dst || src >= l->n_sequences) {
        return;
    }
    struct layerskip_sequence *d = sequence(l, dst), *s = &l->sequences[src];
    if (d == NULL) {
        return; /* a sequence without cells is lost */
    }
    bool ok = !s->lost;
    for (int k = 0; k < LAYERSKIP_CACHES; k++) {
        const struct layerskip_cells *in = &s->in[k];
        for (int32_t at = 0; at < in->n && ok; at++) {
            const int32_t position = in->first + at;
            if (position >= from && (to < 0 || position < to)) {
                ok = set_cell(&d->in[k], position, in->cells[at]);
            }
        }
        ok = ok && (s->n_restored[k] == 0 || (d->n_restored[k] == 0 && come_back(d, k, s->restored[k], s->n_restored[k])));
    }
    for (int k = 0; k < LAYERSKIP_CACHES; k++) {
        int32_t kept = 0;
        for (int32_t at = 0; at < d->n_restored[k]; at++) {
            const int32_t position = d->restored[k][at];
            if (position >= from && (to < 0 || position < to)) {
                d->restored[k][kept++] = position;
            }
        }
        d->n_restored[k] = kept;
    }
    d->lost = d->lost || !ok;
}

struct placed {
    int32_t cell, position;
};

static int by_cell(const void *a, const void *b) {
    const struct placed *x = a, *y = b;
    return (x->cell > y->cell) - (x->cell < y->cell);
}

struct layerskip_saved *layerskip_save_cells(const struct layerskip_state *state, int32_t seq) {
    const struct layerskip_local *l = &state->local;
    const struct layerskip_sequence *s = seq < l->n_sequences && !l->sequences[seq].lost ? &l->sequences[seq] : NULL;
    size_t all = 0, most = 0;
    for (int k = 0; k < LAYERSKIP_CACHES && s != NULL; k++) {
        const size_t n = (size_t)(s->n_restored[k] > 0 ? s->n_restored[k] : s->in[k].n);
        all += n;
        most = n > most ? n : most;
    }
    struct layerskip_saved *saved = calloc(1, sizeof *saved + all * sizeof *saved->positions);
    struct placed *placed = malloc((most + 1) * sizeof *placed);
    int32_t *next = saved != NULL ? saved->positions : NULL;
    for (int k = 0; k < LAYERSKIP_CACHES && s != NULL && saved != NULL && placed != NULL; k++) {
        const struct layerskip_cells *in = &s->in[k];
        int32_t n = 0;
        for (int32_t at = 0; at < in->n; at++) {
            if (in->cells[at] != NO_CELL) {
                placed[n++] = (struct placed){in->cells[at], in->first + at};
            }
        }
        if (s->n_restored[k] > 0) {
            n = s->n_restored[k];
            memcpy(next, s->restored[k], (size_t)n * sizeof *next);
        } else {
            qsort(placed, (size_t)n, sizeof *placed, by_cell);
            for (int32_t at = 0; at < n; at++) {
                next[at] = placed[at].position;
            }
        }
        saved->n[k] = n;
        next += n;
    }
    free(placed);
    return saved;
}

void layerskip_restore_cells(struct layerskip_state *state, int32_t seq, const struct layerskip_saved *saved) {
    struct layerskip_sequence *s = sequence(&state->local, seq);
    if (s == NULL) {
        return; /* a sequence without cells is lost */
    }
    clear_sequence(s);
    s->lost = saved == NULL || saved->n[0] == 0;
    const int32_t *positions = saved != NULL ? saved->positions : NULL;
    for (int k = 0; k < LAYERSKIP_CACHES && !s->lost; k++) {
        s->lost = !come_back(s, k, positions, saved->n[k]);
        positions += saved->n[k];
    }
}

static void forget_plans(struct layerskip_local *l) {
    for (int i = 0; i < l->n_plans; i++) {
        free(l->plans[i].windows);
    }
    l->n_plans = 0;
}

static void layerskip_free_local(struct layerskip_local *l) {
    for (int i = 0; i < l->n_sequences; i++) {
        free_sequence(&l->sequences[i]);
    }
    free(l->sequences);
    free(l->marks);
    free(l->tokens);
    forget_plans(l);
    if (l->nodes != NULL) {
        real.free_context(l->nodes);
    }
    if (l->buffer != NULL) {
        real.buffer_free(l->buffer);
    }
    *l = (struct layerskip_local){0};
}

/* ---- masks ---- */

/* True if the mask makes layer's attention local. */
static bool is_local(const uint64_t *mask, int layer) {
    return (mask[LAYERSKIP_LOCAL + 2 * layer / 64] >> (2 * layer % 64) & 1) != 0;
}

static bool has_local(const uint64_t *mask) { return mask[LAYERSKIP_WINDOW] != 0; }

static struct layerskip_window window_of(const uint64_t *mask) {
    return (struct layerskip_window){.recent = (int32_t)(mask[LAYERSKIP_WINDOW] & 0xffffffff), .sinks = (int32_t)(mask[LAYERSKIP_WINDOW] >> 32)};
}

/* The mask of the batch's i-th row. */
static const uint64_t *mask_of_row(const uint64_t *mask, const struct layerskip_rows *rows, int i) {
    return rows == NULL ? mask : rows->masks + (size_t)rows->mask_of[i] * LAYERSKIP_WORDS;
}

/*
 * How many cells the batch's tokens see at most that are not theirs, or 0 where each sees all that it would see
 * without a window: then attention stays as it is.
 */
static int64_t cells_in_windows(const uint64_t *mask, const struct layerskip_rows *rows,
                                const struct llama_batch *batch) {
    bool seen[LAYERSKIP_SEQUENCES] = {0}, narrow = false;
    int64_t cells = 0;
    if (rows == NULL && !has_local(mask)) {
        return 0;
    }
    for (int i = 0; i < batch->n_tokens; i++) {
        const uint64_t *own = mask_of_row(mask, rows, i);
        if (!has_local(own)) {
            continue;
        }
        const struct layerskip_window w = window_of(own);
        narrow = narrow || batch->pos[i] >= w.recent + w.sinks;
        for (int s = 0; s < batch->n_seq_id[i]; s++) {
            const int seq = batch->seq_id[i][s];
            if (!seen[seq]) {
                seen[seq] = true;
                cells += w.recent + w.sinks - 1;
            }
            cells += s > 0; /* its own cell is counted once, with the graph's tokens */
        }
    }
    return narrow ? cells : 0;
}

/* ---- what a graph says of its caches ---- */

static struct ggml_tensor *source_view(struct ggml_tensor *t, int depth) {
    int layer, kind;
    for (; t != NULL && depth > 0; depth--) {
        if (t->op == op.view && is_cache(t, &layer, &kind)) {
            return t;
        }
        t = t->src[0];
    }
    return NULL;
}

/* How many operations lie between a cache's view and attention at most. */
enum { CHAIN = 6 };

/* The view of the cache of keys that t attends to, and where its mask is among its sources; NULL = t is no attention. */
static struct ggml_tensor *keys_of(struct ggml_tensor *t, int *mask) {
    struct ggml_tensor *view = NULL;
    if (t->op == op.flash_attn) {
        *mask = 3;
        view = t->src[3] != NULL ? source_view(t->src[1], CHAIN) : NULL;
    } else if (t->op == op.soft_max && t->src[1] != NULL) {
        struct ggml_tensor *kq = t->src[0];
        for (int i = 0; i < CHAIN && kq != NULL && kq->op != op.mul_mat; i++) {
            kq = kq->src[0];
        }
        *mask = 1;
        view = kq != NULL && kq->op == op.mul_mat ? source_view(kq->src[0], CHAIN) : NULL;
    }
    return view;
}

/* Which of the graph's caches a layer's is; -1 = none that is known. */
static int cache_of_layer(const struct layerskip_local *l, int layer) {
    return layer >= 0 && layer < LAYERSKIP_MAX_LAYERS ? l->cache_of[layer] - 1 : -1;
}

/* Finds out which inputs of a graph of llama.cpp's say where its tokens go and what they see. */
static void read_graph(struct ggml_cgraph *cgraph, struct layerskip_local *l) {
    const int n = real.n_nodes(cgraph);
    l->graph = cgraph;
    l->positions = NULL;
    l->n_caches = 0;
    memset(l->cache_of, 0, sizeof l->cache_of);
    for (int i = 0; i < n; i++) {
        struct ggml_tensor *t = real.node(cgraph, i);
        int layer, kind, at;
        for (int s = 0; s < GGML_SRC && l->positions == NULL; s++) {
            if (t->src[s] != NULL && t->src[s]->flags & GGML_FLAG_INPUT && strcmp(t->src[s]->name, "inp_pos") == 0) {
                l->positions = t->src[s];
            }
        }
        if (t->op == op.set_rows && is_cache(t, &layer, &kind) && kind == CACHE_KEYS) {
            int c = 0;
            while (c < l->n_caches && l->caches[c].places != t->src[1]) {
                c++;
            }
            if (c == LAYERSKIP_CACHES) {
                l->n_caches = 0;
                return; /* of an architecture that is not known: nothing is tracked */
            }
            if (c == l->n_caches) {
                const struct ggml_tensor *cache = t->view_src != NULL ? t->view_src : t;
                l->caches[l->n_caches++] = (struct layerskip_cache){
                    .places = t->src[1], .cells = cache->ne[1], .streams = cache->ne[2]};
            }
            l->cache_of[layer] = (uint8_t)(c + 1);
        }
        struct ggml_tensor *view = keys_of(t, &at);
        if (view != NULL && is_cache(view, &layer, &kind) && cache_of_layer(l, layer) >= 0) {
            struct layerskip_cache *c = &l->caches[cache_of_layer(l, layer)];
            c->mask = t->src[at]->flags & GGML_FLAG_INPUT ? t->src[at] : c->mask;
        }
    }
}

/* ---- the edit ---- */

/* The i-th of the batch's masks. */
static const uint64_t *mask_number(const uint64_t *mask, int i) {
    return job.rows == NULL ? mask : job.rows->masks + (size_t)i * LAYERSKIP_WORDS;
}

static int number_of_masks(void) { return job.rows == NULL ? 1 : job.rows->n_masks; }

/* What the tokens under each mask see in a layer; recent is 0 where that is everything. Whether some see less, and
 * whether some see everything. */
static void windows_of_layer(const uint64_t *mask, int layer, struct layerskip_window *windows, bool *some, bool *all) {
    *some = *all = false;
    for (int i = 0; i < number_of_masks(); i++) {
        const uint64_t *own = mask_number(mask, i);
        if (skipped_halves(own, layer) & ATTENTION) {
            windows[i] = (struct layerskip_window){.recent = 1}; /* for nothing: a gate puts it aside */
        } else if (is_local(own, layer)) {
            windows[i] = window_of(own);
            *some = true;
        } else {
            windows[i] = (struct layerskip_window){0};
            *all = true;
        }
    }
}


/* The plan for attention to a cache under these windows, a new one where there is none yet. NULL: refused. */
static struct layerskip_attention *plan_attention(struct layerskip_local *l, int cache, struct ggml_tensor *mask,
                                                  const struct layerskip_window *windows, bool gather) {
    enum { STEP = 32 }; /* of the number of gathered cells */
    const size_t n = (size_t)number_of_masks();
    const int64_t streams = mask->ne[3], rows = l->caches[cache].places->ne[0] / streams;
    const int64_t needed = (l->built_cells + rows + STEP - 1) / STEP * STEP;
    gather = gather && needed < mask->ne[0];
    for (int i = 0; i < l->n_plans; i++) {
        struct layerskip_attention *p = &l->plans[i];
        if (p->cache == cache && p->mask == mask && p->gathers == gather && memcmp(p->windows, windows, n * sizeof *windows) == 0) {
            return p;
        }
    }
    if (l->n_plans == LAYERSKIP_PLANS) {
        refuse("the rows of a batch make attention local in more than %d different ways", LAYERSKIP_PLANS, 0);
        return NULL;
    }
    struct layerskip_attention *p = &l->plans[l->n_plans];
    *p = (struct layerskip_attention){
        .cache = cache, .mask = mask, .streams = streams, .gathers = gather, .n_seen = gather ? needed : mask->ne[0]};
    const size_t runs = gather ? (size_t)(streams * p->n_seen) : 0;
    p->windows = malloc(n * sizeof *windows + runs * sizeof *p->runs + (size_t)streams * sizeof *p->n_runs);
    if (p->windows == NULL) {
        refuse("out of memory for local attention to %d cells", (int)p->n_seen, 0);
        return NULL;
    }
    memcpy(p->windows, windows, n * sizeof *windows);
    p->runs = (struct layerskip_run *)(p->windows + n);
    p->n_runs = (int32_t *)(p->runs + runs);
    p->seen = real.new_tensor_4d(l->nodes, mask->type, p->n_seen, mask->ne[1], mask->ne[2], mask->ne[3]);
    l->n_plans++;
    return p;
}

/* A thread's share of n things. */
static int64_t share(int64_t n, int thread, int n_threads) { return n * thread / n_threads; }

/* Copies the plan's cells out of a view (numbers of a head, heads, cells, streams) that has each cell in one piece. */
static void gather_rows(struct ggml_tensor *to, int thread, int n_threads, void *plan) {
    const struct layerskip_attention *p = plan;
    const struct ggml_tensor *from = to->src[0];
    const int64_t first = share(p->n_seen, thread, n_threads), end = share(p->n_seen, thread + 1, n_threads);
    for (int64_t stream = 0; stream < p->streams; stream++) {
        char *const out = (char *)to->data + (size_t)stream * to->nb[3];
        const char *const in = (const char *)from->data + (size_t)stream * from->nb[3];
        int64_t filled = 0;
        for (int32_t r = 0; r < p->n_runs[stream]; r++) {
            const struct layerskip_run run = p->runs[stream * p->n_seen + r];
            filled = run.to + run.n;
            for (int64_t at = run.to < first ? first : run.to; at < filled && at < end; at++) {
                memcpy(out + (size_t)at * to->nb[2], in + (size_t)(run.from + at - run.to) * from->nb[2], to->nb[2]);
            }
        }
        filled = filled < first ? first : filled;
        if (filled < end) { /* nobody sees these, and 0 times what they hold must be 0 */
            memset(out + (size_t)filled * to->nb[2], 0, (size_t)(end - filled) * to->nb[2]);
        }
    }
}

/* The same for a view (cells, heads, numbers of a head, streams) that has a cell's numbers far apart. */
static void gather_columns(struct ggml_tensor *to, int thread, int n_threads, void *plan) {
    const struct layerskip_attention *p = plan;
    const struct ggml_tensor *from = to->src[0];
    const int64_t rows = to->ne[1] * to->ne[2], end = share(rows, thread + 1, n_threads);
    for (int64_t stream = 0; stream < p->streams; stream++) {
        for (int64_t row = share(rows, thread, n_threads); row < end; row++) {
            const size_t i = (size_t)(row % to->ne[1]), k = (size_t)(row / to->ne[1]), j = (size_t)stream;
            char *const out = (char *)to->data + i * to->nb[1] + k * to->nb[2] + j * to->nb[3];
            const char *const in = (const char *)from->data + i * from->nb[1] + k * from->nb[2] + j * from->nb[3];
            int64_t filled = 0;
            for (int32_t r = 0; r < p->n_runs[stream]; r++) {
                const struct layerskip_run run = p->runs[stream * p->n_seen + r];
                memcpy(out + (size_t)run.to * to->nb[0], in + (size_t)run.from * from->nb[0], (size_t)run.n * to->nb[0]);
                filled = run.to + run.n;
            }
            memset(out + (size_t)filled * to->nb[0], 0, (size_t)(p->n_seen - filled) * to->nb[0]);
        }
    }
}

/* What the edit of a layer's attention works with. */
struct local_edit {
    struct graph *g;
    struct layerskip_local *l;
    struct layerskip_attention *plan;
    int layer;
    struct ggml_tensor *view, *gathered; /* the last view of the cache, and what stands in for it */
};

static bool refuse_local(int layer) {
    return refuse("layer %d attends to its cache in a way that cannot be local", layer, 0);
}

/* What gathers the plan's cells from a view of the cache; NULL: refused. */
static struct ggml_tensor *gather_cells(struct local_edit *e, struct ggml_tensor *view) {
    enum { ALL_THREADS = -1 };
    const bool columns = view->nb[1] > view->nb[2];
    const int cells = columns ? 0 : 2;
    if (e->view == view) {
        return e->gathered;
    }
    if (view->ne[cells] != e->plan->mask->ne[0] || view->ne[3] != e->plan->streams ||
        (columns ? view->nb[0] : view->nb[1] * (size_t)view->ne[1]) > view->nb[2]) {
        refuse_local(e->layer);
        return NULL;
    }
    int64_t ne[GGML_DIMS];
    memcpy(ne, view->ne, sizeof ne);
    ne[cells] = e->plan->n_seen;
    struct ggml_tensor *made = real.custom_4d(e->l->nodes, view->type, ne[0], ne[1], ne[2], ne[3], &view, 1,
                                              columns ? gather_columns : gather_rows, ALL_THREADS, e->plan);
    if (made->nb[0] != view->nb[0] || (!columns && made->nb[1] != view->nb[1])) {
        refuse_local(e->layer);
        return NULL;
    }
    e->view = view;
    e->gathered = made;
    return made;
}

/* What t is of the cells that are seen: the same operations on what was gathered. NULL: refused. */
static struct ggml_tensor *of_seen(struct local_edit *e, struct ggml_tensor *t, int depth) {
    int layer, kind;
    if (t->op == op.view && position(t->src[0]) < 0 && is_cache(t, &layer, &kind)) {
        return gather_cells(e, t);
    }
    struct ggml_tensor *src = depth > 0 && t->src[0] != NULL ? of_seen(e, t->src[0], depth - 1) : NULL, *made = NULL;
    if (src == NULL) {
        if (!job.refused) {
            refuse_local(e->layer);
        }
        return NULL;
    }
    if (t->op == op.permute) {
        made = real.permute(e->l->nodes, src, t->op_params[0], t->op_params[1], t->op_params[2], t->op_params[3]);
    } else if (t->op == op.transpose) {
        made = real.transpose(e->l->nodes, src);
    } else if (t->op == op.cont) {
        made = real.cont(e->l->nodes, src);
    } else if (t->op == op.cpy) {
        made = real.cast(e->l->nodes, src, t->type);
    } else if (t->op == op.view && src->nb[1] <= src->nb[2] && t->ne[2] == e->plan->mask->ne[0]) { /* values that are a part of the keys */
        made = real.view_4d(e->l->nodes, src, t->ne[0], t->ne[1], e->plan->n_seen, t->ne[3], src->nb[1], src->nb[2], src->nb[3],
                            t->view_offs - t->src[0]->view_offs);
    } else {
        refuse_local(e->layer);
        return NULL;
    }
    e->g->nodes[position(t)].keep = false;
    return made;
}

/* How many nodes read t. */
static int readers(const struct graph *g, const struct ggml_tensor *t) {
    int n = 0;
    for (int i = 0; i < g->n; i++) {
        for (int s = 0; s < GGML_SRC; s++) {
            n += g->nodes[i].t->src[s] == t;
        }
    }
    return n;
}

/* Has products, softmax and what is between them, without flash attention, see the plan's cells. */
static bool narrow_softmax(struct local_edit *e, struct ggml_tensor *softmax) {
    struct ggml_tensor *values = NULL;
    for (int i = position(softmax) + 1; i < e->g->n && values == NULL; i++) {
        struct ggml_tensor *t = e->g->nodes[i].t;
        values = t->op == op.mul_mat && t->src[1] == softmax ? t : NULL;
    }
    if (values == NULL || readers(e->g, softmax) != 1) {
        return refuse_local(e->layer);
    }
    struct ggml_tensor *t = softmax;
    for (; t->op != op.mul_mat; t = t->src[0]) {
        const bool one_by_one = t->src[1] == NULL && t->src[0]->ne[0] == e->plan->mask->ne[0]; /* as where logits are capped */
        if (!(one_by_one || t == softmax) || t->view_src != NULL || readers(e->g, t->src[0]) != 1) {
            return refuse_local(e->layer);
        }
        narrow(t, e->plan->n_seen);
    }
    narrow(t, e->plan->n_seen);
    t->src[0] = of_seen(e, t->src[0], CHAIN);
    values->src[0] = t->src[0] != NULL ? of_seen(e, values->src[0], CHAIN) : NULL;
    return values->src[0] != NULL;
}

/* Makes one attention of a layer local. */
static bool localize_attention(struct graph *g, struct layerskip_local *l, struct ggml_tensor *t, int layer,
                               const struct layerskip_window *windows, bool gather) {
    int at, cache_layer, kind;
    struct ggml_tensor *view = keys_of(t, &at);
    const int cache = view != NULL && is_cache(view, &cache_layer, &kind) ? cache_of_layer(l, cache_layer) : -1;
    struct ggml_tensor *mask = t->src[at];
    if (cache < 0 || !is_input(mask) || (mask->type != GGML_TYPE_F16 && mask->type != GGML_TYPE_F32) || mask->ne[2] != 1) {
        return refuse_local(layer);
    }
    if (view->view_src->buffer != NULL && !real.is_host(view->view_src->buffer)) {
        return refuse("the cache of layer %d is on a GPU, where attention cannot be local", layer, 0);
    }
    struct local_edit e = {.g = g, .l = l, .layer = layer, .plan = plan_attention(l, cache, mask, windows, gather)};
    if (e.plan == NULL) {
        return false;
    }
    if (job.alone != LAYERSKIP_TOGETHER && e.plan->gathers && e.plan->streams == 1 && job.n_rows > 1) {
        return refuse("tokens of a batch cannot be computed apart where attention is local, in layer %d", layer, 0);
    }
    t->src[at] = e.plan->seen;
    if (!e.plan->gathers) {
        return true;
    }
    if (at == 1) {
        return narrow_softmax(&e, t);
    }
    t->src[1] = of_seen(&e, t->src[1], CHAIN);
    t->src[2] = t->src[1] != NULL ? of_seen(&e, t->src[2], CHAIN) : NULL;
    return t->src[2] != NULL;
}

/* Finds the attentions that an addend is computed from since the stream, and makes them local. */
static bool localize_addend(struct graph *g, struct layerskip_local *l, int addend, int layer, const struct layerskip_window *windows,
                            bool gather, uint8_t *seen, int *found) {
    for (int i = addend; i >= 0; i--) { /* sources stand in front of what reads them */
        if (i != addend && seen[i] == 0) {
            continue;
        }
        seen[i] = 0;
        struct ggml_tensor *t = g->nodes[i].t;
        int mask;
        for (int s = 0; s < GGML_SRC; s++) {
            const int at = position(t->src[s]);
            if (at >= 0 && at < i && !g->nodes[at].stream) {
                seen[at] = 1;
            }
        }
        if (keys_of(t, &mask) != NULL) {
            ++*found;
            if (!localize_attention(g, l, t, layer, windows, gather)) {
                return false;
            }
        }
    }
    return true;
}

/* Puts the plans' masks into memory of our own. */
static bool place_plans(struct layerskip_local *l) {
    enum { ALIGNMENT = 64 };
    size_t size = 0;
    for (int i = 0; i < l->n_plans; i++) {
        const struct ggml_tensor *t = l->plans[i].seen;
        size += t->nb[3] * (size_t)t->ne[3] + ALIGNMENT;
    }
    if (size > l->size) {
        if (l->buffer != NULL) {
            real.buffer_free(l->buffer);
        }
        l->buffer = real.buft_alloc_buffer(real.cpu_buffer_type(), size);
        l->size = l->buffer != NULL ? size : 0;
    }
    if (l->buffer == NULL) {
        return l->n_plans == 0 || refuse("out of memory for %d masks of local attention", l->n_plans, 0);
    }
    char *next = real.buffer_get_base(l->buffer);
    for (int i = 0; i < l->n_plans; i++) {
        struct ggml_tensor *t = l->plans[i].seen;
        real.tensor_alloc(l->buffer, t, next);
        next += (t->nb[3] * (size_t)t->ne[3] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    return true;
}

/* Makes attention local where the mask, or the rows' masks, say so. */
static bool localize(struct ggml_cgraph *cgraph, struct graph *g, const uint64_t *mask) {
    struct layerskip_local *l = job.local;
    bool any = false;
    for (int i = 0; i < number_of_masks(); i++) {
        any = any || has_local(mask_number(mask, i));
    }
    if (!any) {
        return true;
    }
    if (!l->hooked) {
        return refuse("attention cannot be local here: libllama's computations do not pass the hook", 0, 0);
    }
    for (int i = 0; i < number_of_masks(); i++) {
        for (int layer = 0; layer < g->n_layer; layer++) {
            if (is_local(mask_number(mask, i), layer) && !(g->has[layer] & ATTENTION)) {
                return refuse("layer %d has no attention that could be local", layer, 0);
            }
        }
    }
    if (l->built_cells == 0) {
        return true; /* every token sees all */
    }
    enum { TENSORS = 9, TENSOR = 512 }; /* for one layer's attention; bytes that one takes in a ggml_context, at most */
    const int size = real.graph_size(cgraph), leafs = size / 8 + 2 * g->n_layer + 32 + LAYERSKIP_PLANS;
    const int n_nodes = g->n + TENSORS * g->n_layer * (job.rows != NULL ? 2 : 1);
    if (n_nodes + leafs > size) {
        return refuse("llama.cpp's graph of %d nodes has no room for local attention", g->n, 0);
    }
    if (g->n_layer > l->n_room && l->nodes != NULL) {
        real.free_context(l->nodes);
        l->nodes = NULL;
    }
    if (l->nodes == NULL) {
        l->nodes = real.init((struct ggml_init_params){
            .mem_size = ((size_t)g->n_layer * TENSORS + LAYERSKIP_PLANS + 1) * TENSOR, .no_alloc = true});
        l->n_room = g->n_layer;
    }
    struct layerskip_window *windows = malloc((size_t)number_of_masks() * sizeof *windows);
    uint8_t *seen = calloc((size_t)g->n, 1);
    bool ok = l->nodes != NULL && windows != NULL && seen != NULL;
    if (!ok) {
        refuse("out of memory for local attention in %d layers", g->n_layer, 0);
    } else {
        real.reset(l->nodes);
    }
    for (int layer = 0; layer < g->n_layer && ok; layer++) {
        bool some, all;
        int found = 0;
        windows_of_layer(mask, layer, windows, &some, &all);
        for (int i = g->first; i < g->n && ok && some; i++) {
            const struct node *n = &g->nodes[i];
            const int addend = n->stream && n->layer == layer ? position(n->t->src[n->addend]) : -1;
            if (addend >= 0 && g->nodes[addend].halves & ATTENTION && !g->nodes[addend].left_out) {
                ok = localize_addend(g, l, addend, layer, windows, !all, seen, &found);
            }
        }
        if (ok && some && found == 0) {
            ok = refuse("layer %d has no attention to cached tokens that could be local", layer, 0);
        }
        job.report->local += some;
    }
    free(windows);
    free(seen);
    return ok && place_plans(l);
}

/* Keeps what llama.cpp fills in the graph, though nothing reads it any more. */
static void keep_masks(struct ggml_cgraph *cgraph) {
    for (int i = 0; job.local != NULL && i < job.local->n_plans; i++) {
        real.expand(cgraph, job.local->plans[i].mask);
    }
}

/* ---- in front of each computation ---- */

static const uint16_t minus_infinity = 0xfc00; /* as a 16-bit float */

static bool hidden(const struct ggml_tensor *mask, const char *row, int64_t cell) {
    return mask->type == GGML_TYPE_F16 ? ((const uint16_t *)row)[cell] == minus_infinity : ((const float *)row)[cell] == -INFINITY;
}

static void hide(const struct ggml_tensor *mask, char *row, int64_t cell) {
    if (mask->type == GGML_TYPE_F16) {
        ((uint16_t *)row)[cell] = minus_infinity;
    } else {
        ((float *)row)[cell] = -INFINITY;
    }
}

static char *row_of(const struct ggml_tensor *mask, int64_t row, int64_t stream) {
    return (char *)mask->data + (size_t)row * mask->nb[1] + (size_t)stream * mask->nb[3];
}

/* A token of the graph: its place in the batch, and its sequences. */
struct token {
    int32_t at, position, n_sequences;
    const llama_seq_id *sequences;
};

/* Which token of the batch the i-th row of a graph is: in the batch's order, or, where each sequence has cells of its
 * own, in the order of each. False: it cannot be told. */
static bool token_of_row(const struct layerskip_local *l, int64_t i, struct token *t) {
    const struct llama_batch *b = job.batch;
    const struct layerskip_cache *c = &l->caches[0];
    int32_t at = job.rows_done;
    if (c->streams > 1) {
        const int64_t seq = ((const int64_t *)c->places->data)[i] / c->cells;
        if (seq >= LAYERSKIP_SEQUENCES) {
            return false;
        }
        for (at = job.next_of[seq]; at < b->n_tokens && b->seq_id[at][0] != seq; at++) {
        }
        job.next_of[seq] = at + 1;
    } else {
        job.rows_done++;
    }
    if (at >= b->n_tokens) {
        return false;
    }
    *t = (struct token){.at = at, .position = b->pos[at], .n_sequences = b->n_seq_id[at], .sequences = b->seq_id[at]};
    return l->positions == NULL || ((const int32_t *)l->positions->data)[i] == t->position;
}

/* Room for n marks, all 0. NULL: no memory. */
static int32_t *marks(struct layerskip_local *l, int64_t n) {
    if (n > l->n_marks) {
        free(l->marks);
        l->marks = malloc((size_t)n * sizeof *l->marks);
        l->n_marks = l->marks != NULL ? n : 0;
    }
    if (l->marks != NULL) {
        memset(l->marks, 0, (size_t)n * sizeof *l->marks);
    }
    return l->marks;
}

/* Tells where the positions are that a sequence was restored with: in the cells that a row of it sees and that the
 * graph's own tokens do not go to. A sliding window may hide the oldest. */
static void find_restored(struct layerskip_local *l, struct layerskip_sequence *s, int64_t row, int64_t rows) {
    for (int k = 0; k < l->n_caches && !s->lost; k++) {
        const struct layerskip_cache *c = &l->caches[k];
        const int64_t *places = c->places->data;
        int32_t *own = c->mask != NULL ? marks(l, c->mask->ne[0]) : NULL;
        if (own == NULL) {
            s->lost = true;
            return;
        }
        const int64_t per_stream = rows / c->mask->ne[3], stream = row / per_stream;
        for (int64_t i = stream * per_stream; i < (stream + 1) * per_stream; i++) {
            if (places[i] % c->cells < c->mask->ne[0]) {
                own[places[i] % c->cells] = 1;
            }
        }
        const char *sees = row_of(c->mask, row % per_stream, stream);
        int32_t visible = 0, last = -1, next = 0;
        for (int64_t cell = 0; cell < c->mask->ne[0]; cell++) {
            visible += !own[cell] && !hidden(c->mask, sees, cell);
        }
        for (int32_t i = 0; i < s->n_restored[k]; i++) {
            last = s->restored[k][i] > last ? s->restored[k][i] : last;
        }
        for (int64_t cell = 0; cell < c->mask->ne[0] && !s->lost; cell++) {
            if (own[cell] || hidden(c->mask, sees, cell)) {
                continue;
            }
            while (next < s->n_restored[k] && s->restored[k][next] <= last - visible) {
                next++;
            }
            s->lost = next == s->n_restored[k] || !set_cell(&s->in[k], s->restored[k][next], (int32_t)cell);
            next++;
        }
        s->n_restored[k] = 0;
    }
}

/* Writes down where the tokens of a graph go. tokens (rows,) is filled. False: it cannot be told. */
static bool record(struct layerskip_local *l, struct token *tokens, int64_t rows) {
    for (int64_t i = 0; i < rows; i++) {
        if (!token_of_row(l, i, &tokens[i])) {
            return false;
        }
        for (int32_t q = 0; q < tokens[i].n_sequences; q++) {
            struct layerskip_sequence *s = sequence(l, tokens[i].sequences[q]);
            if (s == NULL) {
                return false;
            }
            if (s->n_restored[0] > 0 || s->n_restored[1] > 0) {
                find_restored(l, s, i, rows);
            }
            for (int k = 0; k < l->n_caches; k++) {
                const struct layerskip_cache *c = &l->caches[k];
                const int64_t cell = ((const int64_t *)c->places->data)[i] % c->cells;
                s->lost = s->lost || !set_cell(&s->in[k], tokens[i].position, (int32_t)cell);
            }
        }
    }
    return true;
}

/* For each cell that has one of the positions from (inclusive) to to (exclusive) of a sequence. */
#define FOR_CELLS(cell, in, from, to)                                        \
    for (int32_t position_ = (from); position_ < (to); position_++)          \
        for (int32_t cell = cell_of((in), position_); cell != NO_CELL; cell = NO_CELL)

/* The first position behind the sinks that a token does not see, and the first of its window. */
static void hidden_positions(const struct layerskip_window *w, int32_t position, int32_t *from, int32_t *to) {
    *from = w->sinks < position + 1 ? w->sinks : position + 1;
    *to = position - w->recent + 1 > *from ? position - w->recent + 1 : *from;
}

/* Fills a plan in for the cells and masks of this computation. */
static bool fill_plan(struct layerskip_local *l, struct layerskip_attention *p, const struct token *tokens, int64_t rows) {
    const int64_t per_stream = rows / p->streams, n = p->mask->ne[0];
    const size_t number = p->mask->type == GGML_TYPE_F16 ? sizeof(uint16_t) : sizeof(float);
    for (int64_t stream = 0; stream < p->streams; stream++) {
        int32_t *column = marks(l, n); /* of each cell among those seen, + 1; 0 = not seen */
        if (column == NULL) {
            return refuse("out of memory for local attention to %d cells", (int)n, 0);
        }
        for (int64_t i = 0; i < per_stream; i++) {
            const struct token *t = &tokens[stream * per_stream + i];
            const struct layerskip_sequence *s = &l->sequences[t->sequences[0]];
            const struct layerskip_cells *in = &s->in[p->cache];
            const struct layerskip_window *w = &p->windows[job.rows == NULL ? 0 : job.rows->mask_of[t->at]];
            char *const seen = row_of(p->seen, i, stream);
            const char *const mask = row_of(p->mask, i, stream);
            int32_t from, to;
            if (s->lost) {
                return refuse("it is not known which cells of the cache hold the tokens of sequence %d, so its attention cannot be "
                              "local until it is decoded again", t->sequences[0], 0);
            }
            if (!p->gathers) {
                memcpy(seen, mask, (size_t)n * number);
            }
            if (w->recent == 0) {
                continue;
            }
            hidden_positions(w, t->position, &from, &to);
            if (!p->gathers) {
                FOR_CELLS(cell, in, from, to) {
                    if (cell < n) {
                        hide(p->seen, seen, cell);
                    }
                }
                continue;
            }
            FOR_CELLS(cell, in, 0, from) {
                if (cell < n) {
                    column[cell] = 1;
                }
            }
            FOR_CELLS(cell, in, to, t->position + 1) {
                if (cell < n) {
                    column[cell] = 1;
                }
            }
        }
        if (!p->gathers) {
            continue;
        }
        struct layerskip_run *run = &p->runs[stream * p->n_seen] - 1;
        int32_t used = 0;
        p->n_runs[stream] = 0;
        for (int32_t cell = 0; cell < n; cell++) {
            if (column[cell] == 0) {
                continue;
            }
            if (used == p->n_seen) {
                return refuse("the tokens of a batch see more than %d cells of the cache", (int)p->n_seen, 0);
            }
            if (p->n_runs[stream] == 0 || run->from + run->n != cell) {
                *++run = (struct layerskip_run){.to = used, .from = cell};
                p->n_runs[stream]++;
            }
            run->n++;
            column[cell] = ++used;
        }
        for (int64_t i = 0; i < p->seen->ne[1]; i++) {
            char *const seen = row_of(p->seen, i, stream);
            for (int64_t cell = 0; cell < p->n_seen; cell++) {
                hide(p->seen, seen, cell);
            }
            if (i >= per_stream) {
                continue;
            }
            const struct token *t = &tokens[stream * per_stream + i];
            const struct layerskip_cells *in = &l->sequences[t->sequences[0]].in[p->cache];
            const char *const mask = row_of(p->mask, i, stream);
            int32_t from, to;
            hidden_positions(&p->windows[job.rows == NULL ? 0 : job.rows->mask_of[t->at]], t->position, &from, &to);
            FOR_CELLS(cell, in, 0, from) {
                if (cell < n) {
                    memcpy(seen + (size_t)(column[cell] - 1) * number, mask + (size_t)cell * number, number);
                }
            }
            FOR_CELLS(cell, in, to, t->position + 1) {
                if (cell < n) {
                    memcpy(seen + (size_t)(column[cell] - 1) * number, mask + (size_t)cell * number, number);
                }
            }
        }
    }
    return true;
}

/* Writes down where a graph's tokens go, and fills in what its local attention sees. */
static bool before_computation(struct layerskip_local *l, struct ggml_cgraph *cgraph) {
    if (cgraph != l->graph || l->n_caches == 0) {
        return true;
    }
    const int64_t rows = l->caches[0].places->ne[0];
    if (rows > l->n_tokens) {
        free(l->tokens);
        l->tokens = malloc((size_t)rows * sizeof(struct token));
        l->n_tokens = l->tokens != NULL ? rows : 0;
    }
    struct token *const tokens = l->tokens;
    bool ok = tokens != NULL;
    for (int k = 0; k < l->n_caches; k++) {
        ok = ok && l->caches[k].places->data != NULL && l->caches[k].places->ne[0] == rows;
    }
    ok = ok && record(l, tokens, rows);
    for (int i = 0; !ok && i < job.batch->n_tokens; i++) { /* whose tokens these are is not known */
        for (int q = 0; q < job.batch->n_seq_id[i]; q++) {
            struct layerskip_sequence *s = sequence(l, job.batch->seq_id[i][q]);
            if (s != NULL) {
                s->lost = true;
            }
        }
    }
    if (!ok && l->n_plans > 0) {
        refuse("it is not known which cells of the cache the batch's %d tokens go to, so attention cannot be local", (int)rows, 0);
    } else if (!ok) {
        ok = true;
    }
    for (int i = 0; i < l->n_plans && ok; i++) {
        ok = fill_plan(l, &l->plans[i], tokens, rows);
    }
    return ok;
}

__attribute__((visibility("default"))) int ggml_backend_sched_graph_compute_async(struct ggml_backend_sched *sched,
                                                                                  struct ggml_cgraph *graph) {
    enum { FAILED = -1 };
    if (job.local != NULL && !before_computation(job.local, graph)) {
        return FAILED;
    }
    return real.compute(sched, graph);
}
