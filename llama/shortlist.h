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
    size_t vector_size;        /* bytes of a vector */
};

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
    struct ggml_tensor *basis, *preview;
    struct ggml_context *contexts[2]; /* owned: of basis and preview */
    void *buffers[2];                 /* owned: theirs */
};

/* Makes the matrices from basis (rank, n_embd) and preview (n_vocab, rank) in Q4_0, which are copied.
 * False: err says why, and nothing is left to free. */
bool gallop_new_shortlist(struct gallop_shortlist *s, const float *basis, const char *preview, int32_t rank, bool repack,
                          struct gallop_text *err);
void gallop_free_shortlist(struct gallop_shortlist *s);

/* Lets the context decode under masks with a shortlist; NULL = no longer. s must outlive that.
 * False: no memory. */
bool gallop_use_shortlist(struct gallop_context *c, struct gallop_shortlist *s);

/* What became of a row of logits. */
struct gallop_listed {
    float top;     /* largest exact logit */
    float outside; /* bound of the preview values of the tokens whose logits are not exact */
    float error;   /* root of the mean squared difference of exact logits and preview */
};

/*
 * Gives exact values to the size largest of the row's logits (n_vocab,), which are the preview's, from
 * the hidden state at this place among the outputs of the context's last graph.
 */
struct gallop_listed gallop_list_exactly(struct gallop_context *c, float *logits, int32_t output, int32_t size);

/* Gives exact values to the logits from..to-1, from the hidden state of the last gallop_list_exactly.
 * Several threads may do so at once. */
void gallop_all_exactly(struct gallop_context *c, float *logits, int32_t from, int32_t to);

/* Copies the hidden state at this place among the last graph's outputs into out (n_embd,). False: it
 * is not known. */
bool gallop_hidden(struct gallop_context *c, int32_t output, float *out, int32_t n_embd);

#endif
