/*
 * layerskip: run stock llama.cpp without some of a model's layers.
 *
 * A mask names what a decode leaves out. Bit 2L is layer L's attention sublayer, bit 2L+1 its
 * feed-forward sublayer; both bits leave the whole layer out. The logits are those of the same
 * model with the output projections of what is left out set to zero, bit for bit on CPU. One word
 * more is the size of the vocabulary shortlist: other than 0, the output matrix gives way to a
 * preview of it, and the decode's logits are the preview's. Further words make attention local, or
 * write the keys and values of attention that is left out. The last
 * says which smaller feed-forwards stand in for the model's: its lower half, other than 0, is how much they leave out,
 * its upper half which of the context's they are.
 *
 * See layerskip.c for how it works.
 */
#ifndef GALLOP_LAYERSKIP_H
#define GALLOP_LAYERSKIP_H

#include "llama_api.h"

enum {
    LAYERSKIP_MAX_LAYERS = 512,
    LAYERSKIP_SHORTLIST = 2 * LAYERSKIP_MAX_LAYERS / 64, /* the mask's word with the shortlist's size, 0 = whole output matrix */
    LAYERSKIP_LOCAL = LAYERSKIP_SHORTLIST + 1, /* words: bit 2L makes layer L's attention local, bit 2L+1 writes keys and values of what is skipped */
    LAYERSKIP_WINDOW = LAYERSKIP_LOCAL + LAYERSKIP_SHORTLIST, /* the word with what local attention sees: recent tokens, and first ones << 32 */
    LAYERSKIP_NEURONS = LAYERSKIP_WINDOW + 1,            /* that with the neurons, 0 = all of them */
    LAYERSKIP_WORDS = LAYERSKIP_NEURONS + 1,             /* uint64 words in a mask */
    LAYERSKIP_SEQUENCES = 256,                           /* of a context at most; llama.cpp's limit */
    LAYERSKIP_CACHES = 2,                                /* of a model at most: of all tokens, and of sliding windows */
    LAYERSKIP_PLANS = 64,                                /* different ways in which a graph's attention is local */
    LAYERSKIP_CHOICES = 128,                             /* choices of neurons that a context has room for */
    LAYERSKIP_INPUTS = 16,                               /* of a graph that are remembered: one would do */
    LAYERSKIP_REASON = 192,                          /* bytes of a refusal's sentence, 0 included */
};

/* Results of layerskip_decode besides llama_decode's own. */
enum {
    LAYERSKIP_REFUSED = -100,    /* the mask cannot be applied exactly; see report.reason */
    LAYERSKIP_BROKEN = -102,     /* the model's graph cannot be computed, whatever the mask; likewise */
    LAYERSKIP_NOT_HOOKED = -101, /* llama.cpp built a graph that the hook never saw */
};

/* What of a batch is computed as for one token (rows.c). Each step includes those before it. */
enum { LAYERSKIP_TOGETHER, LAYERSKIP_ATTENTION_ALONE, LAYERSKIP_PRODUCTS_UNTILED, LAYERSKIP_PRODUCTS_ALONE };

/* The last parameter of an operation, unused by ggml, that is computed row by row, or is a product
 * that is computed without the kernels for several tokens at once. */
enum { LAYERSKIP_ROWS_PARAM = GGML_OP_PARAMS - 1, LAYERSKIP_ROWS = 0x726f7773, LAYERSKIP_UNTILED = 0x756e7469 };

/* What the last graph edit did. */
struct layerskip_report {
    int32_t n_layer;       /* layers in the model's graph */
    int32_t nodes;         /* nodes in the graph that llama.cpp built */
    int32_t nodes_removed; /* nodes that the edit left out */
    int32_t layers_removed;
    int32_t sublayers_removed; /* of layers that keep their other half */
    int32_t sublayers_gated;   /* that only some rows skip */
    int32_t local;             /* layers whose attention some rows have local, where that hides anything from them */
    char reason[LAYERSKIP_REASON];
};

/*
 * Where the residual stream can be read while a graph of llama.cpp's runs (stream.c has the
 * words). The tensors are llama.cpp's and valid for as long as it keeps that graph.
 */
struct layerskip_stream {
    int32_t n_layer;                 /* 0 = nothing is known of this graph, or a mask has edited it */
    const struct ggml_tensor *input; /* of the first layer */
    const struct ggml_tensor *rows;  /* those of the last layer's input whose logits are wanted; NULL = all */
    const struct ggml_tensor *cut[LAYERSKIP_MAX_LAYERS]; /* behind attention, before the feed-forward; NULL = they do not follow each other */
    const struct ggml_tensor *out[LAYERSKIP_MAX_LAYERS]; /* behind the layer; NULL = it adds nothing */
};

/* What a thread of n_threads does with the logits, of which hidden is the second source (src[1]). */
typedef void layerskip_step(struct ggml_tensor *logits, int thread, int n_threads, void *data);

/*
 * The end of a context's graph: logits = matrix * hidden. Under a mask with a shortlist they are
 * preview * (basis * hidden) instead, and steps follow, each by all threads once they have done the one before.
 */
struct layerskip_output {
    const struct ggml_tensor *matrix; /* (n_embd, n_vocab), the model's; NULL = the last graph ends in another way */
    struct ggml_tensor *hidden;       /* (n_embd, n_outputs), valid as long as llama.cpp keeps that graph; NULL likewise */
    struct ggml_tensor *basis;        /* (n_embd, rank); NULL = no shortlist; the owner's, outlives the context */
    struct ggml_tensor *preview;      /* (rank, n_vocab); likewise */
    struct ggml_context *nodes;       /* room for the few nodes that the edit adds; NULL likewise; the owner's */
    layerskip_step *const *steps;     /* NULL at the end */
    void *data;                       /* theirs */
};

/* A weight of the model's feed-forwards, and the part of it that the kept neurons need; see neurons.c. */
struct layerskip_swap {
    const struct ggml_tensor *whole; /* the model's */
    struct ggml_tensor *kept;        /* the owner's, outlives the context */
    bool down;                       /* its columns are the neurons', not its rows */
};
struct layerskip_neurons {
    const struct layerskip_swap *swaps; /* (n,) the owner's; a layer without any keeps all neurons */
    int32_t n;
};

/*
 * Steps that read the activations in front of products with these weights, in decodes without a choice of neurons: a
 * step's first source is the product (src[0]), its second the activations (src[1]), (n_ff, n_rows).
 */
struct layerskip_watch {
    const struct ggml_tensor *const *weights; /* (n,) the owner's */
    void *const *data;                        /* (n,) of each one's step */
    int32_t n;
    layerskip_step *step;
    struct ggml_context *nodes; /* room for n nodes; the owner's */
    bool on;                    /* in the decodes to come */
};

/* The masks of a batch's rows; see gates.c. */
struct layerskip_rows {
    const uint64_t *masks;  /* (n_masks, LAYERSKIP_WORDS) */
    const int32_t *mask_of; /* (n_tokens,) each row's place in masks */
    int32_t n_masks;
};

/* What the gates of a context's last graph stand on; see gates.c. */
struct layerskip_gates {
    struct ggml_context *nodes; /* owned: the gates' tensors */
    int32_t n_room;             /* gates that nodes has room for */
    void *buffer;               /* owned: the ids that they copy rows by */
    size_t size;                /* of buffer, bytes */
    struct ggml_tensor *ids[2 * LAYERSKIP_MAX_LAYERS]; /* (n_ids,) in nodes, each a different list */
    int32_t n_ids, used;        /* lists; ids in all of them */
    struct layerskip_rows built; /* what the graph was built for, in memory; n_masks = 0: one mask for all rows */
    const int8_t *outputs;       /* (n_built,) likewise */
    int32_t n_built;             /* rows */
    void *memory;                /* owned */
};

/* What a token sees: the last tokens, itself included, and the first ones. */
struct layerskip_window {
    int32_t recent; /* 0 = everything */
    int32_t sinks;
};

/* Cells that follow each other, from a place in the cache to one among those that are seen. */
struct layerskip_run {
    int32_t to, from, n;
};

/* How attention to one cache is local in a graph; see local.c. */
struct layerskip_attention {
    int cache;                        /* of layerskip_local's */
    bool gathers;                     /* else all cells are read, and only the mask is another */
    struct ggml_tensor *mask;         /* (n_kv, rows, 1, streams), llama.cpp's */
    struct ggml_tensor *seen;         /* (n_seen, rows, 1, streams), in its place */
    int64_t n_seen, streams;
    struct layerskip_window *windows; /* owned: by mask of the rows */
    struct layerskip_run *runs;       /* (streams, n_seen) in the memory of windows, as is n_runs (streams,) */
    int32_t *n_runs;
};

/* The inputs of a graph that belong to one of the model's caches. */
struct layerskip_cache {
    const struct ggml_tensor *places; /* (rows,) the cell that each row goes to */
    const struct ggml_tensor *mask;   /* (n_kv, rows, 1, streams); NULL = unknown */
    int64_t cells, streams;           /* of a stream; in the cache */
};

/* The cells of a sequence's positions, from first on; -1 = it is in none. */
struct layerskip_cells {
    int32_t *cells; /* (n,) owned */
    int32_t first, n, room;
};

struct layerskip_sequence {
    struct layerskip_cells in[LAYERSKIP_CACHES];
    int32_t *restored[LAYERSKIP_CACHES]; /* (n_restored,) owned: positions that came back, in the order of their cells; these show at the next decode */
    int32_t n_restored[LAYERSKIP_CACHES];
    bool lost; /* it is not known where its positions are */
};

/* What local attention stands on; see local.c. */
struct layerskip_local {
    bool hooked;                          /* computations pass the hook; set by the owner */
    struct layerskip_sequence *sequences; /* (n_sequences,) owned */
    int n_sequences;
    struct ggml_cgraph *graph;            /* llama.cpp's last, which what follows is of */
    const struct ggml_tensor *positions;  /* (rows,) or more; NULL = it reads none */
    struct layerskip_cache caches[LAYERSKIP_CACHES];
    int n_caches;
    uint8_t cache_of[LAYERSKIP_MAX_LAYERS]; /* which of them has the layer's keys, + 1; 0 = none */
    struct layerskip_attention plans[LAYERSKIP_PLANS];
    int n_plans;
    int64_t built_cells;        /* that the graph was built for, as layerskip_decode counts them */
    struct ggml_context *nodes; /* owned */
    int n_room;                 /* layers that nodes has room for */
    void *buffer;               /* owned: has seen of all plans */
    size_t size;                /* of buffer, bytes */
    int32_t *marks;             /* (n_marks,) owned: scratch */
    int64_t n_marks;
    void *tokens; /* (n_tokens,) owned: scratch */
    int64_t n_tokens;
};

/* What a copy of a sequence's cells needs to be found again. free() takes it. */
struct layerskip_saved {
    int32_t n[LAYERSKIP_CACHES];
    int32_t positions[]; /* those of one cache behind those of the other, in the order of their cells */
};

/* What ggml's allocator knows of a context's last graph. */
struct layerskip_plan {
    int32_t n_nodes;
    struct ggml_context *nodes; /* owned: nodes that set the next apart */
};

/* Attention of our own in place of llama.cpp's flash attention. */
enum { LAYERSKIP_ITEMS = 16 }; /* of a node's work, up to which threads share what an item takes */
struct layerskip_partial;
struct layerskip_attend {
    bool on;                            /* set by the owner before the first decode */
    int32_t replaced;                   /* attentions of the last graph that are ours */
    int64_t room;                       /* partials that there is memory for */
    struct layerskip_partial *partials; /* (room,) owned: what segments of cells come to */
    int32_t done[LAYERSKIP_ITEMS];      /* of an item's segments */
    bool wide;                          /* it may use AVX-512, likewise; off where the processor has none */
    int64_t claimed;                    /* tiles of the node at hand that a thread has begun, or found at an end */
    struct ggml_context *nodes;         /* owned: scratch */
};

/*
 * One per llama_context, zeroed before its first use, owned by whoever owns the context. It
 * remembers the mask that the context's last graph was built with, because llama.cpp reuses that
 * graph while the batch keeps its shape.
 */
struct layerskip_state {
    uint64_t built[LAYERSKIP_WORDS];
    int32_t built_alone;       /* LAYERSKIP_TOGETHER and so on */
    struct ggml_cgraph *graph; /* that last graph, llama.cpp's; NULL = unknown */
    struct ggml_tensor *inputs[LAYERSKIP_INPUTS]; /* some of what it reads, NULL behind the last; valid as long as graph */
    bool bidirectional;        /* the context attends in both directions, and takes no mask; set by the owner */
    bool failed;               /* the last decode did: llama.cpp's graph must not be used again */
    struct layerskip_report report;
    struct layerskip_stream *stream; /* NULL = nobody reads it; the owner's, outlives the context */
    struct layerskip_output output;
    const struct layerskip_neurons *neurons[LAYERSKIP_CHOICES]; /* by number, NULL = none; the owner's */
    struct layerskip_watch watch;
    bool built_watched; /* the last graph has its steps */
    struct layerskip_gates gates;
    struct layerskip_plan plan;
    struct layerskip_local local;
    struct layerskip_attend attend;
};

/* ---- what each system does in its own way: hook_linux.c, hook_darwin.c, hook_windows.c ---- */

/* Opens libllama by its absolute path, in UTF-8. It is never closed. NULL: *why says why, until the next call. */
void *layerskip_open(const char *path, const char **why);

/* The function of this name in the opened libllama, or in a library that it needs; NULL = there is none. */
void *layerskip_function(void *libllama, const char *name);

/* The same from any address within a library's code on. */
void *layerskip_function_near(const void *address, const char *name);

/*
 * Has libllama's calls of a function of another library reach this one. Call it before libllama has
 * called any. Returns NULL, or why they do not reach it.
 */
const char *layerskip_divert(void *libllama, const char *name, void *function);

/* ---- masks ---- */

/*
 * Finds the real functions in the opened libllama. Returns NULL, or the name of the first function
 * that is missing. Call it once, before any decode.
 */
const char *layerskip_init(void *libllama);

/*
 * True if the opened libllama lays out tensors as llama_api.h does: it has the library make an ADD
 * and a view, and looks for their parts. Masks must not be used where it does not.
 */
bool layerskip_fits(void *libllama);

/* Puts the hook in the way of the opened libllama's graphs. NULL, or why it is not: then only empty masks can be decoded. */
const char *layerskip_hook(void *libllama);

/*
 * llama_decode under a mask of LAYERSKIP_WORDS words, kept by the caller and read only during the
 * call. With rows other than NULL each row has its own mask, and mask is what all of them skip; then
 * llama.cpp must compute the rows in the batch's order, and the batch must say whose outputs are wanted.
 * alone says what is computed as if each token came in a batch of its own: LAYERSKIP_TOGETHER to
 * LAYERSKIP_PRODUCTS_ALONE. Returns llama_decode's result or one of the codes above; after
 * LAYERSKIP_REFUSED and LAYERSKIP_BROKEN nothing was computed. Contexts may decode at
 * the same time in different threads, each with its own state.
 */
int32_t layerskip_decode(struct layerskip_state *state, struct llama_context *ctx, struct llama_batch batch,
                         const uint64_t *mask, const struct layerskip_rows *rows, int32_t alone);

/* Whether this processor has what attention of our own needs. */
bool layerskip_attends(void);

/* Whether libllama's computations pass the hook, without which attention cannot be local. */
bool layerskip_sees_computations(void);

/* What the owner of a context tells of changes of its KV cache besides decodes, after they were made; as llama.cpp's
 * functions of the like, from inclusive, to exclusive, seq < 0 for all sequences. */
void layerskip_forget_cells(struct layerskip_state *state, int32_t seq, int32_t from, int32_t to);
void layerskip_copy_cells(struct layerskip_state *state, int32_t src, int32_t dst, int32_t from, int32_t to);

/* For a copy of a sequence that is made now; NULL: no memory. And that the copy was put into a sequence; saved may be NULL. */
struct layerskip_saved *layerskip_save_cells(const struct layerskip_state *state, int32_t seq);
void layerskip_restore_cells(struct layerskip_state *state, int32_t seq, const struct layerskip_saved *saved);

/* Frees what the state owns, after its llama_context. */
void layerskip_free(struct layerskip_state *state);

/* The functions of these names in libggml-base, taken over. */
bool ggml_backend_sched_alloc_graph(struct ggml_backend_sched *sched, struct ggml_cgraph *graph);
int ggml_backend_sched_graph_compute_async(struct ggml_backend_sched *sched, struct ggml_cgraph *graph);

#ifdef __linux__ /* elsewhere no function can come before one that a library has itself */

/* The functions of these names in ggml's CPU module, taken over by rows.c. */
struct ggml_compute_params;
void ggml_compute_forward_flash_attn_ext(const struct ggml_compute_params *params, struct ggml_tensor *dst);
bool ggml_cpu_extra_compute_forward(struct ggml_compute_params *params, struct ggml_tensor *dst);
void ggml_compute_forward_mul_mat(const struct ggml_compute_params *params, struct ggml_tensor *dst);
bool llamafile_sgemm(const struct ggml_compute_params *params, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda,
                     const void *b, int64_t ldb, void *c, int64_t ldc, int a_type, int b_type, int c_type);
bool ggml_cpu_iqp_supports_mul_mat(const struct ggml_tensor *dst);
bool ggml_cpu_iqp_supports_mul_mat_id(const struct ggml_tensor *dst);

/* The functions of these names in libggml-base, taken over by memory.c. */
void *ggml_aligned_malloc(size_t size);
struct ggml_backend_buffer_type;
size_t ggml_backend_buft_get_alignment(struct ggml_backend_buffer_type *type);

/* In ggml's CPU module too, taken over by barrier.c. */
struct ggml_threadpool;
void ggml_barrier(struct ggml_threadpool *pool);

/* How long, in ns, threads of a pool have slept so far while they waited for others of it. */
int64_t layerskip_stalled(const struct ggml_threadpool *pool);

#endif

#endif
