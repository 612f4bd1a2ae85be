/* Launching the attention kernels of one padded head dim, for both dtypes. */
#ifndef RELAY_LAUNCH_CUDA_CUH
#define RELAY_LAUNCH_CUDA_CUH

#include "attend_cuda.cuh"
#include "kernels_cuda.h"

template <typename T, int D, bool SHAPED>
static cudaError_t launch_attend(const relayi_cuda_attend *call, int multiprocessors, cudaStream_t stream) {
    /* set at every launch: the attribute belongs to the device's context, which is the caller's */
    cudaError_t error = cudaFuncSetAttribute(attend<T, D, SHAPED>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, sizes<D>::shared_bytes);
    if (error != cudaSuccess) return error;
    int blocks = multiprocessors * sizes<D>::blocks;
    if (blocks > call->max_work) blocks = call->max_work;
    attend_params params = {};
    static_cast<relayi_cuda_params &>(params) = call->params;
    for (int i = 0; i < call->num_contiguous; i++) params.contiguous[i] = call->contiguous[i];
    attend<T, D, SHAPED><<<blocks, THREADS, sizes<D>::shared_bytes, stream>>>(params);
    return cudaGetLastError();
}

template <typename T, int D>
static cudaError_t launch_either(const relayi_cuda_attend *call, int multiprocessors, cudaStream_t stream) {
    bool shaped = call->params.soft_cap > 0.0f || call->params.slopes != nullptr;
    return shaped ? launch_attend<T, D, true>(call, multiprocessors, stream)
                  : launch_attend<T, D, false>(call, multiprocessors, stream);
}

#define RELAY_CUDA_ATTEND(D)                                                                                        \
    cudaError_t relayi_cuda_attend_d##D(const relayi_cuda_attend *call, int multiprocessors, cudaStream_t stream) { \
        return call->dtype == RELAY_BF16 ? launch_either<__nv_bfloat16, D>(call, multiprocessors, stream)           \
                                         : launch_either<__half, D>(call, multiprocessors, stream);                 \
    }

#endif
