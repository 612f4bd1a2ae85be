/* What the files of the x86 families know of each other. */
#ifndef RELAY_X86_H
#define RELAY_X86_H

#include "kernel_list.h"

/* Each overwrites the table's entries that its family does better; the caller has checked that
 * the CPU has what the family needs. */
void relayi_kernels_amx(relayi_kernels *table, uint32_t flags);

/* Rates of one family on the calling thread, GFLOP/s; see relayi_peak_f32. */
double relayi_peak_f32_avx2(double seconds);
double relayi_peak_f32_avx512(double seconds);
double relayi_peak_bf16_dot_avx512bf16(double seconds);
double relayi_peak_bf16_amx(double seconds);

#endif
