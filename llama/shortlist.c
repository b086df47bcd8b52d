#define _GNU_SOURCE
#include "shortlist.h"
#include "lanes.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- ggml's kernels ---- */

static struct ggml_backend_device *cpu_device(void) {
    for (size_t i = 0; i < gallop_api.ggml_backend_dev_count(); i++) {
        struct ggml_backend_device *d = gallop_api.ggml_backend_dev_get(i);
        if (gallop_api.ggml_backend_dev_type(d) == GGML_DEVICE_CPU) {
            return d;
        }
    }
    return NULL;
}

/* The CPU module keeps its kernels out of the registry, so they are found beside a function that is in it. */
static const struct ggml_type_traits_cpu *cpu_traits(int32_t type) {
    void *known = gallop_cpu_function("ggml_backend_set_n_threads");
    Dl_info module;
    void *lib = known != NULL && dladdr(known, &module) != 0 ? dlopen(module.dli_fname, RTLD_LAZY | RTLD_NOLOAD) : NULL;
    if (lib == NULL) {
        return NULL;
    }
    const struct ggml_type_traits_cpu *(*get)(int32_t) = (const struct ggml_type_traits_cpu *(*)(int32_t))dlsym(lib, "ggml_get_type_traits_cpu");
    dlclose(lib); /* the registry keeps it open */
    return get == NULL ? NULL : get(type);
}

static bool fail(struct gallop_text *err, const char *why) {
    snprintf(err->text, sizeof err->text, "%s", why);
    return false;
}

/* ---- the output matrix ---- */

bool gallop_find_matrix(const struct llama_model *m, const char *name, uintptr_t rows, struct gallop_matrix *out,
                        struct gallop_text *err) {
    struct ggml_tensor *t = (struct ggml_tensor *)gallop_api._ZNK11llama_model10get_tensorEPKc(m, name);
    if (t != NULL && rows == 0 && t->buffer != NULL &&
        gallop_api.ggml_backend_buft_get_device(gallop_api.ggml_backend_buffer_get_type(t->buffer)) == NULL) {
        rows = (uintptr_t)t->data; /* read, not mapped; buffers of rearranged weights name a device */
    }
    if (t == NULL || rows == 0) {
        return fail(err, "the output matrix is not in main memory as in the file");
    }
    const struct ggml_type_traits_cpu *cpu = cpu_traits(t->type);
    const struct ggml_type_traits *base = gallop_api.ggml_get_type_traits(t->type);
    if (cpu == NULL || cpu->vec_dot == NULL) {
        return fail(err, "the CPU library has no product for the output matrix's type");
    }
    const struct ggml_type_traits_cpu *vector = cpu_traits(cpu->vec_dot_type);
    *out = (struct gallop_matrix){
        .tensor = t,
        .rows = (const char *)rows,
        .row_size = gallop_api.ggml_row_size(t->type, t->ne[0]),
        .n_embd = t->ne[0],
        .n_vocab = t->ne[1],
        .dot = cpu->vec_dot,
        .quantize = cpu->vec_dot_type == GGML_TYPE_F32 || vector == NULL ? NULL : vector->from_float,
        .dequantize = t->type == GGML_TYPE_F32 ? NULL : base->to_float,
        .vector_size = gallop_api.ggml_row_size(cpu->vec_dot_type, t->ne[0]),
    };
    if ((out->quantize == NULL && cpu->vec_dot_type != GGML_TYPE_F32) || (out->dequantize == NULL && t->type != GGML_TYPE_F32)) {
        return fail(err, "the CPU library cannot convert the output matrix's type");
    }
    return true;
}

void gallop_matrix_rows(const struct gallop_matrix *m, const int32_t *ids, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i++) {
        const char *row = m->rows + (size_t)ids[i] * m->row_size;
        if (m->dequantize != NULL) {
            m->dequantize(row, out + i * m->n_embd, m->n_embd);
        } else {
            memcpy(out + i * m->n_embd, row, m->row_size);
        }
    }
}

enum { BLOCK = 32 }; /* numbers in a block of Q4_0 */

/* Room for a few tensors and a graph. */
static struct ggml_context *new_context(void) {
    return gallop_api.ggml_init((struct ggml_init_params){.mem_size = 256 * 1024, .no_alloc = true});
}

bool gallop_project(const struct gallop_matrix *m, const float *x, int32_t threads, char *out, size_t stride,
                    struct gallop_text *err) {
    struct ggml_context *ctx = new_context();
    struct ggml_backend *cpu = gallop_api.ggml_backend_dev_init(cpu_device(), NULL);
    void *buffer = NULL;
    bool ok = false;
    if (ctx == NULL || cpu == NULL) {
        fail(err, "no memory for the preview");
        goto end;
    }
    struct ggml_tensor *vectors = gallop_api.ggml_new_tensor_2d(ctx, GGML_TYPE_F32, m->n_embd, BLOCK);
    struct ggml_tensor *product = gallop_api.ggml_mul_mat(ctx, m->tensor, vectors); /* (n_vocab, BLOCK) */
    struct ggml_cgraph *graph = gallop_api.ggml_new_graph(ctx);
    gallop_api.ggml_build_forward_expand(graph, product);
    buffer = gallop_api.ggml_backend_alloc_ctx_tensors_from_buft(ctx, gallop_api.ggml_backend_cpu_buffer_type());
    void (*set_threads)(struct ggml_backend *, int) = (void (*)(struct ggml_backend *, int))gallop_cpu_function("ggml_backend_set_n_threads");
    if (buffer == NULL || set_threads == NULL) {
        fail(err, "no memory for the preview");
        goto end;
    }
    set_threads(cpu, threads);
    gallop_api.ggml_backend_tensor_set(vectors, x, 0, (size_t)m->n_embd * BLOCK * sizeof(float));
    if (gallop_api.ggml_backend_graph_compute(cpu, graph) != 0) {
        fail(err, "the CPU library failed to multiply with the output matrix");
        goto end;
    }
    const float *p = product->data;
    for (int64_t i = 0; i < m->n_vocab; i++) {
        float block[BLOCK];
        for (int c = 0; c < BLOCK; c++) {
            block[c] = p[c * m->n_vocab + i];
        }
        gallop_api.ggml_quantize_chunk(GGML_TYPE_Q4_0, block, out + (size_t)i * stride, 0, 1, BLOCK, NULL);
    }
    ok = true;
end:
    if (buffer != NULL) {
        gallop_api.ggml_backend_buffer_free(buffer);
    }
    if (cpu != NULL) {
        gallop_api.ggml_backend_free(cpu);
    }
    if (ctx != NULL) {
        gallop_api.ggml_free(ctx);
    }
    return ok;
}

/* ---- the shortlist's matrices ---- */

/* The kind of memory in which the CPU multiplies a matrix of t's type and shape fastest. */
static struct ggml_backend_buffer_type *fastest_memory(struct ggml_tensor *t, bool repack) {
    struct ggml_backend_buffer_type **(*extra)(struct ggml_backend_device *) =
        (struct ggml_backend_buffer_type * *(*)(struct ggml_backend_device *)) gallop_cpu_function("ggml_backend_dev_get_extra_bufts");
    struct ggml_backend_device *cpu = cpu_device();
    struct ggml_backend_buffer_type **all = repack && extra != NULL ? extra(cpu) : NULL;
    struct ggml_backend_buffer_type *best = gallop_api.ggml_backend_cpu_buffer_type();
    struct ggml_context *ctx = new_context();
    if (ctx == NULL) {
        return best;
    }
    struct ggml_tensor *x = gallop_api.ggml_new_tensor_2d(ctx, GGML_TYPE_F32, t->ne[0], 1);
    struct ggml_tensor *op = gallop_api.ggml_mul_mat(ctx, t, x);
    for (; all != NULL && *all != NULL; all++) {
        t->buffer = gallop_api.ggml_backend_buft_alloc_buffer(*all, 0); /* the device looks at its type only */
        const bool fits = t->buffer != NULL && gallop_api.ggml_backend_dev_supports_op(cpu, op);
        gallop_api.ggml_backend_buffer_free(t->buffer);
        t->buffer = NULL;
        if (fits) {
            best = *all;
            break;
        }
    }
    gallop_api.ggml_free(ctx);
    return best;
}

bool gallop_new_shortlist(struct gallop_shortlist *s, const float *basis, const char *preview, int32_t rank, bool repack,
                          struct gallop_text *err) {
    enum { WEIGHTS = 1 }; /* ggml's number for a buffer's usage */
    s->contexts[0] = new_context();
    s->contexts[1] = new_context();
    if (s->contexts[0] != NULL && s->contexts[1] != NULL) {
        s->basis = gallop_api.ggml_new_tensor_2d(s->contexts[0], GGML_TYPE_F32, s->matrix.n_embd, rank);
        s->preview = gallop_api.ggml_new_tensor_2d(s->contexts[1], GGML_TYPE_Q4_0, rank, s->matrix.n_vocab);
        s->buffers[0] = gallop_api.ggml_backend_alloc_ctx_tensors_from_buft(s->contexts[0], gallop_api.ggml_backend_cpu_buffer_type());
        s->buffers[1] = gallop_api.ggml_backend_alloc_ctx_tensors_from_buft(s->contexts[1], fastest_memory(s->preview, repack));
    }
    if (s->buffers[0] == NULL || s->buffers[1] == NULL) {
        gallop_free_shortlist(s);
        return fail(err, "no memory for the shortlist's matrices");
    }
    for (int i = 0; i < 2; i++) {
        gallop_api.ggml_backend_buffer_set_usage(s->buffers[i], WEIGHTS);
    }
    gallop_api.ggml_backend_tensor_set(s->basis, basis, 0, gallop_api.ggml_row_size(GGML_TYPE_F32, s->matrix.n_embd) * (size_t)rank);
    gallop_api.ggml_backend_tensor_set(s->preview, preview, 0, gallop_api.ggml_row_size(GGML_TYPE_Q4_0, rank) * (size_t)s->matrix.n_vocab);
    return true;
}

void gallop_free_shortlist(struct gallop_shortlist *s) {
    for (int i = 0; i < 2; i++) {
        if (s->buffers[i] != NULL) {
            gallop_api.ggml_backend_buffer_free(s->buffers[i]);
        }
        if (s->contexts[i] != NULL) {
            gallop_api.ggml_free(s->contexts[i]);
        }
        s->buffers[i] = NULL;
        s->contexts[i] = NULL;
    }
}

/* ---- decoding with it ---- */

/* A context's working memory; owned by its gallop_context. */
struct gallop_listing {
    struct gallop_shortlist *shortlist;
    float *hidden;  /* (n_embd,) */
    void *vector;   /* hidden in the type that the matrix's rows are multiplied with; hidden itself, or owned */
    float *maxima, *values; /* (n_vocab,) */
    int32_t *ids;           /* (n_vocab,) */
};

static void free_listing(struct gallop_listing *l) {
    if (l != NULL) {
        if (l->vector != l->hidden) {
            free(l->vector);
        }
        free(l->hidden);
        free(l->maxima);
        free(l->values);
        free(l->ids);
        free(l);
    }
}

bool gallop_use_shortlist(struct gallop_context *c, struct gallop_shortlist *s) {
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
    const size_t n_vocab = (size_t)s->matrix.n_vocab;
    struct gallop_listing *l = c->listing = calloc(1, sizeof *l);
    o->nodes = new_context();
    if (l != NULL) {
        l->shortlist = s;
        l->hidden = malloc((size_t)s->matrix.n_embd * sizeof(float));
        l->vector = s->matrix.quantize == NULL ? l->hidden : malloc(s->matrix.vector_size);
        l->maxima = malloc(n_vocab * sizeof(float));
        l->values = malloc(n_vocab * sizeof(float));
        l->ids = malloc(n_vocab * sizeof(int32_t));
    }
    if (o->nodes == NULL || l == NULL || l->hidden == NULL || l->vector == NULL || l->maxima == NULL ||
        l->values == NULL || l->ids == NULL) {
        gallop_use_shortlist(c, NULL);
        return false;
    }
    o->basis = s->basis;
    o->preview = s->preview;
    return true;
}

bool gallop_hidden(struct gallop_context *c, int32_t output, float *out, int32_t n_embd) {
    const struct ggml_tensor *h = c->skip.output.hidden;
    if (h == NULL || h->ne[0] != n_embd || output < 0 || output >= h->ne[1]) {
        return false;
    }
    gallop_api.ggml_backend_tensor_get(h, out, (size_t)output * h->nb[1], (size_t)n_embd * sizeof(float));
    return true;
}

/* The k-th largest of n numbers, none of them NaN, 1 <= k <= n; changes their order. */
static float kth_largest(float *v, int32_t n, int32_t k) {
    int32_t low = 0, high = n - 1;
    while (low < high) {
        const float pivot = v[low + (high - low) / 2];
        int32_t i = low, j = high;
        while (i <= j) {
            while (v[i] > pivot) {
                i++;
            }
            while (v[j] < pivot) {
                j--;
            }
            if (i <= j) {
                const float t = v[i];
                v[i++] = v[j];
                v[j--] = t;
            }
        }
        if (k - 1 <= j) {
            high = j;
        } else if (k - 1 >= i) {
            low = i;
        } else {
            break;
        }
    }
    return v[k - 1];
}

/* How many neighbours share one maximum: few enough that there are several times k of them. */
static int32_t group_size(int32_t n_vocab, int32_t k) {
    int32_t size = 64;
    while (size > 1 && n_vocab / size < 3 * k) {
        size /= 2;
    }
    return size;
}

/*
 * Puts the ids of the k largest logits into l->ids and returns how many there are: k, and those that
 * equal the last. NaNs are never among them. outside gets the k-th largest, which no other exceeds.
 *
 * The k-th largest maximum of groups of neighbours is no larger than the k-th largest logit, so what
 * is below it is none of the k; few enough remain to be sorted out.
 */
static int32_t list(struct gallop_listing *l, const float *logits, int32_t n_vocab, int32_t k, float *outside) {
    const int32_t size = group_size(n_vocab, k), n_groups = (n_vocab + size - 1) / size;
    for (int32_t g = 0; g < n_groups; g++) {
        const float top = largest(logits + g * size, g < n_groups - 1 ? size : n_vocab - g * size);
        l->maxima[g] = top > -INFINITY ? top : -INFINITY; /* not if it is no number */
    }
    memcpy(l->values, l->maxima, (size_t)n_groups * sizeof(float));
    const float least = kth_largest(l->values, n_groups, k);
    int32_t n = 0;
    for (int32_t g = 0; g < n_groups; g++) {
        if (l->maxima[g] < least) {
            continue;
        }
        const int32_t end = g * size + size < n_vocab ? g * size + size : n_vocab;
        for (int32_t i = g * size; i < end; i++) {
            if (logits[i] >= least) {
                l->values[n] = logits[i];
                l->ids[n++] = i;
            }
        }
    }
    *outside = n > k ? kth_largest(l->values, n, k) : least;
    int32_t listed = 0;
    for (int32_t i = 0; i < n; i++) {
        if (logits[l->ids[i]] >= *outside) {
            l->ids[listed++] = l->ids[i];
        }
    }
    return listed;
}

/* Rows are far apart in memory: the processor is told of each in time, as it cannot foresee the next. */
static void prefetch(const struct gallop_matrix *m, int32_t id) {
    enum { LINE = 64 };
    const char *row = m->rows + (size_t)id * m->row_size;
    for (size_t i = 0; i < m->row_size; i += LINE) {
        __builtin_prefetch(row + i);
    }
}

static float exact(const struct gallop_listing *l, int32_t id) {
    const struct gallop_matrix *m = &l->shortlist->matrix;
    float logit;
    m->dot((int)m->n_embd, &logit, 0, m->rows + (size_t)id * m->row_size, 0, l->vector, 0, 1);
    return logit;
}

struct gallop_listed gallop_list_exactly(struct gallop_context *c, float *logits, int32_t output, int32_t size) {
    struct gallop_listing *l = c->listing;
    const struct gallop_matrix *m = &l->shortlist->matrix;
    struct gallop_listed result = {.top = -INFINITY, .outside = INFINITY, .error = 0};
    if (!gallop_hidden(c, output, l->hidden, (int32_t)m->n_embd)) {
        return result; /* no logit is known to be the largest */
    }
    if (m->quantize != NULL) {
        m->quantize(l->hidden, l->vector, m->n_embd);
    }
    const int32_t n = list(l, logits, (int32_t)m->n_vocab, size, &result.outside);
    double squares = 0;
    enum { AHEAD = 4 }; /* rows */
    for (int32_t i = 0; i < n && i < AHEAD; i++) {
        prefetch(m, l->ids[i]);
    }
    for (int32_t i = 0; i < n; i++) {
        if (i + AHEAD < n) {
            prefetch(m, l->ids[i + AHEAD]);
        }
        const float logit = exact(l, l->ids[i]), error = logit - logits[l->ids[i]];
        squares += (double)error * error;
        logits[l->ids[i]] = logit;
        result.top = logit > result.top ? logit : result.top;
    }
    result.error = (float)sqrt(squares / (n > 0 ? n : 1));
    return result;
}

void gallop_all_exactly(struct gallop_context *c, float *logits, int32_t from, int32_t to) {
    for (int32_t i = from; i < to; i++) {
        logits[i] = exact(c->listing, i);
    }
}
