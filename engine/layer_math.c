#include "layer_math.h"

#include <math.h>

/* Below this many numbers the start of a team of threads costs more than it saves. */
enum { WORTH_THREADS = 1 << 15 };

/* e^x to about one unit in the last place.  Branch-free, so that compilers vectorise loops over it;
 * x is clamped to where the result is a normal number, and NaN stays NaN. */
static inline float exp_of(float x) {
    const float log2e = 1.44269504f, ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f, to_integer = 12582912.0f;
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * log2e + to_integer, n = shifted - to_integer;
    float r = (x - n * ln2_high) - n * ln2_low;
    float p = 1.98756916e-4f;
    p = p * r + 1.39819994e-3f;
    p = p * r + 8.33345205e-3f;
    p = p * r + 4.16657962e-2f;
    p = p * r + 1.66666657e-1f;
    p = p * r + 5.0e-1f;
    float value = (p * r * r + r) + 1.0f;
    return value * eng_f32_of_bits((eng_bits_of_f32(shifted) << 23) + 0x3F800000);
}

static inline float silu(float x) {
    return x / (1.0f + exp_of(-x));
}

/* x/2 (1 + tanh(u)) = x / (1 + e^-2u) */
static inline float gelu_tanh(float x) {
    const float two_sqrt_2_over_pi = 1.59576912f;
    return x / (1.0f + exp_of(-two_sqrt_2_over_pi * (x + 0.044715f * x * x * x)));
}

/* Eight partial sums in a fixed order, so that the bits are the same on every machine. */
static float mean_square(const float *x, int32_t n) {
    float sum[8] = {0};
    int32_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int k = 0; k < 8; k++) sum[k] += x[i + k] * x[i + k];
    for (; i < n; i++) sum[i & 7] += x[i] * x[i];
    float total = ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
    return total / (float)n;
}

void eng_rms_norm(int32_t rows, int32_t n, const float *x, int64_t x_stride, const float *weight, float eps, float *out,
                  int64_t out_stride) {
#pragma omp parallel for schedule(static) if ((int64_t)rows * n > WORTH_THREADS)
    for (int32_t r = 0; r < rows; r++) {
        const float *from = x + r * x_stride;
        float *to = out + r * out_stride, scale = 1.0f / sqrtf(mean_square(from, n) + eps);
        for (int32_t i = 0; i < n; i++) to[i] = from[i] * scale * weight[i];
    }
}

void eng_add_rows(int32_t rows, int32_t n, float *x, const float *y) {
    const int64_t count = (int64_t)rows * n;
    for (int64_t i = 0; i < count; i++) x[i] += y[i];
}

static void gate_silu(int32_t n, const float *gate, float *out) {
    for (int32_t i = 0; i < n; i++) out[i] = silu(gate[i]) * gate[n + i];
}

static void gate_gelu(int32_t n, const float *gate, float *out) {
    for (int32_t i = 0; i < n; i++) out[i] = gelu_tanh(gate[i]) * gate[n + i];
}

void eng_gate_rows(int32_t rows, int32_t n, eng_activation activation, const float *gate_up, float *out) {
#pragma omp parallel for schedule(static) if ((int64_t)rows * n > WORTH_THREADS)
    for (int32_t r = 0; r < rows; r++) {
        const float *gate = gate_up + 2 * (int64_t)r * n;
        float *to = out + (int64_t)r * n;
        if (activation == ENG_ACTIVATION_SILU) gate_silu(n, gate, to);
        else gate_gelu(n, gate, to);
    }
}

void eng_gather_rows(int32_t rows, int32_t n, const void *table, eng_dtype dtype, const int32_t *tokens, float scale,
                     float *out) {
    for (int32_t r = 0; r < rows; r++) {
        const char *from = (const char *)table + (size_t)tokens[r] * (size_t)n * eng_dtype_size(dtype);
        float *to = out + (int64_t)r * n;
        for (int32_t i = 0; i < n; i++) to[i] = scale * eng_f32_at(from, dtype, i);
    }
}

void eng_soft_cap(int64_t count, float cap, float *x) {
#pragma omp parallel for schedule(static) if (count > WORTH_THREADS)
    for (int64_t i = 0; i < count; i++) x[i] = cap * tanhf(x[i] / cap);
}

/* Llama 3.1's: long waves are stretched by the factor, short ones kept, those between blended. */
static double scale_llama3(const eng_rope_config *rope, double inverse) {
    const double wave = 2 * 3.14159265358979323846 / inverse;
    const double waves = rope->original_max_positions / wave;
    double keep = (waves - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
    keep = keep < 0 ? 0 : keep > 1 ? 1 : keep;
    return (1 - keep) * inverse / rope->factor + keep * inverse;
}

void eng_rope_frequencies(const eng_rope_config *rope, int32_t dim, float *inverse) {
    for (int32_t i = 0; i < dim / 2; i++) {
        double value = (float)pow(rope->theta, -2.0 * i / dim); /* in f32, as models are trained */
        if (rope->scaling == ENG_ROPE_LINEAR) value /= rope->factor;
        if (rope->scaling == ENG_ROPE_LLAMA3) value = scale_llama3(rope, value);
        inverse[i] = (float)value;
    }
}

/* The angle is rounded to f32 before its sine is taken, as models are trained. */
void eng_rope_table(int32_t rows, int32_t dim, const float *inverse, const int32_t *positions, float *table) {
    const int32_t half = dim / 2;
#pragma omp parallel for schedule(static) if ((int64_t)rows * dim > WORTH_THREADS / 4)
    for (int32_t r = 0; r < rows; r++) {
        float *row = table + (int64_t)r * dim;
        for (int32_t i = 0; i < half; i++) {
            float angle = (float)positions[r] * inverse[i];
            row[i] = cosf(angle);
            row[half + i] = sinf(angle);
        }
    }
}

static void rotate_head(int32_t half, const float *x, const float *table, float *out) {
    for (int32_t i = 0; i < half; i++) {
        float a = x[i], b = x[half + i], cosine = table[i], sine = table[half + i];
        out[i] = a * cosine - b * sine;
        out[half + i] = b * cosine + a * sine;
    }
}

void eng_rotate(int32_t rows, int32_t heads, int32_t dim, const float *x, int64_t x_stride, const float *table,
                float *out) {
#pragma omp parallel for schedule(static) if ((int64_t)rows * heads * dim > WORTH_THREADS)
    for (int32_t r = 0; r < rows; r++)
        for (int32_t h = 0; h < heads; h++)
            rotate_head(dim / 2, x + r * x_stride + (int64_t)h * dim, table + (int64_t)r * dim,
                        out + ((int64_t)r * heads + h) * dim);
}
