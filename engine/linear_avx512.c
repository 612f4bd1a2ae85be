#include "linear_kernels.h"

#include <immintrin.h>

/* 12 rows by 2 vectors: 24 accumulators, so that the latency of the fused multiply-add is hidden. */
enum { MAX_ROWS = 12, AHEAD = 2048 };

static inline __attribute__((always_inline)) void store(int rows, const __m512 (*sum)[2], float *y, int64_t y_stride) {
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(y + r * y_stride, sum[r][0]);
        _mm512_storeu_ps(y + r * y_stride + 16, sum[r][1]);
    }
}

static inline __attribute__((always_inline)) void add(int rows, __m512 (*sum)[2], const float *x, int64_t x_stride,
                                                      __m512 w0, __m512 w1) {
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        __m512 v = _mm512_set1_ps(x[r * x_stride]);
        sum[r][0] = _mm512_fmadd_ps(v, w0, sum[r][0]);
        sum[r][1] = _mm512_fmadd_ps(v, w1, sum[r][1]);
    }
}

static inline __attribute__((always_inline)) void bf16_rows(int rows, int64_t in, const float *x, const char *w,
                                                            float *y, int64_t y_stride) {
    const __m512i high = _mm512_set1_epi32((int)0xFFFF0000);
    const int64_t x_stride = eng_x_stride(in);
    __m512 sum[MAX_ROWS][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int64_t i = 0; i < in; i += 2, w += 128) {
        __m512i p0 = _mm512_load_si512(w), p1 = _mm512_load_si512(w + 64);
        _mm_prefetch(w + AHEAD, _MM_HINT_T0);
        _mm_prefetch(w + AHEAD + 64, _MM_HINT_T0);
        add(rows, sum, x + i, x_stride, _mm512_castsi512_ps(_mm512_slli_epi32(p0, 16)),
            _mm512_castsi512_ps(_mm512_slli_epi32(p1, 16)));
        add(rows, sum, x + i + 1, x_stride, _mm512_castsi512_ps(_mm512_and_si512(p0, high)),
            _mm512_castsi512_ps(_mm512_and_si512(p1, high)));
    }
    store(rows, (const __m512(*)[2])sum, y, y_stride);
}

static inline __attribute__((always_inline)) void f32_rows(int rows, int64_t in, const float *x, const float *w,
                                                           float *y, int64_t y_stride) {
    const int64_t x_stride = eng_x_stride(in);
    __m512 sum[MAX_ROWS][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int64_t i = 0; i < in; i++, w += ENG_PANEL) {
        _mm_prefetch((const char *)w + AHEAD, _MM_HINT_T0);
        _mm_prefetch((const char *)w + AHEAD + 64, _MM_HINT_T0);
        add(rows, sum, x + i, x_stride, _mm512_load_ps(w), _mm512_load_ps(w + 16));
    }
    store(rows, (const __m512(*)[2])sum, y, y_stride);
}

#define EACH_ROW_COUNT(F) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12)

static void panel_bf16(int32_t rows, int64_t in, const void *x, const void *panel, float *y, int64_t y_stride) {
    switch (rows) {
#define CASE(n) \
    case n: bf16_rows(n, in, x, panel, y, y_stride); break;
        EACH_ROW_COUNT(CASE)
#undef CASE
    }
}

static void panel_f32(int32_t rows, int64_t in, const void *x, const void *panel, float *y, int64_t y_stride) {
    switch (rows) {
#define CASE(n) \
    case n: f32_rows(n, in, x, panel, y, y_stride); break;
        EACH_ROW_COUNT(CASE)
#undef CASE
    }
}

const eng_linear_kernel eng_linear_bf16_avx512 = {"bf16_avx512", ENG_ROWS_F32, true, MAX_ROWS, panel_bf16, 0, 0};
const eng_linear_kernel eng_linear_f32_avx512 = {"f32_avx512", ENG_ROWS_F32, false, MAX_ROWS, panel_f32, 0, 0};
