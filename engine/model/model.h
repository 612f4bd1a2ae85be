/* A decoder of the supported families: everything of a forward step but attention itself.
 *
 * Attention is the caller's: for each layer it is given the step's queries, keys and values, normed and
 * rotated, and returns the heads' outputs.  A row's result depends, to the bit, on its own token, position
 * and attention output alone, never on the rows computed beside it.
 *
 * The work is done by the OpenMP threads that omp_set_num_threads() allows.  One model is used by one
 * caller at a time. */
#ifndef RELAY_ENGINE_MODEL_H
#define RELAY_ENGINE_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "math/linear.h"
#include "model_config.h"
#include "relay/base.h"

typedef struct eng_model eng_model;

typedef struct eng_model_options {
    eng_compute compute; /* 0: AUTO */
} eng_model_options;

/* One layer's attention.  Arrays are dense and live during the call. */
typedef struct eng_attend_io {
    int32_t rows;
    const int32_t *positions; /* [rows] */
    const float *q;           /* [rows][heads][head_dim] */
    const float *k, *v;       /* [rows][kv_heads][head_dim] */
    float *out;               /* [rows][heads][head_dim] */
} eng_attend_io;

/* Scores are attention_scale * <q, k>; config has the layer's window and the soft cap. */
typedef bool (*eng_attend_fn)(void *user, int32_t layer, const eng_attend_io *io, eng_error *err);

typedef struct eng_step {
    int32_t rows;
    const int32_t *tokens;    /* [rows] */
    const int32_t *positions; /* [rows] */
    int32_t num_logit_rows;   /* may be 0 */
    const int32_t *logit_rows; /* [num_logit_rows], indices of rows */
    float *logits;             /* [num_logit_rows][vocab] */
} eng_step;

/* Reads a directory as published on model hubs.  `options` NULL: the defaults.  On failure *out is NULL. */
bool eng_model_load(const char *dir, const eng_model_options *options, eng_model **out, eng_error *err);

/* Random weights of a named shape, for timing: "llama-1b", or "tiny" for tests. */
bool eng_model_random(const char *shape, const eng_model_options *options, eng_model **out, eng_error *err);

void eng_model_free(eng_model *model);

const eng_model_config *eng_model_config_of(const eng_model *model);

/* Bytes of weights that a decode step reads, and the kernel that multiplies them ("bf16_amx"). */
size_t eng_model_weight_bytes(const eng_model *model);
const char *eng_model_kernel_name(const eng_model *model);

/* What the products of the first layer leave of their input, and so what a query is worth: RELAY_BF16 where they round
 * it, else RELAY_F32. */
relay_dtype eng_model_query_dtype(const eng_model *model);

/* Floating-point operations of the matrix products of one step. */
double eng_model_linear_flops(const eng_model *model, int32_t rows, int32_t num_logit_rows);

/* Bytes of weights that one step reads: without the head where no logits are wanted. */
size_t eng_model_step_bytes(const eng_model *model, int32_t num_logit_rows);

/* Spent in matrix products since the model was made. */
double eng_model_linear_seconds(const eng_model *model);

/* Tokens, positions and logit rows are checked before anything is computed.  Where attend fails, so does
 * the step, with attend's message. */
bool eng_model_forward(eng_model *model, const eng_step *step, eng_attend_fn attend, void *user, eng_error *err);

#endif
