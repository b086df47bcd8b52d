/* The C side of package llama: the opened library's functions under their own names, and the few
 * helpers that Go cannot do over cgo alone. */
#ifndef GALLOP_GLUE_H
#define GALLOP_GLUE_H

#include "layerskip.h"
#include "llama_api.h"

#include <stdatomic.h>

#define GALLOP_POINTER(result, name, params, args) result(*name) params;
extern struct gallop_api {
    LLAMA_API_FUNCTIONS(GALLOP_POINTER)
} gallop_api;

#define GALLOP_CALL(result, name, params, args)                                                                         \
    static inline result name params {                                                                                  \
        return gallop_api.name args;                                                                                    \
    }
LLAMA_API_FUNCTIONS(GALLOP_CALL)

enum { GALLOP_TEXT = 512 };

/* A sentence from C, owned by the caller. */
struct gallop_text {
    char text[GALLOP_TEXT];
};

/* Opens libllama at path and fills gallop_api. False: err says why. Once per process. */
bool gallop_open(const char *path, struct gallop_text *err);

/* Why masks cannot be used with the opened library; NULL = they can. */
extern const char *gallop_unhooked;

/* A function of the CPU module's that is in its registry under this name; NULL = it has none. */
void *gallop_cpu_function(const char *name);

/* Sends llama.cpp's log to Go. */
void gallop_log_to_go(void);

/* Watched by C during a long call, written by Go; owned by Go through malloc. */
struct gallop_watch {
    _Atomic float progress; /* 0 to 1 */
    atomic_bool stop;
    atomic_bool pause; /* stops decodes as well; they are done again later */
};

static inline float gallop_watch_progress(struct gallop_watch *w) { return atomic_load(&w->progress); }
static inline void gallop_watch_stop(struct gallop_watch *w, bool stop) { atomic_store(&w->stop, stop); }
static inline bool gallop_watch_stopped(struct gallop_watch *w) { return atomic_load(&w->stop); }
static inline void gallop_watch_pause(struct gallop_watch *w, bool pause) { atomic_store(&w->pause, pause); }

/* The bytes of a weight that the model computes with, and how many: rearranged ones can be more than the
 * file has. NULL when they are not in main memory. */
const void *gallop_weight(const struct llama_model *m, const char *name, size_t *size);

/* Sets a weight from its bytes in the file, which are repacked where it is. */
void gallop_set_weight(const struct llama_model *m, const char *name, uintptr_t data, size_t size);

/* Drops whole pages: those of a file are read again, others are zeros then. Other than 0: errno says why not.
 * Not on Windows. */
int gallop_drop(uintptr_t start, size_t size);

/* A model's list of devices that has none but the CPU. */
extern struct ggml_backend_device *gallop_no_devices[1];

/* As their namesakes in llama.cpp; where they return NULL, err holds the library's error. */
struct ggml_backend_reg *gallop_load_backend(const char *path, struct gallop_text *err);
/* Tells whether the RPC module is loaded. */
bool gallop_has_rpc(void);
/* Adds the devices of an RPC server, which has answered its handshake. The module keeps its own copy of endpoint. */
bool gallop_add_rpc(const char *endpoint, struct gallop_text *err);
struct llama_model *gallop_load_model(const char *path, struct llama_model_params p, struct gallop_watch *watch,
                                      struct gallop_text *err);
struct llama_context *gallop_new_context(struct llama_model *m, struct llama_context_params p, struct gallop_watch *watch,
                                         struct gallop_text *err); /* watch->stop and pause abort its decodes */
struct llama_adapter_lora *gallop_load_lora(struct llama_model *m, const char *path, struct gallop_text *err);
struct llama_sampler *gallop_new_grammar(const struct llama_vocab *v, const char *grammar, struct gallop_text *err);

/* llama.cpp's grammar parser writes its complaints to stderr and nowhere else. Between these two calls what is written
 * there is held back; other threads wait their turn. The first line goes into err, if given; otherwise it
 * was somebody else's, and all of it is passed on. */
void gallop_hold_stderr(void);
void gallop_release_stderr(struct gallop_text *err);

/* As llama_tokenize, but GALLOP_ESCAPED where llama.cpp fails over the text; err says why. */
enum { GALLOP_ESCAPED = INT32_MIN };
int32_t gallop_tokenize(const struct llama_vocab *v, const char *text, int32_t len, llama_token *out, int32_t max,
                        bool add_special, bool parse_special, struct gallop_text *err);

/* How often a call into llama.cpp had to be left in its middle, as it would have ended the process. */
int gallop_escapes(void);

/* Rows of the residual stream, copied to main memory. */
struct gallop_rows {
    float *data;  /* (n, width) owned; NULL = none yet */
    size_t size;  /* bytes that data has room for */
    int64_t n;    /* 0 = unknown */
    int64_t width;
};

/* How far layers or sublayers turn the stream: the sum over n rows of 1 - cos(before, after). */
struct gallop_angle_sum {
    double sum;
    int64_t n;
};

/* Measures block influence while unmasked decodes run; owned by its gallop_context. */
struct gallop_influence {
    struct layerskip_stream stream;          /* of the context's last graph */
    int32_t layer;                           /* that the running graph is in */
    struct gallop_rows before, middle, after; /* x, cut and out of that layer */
    struct gallop_angle_sum attention[LAYERSKIP_MAX_LAYERS], feed_forward[LAYERSKIP_MAX_LAYERS], whole[LAYERSKIP_MAX_LAYERS];
};

/* Reads what goes into each layer of unmasked decodes; owned by its gallop_context. */
struct gallop_inputs {
    struct layerskip_stream stream; /* of the context's last graph */
    bool wanted;                    /* of the decodes to come */
    int32_t layer;                  /* that the running graph is in */
    struct gallop_rows after[LAYERSKIP_MAX_LAYERS]; /* out of each layer but the last, for all tokens of the last batch */
};

/* ggml's threads, which wait for graphs. Smaller pools stay until the context is freed: llama.cpp pauses
 * the one that it used last when it first uses another. */
struct gallop_pool {
    struct ggml_threadpool *pool; /* owned */
    int32_t n_threads;            /* the one that decodes included */
    int64_t stalled;              /* ns; what layerskip_stalled gave when it was made */
    struct gallop_pool *smaller;  /* owned; NULL = none */
};

/* What a context needs in C memory beside llama.cpp's own part; zeroed at first, owned by Go through malloc. */
struct gallop_context {
    struct layerskip_state skip;
    struct gallop_watch watch;
    struct gallop_text err;
    struct gallop_influence *influence; /* NULL = not measured; owned */
    struct gallop_inputs *inputs;       /* NULL = not read; owned */
    struct gallop_listing *listing;     /* of shortlist.c; NULL = no shortlist; owned */
    struct gallop_activity *activity;   /* of neurons.c; NULL = not measured; owned */
    struct gallop_pool *pools;          /* the first is in use; NULL = llama.cpp makes threads for each graph; owned */
};

/* Makes c->influence and sets the callback that fills it into p, of the context to be made. False: no memory. */
bool gallop_measure_influence(struct gallop_context *c, struct llama_context_params *p);

/* Forgets what was measured. */
void gallop_reset_influence(struct gallop_influence *in);

/* Makes c->inputs and sets the callback that fills it into p, of the context to be made; not beside
 * influence. False: no memory. */
bool gallop_read_inputs(struct gallop_context *c, struct llama_context_params *p);

/* Sets the threads for single tokens and for batches, and has as many ready. Between decodes only. */
void gallop_set_threads(struct gallop_context *c, struct llama_context *ctx, int32_t n, int32_t n_batch);

/* How long, in ns, threads have slept so far while they waited for others: those had no core to run on. */
int64_t gallop_stalled(const struct gallop_context *c);

/* Frees c and what it owns, after its llama_context. */
void gallop_free_context(struct gallop_context *c);

/* The masks of a batch's rows, with room for so many of both, in one block that free() takes. NULL: no memory. */
struct layerskip_rows *gallop_new_rows(int32_t n_tokens, int32_t n_masks);

/* layerskip_decode. Where the result is not 0, c->err holds the library's error. */
int32_t gallop_decode(struct gallop_context *c, struct llama_context *ctx, struct llama_batch batch, const uint64_t *mask,
                      const struct layerskip_rows *rows, int32_t alone);

/* The steps that lead from logits to a token. */
struct gallop_steps {
    struct llama_sampler *grammar; /* owned; NULL = none */
    struct llama_sampler *chain;   /* owned; changes and cuts the logits */
    struct llama_sampler *draw;    /* owned; chooses by chance; NULL = the likeliest token */
    bool lost;                     /* the grammar's place is not known any more: no token is left */
    int32_t top_k;                 /* the first of all steps keeps so many of the largest logits; 0 = it is another one */
};

/* Has the grammar, if there is one, go on behind t, which was among what it left. Where that takes too
 * much, or fails, it is lost. */
void gallop_follow(struct gallop_steps *s, llama_token t);

/* Whether a grammar lets t come next. */
bool gallop_allows(struct llama_sampler *grammar, llama_token t);

/* Chooses from a row of logits (n_vocab,). items (n_vocab,) is scratch; NULL means that grammar,
 * chain and draw do nothing, so that the likeliest token is wanted. Returns LLAMA_TOKEN_NULL when no
 * token is left. Nothing is accepted. */
llama_token gallop_sample(struct gallop_steps *s, const float *logits, struct llama_token_data *items, int32_t n_vocab);

/* The tokens that grammar and chain leave of a row of logits, with their probabilities p, to the
 * front of items (n_vocab,), which is not NULL. Returns how many; the likeliest alone without draw.
 * Nothing is drawn or accepted. */
int32_t gallop_distribute(struct gallop_steps *s, const float *logits, struct llama_token_data *items, int32_t n_vocab);

/* The likeliest token of a row of logits (n_vocab,), n_vocab > 0, and its softmax probability p, which is
 * off by less than a millionth of it. */
struct gallop_top {
    llama_token token;
    double p;
};
struct gallop_top gallop_top_probability(const float *logits, int32_t n_vocab);

#endif
