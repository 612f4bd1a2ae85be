#include "linear_kernels.h"

#include <immintrin.h>
#include <string.h>

enum { MAX_ROWS = 12, AHEAD = 2048 };

/* A pair of activations as one 32-bit lane, repeated. */
static inline __attribute__((always_inline)) __m512bh broadcast_pair(const uint16_t *x) {
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}

static inline __attribute__((always_inline)) void dot_rows(int rows, int64_t in, const uint16_t *x, const char *w,
                                                           float *y, int64_t y_stride) {
    const int64_t x_stride = eng_x_stride(in);
    __m512 sum[MAX_ROWS][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int64_t i = 0; i < in; i += 2, w += 128) {
        __m512bh w0 = (__m512bh)_mm512_load_si512(w), w1 = (__m512bh)_mm512_load_si512(w + 64);
        _mm_prefetch(w + AHEAD, _MM_HINT_T0);
        _mm_prefetch(w + AHEAD + 64, _MM_HINT_T0);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            __m512bh v = broadcast_pair(x + r * x_stride + i);
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], v, w0);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], v, w1);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(y + r * y_stride, sum[r][0]);
        _mm512_storeu_ps(y + r * y_stride + 16, sum[r][1]);
    }
}

#define EACH_ROW_COUNT(F) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12)

static void panel_bf16(int32_t rows, int64_t in, const void *x, const void *panel, float *y, int64_t y_stride) {
    switch (rows) {
#define CASE(n) \
    case n: dot_rows(n, in, x, panel, y, y_stride); break;
        EACH_ROW_COUNT(CASE)
#undef CASE
    }
}

const eng_linear_kernel eng_linear_bf16_avx512bf16 = {
    "bf16_avx512bf16", ENG_ROWS_BF16, true, MAX_ROWS, panel_bf16, 0, 0};
