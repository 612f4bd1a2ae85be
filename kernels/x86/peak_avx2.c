/* The rate of float32 multiply-adds on AVX2. */
#include <immintrin.h>

#include "peak_x86.h"
#include "x86.h"

/* 12 independent sums, twice a step: more than the latency times the units, and they fit 16 registers. */
static void burst(void) {
    enum { SUMS = RELAYI_PEAK_SUMS / 2 };
    __m256 sum[SUMS], x = _mm256_setzero_ps();
    __asm__ volatile("" : "+x"(x)); /* not a constant to the compiler */
#pragma GCC unroll 12
    for (int i = 0; i < SUMS; i++) {
        sum[i] = x;
        __asm__ volatile("" : "+x"(sum[i])); /* nor one like another */
    }
    for (int step = 0; step < 2 * RELAYI_PEAK_STEPS; step++) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++) sum[i] = _mm256_fmadd_ps(x, x, sum[i]);
    }
#pragma GCC unroll 12
    for (int i = 0; i < SUMS; i++) __asm__ volatile("" : : "x"(sum[i]));
}

double relayi_peak_f32_avx2(double seconds) { return relayi_peak_of(burst, 16.0, seconds); }
