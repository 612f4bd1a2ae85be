#include "linear.h"

#include <stdlib.h>

#include "big_memory.h"

static int64_t round_up(int64_t n, int64_t step) {
    return (n + step - 1) / step * step;
}

static size_t panel_bytes(const eng_linear *linear) {
    return (size_t)linear->in_padded * ENG_PANEL * (linear->kernel->weights_bf16 ? 2 : 4);
}

/* Sets every field; the weights are uninitialised. */
static bool prepare(eng_linear *linear, int32_t rows, int32_t in, bool round_x, const eng_linear_kernel *kernel,
                    eng_error *err) {
    linear->in = in;
    linear->out = rows;
    linear->in_padded = round_up(in, ENG_INPUT_STEP);
    linear->panels = (int32_t)(round_up(rows, ENG_PANEL) / ENG_PANEL);
    linear->round_x = round_x;
    linear->kernel = kernel;
    size_t each = panel_bytes(linear);
    if (each > SIZE_MAX / 2 / (size_t)linear->panels) return eng_fail(err, "a %d by %d matrix is too large", rows, in);
    linear->bytes = each * (size_t)linear->panels;
    linear->weights = eng_big_alloc(linear->bytes);
    if (linear->weights == NULL) return eng_fail(err, "out of memory for %zu bytes of weights", linear->bytes);
    return true;
}

/* Numbers [first, last) of column n of a panel, from one row of the file. */
static void pack_column(const eng_linear *linear, void *panel, int n, const void *row, eng_dtype dtype, int64_t first,
                        int64_t last) {
    if (!linear->kernel->weights_bf16) {
        float *to = (float *)panel + n;
        for (int64_t i = first; i < last; i++) to[i * ENG_PANEL] = eng_f32_at(row, dtype, i);
        return;
    }
    uint16_t *to = (uint16_t *)panel + 2 * n;
    for (int64_t i = first; i < last; i++) {
        uint16_t half;
        if (dtype == ENG_DTYPE_BF16) memcpy(&half, (const char *)row + 2 * i, sizeof half);
        else half = eng_bf16_of_f32(eng_f32_at(row, dtype, i));
        to[i / 2 * 2 * ENG_PANEL + i % 2] = half;
    }
}

typedef struct part_row {
    const void *data;
    eng_dtype dtype;
} part_row;

static part_row find_row(const eng_linear_part *parts, int64_t row, int32_t in) {
    while (row >= parts->rows) row -= parts++->rows;
    size_t bytes = (size_t)row * (size_t)in * eng_dtype_size(parts->dtype);
    return (part_row){(const char *)parts->data + bytes, parts->dtype};
}

/* In short steps along the input, so that what is written stays in the first-level cache. */
static void pack_panel(const eng_linear *linear, const eng_linear_part *parts, int64_t p) {
    char *panel = (char *)linear->weights + (size_t)p * panel_bytes(linear);
    const int64_t first = p * ENG_PANEL;
    const int columns = linear->out - first < ENG_PANEL ? (int)(linear->out - first) : ENG_PANEL;
    part_row rows[ENG_PANEL];
    for (int n = 0; n < columns; n++) rows[n] = find_row(parts, first + n, linear->in);
    if (linear->in_padded != linear->in || columns < ENG_PANEL) memset(panel, 0, panel_bytes(linear));
    for (int64_t i = 0; i < linear->in; i += ENG_INPUT_STEP) {
        int64_t last = i + ENG_INPUT_STEP < linear->in ? i + ENG_INPUT_STEP : linear->in;
        for (int n = 0; n < columns; n++) pack_column(linear, panel, n, rows[n].data, rows[n].dtype, i, last);
    }
}

static bool all_bf16(const eng_linear_part *parts, int32_t count) {
    for (int32_t i = 0; i < count; i++)
        if (parts[i].dtype != ENG_DTYPE_BF16) return false;
    return true;
}

bool eng_linear_pack(const eng_linear_part *parts, int32_t count, int32_t in, eng_compute compute,
                     const eng_linear_kernel *kernel, eng_linear *out, eng_error *err) {
    memset(out, 0, sizeof *out);
    int64_t rows = 0;
    for (int32_t i = 0; i < count; i++) rows += parts[i].rows;
    if (rows < 1 || rows > INT32_MAX - ENG_PANEL || in < 1) return eng_fail(err, "a matrix has no or too many rows");
    bool bf16 = all_bf16(parts, count);
    bool round_x = compute == ENG_COMPUTE_BF16 || (compute == ENG_COMPUTE_AUTO && bf16 && eng_linear_prefers_bf16());
    if (kernel == NULL) kernel = eng_linear_choose(bf16 || round_x, round_x);
    if (!prepare(out, (int32_t)rows, in, round_x, kernel, err)) return false;
#pragma omp parallel for schedule(dynamic, 1)
    for (int32_t p = 0; p < out->panels; p++) pack_panel(out, parts, p);
    return true;
}

static uint64_t mix(uint64_t x) { /* splitmix64 */
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* The sign and 7 bits of mantissa are drawn: magnitudes uniform in [scale/2, scale), exactly bf16. */
static void fill_random(uint16_t *weights, size_t count, uint16_t exponent_bits, uint64_t seed) {
    uint64_t *to = (uint64_t *)(void *)weights;
    const uint64_t base = (uint64_t)exponent_bits * 0x0001000100010001u;
    for (size_t i = 0; i < count / 4; i++) to[i] = (mix(seed + i) & 0x807F807F807F807Fu) | base;
}

static void fill_random_panel(const eng_linear *linear, int64_t p, uint16_t exponent_bits, uint64_t seed) {
    uint16_t *panel = (uint16_t *)linear->weights + (size_t)p * (size_t)linear->in_padded * ENG_PANEL;
    fill_random(panel, (size_t)linear->in_padded * ENG_PANEL, exponent_bits, mix(seed) + ((uint64_t)p << 32));
}

bool eng_linear_random(int32_t rows, int32_t in, float scale, uint64_t seed, eng_compute compute, eng_linear *out,
                       eng_error *err) {
    memset(out, 0, sizeof *out);
    bool round_x = compute == ENG_COMPUTE_BF16 || (compute == ENG_COMPUTE_AUTO && eng_linear_prefers_bf16());
    if (!prepare(out, rows, in, round_x, eng_linear_choose(true, round_x), err)) return false;
    uint16_t exponent_bits = eng_bf16_of_f32(scale / 2) & 0x7F80;
#pragma omp parallel for schedule(dynamic, 1)
    for (int32_t p = 0; p < out->panels; p++) fill_random_panel(out, p, exponent_bits, seed);
    return true;
}

void eng_linear_free(eng_linear *linear) {
    free(linear->weights);
    memset(linear, 0, sizeof *linear);
}

void eng_linear_scratch_free(eng_linear_scratch *scratch) {
    free(scratch->data);
    memset(scratch, 0, sizeof *scratch);
}

static bool grow(eng_linear_scratch *scratch, size_t bytes, eng_error *err) {
    if (bytes <= scratch->bytes) return true;
    eng_linear_scratch_free(scratch);
    scratch->data = eng_big_alloc(bytes);
    if (scratch->data == NULL) return eng_fail(err, "out of memory for %zu bytes of activations", bytes);
    scratch->bytes = bytes;
    return true;
}

/* One product, as its threads see it. */
typedef struct job {
    const eng_linear *linear;
    int32_t rows;
    int64_t rows_padded;
    const float *x;
    int64_t x_stride;
    void *packed_x;
    float *y;
    int64_t y_stride;
} job;

static void pack_row_f32(const job *j, int64_t r) {
    const eng_linear *linear = j->linear;
    float *to = (float *)j->packed_x + r * eng_x_stride(linear->in_padded);
    const float *x = j->x + r * j->x_stride;
    if (linear->round_x) for (int64_t i = 0; i < linear->in; i++) to[i] = eng_f32_of_bf16(eng_bf16_of_f32(x[i]));
    else memcpy(to, x, (size_t)linear->in * sizeof *x);
    memset(to + linear->in, 0, (size_t)(linear->in_padded - linear->in) * sizeof *to);
}

/* One step of ENG_INPUT_STEP numbers, of which `count` exist; the whole step is a loop that vectorises. */
static void pack_step_bf16(const float *x, int64_t count, uint16_t *to) {
    if (count >= ENG_INPUT_STEP) {
        for (int n = 0; n < ENG_INPUT_STEP; n++) to[n] = eng_bf16_of_f32(x[n]);
        return;
    }
    for (int n = 0; n < ENG_INPUT_STEP; n++) to[n] = n < count ? eng_bf16_of_f32(x[n]) : 0;
}

static void pack_row_bf16(const job *j, int64_t r) {
    const eng_linear *linear = j->linear;
    const bool tiles = linear->kernel->x_layout == ENG_TILES_BF16;
    const int64_t step_stride = tiles ? ENG_TILE_ROWS * ENG_INPUT_STEP : ENG_INPUT_STEP;
    uint16_t *to = (uint16_t *)j->packed_x + r * eng_x_stride(linear->in_padded);
    if (tiles)
        to = (uint16_t *)j->packed_x + r / ENG_TILE_ROWS * ENG_TILE_ROWS * linear->in_padded +
             r % ENG_TILE_ROWS * ENG_INPUT_STEP;
    const int64_t in = r < j->rows ? linear->in : 0;
    const float *x = j->x + (r < j->rows ? r : 0) * j->x_stride;
    for (int64_t i = 0; i < linear->in_padded; i += ENG_INPUT_STEP, to += step_stride)
        pack_step_bf16(x + (i < in ? i : 0), in - i, to);
}

static void pack_row(const job *j, int64_t r) {
    if (j->linear->kernel->x_layout == ENG_ROWS_F32) pack_row_f32(j, r);
    else pack_row_bf16(j, r);
}

static size_t packed_row_bytes(const eng_linear *linear) {
    const size_t in = (size_t)linear->in_padded, stride = (size_t)eng_x_stride(linear->in_padded);
    if (linear->kernel->x_layout == ENG_TILES_BF16) return in * sizeof(uint16_t);
    return stride * (linear->kernel->x_layout == ENG_ROWS_F32 ? sizeof(float) : sizeof(uint16_t));
}

static void multiply_panel(const job *j, int64_t p) {
    const eng_linear *linear = j->linear;
    const eng_linear_kernel *kernel = linear->kernel;
    const char *panel = (const char *)linear->weights + (size_t)p * panel_bytes(linear);
    const size_t x_row = packed_row_bytes(linear);
    const int64_t columns = linear->out - p * ENG_PANEL;
    float edge[ENG_MAX_KERNEL_ROWS * ENG_PANEL]; /* a last panel is wider than y */
    for (int32_t r = 0; r < j->rows; r += kernel->max_rows) {
        int32_t rows = j->rows - r < kernel->max_rows ? j->rows - r : kernel->max_rows;
        const char *x = (const char *)j->packed_x + (size_t)r * x_row;
        float *y = j->y + r * j->y_stride + p * ENG_PANEL;
        if (columns >= ENG_PANEL) {
            kernel->panel(rows, linear->in_padded, x, panel, y, j->y_stride);
            continue;
        }
        kernel->panel(rows, linear->in_padded, x, panel, edge, ENG_PANEL);
        for (int32_t i = 0; i < rows; i++)
            memcpy(y + i * j->y_stride, edge + i * ENG_PANEL, (size_t)columns * sizeof *y);
    }
}

static void run_job(const job *j) {
    const eng_linear_kernel *kernel = j->linear->kernel;
#pragma omp parallel
    {
        if (kernel->thread_begin) kernel->thread_begin();
#pragma omp for schedule(static)
        for (int64_t r = 0; r < j->rows_padded; r++) pack_row(j, r);
#pragma omp for schedule(dynamic, 1) nowait
        for (int32_t p = 0; p < j->linear->panels; p++) multiply_panel(j, p);
        if (kernel->thread_end) kernel->thread_end();
    }
}

bool eng_linear_apply(const eng_linear *linear, eng_linear_scratch *scratch, int32_t rows, const float *x,
                      int64_t x_stride, float *y, int64_t y_stride, eng_error *err) {
    if (rows < 1) return true;
    job j = {.linear = linear, .rows = rows, .rows_padded = rows, .x = x, .x_stride = x_stride, .y = y,
             .y_stride = y_stride};
    if (linear->kernel->x_layout == ENG_TILES_BF16) j.rows_padded = round_up(rows, ENG_TILE_ROWS);
    if (!grow(scratch, (size_t)j.rows_padded * packed_row_bytes(linear), err)) return false;
    j.packed_x = scratch->data;
    run_job(&j);
    return true;
}
