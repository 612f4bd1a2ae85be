/* Elements of any of the three dtypes. */
#ifndef RELAY_CONVERT_CUDA_CUH
#define RELAY_CONVERT_CUDA_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda_ops.h"

/* A tensor as a kernel takes it; strides in elements, the last dimension dense. */
struct strided {
    void *data;
    relay_dtype dtype;
    int64_t stride[3];
};

static inline strided strided_of(const relay_tensor &tensor) {
    strided s = {tensor.data, tensor.dtype, {0, 0, 0}};
    for (int i = 0; i < 3 && i < tensor.ndim; i++) s.stride[i] = tensor.stride[i];
    return s;
}

static __device__ __forceinline__ float load_element(const strided &from, int64_t at) {
    if (from.dtype == RELAY_F32) return static_cast<const float *>(from.data)[at];
    if (from.dtype == RELAY_F16) return __half2float(static_cast<const __half *>(from.data)[at]);
    return __bfloat162float(static_cast<const __nv_bfloat16 *>(from.data)[at]);
}

static __device__ __forceinline__ void store_element(const strided &to, int64_t at, float value) {
    if (to.dtype == RELAY_F32) static_cast<float *>(to.data)[at] = value;
    else if (to.dtype == RELAY_F16) static_cast<__half *>(to.data)[at] = __float2half_rn(value);
    else static_cast<__nv_bfloat16 *>(to.data)[at] = __float2bfloat16_rn(value);
}

#endif
