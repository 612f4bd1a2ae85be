/* What the files of librelayattn_cuda give each other. */
#ifndef RELAY_KERNELS_CUDA_H
#define RELAY_KERNELS_CUDA_H

#include <cuda_runtime.h>

#include "cuda_ops.h"

#define RELAY_CUDA_DIMS(X) X(64) X(96) X(128) X(192) X(256)

#define RELAY_CUDA_DECLARE(D) \
    cudaError_t relayi_cuda_attend_d##D(const relayi_cuda_attend *call, int multiprocessors, cudaStream_t stream);
RELAY_CUDA_DIMS(RELAY_CUDA_DECLARE)
#undef RELAY_CUDA_DECLARE
/* Compute capability 9.0 alone. */
cudaError_t relayi_cuda_hopper_d64(const relayi_cuda_attend *call, int multiprocessors, cudaStream_t stream);
cudaError_t relayi_cuda_hopper_d128(const relayi_cuda_attend *call, int multiprocessors, cudaStream_t stream);

/* Up to so many (row, head) pairs the Hopper kernel merges by itself; more are faster in a kernel of many small
 * blocks. */
#define RELAY_CUDA_INSIDE_PAIRS 2048

static inline bool relayi_cuda_merges_inside(const relayi_cuda_attend *call) {
    return call->kernel == RELAYI_CUDA_HOPPER &&
           static_cast<int64_t>(call->max_rows) * call->params.heads <= RELAY_CUDA_INSIDE_PAIRS;
}

cudaError_t relayi_cuda_merge(const relayi_cuda_attend *call, int major, cudaStream_t stream);
cudaError_t relayi_cuda_merge_hopper(const relayi_cuda_attend *call, cudaStream_t stream); /* of what the Hopper kernel leaves */
cudaError_t relayi_cuda_write_pages(const relayi_cuda_write *call, cudaStream_t stream);
cudaError_t relayi_cuda_fuse_parts(const relayi_cuda_fuse *call, cudaStream_t stream);
cudaError_t relayi_cuda_read_bytes(const void *memory, size_t bytes, cudaStream_t stream);
/* On device `index`, which is current; synchronous. */
cudaError_t relayi_cuda_measure(const relayi_cuda_device *device, relayi_cuda_rates *rates);

#endif
