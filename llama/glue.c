#include "glue.h"
#include "faults.h"
#include "lanes.h"
#include "shortlist.h"
#include "neurons.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct gallop_api gallop_api;

/* ---- opening ---- */

static bool sentence(struct gallop_text *err, const char *before, const char *what, const char *after) {
    snprintf(err->text, sizeof err->text, "%s%s%s", before, what, after);
    return false;
}

/* Newer releases may return larger structs: room behind ours keeps them from writing over the stack. */
struct model_defaults {
    struct llama_model_params p;
    char room[512];
};
struct context_defaults {
    struct llama_context_params p;
    char room[512];
};

/* Compares the library's defaults with v0.5.0's, field by field across the whole struct: a field
 * that moved shows up as a default that is not its own. */
static const char *check_defaults(void) {
    const struct model_defaults m = ((struct model_defaults(*)(void))(void *)gallop_api.llama_model_default_params)();
    if (m.p.devices != NULL || m.p.tensor_buft_overrides != NULL || m.p.n_gpu_layers != -1 || m.p.split_mode != 1 ||
        m.p.load_mode != -1 || m.p.lazy_mode != 1 || m.p.main_gpu != 0 || m.p.tensor_split != NULL ||
        m.p.progress_callback != NULL || m.p.kv_overrides != NULL || m.p.vocab_only || m.p.check_tensors ||
        !m.p.use_extra_bufts || m.p.no_host || m.p.no_alloc || m.p.load_mtp) {
        return "llama_model_params";
    }
    const struct context_defaults c = ((struct context_defaults(*)(void))(void *)gallop_api.llama_context_default_params)();
    if (c.p.n_ctx != 512 || c.p.n_batch != 2048 || c.p.n_ubatch != 512 || c.p.n_seq_max != 1 || c.p.n_threads != 4 ||
        c.p.n_threads_batch != 4 || c.p.rope_scaling_type != -1 || c.p.pooling_type != -1 || c.p.attention_type != -1 ||
        c.p.flash_attn_type != -1 || c.p.yarn_ext_factor != -1 || c.p.defrag_thold != -1 || c.p.cb_eval != NULL ||
        c.p.type_k != 1 || c.p.type_v != 1 || c.p.abort_callback != NULL || c.p.embeddings || !c.p.offload_kqv ||
        !c.p.no_perf || !c.p.op_offload || !c.p.swa_full || c.p.kv_unified || c.p.samplers != NULL ||
        c.p.n_samplers != 0 || c.p.ctx_other != NULL) {
        return "llama_context_params";
    }
    struct ggml_threadpool_params t;
    memset(&t, 1, sizeof t);
    ((void (*)(struct ggml_threadpool_params *, int))(void *)gallop_api.ggml_threadpool_params_init)(&t, 3);
    if (t.n_threads != 3 || t.prio != 0 || t.poll != 50 || t.strict_cpu || t.paused || memchr(t.cpumask, 1, sizeof t.cpumask) != NULL) {
        return "ggml_threadpool_params";
    }
    return NULL;
}

static void catch_uncaught(void *lib);

/* The name that a function has in the library: C++ compilers write types in different ways. */
static const char *exported(const char *name) {
#ifdef _WIN32
    if (strcmp(name, "_ZNK11llama_model10get_tensorEPKc") == 0) {
        return "?get_tensor@llama_model@@QEBAPEBUggml_tensor@@PEBD@Z";
    }
#endif
    return name;
}

const char *gallop_unhooked;

bool gallop_open(const char *path, struct gallop_text *err) {
    const char *why;
    void *lib = layerskip_open(path, &why);
    if (lib == NULL) {
        return sentence(err, "", why, "");
    }
    const struct {
        const char *name;
        void **slot;
    } wanted[] = {
#define GALLOP_SLOT(result, name, params, args) {#name, (void **)&gallop_api.name},
        LLAMA_API_FUNCTIONS(GALLOP_SLOT)};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        *wanted[i].slot = layerskip_function(lib, exported(wanted[i].name));
        if (*wanted[i].slot == NULL) {
            return sentence(err, "it has no function ", wanted[i].name, "");
        }
    }
    const char *differs = check_defaults();
    if (differs != NULL) {
        return sentence(err, "its ", differs, " has another layout");
    }
    if (!layerskip_fits(lib)) {
        return sentence(err, "its ", "ggml_tensor", " has another layout");
    }
    const char *missing = layerskip_init(lib);
    if (missing != NULL) {
        return sentence(err, "it has no function ", missing, "");
    }
    gallop_unhooked = layerskip_hook(lib);
    catch_uncaught(lib);
    gallop_count_allocations(lib);
    gallop_catch_faults();
    return true;
}

/* ---- log and errors ---- */

void gallopLog(int level, char *text); /* in log.go */

/* The first error that llama.cpp logged on this thread since it was emptied: later ones only say
 * that the caller failed too. */
static _Thread_local char first_error[GALLOP_TEXT];

static void log_callback(int level, const char *text, void *user_data) {
    (void)user_data;
    if (level == GGML_LOG_ERROR && first_error[0] == '\0') {
        snprintf(first_error, sizeof first_error, "%s", text);
    }
    gallopLog(level, (char *)text);
}

/* Does what may end in one of the handlers below, which then end the call alone, with their reason as the
 * error. They jump over llama.cpp's frames, so what the call had allocated is lost: our own checks are to
 * find first what leads here. Not for what computes, as other threads would wait for this one. What the call
 * assigns to is volatile. */
#define GUARDED(call)                   \
    do {                                \
        jmp_buf here;                   \
        if (GALLOP_SETJMP(here) == 0) { \
            gallop_guard = &here;       \
            call;                       \
        }                               \
        gallop_guard = NULL;            \
    } while (0)

_Thread_local jmp_buf *gallop_guard;
static atomic_int escapes;

int gallop_escapes(void) { return atomic_load(&escapes); }

_Noreturn void gallop_leave(const char *why) {
    atomic_fetch_add(&escapes, 1);
    if (first_error[0] == '\0') {
        snprintf(first_error, sizeof first_error, "%s", why);
    }
    longjmp(*gallop_guard, 1);
}

#ifdef _WIN32
enum { SEPARATOR = '\\' }; /* of a path */
#else
enum { SEPARATOR = '/' };
#endif

/* llama.cpp has met what it does not go on from, such as a GPU's error. A process that aborts would
 * print the state of all its threads instead of the reason. */
static void on_abort_of_library(const char *message) {
    const char *source = strrchr(message, SEPARATOR); /* the folder is that of whoever built it */
    message = source != NULL ? source + 1 : message;
    if (gallop_guard != NULL) {
        gallop_leave(message);
    }
    const char *why = first_error[0] != '\0' ? first_error : message;
    fprintf(stderr, "gallop: llama.cpp cannot go on: %.*s%s\n", (int)strcspn(why, "\n"), why,
            strstr(why, "unsupported toolchain") != NULL
                ? ": the GPU's driver is older than the CUDA that libggml-cuda.so was built with; update the driver, or use --ngl 0 or Vulkan"
            : strstr(why, "CUDA") != NULL || strstr(why, "vk::") != NULL ? " (--ngl 0 does without the GPU)"
                                                                       : "");
    _Exit(1);
}

/* llama.cpp has thrown what nobody catches. */
static void on_uncaught(void) {
    on_abort_of_library("an exception that it does not catch");
}

/* The C++ library's std::set_terminate. */
static void catch_uncaught(void *lib) {
    typedef void handler(void);
    handler *(*set_terminate)(handler *) = (handler * (*)(handler *))(uintptr_t)layerskip_function(lib, "_ZSt13set_terminatePFvvE");
    if (set_terminate != NULL) {
        set_terminate(on_uncaught);
    }
}

void gallop_log_to_go(void) {
    gallop_api.llama_log_set(log_callback, NULL);
    gallop_api.ggml_set_abort_callback(on_abort_of_library);
}

static void take_error(struct gallop_text *err) { memcpy(err->text, first_error, sizeof first_error); }

/* ---- long calls ---- */

static bool on_progress(float progress, void *watch) {
    struct gallop_watch *w = watch;
    atomic_store(&w->progress, progress);
    return !atomic_load(&w->stop);
}

static bool on_abort(void *watch) {
    struct gallop_watch *w = watch;
    return atomic_load(&w->stop) || atomic_load(&w->pause);
}

struct ggml_backend_device *gallop_no_devices[1];

struct ggml_backend_reg *gallop_load_backend(const char *path, struct gallop_text *err) {
    first_error[0] = '\0';
    struct ggml_backend_reg *module = gallop_api.ggml_backend_load(path);
    take_error(err);
    return module;
}

bool gallop_has_rpc(void) { return ggml_backend_reg_by_name("RPC") != NULL; }

bool gallop_add_rpc(const char *endpoint, struct gallop_text *err) {
    struct ggml_backend_reg *rpc = ggml_backend_reg_by_name("RPC");
    struct ggml_backend_reg *(*add)(const char *) =
        (struct ggml_backend_reg * (*)(const char *)) ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server");
    struct ggml_backend_reg *volatile server = NULL;
    first_error[0] = '\0';
    if (add != NULL) {
        GUARDED(server = add(endpoint));
    }
    take_error(err);
    if (server != NULL) {
        gallop_api.ggml_backend_register(server);
    }
    return server != NULL;
}

struct llama_model *gallop_load_model(const char *path, struct llama_model_params p, struct gallop_watch *watch,
                                      struct gallop_text *err) {
    p.progress_callback = on_progress;
    p.progress_callback_user_data = watch;
    first_error[0] = '\0';
    struct llama_model *volatile m = NULL;
    GUARDED(m = gallop_api.llama_model_load_from_file(path, p));
    take_error(err);
    return m;
}

struct llama_context *gallop_new_context(struct llama_model *m, struct llama_context_params p, struct gallop_watch *watch,
                                         struct gallop_text *err) {
    p.abort_callback = on_abort;
    p.abort_callback_data = watch;
    first_error[0] = '\0';
    struct llama_context *volatile c = NULL;
    GUARDED(c = gallop_api.llama_init_from_model(m, p));
    take_error(err);
    return c;
}

struct llama_adapter_lora *gallop_load_lora(struct llama_model *m, const char *path, struct gallop_text *err) {
    first_error[0] = '\0';
    struct llama_adapter_lora *volatile a = NULL;
    GUARDED(a = gallop_api.llama_adapter_lora_init(m, path));
    take_error(err);
    return a;
}

int32_t gallop_tokenize(const struct llama_vocab *v, const char *text, int32_t len, llama_token *out, int32_t max,
                        bool add_special, bool parse_special, struct gallop_text *err) {
    first_error[0] = '\0';
    volatile int32_t n = GALLOP_ESCAPED;
    GUARDED(n = gallop_api.llama_tokenize(v, text, len, out, max, add_special, parse_special));
    take_error(err);
    return n;
}

/* ---- memory ---- */

const void *gallop_weight(const struct llama_model *m, const char *name, size_t *size) {
    const struct ggml_tensor *t = gallop_api._ZNK11llama_model10get_tensorEPKc(m, name);
    if (t == NULL || t->buffer == NULL) {
        return NULL;
    }
    /* Plain buffers name no device. Those of repacked weights claim not to be the host's, but are the CPU's. */
    struct ggml_backend_buffer_type *type = gallop_api.ggml_backend_buffer_get_type(t->buffer);
    struct ggml_backend_device *d = gallop_api.ggml_backend_buft_get_device(type);
    *size = gallop_api.ggml_backend_buft_get_alloc_size(type, t);
    return d == NULL || gallop_api.ggml_backend_dev_type(d) == GGML_DEVICE_CPU ? t->data : NULL;
}

void gallop_set_weight(const struct llama_model *m, const char *name, uintptr_t data, size_t size) {
    struct ggml_tensor *t = (struct ggml_tensor *)gallop_api._ZNK11llama_model10get_tensorEPKc(m, name);
    gallop_api.ggml_backend_tensor_set(t, (const void *)data, 0, size);
}

struct llama_sampler *gallop_new_grammar(const struct llama_vocab *v, const char *grammar, struct gallop_text *err) {
    first_error[0] = '\0';
    gallop_hold_stderr();
    struct llama_sampler *volatile s = NULL;
    GUARDED(s = gallop_api.llama_sampler_init_grammar(v, grammar, "root"));
    take_error(err);
    gallop_release_stderr(s == NULL ? err : NULL);
    return s;
}

/* ---- the residual stream ---- */

/* Copies t's rows, behind those that are there, out of whatever device they are on. Where that cannot
 * be, nothing is known of any. */
static void append_rows(struct gallop_rows *r, const struct ggml_tensor *t) {
    const int64_t had = r->n, n = t->ne[1] * t->ne[2] * t->ne[3];
    const size_t row = (size_t)t->ne[0] * sizeof(float), size = row * (size_t)(had + n);
    r->n = 0;
    if (t->type != GGML_TYPE_F32 || n == 0 || t->nb[0] != sizeof(float) || t->nb[1] != row ||
        t->nb[2] != row * (size_t)t->ne[1] || t->nb[3] != t->nb[2] * (size_t)t->ne[2] || (had > 0 && t->ne[0] != r->width)) {
        return;
    }
    if (size > r->size) {
        float *larger = realloc(r->data, size);
        if (larger == NULL) {
            return;
        }
        r->data = larger;
        r->size = size;
    }
    gallop_api.ggml_backend_tensor_get(t, r->data + had * t->ne[0], 0, row * (size_t)n);
    r->n = had + n;
    r->width = t->ne[0];
}

/* The same in place of those that are there. */
static void read_rows(struct gallop_rows *r, const struct ggml_tensor *t) {
    r->n = 0;
    append_rows(r, t);
}

/* Adds 1 - cos(a, b) of each pair of rows. Sides that are unknown or of different rows add nothing,
 * nor does a row of zeros, which has no direction. */
static void add_turn(struct gallop_angle_sum *turn, const struct gallop_rows *a, const struct gallop_rows *b) {
    if (a->n != b->n || a->width != b->width) {
        return;
    }
    for (int64_t i = 0; i < a->n; i++) {
        const float *x = a->data + i * a->width, *y = b->data + i * b->width;
        double xx = 0, yy = 0, xy = 0;
        for (int64_t k = 0; k < a->width; k++) {
            xx += (double)x[k] * x[k];
            yy += (double)y[k] * y[k];
            xy += (double)x[k] * y[k];
        }
        if (xx > 0 && yy > 0) {
            turn->sum += 1 - xy / (sqrt(xx) * sqrt(yy));
            turn->n++;
        }
    }
}

/* The first layer from `layer` on that adds to the stream; the number of layers if there is none. */
static int next_layer(const struct layerskip_stream *s, int layer) {
    while (layer < s->n_layer && s->out[layer] == NULL) {
        layer++;
    }
    return layer;
}

/* To the start of a graph. */
static void rewind_influence(struct gallop_influence *in) {
    in->layer = next_layer(&in->stream, 0);
    in->before.n = in->middle.n = in->after.n = 0;
}

/* A layer has ended: its output is the next one's input. */
static void end_layer(struct gallop_influence *in) {
    const int layer = in->layer;
    in->layer = next_layer(&in->stream, layer + 1);
    add_turn(&in->whole[layer], &in->before, &in->after);
    add_turn(&in->feed_forward[layer], &in->middle, &in->after);
    const struct gallop_rows free_rows = in->before;
    in->before = in->after;
    in->after = free_rows;
    in->middle.n = 0;
    if (in->layer == in->stream.n_layer) {
        rewind_influence(in); /* what is left of the batch runs through the same graph */
    }
}

/* ggml's question before each node (ask: is its result wanted?) and, if it was, its report when the
 * node is done, before anything else can write over the result. False then would end the graph. */
static bool on_eval(struct ggml_tensor *t, bool ask, void *influence) {
    struct gallop_influence *in = influence;
    const struct layerskip_stream *s = &in->stream;
    in->layer = next_layer(s, in->layer);
    if (in->layer >= s->n_layer) {
        return !ask;
    }
    const bool input = t == s->input || t == s->rows;
    const bool cut = t == s->cut[in->layer], out = t == s->out[in->layer];
    if (ask) {
        if ((cut || out) && in->layer == next_layer(s, 0) && in->before.n == 0) {
            read_rows(&in->before, s->input); /* no node: the batch's own embeddings, still unread */
        }
        return input || cut || out;
    }
    if (input) {
        read_rows(&in->before, t);
    } else if (cut) {
        read_rows(&in->middle, t);
        add_turn(&in->attention[in->layer], &in->before, &in->middle);
    } else if (out) {
        read_rows(&in->after, t);
        end_layer(in);
    }
    return true;
}

bool gallop_measure_influence(struct gallop_context *c, struct llama_context_params *p) {
    c->influence = calloc(1, sizeof *c->influence);
    if (c->influence == NULL) {
        return false;
    }
    c->skip.stream = &c->influence->stream;
    p->cb_eval = (void *)on_eval;
    p->cb_eval_user_data = c->influence;
    return true;
}

void gallop_reset_influence(struct gallop_influence *in) {
    memset(in->attention, 0, sizeof in->attention);
    memset(in->feed_forward, 0, sizeof in->feed_forward);
    memset(in->whole, 0, sizeof in->whole);
}

/* As on_eval. The last layer's output is no other's input. */
static bool on_layer(struct ggml_tensor *t, bool ask, void *inputs) {
    struct gallop_inputs *in = inputs;
    const struct layerskip_stream *s = &in->stream;
    in->layer = next_layer(s, in->layer);
    if (in->layer >= s->n_layer - 1) {
        in->layer = next_layer(s, 0); /* what is left of the batch runs through the same graph */
    }
    if (!in->wanted || in->layer >= s->n_layer - 1 || t != s->out[in->layer]) {
        return !ask;
    }
    if (!ask) {
        append_rows(&in->after[in->layer++], t);
    }
    return true;
}

bool gallop_read_inputs(struct gallop_context *c, struct llama_context_params *p) {
    c->inputs = calloc(1, sizeof *c->inputs);
    if (c->inputs == NULL) {
        return false;
    }
    c->skip.stream = &c->inputs->stream;
    p->cb_eval = (void *)on_layer;
    p->cb_eval_user_data = c->inputs;
    return true;
}

/* To the start of a batch. */
static void rewind_inputs(struct gallop_inputs *in) {
    in->layer = 0;
    for (int layer = 0; layer < LAYERSKIP_MAX_LAYERS; layer++) {
        in->after[layer].n = 0;
    }
}

/* ---- threads ---- */

/* Not called by libllama's name: they are in whichever CPU module suits the machine. */
typedef struct ggml_threadpool *new_pool(struct ggml_threadpool_params *);
typedef void free_pool(struct ggml_threadpool *);

void *gallop_cpu_function(const char *name) {
    struct ggml_backend_reg *cpu_module = ggml_backend_reg_by_name("CPU");
    return cpu_module == NULL ? NULL : ggml_backend_reg_get_proc_address(cpu_module, name);
}

/* How long threads of a pool have slept so far; 0 where barrier.c is not there. */
static int64_t stalled(const struct ggml_threadpool *pool) {
#ifdef __linux__
    return layerskip_stalled(pool);
#else
    (void)pool;
    return 0;
#endif
}

void gallop_set_threads(struct gallop_context *c, struct llama_context *ctx, int32_t n, int32_t n_batch) {
    llama_set_n_threads(ctx, n, n_batch);
    const int32_t most = n > n_batch ? n : n_batch;
    new_pool *make = (new_pool *)gallop_cpu_function("ggml_threadpool_new");
    struct gallop_pool *larger = make == NULL || (c->pools != NULL && most <= c->pools->n_threads) ? NULL : malloc(sizeof *larger);
    if (larger == NULL) {
        return; /* what there is serves, or llama.cpp makes threads for each graph */
    }
    struct ggml_threadpool_params p;
    ggml_threadpool_params_init(&p, most);
    p.poll = 0;
    *larger = (struct gallop_pool){.pool = make(&p), .n_threads = most, .smaller = c->pools};
    if (larger->pool == NULL) {
        free(larger);
        return;
    }
    larger->stalled = stalled(larger->pool);
    llama_attach_threadpool(ctx, larger->pool, larger->pool);
    c->pools = larger;
}

static void free_pools(struct gallop_pool *p) {
    free_pool *const release = (free_pool *)gallop_cpu_function("ggml_threadpool_free");
    while (p != NULL) {
        struct gallop_pool *smaller = p->smaller;
        release(p->pool);
        free(p);
        p = smaller;
    }
}

int64_t gallop_stalled(const struct gallop_context *c) {
    return c->pools == NULL ? 0 : stalled(c->pools->pool) - c->pools->stalled;
}

void gallop_free_context(struct gallop_context *c) {
    free_pools(c->pools);
    layerskip_free(&c->skip);
    gallop_use_shortlist(c, NULL, 0);
    gallop_measure_activity(c, NULL, 0, 0, 0);
    if (c->inputs != NULL) {
        for (int layer = 0; layer < LAYERSKIP_MAX_LAYERS; layer++) {
            free(c->inputs->after[layer].data);
        }
        free(c->inputs);
    }
    if (c->influence != NULL) {
        free(c->influence->before.data);
        free(c->influence->middle.data);
        free(c->influence->after.data);
        free(c->influence);
    }
    free(c);
}

struct layerskip_rows *gallop_new_rows(int32_t n_tokens, int32_t n_masks) {
    const size_t masks = (size_t)n_masks * LAYERSKIP_WORDS * sizeof(uint64_t);
    struct layerskip_rows *rows = calloc(1, sizeof *rows + masks + (size_t)n_tokens * sizeof(int32_t));
    if (rows != NULL) {
        rows->masks = (uint64_t *)(rows + 1);
        rows->mask_of = (int32_t *)((char *)(rows + 1) + masks);
    }
    return rows;
}

int32_t gallop_decode(struct gallop_context *c, struct llama_context *ctx, struct llama_batch batch, const uint64_t *mask,
                      const struct layerskip_rows *rows, int32_t alone) {
    enum { ABORTED = 2 }; /* llama_decode's own number */
    if (atomic_load(&c->watch.stop)) {
        return ABORTED;
    }
    first_error[0] = '\0';
    if (c->influence != NULL) {
        rewind_influence(c->influence); /* the decode before may have been aborted in the middle */
    }
    if (c->inputs != NULL) {
        rewind_inputs(c->inputs);
    }
    const int32_t result = layerskip_decode(&c->skip, ctx, batch, mask, rows, alone);
    if (result != 0) {
        take_error(&c->err);
    }
    return result;
}

/* ---- sampling ---- */

static llama_token most_likely(const float *logits, int32_t n_vocab) {
    const float top = largest(logits, n_vocab);
    for (int32_t i = 0; i < n_vocab; i++) {
        if (logits[i] == top) {
            return i;
        }
    }
    return 0; /* they are no numbers */
}

enum { GROUP = 64, MOST_TOP_K = 256 };

/* A number that at least k of the logits reach: the k-th largest maximum of groups of neighbours. -infinity
 * where that is no help. */
static float reached_by(const float *logits, int32_t n_vocab, int32_t k) {
    float tops[MOST_TOP_K]; /* descending */
    if (k <= 0 || k > MOST_TOP_K || n_vocab / GROUP < 3 * k) {
        return -INFINITY;
    }
    int32_t n = 0;
    for (int32_t g = 0; g < n_vocab; g += GROUP) {
        const float top = largest(logits + g, n_vocab - g < GROUP ? n_vocab - g : GROUP);
        if (isnan(top)) {
            return -INFINITY;
        }
        if (n == k && top <= tops[k - 1]) {
            continue;
        }
        int32_t at = n < k ? n++ : k - 1;
        for (; at > 0 && tops[at - 1] < top; at--) {
            tops[at] = tops[at - 1];
        }
        tops[at] = top;
    }
    return tops[k - 1];
}

/* Puts what the first step may keep of the logits into items, in their order, and returns how many. Most of a
 * large vocabulary is never copied then. */
static size_t candidates(const struct gallop_steps *s, const float *logits, struct llama_token_data *items, int32_t n_vocab) {
    const float least = reached_by(logits, n_vocab, s->top_k);
    size_t n = 0;
    for (int32_t g = 0; g < n_vocab; g += GROUP) {
        const int32_t end = n_vocab - g < GROUP ? n_vocab : g + GROUP;
        if (least > -INFINITY && largest(logits + g, end - g) < least) {
            continue;
        }
        for (int32_t i = g; i < end; i++) {
            if (logits[i] >= least && logits[i] > -INFINITY) { /* with a bias of +inf, -inf were no number */
                items[n++] = (struct llama_token_data){.id = i, .logit = logits[i], .p = 0};
            }
        }
    }
    return n;
}

/* What a grammar may allocate for one token, as counted in faults.h: usual ones take a few for each of a
 * vocabulary's tokens to see what may follow, and some hundred to go on behind one. An ambiguous one can be
 * read in twice as many ways with each character; each way behind a token is compared with all others. */
enum { LOOK_AHEAD = 16, LOOK_AHEAD_LEAST = 1 << 20, GO_ON = 1 << 16 };

/* What grammar and chain leave of the logits: no token that the grammar forbids, which has -inf then. */
static struct llama_token_data_array leave(struct gallop_steps *s, const float *logits,
                                           struct llama_token_data *items, int32_t n_vocab) {
    struct llama_token_data_array a = {
        .data = items, .size = candidates(s, logits, items, n_vocab), .selected = -1, .sorted = false};
    if (s->grammar != NULL) {
        volatile bool applied = false;
        gallop_allowance = LOOK_AHEAD_LEAST + LOOK_AHEAD * (uint64_t)n_vocab;
        GUARDED(if (!s->lost) gallop_api.llama_sampler_apply(s->grammar, &a); applied = !s->lost);
        gallop_allowance = 0;
        if (!applied) {
            s->lost = true;
            a.size = 0; /* what is left may be forbidden */
        }
        size_t allowed = 0;
        for (size_t i = 0; i < a.size; i++) {
            if (a.data[i].logit > -INFINITY) {
                a.data[allowed++] = a.data[i];
            }
        }
        a.size = allowed;
    }
    if (a.size > 0) { /* llama.cpp asserts that */
        gallop_api.llama_sampler_apply(s->chain, &a);
    }
    return a;
}

/* The place of the likeliest; -1 = no token has a chance, and drawing from none fails an assertion of some builds. */
static int64_t likeliest(const struct llama_token_data_array *a) {
    int64_t best = -1;
    float top = -INFINITY;
    for (size_t i = 0; i < a->size; i++) {
        if (a->data[i].logit > top) {
            top = a->data[i].logit;
            best = (int64_t)i;
        }
    }
    return best;
}

bool gallop_allows(struct llama_sampler *grammar, llama_token t) {
    struct llama_token_data item = {.id = t};
    struct llama_token_data_array a = {.data = &item, .size = 1, .selected = -1, .sorted = false};
    volatile bool applied = false;
    gallop_allowance = LOOK_AHEAD_LEAST;
    GUARDED(gallop_api.llama_sampler_apply(grammar, &a); applied = true);
    gallop_allowance = 0;
    return applied && item.logit > -__builtin_inff();
}

void gallop_follow(struct gallop_steps *s, llama_token t) {
    if (s->grammar != NULL && !s->lost) {
        volatile bool followed = false;
        gallop_allowance = GO_ON;
        GUARDED(gallop_api.llama_sampler_accept(s->grammar, t); followed = true);
        gallop_allowance = 0;
        s->lost = !followed;
    }
}

llama_token gallop_sample(struct gallop_steps *s, const float *logits, struct llama_token_data *items, int32_t n_vocab) {
    if (items == NULL) {
        return most_likely(logits, n_vocab);
    }
    struct llama_token_data_array a = leave(s, logits, items, n_vocab);
    a.selected = likeliest(&a);
    if (a.selected < 0) {
        return LLAMA_TOKEN_NULL;
    }
    if (s->draw != NULL && a.data[a.selected].logit < INFINITY) { /* next to an infinite logit no other has a chance */
        gallop_api.llama_sampler_apply(s->draw, &a);
    }
    return a.data[a.selected].id;
}

int32_t gallop_distribute(struct gallop_steps *s, const float *logits, struct llama_token_data *items, int32_t n_vocab) {
    const struct llama_token_data_array a = leave(s, logits, items, n_vocab);
    const int64_t best = likeliest(&a);
    if (best < 0) {
        return 0;
    }
    const float top = a.data[best].logit;
    if (s->draw == NULL || top == INFINITY) { /* next to an infinite logit no other has a chance */
        items[0] = (struct llama_token_data){.id = a.data[best].id, .logit = top, .p = 1};
        return 1;
    }
    double sum = 0;
    int32_t n = 0;
    for (size_t i = 0; i < a.size; i++) {
        const float share = expf(a.data[i].logit - top);
        if (share > 0) { /* not for -inf */
            sum += share;
            items[n] = a.data[i];
            items[n++].p = share;
        }
    }
    for (int32_t i = 0; i < n; i++) {
        items[i].p = (float)(items[i].p / sum);
    }
    return n;
}

/* e^x for x <= 0, as 2^whole * 2^part; what is below e^-87 is 0. */
static floats exp_each(floats x) {
    const ints large = x > -87.0f; /* all bits set, or none */
    const floats y = (floats)((ints)x & large) * 1.44269504f;
    const ints whole = __builtin_convertvector(y - 0.5f, ints);
    const floats part = y - __builtin_convertvector(whole, floats); /* -0.5 to 0.5 */
    floats power = part * 1.5403530e-4f + 1.3333558e-3f; /* 2^part by its Taylor series */
    power = power * part + 9.6181291e-3f;
    power = power * part + 5.5504109e-2f;
    power = power * part + 2.4022651e-1f;
    power = power * part + 6.9314718e-1f;
    power = power * part + 1.0f;
    return (floats)((ints)(power * (floats)((whole + 127) << 23)) & large);
}

struct gallop_top gallop_top_probability(const float *logits, int32_t n_vocab) {
    enum { RUN = 64 * LANES }; /* few enough summed in float to lose nothing that counts */
    const llama_token token = most_likely(logits, n_vocab);
    const float top = logits[token];
    double sum = 0;
    for (int32_t start = 0; start < n_vocab; start += RUN) {
        const int32_t end = n_vocab - start < RUN ? n_vocab : start + RUN;
        floats sums = {0};
        for (int32_t i = start; i < end; i += LANES) {
            sums += exp_each(load(logits + i, end - i) - top);
        }
        for (int lane = 0; lane < LANES; lane++) {
            sum += sums[lane];
        }
    }
    return (struct gallop_top){token, 1 / sum};
}
