#include <math.h>
#include <stdlib.h>
#include <time.h>

#include "bench.h"

double bench_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

bool bench_times_add(bench_times *times, double seconds) {
    if (times->count == times->room) {
        int32_t room = times->room ? 2 * times->room : 64;
        double *larger = realloc(times->seconds, (size_t)room * sizeof *larger);
        if (larger == NULL) return false;
        times->seconds = larger;
        times->room = room;
    }
    times->seconds[times->count++] = seconds;
    return true;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_times_median(bench_times *times) {
    if (times->count == 0) return NAN;
    qsort(times->seconds, (size_t)times->count, sizeof *times->seconds, ascending);
    int32_t middle = times->count / 2;
    if (times->count % 2) return times->seconds[middle];
    return 0.5 * (times->seconds[middle - 1] + times->seconds[middle]);
}

void bench_times_free(bench_times *times) {
    free(times->seconds);
    *times = (bench_times){0};
}
