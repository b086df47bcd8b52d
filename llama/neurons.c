#include "neurons.h"
#include "lanes.h"
#include "shortlist.h"

#include <stdlib.h>
#include <string.h>

const struct ggml_tensor *gallop_find_weight(const struct llama_model *m, const char *name) {
    return gallop_api._ZNK11llama_model10get_tensorEPKc(m, name);
}

/* ---- the smaller matrices ---- */

/* The kind of memory that is best for a part. */
static struct ggml_backend_buffer_type *memory_of(const struct gallop_part *p, bool repack) {
    struct ggml_backend_buffer_type *plain = gallop_api.ggml_backend_cpu_buffer_type();
    struct ggml_context *probe = p->ne1 > 0 ? gallop_new_nodes() : NULL;
    if (probe == NULL) {
        return plain;
    }
    struct ggml_backend_buffer_type *best =
        gallop_fastest_memory(gallop_api.ggml_new_tensor_2d(probe, p->type, p->ne0, p->ne1), repack);
    gallop_api.ggml_free(probe);
    return best;
}

bool gallop_new_neurons(struct gallop_neurons *out, struct gallop_part *parts, int32_t n, bool repack) {
    enum { WEIGHTS = 1, TENSOR = 1024 }; /* ggml's number for a buffer's usage; bytes that a tensor's description takes at most */
    *out = (struct gallop_neurons){.swaps = calloc((size_t)n + 1, sizeof *out->swaps)};
    struct ggml_backend_buffer_type *kinds[GALLOP_MEMORIES], **of = calloc((size_t)n + 1, sizeof(*of));
    int n_kinds = 0;
    bool ok = out->swaps != NULL && of != NULL;
    for (int i = 0; ok && i < n; i++) {
        of[i] = memory_of(&parts[i], repack);
        int k = 0;
        while (k < n_kinds && kinds[k] != of[i]) {
            k++;
        }
        if (k == GALLOP_MEMORIES) {
            of[i] = kinds[0];
        } else if (k == n_kinds) {
            kinds[n_kinds++] = of[i];
        }
    }
    for (int k = 0; ok && k < n_kinds; k++) {
        out->contexts[k] = gallop_api.ggml_init((struct ggml_init_params){.mem_size = (size_t)(n + 1) * TENSOR, .no_alloc = true});
        ok = out->contexts[k] != NULL;
        for (int i = 0; ok && i < n; i++) {
            if (of[i] == kinds[k]) {
                struct gallop_part *p = &parts[i];
                p->kept = gallop_api.ggml_new_tensor_2d(out->contexts[k], p->type, p->ne0, p->ne1 > 0 ? p->ne1 : 1);
                out->swaps[i] = (struct layerskip_swap){.whole = p->whole, .kept = p->kept, .down = p->down};
            }
        }
        out->buffers[k] = ok ? gallop_api.ggml_backend_alloc_ctx_tensors_from_buft(out->contexts[k], kinds[k]) : NULL;
        ok = out->buffers[k] != NULL;
        if (ok) {
            gallop_api.ggml_backend_buffer_set_usage(out->buffers[k], WEIGHTS);
        }
    }
    free(of);
    if (!ok) {
        gallop_free_neurons(out);
        return false;
    }
    out->list = (struct layerskip_neurons){.swaps = out->swaps, .n = n};
    return true;
}

void gallop_free_neurons(struct gallop_neurons *n) {
    for (int k = 0; k < GALLOP_MEMORIES; k++) {
        if (n->buffers[k] != NULL) {
            gallop_api.ggml_backend_buffer_free(n->buffers[k]);
        }
        if (n->contexts[k] != NULL) {
            gallop_api.ggml_free(n->contexts[k]);
        }
    }
    free(n->swaps);
    *n = (struct gallop_neurons){0};
}

void gallop_set_part(struct ggml_tensor *kept, const void *data, size_t size) {
    gallop_api.ggml_backend_tensor_set(kept, data, 0, size);
}

/* True if a block of ids is one of the matrix's own. */
static bool is_own_block(const int32_t *ids, int64_t n) {
    for (int64_t k = 0; k < n; k++) {
        if (ids[k] != ids[0] + k) {
            return false;
        }
    }
    return ids[0] % n == 0;
}

bool gallop_sort_columns(const struct ggml_tensor *t, const void *from, const int32_t *ids, const float *weights, int32_t to,
                         void *out) {
    const struct ggml_type_traits *was = gallop_api.ggml_get_type_traits(t->type), *is = gallop_api.ggml_get_type_traits(to);
    const bool same = t->type == to;
    const int64_t n = t->ne[0], block = is->block_size;
    float *row = malloc((size_t)n * sizeof *row), *sorted = malloc((size_t)n * sizeof *sorted), *errors = malloc((size_t)n * sizeof *errors);
    const bool ok = row != NULL && sorted != NULL && errors != NULL && (was->to_float != NULL || t->type == GGML_TYPE_F32);
    for (int64_t i = 0; ok && i < n; i++) {
        errors[i] = weights[ids[i]];
    }
    const size_t from_size = gallop_api.ggml_row_size(t->type, n), to_size = gallop_api.ggml_row_size(to, n);
    for (int64_t r = 0; ok && r < t->ne[1]; r++) {
        const char *src = (const char *)from + (size_t)r * from_size;
        char *dst = (char *)out + (size_t)r * to_size;
        bool anew = false; /* some block is quantised */
        for (int64_t i = 0; i < n; i += block) {
            if (same && is_own_block(ids + i, block)) {
                memcpy(dst + (size_t)(i / block) * is->type_size, src + (size_t)(ids[i] / block) * is->type_size, is->type_size);
                continue;
            }
            if (!anew) {
                anew = true;
                if (was->to_float != NULL) {
                    was->to_float(src, row, n);
                } else {
                    memcpy(row, src, from_size);
                }
            }
            for (int64_t k = i; k < i + block; k++) {
                sorted[k] = row[ids[k]];
            }
            gallop_api.ggml_quantize_chunk(to, sorted + i, dst + (size_t)(i / block) * is->type_size, 0, 1, block, errors + i);
        }
    }
    free(row);
    free(sorted);
    free(errors);
    return ok;
}

/* ---- how active each neuron is ---- */

/* The sum of n squares. */
static float sum_squares(const float *x, int64_t n) {
    floats sums[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        for (int k = 0; k < 4; k++) {
            const floats v = load(x + i + k * LANES, LANES);
            sums[k] += v * v;
        }
    }
    const floats four = sums[0] + sums[1] + (sums[2] + sums[3]);
    float sum = 0;
    for (int k = 0; k < LANES; k++) {
        sum += four[k];
    }
    for (; i < n; i++) {
        sum += x[i] * x[i];
    }
    return sum;
}

/* Adds n squares times scale to sums. */
static void add_squares(float *sums, const float *x, float scale, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const floats v = load(x + i, LANES), sum = load(sums + i, LANES) + v * v * scale;
        memcpy(sums + i, &sum, sizeof sum);
    }
    for (; i < n; i++) {
        sums[i] += x[i] * x[i] * scale;
    }
}

/*
 * Each thread adds up a part of the neurons, and finds each token's sum for itself: the row that it reads for that
 * is in its cache when it adds its part. The last layer has rows for the tokens whose outputs are wanted alone; whose they
 * are is known if all tokens are of one sequence.
 */
static void step_activity(struct ggml_tensor *t, int thread, int n_threads, void *data) {
    const struct gallop_layer_activity *l = data;
    const struct gallop_activity *a = l->of;
    const struct ggml_tensor *act = t->src[1];
    const int64_t rows = act->ne[1], first = l->n_ff * thread / n_threads, end = l->n_ff * (thread + 1) / n_threads;
    if (act->ne[0] != l->n_ff || (a->only < 0 && rows != a->n_tokens)) {
        return;
    }
    for (int64_t r = 0; r < rows; r++) {
        const int32_t seq = a->only >= 0 ? a->only : a->owners[r];
        const float *x = (const float *)act->data + r * l->n_ff, all = sum_squares(x, l->n_ff);
        if (all > 0 && all < 1e30f) { /* not of numbers that are none */
            add_squares(l->sums + seq * l->n_ff + first, x + first, 1 / all, end - first);
            if (thread == 0) {
                l->n[seq]++;
            }
        }
    }
}

static void free_activity(struct gallop_activity *a) {
    if (a == NULL) {
        return;
    }
    for (int i = 0; a->layers != NULL && i < a->n; i++) {
        free(a->layers[i].sums);
        free(a->layers[i].n);
    }
    free(a->layers);
    free(a->weights);
    free(a->data);
    free(a->owners);
    free(a);
}

bool gallop_measure_activity(struct gallop_context *c, const struct ggml_tensor *const *downs, int32_t n, int32_t n_seq,
                             int32_t n_batch) {
    struct layerskip_watch *w = &c->skip.watch;
    if (w->nodes != NULL) {
        gallop_api.ggml_free(w->nodes);
    }
    free_activity(c->activity);
    c->activity = NULL;
    *w = (struct layerskip_watch){0};
    if (n == 0) {
        return true;
    }
    enum { NODE = 1024 }; /* bytes that a node takes at most */
    struct gallop_activity *a = c->activity = calloc(1, sizeof *a);
    w->nodes = gallop_api.ggml_init((struct ggml_init_params){.mem_size = (size_t)(n + 1) * NODE, .no_alloc = true});
    bool ok = a != NULL && w->nodes != NULL;
    if (ok) {
        a->n = n;
        a->n_seq = n_seq;
        a->layers = calloc((size_t)n, sizeof *a->layers);
        a->weights = calloc((size_t)n, sizeof(*a->weights));
        a->data = calloc((size_t)n, sizeof(*a->data));
        a->owners = calloc((size_t)n_batch, sizeof *a->owners);
        ok = a->layers != NULL && a->weights != NULL && a->data != NULL && a->owners != NULL;
    }
    for (int i = 0; ok && i < n; i++) {
        struct gallop_layer_activity *l = &a->layers[i];
        *l = (struct gallop_layer_activity){.of = a, .n_ff = downs[i]->ne[0]};
        l->sums = calloc((size_t)n_seq * (size_t)l->n_ff, sizeof *l->sums);
        l->n = calloc((size_t)n_seq, sizeof *l->n);
        a->weights[i] = downs[i];
        a->data[i] = l;
        ok = l->sums != NULL && l->n != NULL;
    }
    if (!ok) {
        gallop_measure_activity(c, NULL, 0, 0, 0);
        return false;
    }
    w->weights = a->weights;
    w->data = a->data;
    w->n = n;
    w->step = step_activity;
    w->on = true;
    return true;
}

void gallop_reset_activity(struct gallop_activity *a, int32_t seq) {
    for (int i = 0; i < a->n; i++) {
        struct gallop_layer_activity *l = &a->layers[i];
        memset(l->sums + seq * l->n_ff, 0, (size_t)l->n_ff * sizeof *l->sums);
        l->n[seq] = 0;
    }
}
