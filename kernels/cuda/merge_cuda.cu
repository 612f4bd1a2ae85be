/* The end of a run: a row's partial states, and its sink logit if there is one, become its output. */
#include "tile_cuda.cuh"
#include "kernels_cuda.h"

namespace {

/* State number of one chunk of a run, for a row and head. */
struct states_of {
    int64_t first, step;
};

DEVICE states_of find_states(const relayi_cuda_params &p, const relayi_cuda_run &run, int row, int head) {
    int kv_head = head / p.group, in_group = head % p.group;
    int64_t rows = static_cast<int64_t>(run.rows) * p.group;
    return {run.base + kv_head * rows + static_cast<int64_t>(row - run.row_begin) * p.group + in_group,
            rows * p.kv_heads};
}

/* NaN is a maximum of nothing, so that it reaches the sum by its weight and not by the shift. */
DEVICE float largest_lse(const relayi_cuda_params &p, const relayi_cuda_run *runs, int count, int row, int head) {
    float top = p.sinks ? p.sinks[head] : -CUDART_INF_F;
    for (int i = 0; i < count; i++) {
        states_of at = find_states(p, runs[i], row, head);
        for (int c = threadIdx.x % 32; c < runs[i].chunks; c += 32) top = fmaxf(top, p.lse[at.first + c * at.step]);
    }
    for (int by = 16; by > 0; by /= 2) top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFF, top, by));
    return top == -CUDART_INF_F ? 0.0f : top;
}

template <typename T> DEVICE void store_two(T *to, bool aligned, float low, float high) {
    uint32_t two = half_ops<T>::pack(low, high);
    if (aligned) {
        *reinterpret_cast<uint32_t *>(to) = two;
    } else {
        reinterpret_cast<uint16_t *>(to)[0] = static_cast<uint16_t>(two);
        reinterpret_cast<uint16_t *>(to)[1] = static_cast<uint16_t>(two >> 16);
    }
}

enum { MERGE_MAX_PAIRS = 4 }; /* pairs of dims that a lane has, at head dim 256 */

/* One warp for one (row, head): all lanes add the parts in their order. */
template <typename T>
__global__ void __launch_bounds__(THREADS) merge(const __grid_constant__ relayi_cuda_params p) {
    relayi_cuda_header *header = static_cast<relayi_cuda_header *>(p.list);
    const char *list = static_cast<const char *>(p.list);
    int64_t pair = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / 32;
    int row = static_cast<int>(pair / p.heads), head = static_cast<int>(pair % p.heads), lane = threadIdx.x % 32;
    if (pair == 0 && lane == 0) header->next = 0;
    if (row >= header->num_rows) return;
    relayi_cuda_row of = reinterpret_cast<const relayi_cuda_row *>(list + p.rows)[row];
    const relayi_cuda_run *runs = reinterpret_cast<const relayi_cuda_run *>(list + p.runs) + of.first_run;
    float top = largest_lse(p, runs, of.num_runs, row, head), sum = 0.0f;
    float2 o[MERGE_MAX_PAIRS] = {};
    for (int i = 0; i < of.num_runs; i++) {
        states_of at = find_states(p, runs[i], row, head);
#pragma unroll 4
        for (int c = 0; c < runs[i].chunks; c++) {
            int64_t state = at.first + c * at.step;
            float weight = exp2f((p.lse[state] - top) * LOG2E);
            sum += weight;
#pragma unroll
            for (int k = 0; k < MERGE_MAX_PAIRS; k++) {
                int d = (k * 32 + lane) * 2;
                if (d >= p.head_dim) break;
                float2 part = *reinterpret_cast<const float2 *>(p.acc + state * p.head_dim + d);
                o[k].x += weight * part.x;
                o[k].y += weight * part.y;
            }
        }
    }
    float total = sum + (p.sinks ? exp2f((p.sinks[head] - top) * LOG2E) : 0.0f);
    float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    T *to = static_cast<T *>(p.output) + of.source * p.output_row + head * p.output_head;
#pragma unroll
    for (int k = 0; k < MERGE_MAX_PAIRS; k++) {
        int d = (k * 32 + lane) * 2;
        if (d < p.head_dim) store_two(to + d, p.output_aligned, o[k].x * inverse, o[k].y * inverse);
    }
    if (p.output_lse && lane == 0)
        p.output_lse[of.source * p.lse_row + head * p.lse_head] = total == 0.0f ? -CUDART_INF_F : top + logf(total);
}

} // namespace

cudaError_t relayi_cuda_merge(const relayi_cuda_attend *call, cudaStream_t stream) {
    int64_t pairs = static_cast<int64_t>(call->max_rows) * call->params.heads;
    unsigned blocks = static_cast<unsigned>((pairs + WARPS - 1) / WARPS);
    if (call->output_dtype == RELAY_BF16) merge<__nv_bfloat16><<<blocks, THREADS, 0, stream>>>(call->params);
    else merge<__half><<<blocks, THREADS, 0, stream>>>(call->params);
    return cudaGetLastError();
}
