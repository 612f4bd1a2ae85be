/* The end of a run: a row's partial states, and its sink logit if there is one, become its output. */
#include "hopper_state.cuh"
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

/* Two kinds of states: float32, of any head dim (D 0), and those of hopper_state.cuh, of D dims. */
template <int D> DEVICE float lse_of_state(const relayi_cuda_params &p, int64_t state) {
    return D > 0 ? read_stats(p, state, false).lse : p.lse[state];
}

/* The largest lse of all parts, the same in every lane.  NaN is a maximum of nothing, so that it
 * reaches the sum by its weight and not by the shift. */
template <int D>
DEVICE float largest_lse(const relayi_cuda_params &p, const relayi_cuda_run *runs, int count, int row, int head) {
    float top = p.sinks ? p.sinks[head] : -CUDART_INF_F;
    for (int i = 0; i < count; i++) {
        states_of at = find_states(p, runs[i], row, head);
        for (int c = threadIdx.x % 32; c < runs[i].chunks; c += 32) top = fmaxf(top, lse_of_state<D>(p, at.first + c * at.step));
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

enum { SPLIT_WARPS = 8, MERGE_MAX_PAIRS = 4 }; /* pairs of dims that a lane has, at head dim 256 */

/* What a warp has added up. */
template <int D> struct partial {
    static constexpr int pairs = D > 0 ? D / 64 : MERGE_MAX_PAIRS;
    float o[pairs * 2]; /* pairs of dims side by side */
    float sum;

    /* The first dim of a lane's pair: two of each 64 dims a lane, or the words of a state in turn. */
    static DEVICE int dim(int pair) {
        int lane = threadIdx.x % 32;
        return D > 0 ? state_dim(lane * pairs + pair) : (pair * 32 + lane) * 2;
    }
    DEVICE void add(const relayi_cuda_params &p, int64_t state, float top) {
        if constexpr (D > 0) {
            state_stats stats = read_stats(p, state, false);
            int lane = threadIdx.x % 32;
            float weight = exp2f((stats.lse - top) * LOG2E), by = scaled_weight(weight, stats.scale(lane / 16));
            sum += weight;
            add_words<pairs>(o, by, reinterpret_cast<const uint32_t *>(state_chunks<D>(p, state)) + lane * pairs);
        } else {
            float weight = exp2f((p.lse[state] - top) * LOG2E);
            sum += weight;
#pragma unroll
            for (int k = 0; k < pairs && dim(k) < p.head_dim; k++) {
                float2 two = *reinterpret_cast<const float2 *>(p.acc + state * p.head_dim + dim(k));
                o[2 * k] += weight * two.x;
                o[2 * k + 1] += weight * two.y;
            }
        }
    }
};

/* Adds parts number `first`, first + `step`, ... of a row's runs, in that order. */
template <int D>
DEVICE void add_parts(const relayi_cuda_params &p, const relayi_cuda_run *runs, int count, int row, int head, float top,
                      int first, int step, partial<D> &total) {
    for (int i = 0; i < count; i++) {
        states_of at = find_states(p, runs[i], row, head);
        int chunks = runs[i].chunks, c = first;
#pragma unroll 8
        for (; c < chunks; c += step) total.add(p, at.first + c * at.step, top);
        first = c - chunks;
    }
}

/* All warps' partials become the first warp's. */
template <int D> DEVICE void add_warps(partial<D> &total) {
    __shared__ partial<D> shared[SPLIT_WARPS - 1][32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp > 0) shared[warp - 1][lane] = total;
    __syncthreads();
    for (int w = 0; warp == 0 && w < SPLIT_WARPS - 1; w++) {
        total.sum += shared[w][lane].sum;
#pragma unroll
        for (int k = 0; k < partial<D>::pairs * 2; k++) total.o[k] += shared[w][lane].o[k];
    }
}

template <typename T, int D>
DEVICE void store_row(const relayi_cuda_params &p, const relayi_cuda_row &of, int head, float top, const partial<D> &added) {
    float total = added.sum + (p.sinks ? exp2f((p.sinks[head] - top) * LOG2E) : 0.0f);
    float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    T *to = static_cast<T *>(p.output) + of.source * p.output_row + head * p.output_head;
#pragma unroll
    for (int k = 0; k < added.pairs; k++) {
        int d = added.dim(k);
        if (d < p.head_dim) store_two(to + d, p.output_aligned, added.o[2 * k] * inverse, added.o[2 * k + 1] * inverse);
    }
    if (p.output_lse && threadIdx.x % 32 == 0)
        p.output_lse[of.source * p.lse_row + head * p.lse_head] = total == 0.0f ? -CUDART_INF_F : top + logf(total);
}

/* One (row, head) by a warp, or by a block's eight where rows are few and parts many. */
template <typename T, bool SPLIT, int D>
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
    float top = largest_lse<D>(p, runs, of.num_runs, row, head);
    partial<D> added = {};
    add_parts<D>(p, runs, of.num_runs, row, head, top, SPLIT ? warp : 0, SPLIT ? SPLIT_WARPS : 1, added);
    if (SPLIT) add_warps<D>(added);
    if (!SPLIT || warp == 0) store_row<T, D>(p, of, head, top, added);
}

using merge_kernel = void (*)(relayi_cuda_params);

template <typename T, bool SPLIT> merge_kernel merge_of(const relayi_cuda_attend *call) {
    if (call->kernel != RELAYI_CUDA_HOPPER) return merge<T, SPLIT, 0>;
    return call->params.head_dim == 64 ? merge<T, SPLIT, 64> : merge<T, SPLIT, 128>;
}

} // namespace

cudaError_t relayi_cuda_merge(const relayi_cuda_attend *call, int major, cudaStream_t stream) {
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
    merge_kernel split = bf16 ? merge_of<__nv_bfloat16, true>(call) : merge_of<__half, true>(call);
    merge_kernel whole = bf16 ? merge_of<__nv_bfloat16, false>(call) : merge_of<__half, false>(call);
    return cudaLaunchKernelEx(&config, call->split_merge ? split : whole, call->params);
}
