#include "linear_kernels.h"

#include <immintrin.h>

/* 12 rows by 2 vectors: 24 accumulators, so that the latency of the fused multiply-add is hidden. */
enum { MAX_ROWS = 12 };

static inline __attribute__((always_inline)) void begin(int rows, __m512 (*sum)[2], const eng_run *run) {
    const float *sums = run->sums;
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        sum[r][0] = run->first > 0 ? _mm512_loadu_ps(sums + r * ENG_PANEL) : _mm512_setzero_ps();
        sum[r][1] = run->first > 0 ? _mm512_loadu_ps(sums + r * ENG_PANEL + 16) : _mm512_setzero_ps();
    }
}

static inline __attribute__((always_inline)) void end(int rows, const __m512 (*sum)[2], const eng_run *run) {
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(run->sums + r * ENG_PANEL, sum[r][0]);
        _mm512_storeu_ps(run->sums + r * ENG_PANEL + 16, sum[r][1]);
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

static inline __attribute__((always_inline)) void fetch(const char *at) {
    _mm_prefetch(at, _MM_HINT_T0);
    _mm_prefetch(at + 64, _MM_HINT_T0);
}

static inline __attribute__((always_inline)) void bf16_rows(int rows, const eng_run *run) {
    const __m512i high = _mm512_set1_epi32((int)0xFFFF0000);
    const int64_t x_stride = eng_x_stride(run->in), last = run->first + run->count;
    const int64_t ahead_step = run->ahead_step * 2 / ENG_INPUT_STEP;
    const float *x = run->x;
    const char *w = run->panel + run->first * 2 * ENG_PANEL, *ahead = run->ahead;
    __m512 sum[MAX_ROWS][2];
    begin(rows, sum, run);
    for (int64_t i = run->first; i < last; i += 2, w += 4 * ENG_PANEL, ahead += ahead_step) {
        __m512i p0 = _mm512_load_si512(w), p1 = _mm512_load_si512(w + 64);
        fetch(ahead);
        add(rows, sum, x + i, x_stride, _mm512_castsi512_ps(_mm512_slli_epi32(p0, 16)),
            _mm512_castsi512_ps(_mm512_slli_epi32(p1, 16)));
        add(rows, sum, x + i + 1, x_stride, _mm512_castsi512_ps(_mm512_and_si512(p0, high)),
            _mm512_castsi512_ps(_mm512_and_si512(p1, high)));
    }
    end(rows, (const __m512(*)[2])sum, run);
}

static inline __attribute__((always_inline)) void f32_rows(int rows, const eng_run *run) {
    const int64_t x_stride = eng_x_stride(run->in), last = run->first + run->count;
    const int64_t ahead_step = run->ahead_step / ENG_INPUT_STEP;
    const float *x = run->x, *w = (const float *)(const void *)run->panel + run->first * ENG_PANEL;
    const char *ahead = run->ahead;
    __m512 sum[MAX_ROWS][2];
    begin(rows, sum, run);
    for (int64_t i = run->first; i < last; i++, w += ENG_PANEL, ahead += ahead_step) {
        fetch(ahead);
        add(rows, sum, x + i, x_stride, _mm512_load_ps(w), _mm512_load_ps(w + 16));
    }
    end(rows, (const __m512(*)[2])sum, run);
}

#define EACH_ROW_COUNT(F) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12)

static void run_bf16(const eng_run *run) {
    switch (run->rows) {
#define CASE(n) \
    case n: bf16_rows(n, run); break;
        EACH_ROW_COUNT(CASE)
#undef CASE
    }
}

static void run_f32(const eng_run *run) {
    switch (run->rows) {
#define CASE(n) \
    case n: f32_rows(n, run); break;
        EACH_ROW_COUNT(CASE)
#undef CASE
    }
}

const eng_linear_kernel eng_linear_bf16_avx512 = {"bf16_avx512", ENG_ROWS_F32, true, MAX_ROWS, run_bf16, 0, 0, 0};
const eng_linear_kernel eng_linear_f32_avx512 = {"f32_avx512", ENG_ROWS_F32, false, MAX_ROWS, run_f32, 0, 0, 0};
