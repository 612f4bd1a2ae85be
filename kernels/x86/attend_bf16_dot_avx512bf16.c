/* bf16 K/V by VDPBF16PS: two products and their sum an instruction.  Queries are bf16 already, and
 * probabilities are rounded to it. */
#include "half.h"
#include "simd_avx512.h"
#include "x86.h"
#include "rows_x86.h"

typedef uint16_t kv_element;
enum { STEP_WIDTH = 2, PARTS = 1 };

ALWAYS_INLINE vf load_part(const uint16_t *at, int part) {
    (void)part;
    return _mm512_loadu_ps(at);
}
ALWAYS_INLINE __m512i widen(const uint16_t *row) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)row));
}
ALWAYS_INLINE vf load_row_part(const uint16_t *even, const uint16_t *odd, int part) {
    (void)part;
    return _mm512_castsi512_ps(_mm512_or_si512(widen(even), _mm512_slli_epi32(widen(odd), 16)));
}
ALWAYS_INLINE vf load_edge(const uint16_t *at, int odd) {
    __m512i half = _mm512_set1_epi32(odd ? (int32_t)0xffff0000 : 0xffff);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(at), half));
}
ALWAYS_INLINE vf load_row_edge(const uint16_t *row, int odd) {
    __m512i wide = widen(row);
    return _mm512_castsi512_ps(odd ? _mm512_slli_epi32(wide, 16) : wide);
}
ALWAYS_INLINE vf multiply_add(vf word, vf x, vf sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)word, (__m512bh)x);
}
static inline float query_word(const float *query, int32_t i) {
    uint32_t even = relayi_to_bf16(query[2 * i]), odd = relayi_to_bf16(query[2 * i + 1]);
    return relayi_bits_float(even | odd << 16);
}
/* In place: half as wide as the scores, so behind what is still to be read. */
ALWAYS_INLINE void store_p(float *row, int32_t i, vf p) {
    _mm256_storeu_si256((__m256i *)(void *)((uint16_t *)(void *)row + i), (__m256i)_mm512_cvtneps_pbh(p));
}

#define ATTEND relayi_attend_bf16_dot_avx512bf16
#define PACK_KEY relayi_pack_key_words_avx512
#define PACK_VALUE relayi_pack_value_bf16_avx512
#define SCRATCH RELAYI_SCRATCH_X86_16BIT
#include "attend_x86.inc"
