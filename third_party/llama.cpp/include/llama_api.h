/*
 * The part of llama.cpp's C API that Gallop calls, declared in our own words for release v0.5.0
 * (the published binaries carry no headers).
 *
 * Three things live here:
 *   1. the structs that cross the boundary, with the layout of v0.5.0;
 *   2. LLAMA_API_FUNCTIONS, one line a function: result, name, parameters, arguments. The loader
 *      makes a table of pointers from it and callers get a static inline function of each name;
 *   3. struct ggml_tensor as far as the skip patch reads it.
 *
 * Layouts can drift between releases without a symbol changing, so the loader compares the
 * library's own defaults and a tensor made by the library with what is written here, and refuses
 * a library that differs.
 */
#ifndef GALLOP_LLAMA_API_H
#define GALLOP_LLAMA_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- ggml ---- */

enum { GGML_DIMS = 4, GGML_SRC = 10, GGML_OP_PARAMS = 16, GGML_NAME = 64 };
enum { GGML_FLAG_INPUT = 1, GGML_FLAG_OUTPUT = 2, GGML_FLAG_COMPUTE = 16 };
enum { GGML_TYPE_F32 = 0, GGML_TYPE_F16 = 1, GGML_TYPE_Q4_0 = 2, GGML_TYPE_Q5_0 = 6, GGML_TYPE_Q8_0 = 8, GGML_TYPE_Q2_K = 10, GGML_TYPE_Q6_K = 14, GGML_TYPE_IQ4_NL = 20, GGML_TYPE_I32 = 26 };
enum { GGML_DEVICE_CPU = 0 };
enum { GGML_LOG_NONE = 0, GGML_LOG_DEBUG = 1, GGML_LOG_INFO = 2, GGML_LOG_WARN = 3, GGML_LOG_ERROR = 4, GGML_LOG_CONT = 5 };

struct ggml_cgraph;
struct ggml_context;
struct ggml_backend;
struct ggml_backend_sched;
struct ggml_backend_device;
struct ggml_backend_reg;
struct ggml_backend_buffer_type;

struct ggml_tensor {
    int32_t type;
    void *buffer;
    int64_t ne[GGML_DIMS]; /* elements in each dimension */
    size_t nb[GGML_DIMS];  /* strides in bytes */
    int32_t op;
    int32_t op_params[GGML_OP_PARAMS];
    int32_t flags;
    struct ggml_tensor *src[GGML_SRC];
    struct ggml_tensor *view_src;
    size_t view_offs;
    void *data;
    char name[GGML_NAME];
    void *extra;
    char padding[8];
};

/* How a type is stored, and how the CPU multiplies it. */
struct ggml_type_traits {
    const char *type_name;
    int64_t block_size;
    int64_t block_size_interleave;
    size_t type_size;
    bool is_quantized;
    void (*to_float)(const void *from, float *to, int64_t n);
    void (*from_float_ref)(const float *from, void *to, int64_t n);
};
struct ggml_type_traits_cpu {
    void (*from_float)(const float *from, void *to, int64_t n);
    void (*vec_dot)(int n, float *result, size_t bs, const void *row, size_t bx, const void *vector, size_t by, int nrc);
    int32_t vec_dot_type; /* of the vector that a row is multiplied with */
    int64_t nrows;        /* that vec_dot takes at a time */
};

struct ggml_init_params {
    size_t mem_size;
    void *mem_buffer;
    bool no_alloc;
};

/* ---- llama ---- */

typedef int32_t llama_token;
typedef int32_t llama_pos;
typedef int32_t llama_seq_id;

enum { LLAMA_TOKEN_NULL = -1 };

enum { GGML_MAX_THREADS = 512 };

struct ggml_threadpool;
struct ggml_threadpool_params {
    bool cpumask[GGML_MAX_THREADS]; /* all false = any CPU */
    int32_t n_threads;
    int32_t prio;
    uint32_t poll; /* how long threads look for the next graph before they sleep, 0 to 100 */
    bool strict_cpu;
    bool paused;
};

struct llama_model;
struct llama_context;
struct llama_vocab;
struct llama_sampler;
struct llama_memory_i;
struct llama_adapter_lora;

typedef bool (*llama_progress_callback)(float progress, void *user_data);
typedef bool (*ggml_abort_callback)(void *user_data);
typedef void (*ggml_end_callback)(const char *message); /* before an abort */
typedef void (*ggml_log_callback)(int level, const char *text, void *user_data);

struct llama_model_params {
    struct ggml_backend_device **devices; /* NULL-terminated; NULL = all */
    const void *tensor_buft_overrides;
    int32_t n_gpu_layers; /* negative = all */
    int32_t split_mode;
    int32_t load_mode; /* -1 automatic, 0 read, 1 mmap, 2 mlock, 3 mmap + mlock, 4 direct I/O */
    int32_t lazy_mode;
    int32_t main_gpu;
    const float *tensor_split;
    llama_progress_callback progress_callback; /* false cancels the load */
    void *progress_callback_user_data;
    const void *kv_overrides;
    bool vocab_only;
    bool check_tensors;
    bool use_extra_bufts; /* weights repacked for the CPU at load */
    bool no_host;
    bool no_alloc;
    bool load_mtp;
};

struct llama_context_params {
    uint32_t n_ctx; /* 0 = the model's */
    uint32_t n_batch;
    uint32_t n_ubatch;
    uint32_t n_seq_max;
    uint32_t n_rs_seq;
    uint32_t n_outputs_max;
    uint32_t n_outputs_max_per_seq;
    int32_t n_threads;
    int32_t n_threads_batch;
    int32_t ctx_type;
    int32_t rope_scaling_type;
    int32_t pooling_type;
    int32_t attention_type;
    int32_t flash_attn_type; /* -1 automatic, 0 off, 1 on */
    float rope_freq_base;
    float rope_freq_scale;
    float yarn_ext_factor;
    float yarn_attn_factor;
    float yarn_beta_fast;
    float yarn_beta_slow;
    uint32_t yarn_orig_ctx;
    float defrag_thold;
    void *cb_eval;
    void *cb_eval_user_data;
    int32_t type_k; /* ggml type of the K cache */
    int32_t type_v;
    ggml_abort_callback abort_callback; /* true stops the decode */
    void *abort_callback_data;
    bool embeddings;
    bool offload_kqv;
    bool no_perf;
    bool op_offload;
    bool swa_full;
    bool kv_unified;
    void *samplers;
    size_t n_samplers;
    struct llama_context *ctx_other;
};

/* Every array has n_tokens entries; exactly one of token and embd is set. */
struct llama_batch {
    int32_t n_tokens;
    llama_token *token;
    float *embd; /* (n_tokens, n_embd) */
    llama_pos *pos;
    int32_t *n_seq_id;
    llama_seq_id **seq_id;
    int8_t *logits; /* non-zero = this token's output is wanted */
};

struct llama_token_data {
    llama_token id;
    float logit;
    float p;
};

struct llama_token_data_array {
    struct llama_token_data *data;
    size_t size;
    int64_t selected; /* index into data, -1 = none */
    bool sorted;
};

struct llama_logit_bias {
    llama_token token;
    float bias;
};

struct llama_chat_message {
    const char *role;
    const char *content;
};

struct llama_sampler_chain_params {
    bool no_perf;
};

/*
 * R(result, name, parameters, arguments). Every function is in libllama, libggml or libggml-base;
 * a missing one is reported by name at load. _ZNK11llama_model10get_tensorEPKc is llama_model::get_tensor,
 * exported under its C++ name alone; NULL when the model uses no tensor of the name.
 */
#define LLAMA_API_FUNCTIONS(R)                                                                                                      \
    /* library */                                                                                                                   \
    R(const char *, llama_version, (void), ())                                                                                      \
    R(void, llama_backend_init, (void), ())                                                                                         \
    R(void, llama_log_set, (ggml_log_callback cb, void *user_data), (cb, user_data))                                                \
    R(bool, llama_supports_gpu_offload, (void), ())                                                                                 \
    R(const char *, llama_print_system_info, (void), ())                                                                            \
    R(struct llama_model_params, llama_model_default_params, (void), ())                                                            \
    R(struct llama_context_params, llama_context_default_params, (void), ())                                                        \
    R(struct llama_sampler_chain_params, llama_sampler_chain_default_params, (void), ())                                            \
    /* devices */                                                                                                                   \
    R(void, ggml_backend_load_all_from_path, (const char *dir), (dir))                                                              \
    R(struct ggml_backend_reg *, ggml_backend_reg_by_name, (const char *name), (name))                                              \
    R(void *, ggml_backend_reg_get_proc_address, (struct ggml_backend_reg * reg, const char *name), (reg, name))                    \
    R(struct ggml_backend_reg *, ggml_backend_load, (const char *path), (path))                                                     \
    R(void, ggml_backend_register, (struct ggml_backend_reg * reg), (reg))                                                          \
    R(ggml_end_callback, ggml_set_abort_callback, (ggml_end_callback callback), (callback))                                         \
    R(size_t, ggml_backend_dev_count, (void), ())                                                                                   \
    R(struct ggml_backend_device *, ggml_backend_dev_get, (size_t i), (i))                                                          \
    R(const char *, ggml_backend_dev_name, (struct ggml_backend_device * dev), (dev))                                               \
    R(const char *, ggml_backend_dev_description, (struct ggml_backend_device * dev), (dev))                                        \
    R(void, ggml_backend_dev_memory, (struct ggml_backend_device * dev, size_t *free, size_t *total), (dev, free, total))           \
    R(int, ggml_backend_dev_type, (struct ggml_backend_device * dev), (dev))                                                        \
    R(void, ggml_backend_tensor_set, (struct ggml_tensor * t, const void *data, size_t offset, size_t size), (t, data, offset, size))\
    R(struct ggml_backend_buffer_type *, ggml_backend_buffer_get_type, (void *buffer), (buffer))                                    \
    R(struct ggml_backend_device *, ggml_backend_buft_get_device, (struct ggml_backend_buffer_type * t), (t))                       \
    R(const char *, ggml_backend_buft_name, (struct ggml_backend_buffer_type * t), (t))                                             \
    R(size_t, ggml_backend_buft_get_alloc_size, (struct ggml_backend_buffer_type * t, const struct ggml_tensor *w), (t, w))         \
    R(void, ggml_backend_tensor_get, (const struct ggml_tensor *t, void *data, size_t offset, size_t size), (t, data, offset, size)) \
    /* tensors of our own */                                                                                                        \
    R(struct ggml_context *, ggml_init, (struct ggml_init_params p), (p))                                                           \
    R(void, ggml_free, (struct ggml_context * c), (c))                                                                              \
    R(struct ggml_tensor *, ggml_new_tensor_2d, (struct ggml_context * c, int type, int64_t n0, int64_t n1), (c, type, n0, n1))     \
    R(struct ggml_tensor *, ggml_mul_mat, (struct ggml_context * c, struct ggml_tensor * a, struct ggml_tensor * b), (c, a, b))     \
    R(struct ggml_cgraph *, ggml_new_graph, (struct ggml_context * c), (c))                                                         \
    R(void, ggml_build_forward_expand, (struct ggml_cgraph * g, struct ggml_tensor * t), (g, t))                                    \
    R(size_t, ggml_row_size, (int type, int64_t n), (type, n))                                                                      \
    R(size_t, ggml_quantize_chunk, (int type, const float *from, void *to, int64_t start, int64_t rows, int64_t n, const float *weights), (type, from, to, start, rows, n, weights))\
    R(const struct ggml_type_traits *, ggml_get_type_traits, (int type), (type))                                                         \
    R(struct ggml_backend_buffer_type *, ggml_backend_cpu_buffer_type, (void), ())                                                  \
    R(void *, ggml_backend_alloc_ctx_tensors_from_buft, (struct ggml_context * c, struct ggml_backend_buffer_type * t), (c, t))     \
    R(void *, ggml_backend_buft_alloc_buffer, (struct ggml_backend_buffer_type * t, size_t size), (t, size))                        \
    R(void, ggml_backend_buffer_set_usage, (void *buffer, int usage), (buffer, usage))                                              \
    R(void, ggml_backend_buffer_free, (void *buffer), (buffer))                                                                     \
    R(struct ggml_backend_reg *, ggml_backend_dev_backend_reg, (struct ggml_backend_device * dev), (dev))                           \
    R(bool, ggml_backend_dev_supports_op, (struct ggml_backend_device * dev, const struct ggml_tensor *op), (dev, op))              \
    R(struct ggml_backend *, ggml_backend_dev_init, (struct ggml_backend_device * dev, const char *params), (dev, params))          \
    R(int, ggml_backend_graph_compute, (struct ggml_backend * b, struct ggml_cgraph * g), (b, g))                                   \
    R(void, ggml_backend_free, (struct ggml_backend * b), (b))                                                                      \
    /* model */                                                                                                                     \
    R(struct llama_model *, llama_model_load_from_file, (const char *path, struct llama_model_params p), (path, p))                 \
    R(void, llama_model_free, (struct llama_model * m), (m))                                                                        \
    R(const struct llama_vocab *, llama_model_get_vocab, (const struct llama_model *m), (m))                                        \
    R(int32_t, llama_model_n_ctx_train, (const struct llama_model *m), (m))                                                         \
    R(int32_t, llama_model_n_embd, (const struct llama_model *m), (m))                                                              \
    R(int32_t, llama_model_n_layer, (const struct llama_model *m), (m))                                                             \
    R(int32_t, llama_model_n_head, (const struct llama_model *m), (m))                                                              \
    R(int32_t, llama_model_n_head_kv, (const struct llama_model *m), (m))                                                           \
    R(uint64_t, llama_model_size, (const struct llama_model *m), (m))                                                               \
    R(uint64_t, llama_model_n_params, (const struct llama_model *m), (m))                                                           \
    R(int32_t, llama_model_desc, (const struct llama_model *m, char *buf, size_t size), (m, buf, size))                             \
    R(int32_t, llama_model_meta_count, (const struct llama_model *m), (m))                                                          \
    R(int32_t, llama_model_meta_key_by_index, (const struct llama_model *m, int32_t i, char *buf, size_t size), (m, i, buf, size))   \
    R(int32_t, llama_model_meta_val_str, (const struct llama_model *m, const char *key, char *buf, size_t size), (m, key, buf, size)) \
    R(const struct ggml_tensor *, _ZNK11llama_model10get_tensorEPKc, (const struct llama_model *m, const char *name), (m, name))    \
    R(const char *, llama_model_chat_template, (const struct llama_model *m, const char *name), (m, name))                          \
    R(bool, llama_model_has_encoder, (const struct llama_model *m), (m))                                                            \
    R(bool, llama_model_has_decoder, (const struct llama_model *m), (m))                                                            \
    R(int32_t, llama_model_n_swa, (const struct llama_model *m), (m))                                                               \
    R(bool, llama_model_is_recurrent, (const struct llama_model *m), (m))                                                           \
    R(bool, llama_model_is_hybrid, (const struct llama_model *m), (m))                                                              \
    /* vocabulary */                                                                                                                \
    R(int, llama_vocab_type, (const struct llama_vocab *v), (v))                                                                    \
    R(int32_t, llama_vocab_n_tokens, (const struct llama_vocab *v), (v))                                                            \
    R(const char *, llama_vocab_get_text, (const struct llama_vocab *v, llama_token t), (v, t))                                     \
    R(bool, llama_vocab_is_eog, (const struct llama_vocab *v, llama_token t), (v, t))                                               \
    R(bool, llama_vocab_is_control, (const struct llama_vocab *v, llama_token t), (v, t))                                           \
    R(int, llama_vocab_get_attr, (const struct llama_vocab *v, llama_token t), (v, t))                                              \
    R(llama_token, llama_vocab_bos, (const struct llama_vocab *v), (v))                                                             \
    R(llama_token, llama_vocab_eos, (const struct llama_vocab *v), (v))                                                             \
    R(llama_token, llama_vocab_eot, (const struct llama_vocab *v), (v))                                                             \
    R(bool, llama_vocab_get_add_bos, (const struct llama_vocab *v), (v))                                                            \
    R(bool, llama_vocab_get_add_eos, (const struct llama_vocab *v), (v))                                                            \
    R(int32_t, llama_tokenize,                                                                                                      \
      (const struct llama_vocab *v, const char *text, int32_t len, llama_token *out, int32_t max, bool add_special, bool parse_special), \
      (v, text, len, out, max, add_special, parse_special))                                                                         \
    R(int32_t, llama_token_to_piece,                                                                                                \
      (const struct llama_vocab *v, llama_token t, char *buf, int32_t len, int32_t lstrip, bool special),                           \
      (v, t, buf, len, lstrip, special))                                                                                            \
    R(int32_t, llama_detokenize,                                                                                                    \
      (const struct llama_vocab *v, const llama_token *tokens, int32_t n, char *text, int32_t max, bool remove_special, bool unparse_special), \
      (v, tokens, n, text, max, remove_special, unparse_special))                                                                   \
    R(int32_t, llama_chat_apply_template,                                                                                           \
      (const char *tmpl, const struct llama_chat_message *chat, size_t n, bool add_assistant, char *buf, int32_t len),              \
      (tmpl, chat, n, add_assistant, buf, len))                                                                                     \
    /* context */                                                                                                                   \
    R(struct llama_context *, llama_init_from_model, (struct llama_model * m, struct llama_context_params p), (m, p))               \
    R(void, llama_free, (struct llama_context * c), (c))                                                                            \
    R(uint32_t, llama_n_ctx, (const struct llama_context *c), (c))                                                                  \
    R(uint32_t, llama_n_ctx_seq, (const struct llama_context *c), (c))                                                              \
    R(uint32_t, llama_n_batch, (const struct llama_context *c), (c))                                                                \
    R(uint32_t, llama_n_ubatch, (const struct llama_context *c), (c))                                                               \
    R(uint32_t, llama_n_seq_max, (const struct llama_context *c), (c))                                                              \
    R(int, llama_pooling_type, (const struct llama_context *c), (c))                                                                \
    R(void, llama_set_n_threads, (struct llama_context * c, int32_t n, int32_t n_batch), (c, n, n_batch))                           \
    R(void, ggml_threadpool_params_init, (struct ggml_threadpool_params * p, int n_threads), (p, n_threads))                        \
    R(void, llama_attach_threadpool,                                                                                                \
      (struct llama_context * c, struct ggml_threadpool * pool, struct ggml_threadpool * batch), (c, pool, batch))                  \
    R(void, llama_set_embeddings, (struct llama_context * c, bool on), (c, on))                                                     \
    R(void, llama_set_causal_attn, (struct llama_context * c, bool on), (c, on))                                                    \
    R(void, llama_synchronize, (struct llama_context * c), (c))                                                                     \
    R(int32_t, llama_decode, (struct llama_context * c, struct llama_batch b), (c, b))                                              \
    R(float *, llama_get_logits_ith, (struct llama_context * c, int32_t i), (c, i))                                                 \
    R(float *, llama_get_embeddings_ith, (struct llama_context * c, int32_t i), (c, i))                                             \
    R(float *, llama_get_embeddings_seq, (struct llama_context * c, llama_seq_id s), (c, s))                                        \
    /* KV cache */                                                                                                                  \
    R(struct llama_memory_i *, llama_get_memory, (const struct llama_context *c), (c))                                              \
    R(void, llama_memory_clear, (struct llama_memory_i * m, bool data), (m, data))                                                  \
    R(bool, llama_memory_seq_rm, (struct llama_memory_i * m, llama_seq_id s, llama_pos p0, llama_pos p1), (m, s, p0, p1))           \
    R(void, llama_memory_seq_cp, (struct llama_memory_i * m, llama_seq_id a, llama_seq_id b, llama_pos p0, llama_pos p1), (m, a, b, p0, p1)) \
    R(llama_pos, llama_memory_seq_pos_min, (struct llama_memory_i * m, llama_seq_id s), (m, s))                                     \
    R(llama_pos, llama_memory_seq_pos_max, (struct llama_memory_i * m, llama_seq_id s), (m, s))                                     \
    /* state */                                                                                                                     \
    R(size_t, llama_state_seq_get_size, (struct llama_context * c, llama_seq_id s), (c, s))                                         \
    R(size_t, llama_state_seq_get_data, (struct llama_context * c, uint8_t *dst, size_t n, llama_seq_id s), (c, dst, n, s))         \
    R(size_t, llama_state_seq_set_data, (struct llama_context * c, const uint8_t *src, size_t n, llama_seq_id s), (c, src, n, s))   \
    /* LoRA */                                                                                                                      \
    R(struct llama_adapter_lora *, llama_adapter_lora_init, (struct llama_model * m, const char *path), (m, path))                  \
    R(void, llama_adapter_lora_free, (struct llama_adapter_lora * a), (a))                                                          \
    R(int32_t, llama_set_adapters_lora,                                                                                             \
      (struct llama_context * c, struct llama_adapter_lora * *adapters, size_t n, float *scales), (c, adapters, n, scales))         \
    /* samplers */                                                                                                                  \
    R(struct llama_sampler *, llama_sampler_chain_init, (struct llama_sampler_chain_params p), (p))                                 \
    R(void, llama_sampler_chain_add, (struct llama_sampler * chain, struct llama_sampler * s), (chain, s))                          \
    R(void, llama_sampler_apply, (struct llama_sampler * s, struct llama_token_data_array * a), (s, a))                             \
    R(void, llama_sampler_accept, (struct llama_sampler * s, llama_token t), (s, t))                                                \
    R(void, llama_sampler_reset, (struct llama_sampler * s), (s))                                                                   \
    R(struct llama_sampler *, llama_sampler_clone, (const struct llama_sampler *s), (s))                                            \
    R(void, llama_sampler_free, (struct llama_sampler * s), (s))                                                                    \
    R(struct llama_sampler *, llama_sampler_init_greedy, (void), ())                                                                \
    R(struct llama_sampler *, llama_sampler_init_dist, (uint32_t seed), (seed))                                                     \
    R(struct llama_sampler *, llama_sampler_init_top_k, (int32_t k), (k))                                                           \
    R(struct llama_sampler *, llama_sampler_init_top_p, (float p, size_t min_keep), (p, min_keep))                                  \
    R(struct llama_sampler *, llama_sampler_init_min_p, (float p, size_t min_keep), (p, min_keep))                                  \
    R(struct llama_sampler *, llama_sampler_init_temp, (float t), (t))                                                              \
    R(struct llama_sampler *, llama_sampler_init_penalties,                                                                         \
      (int32_t n_vocab, int32_t last_n, float repeat, float freq, float present), (n_vocab, last_n, repeat, freq, present))         \
    R(struct llama_sampler *, llama_sampler_init_grammar,                                                                           \
      (const struct llama_vocab *v, const char *grammar, const char *root), (v, grammar, root))                                     \
    R(struct llama_sampler *, llama_sampler_init_logit_bias,                                                                        \
      (int32_t n_vocab, int32_t n_bias, const struct llama_logit_bias *bias), (n_vocab, n_bias, bias))

#endif
