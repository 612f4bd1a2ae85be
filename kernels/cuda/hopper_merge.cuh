/* The end of a run inside the Hopper kernel: when all blocks have written their states, all consumer and
 * user warps merge rows. */
#ifndef RELAY_HOPPER_MERGE_CUH
#define RELAY_HOPPER_MERGE_CUH

#include "hopper_layout.cuh"

enum { MERGE_GROUPS = 3, MERGE_BATCH = 4 }; /* warpgroups of a block that merge; parts under way at once */

/* All blocks' states are written and can be read.  Called by MERGE_GROUPS * 128 threads of every block. */
DEVICE void meet_blocks(const hopper_params &p) {
    relayi_cuda_header *header = static_cast<relayi_cuda_header *>(p.list);
    meet(6, MERGE_GROUPS * 128);
    if (threadIdx.x == 0) {
        unsigned long long *arrived = reinterpret_cast<unsigned long long *>(&header->arrived), now;
        __threadfence();
        unsigned long long target = (atomicAdd(arrived, 1ull) / gridDim.x + 1) * gridDim.x;
        do asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(now) : "l"(arrived) : "memory");
        while (now < target);
        /* the counters of work are back at 0 for the next run: nobody takes any more */
        if (blockIdx.x == 0) header->next = header->next_flat = 0;
    }
    meet(6, MERGE_GROUPS * 128);
}

/* All of this runs once a launch, from instruction memory that nothing has warmed: fewer instructions count for
 * more than unrolled loops.  A row's merged state so far, in powers of two; a lane has D / 32 dims side by side. */
template <int D> struct merged {
    float o[D / 32], max, sum;

    DEVICE void clear() {
        max = -CUDART_INF_F;
        sum = 0.0f;
#pragma unroll
        for (int i = 0; i < D / 32; i++) o[i] = 0.0f;
    }
    DEVICE void scale(float by) {
        sum *= by;
#pragma unroll
        for (int i = 0; i < D / 32; i++) o[i] *= by;
    }
    /* NaN is a maximum of nothing: it reaches the sum by its weight. */
    DEVICE void raise(float to) {
        float top = fmaxf(max, to);
        if (top > max && max != -CUDART_INF_F) scale(exp2_fast(max - top));
        max = top;
    }
    DEVICE float weight(float power) const { return exp2_fast(power - (max == -CUDART_INF_F ? 0.0f : max)); }
};

template <int D> DEVICE void load_dims(const float *from, float (&to)[D / 32]) {
    if constexpr (D == 128) {
        float4 x = __ldcg(reinterpret_cast<const float4 *>(from));
        to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
    } else {
        float2 x = __ldcg(reinterpret_cast<const float2 *>(from));
        to[0] = x.x, to[1] = x.y;
    }
}

/* Adds chunks first, first + step, ... of a run, in that order; returns `first` for the run after it. */
template <int D>
DEVICE int merge_run(const hopper_params &p, const relayi_cuda_run &run, int row, int head, int first, int step, merged<D> &m) {
    int kv_head = head / p.group, lane = threadIdx.x % 32;
    int64_t rows = static_cast<int64_t>(run.rows) * p.group, by = rows * p.kv_heads;
    int64_t state = run.base + kv_head * rows + static_cast<int64_t>(row - run.row_begin) * p.group + head - kv_head * p.group;
    int c = first;
#pragma unroll 1
    for (; c < run.chunks; c += step * MERGE_BATCH) {
        float part[MERGE_BATCH][D / 32], lse[MERGE_BATCH], top = -CUDART_INF_F;
#pragma unroll
        for (int i = 0; i < MERGE_BATCH; i++) {
            lse[i] = -CUDART_INF_F;
            if (c + i * step < run.chunks) {
                int64_t at = state + (c + i * step) * by;
                lse[i] = __ldcg(p.lse + at) * LOG2E;
                load_dims<D>(p.acc + at * D + lane * (D / 32), part[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < MERGE_BATCH; i++) top = fmaxf(top, lse[i]);
        m.raise(top);
#pragma unroll
        for (int i = 0; i < MERGE_BATCH; i++) {
            if (c + i * step >= run.chunks) break;
            float weight = m.weight(lse[i]);
            m.sum += weight;
#pragma unroll
            for (int d = 0; d < D / 32; d++) m.o[d] += weight * part[i][d];
        }
    }
    int used = first < run.chunks ? (run.chunks - first + step - 1) / step : 0;
    return first + used * step - run.chunks;
}

template <int D> DEVICE void store_merged(const hopper_params &p, int source, int head, merged<D> &m) {
    int lane = threadIdx.x % 32;
    if (p.sinks) {
        float sink = p.sinks[head] * LOG2E;
        m.raise(sink);
        m.sum += m.weight(sink);
    }
    float inverse = m.sum == 0.0f ? 0.0f : __fdividef(1.0f, m.sum);
    uint16_t *to = static_cast<uint16_t *>(p.output) + source * p.output_row + head * p.output_head + lane * (D / 32);
#pragma unroll
    for (int d = 0; d < D / 32; d += 2) {
        float low = m.o[d] * inverse, high = m.o[d + 1] * inverse;
        uint32_t two = p.output_f16 ? half_ops<__half>::pack(low, high) : half_ops<__nv_bfloat16>::pack(low, high);
        if (p.output_aligned) {
            *reinterpret_cast<uint32_t *>(to + d) = two;
        } else {
            to[d] = static_cast<uint16_t>(two);
            to[d + 1] = static_cast<uint16_t>(two >> 16);
        }
    }
    if (p.output_lse && lane == 0)
        p.output_lse[source * p.lse_row + head * p.lse_head] = m.sum == 0.0f ? -CUDART_INF_F : (m.max + __log2f(m.sum)) * LN2;
}

/* `warps` warps have each merged a share of a row's parts: makes it one, in the first of them. */
template <int D> DEVICE void join_warps(const hopper_block<D> &b, int part, int warps, merged<D> &m) {
    constexpr int width = D / 32 + 2;
    int lane = threadIdx.x % 32, group = warps == 4 ? threadIdx.x / 128 : 0;
    float *shared = reinterpret_cast<float *>(b.memory) + group * 4 * 32 * width; /* the rings are done with */
    float *mine = shared + (part * 32 + lane) * width;
#pragma unroll
    for (int d = 0; d < D / 32; d++) mine[d] = m.o[d];
    mine[D / 32] = m.max;
    mine[D / 32 + 1] = m.sum;
    meet(warps == 4 ? 7 + group : 6, warps * 32);
    if (part == 0) {
#pragma unroll 1
        for (int w = 1; w < warps; w++) {
            const float *other = shared + (w * 32 + lane) * width;
            m.raise(other[D / 32]);
            float weight = m.weight(other[D / 32]);
            m.sum += weight * other[D / 32 + 1];
#pragma unroll
            for (int d = 0; d < D / 32; d++) m.o[d] += weight * other[d];
        }
    }
    meet(warps == 4 ? 7 + group : 6, warps * 32);
}

/* Which (row, head) pairs a warp merges: those of a block lie side by side, so that it finds their descriptions
 * near.  Few rows: four warps each, or all twelve, so that their parts are read at once; else a warp each. */
struct merge_share {
    int pair, end, step, part, stride; /* part: the warp's first of a pair's, and every `stride`th after it */

    DEVICE explicit merge_share(const hopper_params &p) {
        int group = threadIdx.x / 128, warp = threadIdx.x % 128 / 32, pairs = header_of(p)->num_rows * p.heads;
        int each = (pairs + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
        int number = group * 4 + warp;
        stride = each <= 1 ? MERGE_GROUPS * 4 : each <= MERGE_GROUPS ? 4 : 1;
        step = MERGE_GROUPS * 4 / stride;
        pair = static_cast<int>(blockIdx.x) * each + number / stride;
        end = min(static_cast<int>(blockIdx.x + 1) * each, pairs);
        part = number % stride;
    }
    /* Brings the description of the first pair near. */
    DEVICE void touch(const hopper_params &p) const {
        if (pair >= end) return;
        const relayi_cuda_row of = section_of<relayi_cuda_row>(p, p.rows)[pair / p.heads];
        const relayi_cuda_run *runs = section_of<relayi_cuda_run>(p, p.runs) + of.first_run;
        int lane = threadIdx.x % 32;
        if (lane < of.num_runs) asm volatile("prefetch.global.L1 [%0];" ::"l"(runs + lane));
    }
};

template <int D> DEVICE void merge_rows(const hopper_params &p, const hopper_block<D> &b, const merge_share &share) {
#pragma unroll 1
    for (int pair = share.pair; pair < share.end; pair += share.step) {
        int row = pair / p.heads, head = pair - row * p.heads, part = share.part;
        const relayi_cuda_row of = section_of<relayi_cuda_row>(p, p.rows)[row];
        const relayi_cuda_run *runs = section_of<relayi_cuda_run>(p, p.runs) + of.first_run;
        merged<D> m;
        m.clear();
#pragma unroll 1
        for (int i = 0; i < of.num_runs; i++) part = merge_run<D>(p, runs[i], row, head, part, share.stride, m);
        if (share.stride > 1) join_warps<D>(b, share.part, share.stride, m);
        if (share.part == 0) store_merged<D>(p, of.source, head, m);
    }
}

/* One copy of the code for all roles. */
template <int D> __device__ __noinline__ void finish(const hopper_params &p, char *memory) {
    const merge_share share(p);
    share.touch(p);
    meet_blocks(p);
    merge_rows<D>(p, hopper_block<D>(memory), share);
}

#endif
