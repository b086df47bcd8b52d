/*
 * Tells which tensors a model has, from metadata alone.
 *
 *     tensors LIBLLAMA METADATA.gguf
 *
 * libllama asks for the data of each tensor; each is printed as "name type ne0 ne1 ne2 ne3". Tensors in
 * the metadata file are the optional ones that the model has. Where libllama makes more tensors than the
 * file names it complains, and what it says goes to stderr.
 */
#define _GNU_SOURCE
#include "llama_api.h"

#include <dlfcn.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct gguf_context;
struct gguf_init_params {
    bool no_alloc;
    struct ggml_context **ctx;
};

static void *lib;

static void *find(const char *name) {
    void *function = dlsym(lib, name);
    if (function == NULL) {
        fprintf(stderr, "the library has no function %s\n", name);
        exit(1);
    }
    return function;
}

static void on_log(int level, const char *text, void *user_data) {
    (void)user_data;
    if (level == GGML_LOG_ERROR) {
        fputs(text, stderr);
    }
}

static void on_tensor(struct ggml_tensor *t, void *user_data) {
    (void)user_data;
    printf("%s %d", t->name, t->type);
    for (int i = 0; i < GGML_DIMS; i++) {
        printf(" %" PRId64, t->ne[i]);
    }
    putchar('\n');
}

int main(int argc, char **argv) {
    if (argc != 3 || (lib = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL)) == NULL) {
        fprintf(stderr, "usage: tensors LIBLLAMA METADATA.gguf\n");
        return 1;
    }
    void (*log_set)(ggml_log_callback, void *) = (void (*)(ggml_log_callback, void *))find("llama_log_set");
    void (*load_all)(const char *) = (void (*)(const char *))find("ggml_backend_load_all_from_path");
    void (*backend_init)(void) = (void (*)(void))find("llama_backend_init");
    struct llama_model_params (*defaults)(void) = (struct llama_model_params(*)(void))find("llama_model_default_params");
    struct gguf_context *(*open_metadata)(const char *, struct gguf_init_params) =
        (struct gguf_context * (*)(const char *, struct gguf_init_params)) find("gguf_init_from_file");
    struct llama_model *(*make)(struct gguf_context *, void (*)(struct ggml_tensor *, void *), void *, struct llama_model_params) =
        (struct llama_model * (*)(struct gguf_context *, void (*)(struct ggml_tensor *, void *), void *, struct llama_model_params))
            find("llama_model_init_from_user");

    log_set(on_log, NULL);
    load_all(dirname(argv[1]));
    backend_init();
    struct gguf_context *metadata = open_metadata(argv[2], (struct gguf_init_params){.no_alloc = true});
    struct llama_model_params params = defaults();
    params.n_gpu_layers = 0;
    if (metadata == NULL || make(metadata, on_tensor, NULL, params) == NULL) {
        return 1;
    }
    _exit(fflush(stdout) == 0 ? 0 : 1); /* nothing of the model is worth taking apart */
}
