/* The shared prompt on Hopper: a producer warp and two warpgroups of consumers. */
#ifndef RELAY_HOPPER_PROMPT_CUH
#define RELAY_HOPPER_PROMPT_CUH

#include "hopper_layout.cuh"
#include "hopper_state.cuh"

/* ---- producer ---------------------------------------------------------------- */

/* One slot of the ring: K (which 0) or V of the tile that begins at `token`.  `page`: lane i has the page
 * of tokens [16i, +16) of the tile.  Of a pair each block sends every other page, to both. */
template <int D, int L>
DEVICE void fill_slot(const hopper_params &p, const hopper_block<D, L> &b, const relayi_cuda_piece &piece, int kv_head,
                      bool pair, int which, int token, page_place page, uint32_t slot, uint64_t policy) {
    using S = hopper_sizes<D>;
    int lane = threadIdx.x % 32, left = min(piece.end - token, static_cast<int>(HOPPER_TILE));
    bool paged = piece.tensor < 0, mine = !pair || lane % 2 == blockIdx.x % 2;
    int copies = paged ? (left + PAGE - 1) / PAGE : (left + 7) / 8, bytes = paged ? S::page : S::group;
    if (lane == 0) barrier_expect(b.full(slot), copies * bytes);
    __syncwarp();
    if (lane >= copies || !mine) return;
    uint32_t to = b.ring(slot) + lane * bytes, full = b.full(slot);
    int head = kv_head * S::halves;
    if (paged && pair) copy_box5_both(to, &p.pool[which], full, policy, head, page.inside / 8, page.block);
    else if (paged) copy_box5(to, &p.pool[which], full, policy, head, page.inside / 8, page.block);
    else if (pair) copy_box3_both(to, &p.spans[piece.tensor][which], full, policy, token + lane * 8, head);
    else copy_box3(to, &p.spans[piece.tensor][which], full, policy, token + lane * 8, head);
}

/* The page of lane's tokens [16 lane, +16) of a tile. */
DEVICE page_place page_of(const hopper_params &p, const relayi_cuda_piece &piece, int token) {
    page_place at = {0, 0};
    token += static_cast<int>(threadIdx.x % 32) * PAGE;
    if (threadIdx.x % 32 >= HOPPER_TILE / PAGE || token >= piece.end || piece.tensor >= 0) return at;
    int index = divide(token, p.by_block_size);
    at.block = __ldg(section_of<int32_t>(p, p.ids) + piece.ids + index);
    at.inside = token - index * p.block_size;
    return at;
}

template <int D, int L> struct ring_writer {
    using S = hopper_sizes<D, L>;
    uint32_t slot = 0, phase = 0, number = 0; /* of the next slot to fill */

    DEVICE void wait(const hopper_block<D, L> &b) const {
        barrier_wait(b.empty(slot), phase ^ 1);
        if (threadIdx.x % 32 == 0) store_tag(b.tag(slot), number);
    }
    DEVICE void next() {
        number++;
        if (++slot == S::slots) {
            slot = 0;
            phase ^= 1;
        }
    }
};

/* All blocks ask for their first tiles at once, and memory serves all requests evenly: a ring that is filled
 * in one go has its first tile as late as its last.  Units of so many tiles wait for the first before they ask
 * for more. */
#define SLOW_START 4

template <int D, int L>
DEVICE void fill_unit(const hopper_params &p, const hopper_block<D, L> &b, const relayi_cuda_piece &piece, int kv_head,
                      bool pair, ring_order order, ring_writer<D, L> &writer, uint64_t policy) {
    bool slow = writer.number == 0 && order.tiles >= SLOW_START;
    page_place now = page_of(p, piece, piece.begin), last = {}, before = {}; /* tiles j, j - 1, j - 2 */
#pragma unroll 1
    for (int j = 0; j < order.tiles + order.step; j++) {
        int token = piece.begin + j * HOPPER_TILE;
        page_place next = j + 1 < order.tiles ? page_of(p, piece, token + HOPPER_TILE) : page_place{};
        if (j < order.tiles) {
            writer.wait(b);
            fill_slot(p, b, piece, kv_head, pair, 0, token, now, writer.slot, policy);
            if (slow && j == 0) barrier_wait(b.full(writer.slot), 0);
            writer.next();
        }
        if (j >= order.step) {
            writer.wait(b);
            fill_slot(p, b, piece, kv_head, pair, 1, token - order.step * HOPPER_TILE,
                         order.step == 1 ? last : before, writer.slot, policy);
            writer.next();
        }
        before = last;
        last = now;
        now = next;
    }
}

/* A block's pieces of work: without pairs its first by its number, all others off the counter.  Pairs, and the first
 * that is none, go by the block's number: a cluster's blocks need not tell each other what they take. */
template <bool PAIRED> struct work_taker {
    uint32_t paired; /* pieces of work, of all blocks */

    DEVICE bool pair(uint32_t work) const { return PAIRED && work < paired; }
    DEVICE uint32_t unit(const hopper_params &p, uint32_t work) const {
        return pair(work) ? paired_unit_of(p, work) : unit_of(p, work);
    }
    DEVICE int kv_head(const hopper_params &p, uint32_t work) const {
        return head_of(p, pair(work) ? work / 2 : work);
    }
    /* The one after `work`; in the first lane. */
    DEVICE uint32_t next(const hopper_params &p, uint32_t work) const {
        if (pair(work)) return work + gridDim.x;
        uint32_t taken = 0;
        if (threadIdx.x % 32 == 0) taken = atomicAdd(&static_cast<relayi_cuda_header *>(p.list)->next, 1u);
        return (PAIRED ? paired : 0) + gridDim.x + taken;
    }
};

template <int D, int L> DEVICE void produce(const hopper_params &p, const hopper_block<D, L> &b) {
    using S = hopper_sizes<D, L>;
    constexpr bool PAIRED = S::paired;
    int lane = threadIdx.x % 32;
    const uint32_t *words = section_of<uint32_t>(p, p.units);
    const first_unit first(p, hopper_roles<L>(), PAIRED);
    uint32_t work = first.work, word = first.word, total = tall_total(p);
    const work_taker<PAIRED> taker = {PAIRED ? paired_total(p) : 0};
    if (taker.pair(work)) word = __shfl_down_sync(0xFFFFFFFF, word, 16);
    await_ready(HOPPER_PRODUCER, 32);
    if (PAIRED) cluster_wait(); /* the other block's barriers are ready too */
    uint64_t policy = read_again_policy();
    ring_writer<D, L> writer;
#pragma unroll 1
    for (uint32_t i = 0;; i++) {
        int entry = i % HOPPER_UNIT_QUEUE;
        hopper_unit *to = reinterpret_cast<hopper_unit *>(b.memory + S::units_at) + entry;
        barrier_wait(b.unit_empty(entry), (i / HOPPER_UNIT_QUEUE & 1) ^ 1);
        if (lane < 16) reinterpret_cast<uint32_t *>(&to->unit)[lane] = word;
        __syncwarp();
        int kv_head = work < total ? taker.kv_head(p, work) : -1;
        bool pair = taker.pair(work);
        relayi_cuda_piece piece = to->unit.first;
        ring_order order = {(piece.end - piece.begin + HOPPER_TILE - 1) / HOPPER_TILE, to->unit.rows > 64 ? 1 : 2};
        if (lane == 0) {
            to->kv_head = kv_head;
            to->tiles = order.tiles;
            to->pair = pair;
            barrier_arrive(b.unit_full(entry), 1);
        }
        if (kv_head < 0) break;
        uint32_t more = taker.next(p, work);
        fill_unit(p, b, piece, kv_head, pair, order, writer, policy);
        work = __shfl_sync(0xFFFFFFFF, more, 0);
        if (work < total && lane < 16) word = words[taker.unit(p, work) * 16 + lane];
    }
}

/* ---- consumers ---------------------------------------------------------------- */

template <int D> struct prompt_state {
    float acc[D / 2]; /* two rows; 2 of every 8 dims */
    float max[2], sum[2];
};

/* Where a consumer stands in the ring. */
template <int D, int L> struct ring_reader {
    static constexpr bool PAIRED = hopper_roles<L>::paired;
    uint32_t base;  /* slots used by units before */
    uint32_t empty; /* PAIRED: where lanes 0 and 1 let go of the first slot */

    /* A slot is filled for both blocks of a cluster when both have let go of it.  What is no pair's counts twice. */
    DEVICE void begin(const hopper_block<D, L> &b, bool pair) {
        uint32_t block = blockIdx.x % 2;
        if (PAIRED) empty = in_block(b.empty(0), pair && threadIdx.x % 32 == 1 ? block ^ 1 : block);
    }
    /* A consumer that takes turns does not see every filling of a slot, and a phase alone would not tell it
     * the filling it waits for from the one before the last. */
    DEVICE void wait_tag(const hopper_block<D, L> &b, const ring_place<D, L> &at) const {
        while (load_tag(b.tag(at.slot)) != at.number) continue;
    }
    DEVICE void wait(const hopper_block<D, L> &b, const ring_place<D, L> &at) const { barrier_wait(b.full(at.slot), at.parity); }
    /* Each of a consumer's warps lets go of a slot; `share`: of the eight arrivals, this warp's. */
    DEVICE void release(const hopper_block<D, L> &b, const ring_place<D, L> &at, uint32_t share) const {
        __syncwarp();
        if (!PAIRED && threadIdx.x % 32 == 0) barrier_arrive(b.empty(at.slot), share);
        if (PAIRED && threadIdx.x % 32 < 2) barrier_arrive_in(empty + at.slot * 8, share);
    }
};

template <typename T, int D> DEVICE void load_prompt_queries(const hopper_params &p, const relayi_cuda_unit &unit,
                                                             int kv_head, int first, char *tile) {
    int row = threadIdx.x % 128 / 2;
    bool real = first + row < unit.rows;
    const uint16_t *from = static_cast<const uint16_t *>(p.query);
    if (real) {
        from += hopper_query(p, unit, kv_head, first + row);
    }
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        int chunk = i * 2 + threadIdx.x % 2;
        copy16(shared_address(tile + block_place<D>(row, chunk)), real ? from + chunk * 8 : p.query, real);
    }
    copies_commit();
    copies_wait<0>();
    fence_async();
}

/* s = the queries times the keys of a slot. */
template <typename T, int D> DEVICE void start_scores(float (&s)[48], uint32_t query, uint32_t keys) {
    using S = hopper_sizes<D>;
    uint64_t a = operand_at(query, 16, S::group), b = operand_at(keys, 16, S::group);
    products_begin();
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t ahead = k / 4 * 1024 + k % 4 * 32;
        group_ops<T>::scores(s, operand_ahead(a, ahead), operand_ahead(b, ahead), k > 0);
    }
    products_commit();
}

template <typename T, int D>
DEVICE void start_values(prompt_state<D> &state, const uint32_t (&weights)[6][4], uint32_t values) {
    using S = hopper_sizes<D>;
    uint64_t b = operand_at(values, 1024, S::group);
    products_begin();
#pragma unroll
    for (int k = 0; k < HOPPER_TILE / 16; k++) group_ops<T>::values(state.acc, weights[k], operand_ahead(b, k * S::page));
    products_commit();
}

DEVICE void hide_tail(float (&s)[48], int left) {
    int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < 12; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (j * 8 + column + e % 2 >= left) s[j * 4 + e] = -CUDART_INF_F;
}

/* Scores become weights; what the sums so far have to be scaled by is in `scale`.  False: by 1, all of them. */
template <int D> DEVICE bool weigh(float (&s)[48], float unit, prompt_state<D> &state, float (&scale)[2]) {
    float top[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float a = fmaxf(s[r * 2], s[r * 2 + 1]), b = fmaxf(s[4 + r * 2], s[4 + r * 2 + 1]);
#pragma unroll
        for (int j = 2; j < 12; j += 2) {
            a = fmaxf(a, fmaxf(s[j * 4 + r * 2], s[j * 4 + r * 2 + 1]));
            b = fmaxf(b, fmaxf(s[j * 4 + 4 + r * 2], s[j * 4 + 4 + r * 2 + 1]));
        }
        top[r] = fmaxf(a, b);
    }
    bool grew = (top[0] - state.max[0]) * unit > MAX_LAG || (top[1] - state.max[1]) * unit > MAX_LAG;
    bool scaled = __any_sync(0xFFFFFFFF, grew);
    scale[0] = scale[1] = 1.0f;
    if (scaled) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float before = state.max[r];
            top[r] = fmaxf(top[r], __shfl_xor_sync(0xFFFFFFFF, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(0xFFFFFFFF, top[r], 2));
            if (!((top[r] - before) * unit > MAX_LAG)) continue;
            scale[r] = exp2_fast((before - top[r]) * unit);
            state.max[r] = top[r];
            state.sum[r] *= scale[r];
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float shift = state.max[r] == -CUDART_INF_F ? 0.0f : state.max[r] * unit, sum[2] = {0.0f, 0.0f};
#pragma unroll
        for (int j = 0; j < 12; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float weight = exp2_fast(fmaf(s[j * 4 + r * 2 + e], unit, -shift));
                s[j * 4 + r * 2 + e] = weight;
                sum[e] += weight;
            }
        state.sum[r] += sum[0] + sum[1];
    }
    return scaled;
}

template <int D> DEVICE void scale_sums(prompt_state<D> &state, const float (&scale)[2]) {
#pragma unroll
    for (int i = 0; i < D / 2; i++) state.acc[i] *= scale[i / 2 % 2];
}

template <typename T> DEVICE void pack_weights(const float (&s)[48], uint32_t (&weights)[6][4]) {
#pragma unroll
    for (int k = 0; k < 6; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) weights[k][i] = half_ops<T>::pack(s[(k * 2 + i / 2) * 4 + i % 2 * 2], s[(k * 2 + i / 2) * 4 + i % 2 * 2 + 1]);
}

/* Values past the end of a prompt: whatever lies there times 0 must be 0.  All of a consumer's threads. */
template <int D, int L> DEVICE void clear_tail(const hopper_block<D, L> &b, uint32_t slot, int left, int consumer) {
    char *values = b.memory + hopper_sizes<D, L>::ring_at + slot * hopper_sizes<D, L>::slot;
    for (int i = left * (D / 8) + threadIdx.x % 128; i < HOPPER_TILE * (D / 8); i += 128)
        *reinterpret_cast<uint4 *>(values + block_place<D>(i / (D / 8), i % (D / 8))) = make_uint4(0, 0, 0, 0);
    fence_async();
    meet(1 + consumer, 128);
}

/* One unit's tiles first, first + step, ... */
template <typename T, int D, int L>
DEVICE void attend_prompt(const hopper_params &p, const hopper_block<D, L> &b, const ring_reader<D, L> &ring,
                          ring_order order, int tokens, int consumer, prompt_state<D> &state) {
    uint32_t weights[6][4], share = order.step, query = b.query(consumer);
    float s[48], unit = p.scale * LOG2E, scale[2];
    int tile = order.step == 2 ? consumer : 0;
#pragma unroll
    for (int i = 0; i < D / 2; i++) state.acc[i] = 0.0f;
    state.max[0] = state.max[1] = -CUDART_INF_F;
    state.sum[0] = state.sum[1] = 0.0f;
    if (tile >= order.tiles) return;
    ring_place<D, L> key(ring.base + order.key(tile));
    if (order.step == 2) ring.wait_tag(b, key);
    ring.wait(b, key);
    start_scores<T, D>(s, query, b.ring(key.slot));
    products_wait<0>();
    pin_registers(s);
    ring.release(b, key, share);
    key = ring_place<D, L>(ring.base + order.key(tile + order.step));
    if (tokens - tile * HOPPER_TILE < HOPPER_TILE) hide_tail(s, tokens - tile * HOPPER_TILE);
    weigh<D>(s, unit, state, scale);
    pack_weights<T>(s, weights);
#pragma unroll 1
    for (int next = tile + order.step; next < order.tiles; tile = next, next += order.step) {
        ring_place<D, L> value = key;
        value.advance(1);
        if (order.step == 2) ring.wait_tag(b, key);
        ring.wait(b, key);
        if (order.step == 2) ring.wait_tag(b, value);
        ring.wait(b, value);
        if (order.step == 1) meet(4 + consumer, 256); /* the other consumer has started its products */
        start_scores<T, D>(s, query, b.ring(key.slot));
        start_values<T, D>(state, weights, b.ring(value.slot));
        if (order.step == 1) pass(5 - consumer, 256);
        products_wait<1>();
        pin_registers(s);
        ring.release(b, key, share);
        key.advance(2 * order.step);
        if (tokens - next * HOPPER_TILE < HOPPER_TILE) hide_tail(s, tokens - next * HOPPER_TILE);
        bool scaled = weigh<D>(s, unit, state, scale);
        /* done long ago; but a wait that hangs on the sums keeps the compiler from weighing after it */
        barrier_wait(b.full(value.slot) + (state.sum[0] + state.sum[1] == -1.0f ? 8 : 0), value.parity);
        products_wait<0>();
        pin_registers(state.acc);
        ring.release(b, value, share);
        if (scaled) scale_sums<D>(state, scale);
        pack_weights<T>(s, weights);
    }
    ring_place<D, L> value(ring.base + order.value(tile));
    if (order.step == 2) ring.wait_tag(b, value);
    ring.wait(b, value);
    if (tokens - tile * HOPPER_TILE < HOPPER_TILE) clear_tail(b, value.slot, tokens - tile * HOPPER_TILE, consumer);
    start_values<T, D>(state, weights, b.ring(value.slot));
    products_wait<0>();
    pin_registers(state.acc);
    ring.release(b, value, share);
}

template <int D> DEVICE void complete_prompt(prompt_state<D> &state) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        state.sum[r] += __shfl_xor_sync(0xFFFFFFFF, state.sum[r], 1);
        state.sum[r] += __shfl_xor_sync(0xFFFFFFFF, state.sum[r], 2);
    }
}

/* Both consumers' states of the same rows become one: each ends with half of the dims, in `half`, and all of the
 * maxima and sums.  They tell each other through their own queries' memory; `real`: some of the warp's rows are. */
template <int D, int L>
DEVICE void join_consumers(const hopper_params &p, const hopper_block<D, L> &b, int consumer, bool real, prompt_state<D> &state,
                           float (&half)[D / 4]) {
    using S = hopper_sizes<D, L>;
    constexpr int both = HOPPER_CONSUMERS * 128;
    static_assert(128 * (D / 4) * 4 <= S::query, "room to join");
    int thread = threadIdx.x % 128;
    float4 *mine = reinterpret_cast<float4 *>(b.memory + S::query_at + consumer * S::query) + thread;
    const float4 *other = reinterpret_cast<const float4 *>(b.memory + S::query_at + (1 - consumer) * S::query) + thread;
    float4 *stats = reinterpret_cast<float4 *>(b.memory + S::stats_at);
    float unit = p.scale * LOG2E, own[2], others[2], given[D / 4];
    meet(1 + consumer, 128); /* the queries are done with */
#pragma unroll
    for (int i = 0; i < D / 4; i++) {
        half[i] = consumer == 0 ? state.acc[i] : state.acc[i + D / 4];
        given[i] = consumer == 0 ? state.acc[i + D / 4] : state.acc[i];
    }
#pragma unroll
    for (int i = 0; real && i < D / 16; i++)
        mine[i * 128] = make_float4(given[i * 4], given[i * 4 + 1], given[i * 4 + 2], given[i * 4 + 3]);
    if (thread % 4 == 0) stats[consumer * 32 + thread / 4] = make_float4(state.max[0], state.sum[0], state.max[1], state.sum[1]);
    meet(3, both);
    float4 second = stats[(1 - consumer) * 32 + thread / 4];
    float maxima[2] = {second.x, second.z}, sums[2] = {second.y, second.w};
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = fmaxf(maxima[r], state.max[r]), shift = top == -CUDART_INF_F ? 0.0f : top;
        own[r] = exp2_fast((state.max[r] - shift) * unit);
        others[r] = exp2_fast((maxima[r] - shift) * unit);
        state.max[r] = top;
        state.sum[r] = state.sum[r] * own[r] + sums[r] * others[r];
    }
#pragma unroll
    for (int i = 0; real && i < D / 16; i++) {
        float4 four = other[i * 128];
        half[i * 4] = half[i * 4] * own[0] + four.x * others[0];
        half[i * 4 + 1] = half[i * 4 + 1] * own[0] + four.y * others[0];
        half[i * 4 + 2] = half[i * 4 + 2] * own[1] + four.z * others[1];
        half[i * 4 + 3] = half[i * 4 + 3] * own[1] + four.w * others[1];
    }
    meet(3, both);
}

/* `acc`: the state's dims from `dim` on, all of them or one half. */
template <int D, int N>
DEVICE void store_prompt(const hopper_params &p, const relayi_cuda_unit &unit, int kv_head, int first, int dim,
                         const prompt_state<D> &state, const float (&acc)[N]) {
    int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int row = first + warp * 16 + r * 8 + lane / 4;
        int64_t to = unit.state + kv_head * static_cast<int64_t>(unit.head_states) + row;
        float largest = largest_finite<N / 2>([&](int i) { return acc[i / 2 * 4 + r * 2 + i % 2]; });
        largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFF, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFF, largest, 2));
        state_scale scale(largest, state.sum[r] == 0.0f ? 0.0f : __fdividef(1.0f, state.sum[r]));
        if (row >= unit.rows) continue;
        uint4 *at = state_chunks<D>(p, to) + dim / 8 + lane % 4;
#pragma unroll
        for (int j = 0; j < N / 16; j++) {
            uint32_t words[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *two = acc + j * 16 + i * 4 + r * 2;
                words[i] = half_ops<__half>::pack(two[0] * scale.by, two[1] * scale.by);
            }
            at[j * 4] = make_uint4(words[0], words[1], words[2], words[3]);
        }
        if (lane % 4 > 0) continue;
        state_stats *stats = stats_of(p, to);
        float lse = lse_of(state.max[r], p.scale * LOG2E, state.sum[r]);
        if (N == D / 2) {
            *stats = {lse, scale.both()};
        } else {
            if (dim == 0) stats->lse = lse;
            store_scale(stats, dim > 0, scale.kept);
        }
    }
}

/* A block may not end while the other one of its cluster still has slots to let go of here. */
template <int D, int L> DEVICE void part_from_other(const hopper_block<D, L> &b) {
    __syncwarp();
    if (threadIdx.x % 32 < 2) barrier_arrive_in(in_block(b.parted(), threadIdx.x % 32), 1);
    barrier_wait(b.parted(), 0);
}

template <typename T, int D, int L> DEVICE void consume(const hopper_params &p, const hopper_block<D, L> &b) {
    using S = hopper_sizes<D, L>;
    constexpr bool PAIRED = S::paired;
    int consumer = uniform(threadIdx.x / 128);
    ring_reader<D, L> ring = {0, 0};
    prompt_state<D> state;
    await_ready(HOPPER_CONSUME, HOPPER_CONSUMERS * 128);
    /* the consumers' products take turns, so that one weighs while the other multiplies; the first begins */
    if (consumer == 1) pass(4, 256);
#pragma unroll 1
    for (uint32_t i = 0;; i++) {
        int entry = i % HOPPER_UNIT_QUEUE;
        const hopper_unit *from = reinterpret_cast<const hopper_unit *>(b.memory + S::units_at) + entry;
        barrier_wait(b.unit_full(entry), i / HOPPER_UNIT_QUEUE & 1);
        const relayi_cuda_unit &unit = from->unit;
        int kv_head = from->kv_head;
        if (kv_head < 0) break;
        ring_order order = {uniform(from->tiles), uniform(unit.rows > 64 ? 1 : 2)};
        int first = order.step == 1 ? consumer * 64 : 0;
        load_prompt_queries<T, D>(p, unit, kv_head, first, b.memory + S::query_at + consumer * S::query);
        meet(1 + consumer, 128);
        ring.begin(b, from->pair);
        attend_prompt<T>(p, b, ring, order, unit.first.end - unit.first.begin, consumer, state);
        complete_prompt<D>(state);
        if (order.step == 2) {
            float half[D / 4];
            bool real = uniform(static_cast<int>(threadIdx.x) % 128 / 32 * 16) < uniform(unit.rows);
            join_consumers(p, b, consumer, real, state, half);
            if (real) store_prompt<D>(p, unit, kv_head, 0, consumer * (D / 2), state, half);
        } else {
            meet(1 + consumer, 128); /* the queries are done with */
            store_prompt<D>(p, unit, kv_head, first, 0, state, state.acc);
        }
        ring.base += 2 * order.tiles;
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(b.unit_empty(entry), 1);
    }
    if (PAIRED && !p.inside) part_from_other(b); /* else all blocks wait for all */
}

#endif
