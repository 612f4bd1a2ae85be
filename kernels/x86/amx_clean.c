/* A probability of zero does not hide a value that is NaN or infinite: 0 * NaN is NaN.  So where
 * a tile is not seen by all rows of a group, such values are taken out of it, and are added, one
 * by one, to the rows that see them.  The same where numbers are sums of terms, since a lesser term
 * may be zero or negative; there, scores that an infinite key made NaN are computed again as well.
 * Slow, and only for tiles that have any. */
#include <immintrin.h>
#include <math.h>

#include "amx_attend.h"

static bool is_finite(uint16_t half) { return (half & 0x7f80) != 0x7f80; }

static float widen(uint16_t half) {
    union {
        uint32_t bits;
        float value;
    } u = {(uint32_t)half << 16};
    return u.value;
}

static __mmask32 not_finite(__m512i halves) {
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    return _mm512_cmpeq_epi16_mask(_mm512_and_si512(halves, exponent), exponent);
}

bool relayi_amx_clean_value(const uint16_t *value, int32_t head_dim, uint16_t *clean) {
    int64_t elements = relayi_tile_elements(head_dim);
    __mmask32 found = 0;
    for (int64_t i = 0; i < elements; i += 32) found |= not_finite(_mm512_loadu_si512(value + i));
    if (!found) return false;
    for (int64_t i = 0; i < elements; i += 32) {
        __m512i halves = _mm512_loadu_si512(value + i);
        _mm512_storeu_si512(clean + i, _mm512_maskz_mov_epi16(~not_finite(halves), halves));
    }
    return true;
}

static float probability(const amx_work *work, int32_t in_group, int32_t step, int32_t n) {
    float sum = 0.0f;
    for (int32_t term = 0; term < work->prob_terms; term++)
        sum += widen(amx_prob_tile(work, in_group / 16, term, step + n / AMX_DEPTH)[in_group % 16 * AMX_DEPTH + n % AMX_DEPTH]);
    return sum;
}

static void add_element(const amx_work *work, const amx_group *group, float value, int32_t start, int32_t step,
                        int32_t n, int32_t d) {
    for (int32_t i = 0; i < group->rows; i++) {
        if (!amx_sees(work->args, group->row + i, start + n)) continue;
        amx_acc(work, group->first + i / 16)[i % 16 * work->dim + d] += probability(work, i, step, n) * value;
    }
}

void relayi_amx_add_unclean(const amx_work *work, const amx_group *group, const uint16_t *value, int32_t start,
                            int32_t step) {
    for (int32_t n = 0; n < RELAYI_TILE; n++)
        for (int32_t d = 0; d < work->dim; d++) {
            uint16_t half = value[relayi_v_offset(1, work->dim, n, d)];
            if (!is_finite(half)) add_element(work, group, widen(half), start, step, n, d);
        }
}

/* ---- scores of queries that are sums of terms */

static float key_element(const amx_keys *keys, int32_t n, int32_t d) {
    if (keys->packed) return widen(keys->packed[relayi_k_offset(1, n, d)]);
    const char *row = (const char *)keys->rows[n / AMX_ROWS] + n % AMX_ROWS * keys->stride;
    return widen(((const uint16_t *)(const void *)row)[d]);
}

static float *score_at(const amx_work *work, const amx_keys *keys, int32_t row, int32_t column, int32_t n) {
    float *tile = amx_score_tile(work, row / AMX_ROWS, column + n / AMX_ROWS);
    int32_t r = row % AMX_ROWS, token = n % AMX_ROWS;
    return keys->packed ? tile + r * AMX_ROWS + token : tile + token * AMX_ROWS + r;
}

static bool any_nan(const amx_work *work, const amx_group *group, int32_t column) {
    __mmask16 found = 0;
    for (int32_t b = 0; b < group->blocks; b++) {
        const float *scores = amx_score_tile(work, b, column);
        for (int32_t i = 0; i < RELAYI_TILE * AMX_ROWS; i += 16)
            found |= _mm512_fpclass_ps_mask(_mm512_load_ps(scores + i), 0x81);
    }
    return found;
}

void relayi_amx_repair_scores(const amx_work *work, const amx_group *group, const amx_keys *keys, int32_t column) {
    if (work->query_terms == 1 || !any_nan(work, group, column)) return;
    for (int32_t row = 0; row < group->rows; row++)
        for (int32_t n = 0; n < RELAYI_TILE; n++) {
            float *score = score_at(work, keys, row, column, n), sum = 0.0f;
            const float *query = work->args->query + (int64_t)(group->row + row) * work->dim;
            if (!isnan(*score)) continue;
            for (int32_t d = 0; d < work->dim; d++) sum += query[d] * key_element(keys, n, d);
            *score = sum;
        }
}
