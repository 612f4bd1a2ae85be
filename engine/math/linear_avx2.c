#include "linear_kernels.h"

#include <immintrin.h>

/* 6 rows by 2 vectors, half a panel at a time: 12 accumulators of 16 registers. */
enum { MAX_ROWS = 6, HALF_PANEL = ENG_PANEL / 2 };

static inline __attribute__((always_inline)) void begin(int rows, __m256 (*sum)[2], const eng_run *run, int column) {
    const float *sums = run->sums + column;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        sum[r][0] = run->first > 0 ? _mm256_loadu_ps(sums + r * ENG_PANEL) : _mm256_setzero_ps();
        sum[r][1] = run->first > 0 ? _mm256_loadu_ps(sums + r * ENG_PANEL + 8) : _mm256_setzero_ps();
    }
}

static inline __attribute__((always_inline)) void add(int rows, __m256 (*sum)[2], const float *x, int64_t x_stride,
                                                      __m256 w0, __m256 w1) {
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        __m256 v = _mm256_broadcast_ss(x + r * x_stride);
        sum[r][0] = _mm256_fmadd_ps(v, w0, sum[r][0]);
        sum[r][1] = _mm256_fmadd_ps(v, w1, sum[r][1]);
    }
}

static inline __attribute__((always_inline)) void end(int rows, const __m256 (*sum)[2], const eng_run *run, int column) {
    float *sums = run->sums + column;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        _mm256_storeu_ps(sums + r * ENG_PANEL, sum[r][0]);
        _mm256_storeu_ps(sums + r * ENG_PANEL + 8, sum[r][1]);
    }
}

static inline __attribute__((always_inline)) void bf16_half(int rows, const eng_run *run, int column) {
    const __m256i high = _mm256_set1_epi32((int)0xFFFF0000);
    const int64_t x_stride = eng_x_stride(run->in), last = run->first + run->count;
    const float *x = run->x;
    const char *w = run->panel + run->first * 2 * ENG_PANEL + column * 4;
    __m256 sum[MAX_ROWS][2];
    begin(rows, sum, run, column);
    for (int64_t i = run->first; i < last; i += 2, w += 4 * ENG_PANEL) {
        __m256i p0 = _mm256_load_si256((const __m256i *)w), p1 = _mm256_load_si256((const __m256i *)(w + 32));
        add(rows, sum, x + i, x_stride, _mm256_castsi256_ps(_mm256_slli_epi32(p0, 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(p1, 16)));
        add(rows, sum, x + i + 1, x_stride, _mm256_castsi256_ps(_mm256_and_si256(p0, high)),
            _mm256_castsi256_ps(_mm256_and_si256(p1, high)));
    }
    end(rows, (const __m256(*)[2])sum, run, column);
}

static inline __attribute__((always_inline)) void f32_half(int rows, const eng_run *run, int column) {
    const int64_t x_stride = eng_x_stride(run->in), last = run->first + run->count;
    const float *x = run->x, *w = (const float *)(const void *)run->panel + run->first * ENG_PANEL + column;
    __m256 sum[MAX_ROWS][2];
    begin(rows, sum, run, column);
    for (int64_t i = run->first; i < last; i++, w += ENG_PANEL)
        add(rows, sum, x + i, x_stride, _mm256_load_ps(w), _mm256_load_ps(w + 8));
    end(rows, (const __m256(*)[2])sum, run, column);
}

#define EACH_ROW_COUNT(F) F(1) F(2) F(3) F(4) F(5) F(6)

static void run_bf16(const eng_run *run) {
    for (int column = 0; column < ENG_PANEL; column += HALF_PANEL) {
        switch (run->rows) {
#define CASE(n) \
    case n: bf16_half(n, run, column); break;
            EACH_ROW_COUNT(CASE)
#undef CASE
        }
    }
}

static void run_f32(const eng_run *run) {
    for (int column = 0; column < ENG_PANEL; column += HALF_PANEL) {
        switch (run->rows) {
#define CASE(n) \
    case n: f32_half(n, run, column); break;
            EACH_ROW_COUNT(CASE)
#undef CASE
        }
    }
}

const eng_linear_kernel eng_linear_bf16_avx2 = {"bf16_avx2", ENG_ROWS_F32, true, MAX_ROWS, run_bf16, 0, 0, 0};
const eng_linear_kernel eng_linear_f32_avx2 = {"f32_avx2", ENG_ROWS_F32, false, MAX_ROWS, run_f32, 0, 0, 0};
