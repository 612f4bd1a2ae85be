/* The loop around every family's rate: bursts of about 0.1 ms until the time is over, the best one
 * counts. */
#ifndef RELAY_PEAK_X86_H
#define RELAY_PEAK_X86_H

#include <time.h>

enum { RELAYI_PEAK_SUMS = 24, RELAYI_PEAK_STEPS = 20000 };

static inline double relayi_peak_now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* `burst` makes RELAYI_PEAK_STEPS steps of RELAYI_PEAK_SUMS instructions of `flops` each. */
static inline double relayi_peak_of(void (*burst)(void), double flops, double seconds) {
    double begin = relayi_peak_now(), end, best = 0.0;
    do {
        double start = relayi_peak_now();
        burst();
        end = relayi_peak_now();
        double rate = flops * RELAYI_PEAK_SUMS * RELAYI_PEAK_STEPS / (end - start);
        if (rate > best) best = rate;
    } while (end - begin < seconds);
    return best * 1e-9;
}

#endif
