/*
 * How to skip a transformer layer in a library that you did not compile.
 *
 * libllama builds a compute graph (a list of tensors, each with the operation and the source
 * tensors that give it) for every new batch shape, and hands it to ggml_backend_sched_alloc_graph
 * in libggml-base, a different shared library. This file has a function of that name, and each
 * system's hook_*.c a way to have libllama call it instead. It edits the graph, then calls the real
 * function. llama.cpp itself is the published binary, unchanged.
 *
 * The residual stream makes the edit simple. Each half of a layer adds one thing to it:
 *
 *     cut = x   + attention(norm(x))         x = the stream before the layer
 *     out = cut + feed_forward(norm(cut))    the stream behind it
 *
 * so leaving a half out means reading the other operand in place of the ADD: x for cut, or cut for out. The ADD
 * is found by what it adds and not by its name (stream.c), and where both halves are added at once,
 * each of them is an operand of an ADD of its own. All else that a layer does to the stream stays: what
 * scales or norms it, and what adds to it and is of neither half. A model whose skipped halves' output
 * matrices are zero computes the same.
 *
 * What is kept is found from the end: what the results need, and what is written to the caches of
 * kept halves. The graph is cleared and built again from that, in the old order. All inputs are
 * added first, because llama.cpp fills them even if nothing reads them any more. Nodes that llama.cpp
 * had marked as not to be computed stay so.
 *
 * Nothing is approximated. A mask that cannot be applied exactly makes the hook return false
 * before anything is computed, with a sentence that says why.
 *
 * The mask belongs to one decode: layerskip_decode puts it into thread-local storage, calls
 * llama_decode and takes it away. While the batch keeps its shape llama.cpp reuses its last graph
 * and never calls the hook, so a changed mask must force a new graph. llama.cpp decides by the
 * shapes of the old graph's inputs; giving them one that no batch has makes it build anew.
 * Flipping the causal attention switch there and back would too, but makes llama.cpp throw away
 * its scheduler and buffers and plan them again, which costs several times the graph; that is left
 * for after a failed decode, when nothing is known of the old graph.
 *
 * The rows of a batch may have different masks: gates.c has what becomes of layers that only some skip.
 * Attention can be left out in part, too: local.c has how it sees a window. attend.c has a kernel for it.
 *
 * The vocabulary shortlist is one more edit, of the graph's last node. What is MUL_MAT(matrix, hidden)
 * in llama.cpp's graph becomes MUL_MAT(preview, MUL_MAT(basis, hidden)), with two small matrices of
 * ours. The node itself stays, as llama.cpp reads the logits from it. The hidden state is marked as
 * an output, so that its memory is not used again and the exact logits can be computed from it.
 *
 * Feed-forwards can be left out in part: neurons.c has how.
 *
 * Who wants to read the residual stream instead of cutting it (block influence) gives a
 * layerskip_stream: the same search then tells where x, cut and out of each layer are.
 *
 * With LAYERSKIP_PRELOAD defined this file is the whole of libgallop-skip.so: the mask then comes
 * from GALLOP_SKIP and the real functions from whichever libllama calls (see the end).
 */
#define _GNU_SOURCE
#include "layerskip.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The real functions; filled once by layerskip_init, owned by the opened library. */
static struct {
    bool (*alloc_graph)(struct ggml_backend_sched *, struct ggml_cgraph *);
    int (*n_nodes)(struct ggml_cgraph *);
    struct ggml_tensor *(*node)(struct ggml_cgraph *, int);
    void (*clear)(struct ggml_cgraph *);
    void (*expand)(struct ggml_cgraph *, struct ggml_tensor *);
    void (*reset)(struct ggml_context *);
    struct ggml_tensor *(*mul_mat)(struct ggml_context *, struct ggml_tensor *, struct ggml_tensor *);
    struct ggml_tensor *(*custom)(struct ggml_context *, struct ggml_tensor *, struct ggml_tensor **, int n, layerskip_step *,
                                  int n_threads, void *data);
    int (*graph_size)(struct ggml_cgraph *);
    struct ggml_context *(*init)(struct ggml_init_params);
    void (*free_context)(struct ggml_context *);
    struct ggml_tensor *(*view_1d)(struct ggml_context *, struct ggml_tensor *, int64_t n, size_t offset);
    struct ggml_tensor *(*new_tensor_1d)(struct ggml_context *, int32_t type, int64_t n);
    struct ggml_tensor *(*cont)(struct ggml_context *, struct ggml_tensor *);
    struct ggml_tensor *(*get_rows)(struct ggml_context *, struct ggml_tensor *, struct ggml_tensor *ids);
    struct ggml_tensor *(*set_rows)(struct ggml_context *, struct ggml_tensor *, struct ggml_tensor *rows, struct ggml_tensor *ids);
    struct ggml_backend_buffer_type *(*cpu_buffer_type)(void);
    void *(*buft_alloc_buffer)(struct ggml_backend_buffer_type *, size_t);
    void *(*buffer_get_base)(void *buffer);
    void (*buffer_free)(void *buffer);
    int (*tensor_alloc)(void *buffer, struct ggml_tensor *, void *address);
    int (*compute)(struct ggml_backend_sched *, struct ggml_cgraph *);
    struct ggml_tensor *(*new_tensor_4d)(struct ggml_context *, int32_t type, int64_t, int64_t, int64_t, int64_t);
    struct ggml_tensor *(*permute)(struct ggml_context *, struct ggml_tensor *, int, int, int, int);
    struct ggml_tensor *(*transpose)(struct ggml_context *, struct ggml_tensor *);
    struct ggml_tensor *(*cast)(struct ggml_context *, struct ggml_tensor *, int32_t type);
    struct ggml_tensor *(*view_4d)(struct ggml_context *, struct ggml_tensor *, int64_t, int64_t, int64_t, int64_t, size_t nb1,
                                   size_t nb2, size_t nb3, size_t offset);
    struct ggml_tensor *(*custom_4d)(struct ggml_context *, int32_t type, int64_t, int64_t, int64_t, int64_t, struct ggml_tensor **, int n,
                                     layerskip_step *, int n_threads, void *data);
    bool (*is_host)(void *buffer);
    int32_t (*decode)(struct llama_context *, struct llama_batch);
    void (*set_causal_attn)(struct llama_context *, bool);
} real;

/* The decode that this thread is in. */
static _Thread_local struct {
    const uint64_t *mask;              /* what all rows skip; NULL outside a masked decode */
    const struct layerskip_rows *rows; /* each row's own mask; NULL = all have the same */
    const int8_t *outputs;             /* (n_rows,) other than 0 = the row's output is wanted */
    int n_rows;                        /* of the batch */
    struct layerskip_gates *gates;
    struct layerskip_local *local;
    struct layerskip_attend *attend; /* NULL = attention is llama.cpp's */
    const struct llama_batch *batch;
    int32_t rows_done;                      /* of the batch, by computations of this decode */
    int32_t next_of[LAYERSKIP_SEQUENCES];   /* the same for each sequence, where each has cells of its own: where to go on */
    struct layerskip_plan *plan; /* NULL outside a decode of layerskip_decode's */
    bool changed;                /* the mask, since the graph before */
    struct layerskip_report *report;
    struct layerskip_stream *stream; /* NULL = nobody reads it */
    struct layerskip_output *output; /* NULL = nobody reads or changes it */
    const struct layerskip_neurons *neurons; /* that the mask chooses; NULL = none */
    const struct layerskip_watch *watch;     /* NULL = nothing is watched */
    struct ggml_cgraph *graph;       /* the last that was built; NULL = none was */
    struct ggml_tensor **inputs;     /* (LAYERSKIP_INPUTS,) what it reads, NULL behind the last; NULL = nobody asks */
    int32_t alone;                   /* what rows.c is to compute as for one token */
    bool refused;
    bool broken; /* refused, whatever the mask */
} job;

#if defined(_WIN32)
#include "hook_windows.c"
#elif defined(__APPLE__)
#include "hook_darwin.c"
#else
#include "hook_linux.c"
#endif

static bool refuse(const char *format, int a, int b) {
    job.refused = true;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(job.report->reason, sizeof job.report->reason, format, a, b);
#pragma GCC diagnostic pop
    return false;
}

#include "stream.c"

struct wanted {
    const char *name;
    void **slot;
};

/* Fills the slots from the opened library; NULL, or the first name that it lacks. */
static const char *find(void *libllama, const struct wanted *wanted, size_t n) {
    for (size_t i = 0; i < n; i++) {
        *wanted[i].slot = layerskip_function(libllama, wanted[i].name);
        if (*wanted[i].slot == NULL) {
            return wanted[i].name;
        }
    }
    return NULL;
}

const char *layerskip_init(void *libllama) {
    static const struct wanted wanted[] = {
        {"ggml_backend_sched_alloc_graph", (void **)&real.alloc_graph},
        {"ggml_graph_n_nodes", (void **)&real.n_nodes},
        {"ggml_graph_node", (void **)&real.node},
        {"ggml_graph_clear", (void **)&real.clear},
        {"ggml_build_forward_expand", (void **)&real.expand},
#ifndef LAYERSKIP_PRELOAD
        {"ggml_reset", (void **)&real.reset},
        {"ggml_mul_mat", (void **)&real.mul_mat},
        {"ggml_custom_inplace", (void **)&real.custom},
        {"ggml_graph_size", (void **)&real.graph_size},
        {"ggml_init", (void **)&real.init},
        {"ggml_free", (void **)&real.free_context},
        {"ggml_view_1d", (void **)&real.view_1d},
        {"ggml_new_tensor_1d", (void **)&real.new_tensor_1d},
        {"ggml_cont", (void **)&real.cont},
        {"ggml_get_rows", (void **)&real.get_rows},
        {"ggml_set_rows", (void **)&real.set_rows},
        {"ggml_backend_cpu_buffer_type", (void **)&real.cpu_buffer_type},
        {"ggml_backend_buft_alloc_buffer", (void **)&real.buft_alloc_buffer},
        {"ggml_backend_buffer_get_base", (void **)&real.buffer_get_base},
        {"ggml_backend_buffer_free", (void **)&real.buffer_free},
        {"ggml_backend_tensor_alloc", (void **)&real.tensor_alloc},
        {"ggml_backend_sched_graph_compute_async", (void **)&real.compute},
        {"ggml_new_tensor_4d", (void **)&real.new_tensor_4d},
        {"ggml_permute", (void **)&real.permute},
        {"ggml_transpose", (void **)&real.transpose},
        {"ggml_cast", (void **)&real.cast},
        {"ggml_view_4d", (void **)&real.view_4d},
        {"ggml_custom_4d", (void **)&real.custom_4d},
        {"ggml_backend_buffer_is_host", (void **)&real.is_host},
        {"llama_decode", (void **)&real.decode},
        {"llama_set_causal_attn", (void **)&real.set_causal_attn},
#endif
    };
    return find(libllama, wanted, sizeof wanted / sizeof *wanted);
}

/* Fills op by the names of ggml's operations. False: one is missing. */
static bool find_operations(const char *(*op_name)(int)) {
    static const struct {
        const char *name;
        int32_t *number;
    } wanted[] = {
        {"ADD", &op.add},         {"MUL", &op.mul},         {"NORM", &op.norm},         {"RMS_NORM", &op.rms_norm},
        {"SCALE", &op.scale},     {"CONT", &op.cont},       {"RESHAPE", &op.reshape},   {"VIEW", &op.view},
        {"PERMUTE", &op.permute}, {"TRANSPOSE", &op.transpose}, {"GET_ROWS", &op.get_rows}, {"MUL_MAT", &op.mul_mat},
        {"MUL_MAT_ID", &op.mul_mat_id}, {"FLASH_ATTN_EXT", &op.flash_attn}, {"ROPE", &op.rope},
        {"SOFT_MAX", &op.soft_max}, {"SET_ROWS", &op.set_rows}, {"CPY", &op.cpy},
    };
    enum { WANTED = sizeof wanted / sizeof *wanted, MOST = 80 }; /* no release has fewer operations than MOST */
    int found = 0;
    for (int number = 0; number < MOST && found < WANTED; number++) {
        const char *name = op_name(number);
        for (int i = 0; i < WANTED; i++) {
            if (strcmp(name, wanted[i].name) == 0) {
                *wanted[i].number = number;
                found++;
            }
        }
    }
    return found == WANTED;
}

bool layerskip_fits(void *libllama) {
    struct ggml_context *(*init)(struct ggml_init_params);
    void (*free_context)(struct ggml_context *);
    struct ggml_tensor *(*new_tensor)(struct ggml_context *, int32_t type, int64_t n);
    struct ggml_tensor *(*add)(struct ggml_context *, struct ggml_tensor *, struct ggml_tensor *);
    struct ggml_tensor *(*view)(struct ggml_context *, struct ggml_tensor *, int64_t n, size_t offset);
    struct ggml_tensor *(*unary)(struct ggml_context *, struct ggml_tensor *);
    struct ggml_tensor *(*glu)(struct ggml_context *, struct ggml_tensor *, struct ggml_tensor *);
    struct ggml_tensor *(*sqr)(struct ggml_context *, struct ggml_tensor *);
    struct ggml_tensor *(*set_name)(struct ggml_tensor *, const char *);
    void (*set_input)(struct ggml_tensor *);
    const char *(*op_name)(int);
    const struct wanted wanted[] = {
        {"ggml_init", (void **)&init},
        {"ggml_free", (void **)&free_context},
        {"ggml_new_tensor_1d", (void **)&new_tensor},
        {"ggml_add", (void **)&add},
        {"ggml_view_1d", (void **)&view},
        {"ggml_set_name", (void **)&set_name},
        {"ggml_set_input", (void **)&set_input},
        {"ggml_op_name", (void **)&op_name},
    };
    if (find(libllama, wanted, sizeof wanted / sizeof *wanted) != NULL || !find_operations(op_name)) {
        return false;
    }
    struct ggml_context *ctx = init((struct ggml_init_params){.mem_size = 16 * 1024, .no_alloc = true});
    if (ctx == NULL) {
        return false;
    }
    struct ggml_tensor *a = new_tensor(ctx, GGML_TYPE_F32, 8);
    struct ggml_tensor *b = new_tensor(ctx, GGML_TYPE_F32, 8);
    struct ggml_tensor *sum = add(ctx, a, b);
    struct ggml_tensor *part = view(ctx, a, 2, 8);
    unary = (struct ggml_tensor * (*)(struct ggml_context *, struct ggml_tensor *)) layerskip_function(libllama, "ggml_silu");
    glu = (struct ggml_tensor * (*)(struct ggml_context *, struct ggml_tensor *, struct ggml_tensor *))
        layerskip_function(libllama, "ggml_swiglu_split");
    sqr = (struct ggml_tensor * (*)(struct ggml_context *, struct ggml_tensor *)) layerskip_function(libllama, "ggml_sqr");
    op.unary = unary != NULL ? unary(ctx, a)->op : -1;
    op.glu = glu != NULL ? glu(ctx, a, b)->op : -1;
    op.sqr = sqr != NULL ? sqr(ctx, a)->op : -1;
    set_name(sum, "gallop");
    set_input(a);
    const bool same = sum->src[0] == a && sum->src[1] == b && sum->src[2] == NULL && sum->ne[0] == 8 && sum->ne[1] == 1 &&
                      sum->nb[0] == 4 && sum->op == op.add && strcmp(sum->name, "gallop") == 0 &&
                      (a->flags & GGML_FLAG_INPUT) != 0 && (b->flags & GGML_FLAG_INPUT) == 0 && part->view_src == a &&
                      part->view_offs == 8;
    free_context(ctx);
    return same;
}

#ifndef LAYERSKIP_PRELOAD
static bool computations_pass;

bool layerskip_sees_computations(void) { return computations_pass; }
#endif

const char *layerskip_hook(void *libllama) {
#ifndef LAYERSKIP_PRELOAD
    computations_pass = layerskip_divert(libllama, "ggml_backend_sched_graph_compute_async",
                                         (void *)ggml_backend_sched_graph_compute_async) == NULL;
#endif
    return layerskip_divert(libllama, "ggml_backend_sched_alloc_graph", (void *)ggml_backend_sched_alloc_graph);
}

/* ---- masks ---- */

static int skipped_halves(const uint64_t *mask, int layer) {
    return (int)(mask[2 * layer / 64] >> (2 * layer % 64) & WHOLE);
}

static bool is_empty(const uint64_t *mask) {
    for (int i = 0; i < LAYERSKIP_WORDS; i++) {
        if (mask[i] != 0) {
            return false;
        }
    }
    return true;
}

/* True if the keys and values of a layer are written though its attention is skipped. */
static bool is_written(const uint64_t *mask, int layer) {
    return (mask[LAYERSKIP_LOCAL + 2 * layer / 64] >> (2 * layer % 64) & 2) != 0;
}

/* Highest layer that the mask names, or -1. */
static int last_named(const uint64_t *mask) {
    for (int layer = LAYERSKIP_MAX_LAYERS - 1; layer >= 0; layer--) {
        if (skipped_halves(mask, layer) != 0 || skipped_halves(mask + LAYERSKIP_LOCAL, layer) != 0) {
            return layer;
        }
    }
    return -1;
}

/* ---- the edit ---- */

static bool refuse_half(int layer) {
    return refuse("layer %d's attention and feed-forward cannot be told apart, so skip the whole layer or none of it", layer, 0);
}

/* Refuses halves of a layer that it does not have. */
static bool check_halves(const struct graph *g, int layer, int halves) {
    const int has = g->has[layer];
    if (halves == 0 || (halves & has && !(has & UNKNOWN_PART))) {
        return true;
    }
    const char *why = has & UNKNOWN_PART    ? "layer %d adds what is neither attention nor feed-forward by its weights' names, so "
                                              "nothing of it can be skipped"
                      : has == 0            ? "layer %d adds nothing to the residual stream, so there is nothing of it to skip"
                      : halves == ATTENTION ? "layer %d has no attention that could be skipped"
                                            : "layer %d has no feed-forward that could be skipped";
    return refuse(why, layer, 0);
}

/* Refuses what no mask may name. */
static bool check_mask(const struct graph *g, const uint64_t *mask) {
    const int named = last_named(mask);
    if (named >= g->n_layer) {
        return refuse("the mask names layer %d, but the model's layers end at %d", named, g->n_layer - 1);
    }
    int whole = 0;
    for (int layer = 0; layer < g->n_layer; layer++) {
        const int skipped = skipped_halves(mask, layer);
        if (!check_halves(g, layer, skipped)) {
            return false;
        }
        if (is_written(mask, layer) && g->written[layer][CACHE_KEYS] == 0) {
            return refuse("layer %d writes no keys and values, so it cannot write them while its attention is skipped", layer, 0);
        }
        whole += skipped == WHOLE;
    }
    return whole < g->n_layer || refuse("the mask skips all %d layers: keep at least one", g->n_layer, 0);
}

#include "gates.c"

static bool leave_out(struct graph *g, int i, int operand, int block, int skipped, int gated);

/* Leaves out parts of the addend at i, of a layer: operands of the ADD that it is, or hands on. */
static bool leave_out_parts(struct graph *g, int i, int layer, int block, int skipped, int gated) {
    struct node *n = &g->nodes[i];
    if (n->t->op == op.add && !is_weight(n->t->src[1])) {
        n->layer = (int16_t)layer;
        return leave_out(g, i, 0, block, skipped, gated) && leave_out(g, i, 1, block, skipped, gated);
    }
    const int from = hands_on(n->t) ? position(n->t->src[0]) : -1;
    return from >= 0 ? leave_out_parts(g, from, layer, block, skipped, gated) : refuse_half(layer);
}

/* Leaves out an operand of the ADD at i: for all rows if it is of skipped halves of the block alone, for some rows if
 * these skip what else it is. What is of both halves, of which one is wanted, is taken apart. */
static bool leave_out(struct graph *g, int i, int operand, int block, int skipped, int gated) {
    struct node *n = &g->nodes[i];
    const int at = position(n->t->src[operand]);
    if (at < 0 || g->nodes[at].block != block || (g->nodes[at].halves & WHOLE) == 0) {
        return true;
    }
    const int halves = g->nodes[at].halves & WHOLE, rest = halves & ~skipped;
    if (rest == 0) {
        n->cut |= (uint8_t)(1 << operand);
        g->nodes[at].left_out = true;
        return true;
    }
    if (rest & gated) {
        n->gated[operand] = (uint8_t)rest;
    }
    const bool apart = rest == WHOLE && gated != 0 && !go_together(n->layer);
    return (!apart && rest == halves) || leave_out_parts(g, at, n->layer, block, skipped, apart ? gated : 0);
}

/* Has a view of what something else stands in for now be a view of that. */
static bool move_view(struct ggml_tensor *t, size_t old_offset) {
    struct ggml_tensor *src = t->src[0], *of = src->view_src != NULL ? src->view_src : src;
    if (t->view_src != of && src->view_offs != old_offset) {
        return refuse("a view of what is skipped is used later, so it cannot be skipped", 0, 0);
    }
    t->view_src = of;
    return true;
}

/* Lets each node read what stands in for what it read, and tells what stands in for it. */
static bool rewire(struct graph *g) {
    for (int i = 0; i < g->n; i++) {
        struct node *n = &g->nodes[i];
        struct ggml_tensor *t = n->t;
        const size_t offset = t->src[0] != NULL ? t->src[0]->view_offs : 0;
        for (int s = 0; s < GGML_SRC; s++) {
            const int at = position(t->src[s]);
            if (at >= 0 && g->nodes[at].instead != NULL) {
                t->src[s] = g->nodes[at].instead;
            }
        }
        if (t->view_src != NULL && is_view_op(t)) {
            if (!move_view(t, offset)) {
                return false;
            }
        } else if (position(t->view_src) >= 0 && g->nodes[position(t->view_src)].instead != NULL) {
            return refuse("something is written over what is skipped, so it cannot be skipped", 0, 0);
        }
        if (n->cut != 0) {
            n->instead = t->src[n->cut == 1];
            if (!same_shape(n->instead, t)) {
                return refuse("layer %d changes the shape of its input, so it cannot be skipped", n->layer, 0);
            }
            if (!n->read) {
                return refuse("what layer %d puts out is a result of the model, so it cannot be skipped", n->layer, 0);
            }
        }
        for (int s = 0; s < 2; s++) {
            if (n->gated[s] != 0 && !gate(g, i, t->src[1 - s], n->layer, n->gated[s])) {
                return false;
            }
        }
    }
    return true;
}

/* In place of the halves that a cache is of: it is written whatever is skipped. */
enum { ALWAYS_WRITTEN = 4 };

/* True if a cache is of skipped halves alone. Where no weights tell of which, as with the last tokens that RWKV
 * keeps for both, it goes with the last of them. */
static bool is_skipped_cache(const struct graph *g, int layer, int kind, const uint64_t *mask) {
    const bool written = layer >= 0 && layer < g->n_layer && kind <= CACHE_VALUES && is_written(mask, layer);
    const int skipped = layer >= 0 && layer < g->n_layer && !written ? skipped_halves(mask, layer) : 0;
    const int halves = skipped != 0 ? g->written[layer][kind] : 0;
    return skipped != 0 && ((halves != 0 ? halves : g->has[layer]) & ~skipped) == 0;
}

/* Keeps what the results are computed from, and what is written to the caches of kept halves. */
static bool keep_needed(struct graph *g, const uint64_t *mask) {
    for (int i = g->n - 1; i >= 0; i--) {
        struct node *n = &g->nodes[i];
        const bool skipped_cache = is_skipped_cache(g, n->cache, n->kind, mask);
        n->keep |= !n->read && !skipped_cache;
        if (!n->keep) {
            continue;
        }
        if (n->left_out) {
            return refuse("what a skipped part of layer %d adds is used elsewhere too, so it cannot be skipped", n->block, 0);
        }
        if (skipped_cache && n->read) {
            if (g->written[n->cache][n->kind] != 0) {
                return refuse("a kept layer reads the KV cache of layer %d, so layer %d cannot be skipped", n->cache, n->cache);
            }
            /* Norms of the stream, for which no weights of a half were needed: they are written as ever. */
            g->written[n->cache][n->kind] = ALWAYS_WRITTEN;
            i = g->n;
            continue;
        }
        for (int s = 0; s < GGML_SRC; s++) {
            const int at = position(n->t->src[s]);
            if (at >= 0) {
                g->nodes[at].keep = true;
            }
        }
    }
    return true;
}

/* Leaves out what the mask names of the layers, and gates what only some rows skip. */
static bool skip_layers(struct ggml_cgraph *cgraph, struct graph *g, const uint64_t *mask) {
    if (!check_mask(g, mask) || (job.rows != NULL && !check_rows(g))) {
        return false;
    }
    for (int i = g->first; i < g->n; i++) {
        struct node *n = &g->nodes[i];
        if (!n->stream || n->layer < 0) {
            continue;
        }
        const int skipped = skipped_halves(mask, n->layer), gated = gated_halves(mask, n->layer);
        const int block = g->nodes[position(n->t->src[n->addend])].block;
        if ((skipped | gated) != 0 && !leave_out(g, i, n->addend, block, skipped, gated)) {
            return false;
        }
    }
    struct layerskip_report *r = job.report;
    for (int layer = 0; layer < g->n_layer; layer++) {
        const int skipped = skipped_halves(mask, layer);
        r->layers_removed += skipped == WHOLE;
        r->sublayers_removed += skipped == ATTENTION || skipped == FEED_FORWARD;
        r->sublayers_gated += count_halves(gated_halves(mask, layer) & g->has[layer]);
    }
    return (job.rows == NULL || prepare_gates(cgraph, g)) && rewire(g) && keep_needed(g, mask);
}

/* ---- the vocabulary shortlist ---- */

static bool is_result(const struct ggml_tensor *t) { return begins(t->name, "result_"); }

/* The graph's logits: its last result that is called so, or its end where none has a name; NULL = it has none. */
static struct ggml_tensor *find_logits(struct ggml_cgraph *cgraph) {
    bool named = false;
    for (int i = real.n_nodes(cgraph) - 1; i >= 0; i--) {
        struct ggml_tensor *t = real.node(cgraph, i);
        if (strcmp(t->name, "result_output") == 0) {
            return t;
        }
        named |= is_result(t);
    }
    return named || real.n_nodes(cgraph) == 0 ? NULL : real.node(cgraph, real.n_nodes(cgraph) - 1);
}

/* Finds the product that makes the logits and lets its hidden state be read after the decode. */
static void find_output(struct ggml_cgraph *cgraph, struct layerskip_output *o) {
    const struct ggml_tensor *t = find_logits(cgraph);
    o->matrix = NULL;
    o->hidden = NULL;
    if (t != NULL && t->op == op.mul_mat && t->src[1]->type == GGML_TYPE_F32 && t->ne[2] == 1 && t->ne[3] == 1) {
        o->matrix = t->src[0];
        o->hidden = t->src[1];
        o->hidden->flags |= GGML_FLAG_OUTPUT;
    }
}

/* Puts the preview in the output matrix's place. */
static bool shorten_output(struct graph *g, struct layerskip_output *o) {
    if (o == NULL || o->preview == NULL) {
        return refuse("the mask has a shortlist, but none was made for this model", 0, 0);
    }
    if (o->hidden == NULL) {
        return refuse("the graph does not end in one product with the output matrix (an adapter, a bias or a scale "
                      "follows), so no shortlist can be used", 0, 0);
    }
    for (int i = g->n - 1; i >= 0; i--) {
        struct ggml_tensor *t = g->nodes[i].t;
        if (t->src[0] != o->matrix || t->src[1] != o->hidden) {
            continue;
        }
        if (o->basis->ne[0] != t->src[1]->ne[0] || o->preview->ne[1] != t->ne[0]) {
            return refuse("the shortlist was made for another model", 0, 0);
        }
        real.reset(o->nodes);
        t->src[0] = o->preview;
        t->src[1] = real.mul_mat(o->nodes, o->basis, o->hidden);
        for (int k = 0; o->steps[k] != NULL; k++) {
            enum { ALL_THREADS = -1 };
            g->end = real.custom(o->nodes, g->end == NULL ? t : g->end, &o->hidden, 1, o->steps[k], ALL_THREADS, o->data);
        }
        return true;
    }
    return refuse("the product with the output matrix is not in the graph", 0, 0);
}

#ifndef LAYERSKIP_PRELOAD
/* Gives a node n numbers in each row. */
static void narrow(struct ggml_tensor *t, int64_t n) {
    t->ne[0] = n;
    for (int d = 1; d < GGML_DIMS; d++) {
        t->nb[d] = t->nb[d - 1] * (size_t)t->ne[d - 1];
    }
}

#include "local.c"
#include "neurons.c"
#include "attend.c"
#endif

/* ---- the graph that remains ---- */

/* Builds the graph again from what is kept. */
static void rebuild(struct ggml_cgraph *cgraph, const struct graph *g) {
    real.clear(cgraph);
#ifndef LAYERSKIP_PRELOAD
    keep_masks(cgraph);
#endif
    for (int i = 0; i < g->n; i++) {
        for (int s = 0; s < GGML_SRC; s++) {
            struct ggml_tensor *src = g->nodes[i].t->src[s];
            if (src != NULL && is_input(src)) {
                real.expand(cgraph, src);
            }
        }
    }
    for (int i = 0; i < g->n; i++) {
        if (g->nodes[i].keep) {
            real.expand(cgraph, g->nodes[i].t);
#ifndef LAYERSKIP_PRELOAD
            if (job.watch != NULL) {
                watch_product(cgraph, job.watch, g->nodes[i].t);
            }
#endif
        }
    }
    if (g->end != NULL) {
        real.expand(cgraph, g->end);
    }
}

/* False for the small graphs of its own that llama.cpp also runs, to shift the KV cache for one, which read no
 * layer's weights. Not every architecture names its results. */
static bool is_model_pass(const struct graph *g) {
    for (int i = g->n - 1; i >= 0; i--) {
        if (g->nodes[i].block >= 0 || is_result(g->nodes[i].t)) {
            return true;
        }
    }
    return false;
}

static bool edit_graph(struct ggml_cgraph *cgraph, struct graph *g, const uint64_t *mask) {
    const bool layers = last_named(mask) >= 0 || job.rows != NULL, shortlist = mask[LAYERSKIP_SHORTLIST] != 0;
    struct layerskip_report *r = job.report;
    r->layers_removed = r->sublayers_removed = r->sublayers_gated = r->local = 0;
    survey(cgraph, g);
    if (layers && !find_layers(g)) {
        return !job.refused && (!is_model_pass(g) || refuse("the layers of this architecture do not add to one residual stream "
                                                            "from the embeddings to the logits, so nothing can be skipped", 0, 0));
    }
    if (!layers) {
        if (!is_model_pass(g)) {
            return true;
        }
        for (int i = 0; i < g->n; i++) {
            g->nodes[i].keep = true;
        }
    }
    if ((layers && !skip_layers(cgraph, g, mask)) || (shortlist && is_model_pass(g) && !shorten_output(g, job.output))) {
        return false;
    }
#ifndef LAYERSKIP_PRELOAD
    if (layers && !localize(cgraph, g, mask)) {
        return false;
    }
    if (mask[LAYERSKIP_NEURONS] != 0 && !spare_neurons(g, job.neurons)) {
        return false;
    }
    if (job.watch != NULL) {
        real.reset(job.watch->nodes);
    }
#endif
    rebuild(cgraph, g);
    r->n_layer = g->n_layer;
    r->nodes = g->n;
    r->nodes_removed = g->n - real.n_nodes(cgraph);
    return true;
}

/* Memory for what is found out about a graph, or NULL; the caller frees it. */
static struct graph *new_graph(struct ggml_cgraph *cgraph) {
    const int n = real.n_nodes(cgraph);
    struct graph *g = malloc(sizeof *g + (size_t)n * sizeof *g->nodes);
    if (g != NULL) {
        *g = (struct graph){.nodes = (struct node *)(g + 1), .n = n};
    }
    return g;
}

static bool apply_mask(struct ggml_cgraph *cgraph, const uint64_t *mask) {
    struct graph *g = new_graph(cgraph);
    if (g == NULL) {
        return refuse("out of memory while a graph of %d nodes was edited", real.n_nodes(cgraph), 0);
    }
    const bool ok = edit_graph(cgraph, g, mask);
    put_flags_back(g);
    free(g);
    return ok;
}

/* Tells where the stream is before, in and behind each layer. */
static void read_stream(const struct graph *g, struct layerskip_stream *s) {
    const struct ggml_tensor *x = NULL, *rows = NULL; /* the stream so far; the choice of its rows, if nothing was added since */
    int layer = -1;                                   /* that it is in */
    bool normed = false;                              /* since: x was, at the end of the model or of a run of its blocks */
    for (int i = g->first; i < g->n; i++) {
        const struct node *n = &g->nodes[i];
        struct ggml_tensor *t = n->t;
        if (!n->stream) {
            continue;
        }
        if (t->op == op.get_rows) {
            rows = t;
            continue;
        }
        if (n->layer > layer) {
            x = stream_before(g, i);
            if (layer < 0) {
                s->input = x;
            } else {
                s->out[layer] = x;
            }
            layer = n->layer;
        } else if (n->layer == layer && g->nodes[position(t->src[n->addend])].halves == FEED_FORWARD && s->cut[layer] == NULL &&
                   g->has[layer] == WHOLE) {
            s->cut[layer] = x;
        }
        if (n->layer >= 0) {
            s->rows = rows != NULL ? rows : s->rows;
            rows = NULL;
        }
        normed = n->layer < 0 && (normed || is_norm(t));
        x = normed ? x : t;
    }
    s->out[layer] = x;
    s->n_layer = g->n_layer;
}

/* The same of an unmasked graph. What is not found stays unknown: that is no reason to refuse a decode. */
static void find_stream(struct ggml_cgraph *cgraph, struct layerskip_stream *s) {
    struct graph *g = new_graph(cgraph);
    if (g == NULL) {
        return;
    }
    survey(cgraph, g);
    if (find_layers(g)) {
        read_stream(g, s);
    }
    job.refused = false; /* find_layers may have */
    put_flags_back(g);
    free(g);
}

/* ---- the hook ---- */

#ifdef LAYERSKIP_PRELOAD
static void preload_begin(const void *caller);
static void preload_end(void);
#endif

/* The quantised types with kernels for tiles of tokens, which may round like those for one (rows.c). */
static bool may_be_tiled(int type) {
    return type == GGML_TYPE_Q4_0 || type == GGML_TYPE_Q5_0 || type == GGML_TYPE_Q8_0 || type == GGML_TYPE_IQ4_NL;
}

/* The types that round otherwise for several tokens where they are rearranged, if only now and then. */
static bool is_k_quant(int type) { return type >= GGML_TYPE_Q2_K && type <= GGML_TYPE_Q6_K; }

/* Has rows.c compute some operations as for each token alone. */
static void mark_rows(struct ggml_cgraph *graph) {
    const int n = real.n_nodes(graph);
    for (int i = 0; i < n; i++) {
        struct ggml_tensor *node = real.node(graph, i);
        const bool product = node->op == op.mul_mat;
        if (node->op == op.flash_attn || (product && (job.alone == LAYERSKIP_PRODUCTS_ALONE || is_k_quant(node->src[0]->type)))) {
            node->op_params[LAYERSKIP_ROWS_PARAM] = LAYERSKIP_ROWS;
        } else if ((product || node->op == op.mul_mat_id) &&
                   (job.alone >= LAYERSKIP_PRODUCTS_UNTILED || !may_be_tiled(node->src[0]->type))) {
            node->op_params[LAYERSKIP_ROWS_PARAM] = LAYERSKIP_UNTILED;
        }
    }
}

#ifndef LAYERSKIP_PRELOAD
/*
 * Finds rotations of no numbers of a head, which ggml never gets done with, and of more than it has, over
 * which ggml's threads end the process. Metadata says how many in many ways; the graph has what came of them.
 */
static bool check_rotations(struct ggml_cgraph *graph) {
    enum { NUMBERS = 1, MODE = 2, SECTIONS = 11, END = 15, IN_SECTIONS = 8 }; /* places in op_params; a bit of the mode */
    const int n = real.n_nodes(graph);
    for (int i = 0; i < n; i++) {
        const struct ggml_tensor *t = real.node(graph, i);
        if (t->op != op.rope) {
            continue;
        }
        const int numbers = t->op_params[NUMBERS], width = (int)t->ne[0];
        int64_t sections = 0;
        for (int k = SECTIONS; k < END; k++) {
            sections += t->op_params[k] >= 0 ? t->op_params[k] : INT32_MAX;
        }
        job.broken = numbers <= 0 || numbers > width || numbers % 2 != 0;
        if (job.broken) {
            return refuse("the model's metadata is damaged: a position turns %d of the %d numbers of a head, and can turn an "
                          "even part of them", numbers, width);
        }
        job.broken = (t->op_params[MODE] & IN_SECTIONS) != 0 && (sections == 0 || sections > width);
        if (job.broken) {
            return refuse("the model's metadata is damaged: a position turns none of a head's %d numbers in sections, or "
                          "more than all", width, 0);
        }
    }
    return true;
}
#endif

/*
 * ggml's allocator takes its last plan for memory again where a graph has as many nodes and leafs as
 * the one before, each no larger than the one in its place. Where the mask has changed that may be
 * another graph, so it gets more nodes than the one before, and than llama.cpp's own, for which memory
 * was planned at first. The nodes are views of a weight, which compute nothing.
 */
static bool force_new_plan(struct ggml_cgraph *graph, struct layerskip_plan *plan, int own) {
    const int n = real.n_nodes(graph);
    if (n != plan->n_nodes && n != own) {
        return true;
    }
    struct ggml_tensor *weight = NULL;
    for (int i = 0; i < n && weight == NULL; i++) {
        for (int s = 0; s < GGML_SRC && weight == NULL; s++) {
            struct ggml_tensor *src = real.node(graph, i)->src[s];
            weight = src != NULL && src->buffer != NULL && src->view_src == NULL ? src : NULL;
        }
    }
    enum { NODES = 4096 }; /* bytes; two take a quarter */
    if (plan->nodes == NULL) {
        plan->nodes = real.init((struct ggml_init_params){.mem_size = NODES, .no_alloc = true});
    }
    if (weight == NULL || plan->nodes == NULL) {
        return refuse("no memory to set the graph of %d nodes apart from the one before", n, 0);
    }
    real.reset(plan->nodes);
    for (int now = n; now == plan->n_nodes || now == own; now++) {
        real.expand(graph, real.view_1d(plan->nodes, weight, weight->ne[0], 0));
    }
    return true;
}

/* Tells the graph's inputs while its nodes name them: once it is allocated, those on a GPU read copies. */
static void find_inputs(struct ggml_cgraph *graph, struct ggml_tensor **inputs) {
    const int n = real.n_nodes(graph);
    int found = 0;
    for (int i = 0; i < n; i++) {
        for (int s = 0; s < GGML_SRC && found < LAYERSKIP_INPUTS; s++) {
            struct ggml_tensor *src = real.node(graph, i)->src[s];
            if (src == NULL || !(src->flags & GGML_FLAG_INPUT)) {
                continue;
            }
            int known = 0;
            while (known < found && inputs[known] != src) {
                known++;
            }
            inputs[known] = src;
            found += known == found;
        }
    }
    if (found < LAYERSKIP_INPUTS) {
        inputs[found] = NULL;
    }
}

__attribute__((visibility("default"))) bool ggml_backend_sched_alloc_graph(struct ggml_backend_sched *sched,
                                                                           struct ggml_cgraph *graph) {
#ifdef LAYERSKIP_PRELOAD
    preload_begin(__builtin_return_address(0));
#endif
    bool (*const alloc_graph)(struct ggml_backend_sched *, struct ggml_cgraph *) = real.alloc_graph;
    bool ok = true;
    if (job.stream != NULL) {
        *job.stream = (struct layerskip_stream){0};
        if (job.mask == NULL || is_empty(job.mask)) {
            find_stream(graph, job.stream);
        }
    }
    if (job.output != NULL) {
        find_output(graph, job.output);
    }
    const int own = real.n_nodes(graph);
#ifndef LAYERSKIP_PRELOAD
    if (job.local != NULL) {
        forget_plans(job.local);
        read_graph(graph, job.local);
    }
    ok = job.report == NULL || check_rotations(graph);
#endif
    if (ok && job.mask != NULL) {
        ok = apply_mask(graph, job.mask);
    }
#ifndef LAYERSKIP_PRELOAD
    if (ok && job.attend != NULL) {
        attend(graph, job.attend);
    }
#endif
    if (job.plan != NULL) {
        if (ok && job.changed) {
            ok = force_new_plan(graph, job.plan, job.mask != NULL ? own : 0);
            job.changed = false;
        }
        job.plan->n_nodes = real.n_nodes(graph);
    }
    if (job.alone != LAYERSKIP_TOGETHER) {
        mark_rows(graph);
    }
    if (job.inputs != NULL) {
        find_inputs(graph, job.inputs);
    }
    job.graph = graph;
#ifdef LAYERSKIP_PRELOAD
    preload_end();
#endif
    return ok && alloc_graph(sched, graph);
}

#ifndef LAYERSKIP_PRELOAD

/* Makes llama.cpp build a new graph instead of using its last, of these inputs, again. */
static void discard(struct ggml_tensor **inputs) {
    for (int i = 0; i < LAYERSKIP_INPUTS && inputs[i] != NULL; i++) {
        inputs[i]->ne[0] = inputs[i]->ne[1] = -1;
    }
}

int32_t layerskip_decode(struct layerskip_state *state, struct llama_context *ctx, struct llama_batch batch,
                         const uint64_t *mask, const struct layerskip_rows *rows, int32_t alone) {
    const int64_t cells = cells_in_windows(mask, rows, &batch);
    const bool watched = state->watch.on && mask[LAYERSKIP_NEURONS] == 0;
    const bool changed = state->graph != NULL &&
                         (memcmp(state->built, mask, sizeof state->built) != 0 || state->built_alone != alone ||
                          state->local.built_cells != cells || state->built_watched != watched ||
                          !same_rows(&state->gates, rows, &batch));
    const bool new_graph = state->graph == NULL || changed;
    if (new_graph && !remember_rows(&state->gates, rows, &batch)) {
        state->failed = true;
        state->graph = NULL;
        snprintf(state->report.reason, sizeof state->report.reason, "out of memory for the masks of %d rows", batch.n_tokens);
        return LAYERSKIP_REFUSED;
    }
    if (state->failed) {
        real.set_causal_attn(ctx, state->bidirectional);
        real.set_causal_attn(ctx, !state->bidirectional);
    } else if (changed) {
        discard(state->inputs);
    }
    if (new_graph) {
        memcpy(state->built, mask, sizeof state->built);
        state->built_alone = alone;
        state->local.built_cells = cells;
        state->built_watched = watched;
        memset(&state->report, 0, sizeof state->report);
    }
    const bool masked = !is_empty(mask) || rows != NULL;
    const uint64_t choice = mask[LAYERSKIP_NEURONS] >> 32;
    job.mask = masked || watched ? mask : NULL;
    job.neurons = mask[LAYERSKIP_NEURONS] != 0 && choice < LAYERSKIP_CHOICES ? state->neurons[choice] : NULL;
    job.watch = watched ? &state->watch : NULL;
    job.rows = rows;
    job.outputs = batch.logits;
    job.n_rows = batch.n_tokens;
    job.gates = &state->gates;
    job.local = &state->local;
    job.attend = state->attend.on ? &state->attend : NULL;
    job.batch = &batch;
    job.rows_done = 0;
    memset(job.next_of, 0, sizeof job.next_of);
    job.plan = &state->plan;
    job.changed = new_graph;
    job.report = &state->report;
    job.stream = state->stream;
    job.output = &state->output;
    job.graph = NULL;
    job.inputs = state->inputs;
    job.alone = alone;
    job.refused = job.broken = false;
    const int32_t result = real.decode(ctx, batch);
    job.mask = NULL;
    job.neurons = NULL;
    job.watch = NULL;
    job.rows = NULL;
    job.outputs = NULL;
    job.gates = NULL;
    job.local = NULL;
    job.attend = NULL;
    job.batch = NULL;
    job.plan = NULL;
    job.report = NULL;
    job.stream = NULL;
    job.output = NULL;
    job.inputs = NULL;
    job.alone = LAYERSKIP_TOGETHER;

    if (job.graph != NULL) {
        state->graph = job.graph;
    }
    const bool unseen = result == 0 && job.graph == NULL && (changed || ((masked || watched) && new_graph));
    state->failed = result != 0 || unseen;
    if (state->failed) {
        state->graph = NULL; /* llama.cpp may hold one that was never allocated, or none */
        state->output.hidden = NULL;
    }
    if (job.refused) {
        return job.broken ? LAYERSKIP_BROKEN : LAYERSKIP_REFUSED;
    }
    if (unseen) {
        return LAYERSKIP_NOT_HOOKED;
    }
    return result;
}

#else /* LAYERSKIP_PRELOAD: libgallop-skip.so */

#include <pthread.h>
#include <unistd.h>

/* Everything here, and `real`, is guarded by lock; the mask is GALLOP_SKIP's, as in `4,6,9-11,a5,f7`. */
static struct {
    pthread_mutex_t lock;
    const void *caller; /* start of the library or program that `real` was found from; NULL = none yet */
    bool masked;        /* the mask is not empty */
    bool told_skip;     /* the first edit was reported */
    bool told_refusal;  /* the first refusal was */
    uint64_t mask[LAYERSKIP_WORDS];
    struct layerskip_report report;
} preload = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Says it on stderr, and adds it to the file that `gallop exec` named. */
static void tell(const char *kind, const char *what, const char *detail) {
    fprintf(stderr, "gallop-skip: %s%s%s\n", kind, what, detail);
    const char *path = getenv("GALLOP_SKIP_REPORT");
    FILE *file = path != NULL ? fopen(path, "a") : NULL;
    if (file != NULL) {
        fprintf(file, "%s%s%s\n", kind, what, detail);
        fclose(file);
    }
}

/* Ends the host without its exit handlers: this may be any of its threads, in the middle of anything. */
static void fail(const char *what, const char *detail) {
    tell("refused: ", what, detail);
    _exit(2);
}

/* Reads a layer number off text. */
static bool parse_layer(const char **text, int *layer) {
    if (**text < '0' || **text > '9') {
        return false;
    }
    char *end;
    const long n = strtol(*text, &end, 10);
    *text = end;
    *layer = (int)n;
    return n < LAYERSKIP_MAX_LAYERS;
}

static bool parse_mask(const char *text, uint64_t *mask) {
    for (;; text++) { /* text++ steps over the comma */
        int from, to;
        uint64_t bits = 3; /* both halves */
        if (*text == 'a' || *text == 'f') {
            bits = *text++ == 'a' ? 1 : 2;
        }
        if (!parse_layer(&text, &from)) {
            return false;
        }
        to = from;
        if (*text == '-' && (text++, !parse_layer(&text, &to))) {
            return false;
        }
        for (int layer = from; layer <= to; layer++) {
            mask[2 * layer / 64] |= bits << (2 * layer % 64);
        }
        if (from > to || (*text != ',' && *text != '\0')) {
            return false;
        }
        if (*text == '\0') {
            return true;
        }
    }
}

/* The host opened its libraries privately, so the real functions are found from the caller. */
static void preload_init(const Dl_info *caller) {
    void *lib = dlopen(caller->dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (lib == NULL) {
        lib = RTLD_NEXT; /* the program itself calls, and is linked with libggml-base */
    }
    const char *missing = layerskip_init(lib);
    if (missing != NULL) {
        fail("this build of llama.cpp has no function ", missing);
    }
    const char *text = getenv("GALLOP_SKIP");
    if (text != NULL && *text != '\0' && !parse_mask(text, preload.mask)) {
        fail("GALLOP_SKIP is no mask, write it as in 4,6,9-11,a5,f7: ", text);
    }
    preload.masked = !is_empty(preload.mask);
    if (preload.masked && !layerskip_fits(lib)) {
        fail("the program's llama.cpp lays out its graphs in another way than v0.5.0, so nothing can be skipped", "");
    }
    preload.caller = caller->dli_fbase;
}

static void preload_begin(const void *return_address) {
    pthread_mutex_lock(&preload.lock);
    Dl_info caller;
    if (dladdr(return_address, &caller) == 0) {
        fail("the library that built the graph cannot be found, so nothing can be skipped", "");
    }
    if (preload.caller != caller.dli_fbase) {
        preload_init(&caller);
    }
    job.mask = preload.masked ? preload.mask : NULL;
    job.report = &preload.report;
    job.refused = false;
}

/* Says once what was done, or why it was not. */
static void preload_end(void) {
    const struct layerskip_report *r = &preload.report;
    if (job.refused && !preload.told_refusal) {
        preload.told_refusal = true;
        tell("refused: ", r->reason, "");
    } else if (!job.refused && !preload.told_skip && r->nodes_removed > 0) {
        preload.told_skip = true;
        char what[LAYERSKIP_REASON];
        snprintf(what, sizeof what, "%d layers and %d single sublayers of %d layers (%d of %d graph nodes)",
                 r->layers_removed, r->sublayers_removed, r->n_layer, r->nodes_removed, r->nodes);
        tell("skips ", what, "");
    }
    pthread_mutex_unlock(&preload.lock);
}

#endif
