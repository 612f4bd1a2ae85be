/* Finding the rows of paged and contiguous K/V. */
#ifndef RELAY_ROWS_X86_H
#define RELAY_ROWS_X86_H

#include "kernel.h"

/* What a token that does not exist reads as, up to head dim 256 of float32. */
extern const char relayi_zero_row[1024];

/* Pointers to the first elements of tokens [begin, begin + count) at row[0..count), and to zeros
 * up to the next multiple of a tile. */
static inline void relayi_find_rows(const void *base, const relayi_kv *kv, int64_t block_stride,
                                    int64_t token_stride, int64_t element_size, int32_t begin,
                                    int32_t count, const char **row) {
    int64_t token_bytes = token_stride * element_size;
    int32_t n = 0;
    while (n < count) {
        int64_t in_block = begin + n, block = 0;
        int32_t run = count - n;
        if (kv->block_table) {
            int32_t index = (begin + n) / kv->block_size;
            in_block = (begin + n) - index * kv->block_size;
            block = kv->block_table[index];
            if (run > kv->block_size - in_block) run = kv->block_size - (int32_t)in_block;
        }
        const char *at = (const char *)base + block * block_stride * element_size +
                         in_block * token_bytes;
        for (int32_t i = 0; i < run; i++) row[n + i] = at + i * token_bytes;
        n += run;
    }
    for (; n % RELAYI_TILE; n++) row[n] = relayi_zero_row;
}

#endif
