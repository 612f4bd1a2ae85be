/* binary16 K/V, widened in registers, on AVX2 with F16C. */
#include "simd_avx2.h"
#include "x86.h"
#include "rows_x86.h"

typedef uint16_t kv_element;
enum { STEP_WIDTH = 1, PARTS = 1 };

ALWAYS_INLINE vf load_part(const uint16_t *at, int part) {
    (void)part;
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)at));
}
ALWAYS_INLINE vf load_row_part(const uint16_t *row, const uint16_t *odd, int part) {
    (void)odd;
    return load_part(row, part);
}

#define multiply_add v_fma
#define query_word(query, i) (query)[i]
#define store_p(row, i, p) v_store((row) + (i), p)
#define load_edge(at, odd) load_part(at, odd)
#define load_row_edge(row, odd) load_row_part(row, row, odd)
#define ATTEND relayi_attend_f16_avx2
#define PACK_KEY relayi_pack_key_f16_avx2
#define PACK_VALUE relayi_pack_value_f16_avx2
#define SCRATCH RELAYI_SCRATCH_X86_16BIT
#include "attend_x86.inc"
