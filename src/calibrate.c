/* Machine limits, measured on all threads at once. */
#include <omp.h>
#include <time.h>

#include "alloc.h"
#include "device_cuda.h"
#include "log.h"

#define READ_BYTES ((size_t)512 << 20) /* beyond any last-level cache share */
#define READ_PASSES 4
#define PREFETCH_AHEAD 8192 /* bytes */
#define PEAK_SECONDS 0.08

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#if defined(__GNUC__)
#define PREFETCH(address) __builtin_prefetch(address)
#else
#define PREFETCH(address) ((void)(address))
#endif

/* Reads n words, a line at a time, with prefetching as a kernel has it: hardware prefetchers alone
 * stop at every page.  The sum keeps the loads alive. */
static uint64_t read_words(const uint64_t *words, size_t n) {
    uint64_t sums[8] = {0};
    for (size_t i = 0; i + 8 <= n; i += 8) {
        PREFETCH(words + i + PREFETCH_AHEAD / sizeof *words);
        for (size_t j = 0; j < 8; j++) sums[j] += words[i + j];
    }
    uint64_t total = 0;
    for (size_t j = 0; j < 8; j++) total ^= sums[j];
    return total;
}

/* The best pass, in 1e9 bytes/s; 0 without memory. */
static double measure_read(int threads) {
    uint64_t *words = relayi_map(READ_BYTES);
    if (words == NULL) return 0.0;
    size_t each = READ_BYTES / sizeof *words / (size_t)threads;
    double best = 0.0;
    volatile uint64_t keep = 0;
    for (int pass = -1; pass < READ_PASSES; pass++) { /* the first one touches */
        uint64_t total = 0;
        double start = now();
#pragma omp parallel num_threads(threads) reduction(^ : total)
        {
            uint64_t *mine = words + (size_t)omp_get_thread_num() * each;
            if (pass < 0)
                for (size_t i = 0; i < each; i += 512) mine[i] = i;
            else total ^= read_words(mine, each);
        }
        double rate = (double)each * sizeof *words * (double)threads / (now() - start) * 1e-9;
        if (pass >= 0 && rate > best) best = rate;
        keep ^= total;
    }
    (void)keep;
    relayi_unmap(words, READ_BYTES);
    return best;
}

static double measure_peak(const relay_device *device, double (*peak)(uint32_t, double)) {
    double total = 0.0;
#pragma omp parallel num_threads(device->threads) reduction(+ : total)
    total += peak(device->flags, PEAK_SECONDS);
    return total;
}

relay_status relay_device_calibrate(relay_device *device, relay_calibration *result) {
    if (device == NULL || result == NULL) return RELAY_NULL_POINTER;
    relay_status status = relayi_check_size(device, "relay_calibration", result->struct_size, sizeof *result);
    if (status != RELAY_OK) return status;
    if (device->kind == RELAY_DEVICE_CUDA) return relayi_cuda_calibrate(device, result);
    relay_calibration found = {.struct_size = sizeof found};
    found.f32_gflops = measure_peak(device, relayi_peak_f32);
    found.bf16_gflops = measure_peak(device, relayi_peak_bf16);
    found.read_gbps = measure_read(device->threads);
    if (found.read_gbps == 0.0)
        return relayi_fail(device, RELAY_OUT_OF_MEMORY, "relay_device_calibrate: no memory for %zu bytes", READ_BYTES);
    found.peak_gflops = found.f32_gflops > found.bf16_gflops ? found.f32_gflops : found.bf16_gflops;
    *result = found;
    return RELAY_OK;
}
