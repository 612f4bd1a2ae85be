#include "philox.h"

enum { ROUNDS = 10 };

static void philox_round(const uint32_t key[2], uint32_t counter[4]) {
    uint64_t a = (uint64_t)0xD2511F53u * counter[0];
    uint64_t b = (uint64_t)0xCD9E8D57u * counter[2];
    counter[0] = (uint32_t)(b >> 32) ^ counter[1] ^ key[0];
    counter[1] = (uint32_t)b;
    counter[2] = (uint32_t)(a >> 32) ^ counter[3] ^ key[1];
    counter[3] = (uint32_t)a;
}

void eng_philox4x32(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]) {
    uint32_t k[2] = {key[0], key[1]};
    for (int i = 0; i < 4; i++) out[i] = counter[i];
    for (int round = 0; round < ROUNDS; round++) {
        philox_round(k, out);
        k[0] += 0x9E3779B9u;
        k[1] += 0xBB67AE85u;
    }
}

double eng_philox_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)};
    uint32_t out[4];
    eng_philox4x32(key, counter, out);
    uint64_t bits = ((uint64_t)out[1] << 32 | out[0]) >> 11;
    return (double)bits * 0x1p-53;
}
