/* Peak rates of what this CPU can do. */
#include "peak_x86.h"
#include "x86.h"

/* Without vectors: the reference's order of magnitude. */
static void scalar_burst(void) {
    volatile float x = 0.5f;
    float sum[RELAYI_PEAK_SUMS] = {0.0f}, factor = x;
    for (int step = 0; step < RELAYI_PEAK_STEPS; step++)
        for (int i = 0; i < RELAYI_PEAK_SUMS; i++) sum[i] = sum[i] * factor + factor;
    for (int i = 0; i < RELAYI_PEAK_SUMS; i++) x += sum[i];
}

double relayi_peak_f32(uint32_t flags, double seconds) {
    if (flags & RELAYI_CPU_AVX512) return relayi_peak_f32_avx512(seconds);
    if (flags & RELAYI_CPU_AVX2) return relayi_peak_f32_avx2(seconds);
    return relayi_peak_of(scalar_burst, 2.0, seconds);
}

/* The best of the ways to multiply bf16: widened to float32, by dot products, by tiles. */
double relayi_peak_bf16(uint32_t flags, double seconds) {
    double best = relayi_peak_f32(flags, seconds);
    if (flags & RELAYI_CPU_AVX512BF16) {
        double rate = relayi_peak_bf16_dot_avx512bf16(seconds);
        if (rate > best) best = rate;
    }
    if (flags & RELAYI_CPU_AMX) {
        double rate = relayi_peak_bf16_amx(seconds);
        if (rate > best) best = rate;
    }
    return best;
}
