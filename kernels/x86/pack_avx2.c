/* Packing on AVX2: K is transposed 8 tokens by 8 words, V is copied or paired. */
#include <immintrin.h>

#include "rows_x86.h"
#include "x86.h"

#include "pack_x86.inc"

/* 8 tokens' words at `offset`: x[word] holds tokens 0..7. */
ALWAYS_INLINE void load_block(const char *const *row, const char *const *ahead, int32_t offset,
                              __m256i *x) {
    __m256i t[8];
#pragma GCC unroll 8
    for (int n = 0; n < 8; n++) {
        x[n] = _mm256_loadu_si256((const __m256i *)(const void *)(row[n] + offset));
        _mm_prefetch(ahead[n] + offset, _MM_HINT_T0);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        x[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        x[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        x[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        x[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    /* x[4g + w], half h: tokens 4g .. 4g + 3 of word 4h + w */
#pragma GCC unroll 4
    for (int w = 0; w < 4; w++) {
        t[w] = _mm256_permute2x128_si256(x[w], x[w + 4], 0x20);
        t[w + 4] = _mm256_permute2x128_si256(x[w], x[w + 4], 0x31);
    }
#pragma GCC unroll 8
    for (int w = 0; w < 8; w++) x[w] = t[w];
}

void relayi_pack_key_words_avx2(const char *const *row, int32_t row_bytes, void *tile,
                                const char *const *ahead) {
    for (int32_t n = 0; n < RELAYI_TILE; n += 8) {
        for (int32_t offset = 0; offset < row_bytes; offset += 32) {
            __m256i x[8];
            uint32_t *to = (uint32_t *)tile + offset / 4 * RELAYI_TILE + n;
            load_block(row + n, ahead + n, offset, x);
#pragma GCC unroll 8
            for (int w = 0; w < 8; w++)
                _mm256_storeu_si256((__m256i *)(void *)(to + w * RELAYI_TILE), x[w]);
        }
    }
}

/* The low 16 bits of each word. */
ALWAYS_INLINE __m128i low_halves(__m256i x) {
    __m256i low = _mm256_and_si256(x, _mm256_set1_epi32(0xffff));
    return _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
}

void relayi_pack_key_f16_avx2(const char *const *row, int32_t row_bytes, void *tile,
                              const char *const *ahead) {
    for (int32_t n = 0; n < RELAYI_TILE; n += 8) {
        for (int32_t offset = 0; offset < row_bytes; offset += 32) {
            __m256i x[8];
            uint16_t *to = (uint16_t *)tile + offset / 2 * RELAYI_TILE + n;
            load_block(row + n, ahead + n, offset, x);
#pragma GCC unroll 8
            for (int w = 0; w < 8; w++) {
                _mm_storeu_si128((__m128i *)(void *)(to + 2 * w * RELAYI_TILE), low_halves(x[w]));
                _mm_storeu_si128((__m128i *)(void *)(to + (2 * w + 1) * RELAYI_TILE),
                                 low_halves(_mm256_srli_epi32(x[w], 16)));
            }
        }
    }
}

void relayi_pack_value_bf16_avx2(const char *const *row, int32_t head_dim, void *tile) {
    uint16_t *to = tile;
    for (int32_t block = 0; block < head_dim; block += RELAYI_V_BLOCK) {
        int32_t width = head_dim - block < RELAYI_V_BLOCK ? head_dim - block : RELAYI_V_BLOCK;
        for (int32_t n = 0; n < RELAYI_TILE; n += 2) {
            const uint16_t *even = (const uint16_t *)(const void *)row[n] + block;
            const uint16_t *odd = (const uint16_t *)(const void *)row[n + 1] + block;
            for (int32_t d = 0; d < width; d += 8, to += 16) {
                __m128i low = _mm_loadu_si128((const __m128i *)(const void *)(even + d));
                __m128i high = _mm_loadu_si128((const __m128i *)(const void *)(odd + d));
                _mm_storeu_si128((__m128i *)(void *)to, _mm_unpacklo_epi16(low, high));
                _mm_storeu_si128((__m128i *)(void *)(to + 8), _mm_unpackhi_epi16(low, high));
            }
        }
    }
}

void relayi_pack_value_f32_avx2(const char *const *row, int32_t head_dim, void *tile) {
    copy_values(row, head_dim, 4, tile);
}

void relayi_pack_value_f16_avx2(const char *const *row, int32_t head_dim, void *tile) {
    copy_values(row, head_dim, 2, tile);
}

void relayi_pack_f32_avx2(const relayi_kv *kv, int32_t head_dim, int32_t begin, int32_t count,
                          void *key_tile, void *value_tile) {
    if (head_dim % 16) {
        relayi_pack_f32_ref(kv, head_dim, begin, count, key_tile, value_tile);
        return;
    }
    pack(kv, head_dim, begin, count, 4, key_tile, value_tile, relayi_pack_key_words_avx2,
         relayi_pack_value_f32_avx2);
}

void relayi_pack_f16_avx2(const relayi_kv *kv, int32_t head_dim, int32_t begin, int32_t count,
                          void *key_tile, void *value_tile) {
    if (head_dim % 16) {
        relayi_pack_f16_ref(kv, head_dim, begin, count, key_tile, value_tile);
        return;
    }
    pack(kv, head_dim, begin, count, 2, key_tile, value_tile, relayi_pack_key_f16_avx2,
         relayi_pack_value_f16_avx2);
}

void relayi_pack_bf16_avx2(const relayi_kv *kv, int32_t head_dim, int32_t begin, int32_t count,
                           void *key_tile, void *value_tile) {
    if (head_dim % 16) {
        relayi_pack_bf16_ref(kv, head_dim, begin, count, key_tile, value_tile);
        return;
    }
    pack(kv, head_dim, begin, count, 2, key_tile, value_tile, relayi_pack_key_words_avx2,
         relayi_pack_value_bf16_avx2);
}
