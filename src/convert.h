/* Runs of elements of a tensor as float32, and back. */
#ifndef RELAY_CONVERT_H
#define RELAY_CONVERT_H

#include <string.h>

#include "kernel.h"

static inline void relayi_load_f32(const relayi_kernels *kernels, const relay_tensor *tensor, int64_t offset,
                                   float *to, int64_t n) {
    if (tensor->dtype == RELAY_F32) memcpy(to, (const float *)tensor->data + offset, (size_t)n * sizeof *to);
    else if (tensor->dtype == RELAY_BF16) kernels->bf16_to_f32((const uint16_t *)tensor->data + offset, to, n);
    else kernels->f16_to_f32((const uint16_t *)tensor->data + offset, to, n);
}

static inline void relayi_store_f32(const relayi_kernels *kernels, const relay_tensor *tensor, int64_t offset,
                                    const float *from, int64_t n) {
    if (tensor->dtype == RELAY_F32) memcpy((float *)tensor->data + offset, from, (size_t)n * sizeof *from);
    else if (tensor->dtype == RELAY_BF16) kernels->f32_to_bf16(from, (uint16_t *)tensor->data + offset, n);
    else kernels->f32_to_f16(from, (uint16_t *)tensor->data + offset, n);
}

#endif
