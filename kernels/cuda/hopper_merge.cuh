/* The end of a run inside the Hopper kernel: when all blocks have written their states, all consumer and
 * user warps merge rows. */
#ifndef RELAY_HOPPER_MERGE_CUH
#define RELAY_HOPPER_MERGE_CUH

#include "hopper_layout.cuh"
#include "hopper_state.cuh"

/* All blocks' states are written and can be read once each has called `arrive` and `await` has returned. */
struct blocks_meeting {
    unsigned *arrived, before;

    /* Any time before the block arrives. */
    DEVICE explicit blocks_meeting(const hopper_params &p) {
        arrived = &static_cast<relayi_cuda_header *>(p.list)->arrived;
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(before) : "l"(arrived) : "memory");
    }
    /* The highest bit turns over when all are there, whatever it was: nothing has to be reset. */
    DEVICE void arrive() const {
        unsigned count = blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u;
        asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(arrived), "r"(count) : "memory");
    }
    DEVICE void await() const {
        unsigned now;
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(arrived) : "memory");
        while (((before ^ now) & 0x80000000u) == 0);
    }
};

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
 * near.  One a block at most: all warps share it, so that its parts, which may be many, are read at once. */
struct merge_share {
    int pair, end, step, part, stride; /* part: the warp's first of a pair's, and every `stride`th after it */

    DEVICE merge_share(const hopper_params &p, int warp) {
        int pairs = header_of(p)->num_rows * p.heads;
        int each = divide(pairs + static_cast<int>(gridDim.x) - 1, p.by_blocks);
        stride = each <= 1 ? MERGE_WARPS : 1;
        step = each <= 1 ? 1 : MERGE_WARPS;
        pair = static_cast<int>(blockIdx.x) * each + (each <= 1 ? 0 : warp);
        end = min(static_cast<int>(blockIdx.x + 1) * each, pairs);
        part = each <= 1 ? warp : 0;
    }
};

/* Brings the descriptions of a block's rows near, long before they are asked for: a warp that has nothing else to do. */
DEVICE void touch_rows(const hopper_params &p) {
    const merge_share share(p, 0);
    const relayi_cuda_row *rows = section_of<relayi_cuda_row>(p, p.rows);
    int lane = threadIdx.x % 32, row = divide(share.pair, p.by_heads) + lane;
    if (share.pair >= share.end || row > static_cast<int>(divide(share.end - 1, p.by_heads))) return;
    relayi_cuda_row of = rows[row];
    const relayi_cuda_run *runs = section_of<relayi_cuda_run>(p, p.runs) + of.first_run;
    int seen = 0;
#pragma unroll 1
    for (int i = 0; i < of.num_runs; i++) seen |= runs[i].chunks;
    asm volatile("" ::"r"(seen)); /* read, whatever it is */
}

/* Up to MERGE_BATCH parts of a pair; lane i knows part i. */
struct merge_batch {
    int head, source, count; /* head -1: none; count: of parts */
    bool last;               /* of its pair */
    int state;               /* the lane's part; -1: it has none.  (2^31 states would be 500 GB.) */
    state_stats stats;       /* its own, once the batch travels */
};

/* Where a warp's work stands. */
template <int D> struct merge_walk {
    static constexpr int lanes = D / 8, together = 32 / lanes; /* 16 bytes a lane: lanes of a part, parts at once */
    const hopper_params &p;
    merge_share share;
    int next; /* part of share.pair that lane 0 takes */

    DEVICE merge_walk(const hopper_params &params, int warp) : p(params), share(params, warp), next(share.part) {}

    /* The next batch: where its parts lie. */
    DEVICE merge_batch find() {
        merge_batch batch = {-1, 0, 0, true, -1, {-CUDART_INF_F, 0}};
        if (share.pair >= share.end) return batch;
        int row = divide(share.pair, p.by_heads);
        batch.head = share.pair - row * p.heads;
        int kv_head = divide(batch.head, p.by_group), mine = next + static_cast<int>(threadIdx.x % 32) * share.stride, parts = 0;
        const relayi_cuda_row of = section_of<relayi_cuda_row>(p, p.rows)[row];
        const relayi_cuda_run *runs = section_of<relayi_cuda_run>(p, p.runs) + of.first_run;
#pragma unroll 1
        for (int i = 0; i < of.num_runs; i++) {
            const relayi_cuda_run run = runs[i];
            int chunk = mine - parts;
            parts += run.chunks;
            if (chunk < 0 || chunk >= run.chunks) continue;
            batch.state = static_cast<int>(run.base) + (chunk * p.kv_heads + kv_head) * run.rows * p.group +
                          (row - run.row_begin) * p.group + batch.head - kv_head * p.group;
        }
        int left = next < parts ? (parts - next + share.stride - 1) / share.stride : 0;
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
    /* Starts the copies of a batch's parts into `to`; nothing here waits for any of them. */
    DEVICE void fetch(merge_batch &batch, uint32_t *to) const {
        int lane = threadIdx.x % 32;
        if (batch.state >= 0) batch.stats = read_stats(p, batch.state);
#pragma unroll 1
        for (int i = 0; i < batch.count; i += together) {
            int part = i + lane / lanes, from = __shfl_sync(0xFFFFFFFF, batch.state, part % 32);
            if (part < batch.count)
                copy16(shared_address(to + part * (D / 2) + lane % lanes * 4), state_chunks<D>(p, from) + lane % lanes, true);
        }
        copies_commit();
    }
};

/* What a batch's parts weigh, each half of their dims by itself: weights[half][part]. */
template <int D> DEVICE void weigh_parts(const merge_batch &batch, float (*weights)[MERGE_BATCH], merged<D> &m) {
    int lane = threadIdx.x % 32;
    float power = batch.stats.lse * LOG2E, top = power;
#pragma unroll
    for (int by = 16; by > 0; by /= 2) top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFF, top, by));
    m.raise(top);
    float weight = lane < batch.count ? m.weight(power) : 0.0f, sum = weight;
#pragma unroll
    for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(0xFFFFFFFF, sum, by);
    m.sum += sum;
    weights[0][lane] = scaled_weight(weight, batch.stats.scale(0));
    weights[1][lane] = scaled_weight(weight, batch.stats.scale(1));
}

/* Adds a batch that has arrived. */
template <int D> DEVICE void add_parts(int count, const uint32_t *parts, const float (*weights)[MERGE_BATCH], merged<D> &m) {
    int lane = threadIdx.x % 32;
    const uint32_t *mine = parts + lane * (D / 64);
    const float *by = weights[lane / 16];
#pragma unroll 2
    for (int i = 0; i < count; i++) {
        uint32_t words[D / 64];
        if constexpr (D == 128) {
            uint2 both = *reinterpret_cast<const uint2 *>(mine + i * (D / 2));
            words[0] = both.x;
            words[1] = both.y;
        } else {
            words[0] = mine[i * (D / 2)];
        }
        add_words(m.o, by[i], words);
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

/* All warps have each merged a share of a row's parts: makes it one, in the first of them. */
template <int D> DEVICE void join_warps(float *shared, int warp, merged<D> &m) {
    constexpr int width = hopper_merge_sizes<D>::joined;
    int lane = threadIdx.x % 32;
    float *mine = shared + warp * width;
#pragma unroll
    for (int d = 0; d < D / 32; d++) mine[d * 32 + lane] = m.o[d];
    if (lane == 0) {
        mine[D] = m.max;
        mine[D + 1] = m.sum;
    }
    meet(HOPPER_MERGE, MERGE_WARPS * 32);
    if (warp == 0) {
#pragma unroll 1
        for (int w = 1; w < MERGE_WARPS; w++) {
            const float *other = shared + w * width;
            m.raise(other[D]);
            float weight = m.weight(other[D]);
            m.sum += weight * other[D + 1];
#pragma unroll
            for (int d = 0; d < D / 32; d++) m.o[d] += weight * other[d * 32 + lane];
        }
    }
    meet(HOPPER_MERGE, MERGE_WARPS * 32);
}

/* A batch is added while the next one travels, and the one after that is looked for. */
template <int D>
DEVICE void merge_rows(const hopper_params &p, char *shared, merge_walk<D> &walk, merge_batch next, merge_batch ahead) {
    using S = hopper_merge_sizes<D>;
    const int warp = threadIdx.x / 32;
    uint32_t *memory = reinterpret_cast<uint32_t *>(shared) + warp * S::warp;
    float(*weights)[MERGE_BATCH] = reinterpret_cast<float(*)[MERGE_BATCH]>(memory + 2 * S::batch);
    merged<D> m;
    m.clear();
    merge_batch now = {};
#pragma unroll 1
    for (int i = 0;; i++) {
        walk.fetch(next, memory + i % 2 * S::batch);
        if (i > 0) {
            if (now.head < 0) return;
            weigh_parts(now, weights, m);
            copies_wait<1>();
            __syncwarp();
            add_parts(now.count, memory + (i + 1) % 2 * S::batch, weights, m);
            __syncwarp();
            if (now.last) {
                if (walk.share.stride > 1) join_warps(reinterpret_cast<float *>(shared) + S::join_at, warp, m);
                if (walk.share.part == 0) store_merged<D>(p, now.source, now.head, m);
                m.clear();
            }
        }
        now = next;
        next = ahead;
        ahead = walk.find();
    }
}

/* Called by MERGE_WARPS warps of every block.  What the list says of the first two batches is read while the blocks meet;
 * to have met empties the first-level cache. */
template <int D> DEVICE void finish(const hopper_params &p, char *shared) {
    const bool first_warp = threadIdx.x < 32;
    const blocks_meeting meeting(p);
    merge_walk<D> walk(p, threadIdx.x / 32);
    if (first_warp) meet(HOPPER_STORED, MERGE_WARPS * 32); /* the block's states are written */
    else pass(HOPPER_STORED, MERGE_WARPS * 32);
    if (threadIdx.x == 0) meeting.arrive();
    merge_batch first = {}, second = {};
#pragma unroll 1
    for (int i = 0; i < 2; i++) {
        first = second;
        second = walk.find();
    }
    if (threadIdx.x == 0) {
        meeting.await();
        /* the counters of work are back at 0 for the next run: nobody takes any more */
        relayi_cuda_header *header = static_cast<relayi_cuda_header *>(p.list);
        if (blockIdx.x == 0) header->next = header->next_flat = 0;
    }
    meet(HOPPER_MERGE, MERGE_WARPS * 32);
    merge_rows<D>(p, shared, walk, first, second);
}

#endif
