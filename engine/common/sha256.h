/* SHA-256 (FIPS 180-4): names for what must not be confused, not a defence. */
#ifndef RELAY_ENGINE_SHA256_H
#define RELAY_ENGINE_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct eng_sha256 {
    uint32_t state[8];
    uint64_t bytes;
    unsigned char block[64]; /* the first bytes % 64 are waiting */
} eng_sha256;

enum { ENG_SHA256_BYTES = 32, ENG_SHA256_HEX = 65 };

void eng_sha256_begin(eng_sha256 *hash);
void eng_sha256_add(eng_sha256 *hash, const void *data, size_t size);
void eng_sha256_end(eng_sha256 *hash, unsigned char out[ENG_SHA256_BYTES]);
void eng_sha256_end_hex(eng_sha256 *hash, char out[ENG_SHA256_HEX]);

/* The first 8 bytes of the hash of some data, as a big-endian number. */
uint64_t eng_sha256_head(const void *data, size_t size);

#endif
