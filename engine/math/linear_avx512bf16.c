#include "linear_kernels.h"

#include <immintrin.h>
#include <string.h>

enum { MAX_ROWS = 12 };

/* One step of one row, of which `left` numbers exist. */
static inline void pack_step(int64_t left, const float *x, uint16_t *to) {
    const uint32_t mask = left >= ENG_INPUT_STEP ? 0xFFFFFFFF : left > 0 ? ((uint32_t)1 << left) - 1 : 0;
    const __m512 low = _mm512_maskz_loadu_ps((__mmask16)mask, x), high = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), x + 16);
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

/* The instruction takes numbers below the normal range for zero, as the products do that follow. */
void eng_pack_bf16_avx512bf16(int32_t rows, int32_t tile_rows, int64_t in, int64_t padded, const float *x,
                              int64_t x_stride, uint16_t *to) {
    for (int64_t i = 0; i < padded; i += ENG_INPUT_STEP, to += tile_rows * ENG_INPUT_STEP) {
        for (int32_t r = 0; r < rows; r++) pack_step(in - i, x + r * x_stride + i, to + r * ENG_INPUT_STEP);
        for (int32_t r = rows; r < tile_rows; r++) pack_step(0, x, to + r * ENG_INPUT_STEP);
    }
}

/* A pair of activations as one 32-bit lane, repeated. */
static inline __attribute__((always_inline)) __m512bh broadcast_pair(const uint16_t *x) {
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}

static inline __attribute__((always_inline)) void begin(int rows, __m512 (*sum)[2], const eng_run *run) {
    const float *sums = run->sums;
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        sum[r][0] = run->first > 0 ? _mm512_loadu_ps(sums + r * ENG_PANEL) : _mm512_setzero_ps();
        sum[r][1] = run->first > 0 ? _mm512_loadu_ps(sums + r * ENG_PANEL + 16) : _mm512_setzero_ps();
    }
}

static inline __attribute__((always_inline)) void dot_rows(int rows, const eng_run *run) {
    const int64_t x_stride = eng_x_stride(run->in), last = run->first + run->count;
    const int64_t ahead_step = run->ahead_step * 2 / ENG_INPUT_STEP;
    const uint16_t *x = run->x;
    const char *w = run->panel + run->first * 2 * ENG_PANEL, *ahead = run->ahead;
    __m512 sum[MAX_ROWS][2];
    begin(rows, sum, run);
    for (int64_t i = run->first; i < last; i += 2, w += 4 * ENG_PANEL, ahead += ahead_step) {
        __m512bh w0 = (__m512bh)_mm512_load_si512(w), w1 = (__m512bh)_mm512_load_si512(w + 64);
        _mm_prefetch(ahead, _MM_HINT_T0);
        _mm_prefetch(ahead + 64, _MM_HINT_T0);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            __m512bh v = broadcast_pair(x + r * x_stride + i);
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], v, w0);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], v, w1);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(run->sums + r * ENG_PANEL, sum[r][0]);
        _mm512_storeu_ps(run->sums + r * ENG_PANEL + 16, sum[r][1]);
    }
}

#define EACH_ROW_COUNT(F) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12)

static void run_bf16(const eng_run *run) {
    switch (run->rows) {
#define CASE(n) \
    case n: dot_rows(n, run); break;
        EACH_ROW_COUNT(CASE)
#undef CASE
    }
}

const eng_linear_kernel eng_linear_bf16_avx512bf16 = {
    "bf16_avx512bf16", ENG_ROWS_BF16, true, MAX_ROWS, run_bf16, eng_pack_bf16_avx512bf16, 0, 0};
