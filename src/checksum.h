/* The checksum of prompt files: 64 bits, our own, so that the file format depends on no library.
 *
 * Four lanes of 64 bits take turns at the words of the data:
 *
 *     lane = rotate_left(lane XOR word, 29) * ODD
 *
 * Each step is a bijection of the lane for a given word and of the word for a given lane, and so
 * are the steps that fold lanes and length into the result.  Damage within one word therefore
 * always changes it, other damage goes unnoticed about once in 2^64.  It guards against accident,
 * not against an adversary.  The four chains of multiplications overlap: faster than memory. */
#ifndef RELAY_CHECKSUM_H
#define RELAY_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

#define RELAYI_CHECKSUM_STEP 32 /* bytes that the four lanes take at once */

typedef struct relayi_checksum {
    uint64_t lane[4];
    uint64_t size;
} relayi_checksum;

void relayi_checksum_start(relayi_checksum *checksum, uint64_t seed);

/* Every addition but the last has a multiple of RELAYI_CHECKSUM_STEP bytes. */
void relayi_checksum_add(relayi_checksum *checksum, const void *data, size_t size);

uint64_t relayi_checksum_finish(const relayi_checksum *checksum);

/* All three at once. */
uint64_t relayi_checksum_of(const void *data, size_t size, uint64_t seed);

#endif
