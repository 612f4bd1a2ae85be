/* Vector pieces that the AMX family's files share. */
#ifndef RELAY_AMX_VECTOR_H
#define RELAY_AMX_VECTOR_H

#include <immintrin.h>

#include "amx_attend.h"

#define INLINE static inline __attribute__((always_inline))

#define LOG2_E 1.44269504f

/* Natural units by which a maximum may grow before acc is rescaled: 8 in log2. */
#define LAZY 5.5451775f

typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

/* gcc's _tile_loadconfig tells the compiler of the first 8 bytes that it reads, no more. */
INLINE void load_config(const tile_config *config) {
    __asm__ volatile("" : : "r"(config) : "memory");
    _tile_loadconfig(config);
}

/* gcc's tile loads do not tell the compiler that they read memory. */
INLINE void order_memory(void) { __asm__ volatile("" ::: "memory"); }

/* 2^t, relative error below 3e-7; 0 from about -150 down, NaN stays.  The polynomial is a minimax
 * fit of 2^x on [0, 1) that is exact at 0, so a row's largest score gives exactly 1. */
INLINE __m512 exp2_ps(__m512 t) {
    __m512 x = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); /* t - floor(t) */
    __m512 y = _mm512_set1_ps(0.00186713f);
    y = _mm512_fmadd_ps(y, x, _mm512_set1_ps(0.009017031f));
    y = _mm512_fmadd_ps(y, x, _mm512_set1_ps(0.055799913f));
    y = _mm512_fmadd_ps(y, x, _mm512_set1_ps(0.24016444f));
    y = _mm512_fmadd_ps(y, x, _mm512_set1_ps(0.6931513f));
    y = _mm512_fmadd_ps(y, x, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, t); /* y * 2^floor(t) */
}

/* 32 floats as bf16, to nearest, ties to even. */
INLINE __m512i round_pair(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

INLINE __m512 widen(__m256i half) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* Asks for the next pieces: into the second cache, since a super-tile does not fit the first. */
INLINE void look_ahead(amx_ahead *ahead, int32_t pieces) {
    for (; pieces > 0 && ahead->next < ahead->end; pieces--, ahead->next++)
        for (int32_t i = 0; i < ahead->lines; i++) _mm_prefetch(*ahead->next + 64 * i, _MM_HINT_T1);
}

/* The same to 3e-6, for what will be rounded to bf16. */
INLINE __m512 exp2_short_ps(__m512 t) {
    __m512 x = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 y = _mm512_set1_ps(0.013426684f);
    y = _mm512_fmadd_ps(y, x, _mm512_set1_ps(0.052242473f));
    y = _mm512_fmadd_ps(y, x, _mm512_set1_ps(0.2412802f));
    y = _mm512_fmadd_ps(y, x, _mm512_set1_ps(0.69304484f));
    y = _mm512_fmadd_ps(y, x, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, t);
}

/* [a0..a15, b0..b15] of 16 bits to [a0 b0 a1 b1 ...]. */
INLINE __m512i interleave_halves(void) {
    const __m512i even = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_or_si512(even, _mm512_slli_epi32(_mm512_add_epi32(even, _mm512_set1_epi32(16)), 16));
}

/* Transposes 16 vectors of 16 32-bit lanes into a tile of 64-byte rows. */
INLINE void transpose_16(const __m512i v[16], void *tile) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) { /* b[i + k]: column 4 * lane + k of rows i..i+3 */
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int k = 0; k < 4; k++) {
        __m512i even_low = _mm512_shuffle_i32x4(b[k], b[k + 4], 0x88);
        __m512i odd_low = _mm512_shuffle_i32x4(b[k], b[k + 4], 0xdd);
        __m512i even_high = _mm512_shuffle_i32x4(b[k + 8], b[k + 12], 0x88);
        __m512i odd_high = _mm512_shuffle_i32x4(b[k + 8], b[k + 12], 0xdd);
        char *row = (char *)tile + 64 * k;
        _mm512_store_si512(row, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
        _mm512_store_si512(row + 64 * 4, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
        _mm512_store_si512(row + 64 * 8, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
        _mm512_store_si512(row + 64 * 12, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
    }
}

#endif
