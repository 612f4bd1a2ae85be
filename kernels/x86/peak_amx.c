/* The rate of AMX bf16 products that wait for no memory.  On numbers as attention has them, not on
 * zeros: power decides the clock, and products of zeros draw so little that they run 1.4 times
 * as fast. */
#include <immintrin.h>
#include <time.h>

#include "amx_attend.h"
#include "x86.h"

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void load_operands(void) {
    _Alignas(64) uint16_t numbers[4 * AMX_TILE];
    uint32_t state = 1;
    for (int i = 0; i < 4 * AMX_TILE; i++) {
        state = state * 1664525u + 1013904223u;
        numbers[i] = (uint16_t)((state >> 16 & 0x80ff) | 0x3e00); /* +-[0.125, 0.5) */
    }
    __asm__ volatile("" : : "r"(numbers) : "memory"); /* gcc's tile loads hide that they read */
    _tile_loadd(4, numbers, 64);
    _tile_loadd(5, numbers + AMX_TILE, 64);
    _tile_loadd(6, numbers + 2 * AMX_TILE, 64);
    _tile_loadd(7, numbers + 3 * AMX_TILE, 64);
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
    relayi_amx_begin(AMX_ROWS);
    load_operands();
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
