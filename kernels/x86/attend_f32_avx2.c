/* float32 K/V on AVX2. */
#include "simd_avx2.h"
#include "x86.h"
#include "rows_x86.h"

typedef float kv_element;
enum { STEP_WIDTH = 1, PARTS = 1 };

ALWAYS_INLINE vf load_part(const float *at, int part) {
    (void)part;
    return _mm256_loadu_ps(at);
}
ALWAYS_INLINE vf load_row_part(const float *row, const float *odd, int part) {
    (void)odd, (void)part;
    return _mm256_loadu_ps(row);
}

#define multiply_add v_fma
#define query_word(query, i) (query)[i]
#define store_p(row, i, p) v_store((row) + (i), p)
#define load_edge(at, odd) load_part(at, odd)
#define load_row_edge(row, odd) load_row_part(row, row, odd)
#define ATTEND relayi_attend_f32_avx2
#define PACK_KEY relayi_pack_key_words_avx2
#define PACK_VALUE relayi_pack_value_f32_avx2
#define SCRATCH RELAYI_SCRATCH_X86_F32
#include "attend_x86.inc"
