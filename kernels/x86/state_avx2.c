/* Fusing and conversions on AVX2. */
#include "simd_avx2.h"
#include "x86.h"

#define FINISH relayi_finish_avx2
#include "finish_x86.inc"

ALWAYS_INLINE __m128i to_bf16(__m256 x) {
    __m256i bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
    __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    __m256i result = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16),
                                        _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
}

void relayi_f32_to_bf16_avx2(const float *from, uint16_t *to, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(to + i), to_bf16(_mm256_loadu_ps(from + i)));
    relayi_f32_to_bf16_ref(from + i, to + i, n - i);
}

void relayi_f32_to_f16_avx2(const float *from, uint16_t *to, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(to + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
    relayi_f32_to_f16_ref(from + i, to + i, n - i);
}

void relayi_bf16_to_f32_avx2(const uint16_t *from, float *to, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(from + i)));
        _mm256_storeu_ps(to + i, _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)));
    }
    relayi_bf16_to_f32_ref(from + i, to + i, n - i);
}

void relayi_f16_to_f32_avx2(const uint16_t *from, float *to, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(from + i))));
    relayi_f16_to_f32_ref(from + i, to + i, n - i);
}
