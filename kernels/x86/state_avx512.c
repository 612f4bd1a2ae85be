/* Fusing and conversions on AVX-512. */
#include "simd_avx512.h"
#include "x86.h"

#define FINISH relayi_finish_avx512
#include "finish_x86.inc"

/* By integers and not by VCVTNEPS2BF16, which flushes subnormal numbers to zero. */
ALWAYS_INLINE __m256i to_bf16(__m512 x) {
    __m512i bits = _mm512_castps_si512(x), high = _mm512_srli_epi32(bits, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    __m512i result = _mm512_mask_or_epi32(_mm512_srli_epi32(rounded, 16), nan, high, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(result);
}

void relayi_f32_to_bf16_avx512(const float *from, uint16_t *to, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm256_storeu_si256((__m256i *)(void *)(to + i), to_bf16(_mm512_loadu_ps(from + i)));
    relayi_f32_to_bf16_ref(from + i, to + i, n - i);
}

void relayi_f32_to_f16_avx512(const float *from, uint16_t *to, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm256_storeu_si256((__m256i *)(void *)(to + i),
                            _mm512_cvtps_ph(_mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
    relayi_f32_to_f16_ref(from + i, to + i, n - i);
}

void relayi_bf16_to_f32_avx512(const uint16_t *from, float *to, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(from + i)));
        _mm512_storeu_si512(to + i, _mm512_slli_epi32(wide, 16));
    }
    relayi_bf16_to_f32_ref(from + i, to + i, n - i);
}

void relayi_f16_to_f32_avx512(const uint16_t *from, float *to, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(from + i))));
    relayi_f16_to_f32_ref(from + i, to + i, n - i);
}
