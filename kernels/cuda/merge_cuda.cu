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

/* The largest lse of all parts, the same in every lane.  NaN is a maximum of nothing, so that it
 * reaches the sum by its weight and not by the shift. */
DEVICE float largest_lse(const relayi_cuda_params &p, const relayi_cuda_run *runs, int count, int row, int head) {
    float top = p.sinks ? p.sinks[head] : -CUDART_INF_F;
    for (int i = 0; i < count; i++) {
        states_of at = find_states(p, runs[i], row, head);
        for (int c = threadIdx.x % 32; c < runs[i].chunks; c += 32) top = fmaxf(top, p.lse[at.first + c * at.step]);
    }
    for (int by = 16; by > 0; by /= 2) top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFF, top, by));
    return top == -CUDART_INF_F ? 0.0f : top;
}

enum { SPLIT_WARPS = 8, MERGE_MAX_PAIRS = 4 }; /* pairs of dims that a lane has, at head dim 256 */

/* What a warp has added up: two dims of each 64 a lane. */
struct partial {
    float2 o[MERGE_MAX_PAIRS];
    float sum;
};

/* Adds parts number `first`, first + `step`, ... of a row's runs, in that order. */
DEVICE void add_parts(const relayi_cuda_params &p, const relayi_cuda_run *runs, int count, int row, int head, float top,
                      int first, int step, partial &total) {
    int lane = threadIdx.x % 32;
    for (int i = 0; i < count; i++) {
        states_of at = find_states(p, runs[i], row, head);
        int chunks = runs[i].chunks, c = first;
#pragma unroll 8
        for (; c < chunks; c += step) {
            int64_t state = at.first + c * at.step;
            float weight = exp2f((p.lse[state] - top) * LOG2E);
            total.sum += weight;
#pragma unroll
            for (int k = 0; k < MERGE_MAX_PAIRS; k++) {
                int d = (k * 32 + lane) * 2;
                if (d >= p.head_dim) break;
                float2 part = *reinterpret_cast<const float2 *>(p.acc + state * p.head_dim + d);
                total.o[k].x += weight * part.x;
                total.o[k].y += weight * part.y;
            }
        }
        first = c - chunks;
    }
}

/* All warps' partials become the first warp's. */
DEVICE void add_warps(partial &total) {
    __shared__ partial shared[SPLIT_WARPS - 1][32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp > 0) shared[warp - 1][lane] = total;
    __syncthreads();
    for (int w = 0; warp == 0 && w < SPLIT_WARPS - 1; w++) {
        total.sum += shared[w][lane].sum;
#pragma unroll
        for (int k = 0; k < MERGE_MAX_PAIRS; k++) {
            total.o[k].x += shared[w][lane].o[k].x;
            total.o[k].y += shared[w][lane].o[k].y;
        }
    }
}

template <typename T>
DEVICE void store_row(const relayi_cuda_params &p, const relayi_cuda_row &of, int head, float top, const partial &added) {
    int lane = threadIdx.x % 32;
    float total = added.sum + (p.sinks ? exp2f((p.sinks[head] - top) * LOG2E) : 0.0f);
    float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    T *to = static_cast<T *>(p.output) + of.source * p.output_row + head * p.output_head;
#pragma unroll
    for (int k = 0; k < MERGE_MAX_PAIRS; k++) {
        int d = (k * 32 + lane) * 2;
        if (d < p.head_dim) store_two(to + d, p.output_aligned, added.o[k].x * inverse, added.o[k].y * inverse);
    }
    if (p.output_lse && lane == 0)
        p.output_lse[of.source * p.lse_row + head * p.lse_head] = total == 0.0f ? -CUDART_INF_F : top + logf(total);
}

/* One (row, head) by a warp, or by a block's eight where rows are few and parts many. */
template <typename T, bool SPLIT>
__global__ void __launch_bounds__(SPLIT_WARPS * 32) merge(const __grid_constant__ relayi_cuda_params p) {
    relayi_cuda_header *header = static_cast<relayi_cuda_header *>(p.list);
    const char *list = static_cast<const char *>(p.list);
    int warp = threadIdx.x / 32;
    int64_t pair = SPLIT ? blockIdx.x : static_cast<int64_t>(blockIdx.x) * WARPS + warp;
    int row = static_cast<int>(pair / p.heads), head = static_cast<int>(pair % p.heads);
    bool real = row < header->num_rows;
    relayi_cuda_row of = {};
    if (real) of = reinterpret_cast<const relayi_cuda_row *>(list + p.rows)[row];
    const relayi_cuda_run *runs = reinterpret_cast<const relayi_cuda_run *>(list + p.runs) + of.first_run;
    if (real && runs->chunks < 0) return; /* never: brings it near while the attention ends */
    wait_for_predecessor();               /* what is above was there before it began */
    if (blockIdx.x == 0 && threadIdx.x == 0) header->next = header->next_flat = 0;
    if (!real) return;
    float top = largest_lse(p, runs, of.num_runs, row, head);
    partial added = {};
    add_parts(p, runs, of.num_runs, row, head, top, SPLIT ? warp : 0, SPLIT ? SPLIT_WARPS : 1, added);
    if (SPLIT) add_warps(added);
    if (!SPLIT || warp == 0) store_row<T>(p, of, head, top, added);
}

} // namespace

cudaError_t relayi_cuda_merge(const relayi_cuda_attend *call, int major, cudaStream_t stream) {
    if (call->kernel == RELAYI_CUDA_HOPPER) return relayi_cuda_merge_hopper(call, stream);
    int64_t pairs = static_cast<int64_t>(call->max_rows) * call->params.heads;
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = static_cast<unsigned>(call->split_merge ? pairs : (pairs + WARPS - 1) / WARPS);
    config.blockDim = call->split_merge ? SPLIT_WARPS * 32 : THREADS;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = major >= 9 ? 1 : 0;
    bool bf16 = call->output_dtype == RELAY_BF16;
    auto split = bf16 ? merge<__nv_bfloat16, true> : merge<__half, true>;
    auto whole = bf16 ? merge<__nv_bfloat16, false> : merge<__half, false>;
    return cudaLaunchKernelEx(&config, call->split_merge ? split : whole, call->params);
}
