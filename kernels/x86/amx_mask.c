/* Score transforms beyond a scale, and masks, in place on the score tiles. */
#include <math.h>

#include "amx_attend.h"
#include "amx_vector.h"

/* cap * tanh(s / cap); tanh(x) = 1 - 2 / (e^2x + 1) is right to 1e-7 of the cap everywhere. */
static __m512 soft_cap(__m512 s, float cap) {
    __m512 power = exp2_ps(_mm512_mul_ps(s, _mm512_set1_ps(2.0f * LOG2_E / cap)));
    __m512 one = _mm512_set1_ps(1.0f);
    __m512 rest = _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(power, one));
    return _mm512_mul_ps(_mm512_set1_ps(cap), _mm512_sub_ps(one, rest));
}

INLINE __m512 transformed(const relayi_attend_args *args, __m512 s, __m512 slope, __m512i position) {
    s = _mm512_mul_ps(s, _mm512_set1_ps(args->scale));
    if (args->soft_cap > 0.0f) s = soft_cap(s, args->soft_cap);
    if (args->slope) s = _mm512_fmadd_ps(slope, _mm512_cvtepi32_ps(position), s);
    return s;
}

static __m512i count_up(int32_t from) {
    return _mm512_add_epi32(_mm512_set1_epi32(from),
                            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
}

/* ---- rows by tokens */

void relayi_amx_transform(const amx_work *work, const amx_group *group, int32_t start, int32_t column) {
    const relayi_attend_args *args = work->args;
    for (int32_t i = 0; i < group->rows; i++) {
        int32_t row = group->row + i;
        __m512 slope = _mm512_set1_ps(args->slope ? args->slope[row] : 0.0f);
        for (int32_t c = 0; c < RELAYI_TILE / 16; c++) {
            float *at = amx_score_tile(work, i / 16, column + c) + i % 16 * 16;
            __m512i position = count_up(start + 16 * c - args->range[row].distance);
            _mm512_store_ps(at, transformed(args, _mm512_load_ps(at), slope, position));
        }
    }
}

/* Bits [0, n) for n clamped to 0..64. */
static uint64_t bits_below(int64_t n) {
    if (n <= 0) return 0;
    return n >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << n) - 1;
}

static uint64_t visible_bits(const relayi_attend_args *args, int32_t row, int32_t start) {
    const relayi_range *range = &args->range[row];
    uint64_t in = bits_below((int64_t)args->end - start);
    if (args->all_visible) return in;
    uint64_t window = bits_below((int64_t)range->hi - start) & ~bits_below((int64_t)range->lo - start);
    return in & (window | bits_below((int64_t)range->sinks - start));
}

void relayi_amx_mask(const amx_work *work, const amx_group *group, int32_t start, int32_t column) {
    for (int32_t i = 0; i < group->rows; i++) {
        uint64_t hidden = ~visible_bits(work->args, group->row + i, start);
        for (int32_t c = 0; c < RELAYI_TILE / 16; c++, hidden >>= 16)
            _mm512_mask_store_ps(amx_score_tile(work, i / 16, column + c) + i % 16 * 16, (__mmask16)hidden,
                                 _mm512_set1_ps(-INFINITY));
    }
}

/* ---- tokens by rows: a lane a row */

typedef struct lane_ranges {
    __m512i lo, hi, sinks, distance;
    __m512 slope;
} lane_ranges;

static lane_ranges ranges_of_block(const amx_work *work, int32_t block) {
    const relayi_attend_args *args = work->args;
    int32_t lo[16] = {0}, hi[16] = {0}, sinks[16] = {0}, distance[16] = {0};
    float slope[16] = {0};
    for (int32_t r = 0; r < amx_rows(work, block); r++) {
        const relayi_range *range = &args->range[block * AMX_ROWS + r];
        lo[r] = args->all_visible ? 0 : range->lo;
        hi[r] = args->all_visible ? args->end : range->hi;
        sinks[r] = range->sinks;
        distance[r] = range->distance;
        if (args->slope) slope[r] = args->slope[block * AMX_ROWS + r];
    }
    return (lane_ranges){_mm512_loadu_si512(lo), _mm512_loadu_si512(hi), _mm512_loadu_si512(sinks),
                         _mm512_loadu_si512(distance), _mm512_loadu_ps(slope)};
}

void relayi_amx_transform_t(const amx_work *work, const amx_group *group, int32_t start, int32_t column) {
    for (int32_t b = 0; b < group->blocks; b++) {
        lane_ranges ranges = ranges_of_block(work, group->first + b);
        float *at = amx_score_tile(work, b, column);
        for (int32_t n = 0; n < RELAYI_TILE; n++, at += 16) {
            __m512i position = _mm512_sub_epi32(_mm512_set1_epi32(start + n), ranges.distance);
            _mm512_store_ps(at, transformed(work->args, _mm512_load_ps(at), ranges.slope, position));
        }
    }
}

void relayi_amx_mask_t(const amx_work *work, const amx_group *group, int32_t start, int32_t column) {
    for (int32_t b = 0; b < group->blocks; b++) {
        lane_ranges ranges = ranges_of_block(work, group->first + b);
        float *at = amx_score_tile(work, b, column);
        for (int32_t n = start; n < start + RELAYI_TILE; n++, at += 16) {
            __m512i token = _mm512_set1_epi32(n);
            __mmask16 seen = _mm512_cmple_epi32_mask(ranges.lo, token) & _mm512_cmplt_epi32_mask(token, ranges.hi);
            seen |= _mm512_cmplt_epi32_mask(token, ranges.sinks);
            if (n >= work->args->end) seen = 0;
            _mm512_mask_store_ps(at, (__mmask16)~seen, _mm512_set1_ps(-INFINITY));
        }
    }
}
