#include "linear_kernels.h"

#include "number_format.h"

enum { MAX_ROWS = 4 };

static void begin(const eng_run *run, int32_t r, float *sum) {
    if (run->first > 0) memcpy(sum, run->sums + r * ENG_PANEL, ENG_PANEL * sizeof *sum);
    else memset(sum, 0, ENG_PANEL * sizeof *sum);
}

static void run_bf16(const eng_run *run) {
    for (int32_t r = 0; r < run->rows; r++) {
        const float *x = (const float *)run->x + r * eng_x_stride(run->in);
        const uint16_t *w = (const uint16_t *)(const void *)run->panel + run->first * ENG_PANEL;
        float sum[ENG_PANEL];
        begin(run, r, sum);
        for (int64_t i = run->first; i < run->first + run->count; i += 2, w += 2 * ENG_PANEL) {
            for (int n = 0; n < ENG_PANEL; n++) sum[n] += x[i] * eng_f32_of_bf16(w[2 * n]);
            for (int n = 0; n < ENG_PANEL; n++) sum[n] += x[i + 1] * eng_f32_of_bf16(w[2 * n + 1]);
        }
        memcpy(run->sums + r * ENG_PANEL, sum, sizeof sum);
    }
}

static void run_f32(const eng_run *run) {
    for (int32_t r = 0; r < run->rows; r++) {
        const float *x = (const float *)run->x + r * eng_x_stride(run->in);
        const float *w = (const float *)(const void *)run->panel + run->first * ENG_PANEL;
        float sum[ENG_PANEL];
        begin(run, r, sum);
        for (int64_t i = run->first; i < run->first + run->count; i++, w += ENG_PANEL)
            for (int n = 0; n < ENG_PANEL; n++) sum[n] += x[i] * w[n];
        memcpy(run->sums + r * ENG_PANEL, sum, sizeof sum);
    }
}

const eng_linear_kernel eng_linear_bf16_scalar = {"bf16_scalar", ENG_ROWS_F32, true, MAX_ROWS, run_bf16, 0, 0, 0};
const eng_linear_kernel eng_linear_f32_scalar = {"f32_scalar", ENG_ROWS_F32, false, MAX_ROWS, run_f32, 0, 0, 0};
