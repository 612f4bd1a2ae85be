/* The rate of AMX bf16 products that wait for no memory. */
#include <immintrin.h>
#include <time.h>

#include "amx_attend.h"
#include "x86.h"

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void products(int count) {
    for (int i = 0; i < count; i++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

double relayi_peak_bf16_amx(double seconds) {
    enum { COUNT = 4096 };
    const double flops = 2.0 * 4.0 * COUNT * AMX_ROWS * AMX_ROWS * AMX_DEPTH;
    double begin = now(), end, best = 0.0;
    relayi_amx_begin();
    do {
        double start = now();
        products(COUNT);
        end = now();
        double rate = flops / (end - start);
        if (rate > best) best = rate;
    } while (end - begin < seconds);
    relayi_amx_end();
    return best * 1e-9;
}
