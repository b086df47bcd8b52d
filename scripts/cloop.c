/*
 * The plain llama.cpp decode loop in C, without any part of Gallop: what the Go loop's speed and
 * results are measured against (scripts/bench-peers, internal/preload's tests).
 *
 *     cloop LIBLLAMA MODEL PROMPT_TOKENS DECODE_STEPS THREADS SEED [SEQUENCES]
 *
 * Prefills PROMPT_TOKENS made-up tokens, decodes DECODE_STEPS more greedily and prints JSON:
 * {"first_token_at": microseconds since 1970 when the prompt's next token was chosen,
 *  "prefill_seconds": ..., "decode_seconds": ..., "tokens": [DECODE_STEPS + 1 numbers]}.
 *
 * With SEQUENCES, does so for that many prompts at once, each step in one batch, as far as the lines
 * of the standard input say, and prints seconds.
 */
#define _GNU_SOURCE
#include "llama_api.h"

#include <dlfcn.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* One pointer for each function: static int32_t (*llama_decode)(struct llama_context *c, ...); */
#define POINTER(result, name, params, args) static result(*name) params;
LLAMA_API_FUNCTIONS(POINTER)

static void die(const char *what, const char *detail) {
    fprintf(stderr, "cloop: %s%s\n", what, detail);
    exit(1);
}

static int number(const char *text, int least) {
    char *end;
    const long n = strtol(text, &end, 10);
    if (*text == '\0' || *end != '\0' || n < least || n > 1000000) {
        die("not a number in range: ", text);
    }
    return (int)n;
}

static void quiet(int level, const char *text, void *user_data) {
    (void)user_data;
    if (level == GGML_LOG_ERROR) {
        fputs(text, stderr);
    }
}

static void open_library(char *path) {
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (lib == NULL) {
        die("", dlerror());
    }
    static const struct {
        const char *name;
        void **slot;
    } wanted[] = {
#define SLOT(result, name, params, args) {#name, (void **)&name},
        LLAMA_API_FUNCTIONS(SLOT)};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        *wanted[i].slot = dlsym(lib, wanted[i].name);
        if (*wanted[i].slot == NULL) {
            die("the library has no function ", wanted[i].name);
        }
    }
    llama_log_set(quiet, NULL);
    ggml_backend_load_all_from_path(dirname(path));
    llama_backend_init();
}

static double seconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Decodes n tokens of a sequence at positions from pos on, or, with several sequences, one token of
 * each at pos. Wanted are the last one's logits if `output`, or those of all sequences. */
static void decode(struct llama_context *ctx, llama_token *tokens, int n, int pos, bool output, int sequence, int sequences) {
    llama_pos positions[n];
    int32_t n_seq_id[n];
    llama_seq_id ids[n], *seq_id[n];
    int8_t logits[n];
    for (int i = 0; i < n; i++) {
        positions[i] = sequences > 1 ? pos : pos + i;
        n_seq_id[i] = 1;
        ids[i] = sequences > 1 ? i : sequence;
        seq_id[i] = &ids[i];
        logits[i] = output && (sequences > 1 || i == n - 1);
    }
    const struct llama_batch batch = {n, tokens, NULL, positions, n_seq_id, seq_id, logits};
    if (llama_decode(ctx, batch) != 0) {
        die("llama_decode failed", "");
    }
}

static llama_token most_likely(struct llama_context *ctx, int n_vocab, int row) {
    const float *logits = llama_get_logits_ith(ctx, row);
    if (logits == NULL) {
        die("no logits", "");
    }
    llama_token best = 0;
    float top = logits[0];
    for (llama_token t = 1; t < n_vocab; t++) {
        if (logits[t] > top) {
            top = logits[t];
            best = t;
        }
    }
    return best;
}

enum { BATCH = 512 }; /* tokens in one decode, and computed at once */

/* Decodes several answers at once. A line of the standard input with 0 reads their prompts anew,
 * one with n goes on by n tokens; each is answered with a line of the seconds that it took. */
static void batched(struct llama_context *ctx, int n_vocab, int n_prompt, int seed, int sequences) {
    llama_token prompt[n_prompt], next[sequences];
    int position = 0;
    for (int n; scanf("%d", &n) == 1;) {
        const double start = seconds(CLOCK_MONOTONIC);
        if (n == 0) {
            llama_memory_clear(llama_get_memory(ctx), true);
            for (int s = 0; s < sequences; s++) {
                for (int i = 0; i < n_prompt; i++) {
                    prompt[i] = (int)((37LL * i + seed + 1009LL * s) % n_vocab);
                }
                for (int i = 0; i < n_prompt; i += BATCH) {
                    const int m = n_prompt - i < BATCH ? n_prompt - i : BATCH;
                    decode(ctx, prompt + i, m, i, i + m == n_prompt, s, 1);
                }
                next[s] = most_likely(ctx, n_vocab, -1);
            }
            position = n_prompt;
        }
        for (int i = 0; i < n; i++) {
            decode(ctx, next, sequences, position++, true, 0, sequences);
            for (int s = 0; s < sequences; s++) {
                next[s] = most_likely(ctx, n_vocab, s);
            }
        }
        printf("%.6f\n", seconds(CLOCK_MONOTONIC) - start);
        fflush(stdout);
    }
}

int main(int argc, char **argv) {
    if (argc != 7 && argc != 8) {
        die("usage: cloop LIBLLAMA MODEL PROMPT_TOKENS DECODE_STEPS THREADS SEED [SEQUENCES]", "");
    }
    const char *path = argv[2];
    const int n_prompt = number(argv[3], 1), n_steps = number(argv[4], 0), threads = number(argv[5], 1);
    const int seed = number(argv[6], 0), sequences = argc == 8 ? number(argv[7], 2) : 1;
    open_library(argv[1]);

    struct llama_model_params mp = llama_model_default_params();
    mp.n_gpu_layers = 0;
    struct llama_model *model = llama_model_load_from_file(path, mp);
    if (model == NULL) {
        die("cannot load ", path);
    }
    struct llama_context_params cp = llama_context_default_params();
    cp.n_ctx = (uint32_t)((n_prompt + n_steps) * sequences);
    cp.n_seq_max = (uint32_t)sequences;
    cp.kv_unified = sequences > 1;
    cp.n_batch = cp.n_ubatch = BATCH;
    cp.n_threads = cp.n_threads_batch = threads;
    struct llama_context *ctx = llama_init_from_model(model, cp);
    llama_token *tokens = calloc((size_t)(n_prompt + n_steps + 1), sizeof *tokens);
    if (ctx == NULL || tokens == NULL) {
        die("not enough memory for a context", "");
    }
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    if (sequences > 1) {
        batched(ctx, n_vocab, n_prompt, seed, sequences);
        free(tokens);
        llama_free(ctx);
        llama_model_free(model);
        return 0;
    }
    for (int i = 0; i < n_prompt; i++) {
        tokens[i] = (int)((37LL * i + seed) % n_vocab);
    }

    double start = seconds(CLOCK_MONOTONIC);
    for (int i = 0; i < n_prompt; i += BATCH) {
        const int n = n_prompt - i < BATCH ? n_prompt - i : BATCH;
        decode(ctx, tokens + i, n, i, i + n == n_prompt, 0, 1);
    }
    tokens[n_prompt] = most_likely(ctx, n_vocab, -1);
    const double prefill = seconds(CLOCK_MONOTONIC) - start, first_token_at = seconds(CLOCK_REALTIME);

    start = seconds(CLOCK_MONOTONIC);
    for (int i = n_prompt; i < n_prompt + n_steps; i++) {
        decode(ctx, tokens + i, 1, i, true, 0, 1);
        tokens[i + 1] = most_likely(ctx, n_vocab, -1);
    }
    const double decoding = seconds(CLOCK_MONOTONIC) - start;
    printf("{\"first_token_at\": %.0f, \"prefill_seconds\": %.6f, \"decode_seconds\": %.6f, \"tokens\": [",
           1e6 * first_token_at, prefill, decoding);
    for (int i = 0; i <= n_steps; i++) {
        printf(i == 0 ? "%d" : ", %d", tokens[n_prompt + i]);
    }
    puts("]}");
    free(tokens);
    llama_free(ctx);
    llama_model_free(model);
    return fflush(stdout) == 0 ? 0 : 1;
}
