/* Random numbers that are a function of a key and a counter alone: Philox4x32-10 of
 * Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). */
#ifndef RELAY_ENGINE_PHILOX_H
#define RELAY_ENGINE_PHILOX_H

#include <stdint.h>

void eng_philox4x32(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]);

/* Uniform in [0, 1) with 53 bits: draw `index` of stream `stream` under `seed`. */
double eng_philox_uniform(uint64_t seed, uint64_t stream, uint64_t index);

#endif
