/* The reference kernels, and the table that they fill. */
#ifndef RELAY_REF_H
#define RELAY_REF_H

#include "kernel.h"

relayi_attend_fn relayi_attend_f32_ref, relayi_attend_f16_ref, relayi_attend_bf16_ref;
relayi_pack_fn relayi_pack_f32_ref, relayi_pack_f16_ref, relayi_pack_bf16_ref;

void relayi_finish_ref(int32_t parts, int32_t head_dim, const float *acc, int64_t acc_stride,
                       const float *max, const float *sum, int64_t stat_stride, const float *sink,
                       float *out, float *lse);
void relayi_f32_to_bf16_ref(const float *from, uint16_t *to, int64_t n);
void relayi_f32_to_f16_ref(const float *from, uint16_t *to, int64_t n);
void relayi_bf16_to_f32_ref(const uint16_t *from, float *to, int64_t n);
void relayi_f16_to_f32_ref(const uint16_t *from, float *to, int64_t n);

#endif
