/* What config.json and generation_config.json say of a model, checked. */
#ifndef RELAY_ENGINE_MODEL_CONFIG_H
#define RELAY_ENGINE_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

typedef enum eng_family {
    ENG_FAMILY_LLAMA,
    ENG_FAMILY_MISTRAL,
    ENG_FAMILY_QWEN2,
    ENG_FAMILY_QWEN3,
    ENG_FAMILY_GEMMA3
} eng_family;

typedef enum eng_activation { ENG_ACTIVATION_SILU, ENG_ACTIVATION_GELU_TANH } eng_activation;

typedef enum eng_rope_scaling { ENG_ROPE_DEFAULT, ENG_ROPE_LINEAR, ENG_ROPE_LLAMA3 } eng_rope_scaling;

typedef struct eng_rope_config {
    double theta;
    eng_rope_scaling scaling;
    double factor;                            /* linear, llama3 */
    double low_freq_factor, high_freq_factor; /* llama3 */
    double original_max_positions;            /* llama3 */
} eng_rope_config;

enum { ENG_MAX_LAYERS = 1024, ENG_MAX_EOS_IDS = 16 };

typedef struct eng_generation_defaults {
    bool do_sample;
    double temperature, top_p, min_p, repetition_penalty; /* 1, 1, 0, 1 where nothing is said */
    int32_t top_k;                                        /* 0: no limit */
} eng_generation_defaults;

typedef struct eng_model_config {
    eng_family family;
    int32_t hidden, layers, heads, kv_heads, head_dim, intermediate, vocab, max_positions;
    float rms_eps;
    bool tie_embeddings;
    eng_activation activation;
    bool qkv_bias;         /* Qwen2 */
    bool qk_norm;          /* Qwen3, Gemma 3 */
    bool norm_plus_one;    /* norms multiply with 1 + w: Gemma */
    bool sandwich_norms;   /* norms behind attention and MLP as well: Gemma */
    float attention_scale; /* of query times key */
    float embedding_scale;
    float attention_soft_cap, logit_soft_cap; /* 0: none */
    int32_t sliding_window;                   /* a query sees itself and sliding_window - 1 keys before it */
    bool layer_slides[ENG_MAX_LAYERS];        /* which layers have that window */
    eng_rope_config rope;                     /* of layers that see everything, and of all but Gemma's sliding ones */
    eng_rope_config sliding_rope;
    int32_t bos_id; /* -1: none */
    int32_t num_eos_ids, eos_ids[ENG_MAX_EOS_IDS];
    eng_generation_defaults generation;
    char dtype_name[16]; /* as the file says, for messages; may be empty */
} eng_model_config;

/* Reads DIR/config.json and, if there is one, DIR/generation_config.json. */
bool eng_model_config_load(const char *dir, eng_model_config *out, eng_error *err);

/* Per-layer views. */
int32_t eng_layer_window(const eng_model_config *config, int32_t layer); /* 0: sees everything */
const eng_rope_config *eng_layer_rope(const eng_model_config *config, int32_t layer);

const char *eng_family_name(eng_family family);

#endif
