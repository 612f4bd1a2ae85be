/* bf16 K/V, widened in registers, on AVX2.  A vector of pairs is two vectors of float32: a shift
 * brings up the even halves, a mask leaves the odd ones. */
#include "simd_avx2.h"
#include "x86.h"
#include "rows_x86.h"

typedef uint16_t kv_element;
enum { STEP_WIDTH = 2, PARTS = 2 };

ALWAYS_INLINE vf load_part(const uint16_t *at, int part) {
    __m256i pairs = _mm256_loadu_si256((const __m256i *)(const void *)at);
    return _mm256_castsi256_ps(part ? _mm256_and_si256(pairs, _mm256_set1_epi32((int32_t)0xffff0000))
                                    : _mm256_slli_epi32(pairs, 16));
}
ALWAYS_INLINE vf load_row_part(const uint16_t *even, const uint16_t *odd, int part) {
    const uint16_t *row = part ? odd : even;
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)row));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

#define multiply_add v_fma
#define query_word(query, i) (query)[i]
#define store_p(row, i, p) v_store((row) + (i), p)
#define load_edge(at, odd) load_part(at, odd)
#define load_row_edge(row, odd) load_row_part(row, row, odd)
#define ATTEND relayi_attend_bf16_avx2
#define PACK_KEY relayi_pack_key_words_avx2
#define PACK_VALUE relayi_pack_value_bf16_avx2
#define SCRATCH RELAYI_SCRATCH_X86_16BIT
#include "attend_x86.inc"
