/* The arithmetic of a layer beside its matrix products and its attention; all of it in f32, each row on
 * its own.  Rows have strides in numbers. */
#ifndef RELAY_ENGINE_LAYER_MATH_H
#define RELAY_ENGINE_LAYER_MATH_H

#include <stdint.h>

#include "linear.h"
#include "model/model_config.h"
#include "number_format.h"

/* out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight; out may be x. */
void eng_rms_norm(int32_t rows, int32_t n, const float *x, int64_t x_stride, const float *weight, float eps, float *out,
                  int64_t out_stride);

/* x[r] += y[r] */
void eng_add_rows(int32_t rows, int32_t n, float *x, const float *y);

/* out = activation(gate) * up */
eng_gate_fn eng_gate_of(eng_activation activation);

/* out[r] = scale * table[tokens[r]]; the tokens have been checked. */
void eng_gather_rows(int32_t rows, int32_t n, const void *table, eng_dtype dtype, const int32_t *tokens, float scale,
                     float *out);

/* out = x, rounded to bf16 */
void eng_round_rows(int32_t rows, int32_t n, const float *x, uint16_t *out);

/* x = cap * tanh(x / cap) */
void eng_soft_cap(int64_t count, float cap, float *x);

/* Angles per position of the dim/2 rotated pairs, scaling applied; inverse has dim/2 numbers. */
void eng_rope_frequencies(const eng_rope_config *rope, int32_t dim, float *inverse);

/* table[r] = dim/2 cosines, then dim/2 sines, for positions[r]. */
void eng_rope_table(int32_t rows, int32_t dim, const float *inverse, const int32_t *positions, float *table);

/* Rotates the pairs (i, i + dim/2) of x[r][head]; out has no gaps and may be x where x has none. */
void eng_rotate(int32_t rows, int32_t heads, int32_t dim, const float *x, int64_t x_stride, const float *table,
                float *out);

#endif
