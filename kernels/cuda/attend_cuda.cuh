/* The general attention kernel: online softmax over a unit's tokens by mma.sync, one kv head.
 *
 * A block of four warps takes units until none is left.  FLAT units have at most 16 stacked rows: each
 * warp walks its own quarter of the pages through its own ring, and the four states are merged in
 * shared memory.  TALL and WIDE units have 16 or 32 rows a warp, and all warps share each tile of
 * tokens.  Either way a unit ends as partial states (o, lse) in the workspace. */
#ifndef RELAY_ATTEND_CUDA_CUH
#define RELAY_ATTEND_CUDA_CUH

#include "tile_cuda.cuh"

/* Sizes that follow from the padded head dim. */
template <int D> struct sizes {
    static constexpr int flat_stages = D <= 128 ? 3 : 2;
    static constexpr int tile = D <= 128 ? 64 : 32; /* tokens of a TALL or WIDE tile */
    static constexpr int page_bytes = PAGE * D * 2, tile_bytes = tile * D * 2;
    static constexpr int flat_ring = flat_stages * 2 * page_bytes; /* of one warp */
    static constexpr bool wide = D <= 128;
    static constexpr int query_bytes = (wide ? 128 : 64) * D * 2;
    static constexpr int flat_bytes = WARPS * flat_ring, tall_bytes = query_bytes + 4 * tile_bytes;
    static constexpr int shared_bytes = flat_bytes > tall_bytes ? flat_bytes : tall_bytes;
    static constexpr int blocks = D <= 128 ? 2 : 1; /* on a multiprocessor */
};

/* The running state of 16 * MT rows in one warp; a thread has two rows of each 16. */
template <int D, int MT> struct row_state {
    float acc[MT][D / 8][4];
    float max[MT][2]; /* before `unit` of score_scale */
    float sum[MT][2]; /* of this thread's columns */

    DEVICE void clear() {
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int j = 0; j < D / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) acc[m][j][e] = 0.0f;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                max[m][r] = -CUDART_INF_F;
                sum[m][r] = 0.0f;
            }
        }
    }
};

/* Where a stacked row's query lies. */
DEVICE int64_t query_offset(const attend_params &p, int stacked, int kv_head) {
    const relayi_cuda_row *rows =
        reinterpret_cast<const relayi_cuda_row *>(static_cast<const char *>(p.list) + p.rows);
    int row = divide(stacked, p.by_group), head = kv_head * p.group + stacked - row * p.group;
    return rows[row].source * p.query_row + head * p.query_head;
}

/* What a warp looks up of its rows when a tile is not plainly visible to all: kept nowhere, since
 * registers are short. */
struct row_lookup {
    const relayi_cuda_row *rows;
    int begin, count, kv_head; /* stacked row of the warp's first row; rows that are real from there */

    DEVICE row_lookup(const attend_params &p, const relayi_cuda_unit &unit, int head, int first) {
        rows = reinterpret_cast<const relayi_cuda_row *>(static_cast<const char *>(p.list) + p.rows);
        begin = unit.row_begin + first;
        count = unit.rows - first;
        kv_head = head;
    }
    /* Row r of the two that a thread has in the m-th 16; -1 where there is none. */
    DEVICE int position(const attend_params &p, int m, int r) const {
        int row = m * 16 + r * 8 + static_cast<int>(threadIdx.x % 32) / 4;
        return row < count ? rows[divide(begin + row, p.by_group)].position : -1;
    }
    DEVICE float slope(const attend_params &p, int m, int r) const {
        int row = m * 16 + r * 8 + static_cast<int>(threadIdx.x % 32) / 4;
        return p.slopes && row < count ? p.slopes[kv_head * p.group + (begin + row) % p.group] : 0.0f;
    }
};

/* ---- one tile ------------------------------------------------------------- */

/* A tile of a span as the score functions need it. */
struct tile_place {
    int token, end, start; /* first token, end of the piece, global position of token 0 */
    bool full;             /* every row sees every token of the tile */
};

template <int TOKENS>
DEVICE tile_place place_of(const attend_params &p, const relayi_cuda_unit &unit, const token_walk &walk) {
    tile_place at = {walk.token, walk.end, walk.start, false};
    int first = walk.token + walk.start, last = first + TOKENS - 1;
    at.full = walk.token + TOKENS <= walk.end && last <= unit.min_position &&
              (p.window == 0 || first > unit.max_position - p.window);
    return at;
}

/* What a query at `position` sees of the span: tokens n with lo <= n < hi, or n < sinks. */
struct sight {
    int lo, hi, sinks;
};

DEVICE sight sight_of(const attend_params &p, const tile_place &at, int position) {
    sight s = {0, min(position + 1 - at.start, at.end), 0};
    if (p.window > 0) {
        s.lo = position - p.window + 1 - at.start;
        s.sinks = min(p.sink_tokens - at.start, s.hi);
    }
    return s;
}

DEVICE bool sees(const sight &s, int token) { return token < s.hi && (token >= s.lo || token < s.sinks); }

template <typename T> DEVICE bool not_finite(uint32_t two) {
    constexpr uint32_t e = half_ops<T>::exponent;
    return (two & e) == e || ((two >> 16) & e) == e;
}

/* Values that are not finite must not reach rows that do not see them: 0 times NaN is NaN.  Adds
 * them to the rows that do.  Rare, so the code is small and the state in local memory. */
template <typename T, int D, int MT, int TOKENS>
__device__ __noinline__ void add_slowly(const attend_params &p, tile_place at, const char *values,
                                        float (*acc)[D / 8][4], row_lookup rows) {
    int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int i = 0; i < TOKENS * (D / 8) * 4 * MT; i++) {
        int e = i % 4, m = i / 4 % MT, j = i / 4 / MT % (D / 8), n = i / 4 / MT / (D / 8);
        float value = half_ops<T>::load(values + place<D>(n, j) + (lane % 4) * 4 + (e % 2) * 2);
        if (!isfinite(value) && sees(sight_of(p, at, rows.position(p, m, e / 2)), at.token + n)) acc[m][j][e] += value;
    }
}

template <typename T, int D, int MT, int TOKENS>
DEVICE void add_not_finite(const attend_params &p, const tile_place &at, const char *values,
                           const row_lookup &rows, row_state<D, MT> &state) {
    float acc[MT][D / 8][4];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int j = 0; j < D / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) acc[m][j][e] = state.acc[m][j][e];
    add_slowly<T, D, MT, TOKENS>(p, at, values, acc, rows);
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int j = 0; j < D / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) state.acc[m][j][e] = acc[m][j][e];
}

template <typename T, int BYTES, int COUNT> DEVICE bool scan_not_finite(const char *values, int thread) {
    bool found = false;
    for (int i = thread * 16; i < BYTES; i += COUNT * 16) {
        uint4 word = *reinterpret_cast<const uint4 *>(values + i);
        found |= not_finite<T>(word.x) || not_finite<T>(word.y) || not_finite<T>(word.z) || not_finite<T>(word.w);
    }
    return found;
}

template <typename T, int BYTES, int COUNT> DEVICE void clear_not_finite(char *values, int thread) {
    constexpr uint32_t e = half_ops<T>::exponent;
    for (int i = thread * 4; i < BYTES; i += COUNT * 4) {
        uint32_t *two = reinterpret_cast<uint32_t *>(values + i), now = *two;
        if ((now & e) == e) now &= 0xFFFF0000;
        if (((now >> 16) & e) == e) now &= 0x0000FFFF;
        *two = now;
    }
}

/* Scores as they come from the product become natural logarithms of weights. */
template <int MT, int NT>
DEVICE void shape_scores(const attend_params &p, const tile_place &at, const row_lookup &rows,
                         float (&s)[MT][NT][4]) {
    int lane = threadIdx.x % 32;
    float inverse = p.soft_cap > 0.0f ? p.scale / p.soft_cap : p.scale;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float slope = rows.slope(p, m, r);
            int distance = at.token + (lane % 4) * 2 + at.start - rows.position(p, m, r);
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float x = s[m][n][r * 2 + e] * inverse;
                    if (p.soft_cap > 0.0f) x = p.soft_cap * tanh_fast(x);
                    s[m][n][r * 2 + e] = x + slope * static_cast<float>(distance + n * 8 + e);
                }
        }
}

template <int MT, int NT>
DEVICE void hide(const attend_params &p, const tile_place &at, const row_lookup &rows, float (&s)[MT][NT][4]) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            sight see = sight_of(p, at, rows.position(p, m, r));
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    if (!sees(see, at.token + n * 8 + (lane % 4) * 2 + e)) s[m][n][r * 2 + e] = -CUDART_INF_F;
        }
}

/* Powers of two that a unit of a score stands for.  SHAPED: a soft cap or ALiBi slopes have made it a
 * natural logarithm; they have kernels of their own, since they cost registers. */
template <bool SHAPED> DEVICE float unit_of(const attend_params &p) { return SHAPED ? LOG2E : p.scale * LOG2E; }

/* Powers of two that a row's maximum may lag behind the true one: weights stay below 2^8. */
#define MAX_LAG 8.0f

/* One step of online softmax: s becomes weights, state.acc and state.sum are scaled to the new
 * maximum.  `unit`: what turns a score into a power of two. */
template <int D, int MT, int NT>
DEVICE void soften(float (&s)[MT][NT][4], float unit, row_state<D, MT> &state) {
#pragma unroll
    for (int m = 0; m < MT; m++) {
        float scale[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float before = state.max[m][r], top = before;
#pragma unroll
            for (int n = 0; n < NT; n++) top = fmaxf(top, fmaxf(s[m][n][r * 2], s[m][n][r * 2 + 1]));
            top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFF, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFF, top, 2));
            /* a maximum that is too low by a few powers of two is as good, and leaves acc alone */
            if (!((top - before) * unit > MAX_LAG)) top = before;
            float shift = top == -CUDART_INF_F ? 0.0f : top * unit;
            /* nothing to scale before the first tile, but for values that are infinite */
            scale[r] = before == -CUDART_INF_F ? 1.0f : exp2_fast(before * unit - shift);
            state.max[m][r] = top;
            float sum = state.sum[m][r] * scale[r];
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float weight = exp2_fast(fmaf(s[m][n][r * 2 + e], unit, -shift));
                    s[m][n][r * 2 + e] = weight;
                    sum += weight;
                }
            state.sum[m][r] = sum;
        }
        if (__any_sync(0xFFFFFFFF, scale[0] != 1.0f || scale[1] != 1.0f)) {
#pragma unroll
            for (int j = 0; j < D / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) state.acc[m][j][e] *= scale[e / 2];
        }
    }
}

/* Queries as fragments: held in registers, or read from shared memory at each step. */
template <int D, int MT, bool HELD> struct query_fragments;

template <int D, int MT> struct query_fragments<D, MT, true> {
    uint32_t held[D / 16][MT][4];
    DEVICE void get(int k, uint32_t (&a)[MT][4]) const {
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) a[m][i] = held[k][m][i];
    }
};

template <int D, int MT> struct query_fragments<D, MT, false> {
    uint32_t lane_at; /* this lane's row and chunk of the warp's first 16 rows */
    query_fragments() = default;
    DEVICE query_fragments(uint32_t tile, int first) {
        int lane = threadIdx.x % 32;
        lane_at = tile + place<D>(first + lane % 16, lane / 16);
    }
    DEVICE void get(int k, uint32_t (&a)[MT][4]) const {
#pragma unroll
        for (int m = 0; m < MT; m++) load_matrices(a[m], ahead<D>(lane_at, k * 2) + m * 16 * D * 2);
    }
};

template <typename T, int D, int MT, int TOKENS, bool SHAPED, typename Q>
DEVICE void attend_tile(const attend_params &p, const tile_place &at, const row_lookup &rows, const Q &query,
                        uint32_t keys, uint32_t values, row_state<D, MT> &state) {
    constexpr int NT = TOKENS / 8;
    int lane = threadIdx.x % 32;
    uint32_t key_at = keys + place<D>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    uint32_t value_at = values + place<D>(lane % 16, lane / 16);
    float s[MT][NT][4] = {};
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[MT][4], b[4];
        query.get(k, a);
#pragma unroll
        for (int n = 0; n < TOKENS / 16; n++) {
            load_matrices(b, ahead<D>(key_at, k * 2) + n * 16 * D * 2);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                half_ops<T>::mma(s[m][n * 2], a[m], b[0], b[1]);
                half_ops<T>::mma(s[m][n * 2 + 1], a[m], b[2], b[3]);
            }
        }
    }
    if constexpr (SHAPED) shape_scores<MT, NT>(p, at, rows, s);
    if (!at.full) hide<MT, NT>(p, at, rows, s);
    soften<D, MT, NT>(s, unit_of<SHAPED>(p), state);
#pragma unroll
    for (int k = 0; k < TOKENS / 16; k++) {
        uint32_t a[MT][4], b[4];
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[m][i] = half_ops<T>::pack(s[m][k * 2 + i / 2][i % 2 * 2], s[m][k * 2 + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            load_transposed(b, ahead<D>(value_at, d * 2) + k * 16 * D * 2);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                half_ops<T>::mma(state.acc[m][d * 2], a[m], b[0], b[1]);
                half_ops<T>::mma(state.acc[m][d * 2 + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* The row sums, complete in every lane, and the scale that turns `max` into a natural logarithm. */
template <int D, int MT> DEVICE void complete_sums(row_state<D, MT> &state) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            state.sum[m][r] += __shfl_xor_sync(0xFFFFFFFF, state.sum[m][r], 1);
            state.sum[m][r] += __shfl_xor_sync(0xFFFFFFFF, state.sum[m][r], 2);
        }
}

/* The lse of a state whose maximum is `top`: -INFINITY if nothing was seen, NaN if a NaN was. */
DEVICE float lse_of(float top, float unit, float sum) {
    float shift = top == -CUDART_INF_F ? 0.0f : top * unit;
    return sum == 0.0f ? -CUDART_INF_F : (shift + __log2f(sum)) * LN2;
}

/* ---- queries ------------------------------------------------------------- */

/* Eight elements that are not aligned as a word of 16 bytes. */
DEVICE uint4 load_loose(const uint16_t *from) {
    uint4 word;
    word.x = from[0] | static_cast<uint32_t>(from[1]) << 16;
    word.y = from[2] | static_cast<uint32_t>(from[3]) << 16;
    word.z = from[4] | static_cast<uint32_t>(from[5]) << 16;
    word.w = from[6] | static_cast<uint32_t>(from[7]) << 16;
    return word;
}

/* Starts the copies of a unit's queries into a tile of ROWS rows.  A thread keeps to one row, so that
 * it waits for the row's place once. */
template <typename T, int D, int ROWS>
DEVICE void load_queries(const attend_params &p, const relayi_cuda_unit &unit, int kv_head, char *tile) {
    constexpr int threads = THREADS / ROWS; /* of a row */
    int row = threadIdx.x / threads;
    bool real = row < unit.rows;
    const uint16_t *from = static_cast<const uint16_t *>(p.query);
    if (real) from += query_offset(p, unit.row_begin + row, kv_head);
#pragma unroll
    for (int chunk = threadIdx.x % threads; chunk < D / 8; chunk += threads) {
        bool valid = real && chunk * 8 < p.head_dim;
        char *to = tile + place<D>(row, chunk);
        if (p.query_aligned) copy16(shared_address(to), valid ? from + chunk * 8 : p.query, valid);
        else *reinterpret_cast<uint4 *>(to) = valid ? load_loose(from + chunk * 8) : make_uint4(0, 0, 0, 0);
    }
    copies_commit();
}

template <int D, int MT, bool HELD>
DEVICE void ready_queries(uint32_t tile, int first, query_fragments<D, MT, HELD> &query) {
    query_fragments<D, MT, false> shared(tile, first);
    if constexpr (HELD) {
#pragma unroll
        for (int k = 0; k < D / 16; k++) shared.get(k, query.held[k]);
    } else {
        query = shared;
    }
}

/* ---- FLAT ----------------------------------------------------------------- */

/* Four warps' states of the same 16 rows become one, in the workspace. */
template <int D, bool SHAPED>
DEVICE void merge_warps(const attend_params &p, const relayi_cuda_unit &unit, int kv_head, char *shared,
                        row_state<D, 1> &state) {
    float *acc = reinterpret_cast<float *>(shared);           /* [warp][16][D] */
    float *stats = acc + WARPS * 16 * D;                      /* [warp][16][max in powers of two, sum] */
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float power = unit_of<SHAPED>(p);
    __syncthreads(); /* every ring is done with */
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int row = lane / 4 + r * 8;
#pragma unroll
        for (int j = 0; j < D / 8; j++)
            *reinterpret_cast<float2 *>(acc + (warp * 16 + row) * D + j * 8 + (lane % 4) * 2) =
                make_float2(state.acc[0][j][r * 2], state.acc[0][j][r * 2 + 1]);
        if (lane % 4 == 0) {
            stats[(warp * 16 + row) * 2] = state.max[0][r] == -CUDART_INF_F ? -CUDART_INF_F : state.max[0][r] * power;
            stats[(warp * 16 + row) * 2 + 1] = state.sum[0][r];
        }
    }
    __syncthreads();
    for (int row = warp; row < unit.rows; row += WARPS) {
        float top = -CUDART_INF_F, sum = 0.0f, weight[WARPS];
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, stats[(w * 16 + row) * 2]);
        for (int w = 0; w < WARPS; w++) {
            weight[w] = exp2f(stats[(w * 16 + row) * 2] - (top == -CUDART_INF_F ? 0.0f : top));
            sum += weight[w] * stats[(w * 16 + row) * 2 + 1];
        }
        float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
        int64_t to = unit.state + kv_head * static_cast<int64_t>(unit.head_states) + row;
        for (int d = lane; d < p.head_dim; d += 32) {
            float o = 0.0f;
            for (int w = 0; w < WARPS; w++) o += weight[w] * acc[(w * 16 + row) * D + d];
            p.acc[to * p.head_dim + d] = o * inverse;
        }
        if (lane == 0) p.lse[to] = lse_of(top, 1.0f, sum);
    }
}

template <typename T, int D, bool SHAPED>
DEVICE void attend_flat(const attend_params &p, const relayi_cuda_unit &unit, int kv_head, char *shared) {
    constexpr int stages = sizes<D>::flat_stages, bytes = sizes<D>::page_bytes;
    const char *list = static_cast<const char *>(p.list);
    const int32_t *ids = reinterpret_cast<const int32_t *>(list + p.ids);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, ready = 0;
    char *ring = shared + warp * sizes<D>::flat_ring;
    token_walk walk;
    walk.begin(p, unit, warp * PAGE, WARPS * PAGE);
    page_place page = find_page(p, ids, walk, 0);
    row_lookup rows(p, unit, kv_head, 0);
    query_fragments<D, 1, true> query;
    row_state<D, 1> state;
    tile_place coming[stages]; /* tiles under way, the next one first */
    state.clear();
    /* the last slot of warp 0's ring is free until the first tile is there */
    char *query_tile = shared + (stages - 1) * 2 * bytes;
    load_queries<T, D, 16>(p, unit, kv_head, query_tile);
    copies_wait<0>();
    __syncthreads();
    ready_queries<D, 1, true>(shared_address(query_tile), 0, query);
    __syncthreads();
    /* one loop fills the ring and drains it: code that runs once is read from far away */
#pragma unroll 1
    for (int step = 0, slot = 0;; step++, slot = slot + 1 < stages ? slot + 1 : 0) {
        if (step >= stages - 1) {
            if (ready == 0) break;
            copies_wait<stages - 2>();
            __syncwarp();
        }
#pragma unroll
        for (int i = 0; i < stages - 1; i++) coming[i] = step == 0 ? tile_place{} : coming[i + 1];
        if (!walk.done()) {
            uint32_t to = shared_address(ring) + slot * 2 * bytes;
            fetch_page<T, D>(p, walk, page, kv_head, to, to + bytes, lane);
            coming[stages - 1] = place_of<PAGE>(p, unit, walk);
            walk.next();
            page = find_page(p, ids, walk, 0);
            ready++;
        }
        copies_commit();
        if (step < stages - 1) continue;
        int from = slot + 1 < stages ? slot + 1 : 0;
        char *values = ring + from * 2 * bytes + bytes;
        if (!coming[0].full && __any_sync(0xFFFFFFFF, scan_not_finite<T, bytes, 32>(values, lane))) {
            add_not_finite<T, D, 1, PAGE>(p, coming[0], values, rows, state);
            __syncwarp();
            clear_not_finite<T, bytes, 32>(values, lane);
            __syncwarp();
        }
        attend_tile<T, D, 1, PAGE, SHAPED>(p, coming[0], rows, query, shared_address(values) - bytes, shared_address(values), state);
        ready--;
    }
    copies_wait<0>();
    complete_sums<D, 1>(state);
    merge_warps<D, SHAPED>(p, unit, kv_head, shared, state);
}

/* ---- TALL, WIDE ----------------------------------------------------------- */

template <int D, int MT, bool SHAPED>
DEVICE void store_states(const attend_params &p, const relayi_cuda_unit &unit, int kv_head, int first,
                         const row_state<D, MT> &state) {
    int lane = threadIdx.x % 32;
    float power = unit_of<SHAPED>(p);
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int row = first + m * 16 + r * 8 + lane / 4;
            if (row >= unit.rows) continue;
            int64_t to = unit.state + kv_head * static_cast<int64_t>(unit.head_states) + row;
            float sum = state.sum[m][r], inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                int d = j * 8 + (lane % 4) * 2;
                if (d < p.head_dim)
                    *reinterpret_cast<float2 *>(p.acc + to * p.head_dim + d) =
                        make_float2(state.acc[m][j][r * 2] * inverse, state.acc[m][j][r * 2 + 1] * inverse);
            }
            if (lane % 4 == 0) p.lse[to] = lse_of(state.max[m][r], power, sum);
        }
}

template <typename T, int D, int MT, bool SHAPED>
DEVICE void attend_tall(const attend_params &p, const relayi_cuda_unit &unit, int kv_head, char *shared) {
    constexpr int tile = sizes<D>::tile, bytes = sizes<D>::tile_bytes;
    constexpr bool held = MT * D <= 128;
    const char *list = static_cast<const char *>(p.list);
    const int32_t *ids = reinterpret_cast<const int32_t *>(list + p.ids);
    int lane = threadIdx.x % 32, first = threadIdx.x / 32 * MT * 16, slot = 0;
    char *ring = shared + sizes<D>::query_bytes;
    token_walk walk;
    walk.begin(p, unit, 0, tile);
    page_place page = find_page(p, ids, walk, lane);
    row_lookup rows(p, unit, kv_head, first);
    row_state<D, MT> state;
    tile_place at = {}, coming = {};
    query_fragments<D, MT, held> query;
    bool loaded = false, more;
    state.clear();
    do { /* the first turn only fetches */
        if (loaded) {
            copies_wait<0>();
            __syncthreads();
        }
        at = coming;
        more = !walk.done();
        if (more) {
            uint32_t to = shared_address(ring) + slot * 2 * bytes;
            fetch_tile<T, D, tile>(p, walk, page, kv_head, to, to + bytes);
            coming = place_of<tile>(p, unit, walk);
            walk.next();
            page = find_page(p, ids, walk, lane);
        }
        copies_commit();
        slot ^= 1;
        if (!loaded) {
            load_queries<T, D, MT * 64>(p, unit, kv_head, shared);
            copies_wait<0>();
            __syncthreads();
            ready_queries<D, MT, held>(shared_address(shared), first, query);
            loaded = true;
            continue;
        }
        char *values = ring + slot * 2 * bytes + bytes;
        if (!at.full && __syncthreads_or(scan_not_finite<T, bytes, THREADS>(values, threadIdx.x))) {
            add_not_finite<T, D, MT, tile>(p, at, values, rows, state);
            __syncthreads();
            clear_not_finite<T, bytes, THREADS>(values, threadIdx.x);
            __syncthreads();
        }
        /* two rows of fragments leave registers for half a tile of scores */
        constexpr int step = MT == 2 ? tile / 2 : tile;
#pragma unroll 1
        for (int done = 0; done < tile; done += step, at.token += step) {
            uint32_t keys = shared_address(values) - bytes + done * D * 2;
            attend_tile<T, D, MT, step, SHAPED>(p, at, rows, query, keys, keys + bytes, state);
        }
    } while (more);
    complete_sums<D, MT>(state);
    store_states<D, MT, SHAPED>(p, unit, kv_head, first, state);
}

/* ---- the kernel ----------------------------------------------------------- */

template <typename T, int D, bool SHAPED>
__global__ void __launch_bounds__(THREADS, sizes<D>::blocks) attend(const __grid_constant__ attend_params p) {
    extern __shared__ __align__(128) char shared[];
    __shared__ relayi_cuda_unit unit; /* not in registers: the tiles need them all */
    __shared__ uint32_t next;
    constexpr uint32_t words = sizeof(relayi_cuda_unit) / 4;
    relayi_cuda_header *header = static_cast<relayi_cuda_header *>(p.list);
    const uint32_t *units = reinterpret_cast<const uint32_t *>(static_cast<const char *>(p.list) + p.units);
    uint32_t work = blockIdx.x, at = divide(work, p.by_kv_heads), word = 0, tall = header->num_tall, room = p.unit_room;
    if (at < room && threadIdx.x < words) word = units[at * words + threadIdx.x];
    /* both loads are on their way at once; the first is in vain where the unit lies at the room's end */
    if (at >= tall && at < room && threadIdx.x < words) word = units[RELAYI_CUDA_ENTRY(at, tall, room) * words + threadIdx.x];
    uint32_t total = static_cast<uint32_t>(header->num_units) * static_cast<uint32_t>(p.kv_heads);
    start_dependents();
    while (work < total) {
        int kv_head = static_cast<int>(work - at * p.kv_heads);
        if (threadIdx.x < words) reinterpret_cast<uint32_t *>(&unit)[threadIdx.x] = word;
        if (threadIdx.x == 0) next = gridDim.x + atomicAdd(&header->next, 1u);
        __syncthreads();
        if (unit.shape == RELAYI_CUDA_FLAT) attend_flat<T, D, SHAPED>(p, unit, kv_head, shared);
        else if (unit.shape == RELAYI_CUDA_TALL) attend_tall<T, D, 1, SHAPED>(p, unit, kv_head, shared);
        else if constexpr (sizes<D>::wide) attend_tall<T, D, 2, SHAPED>(p, unit, kv_head, shared);
        work = next;
        at = divide(work, p.by_kv_heads);
        if (work < total && threadIdx.x < words) word = units[RELAYI_CUDA_ENTRY(at, tall, room) * words + threadIdx.x];
        __syncthreads(); /* `unit`, `next` and shared memory are done with */
    }
}

#endif
