/* Matrix products y = x W^T with weights packed once at load. */
#ifndef RELAY_ENGINE_LINEAR_H
#define RELAY_ENGINE_LINEAR_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "linear_kernels.h"
#include "number_format.h"

typedef enum eng_compute {
    ENG_COMPUTE_AUTO, /* BF16 where the weights are bf16 and the CPU is faster at it, else F32 */
    ENG_COMPUTE_F32,  /* f32 activations times the weights as they are */
    ENG_COMPUTE_BF16  /* activations (and wider weights) rounded to bf16, sums in f32 */
} eng_compute;

/* Rows of a weight matrix as it lies in a file: [rows][in], in any alignment. */
typedef struct eng_linear_part {
    const void *data;
    eng_dtype dtype;
    int32_t rows;
} eng_linear_part;

/* out = f(gate) * up, number by number. */
typedef void (*eng_gate_fn)(int32_t n, const float *gate, const float *up, float *out);

typedef struct eng_linear {
    int32_t in, out;   /* W is [out][in] */
    int64_t in_padded; /* to ENG_INPUT_STEP, with zeros */
    int32_t panels;    /* gated: twice as many, each of the gate before that of up */
    eng_gate_fn gate;  /* NULL: not gated */
    bool round_x;
    const eng_linear_kernel *kernel;
    void *weights; /* [panels], see linear_kernels.h */
    size_t bytes;
} eng_linear;

/* The activations of a product in the kernel's layout; grows, is never shared by two threads. */
typedef struct eng_linear_scratch {
    void *data;
    size_t bytes;
} eng_linear_scratch;

/* Packs the parts' rows one below the other as one matrix, as bf16 where all of them are (or compute is BF16).
 * `kernel` NULL chooses.  The parts may go afterwards.  On failure *out is empty. */
bool eng_linear_pack(const eng_linear_part *parts, int32_t count, int32_t in, eng_compute compute,
                     const eng_linear_kernel *kernel, eng_linear *out, eng_error *err);

/* Two matrices of as many rows whose product is y = gate(x W_gate^T, x W_up^T), computed as one: what goes into
 * the gate never leaves the second-level cache. */
bool eng_linear_pack_gated(const eng_linear_part *gate, const eng_linear_part *up, eng_gate_fn fn, int32_t in,
                           eng_compute compute, const eng_linear_kernel *kernel, eng_linear *out, eng_error *err);

/* bf16 weights uniform in (-scale, scale), the same for the same seed on every machine. */
bool eng_linear_random(int32_t rows, int32_t in, float scale, uint64_t seed, eng_compute compute, eng_linear *out,
                       eng_error *err);
bool eng_linear_random_gated(int32_t rows, int32_t in, float scale, eng_gate_fn fn, uint64_t seed, eng_compute compute,
                             eng_linear *out, eng_error *err);

void eng_linear_free(eng_linear *linear);

/* x is [rows][in] and y [rows][out] with strides in numbers; they must not overlap.  A row of y does not
 * depend, to the bit, on the other rows.  Fails only where scratch cannot grow. */
bool eng_linear_apply(const eng_linear *linear, eng_linear_scratch *scratch, int32_t rows, const float *x,
                      int64_t x_stride, float *y, int64_t y_stride, eng_error *err);

void eng_linear_scratch_free(eng_linear_scratch *scratch);

#endif
