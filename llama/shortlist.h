/* The vocabulary shortlist's C side: the two small matrices that stand in for the output matrix, and
 * the exact logits of the tokens that they find. */
#ifndef GALLOP_SHORTLIST_H
#define GALLOP_SHORTLIST_H

#include "glue.h"

/* A product of a row in its stored type with a vector in the type that goes with it; ggml's. */
typedef void gallop_dot(int n, float *result, size_t bs, const void *row, size_t bx, const void *vector, size_t by, int nrc);
/* Turns n floats into a vector of that type, or back; ggml's. */
typedef void gallop_quantize(const float *from, void *to, int64_t n);
typedef void gallop_dequantize(const void *from, float *to, int64_t n);

/* The output matrix as it is stored, row by row. */
struct gallop_matrix {
    struct ggml_tensor *tensor; /* the model's */
    const char *rows;           /* (n_vocab, row_size) the model's mapped file or its own memory */
    size_t row_size;            /* bytes */
    int64_t n_embd, n_vocab;
    gallop_dot *dot;
    gallop_quantize *quantize; /* NULL = vectors are floats */
    gallop_dequantize *dequantize; /* NULL = rows are floats */
    size_t vector_size;        /* bytes of a vector, of both where there are two */
    bool precise;              /* the graph multiplies rows in F16 with floats: a vector is two in F16, the second what
                                  the first has rounded away */
};

/* Puts the hidden state (n_embd,) into the type that the matrix's rows are multiplied with. */
void gallop_matrix_vector(const struct gallop_matrix *m, const float *hidden, void *vector);

/* The product of a row with such a vector. */
float gallop_matrix_dot(const struct gallop_matrix *m, const char *row, const void *vector);

/* The matrix of this name in the model, whose rows are mapped at `rows`; 0 = they are not mapped, but may be in
 * memory as in the file. False: err says why it cannot be read. */
bool gallop_find_matrix(const struct llama_model *m, const char *name, uintptr_t rows, struct gallop_matrix *out,
                        struct gallop_text *err);

/* Rows ids (n,) of the matrix as floats, into out (n, n_embd). */
void gallop_matrix_rows(const struct gallop_matrix *m, const int32_t *ids, int32_t n, float *out);

/*
 * Multiplies each row of the matrix with 32 vectors x (32, n_embd). The products are one block of
 * Q4_0 a row, the first at out and the others stride bytes apart. False: err says why.
 */
bool gallop_project(const struct gallop_matrix *m, const float *x, int32_t threads, char *out, size_t stride,
                    struct gallop_text *err);

/* The matrices of a shortlist, in memory of ggml's; owned by Go through malloc. */
struct gallop_shortlist {
    struct gallop_matrix matrix;
    float *spread; /* (n_vocab,) how far each token's preview is off, all are 1 on average; owned */
    struct ggml_tensor *basis, *preview;
    struct ggml_context *contexts[2]; /* owned: of basis and preview */
    void *buffers[2];                 /* owned: theirs */
};

/* Makes the matrices from basis (rank, n_embd) and preview (n_vocab, rank) in Q4_0, which are copied, as is spread
 * (n_vocab,); NULL = all are 1. False: err says why, and nothing is left to free. */
bool gallop_new_shortlist(struct gallop_shortlist *s, const float *basis, const char *preview, const float *spread, int32_t rank,
                          bool repack, struct gallop_text *err);
void gallop_free_shortlist(struct gallop_shortlist *s);

/* The kind of memory in which the CPU multiplies a matrix of t's type and shape, which has none yet, fastest. repack =
 * weights may be rearranged. */
struct ggml_backend_buffer_type *gallop_fastest_memory(struct ggml_tensor *t, bool repack);

/* Room for a few tensors and a graph, or NULL; to be freed by ggml_free. */
struct ggml_context *gallop_new_nodes(void);

/* Lets the context, which decodes n_rows outputs at a time at most, decode under masks with a shortlist;
 * NULL = no longer. s must outlive that. False: no memory. */
bool gallop_use_shortlist(struct gallop_context *c, struct gallop_shortlist *s, int32_t n_rows);

/* What became of a row of logits. */
struct gallop_listed {
    float top;     /* largest exact logit */
    float outside; /* bound of the preview values of the tokens outside the list */
    float error;   /* root of the mean squared difference of exact logits and preview, each in spreads */
    int32_t n;     /* tokens in the list: their logits are exact */
    int32_t further; /* exact logits outside it */
};

/* How many of each output's largest logits, which are the preview's, the next decode is to give exact
 * values: sizes (n,), which are copied; 0 = none. A few more are given them where they are too close to
 * tell apart. Further tokens get them too, all that would be the likeliest were their preview off by margin
 * times the list's error, in their spreads. */
void gallop_list(struct gallop_context *c, const int32_t *sizes, int32_t n, float margin);

/* What became of the row at this place among the outputs of the last decode. */
struct gallop_listed gallop_listed(const struct gallop_context *c, int32_t output);

/* Lists a row of logits (n_vocab,) that the last decode has left as the preview gave it. */
struct gallop_listed gallop_list_alone(struct gallop_context *c, float *logits, int32_t output, int32_t size, float margin);

/* Takes the hidden state at this place for the calls of gallop_compute_exact that follow. False: it is not known. */
bool gallop_prepare_exact(struct gallop_context *c, int32_t output);

/* Gives exact values to the logits in one of n_parts parts of the row. Several threads may do so at once. */
void gallop_compute_exact(struct gallop_context *c, float *logits, int32_t part, int32_t n_parts);

/* Copies the hidden state at this place among the last graph's outputs into out (n_embd,). False: it
 * is not known. */
bool gallop_hidden(struct gallop_context *c, int32_t output, float *out, int32_t n_embd);

#endif
