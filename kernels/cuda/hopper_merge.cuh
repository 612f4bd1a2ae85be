/* The end of a run inside the Hopper kernel: when all blocks have written their states, all consumer and
 * user warps merge rows. */
#ifndef RELAY_HOPPER_MERGE_CUH
#define RELAY_HOPPER_MERGE_CUH

#include "hopper_layout.cuh"
#include "hopper_state.cuh"

enum { MERGE_GROUPS = 3, MERGE_BATCH = 16 }; /* warpgroups of a block that merge; parts that are copied together */

/* The rings are done with: two batches of each warp, then what warps that share a row tell each other. */
template <int D> struct hopper_merge_sizes {
    static constexpr int state = D / 2, batch = MERGE_BATCH * state; /* words of 4 bytes */
    static constexpr int join_at = MERGE_GROUPS * 4 * 2 * batch;
    static constexpr int end = (join_at + MERGE_GROUPS * 4 * 32 * (D / 32 + 2)) * 4;
    static_assert(end <= hopper_sizes<D, RELAYI_CUDA_FOR_PROMPTS>::barriers_at && end <= hopper_sizes<D, RELAYI_CUDA_FOR_USERS>::barriers_at &&
                      end <= hopper_sizes<D, RELAYI_CUDA_FOR_BOTH>::barriers_at && end <= hopper_sizes<D, RELAYI_CUDA_USERS_ALONE>::barriers_at,
                  "room to merge");
};

/* All blocks' states are written and can be read.  Called by MERGE_GROUPS * 128 threads of every block. */
DEVICE void meet_blocks(const hopper_params &p) {
    relayi_cuda_header *header = static_cast<relayi_cuda_header *>(p.list);
    meet(6, MERGE_GROUPS * 128);
    if (threadIdx.x == 0) {
        unsigned *arrived = &header->arrived, now, before, count = blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u;
        /* the highest bit turns over when all are there, whatever it was: nothing has to be reset */
        asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(arrived), "r"(count) : "memory");
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(arrived) : "memory");
        while (((before ^ now) & 0x80000000u) == 0);
        /* the counters of work are back at 0 for the next run: nobody takes any more */
        if (blockIdx.x == 0) header->next = header->next_flat = 0;
    }
    meet(6, MERGE_GROUPS * 128);
}

/* All of this runs once a launch, from instruction memory that nothing has warmed: fewer instructions count for
 * more than unrolled loops.  A row's merged state so far, in powers of two; a lane has the D / 32 dims of its words. */
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

/* Which (row, head) pairs a warp merges: those of a block lie side by side, so that it finds their descriptions
 * near.  Few rows: four warps each, or all twelve, so that their parts are read at once; else a warp each. */
struct merge_share {
    int pair, end, step, part, stride; /* part: the warp's first of a pair's, and every `stride`th after it */

    DEVICE merge_share(const hopper_params &p, int number) {
        int pairs = header_of(p)->num_rows * p.heads;
        int each = (pairs + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
        stride = each <= 1 ? MERGE_GROUPS * 4 : each <= MERGE_GROUPS ? 4 : 1;
        step = MERGE_GROUPS * 4 / stride;
        pair = static_cast<int>(blockIdx.x) * each + number / stride;
        end = min(static_cast<int>(blockIdx.x + 1) * each, pairs);
        part = number % stride;
    }
};

/* Brings the descriptions of a block's rows near, long before they are asked for: a warp that has nothing else to do. */
DEVICE void touch_rows(const hopper_params &p) {
    const merge_share share(p, 0);
    const relayi_cuda_row *rows = section_of<relayi_cuda_row>(p, p.rows);
    int lane = threadIdx.x % 32, row = share.pair / p.heads + lane;
    if (share.pair >= share.end || row > (share.end - 1) / p.heads) return;
    relayi_cuda_row of = rows[row];
    const relayi_cuda_run *runs = section_of<relayi_cuda_run>(p, p.runs) + of.first_run;
    int seen = 0;
#pragma unroll 1
    for (int i = 0; i < of.num_runs; i++) seen |= runs[i].chunks;
    asm volatile("" ::"r"(seen)); /* read, whatever it is */
}

/* Up to MERGE_BATCH parts of a pair; lane i knows part i % MERGE_BATCH. */
struct merge_batch {
    int pair, source, count; /* pair -1: none; count: of parts */
    bool last;               /* of its pair */
    int64_t state;           /* the lane's part; -1: it has none */
    float power;             /* its lse as a power of two; -infinity: no part */
    float scale;             /* of those of its dims that the lane adds up */
};

/* Where a warp's work stands. */
template <int D> struct merge_walk {
    static constexpr int lanes = D / 8, together = 32 / lanes; /* 16 bytes a lane: lanes of a part, parts at once */
    const hopper_params &p;
    merge_share share;
    int next; /* part of share.pair that lane 0 takes */

    DEVICE merge_walk(const hopper_params &params, int number) : p(params), share(params, number), next(share.part) {}

    /* The next batch: where its parts lie. */
    DEVICE merge_batch find() {
        merge_batch batch = {-1, 0, 0, true, -1, -CUDART_INF_F, 0.0f};
        if (share.pair >= share.end) return batch;
        int row = share.pair / p.heads, head = share.pair - row * p.heads, kv_head = head / p.group, parts = 0;
        const relayi_cuda_row of = section_of<relayi_cuda_row>(p, p.rows)[row];
        const relayi_cuda_run *runs = section_of<relayi_cuda_run>(p, p.runs) + of.first_run;
        int lane = static_cast<int>(threadIdx.x % 32), mine = next + lane % MERGE_BATCH * share.stride;
#pragma unroll 1
        for (int i = 0; i < of.num_runs; i++) {
            const relayi_cuda_run run = runs[i];
            int64_t rows = static_cast<int64_t>(run.rows) * p.group;
            int chunk = mine - parts;
            parts += run.chunks;
            if (chunk < 0 || chunk >= run.chunks) continue;
            batch.state = run.base + (static_cast<int64_t>(chunk) * p.kv_heads + kv_head) * rows +
                          static_cast<int64_t>(row - run.row_begin) * p.group + head - kv_head * p.group;
        }
        int left = next < parts ? (parts - next + share.stride - 1) / share.stride : 0;
        batch.pair = share.pair;
        batch.source = of.source;
        batch.count = min(left, static_cast<int>(MERGE_BATCH));
        batch.last = left <= MERGE_BATCH;
        next += MERGE_BATCH * share.stride;
        if (batch.last) {
            share.pair += share.step;
            next = share.part;
        }
        return batch;
    }
    /* Starts the copies of a batch's parts into `to`. */
    DEVICE void fetch(merge_batch &batch, uint32_t *to) const {
        int lane = threadIdx.x % 32;
        if (batch.state >= 0) {
            state_stats stats = read_stats(p, batch.state);
            batch.power = stats.lse * LOG2E;
            batch.scale = stats.scale(lane / 16);
        }
#pragma unroll 2
        for (int i = 0; i < batch.count; i += together) {
            int part = i + lane / lanes;
            int64_t from = __shfl_sync(0xFFFFFFFF, batch.state, part % 32);
            if (part < batch.count)
                copy16(shared_address(to + part * (D / 2) + lane % lanes * 4), state_chunks<D>(p, from) + lane % lanes, true);
        }
        copies_commit();
    }
};

/* Adds a batch that has arrived. */
template <int D> DEVICE void merge_parts(const merge_batch &batch, const uint32_t *parts, merged<D> &m) {
    static_assert(MERGE_BATCH == 16, "the lanes of a half of the dims know all parts");
    int lane = threadIdx.x % 32;
    float top = batch.power;
#pragma unroll
    for (int by = 8; by > 0; by /= 2) top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFF, top, by));
    m.raise(top);
    float weight = lane % MERGE_BATCH < batch.count ? m.weight(batch.power) : 0.0f, sum = weight;
#pragma unroll
    for (int by = 8; by > 0; by /= 2) sum += __shfl_xor_sync(0xFFFFFFFF, sum, by);
    m.sum += sum;
    weight = scaled_weight(weight, batch.scale);
    const uint32_t *mine = parts + lane * (D / 64);
#pragma unroll 4
    for (int i = 0; i < batch.count; i++) {
        float by = __shfl_sync(0xFFFFFFFF, weight, i + (lane & 16));
        uint32_t words[D / 64];
        if constexpr (D == 128) {
            uint2 both = *reinterpret_cast<const uint2 *>(mine + i * (D / 2));
            words[0] = both.x;
            words[1] = both.y;
        } else {
            words[0] = mine[i * (D / 2)];
        }
        add_words(m.o, by, words);
    }
}

template <int D> DEVICE void store_merged(const hopper_params &p, int source, int head, merged<D> &m) {
    int lane = threadIdx.x % 32;
    if (p.sinks) {
        float sink = p.sinks[head] * LOG2E;
        m.raise(sink);
        m.sum += m.weight(sink);
    }
    float inverse = m.sum == 0.0f ? 0.0f : __fdividef(1.0f, m.sum);
    uint16_t *to = static_cast<uint16_t *>(p.output) + source * p.output_row + head * p.output_head;
#pragma unroll
    for (int d = 0; d < D / 32; d += 2) {
        float low = m.o[d] * inverse, high = m.o[d + 1] * inverse;
        uint32_t two = p.output_f16 ? half_ops<__half>::pack(low, high) : half_ops<__nv_bfloat16>::pack(low, high);
        int dim = state_dim(lane * (D / 64) + d / 2);
        if (p.output_aligned) {
            *reinterpret_cast<uint32_t *>(to + dim) = two;
        } else {
            to[dim] = static_cast<uint16_t>(two);
            to[dim + 1] = static_cast<uint16_t>(two >> 16);
        }
    }
    if (p.output_lse && lane == 0)
        p.output_lse[source * p.lse_row + head * p.lse_head] = m.sum == 0.0f ? -CUDART_INF_F : (m.max + __log2f(m.sum)) * LN2;
}

/* `warps` warps have each merged a share of a row's parts: makes it one, in the first of them. */
template <int D> DEVICE void join_warps(char *memory, int part, int warps, merged<D> &m) {
    constexpr int width = D / 32 + 2;
    int lane = threadIdx.x % 32, group = warps == 4 ? threadIdx.x / 128 : 0;
    float *shared = reinterpret_cast<float *>(memory) + hopper_merge_sizes<D>::join_at + group * 4 * 32 * width;
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

/* A batch is added while the next one travels, and the one after that is looked for. */
template <int D>
DEVICE void merge_rows(const hopper_params &p, char *shared, merge_walk<D> &walk, merge_batch ahead) {
    using S = hopper_merge_sizes<D>;
    const int part = walk.share.part, stride = walk.share.stride;
    uint32_t *memory = reinterpret_cast<uint32_t *>(shared) + threadIdx.x / 32 * 2 * S::batch;
    merged<D> m;
    m.clear();
    merge_batch now = {};
#pragma unroll 1
    for (int i = 0;; i++) {
        merge_batch next = ahead;
        walk.fetch(next, memory + i % 2 * S::batch);
        ahead = walk.find();
        if (i > 0) {
            if (now.pair < 0) return;
            copies_wait<1>();
            __syncwarp();
            merge_parts<D>(now, memory + (i + 1) % 2 * S::batch, m);
            __syncwarp();
            if (now.last) {
                if (stride > 1) join_warps<D>(shared, part, stride, m);
                if (part == 0) store_merged<D>(p, now.source, now.pair % p.heads, m);
                m.clear();
            }
        }
        now = next;
    }
}

/* What the list says is read before the blocks meet: the meeting empties the first-level cache. */
template <int D> DEVICE void finish(const hopper_params &p, char *shared) {
    merge_walk<D> walk(p, threadIdx.x / 32);
    merge_batch first = walk.find();
    meet_blocks(p);
    merge_rows<D>(p, shared, walk, first);
}

#endif
