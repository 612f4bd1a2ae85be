/* The rate of float32 multiply-adds on AVX-512. */
#include <immintrin.h>

#include "peak_x86.h"
#include "x86.h"

/* 24 independent sums: more than the latency times the units. */
static void burst(void) {
    __m512 sum[RELAYI_PEAK_SUMS], x = _mm512_setzero_ps();
    __asm__ volatile("" : "+v"(x)); /* not a constant to the compiler */
#pragma GCC unroll 24
    for (int i = 0; i < RELAYI_PEAK_SUMS; i++) {
        sum[i] = x;
        __asm__ volatile("" : "+v"(sum[i])); /* nor one like another */
    }
    for (int step = 0; step < RELAYI_PEAK_STEPS; step++) {
#pragma GCC unroll 24
        for (int i = 0; i < RELAYI_PEAK_SUMS; i++) sum[i] = _mm512_fmadd_ps(x, x, sum[i]);
    }
#pragma GCC unroll 24
    for (int i = 0; i < RELAYI_PEAK_SUMS; i++) __asm__ volatile("" : : "v"(sum[i]));
}

double relayi_peak_f32_avx512(double seconds) { return relayi_peak_of(burst, 32.0, seconds); }
