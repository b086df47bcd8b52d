/*
 * Decoding with a vocabulary shortlist: which tokens the preview's logits rank first, and their exact
 * logits.
 *
 * The work is done at the end of the graph, by the threads that computed the preview: one node for
 * each step below, as every step needs what all threads have found in the one before. Each thread has
 * every n-th chunk of the vocabulary, whose frequent tokens stand together. Where there are several
 * rows, each thread takes whole rows instead.
 */
#include "shortlist.h"
#include "lanes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_WORKERS = 64, /* threads that take part */
    CHUNK = 512,      /* tokens; a multiple of every group's size */
    BINS = 1024,
    GROUP = 64,       /* tokens that are looked at together when a list is made longer; CHUNK is a multiple */
};
enum { MAXIMA, CANDIDATES }; /* what is counted */

/* Counts of values between low and high, in bins of equal width. */
struct histogram {
    float low, scale; /* bins per unit */
    int32_t counts[BINS];
};

/* A thread's part of a row, and what it has found there. */
struct worker {
    float *maxima, *values;  /* (n_vocab,) each: of its groups, of its candidates; owned, NULL = no memory yet */
    int32_t *ids;            /* (n_vocab,) of its candidates, and then of those with exact logits: listed, further; owned */
    void *vector;            /* the hidden state in the type that the matrix's rows are multiplied with; owned */
    int32_t n_groups, n_candidates, n_listed;
    float low, high;         /* of maxima, those that are -infinity left out */
    struct histogram counts[2]; /* of maxima and of candidates */
    struct gallop_listed found; /* error is the sum of squares until the end */
};

/* A context's working memory; owned by its gallop_context. */
struct gallop_listing {
    struct gallop_shortlist *shortlist;
    int n_shared;                  /* workers that shared the last decode's only row; 0 = none did */
    int32_t n_rows;                /* outputs of a decode at most */
    float margin;                  /* of the next decode */
    int32_t *sizes;                /* (n_rows,) tokens to list in the next decode; owned */
    struct gallop_listed *rows;    /* (n_rows,) of the last decode, where each row was one thread's; owned */
    float *hidden;                 /* (n_embd,) scratch; owned */
    struct worker *workers[MAX_WORKERS]; /* owned; NULL = not needed so far */
};

static const struct gallop_listed unknown = {.top = -INFINITY, .outside = INFINITY, .error = 0}; /* no logit is known to be the largest */

static void free_worker(struct worker *w) {
    if (w != NULL) {
        free(w->maxima);
        free(w->values);
        free(w->ids);
        free(w->vector);
        free(w);
    }
}

/* The thread's worker, or NULL: no memory. */
static struct worker *worker_of(struct gallop_listing *l, int thread) {
    struct worker *w = l->workers[thread];
    if (w != NULL) {
        return w;
    }
    const struct gallop_matrix *m = &l->shortlist->matrix;
    const size_t n = (size_t)m->n_vocab;
    w = calloc(1, sizeof *w);
    if (w == NULL) {
        return NULL;
    }
    w->maxima = malloc(n * sizeof(float));
    w->values = malloc(n * sizeof(float));
    w->ids = malloc(n * sizeof(int32_t));
    w->vector = malloc(m->vector_size);
    if (w->maxima == NULL || w->values == NULL || w->ids == NULL || w->vector == NULL) {
        free_worker(w);
        return NULL;
    }
    return l->workers[thread] = w;
}

/* ---- the steps ---- */

/* A row of logits that workers share. */
struct row {
    struct gallop_listing *l;
    float *logits;
    const float *hidden;
    struct worker **workers;
    int n; /* workers */
    int32_t n_vocab, size;
};

/* How many neighbours share one maximum: few enough that there are several times as many maxima as
 * tokens to list. */
static int32_t group_size(const struct row *r) {
    int32_t size = 64;
    while (size > 1 && r->n_vocab / size < 3 * r->size) {
        size /= 2;
    }
    return size;
}

/* The i-th worker finds the largest logit of each of its groups of neighbours. */
static void find_maxima(const struct row *r, int i) {
    struct worker *w = r->workers[i];
    const int32_t size = group_size(r);
    w->n_groups = 0;
    w->low = INFINITY;
    w->high = -INFINITY;
    for (int32_t chunk = i * CHUNK; chunk < r->n_vocab; chunk += r->n * CHUNK) {
        const int32_t end = chunk + CHUNK < r->n_vocab ? chunk + CHUNK : r->n_vocab;
        for (int32_t g = chunk; g < end; g += size) {
            const float top = largest(r->logits + g, end - g < size ? end - g : size);
            if (!(top > -INFINITY)) {
                w->maxima[w->n_groups++] = -INFINITY; /* also where it is no number */
                continue;
            }
            w->maxima[w->n_groups++] = top;
            w->low = top < w->low ? top : w->low;
            w->high = top > w->high ? top : w->high;
        }
    }
}

/* The bin of a value that is not below the lowest one. */
static int32_t bin(const struct histogram *h, float value) {
    const float place = (value - h->low) * h->scale;
    return place < BINS ? (int32_t)place : BINS - 1;
}

static void start(struct histogram *h, float low, float high) {
    memset(h->counts, 0, sizeof h->counts);
    h->low = low;
    h->scale = high > low ? BINS / (high - low) : 0;
}

/* The range of all workers' maxima. */
static void range(const struct row *r, float *low, float *high) {
    *low = INFINITY;
    *high = -INFINITY;
    for (int k = 0; k < r->n; k++) {
        *low = r->workers[k]->low < *low ? r->workers[k]->low : *low;
        *high = r->workers[k]->high > *high ? r->workers[k]->high : *high;
    }
}

static void count_maxima(const struct row *r, int i) {
    struct worker *w = r->workers[i];
    struct histogram *h = &w->counts[MAXIMA];
    float low, high;
    range(r, &low, &high);
    start(h, low, high);
    for (int32_t g = 0; g < w->n_groups; g++) {
        if (w->maxima[g] >= low) {
            h->counts[bin(h, w->maxima[g])]++;
        }
    }
}

/* Where what workers have counted is cut. */
struct cut {
    int32_t bin;
    float value; /* what is in lower bins is below it */
};

/* The highest bin from which on there are as many values as are to be listed; the lowest one where there
 * are not as many. */
static struct cut cut_off(const struct row *r, int what) {
    int32_t b = BINS;
    for (int32_t above = 0; b > 0 && above < r->size;) {
        b--;
        for (int k = 0; k < r->n; k++) {
            above += r->workers[k]->counts[what].counts[b];
        }
    }
    const struct histogram *h = &r->workers[0]->counts[what];
    return (struct cut){b, h->scale > 0 ? h->low + (float)b / h->scale : h->low};
}

/*
 * The i-th worker collects what may be among the tokens to list. There are no fewer logits than maxima
 * from some value on, so what is below where the maxima are cut is not needed.
 */
static void collect(const struct row *r, int i) {
    struct worker *w = r->workers[i];
    struct histogram *h = &w->counts[CANDIDATES];
    const int32_t size = group_size(r);
    const float least = cut_off(r, MAXIMA).value;
    float low, high;
    range(r, &low, &high);
    start(h, least, high);
    int32_t n = 0, group = 0;
    for (int32_t chunk = i * CHUNK; chunk < r->n_vocab; chunk += r->n * CHUNK) {
        const int32_t end = chunk + CHUNK < r->n_vocab ? chunk + CHUNK : r->n_vocab;
        for (int32_t g = chunk; g < end; g += size) {
            if (!(w->maxima[group++] >= least)) {
                continue;
            }
            for (int32_t t = g; t < g + size && t < end; t++) {
                if (r->logits[t] >= least) {
                    h->counts[bin(h, r->logits[t])]++;
                    w->ids[n] = t;
                    w->values[n++] = r->logits[t];
                }
            }
        }
    }
    w->n_candidates = n;
}

/* Rows are far apart in memory: the processor is told of each in time, as it cannot foresee the next. */
static void prefetch(const struct gallop_matrix *m, int32_t id) {
    enum { LINE = 64 };
    const char *row = m->rows + (size_t)id * m->row_size;
    for (size_t i = 0; i < m->row_size; i += LINE) {
        __builtin_prefetch(row + i);
    }
}

/* Gives n tokens their exact logits in place of the preview's. Of what is found, error is the sum of squares, each in
 * units of its token's spread. */
static struct gallop_listed compute_rows(const struct gallop_shortlist *s, const void *vector, const int32_t *ids, int32_t n,
                                         float *logits) {
    const struct gallop_matrix *m = &s->matrix;
    enum { AHEAD = 4 }; /* rows */
    for (int32_t c = 0; c < n && c < AHEAD; c++) {
        prefetch(m, ids[c]);
    }
    float top = -INFINITY;
    double squares = 0;
    for (int32_t c = 0; c < n; c++) {
        if (c + AHEAD < n) {
            prefetch(m, ids[c + AHEAD]);
        }
        const float logit = gallop_matrix_dot(m, m->rows + (size_t)ids[c] * m->row_size, vector);
        const float error = (logit - logits[ids[c]]) / s->spread[ids[c]];
        squares += (double)error * error;
        logits[ids[c]] = logit;
        top = logit > top ? logit : top;
    }
    return (struct gallop_listed){.top = top, .error = (float)squares, .n = n};
}

/* The i-th worker gives those of its candidates that are listed their exact logits. */
static void compute(const struct row *r, int i) {
    struct worker *w = r->workers[i];
    const struct cut last = cut_off(r, CANDIDATES);
    int32_t n = 0;
    for (int32_t c = 0; c < w->n_candidates; c++) {
        if (bin(&w->counts[CANDIDATES], w->values[c]) >= last.bin) {
            w->ids[n++] = w->ids[c];
        }
    }
    w->n_listed = n;
    gallop_matrix_vector(&r->l->shortlist->matrix, r->hidden, w->vector);
    w->found = compute_rows(r->l->shortlist, w->vector, w->ids, n, r->logits);
    w->found.outside = last.value;
}

/* What n workers found together. */
static struct gallop_listed sum_up(struct worker *const *workers, int n) {
    struct gallop_listed all = {.top = -INFINITY, .outside = workers[0]->found.outside, .error = 0};
    double squares = 0;
    for (int k = 0; k < n; k++) {
        const struct worker *w = workers[k];
        all.top = w->found.top > all.top ? w->found.top : all.top;
        squares += w->found.error;
        all.n += w->found.n;
        all.further += w->found.further;
    }
    all.error = (float)sqrt(squares / (all.n > 0 ? all.n : 1));
    return all;
}

/* Whether one of n tokens may have a logit above top, where the preview is off by at most reach spreads. */
static bool may_exceed(const float *logits, const float *spread, int32_t n, float reach, float top) {
    ints found = {0};
    for (int32_t i = 0; i < n; i += LANES) {
        found |= ~(load(logits + i, n - i) + reach * load(spread + i, n - i) <= top); /* also where a value is no number */
    }
    int32_t any = 0;
    for (int lane = 0; lane < LANES; lane++) {
        any |= found[lane];
    }
    return any != 0;
}

/* The i-th worker gives exact logits to those tokens outside the list that may be likelier than the list's likeliest. */
static void extend(const struct row *r, int i) {
    struct worker *w = r->workers[i];
    const struct gallop_shortlist *s = r->l->shortlist;
    const struct gallop_listed all = sum_up(r->workers, r->n);
    const float reach = r->l->margin * all.error;
    int32_t *further = w->ids + w->n_listed, listed = 0, n = 0; /* a worker lists its tokens in ascending order */
    for (int32_t chunk = i * CHUNK; chunk < r->n_vocab; chunk += r->n * CHUNK) {
        const int32_t end = chunk + CHUNK < r->n_vocab ? chunk + CHUNK : r->n_vocab;
        for (int32_t g = chunk; g < end; g += GROUP) {
            const int32_t size = end - g < GROUP ? end - g : GROUP;
            if (!may_exceed(r->logits + g, s->spread + g, size, reach, all.top)) {
                continue;
            }
            for (int32_t t = g; t < g + size; t++) {
                while (listed < w->n_listed && w->ids[listed] < t) {
                    listed++;
                }
                const bool is_listed = listed < w->n_listed && w->ids[listed] == t;
                if (!is_listed && !(r->logits[t] + reach * s->spread[t] <= all.top)) {
                    further[n++] = t;
                }
            }
        }
    }
    compute_rows(s, w->vector, further, n, r->logits);
    w->found.further = n;
}

/* All steps, by one thread. */
static struct gallop_listed list_alone(struct gallop_listing *l, int thread, float *logits, const float *hidden, int32_t size) {
    struct worker *w = worker_of(l, thread);
    if (w == NULL) {
        return unknown;
    }
    const struct row r = {l, logits, hidden, &w, 1, (int32_t)l->shortlist->matrix.n_vocab, size};
    find_maxima(&r, 0);
    count_maxima(&r, 0);
    collect(&r, 0);
    compute(&r, 0);
    extend(&r, 0);
    return sum_up(&w, 1);
}

/* ---- in the graph ---- */

/* Has the thread do its part of the only row. Where there are several, each is one thread's. */
static void take_part(struct gallop_listing *l, const struct ggml_tensor *logits, int thread, int n_threads,
                      void (*part)(const struct row *, int)) {
    const int n = n_threads < MAX_WORKERS ? n_threads : MAX_WORKERS;
    if (logits->ne[1] != 1 || l->sizes[0] == 0 || thread >= n) {
        return;
    }
    if (part == find_maxima) {
        worker_of(l, thread);
    }
    for (int k = 0; k < n; k++) {
        if (l->workers[k] == NULL && (part != find_maxima || k == thread)) {
            return; /* no memory: nothing is listed */
        }
    }
    const struct row r = {l, logits->data, logits->src[1]->data, l->workers, n, (int32_t)l->shortlist->matrix.n_vocab, l->sizes[0]};
    part(&r, thread);
    if (part == extend && thread == 0) {
        l->n_shared = n;
    }
}

static void step_maxima(struct ggml_tensor *logits, int thread, int n_threads, void *listing) {
    take_part(listing, logits, thread, n_threads, find_maxima);
}

static void step_count(struct ggml_tensor *logits, int thread, int n_threads, void *listing) {
    take_part(listing, logits, thread, n_threads, count_maxima);
}

static void step_collect(struct ggml_tensor *logits, int thread, int n_threads, void *listing) {
    take_part(listing, logits, thread, n_threads, collect);
}

static void step_compute(struct ggml_tensor *logits, int thread, int n_threads, void *listing) {
    take_part(listing, logits, thread, n_threads, compute);
}

static void step_extend(struct ggml_tensor *logits, int thread, int n_threads, void *listing) {
    struct gallop_listing *l = listing;
    take_part(l, logits, thread, n_threads, extend);
    if (logits->ne[1] == 1 || thread >= MAX_WORKERS) {
        return;
    }
    const struct ggml_tensor *hidden = logits->src[1];
    const int n = n_threads < MAX_WORKERS ? n_threads : MAX_WORKERS;
    for (int64_t i = thread; i < logits->ne[1] && i < l->n_rows; i += n) {
        if (l->sizes[i] == 0) {
            continue;
        }
        l->rows[i] = list_alone(l, thread, (float *)((char *)logits->data + (size_t)i * logits->nb[1]),
                                (const float *)((const char *)hidden->data + (size_t)i * hidden->nb[1]), l->sizes[i]);
    }
}

/* ---- a context's listing ---- */

static void free_listing(struct gallop_listing *l) {
    if (l == NULL) {
        return;
    }
    for (int k = 0; k < MAX_WORKERS; k++) {
        free_worker(l->workers[k]);
    }
    free(l->sizes);
    free(l->rows);
    free(l->hidden);
    free(l);
}

bool gallop_use_shortlist(struct gallop_context *c, struct gallop_shortlist *s, int32_t n_rows) {
    static layerskip_step *const steps[] = {step_maxima, step_count, step_collect, step_compute, step_extend, NULL};
    struct layerskip_output *o = &c->skip.output;
    if (o->nodes != NULL) {
        gallop_api.ggml_free(o->nodes);
    }
    free_listing(c->listing);
    c->listing = NULL;
    o->basis = o->preview = NULL;
    o->nodes = NULL;
    if (s == NULL) {
        return true;
    }
    struct gallop_listing *l = c->listing = calloc(1, sizeof *l);
    o->nodes = gallop_new_nodes();
    if (l != NULL) {
        l->shortlist = s;
        l->n_rows = n_rows;
        l->sizes = calloc((size_t)n_rows, sizeof *l->sizes);
        l->rows = calloc((size_t)n_rows, sizeof *l->rows);
        l->hidden = malloc((size_t)s->matrix.n_embd * sizeof(float));
    }
    if (o->nodes == NULL || l == NULL || l->sizes == NULL || l->rows == NULL || l->hidden == NULL) {
        gallop_use_shortlist(c, NULL, 0);
        return false;
    }
    o->basis = s->basis;
    o->preview = s->preview;
    o->steps = steps;
    o->data = l;
    return true;
}

void gallop_list(struct gallop_context *c, const int32_t *sizes, int32_t n, float margin) {
    struct gallop_listing *l = c->listing;
    l->margin = margin;
    l->n_shared = 0;
    for (int32_t i = 0; i < n && i < l->n_rows; i++) {
        l->sizes[i] = sizes[i];
        l->rows[i] = unknown;
    }
}

struct gallop_listed gallop_listed(const struct gallop_context *c, int32_t output) {
    struct gallop_listing *l = c->listing;
    if (l->n_shared > 0) {
        return sum_up(l->workers, l->n_shared);
    }
    return output < l->n_rows ? l->rows[output] : unknown;
}

bool gallop_hidden(struct gallop_context *c, int32_t output, float *out, int32_t n_embd) {
    const struct ggml_tensor *h = c->skip.output.hidden;
    if (h == NULL || h->ne[0] != n_embd || output < 0 || output >= h->ne[1]) {
        return false;
    }
    gallop_api.ggml_backend_tensor_get(h, out, (size_t)output * h->nb[1], (size_t)n_embd * sizeof(float));
    return true;
}

struct gallop_listed gallop_list_alone(struct gallop_context *c, float *logits, int32_t output, int32_t size, float margin) {
    struct gallop_listing *l = c->listing;
    if (!gallop_hidden(c, output, l->hidden, (int32_t)l->shortlist->matrix.n_embd)) {
        return unknown;
    }
    l->margin = margin;
    return list_alone(l, 0, logits, l->hidden, size);
}

bool gallop_prepare_exact(struct gallop_context *c, int32_t output) {
    struct gallop_listing *l = c->listing;
    const struct gallop_matrix *m = &l->shortlist->matrix;
    if (worker_of(l, 0) == NULL || !gallop_hidden(c, output, l->hidden, (int32_t)m->n_embd)) {
        return false;
    }
    gallop_matrix_vector(m, l->hidden, l->workers[0]->vector);
    return true;
}

void gallop_compute_exact(struct gallop_context *c, float *logits, int32_t part, int32_t n_parts) {
    const struct gallop_listing *l = c->listing;
    for (int64_t chunk = (int64_t)part * CHUNK; chunk < l->shortlist->matrix.n_vocab; chunk += (int64_t)n_parts * CHUNK) {
        int32_t ids[CHUNK], n = 0;
        for (int64_t t = chunk; t < chunk + CHUNK && t < l->shortlist->matrix.n_vocab; t++) {
            ids[n++] = (int32_t)t;
        }
        compute_rows(l->shortlist, l->workers[0]->vector, ids, n, logits);
    }
}
