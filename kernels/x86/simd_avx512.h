/* The vectors that attend_x86.inc computes with, for AVX-512. */
#ifndef RELAY_SIMD_AVX512_H
#define RELAY_SIMD_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum {
    LANES = 16,
    BLOCK_ROWS = 12,     /* rows whose accumulators live in registers together: 12 x 2 vectors, */
    WIDE_ROWS = 6,       /* or up to this many rows x 4 vectors */
    WIDE_VECTORS = 4,
    NARROW_VECTORS = 2,
    IN_PLACE_ROWS = 6,   /* up to which V is best read where it lies (measured) */
    SUPER_BLOCKS = 2     /* blocks of rows whose scores share the first-level cache */
};

/* Shapes (rows, vectors) of which a micro-kernel is made; those for few rows read pages too. */
#define EACH_FEW_ROWS_SHAPE(X)                                                              \
    X(1, 1) X(1, 2) X(1, 3) X(1, 4) X(2, 1) X(2, 2) X(2, 3) X(2, 4) X(3, 1) X(3, 2) X(3, 3) \
    X(3, 4) X(4, 1) X(4, 2) X(4, 3) X(4, 4) X(5, 1) X(5, 2) X(5, 3) X(5, 4) X(6, 1) X(6, 2) \
    X(6, 3) X(6, 4)
#define EACH_MANY_ROWS_SHAPE(X)                                                             \
    X(7, 1) X(7, 2) X(8, 1) X(8, 2) X(9, 1) X(9, 2) X(10, 1) X(10, 2) X(11, 1) X(11, 2)     \
    X(12, 1) X(12, 2)

typedef __m512 vf;

ALWAYS_INLINE vf v_zero(void) { return _mm512_setzero_ps(); }
ALWAYS_INLINE vf v_all(float x) { return _mm512_set1_ps(x); }
ALWAYS_INLINE vf v_load(const float *from) { return _mm512_loadu_ps(from); }
ALWAYS_INLINE void v_store(float *to, vf x) { _mm512_storeu_ps(to, x); }
ALWAYS_INLINE vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
ALWAYS_INLINE vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
ALWAYS_INLINE vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
ALWAYS_INLINE vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
ALWAYS_INLINE vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
/* The second operand when one is NaN. */
ALWAYS_INLINE vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
ALWAYS_INLINE vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }
ALWAYS_INLINE float v_first(vf x) { return _mm512_cvtss_f32(x); }
ALWAYS_INLINE float v_top(vf x) { return _mm512_reduce_max_ps(x); }
ALWAYS_INLINE float v_sum(vf x) { return _mm512_reduce_add_ps(x); }
/* first, first + 1, ... as floats. */
ALWAYS_INLINE vf v_count_from(int32_t first) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_set1_epi32(first), lane));
}
/* Lanes [begin, end) of x, `other` elsewhere. */
ALWAYS_INLINE vf v_keep(vf x, int32_t begin, int32_t end, vf other) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __mmask16 keep = _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(begin)) &
                     _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(end));
    return _mm512_mask_blend_ps(keep, other, x);
}
/* a where |x| < limit, b elsewhere. */
ALWAYS_INLINE vf v_if_small(vf x, float limit, vf a, vf b) {
    __mmask16 small = _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(limit), _CMP_LT_OQ);
    return _mm512_mask_blend_ps(small, b, a);
}

/* 2^y to 2 units in the last place; 0 where y < -126 (a subnormal would only slow what follows),
 * NaN where y is NaN. */
ALWAYS_INLINE vf v_exp2(vf y) {
    vf r = _mm512_reduce_ps(y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); /* y - floor(y) */
    vf p = v_fma(v_all(1.867130399e-3f), r, v_all(9.017029777e-3f));
    p = v_fma(p, r, v_all(5.579991266e-2f));
    p = v_fma(p, r, v_all(2.401644439e-1f));
    p = v_fma(p, r, v_all(6.931512952e-1f));
    p = v_fma(p, r, v_all(1.0f));
    __mmask16 normal = _mm512_cmp_ps_mask(y, v_all(-126.0f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(normal, p, y); /* p * 2^floor(y) */
}

#endif
