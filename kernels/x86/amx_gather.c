/* Queries, rows of K and pairs of V, into the layouts that tiles want. */
#include <string.h>

#include "amx_attend.h"
#include "amx_vector.h"

/* ---- queries */

/* x - term; an infinity is its term, and leaves nothing. */
static __m512 rest_of(__m512 x, __m512 term) {
    return _mm512_maskz_sub_ps((__mmask16)~_mm512_fpclass_ps_mask(term, 0x18), x, term);
}

/* 32 elements of a row as bf16; *rest, the same elements, loses what they took. */
static __m512i next_term(float rest[32]) {
    __m512 low = _mm512_loadu_ps(rest), high = _mm512_loadu_ps(rest + 16);
    __m512i rounded = round_pair(low, high);
    _mm512_storeu_ps(rest, rest_of(low, widen(_mm512_castsi512_si256(rounded))));
    _mm512_storeu_ps(rest + 16, rest_of(high, widen(_mm512_extracti64x4_epi64(rounded, 1))));
    return rounded;
}

static void pack_query_row(const amx_work *work, int32_t row) {
    const float *query = work->args->query + (int64_t)row * work->dim;
    for (int32_t k = 0; k < work->steps; k++) {
        float rest[AMX_DEPTH] = {0};
        int32_t left = work->dim - k * AMX_DEPTH;
        memcpy(rest, query + k * AMX_DEPTH, sizeof *rest * (size_t)(left < AMX_DEPTH ? left : AMX_DEPTH));
        for (int32_t term = 0; term < work->query_terms; term++) {
            uint16_t *tile = amx_query_tile(work, row / AMX_ROWS, term) + k * AMX_TILE;
            _mm512_store_si512(tile + row % AMX_ROWS * AMX_DEPTH, next_term(rest));
        }
    }
}

static void zero_padding_rows(const amx_work *work) {
    for (int32_t row = work->args->rows; row < work->blocks * AMX_ROWS; row++)
        for (int32_t i = 0; i < work->query_terms * work->steps; i++)
            memset(amx_query_tile(work, row / AMX_ROWS, 0) + i * AMX_TILE + row % AMX_ROWS * AMX_DEPTH, 0,
                   sizeof(uint16_t) * AMX_DEPTH);
}

/* An A tile's pairs by rows is the B tile of the transpose. */
static void transpose_tile(uint16_t *tile) {
    __m512i rows[16];
    for (int r = 0; r < 16; r++) rows[r] = _mm512_load_si512(tile + AMX_DEPTH * r);
    transpose_16(rows, tile);
}

void relayi_amx_pack_query(const amx_work *work, bool transposed) {
    for (int32_t row = 0; row < work->args->rows; row++) pack_query_row(work, row);
    zero_padding_rows(work);
    if (!transposed) return;
    for (int32_t i = 0; i < work->blocks * work->query_terms * work->steps; i++)
        transpose_tile(work->query + i * AMX_TILE);
}

/* ---- keys */

void relayi_amx_key_tail(const amx_work *work, const uint16_t *key) {
    enum { HALF = AMX_DEPTH / 4 * RELAYI_TILE * 2 }; /* 8 rows of pairs */
    memcpy(work->key, key + work->dim / AMX_DEPTH * AMX_DEPTH * RELAYI_TILE, sizeof(uint16_t) * HALF);
    memset(work->key + HALF, 0, sizeof(uint16_t) * HALF);
}

void relayi_amx_gather_key(amx_work *work, const uint16_t *const *from, int32_t count, uint16_t *key) {
    int32_t stride = work->steps * AMX_DEPTH;
    for (int32_t n = 0; n < count; n++, key += stride) {
        look_ahead(&work->ahead, 1);
        for (int32_t d = 0; d < work->dim; d += AMX_DEPTH) { /* the last half k-step is padded */
            __mmask32 some = work->dim - d < AMX_DEPTH ? 0xffff : 0xffffffff;
            _mm512_store_si512(key + d, _mm512_maskz_loadu_epi16(some, from[n] + d));
        }
    }
    memset(key, 0, sizeof *key * (size_t)stride * (size_t)(RELAYI_TILE - count));
}

/* ---- values */

INLINE __m512i interleave_16(const uint16_t *even, const uint16_t *odd) {
    __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)even));
    __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)odd));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

static void pair_values(const uint16_t *even, const uint16_t *odd, int32_t dim, int32_t pair, uint16_t *value) {
    for (int32_t first = 0; first < dim; first += RELAYI_V_BLOCK) {
        int32_t width = dim - first < RELAYI_V_BLOCK ? dim - first : RELAYI_V_BLOCK;
        uint16_t *to = value + first * RELAYI_TILE + pair * width * 2;
        for (int32_t d = 0; d < width; d += 16)
            _mm512_storeu_si512(to + 2 * d, interleave_16(even + first + d, odd + first + d));
    }
}

void relayi_amx_gather_value(amx_work *work, const uint16_t *const *from, int32_t count, uint16_t *value) {
    static const uint16_t nothing[AMX_MAX_DIM];
    for (int32_t n = 0; n < RELAYI_TILE; n += 2) {
        look_ahead(&work->ahead, 2);
        pair_values(n < count ? from[n] : nothing, n + 1 < count ? from[n + 1] : nothing, work->dim, n / 2, value);
    }
}
