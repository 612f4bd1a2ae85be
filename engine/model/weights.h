/* A model's weights: found by their names in a checkpoint, checked against its config, and packed. */
#ifndef RELAY_ENGINE_WEIGHTS_H
#define RELAY_ENGINE_WEIGHTS_H

#include "math/linear.h"
#include "model_config.h"
#include "safetensors.h"

typedef struct eng_layer_weights {
    float *attention_norm, *mlp_norm;                  /* before */
    float *attention_post_norm, *mlp_post_norm;        /* behind; NULL but for Gemma */
    float *query_norm, *key_norm;                      /* [head_dim] or NULL */
    float *qkv_bias;                                   /* [(heads + 2 kv_heads) head_dim] or NULL */
    eng_linear qkv;     /* the rows of query, key and value, in this order */
    eng_linear output;
    eng_linear gate_up; /* gated: its product is what `down` takes */
    eng_linear down;
} eng_layer_weights;

typedef struct eng_weights {
    int32_t num_layers;
    eng_layer_weights *layers;
    float *final_norm;
    eng_linear head;
    const void *embedding; /* [vocab][hidden], borrowed from the checkpoint or from own_embedding */
    eng_dtype embedding_dtype;
    void *own_embedding;
    eng_safetensors *checkpoint; /* stays open for the embedding; NULL for a random model */
} eng_weights;

/* On failure *out is empty. */
bool eng_weights_load(const char *dir, const eng_model_config *config, eng_compute compute, eng_weights *out,
                      eng_error *err);

/* Random bf16 weights of the config's shape: for timing, they mean nothing. */
bool eng_weights_random(const eng_model_config *config, uint64_t seed, eng_compute compute, eng_weights *out,
                        eng_error *err);

void eng_weights_free(eng_weights *weights);

/* Bytes of packed weights, the head included. */
size_t eng_weights_bytes(const eng_weights *weights);

#endif
