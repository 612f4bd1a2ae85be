/* New K/V into pages: one block a token, slots read on the device. */
#include "convert_cuda.cuh"
#include "kernels_cuda.h"

namespace {

struct write_params {
    strided from[2], pool[2];
    const int64_t *slots;
    int64_t num_blocks, block_size;
    int32_t heads, dim;
};

/* The same dtype: bit by bit, NaN payloads too. */
__device__ void move_element(const strided &from, int64_t source, const strided &to, int64_t target) {
    if (from.dtype != to.dtype) store_element(to, target, load_element(from, source));
    else if (from.dtype == RELAY_F32)
        static_cast<uint32_t *>(to.data)[target] = static_cast<const uint32_t *>(from.data)[source];
    else static_cast<uint16_t *>(to.data)[target] = static_cast<const uint16_t *>(from.data)[source];
}

__global__ void write_pages(const __grid_constant__ write_params p) {
    int64_t token = blockIdx.x, slot = p.slots[token];
    if (slot < 0 || slot / p.block_size >= p.num_blocks) return;
    int64_t block = slot / p.block_size, inside = slot % p.block_size;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < p.heads * p.dim; i += static_cast<int32_t>(blockDim.x)) {
        int64_t head = i / p.dim, d = i % p.dim;
        for (int kv = 0; kv < 2; kv++)
            move_element(p.from[kv], token * p.from[kv].stride[0] + head * p.from[kv].stride[1] + d, p.pool[kv],
                         block * p.pool[kv].stride[0] + inside * p.pool[kv].stride[1] + head * p.pool[kv].stride[2] + d);
    }
}

} // namespace

cudaError_t relayi_cuda_write_pages(const relayi_cuda_write *call, cudaStream_t stream) {
    write_params p = {{strided_of(call->key), strided_of(call->value)},
                      {strided_of(call->key_pool), strided_of(call->value_pool)},
                      call->slots,
                      call->key_pool.shape[0],
                      call->key_pool.shape[1],
                      static_cast<int32_t>(call->key.shape[1]),
                      static_cast<int32_t>(call->key.shape[2])};
    if (call->num_slots == 0 || p.heads == 0 || p.dim == 0) return cudaSuccess;
    int threads = p.heads * p.dim < 256 ? 128 : 256;
    write_pages<<<static_cast<unsigned>(call->num_slots), threads, 0, stream>>>(p);
    return cudaGetLastError();
}
