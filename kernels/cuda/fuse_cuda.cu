/* Fusion as a public operation: one warp for one (row, head), parts in their order. */
#include <math_constants.h>

#include "convert_cuda.cuh"
#include "kernels_cuda.h"

namespace {

enum { FUSE_WARPS = 4 };

struct fuse_params {
    strided output;
    float *lse;
    int64_t lse_row, lse_head, rows;
    int32_t heads, dim, parts;
    strided part[RELAYI_CUDA_MAX_PARTS];
    const float *part_lse[RELAYI_CUDA_MAX_PARTS];
    int64_t part_lse_row[RELAYI_CUDA_MAX_PARTS], part_lse_head[RELAYI_CUDA_MAX_PARTS];
};

/* +INFINITY marks an empty row for some producers. */
__device__ float part_lse_at(const fuse_params &p, int i, int64_t row, int head) {
    float lse = p.part_lse[i][row * p.part_lse_row[i] + head * p.part_lse_head[i]];
    return lse == CUDART_INF_F ? -CUDART_INF_F : lse;
}

__device__ void fuse_row(const fuse_params &p, int64_t row, int head, int lane) {
    float top = -CUDART_INF_F, denominator = 0.0f;
    for (int i = 0; i < p.parts; i++) {
        float lse = part_lse_at(p, i, row, head);
        if (lse > top || isnan(lse)) top = lse; /* a NaN stays: nothing compares greater */
    }
    for (int i = 0; top != -CUDART_INF_F && i < p.parts; i++) denominator += expf(part_lse_at(p, i, row, head) - top);
    __syncwarp(); /* the lse may be written where part 0's was read */
    for (int d = lane; d < p.dim; d += 32) {
        float merged = 0.0f;
        bool first = true; /* taken as it is, not added to 0: that would lose the sign of -0 */
        for (int i = 0; i < p.parts; i++) {
            float lse = part_lse_at(p, i, row, head);
            if (lse == -CUDART_INF_F) continue;
            float weight = expf(lse - top) / denominator;
            float value = load_element(p.part[i], row * p.part[i].stride[0] + head * p.part[i].stride[1] + d);
            merged = first ? weight * value : merged + weight * value;
            first = false;
        }
        store_element(p.output, row * p.output.stride[0] + head * p.output.stride[1] + d, merged);
    }
    __syncwarp();
    if (p.lse && lane == 0)
        p.lse[row * p.lse_row + head * p.lse_head] = top == -CUDART_INF_F ? top : top + logf(denominator);
}

__global__ void __launch_bounds__(FUSE_WARPS * 32) fuse_parts(const __grid_constant__ fuse_params p) {
    int64_t pair = static_cast<int64_t>(blockIdx.x) * FUSE_WARPS + threadIdx.x / 32;
    if (pair < p.rows * p.heads)
        fuse_row(p, pair / p.heads, static_cast<int>(pair % p.heads), static_cast<int>(threadIdx.x % 32));
}

} // namespace

cudaError_t relayi_cuda_fuse_parts(const relayi_cuda_fuse *call, cudaStream_t stream) {
    fuse_params p = {};
    p.output = strided_of(call->output);
    p.lse = static_cast<float *>(call->lse.data);
    p.lse_row = call->lse.stride[0];
    p.lse_head = call->lse.stride[1];
    p.rows = call->output.shape[0];
    p.heads = static_cast<int32_t>(call->output.shape[1]);
    p.dim = static_cast<int32_t>(call->output.shape[2]);
    p.parts = call->num_parts;
    for (int i = 0; i < call->num_parts; i++) {
        p.part[i] = strided_of(call->outputs[i]);
        p.part_lse[i] = static_cast<const float *>(call->lses[i].data);
        p.part_lse_row[i] = call->lses[i].stride[0];
        p.part_lse_head[i] = call->lses[i].stride[1];
    }
    if (p.rows * p.heads == 0) return cudaSuccess;
    fuse_parts<<<static_cast<unsigned>((p.rows * p.heads + FUSE_WARPS - 1) / FUSE_WARPS), FUSE_WARPS * 32, 0, stream>>>(p);
    return cudaGetLastError();
}
