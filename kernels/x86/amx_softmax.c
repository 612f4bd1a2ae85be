/* Softmax between the two products.  Scores come as tiles of 16x16 floats: rows by tokens
 * (packed K/V) or, transposed, tokens by rows (pages).  A row's numbers do not depend on
 * where in its block it stands, nor on the other rows. */
#include <immintrin.h>
#include <math.h>

#include "amx_attend.h"
#include "amx_vector.h"

#define UNROLL_16 _Pragma("GCC unroll 16")

/* ---- reductions of 16 vectors to one vector of their 16 results */

typedef __m512 combine_fn(__m512 a, __m512 b);
static inline __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
static inline __m512 larger(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }

INLINE __m512 pairs(combine_fn *op, __m512 a, __m512 b) {
    return op(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}

INLINE __m512 fours(combine_fn *op, __m512 ab, __m512 cd) {
    __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
    return op(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}

INLINE __m512 lanes(combine_fn *op, __m512 a, __m512 b) {
    return op(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

INLINE __m512 reduce_16(combine_fn *op, const __m512 v[16]) {
    __m512 q[4];
    for (int i = 0; i < 4; i++)
        q[i] = fours(op, pairs(op, v[4 * i], v[4 * i + 1]), pairs(op, v[4 * i + 2], v[4 * i + 3]));
    return lanes(op, lanes(op, q[0], q[1]), lanes(op, q[2], q[3]));
}

/* ---- the running state of one row block, a lane a row */

typedef struct block_state {
    __mmask16 rows;
    __m512 max, sum;
    __m512 max_log2; /* of max, 0 while there is none */
} block_state;

static void scale_rows(float *acc, int32_t dim, __mmask16 rows, __m512 factors) {
    float factor[16];
    _mm512_storeu_ps(factor, factors);
    for (int r = 0; r < 16; r++) {
        if (!(rows >> r & 1)) continue;
        __m512 f = _mm512_set1_ps(factor[r]);
        for (int32_t d = 0; d < dim; d += 16)
            _mm512_storeu_ps(acc + r * dim + d, _mm512_mul_ps(f, _mm512_loadu_ps(acc + r * dim + d)));
    }
}

/* Loads the state and raises its maximum to that of the new scores where that is due. */
static block_state raise_max(const amx_work *work, int32_t block, __m512 score_max) {
    block_state state;
    int32_t row = block * AMX_ROWS;
    state.rows = (__mmask16)((1u << amx_rows(work, block)) - 1);
    __m512 old = _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), state.rows, work->args->max + row);
    state.sum = _mm512_maskz_loadu_ps(state.rows, work->args->sum + row);
    __m512 new = _mm512_mul_ps(score_max, _mm512_set1_ps(work->natural));
    __mmask16 grown = _mm512_mask_cmp_ps_mask(state.rows, new, _mm512_add_ps(old, _mm512_set1_ps(LAZY)),
                                              _CMP_GT_OQ);
    state.max = _mm512_mask_mov_ps(old, grown, new);
    if (grown) {
        __m512 log2e = _mm512_set1_ps(LOG2_E);
        __m512 factor = exp2_ps(_mm512_mul_ps(_mm512_sub_ps(old, state.max), log2e));
        state.sum = _mm512_mask_mul_ps(state.sum, grown, state.sum, factor);
        scale_rows(amx_acc(work, block), work->dim, grown, factor);
    }
    __mmask16 none = _mm512_cmp_ps_mask(state.max, _mm512_set1_ps(-INFINITY), _CMP_EQ_OQ);
    state.max_log2 = _mm512_maskz_mul_ps((__mmask16)~none, state.max, _mm512_set1_ps(LOG2_E));
    return state;
}

static void save_state(const amx_work *work, int32_t block, const block_state *state, __m512 added) {
    int32_t row = block * AMX_ROWS;
    _mm512_mask_storeu_ps(work->args->max + row, state->rows, state->max);
    _mm512_mask_storeu_ps(work->args->sum + row, state->rows, _mm512_add_ps(state->sum, added));
}

/* ---- probabilities as bf16 terms */

INLINE __m512 probability(const float *scores, __m512 scale, __m512 max_log2, bool split) {
    __m512 t = _mm512_fmsub_ps(_mm512_load_ps(scores), scale, max_log2);
    return split ? exp2_ps(t) : exp2_short_ps(t);
}

/* What rounding took away. */
INLINE __m512i round_rest(__m512 low, __m512 high, __m512i rounded) {
    low = _mm512_sub_ps(low, widen(_mm512_castsi512_si256(rounded)));
    high = _mm512_sub_ps(high, widen(_mm512_extracti64x4_epi64(rounded, 1)));
    return round_pair(low, high);
}

/* ---- rows by tokens */

static __m512 max_of_rows(const float *scores, int32_t columns, int32_t rows) {
    __m512 max[16];
    UNROLL_16
    for (int r = 0; r < 16; r++) max[r] = _mm512_set1_ps(-INFINITY);
    for (int32_t r = 0; r < rows && rows < 16; r++)
        for (int32_t c = 0; c < columns; c++) max[r] = _mm512_max_ps(max[r], _mm512_load_ps(scores + 256 * c + 16 * r));
    for (int32_t c = 0; c < columns && rows == 16; c++) {
        UNROLL_16
        for (int r = 0; r < 16; r++) max[r] = _mm512_max_ps(max[r], _mm512_load_ps(scores + 256 * c + 16 * r));
    }
    return reduce_16(larger, max);
}

/* One row's probabilities; returns 16 partial sums. */
INLINE __m512 row_probabilities(const float *scores, int32_t columns, __m512 scale, __m512 max_log2,
                                uint16_t *prob, uint16_t *rest) {
    __m512 sum_low = _mm512_setzero_ps(), sum_high = sum_low;
    for (int32_t c = 0; c < columns; c += 2) {
        __m512 low = probability(scores + 256 * c, scale, max_log2, rest != NULL);
        __m512 high = probability(scores + 256 * c + 256, scale, max_log2, rest != NULL);
        sum_low = _mm512_add_ps(sum_low, low);
        sum_high = _mm512_add_ps(sum_high, high);
        __m512i rounded = round_pair(low, high);
        _mm512_store_si512(prob + c / 2 * AMX_TILE, rounded);
        if (rest) _mm512_store_si512(rest + c / 2 * AMX_TILE, round_rest(low, high, rounded));
    }
    return _mm512_add_ps(sum_low, sum_high);
}

INLINE void softmax_block(amx_work *work, int32_t in_group, int32_t block, int32_t columns, bool split) {
    const float *scores = amx_score_tile(work, in_group, 0);
    block_state state = raise_max(work, block, max_of_rows(scores, columns, amx_rows(work, block)));
    __m512 scale = _mm512_set1_ps(work->natural * LOG2_E), sums[16];
    float max_log2[16];
    _mm512_storeu_ps(max_log2, state.max_log2);
    for (int r = 0; r < 16; r++) sums[r] = _mm512_setzero_ps();
    uint16_t *prob = amx_prob_tile(work, in_group, 0, 0);
    uint16_t *rest = split ? amx_prob_tile(work, in_group, 1, 0) : NULL;
    for (int32_t r = 0; r < amx_rows(work, block); r++) {
        look_ahead(&work->ahead, work->ahead.a_step);
        sums[r] = row_probabilities(scores + 16 * r, columns, scale, _mm512_set1_ps(max_log2[r]),
                                    prob + 32 * r, split ? rest + 32 * r : NULL);
    }
    save_state(work, block, &state, reduce_16(add, sums));
}

void relayi_amx_softmax(amx_work *work, const amx_group *group, int32_t tiles) {
    for (int32_t b = 0; b < group->blocks; b++) {
        if (work->prob_terms > 1) softmax_block(work, b, group->first + b, 4 * tiles, true);
        else softmax_block(work, b, group->first + b, 4 * tiles, false);
    }
}

/* ---- tokens by rows */

static __m512 max_of_tokens(const float *scores, int32_t tokens) {
    __m512 max[4];
    for (int i = 0; i < 4; i++) max[i] = _mm512_load_ps(scores + 16 * i);
    for (int32_t n = 4; n < tokens; n += 4)
        for (int i = 0; i < 4; i++) max[i] = _mm512_max_ps(max[i], _mm512_load_ps(scores + 16 * (n + i)));
    return _mm512_max_ps(_mm512_max_ps(max[0], max[1]), _mm512_max_ps(max[2], max[3]));
}

/* 32 tokens of 16 rows: pairs of tokens by rows in 32-bit lanes, then transposed to A tiles. */
INLINE void token_probabilities(const float *scores, __m512 scale, __m512 max_log2, __m512 sum[2],
                                uint16_t *prob, uint16_t *rest) {
    const __m512i interleave = interleave_halves();
    __m512i first[16], second[16];
    for (int i = 0; i < 16; i++) {
        __m512 low = probability(scores + 32 * i, scale, max_log2, rest != NULL);
        __m512 high = probability(scores + 32 * i + 16, scale, max_log2, rest != NULL);
        sum[0] = _mm512_add_ps(sum[0], low);
        sum[1] = _mm512_add_ps(sum[1], high);
        __m512i rounded = round_pair(low, high);
        first[i] = _mm512_permutexvar_epi16(interleave, rounded);
        if (rest) second[i] = _mm512_permutexvar_epi16(interleave, round_rest(low, high, rounded));
    }
    transpose_16(first, prob);
    if (rest) transpose_16(second, rest);
}

INLINE void softmax_block_t(amx_work *work, int32_t in_group, int32_t block, int32_t tokens, bool split) {
    const float *scores = amx_score_tile(work, in_group, 0);
    block_state state = raise_max(work, block, max_of_tokens(scores, tokens));
    __m512 scale = _mm512_set1_ps(work->natural * LOG2_E);
    __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int32_t step = 0; step < tokens / AMX_DEPTH; step++) {
        look_ahead(&work->ahead, 8);
        token_probabilities(scores + step * 512, scale, state.max_log2, sum,
                            amx_prob_tile(work, in_group, 0, step),
                            split ? amx_prob_tile(work, in_group, 1, step) : NULL);
    }
    save_state(work, block, &state, _mm512_add_ps(sum[0], sum[1]));
}

void relayi_amx_softmax_t(amx_work *work, const amx_group *group, int32_t tiles) {
    for (int32_t b = 0; b < group->blocks; b++) {
        if (work->prob_terms > 1) softmax_block_t(work, b, group->first + b, tiles * RELAYI_TILE, true);
        else softmax_block_t(work, b, group->first + b, tiles * RELAYI_TILE, false);
    }
}
