/* The end of a run of the Hopper kernel where more rows are to be merged than it merges itself. */
#include "hopper_layout.cuh"
#include "hopper_state.cuh"

namespace {

/* A (row, head) pair by D / 8 lanes, 16 bytes of a state each; half of them know the parts of a batch, for the first and
 * for the second half of the dims. */
template <int D> struct pair_merge {
    static constexpr int lanes = D / 8, batch = lanes / 2;
    float o[8], max, sum; /* in powers of two, as in hopper_merge.cuh */
    uint32_t mask;        /* the pair's lanes of the warp */

    DEVICE pair_merge() : o{}, sum(0.0f), mask(((1u << lanes) - 1u) << (threadIdx.x % 32 / lanes * lanes)) {
        max = -CUDART_INF_F;
    }
    static DEVICE int lane() { return static_cast<int>(threadIdx.x) % lanes; }

    /* The state of part `part`, -1 if there is none, and how many parts there are.  (2^31 states would be 500 GB.) */
    static DEVICE int find(const relayi_cuda_params &p, const relayi_cuda_row &of, int row, int head, int part, int *parts) {
        const relayi_cuda_run *runs = section_of<relayi_cuda_run>(p, p.runs) + of.first_run;
        int kv_head = head / p.group;
        int state = -1;
        *parts = 0;
        for (int i = 0; i < of.num_runs; i++) {
            const relayi_cuda_run run = runs[i];
            int chunk = part - *parts;
            *parts += run.chunks;
            if (chunk >= 0 && chunk < run.chunks)
                state = static_cast<int>(run.base) + (chunk * p.kv_heads + kv_head) * run.rows * p.group +
                        (row - run.row_begin) * p.group + head - kv_head * p.group;
        }
        return state;
    }
    /* NaN is a maximum of nothing: it reaches the sum by its weight. */
    DEVICE void raise(float to) {
        float top = fmaxf(max, to), scale = max == -CUDART_INF_F ? 1.0f : exp2_fast(max - top);
        if (!(top > max)) return;
        max = top;
        sum *= scale;
#pragma unroll
        for (int i = 0; i < 8; i++) o[i] *= scale;
    }
    DEVICE float weight(float power) const { return exp2_fast(power - (max == -CUDART_INF_F ? 0.0f : max)); }

    /* Adds `count` parts; `state` is the lane's.  All of them travel at once, through shared memory, which costs no
     * registers; a lane reads what it has asked for itself. */
    DEVICE void add(const relayi_cuda_params &p, int state, int count) {
        __shared__ uint4 parts[batch][THREADS];
        state_stats stats = {-CUDART_INF_F, 0};
#pragma unroll 4
        for (int i = 0; i < count; i++)
            copy16(shared_address(&parts[i][threadIdx.x]), state_chunks<D>(p, __shfl_sync(mask, state, i, lanes)) + lane(), true);
        copies_commit();
        if (state >= 0) stats = read_stats(p, state);
        float top = stats.lse * LOG2E;
#pragma unroll
        for (int by = batch / 2; by > 0; by /= 2) top = fmaxf(top, __shfl_xor_sync(mask, top, by, lanes));
        raise(top);
        float own = lane() % batch < count ? weight(stats.lse * LOG2E) : 0.0f, all = own;
#pragma unroll
        for (int by = batch / 2; by > 0; by /= 2) all += __shfl_xor_sync(mask, all, by, lanes);
        sum += all;
        own = scaled_weight(own, stats.scale(lane() / batch));
        copies_wait<0>();
#pragma unroll 2
        for (int i = 0; i < count; i++) {
            uint4 part = parts[i][threadIdx.x];
            uint32_t words[4] = {part.x, part.y, part.z, part.w};
            add_words(o, __shfl_sync(mask, own, i + (lane() & batch), lanes), words);
        }
    }
    template <typename T> DEVICE void store(const relayi_cuda_params &p, int source, int head) {
        if (p.sinks) {
            float sink = p.sinks[head] * LOG2E;
            raise(sink);
            sum += weight(sink);
        }
        float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
        T *to = static_cast<T *>(p.output) + source * p.output_row + head * p.output_head;
#pragma unroll
        for (int i = 0; i < 4; i++)
            store_two(to + state_dim(lane() * 4 + i), p.output_aligned, o[2 * i] * inverse, o[2 * i + 1] * inverse);
        if (p.output_lse && lane() == 0)
            p.output_lse[source * p.lse_row + head * p.lse_head] = sum == 0.0f ? -CUDART_INF_F : (max + log2f(sum)) * LN2;
    }
};

/* Where the first parts lie is found while the attention ends. */
template <typename T, int D> __global__ void __launch_bounds__(THREADS, 10) merge(const __grid_constant__ relayi_cuda_params p) {
    relayi_cuda_header *header = static_cast<relayi_cuda_header *>(p.list);
    pair_merge<D> m;
    int64_t pair = static_cast<int64_t>(blockIdx.x) * (THREADS / m.lanes) + threadIdx.x / m.lanes;
    int row = static_cast<int>(pair / p.heads), head = static_cast<int>(pair % p.heads), parts = 0, part = m.lane() % m.batch;
    bool real = row < header->num_rows;
    relayi_cuda_row of = {};
    if (real) of = section_of<relayi_cuda_row>(p, p.rows)[row];
    int state = m.find(p, of, row, head, part, &parts);
    wait_for_predecessor(); /* what is above was there before it began */
    if (blockIdx.x == 0 && threadIdx.x == 0) header->next = header->next_flat = 0;
    if (!real) return;
#pragma unroll 1
    for (int first = 0; first < parts; first += m.batch) {
        if (first > 0) state = m.find(p, of, row, head, first + part, &parts);
        m.add(p, state, min(parts - first, m.batch));
    }
    m.template store<T>(p, of.source, head);
}

using merge_kernel = void (*)(relayi_cuda_params);

template <typename T> merge_kernel merge_for(int head_dim) { return head_dim == 64 ? merge<T, 64> : merge<T, 128>; }

} // namespace

cudaError_t relayi_cuda_merge_hopper(const relayi_cuda_attend *call, cudaStream_t stream) {
    int64_t lanes = static_cast<int64_t>(call->max_rows) * call->params.heads * (call->params.head_dim / 8);
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = static_cast<unsigned>((lanes + THREADS - 1) / THREADS);
    config.blockDim = THREADS;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = 1;
    merge_kernel kernel = call->output_dtype == RELAY_BF16 ? merge_for<__nv_bfloat16>(call->params.head_dim)
                                                           : merge_for<__half>(call->params.head_dim);
    return cudaLaunchKernelEx(&config, kernel, call->params);
}
