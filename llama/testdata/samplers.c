/*
 * What llama.cpp's own samplers leave of a row of logits, with each value as it was
 * given: what the Go sampler's edge values are measured against (sampler_test.go).
 *
 *     samplers LIBLLAMA N_VOCAB TOP_K TOP_P MIN_P TEMP LAST_N REPEAT FREQUENCY PRESENCE <LOGITS+TOKENS
 *
 * Stdin is N_VOCAB floats and, behind them, the recent tokens as 32-bit numbers. Prints a line
 * "TOKEN LOGIT" for each token that is left.
 */
#include "llama_api.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POINTER(result, name, params, args) static result(*name) params;
LLAMA_API_FUNCTIONS(POINTER)

static void find(void *library, const char *name, void *pointer) {
    void *found = dlsym(library, name);
    memcpy(pointer, &found, sizeof found);
}

int main(int argc, char **argv) {
    if (argc != 11) {
        return 2;
    }
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
#define FIND(result, name, params, args) find(library, #name, (void *)&name);
    LLAMA_API_FUNCTIONS(FIND)

    const int32_t n_vocab = atoi(argv[2]);
    struct llama_token_data *items = calloc((size_t)n_vocab, sizeof *items);
    struct llama_token_data_array left = {items, (size_t)n_vocab, -1, false};
    for (int32_t i = 0; i < n_vocab; i++) {
        items[i].id = i;
        if (fread(&items[i].logit, sizeof(float), 1, stdin) != 1) {
            return 1;
        }
    }
    struct llama_sampler *chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(chain, llama_sampler_init_penalties(n_vocab, atoi(argv[7]), strtof(argv[8], NULL),
                                                                strtof(argv[9], NULL), strtof(argv[10], NULL)));
    llama_sampler_chain_add(chain, llama_sampler_init_top_k(atoi(argv[3])));
    llama_sampler_chain_add(chain, llama_sampler_init_top_p(strtof(argv[4], NULL), 1));
    llama_sampler_chain_add(chain, llama_sampler_init_min_p(strtof(argv[5], NULL), 1));
    llama_sampler_chain_add(chain, llama_sampler_init_temp(strtof(argv[6], NULL)));
    llama_token token;
    while (fread(&token, sizeof token, 1, stdin) == 1) {
        llama_sampler_accept(chain, token);
    }
    llama_sampler_apply(chain, &left);
    for (size_t i = 0; i < left.size; i++) {
        printf("%d %.9g\n", left.data[i].id, left.data[i].logit);
    }
    llama_sampler_free(chain);
    free(items);
    return 0;
}
