#include "checksum.h"

#include <string.h>

/* Odd, with bits set evenly: the fractions of the golden ratio and of the square root of 2. */
#define ODD UINT64_C(0x9E3779B97F4A7C15)
#define ODD_TWO UINT64_C(0x6A09E667F3BCC909)

static inline uint64_t step(uint64_t lane, uint64_t word) {
    uint64_t mixed = lane ^ word;
    return (mixed << 29 | mixed >> 35) * ODD;
}

void relayi_checksum_start(relayi_checksum *checksum, uint64_t seed) {
    for (uint64_t i = 0; i < 4; i++) checksum->lane[i] = (seed + i + 1) * ODD_TWO;
    checksum->size = 0;
}

static const unsigned char *add_whole(uint64_t lane[4], const unsigned char *at, size_t steps) {
    uint64_t a = lane[0], b = lane[1], c = lane[2], d = lane[3], word[4];
    for (; steps > 0; steps--, at += sizeof word) {
        memcpy(word, at, sizeof word);
        a = step(a, word[0]);
        b = step(b, word[1]);
        c = step(c, word[2]);
        d = step(d, word[3]);
    }
    lane[0] = a, lane[1] = b, lane[2] = c, lane[3] = d;
    return at;
}

void relayi_checksum_add(relayi_checksum *checksum, const void *data, size_t size) {
    unsigned char padded[RELAYI_CHECKSUM_STEP] = {0};
    size_t left = size % RELAYI_CHECKSUM_STEP;
    const unsigned char *at = add_whole(checksum->lane, data, size / RELAYI_CHECKSUM_STEP);
    checksum->size += size;
    if (left == 0) return;
    memcpy(padded, at, left);
    add_whole(checksum->lane, padded, 1);
}

uint64_t relayi_checksum_finish(const relayi_checksum *checksum) {
    uint64_t folded = checksum->size * ODD_TWO;
    for (int i = 0; i < 4; i++) {
        folded = step(folded, checksum->lane[i]);
        folded ^= folded >> 32;
    }
    folded *= ODD_TWO;
    return folded ^ folded >> 29;
}

uint64_t relayi_checksum_of(const void *data, size_t size, uint64_t seed) {
    relayi_checksum checksum;
    relayi_checksum_start(&checksum, seed);
    relayi_checksum_add(&checksum, data, size);
    return relayi_checksum_finish(&checksum);
}
