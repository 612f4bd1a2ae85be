/* The vectors that attend_x86.inc computes with, for AVX2. */
#ifndef RELAY_SIMD_AVX2_H
#define RELAY_SIMD_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum {
    LANES = 8,
    BLOCK_ROWS = 6,      /* rows whose accumulators live in registers together: 6 x 2 vectors */
    WIDE_ROWS = 0,
    WIDE_VECTORS = 2,
    NARROW_VECTORS = 2,
    IN_PLACE_ROWS = 6,   /* up to which V is best read where it lies (measured) */
    SUPER_BLOCKS = 4     /* blocks of rows whose scores share the first-level cache */
};

/* Shapes (rows, vectors) of which a micro-kernel is made; those for few rows read pages too. */
#define EACH_FEW_ROWS_SHAPE(X) X(1, 2) X(2, 2) X(3, 2) X(4, 2) X(5, 2) X(6, 2)
#define EACH_MANY_ROWS_SHAPE(X)

typedef __m256 vf;

ALWAYS_INLINE vf v_zero(void) { return _mm256_setzero_ps(); }
ALWAYS_INLINE vf v_all(float x) { return _mm256_set1_ps(x); }
ALWAYS_INLINE vf v_load(const float *from) { return _mm256_loadu_ps(from); }
ALWAYS_INLINE void v_store(float *to, vf x) { _mm256_storeu_ps(to, x); }
ALWAYS_INLINE vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
ALWAYS_INLINE vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
ALWAYS_INLINE vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
ALWAYS_INLINE vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
ALWAYS_INLINE vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
/* The second operand when one is NaN. */
ALWAYS_INLINE vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
ALWAYS_INLINE vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }
ALWAYS_INLINE float v_first(vf x) { return _mm256_cvtss_f32(x); }
ALWAYS_INLINE float v_top(vf x) {
    __m128 t = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    t = _mm_max_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
}
ALWAYS_INLINE float v_sum(vf x) {
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}
/* first, first + 1, ... as floats. */
ALWAYS_INLINE vf v_count_from(int32_t first) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_set1_epi32(first), lane));
}
/* Lanes [begin, end) of x, `other` elsewhere. */
ALWAYS_INLINE vf v_keep(vf x, int32_t begin, int32_t end, vf other) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i drop = _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(begin), lane),
                                   _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(end - 1)));
    return _mm256_blendv_ps(x, other, _mm256_castsi256_ps(drop));
}
/* a where |x| < limit, b elsewhere. */
ALWAYS_INLINE vf v_if_small(vf x, float limit, vf a, vf b) {
    vf magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(magnitude, _mm256_set1_ps(limit), _CMP_LT_OQ));
}

/* 2^y to 2 units in the last place, y < 127; 0 where y < -126 (a subnormal would only slow what
 * follows), NaN where y is NaN. */
ALWAYS_INLINE vf v_exp2(vf y) {
    vf whole = _mm256_floor_ps(y), r = v_sub(y, whole);
    vf p = v_fma(v_all(1.867130399e-3f), r, v_all(9.017029777e-3f));
    p = v_fma(p, r, v_all(5.579991266e-2f));
    p = v_fma(p, r, v_all(2.401644439e-1f));
    p = v_fma(p, r, v_all(6.931512952e-1f));
    p = v_fma(p, r, v_all(1.0f));
    __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    p = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
    return _mm256_and_ps(p, _mm256_cmp_ps(y, v_all(-126.0f), _CMP_NLT_UQ));
}

#endif
