/* What the files of the x86 families know of each other. */
#ifndef RELAY_X86_H
#define RELAY_X86_H

#include "../kernel_list.h"

/* Each overwrites the table's entries that its family does better; the caller has checked that
 * the CPU has what the family needs. */
void relayi_kernels_amx(relayi_kernels *table, uint32_t flags);

relayi_attend_heads_fn relayi_attend_heads_bf16_few_amx;

/* Packing one tile of 64 tokens; row[n] points at token n's elements (relayi_zero_row: none).
 * K as rows of 32-bit words (float32, or pairs of 16-bit elements) and K of binary16, which is not
 * paired, from rows of `row_bytes` bytes, a multiple of 32; meanwhile rows `ahead` are prefetched. */
typedef void relayi_pack_key_fn(const char *const *row, int32_t row_bytes, void *tile,
                                const char *const *ahead);
typedef void relayi_pack_value_fn(const char *const *row, int32_t head_dim, void *tile);
relayi_pack_key_fn relayi_pack_key_words_avx2, relayi_pack_key_f16_avx2;
relayi_pack_key_fn relayi_pack_key_words_avx512, relayi_pack_key_f16_avx512;
relayi_pack_value_fn relayi_pack_value_f32_avx2, relayi_pack_value_f16_avx2, relayi_pack_value_bf16_avx2;
relayi_pack_value_fn relayi_pack_value_f32_avx512, relayi_pack_value_f16_avx512,
    relayi_pack_value_bf16_avx512;

/* Rates of one family on the calling thread, GFLOP/s; see relayi_peak_f32. */
double relayi_peak_f32_avx2(double seconds);
double relayi_peak_f32_avx512(double seconds);
double relayi_peak_bf16_dot_avx512bf16(double seconds);
double relayi_peak_bf16_amx(double seconds);

#endif
