/*
 * How long layerskip's edit of a graph takes, apart from all that llama.cpp does: llama's benchmark
 * of the hook builds and runs this, because only a program can stand on both sides of the edit.
 *
 *     hook LIBLLAMA MODEL LAYERS ROUNDS
 *
 * Decodes a token ROUNDS times after a first one, each time without LAYERS other layers than the time before, and
 * prints the mean processor time of an edit in nanoseconds.
 */
#define main loop
#include "../../scripts/cloop.c"
#undef main

#define ggml_backend_sched_alloc_graph edit_then_allocate
#include "layerskip.c"
#undef ggml_backend_sched_alloc_graph

static bool (*allocate)(struct ggml_backend_sched *, struct ggml_cgraph *);
static double began, spent;
static int edits;

static bool edited(struct ggml_backend_sched *sched, struct ggml_cgraph *graph) {
    spent += seconds(CLOCK_THREAD_CPUTIME_ID) - began;
    edits++;
    return allocate(sched, graph);
}

/* What libllama calls. */
bool ggml_backend_sched_alloc_graph(struct ggml_backend_sched *sched, struct ggml_cgraph *graph) {
    began = seconds(CLOCK_THREAD_CPUTIME_ID);
    return edit_then_allocate(sched, graph);
}

int main(int argc, char **argv) {
    if (argc != 5) {
        die("usage: hook LIBLLAMA MODEL LAYERS ROUNDS", "");
    }
    const int layers = number(argv[3], 1), rounds = number(argv[4], 1);
    void *lib = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    open_library(argv[1]); /* which leaves the folder's name of the path */
    if (lib == NULL || layerskip_init(lib) != NULL || !layerskip_fits(lib)) {
        die("masks do not fit ", argv[1]);
    }
    allocate = real.alloc_graph;
    real.alloc_graph = edited;

    struct llama_model *model = llama_model_load_from_file(argv[2], llama_model_default_params());
    struct llama_context_params cp = llama_context_default_params();
    cp.n_threads = cp.n_threads_batch = 1;
    struct llama_context *ctx = model == NULL ? NULL : llama_init_from_model(model, cp);
    if (ctx == NULL) {
        die("cannot load ", argv[2]);
    }
    struct layerskip_state state = {0};
    llama_token token = 7;
    llama_pos pos = 0;
    int32_t n_seq_id = 1;
    llama_seq_id sequence = 0, *seq_id = &sequence;
    int8_t logits = 1;
    const struct llama_batch batch = {1, &token, NULL, &pos, &n_seq_id, &seq_id, &logits};
    for (int i = 0; i <= rounds; i++) {
        uint64_t mask[LAYERSKIP_WORDS] = {0};
        for (int layer = 1 + i % 2; layer < 1 + i % 2 + layers; layer++) {
            mask[2 * layer / 64] |= 3ULL << (2 * layer % 64);
        }
        if (layerskip_decode(&state, ctx, batch, mask, NULL, LAYERSKIP_TOGETHER) != 0) {
            die("cannot decode: ", state.report.reason);
        }
        llama_memory_clear(llama_get_memory(ctx), false);
        if (i == 0) {
            spent = 0; /* it warmed up */
        }
    }
    if (edits != rounds + 1) {
        die("llama.cpp used a graph again", "");
    }
    printf("%.0f\n", 1e9 * spent / rounds);
    llama_free(ctx);
    llama_model_free(model);
    return fflush(stdout) == 0 ? 0 : 1;
}
