/* Peak rates where no family of this architecture measures them: what scalar code reaches. */
#include <time.h>

#include "kernel.h"

#define CHAINS 16
#define STEPS 100000

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double relayi_peak_f32(uint32_t flags, double seconds) {
    (void)flags;
    float chain[CHAINS];
    for (int i = 0; i < CHAINS; i++) chain[i] = (float)i;
    double start = seconds_now(), spent = 0.0, operations = 0.0;
    while (spent < seconds) {
        for (int step = 0; step < STEPS; step++)
            for (int i = 0; i < CHAINS; i++) chain[i] = chain[i] * 0.999f + 0.001f;
        operations += 2.0 * CHAINS * STEPS;
        spent = seconds_now() - start;
    }
    volatile float keep = 0.0f;
    for (int i = 0; i < CHAINS; i++) keep += chain[i];
    (void)keep;
    return operations / spent * 1e-9;
}

double relayi_peak_bf16(uint32_t flags, double seconds) { return relayi_peak_f32(flags, seconds); }
