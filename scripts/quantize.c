/* quantize LIBLLAMA IN.gguf OUT.gguf TYPE: writes another quantisation of a model by llama.cpp's own
 * quantiser. TYPE is llama.cpp's number of a file type: 2 = Q4_0, 7 = Q8_0, 15 = Q4_K_M. */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* The part that is set here; llama.cpp's is longer. */
struct params {
    int32_t threads, type, output_type, embedding_type;
    bool requantize;
    char rest[496];
};

int main(int n, char **args) {
    if (n != 5) {
        fprintf(stderr, "usage: quantize LIBLLAMA IN.gguf OUT.gguf TYPE\n");
        return 2;
    }
    void *lib = dlopen(args[1], RTLD_NOW | RTLD_LOCAL);
    if (lib == NULL) {
        fprintf(stderr, "quantize: %s\n", dlerror());
        return 1;
    }
    struct params (*defaults)(void) = (struct params(*)(void))(uintptr_t)dlsym(lib, "llama_model_quantize_default_params");
    uint32_t (*quantize)(const char *, const char *, const struct params *) =
        (uint32_t(*)(const char *, const char *, const struct params *))(uintptr_t)dlsym(lib, "llama_model_quantize");
    if (defaults == NULL || quantize == NULL) {
        fprintf(stderr, "quantize: %s has no quantiser\n", args[1]);
        return 1;
    }
    struct params p = defaults();
    p.type = atoi(args[4]);
    p.requantize = true;
    return quantize(args[2], args[3], &p) == 0 ? 0 : 1;
}
