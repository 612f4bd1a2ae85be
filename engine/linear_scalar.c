#include "linear_kernels.h"

#include "number_format.h"

enum { MAX_ROWS = 4 };

static void panel_bf16(int32_t rows, int64_t in, const void *x, const void *panel, float *y, int64_t y_stride) {
    for (int32_t r = 0; r < rows; r++) {
        const float *row = (const float *)x + r * eng_x_stride(in);
        const uint16_t *w = panel;
        float sum[ENG_PANEL] = {0};
        for (int64_t i = 0; i < in; i += 2, w += 2 * ENG_PANEL) {
            for (int n = 0; n < ENG_PANEL; n++) sum[n] += row[i] * eng_f32_of_bf16(w[2 * n]);
            for (int n = 0; n < ENG_PANEL; n++) sum[n] += row[i + 1] * eng_f32_of_bf16(w[2 * n + 1]);
        }
        memcpy(y + r * y_stride, sum, sizeof sum);
    }
}

static void panel_f32(int32_t rows, int64_t in, const void *x, const void *panel, float *y, int64_t y_stride) {
    for (int32_t r = 0; r < rows; r++) {
        const float *row = (const float *)x + r * eng_x_stride(in), *w = panel;
        float sum[ENG_PANEL] = {0};
        for (int64_t i = 0; i < in; i++, w += ENG_PANEL)
            for (int n = 0; n < ENG_PANEL; n++) sum[n] += row[i] * w[n];
        memcpy(y + r * y_stride, sum, sizeof sum);
    }
}

const eng_linear_kernel eng_linear_bf16_scalar = {"bf16_scalar", ENG_ROWS_F32, true, MAX_ROWS, panel_bf16, 0, 0};
const eng_linear_kernel eng_linear_f32_scalar = {"f32_scalar", ENG_ROWS_F32, false, MAX_ROWS, panel_f32, 0, 0};
