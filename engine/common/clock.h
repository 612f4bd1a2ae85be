/* Seconds that only ever go forward. */
#ifndef RELAY_ENGINE_CLOCK_H
#define RELAY_ENGINE_CLOCK_H

#include <time.h>

static inline double eng_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#endif
