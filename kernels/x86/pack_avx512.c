/* Packing on AVX-512: K is transposed 16 tokens by 16 words, V is copied or paired. */
#include <immintrin.h>

#include "rows_x86.h"
#include "x86.h"

#include "pack_x86.inc"

ALWAYS_INLINE void transpose_pairs(__m512i *x) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
}

/* x[token] holds words 0..15; afterwards x[word] holds tokens 0..15. */
ALWAYS_INLINE void transpose(__m512i *x) {
    __m512i t[16];
    transpose_pairs(x); /* x[4g + w], 128-bit lane l: tokens 4g .. 4g + 3 of word 4l + w */
#pragma GCC unroll 4
    for (int w = 0; w < 4; w++) {
        t[w] = _mm512_shuffle_i32x4(x[w], x[w + 4], 0x88);           /* lanes 0, 2 */
        t[w + 4] = _mm512_shuffle_i32x4(x[w], x[w + 4], 0xdd);       /* lanes 1, 3 */
        t[w + 8] = _mm512_shuffle_i32x4(x[w + 8], x[w + 12], 0x88);
        t[w + 12] = _mm512_shuffle_i32x4(x[w + 8], x[w + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int w = 0; w < 4; w++) {
        x[w] = _mm512_shuffle_i32x4(t[w], t[w + 8], 0x88);
        x[w + 8] = _mm512_shuffle_i32x4(t[w], t[w + 8], 0xdd);
        x[w + 4] = _mm512_shuffle_i32x4(t[w + 4], t[w + 12], 0x88);
        x[w + 12] = _mm512_shuffle_i32x4(t[w + 4], t[w + 12], 0xdd);
    }
}

/* 16 tokens' words at `offset`; the upper 8 are zero when a row ends after 8. */
ALWAYS_INLINE void load_block(const char *const *row, const char *const *ahead, int32_t offset,
                              __mmask16 words, __m512i *x) {
#pragma GCC unroll 16
    for (int n = 0; n < 16; n++) {
        x[n] = _mm512_maskz_loadu_epi32(words, row[n] + offset);
        _mm_prefetch(ahead[n] + offset, _MM_HINT_T0);
    }
    transpose(x);
}

static int32_t words_left(int32_t row_bytes, int32_t offset) {
    return row_bytes - offset >= 64 ? 16 : (row_bytes - offset) / 4;
}

void relayi_pack_key_words_avx512(const char *const *row, int32_t row_bytes, void *tile,
                                  const char *const *ahead) {
    for (int32_t n = 0; n < RELAYI_TILE; n += 16) {
        for (int32_t offset = 0; offset < row_bytes; offset += 64) {
            __m512i x[16];
            int32_t words = words_left(row_bytes, offset);
            uint32_t *to = (uint32_t *)tile + offset / 4 * RELAYI_TILE + n;
            load_block(row + n, ahead + n, offset, (__mmask16)((1u << words) - 1), x);
#pragma GCC unroll 16
            for (int w = 0; w < 16; w++)
                if (w < words) _mm512_storeu_si512(to + w * RELAYI_TILE, x[w]);
        }
    }
}

void relayi_pack_key_f16_avx512(const char *const *row, int32_t row_bytes, void *tile,
                                const char *const *ahead) {
    for (int32_t n = 0; n < RELAYI_TILE; n += 16) {
        for (int32_t offset = 0; offset < row_bytes; offset += 64) {
            __m512i x[16];
            int32_t words = words_left(row_bytes, offset);
            uint16_t *to = (uint16_t *)tile + offset / 2 * RELAYI_TILE + n;
            load_block(row + n, ahead + n, offset, (__mmask16)((1u << words) - 1), x);
#pragma GCC unroll 16
            for (int w = 0; w < 16; w++) {
                if (w >= words) continue;
                __m256i even = _mm512_cvtepi32_epi16(x[w]);
                __m256i odd = _mm512_cvtepi32_epi16(_mm512_srli_epi32(x[w], 16));
                _mm256_storeu_si256((__m256i *)(void *)(to + 2 * w * RELAYI_TILE), even);
                _mm256_storeu_si256((__m256i *)(void *)(to + (2 * w + 1) * RELAYI_TILE), odd);
            }
        }
    }
}

void relayi_pack_value_bf16_avx512(const char *const *row, int32_t head_dim, void *tile) {
    uint16_t *to = tile;
    for (int32_t block = 0; block < head_dim; block += RELAYI_V_BLOCK) {
        int32_t width = head_dim - block < RELAYI_V_BLOCK ? head_dim - block : RELAYI_V_BLOCK;
        for (int32_t n = 0; n < RELAYI_TILE; n += 2) {
            const uint16_t *even = (const uint16_t *)(const void *)row[n] + block;
            const uint16_t *odd = (const uint16_t *)(const void *)row[n + 1] + block;
            for (int32_t d = 0; d < width; d += 16, to += 32) {
                __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(even + d)));
                __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(odd + d)));
                _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
            }
        }
    }
}

void relayi_pack_value_f32_avx512(const char *const *row, int32_t head_dim, void *tile) {
    copy_values(row, head_dim, 4, tile);
}

void relayi_pack_value_f16_avx512(const char *const *row, int32_t head_dim, void *tile) {
    copy_values(row, head_dim, 2, tile);
}

void relayi_pack_f32_avx512(const relayi_kv *kv, int32_t head_dim, int32_t begin, int32_t count,
                            void *key_tile, void *value_tile) {
    if (head_dim % 16) {
        relayi_pack_f32_ref(kv, head_dim, begin, count, key_tile, value_tile);
        return;
    }
    pack(kv, head_dim, begin, count, 4, key_tile, value_tile, relayi_pack_key_words_avx512,
         relayi_pack_value_f32_avx512);
}

void relayi_pack_f16_avx512(const relayi_kv *kv, int32_t head_dim, int32_t begin, int32_t count,
                            void *key_tile, void *value_tile) {
    if (head_dim % 16) {
        relayi_pack_f16_ref(kv, head_dim, begin, count, key_tile, value_tile);
        return;
    }
    pack(kv, head_dim, begin, count, 2, key_tile, value_tile, relayi_pack_key_f16_avx512,
         relayi_pack_value_f16_avx512);
}

void relayi_pack_bf16_avx512(const relayi_kv *kv, int32_t head_dim, int32_t begin, int32_t count,
                             void *key_tile, void *value_tile) {
    if (head_dim % 16) {
        relayi_pack_bf16_ref(kv, head_dim, begin, count, key_tile, value_tile);
        return;
    }
    pack(kv, head_dim, begin, count, 2, key_tile, value_tile, relayi_pack_key_words_avx512,
         relayi_pack_value_bf16_avx512);
}
