#include "shortlist.h"

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
    const struct ggml_type_traits_cpu *(*get)(int32_t) =
        known == NULL ? NULL : (const struct ggml_type_traits_cpu *(*)(int32_t))layerskip_function_near(known, "ggml_get_type_traits_cpu");
    return get == NULL ? NULL : get(type);
}

static bool fail(struct gallop_text *err, const char *why) {
    snprintf(err->text, sizeof err->text, "%s", why);
    return false;
}

/* Whether matrices in this kind of memory are rearranged for Intel's matrix extensions. */
static bool is_amx(struct ggml_backend_buffer_type *memory) { return strcmp(gallop_api.ggml_backend_buft_name(memory), "AMX") == 0; }

enum { BLOCK = 32 }; /* numbers in a block of Q4_0 */

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
    const bool precise = t->type == GGML_TYPE_F16 && t->buffer != NULL && is_amx(gallop_api.ggml_backend_buffer_get_type(t->buffer));
    *out = (struct gallop_matrix){
        .tensor = t,
        .rows = (const char *)rows,
        .row_size = gallop_api.ggml_row_size(t->type, t->ne[0]),
        .n_embd = t->ne[0],
        .n_vocab = t->ne[1],
        .dot = cpu->vec_dot,
        .quantize = cpu->vec_dot_type == GGML_TYPE_F32 || vector == NULL ? NULL : vector->from_float,
        .dequantize = t->type == GGML_TYPE_F32 ? NULL : base->to_float,
        .vector_size = gallop_api.ggml_row_size(cpu->vec_dot_type, t->ne[0]) * (precise ? 2 : 1),
        .precise = precise,
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

void gallop_matrix_vector(const struct gallop_matrix *m, const float *hidden, void *vector) {
    if (m->quantize == NULL) {
        memcpy(vector, hidden, m->vector_size);
        return;
    }
    m->quantize(hidden, vector, m->n_embd);
    if (!m->precise) {
        return;
    }
    enum { STEP = 64 }; /* numbers at a time */
    uint16_t *rounded = vector, *rest = rounded + m->n_embd;
    for (int64_t i = 0; i < m->n_embd; i += STEP) {
        const int64_t n = m->n_embd - i < STEP ? m->n_embd - i : STEP;
        float x[STEP];
        m->dequantize(rounded + i, x, n);
        for (int64_t k = 0; k < n; k++) {
            x[k] = hidden[i + k] - x[k];
        }
        m->quantize(x, rest + i, n);
    }
}

float gallop_matrix_dot(const struct gallop_matrix *m, const char *row, const void *vector) {
    float product, rest = 0;
    m->dot((int)m->n_embd, &product, 0, row, 0, vector, 0, 1);
    if (m->precise) {
        m->dot((int)m->n_embd, &rest, 0, row, 0, (const char *)vector + m->vector_size / 2, 0, 1);
    }
    return product + rest;
}

struct ggml_context *gallop_new_nodes(void) {
    return gallop_api.ggml_init((struct ggml_init_params){.mem_size = 256 * 1024, .no_alloc = true});
}

bool gallop_project(const struct gallop_matrix *m, const float *x, int32_t threads, char *out, size_t stride,
                    struct gallop_text *err) {
    struct ggml_context *ctx = gallop_new_nodes();
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

/* Not AMX's where a row is one block: for 32 tokens or more its product is then added to what the memory held before. */
struct ggml_backend_buffer_type *gallop_fastest_memory(struct ggml_tensor *t, bool repack) {
    struct ggml_backend_buffer_type **(*extra)(struct ggml_backend_device *) =
        (struct ggml_backend_buffer_type * *(*)(struct ggml_backend_device *)) gallop_cpu_function("ggml_backend_dev_get_extra_bufts");
    struct ggml_backend_device *cpu = cpu_device();
    struct ggml_backend_buffer_type **all = repack && extra != NULL ? extra(cpu) : NULL;
    struct ggml_backend_buffer_type *best = gallop_api.ggml_backend_cpu_buffer_type();
    struct ggml_context *ctx = gallop_new_nodes();
    if (ctx == NULL) {
        return best;
    }
    struct ggml_tensor *x = gallop_api.ggml_new_tensor_2d(ctx, GGML_TYPE_F32, t->ne[0], 1);
    struct ggml_tensor *op = gallop_api.ggml_mul_mat(ctx, t, x);
    for (; all != NULL && *all != NULL; all++) {
        t->buffer = gallop_api.ggml_backend_buft_alloc_buffer(*all, 0); /* the device looks at its type only */
        const bool fits = t->buffer != NULL && (t->ne[0] > BLOCK || !is_amx(*all)) && gallop_api.ggml_backend_dev_supports_op(cpu, op);
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

bool gallop_new_shortlist(struct gallop_shortlist *s, const float *basis, const char *preview, const float *spread, int32_t rank,
                          bool repack, struct gallop_text *err) {
    enum { WEIGHTS = 1 }; /* ggml's number for a buffer's usage */
    s->spread = malloc((size_t)s->matrix.n_vocab * sizeof(float));
    s->contexts[0] = gallop_new_nodes();
    s->contexts[1] = gallop_new_nodes();
    if (s->contexts[0] != NULL && s->contexts[1] != NULL) {
        s->basis = gallop_api.ggml_new_tensor_2d(s->contexts[0], GGML_TYPE_F32, s->matrix.n_embd, rank);
        s->preview = gallop_api.ggml_new_tensor_2d(s->contexts[1], GGML_TYPE_Q4_0, rank, s->matrix.n_vocab);
        s->buffers[0] = gallop_api.ggml_backend_alloc_ctx_tensors_from_buft(s->contexts[0], gallop_api.ggml_backend_cpu_buffer_type());
        s->buffers[1] = gallop_api.ggml_backend_alloc_ctx_tensors_from_buft(s->contexts[1], gallop_fastest_memory(s->preview, repack));
    }
    if (s->spread == NULL || s->buffers[0] == NULL || s->buffers[1] == NULL) {
        gallop_free_shortlist(s);
        return fail(err, "no memory for the shortlist's matrices");
    }
    for (int64_t i = 0; i < s->matrix.n_vocab; i++) {
        s->spread[i] = spread == NULL ? 1 : spread[i];
    }
    for (int i = 0; i < 2; i++) {
        gallop_api.ggml_backend_buffer_set_usage(s->buffers[i], WEIGHTS);
    }
    gallop_api.ggml_backend_tensor_set(s->basis, basis, 0, gallop_api.ggml_row_size(GGML_TYPE_F32, s->matrix.n_embd) * (size_t)rank);
    gallop_api.ggml_backend_tensor_set(s->preview, preview, 0, gallop_api.ggml_row_size(GGML_TYPE_Q4_0, rank) * (size_t)s->matrix.n_vocab);
    return true;
}

void gallop_free_shortlist(struct gallop_shortlist *s) {
    free(s->spread);
    s->spread = NULL;
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
