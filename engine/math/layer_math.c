#include "layer_math.h"

#include <math.h>
#include <stdbool.h>

#include "row_loops.h"

/* Below this many numbers the start of a team of threads costs more than it saves. */
enum { WORTH_THREADS = 1 << 15 };

void eng_rms_norm(int32_t rows, int32_t n, const float *x, int64_t x_stride, const float *weight, float eps, float *out,
                  int64_t out_stride) {
    const eng_row_loops *loops = eng_row_loops_choose();
#pragma omp parallel for schedule(static) if ((int64_t)rows * n > WORTH_THREADS)
    for (int32_t r = 0; r < rows; r++) loops->norm(n, x + r * x_stride, weight, eps, out + r * out_stride);
}

void eng_add_rows(int32_t rows, int32_t n, float *x, const float *y) {
    const eng_row_loops *loops = eng_row_loops_choose();
#pragma omp parallel for schedule(static) if ((int64_t)rows * n > WORTH_THREADS)
    for (int32_t r = 0; r < rows; r++) loops->add(n, x + (int64_t)r * n, y + (int64_t)r * n);
}

eng_gate_fn eng_gate_of(eng_activation activation) {
    const eng_row_loops *loops = eng_row_loops_choose();
    return activation == ENG_ACTIVATION_SILU ? loops->gate_silu : loops->gate_gelu;
}

static void gather_row(const eng_row_loops *loops, int32_t n, const char *from, eng_dtype dtype, float scale, float *to) {
    if (dtype == ENG_DTYPE_BF16 && (uintptr_t)from % sizeof(uint16_t) == 0)
        loops->widen(n, scale, (const uint16_t *)(const void *)from, to);
    else for (int32_t i = 0; i < n; i++) to[i] = scale * eng_f32_at(from, dtype, i);
}

void eng_gather_rows(int32_t rows, int32_t n, const void *table, eng_dtype dtype, const int32_t *tokens, float scale,
                     float *out) {
    const eng_row_loops *loops = eng_row_loops_choose();
#pragma omp parallel for schedule(static) if ((int64_t)rows * n > WORTH_THREADS)
    for (int32_t r = 0; r < rows; r++) {
        const char *from = (const char *)table + (size_t)tokens[r] * (size_t)n * eng_dtype_size(dtype);
        gather_row(loops, n, from, dtype, scale, out + (int64_t)r * n);
    }
}

void eng_round_rows(int32_t rows, int32_t n, const float *x, uint16_t *out) {
    const eng_row_loops *loops = eng_row_loops_choose();
#pragma omp parallel for schedule(static) if ((int64_t)rows * n > WORTH_THREADS)
    for (int32_t r = 0; r < rows; r++) loops->round(n, x + (int64_t)r * n, out + (int64_t)r * n);
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
