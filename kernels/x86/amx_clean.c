/* A probability of zero does not hide a value that is NaN or infinite: 0 * NaN is NaN.  So where
 * a tile is not seen by all rows of a group, such values are taken out of it, and are added, one
 * by one, to the rows that see them.  Slow, and only for tiles that have any. */
#include <immintrin.h>

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
