/* The C side of feed-forwards without some of their neurons: the smaller matrices, and how active each neuron is. */
#ifndef GALLOP_NEURONS_H
#define GALLOP_NEURONS_H

#include "glue.h"

/* A smaller matrix to be made, or a vector: one without ne1. */
struct gallop_part {
    const struct ggml_tensor *whole; /* the model's weight that it is a part of */
    int32_t type;                    /* ggml's number */
    int64_t ne0, ne1;
    bool down;                /* its columns are the neurons', not its rows */
    struct ggml_tensor *kept; /* filled in */
};

/* The smaller matrices of a choice of neurons, in memory of ggml's; owned by Go through malloc. */
enum { GALLOP_MEMORIES = 4 };
struct gallop_neurons {
    struct layerskip_neurons list;
    struct layerskip_swap *swaps;                    /* owned: list's */
    struct ggml_context *contexts[GALLOP_MEMORIES];  /* owned: one for each kind of memory, NULL behind the last */
    void *buffers[GALLOP_MEMORIES];                  /* owned: theirs */
};

/* The model's weight of this name; NULL = it has none. */
const struct ggml_tensor *gallop_find_weight(const struct llama_model *m, const char *name);

/* Makes the matrices of parts (n,), whose numbers are not set yet. False: no memory, and nothing is left to free. */
bool gallop_new_neurons(struct gallop_neurons *out, struct gallop_part *parts, int32_t n, bool repack);
void gallop_free_neurons(struct gallop_neurons *n);

/* Sets all numbers of a matrix, from its bytes row by row. */
void gallop_set_part(struct ggml_tensor *kept, const void *data, size_t size);

/*
 * Writes the columns of a matrix of t's type and shape, whose rows lie at from, in the order of ids (ne[0],) to out, in
 * blocks of another type. weights (ne[0],) are those of the columns' errors. False: the types cannot be converted, or no memory.
 */
bool gallop_sort_columns(const struct ggml_tensor *t, const void *from, const int32_t *ids, const float *weights, int32_t to,
                         void *out);

/* How active each neuron of a feed-forward is: for each sequence the sum, over its tokens, of the squared activations of
 * a token divided by their sum over the neurons. */
struct gallop_layer_activity {
    struct gallop_activity *of;
    int64_t n_ff;
    float *sums;  /* (n_seq, n_ff) */
    int64_t *n;   /* (n_seq,) tokens */
};
struct gallop_activity {
    struct gallop_layer_activity *layers; /* (n,) */
    const struct ggml_tensor **weights;   /* (n,) the downs, the model's */
    void **data;                          /* (n,) of layerskip_watch */
    int32_t n, n_seq;
    int32_t *owners;  /* (n_batch,) of the next decode's tokens */
    int32_t n_tokens; /* of the next decode */
    int32_t only;     /* the sequence that all of them are of; -1 = they are of several */
};

/* Measures the activity in front of downs (n,), each n_ff wide, in the context's decodes to come, of sequences 0 to
 * n_seq-1 and up to n_batch tokens; n = 0: no longer. False: no memory. */
bool gallop_measure_activity(struct gallop_context *c, const struct ggml_tensor *const *downs, int32_t n, int32_t n_seq,
                             int32_t n_batch);

/* Forgets what was measured of a sequence. */
void gallop_reset_activity(struct gallop_activity *a, int32_t seq);

#endif
