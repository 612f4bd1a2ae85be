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
    int position[MT][2];
    float slope[MT][2];

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
DEVICE int64_t query_offset(const relayi_cuda_params &p, int stacked, int kv_head) {
    const relayi_cuda_row *rows =
        reinterpret_cast<const relayi_cuda_row *>(static_cast<const char *>(p.list) + p.rows);
    int row = stacked / p.group, head = kv_head * p.group + stacked - row * p.group;
    return rows[row].source * p.query_row + head * p.query_head;
}

template <int D, int MT>
DEVICE void find_rows(const relayi_cuda_params &p, const relayi_cuda_unit &unit, int kv_head, int first,
                      row_state<D, MT> &state) {
    const relayi_cuda_row *rows =
        reinterpret_cast<const relayi_cuda_row *>(static_cast<const char *>(p.list) + p.rows);
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int row = first + m * 16 + r * 8 + lane / 4, stacked = unit.row_begin + row;
            bool real = row < unit.rows;
            state.position[m][r] = real ? rows[stacked / p.group].position : -1;
            state.slope[m][r] = real && p.slopes ? p.slopes[kv_head * p.group + stacked % p.group] : 0.0f;
        }
}

/* ---- one tile ------------------------------------------------------------- */

/* A tile of a span as the score functions need it. */
struct tile_place {
    int token, end, start; /* first token, end of the piece, global position of token 0 */
    bool full;             /* every row sees every token of the tile */
};

template <int TOKENS>
DEVICE tile_place place_of(const relayi_cuda_params &p, const relayi_cuda_unit &unit, const token_walk &walk) {
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

DEVICE sight sight_of(const relayi_cuda_params &p, const tile_place &at, int position) {
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
 * them to the rows that do. */
template <typename T, int D, int MT, int TOKENS>
DEVICE void add_not_finite(const relayi_cuda_params &p, const tile_place &at, const char *values,
                           row_state<D, MT> &state) {
    int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int n = 0; n < TOKENS; n++) {
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            const char *two = values + place<D>(n, j) + (lane % 4) * 4;
            if (!not_finite<T>(*reinterpret_cast<const uint32_t *>(two))) continue;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float value = half_ops<T>::load(two + (e % 2) * 2);
                if (isfinite(value)) continue;
#pragma unroll
                for (int m = 0; m < MT; m++)
                    if (sees(sight_of(p, at, state.position[m][e / 2]), at.token + n)) state.acc[m][j][e] += value;
            }
        }
    }
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
DEVICE void shape_scores(const relayi_cuda_params &p, const tile_place &at, float (&s)[MT][NT][4],
                         const int (&position)[MT][2], const float (&slope)[MT][2]) {
    int lane = threadIdx.x % 32;
    float inverse = p.soft_cap > 0.0f ? p.scale / p.soft_cap : p.scale;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float x = s[m][n][e] * inverse;
                if (p.soft_cap > 0.0f) x = p.soft_cap * tanhf(x);
                int token = at.token + n * 8 + (lane % 4) * 2 + e % 2;
                s[m][n][e] = x + slope[m][e / 2] * static_cast<float>(token + at.start - position[m][e / 2]);
            }
}

template <int MT, int NT>
DEVICE void hide(const relayi_cuda_params &p, const tile_place &at, float (&s)[MT][NT][4],
                 const int (&position)[MT][2]) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            sight see = sight_of(p, at, position[m][r]);
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    if (!sees(see, at.token + n * 8 + (lane % 4) * 2 + e)) s[m][n][r * 2 + e] = -CUDART_INF_F;
        }
}

/* One step of online softmax: s becomes weights, state.acc and state.sum are scaled to the new
 * maximum.  `unit`: what turns a score into a power of two. */
template <int D, int MT, int NT>
DEVICE void soften(float (&s)[MT][NT][4], float unit, row_state<D, MT> &state) {
#pragma unroll
    for (int m = 0; m < MT; m++) {
        float scale[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float top = state.max[m][r];
#pragma unroll
            for (int n = 0; n < NT; n++) top = fmaxf(top, fmaxf(s[m][n][r * 2], s[m][n][r * 2 + 1]));
            top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFF, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFF, top, 2));
            float shift = top == -CUDART_INF_F ? 0.0f : top * unit;
            scale[r] = exp2_fast(state.max[m][r] * unit - shift);
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
        /* the maximum seldom moves after the first tiles */
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
    uint32_t tile; /* of this block's rows */
    int first;     /* this warp's first row */
    DEVICE void get(int k, uint32_t (&a)[MT][4]) const {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int m = 0; m < MT; m++) load_matrices(a[m], tile + place<D>(first + m * 16 + lane % 16, k * 2 + lane / 16));
    }
};

template <typename T, int D, int MT, int TOKENS, typename Q>
DEVICE void attend_tile(const relayi_cuda_params &p, const tile_place &at, const Q &query, uint32_t keys,
                        uint32_t values, row_state<D, MT> &state) {
    constexpr int NT = TOKENS / 8;
    int lane = threadIdx.x % 32;
    float s[MT][NT][4] = {};
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[MT][4], b[4];
        query.get(k, a);
#pragma unroll
        for (int n = 0; n < TOKENS / 16; n++) {
            load_matrices(b, keys + place<D>(n * 16 + (lane / 16) * 8 + lane % 8, k * 2 + (lane / 8) % 2));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                half_ops<T>::mma(s[m][n * 2], a[m], b[0], b[1]);
                half_ops<T>::mma(s[m][n * 2 + 1], a[m], b[2], b[3]);
            }
        }
    }
    float unit = p.scale * LOG2E;
    if (p.soft_cap > 0.0f || p.slopes) {
        shape_scores<MT, NT>(p, at, s, state.position, state.slope);
        unit = LOG2E;
    }
    if (!at.full) hide<MT, NT>(p, at, s, state.position);
    soften<D, MT, NT>(s, unit, state);
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
            load_transposed(b, values + place<D>(k * 16 + lane % 16, d * 2 + lane / 16));
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

/* Powers of two a unit of state.max stands for. */
DEVICE float unit_of(const relayi_cuda_params &p) {
    return p.soft_cap > 0.0f || p.slopes ? LOG2E : p.scale * LOG2E;
}

/* The lse of a state whose maximum is `top`: -INFINITY if nothing was seen, NaN if a NaN was. */
DEVICE float lse_of(float top, float unit, float sum) {
    float shift = top == -CUDART_INF_F ? 0.0f : top * unit;
    return sum == 0.0f ? -CUDART_INF_F : (shift + log2f(sum)) * LN2;
}

/* ---- FLAT ----------------------------------------------------------------- */

/* A fragment of 16 rows straight from global memory, rows past `rows` being zero. */
template <typename T, int D>
DEVICE void hold_queries(const relayi_cuda_params &p, const relayi_cuda_unit &unit, int kv_head,
                         query_fragments<D, 1, true> &query) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int row = lane / 4 + r * 8;
        const uint16_t *from = nullptr;
        if (row < unit.rows)
            from = static_cast<const uint16_t *>(p.query) + query_offset(p, unit.row_begin + row, kv_head);
#pragma unroll
        for (int k = 0; k < D / 16; k++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int d = k * 16 + half * 8 + (lane % 4) * 2;
                uint32_t two = 0;
                if (from && d < p.head_dim) {
                    if (p.query_aligned) two = __ldg(reinterpret_cast<const uint32_t *>(from + d));
                    else two = from[d] | static_cast<uint32_t>(from[d + 1]) << 16;
                }
                query.held[k][0][half * 2 + r] = two;
            }
    }
}

/* Four warps' states of the same 16 rows become one, in the workspace. */
template <int D>
DEVICE void merge_warps(const relayi_cuda_params &p, const relayi_cuda_unit &unit, int kv_head, char *shared,
                        row_state<D, 1> &state) {
    float *acc = reinterpret_cast<float *>(shared);           /* [warp][16][D] */
    float *stats = acc + WARPS * 16 * D;                      /* [warp][16][max in powers of two, sum] */
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float power = unit_of(p);
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

template <typename T, int D>
DEVICE void attend_flat(const relayi_cuda_params &p, const relayi_cuda_unit &unit, int kv_head, char *shared) {
    constexpr int stages = sizes<D>::flat_stages, bytes = sizes<D>::page_bytes;
    const char *list = static_cast<const char *>(p.list);
    const relayi_cuda_piece *pieces = reinterpret_cast<const relayi_cuda_piece *>(list + p.pieces) + unit.first_piece;
    const int32_t *ids = reinterpret_cast<const int32_t *>(list + p.ids);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    char *ring = shared + warp * sizes<D>::flat_ring;
    uint32_t ring_at = shared_address(ring);
    token_walk ahead, now;
    ahead.begin(pieces, unit.num_pieces, warp * PAGE, WARPS * PAGE);
    now = ahead;
    page_place page = find_page(p, ids, ahead, 0);
    query_fragments<D, 1, true> query;
    row_state<D, 1> state;
    auto fetch = [&](int slot) {
        if (!ahead.done()) {
            uint32_t to = ring_at + slot * 2 * bytes;
            fetch_tile<T, D, PAGE, 32>(p, ahead, page, kv_head, to, to + bytes, lane);
            ahead.next();
            page = find_page(p, ids, ahead, 0);
        }
        copies_commit();
    };
#pragma unroll
    for (int i = 0; i < stages - 1; i++) fetch(i);
    hold_queries<T, D>(p, unit, kv_head, query);
    find_rows<D, 1>(p, unit, kv_head, 0, state);
    state.clear();
    for (int slot = 0; !now.done(); now.next()) {
        copies_wait<stages - 2>();
        __syncwarp();
        fetch(slot + stages - 1 < stages ? slot + stages - 1 : slot - 1);
        tile_place at = place_of<PAGE>(p, unit, now);
        char *values = ring + slot * 2 * bytes + bytes;
        if (!at.full && __any_sync(0xFFFFFFFF, scan_not_finite<T, bytes, 32>(values, lane))) {
            add_not_finite<T, D, 1, PAGE>(p, at, values, state);
            __syncwarp();
            clear_not_finite<T, bytes, 32>(values, lane);
            __syncwarp();
        }
        attend_tile<T, D, 1, PAGE>(p, at, query, ring_at + slot * 2 * bytes, ring_at + slot * 2 * bytes + bytes, state);
        slot = slot + 1 < stages ? slot + 1 : 0;
    }
    copies_wait<0>();
    complete_sums<D, 1>(state);
    merge_warps<D>(p, unit, kv_head, shared, state);
}

/* ---- TALL, WIDE ----------------------------------------------------------- */

template <typename T, int D, int ROWS>
DEVICE void load_queries(const relayi_cuda_params &p, const relayi_cuda_unit &unit, int kv_head, char *tile) {
    constexpr int chunks = D / 8;
    for (int i = threadIdx.x; i < ROWS * chunks; i += THREADS) {
        int row = i / chunks, chunk = i % chunks;
        uint4 word = make_uint4(0, 0, 0, 0);
        if (row < unit.rows && chunk * 8 < p.head_dim) {
            const uint16_t *from = static_cast<const uint16_t *>(p.query) +
                                   query_offset(p, unit.row_begin + row, kv_head) + chunk * 8;
            if (p.query_aligned) {
                word = __ldg(reinterpret_cast<const uint4 *>(from));
            } else {
                word.x = from[0] | static_cast<uint32_t>(from[1]) << 16;
                word.y = from[2] | static_cast<uint32_t>(from[3]) << 16;
                word.z = from[4] | static_cast<uint32_t>(from[5]) << 16;
                word.w = from[6] | static_cast<uint32_t>(from[7]) << 16;
            }
        }
        *reinterpret_cast<uint4 *>(tile + place<D>(row, chunk)) = word;
    }
}

template <int D, int MT>
DEVICE void store_states(const relayi_cuda_params &p, const relayi_cuda_unit &unit, int kv_head, int first,
                         const row_state<D, MT> &state) {
    int lane = threadIdx.x % 32;
    float power = unit_of(p);
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

template <int D, int MT, bool HELD>
DEVICE void ready_queries(uint32_t tile, int first, query_fragments<D, MT, HELD> &query) {
    query_fragments<D, MT, false> shared = {tile, first};
    if constexpr (HELD) {
#pragma unroll
        for (int k = 0; k < D / 16; k++) shared.get(k, query.held[k]);
    } else {
        query = shared;
    }
}

template <typename T, int D, int MT>
DEVICE void attend_tall(const relayi_cuda_params &p, const relayi_cuda_unit &unit, int kv_head, char *shared) {
    constexpr int tile = sizes<D>::tile, bytes = sizes<D>::tile_bytes;
    constexpr bool held = MT * D <= 128;
    const char *list = static_cast<const char *>(p.list);
    const relayi_cuda_piece *pieces = reinterpret_cast<const relayi_cuda_piece *>(list + p.pieces) + unit.first_piece;
    const int32_t *ids = reinterpret_cast<const int32_t *>(list + p.ids);
    int lane = threadIdx.x % 32, first = threadIdx.x / 32 * MT * 16;
    char *ring = shared + sizes<D>::query_bytes;
    uint32_t ring_at = shared_address(ring);
    token_walk ahead, now;
    ahead.begin(pieces, unit.num_pieces, 0, tile);
    now = ahead;
    page_place page = find_page(p, ids, ahead, lane);
    auto fetch = [&](int slot) {
        if (!ahead.done()) {
            uint32_t to = ring_at + slot * 2 * bytes;
            fetch_tile<T, D, tile, THREADS>(p, ahead, page, kv_head, to, to + bytes, threadIdx.x);
            ahead.next();
            page = find_page(p, ids, ahead, lane);
        }
        copies_commit();
    };
    fetch(0);
    load_queries<T, D, MT * 64>(p, unit, kv_head, shared);
    row_state<D, MT> state;
    find_rows<D, MT>(p, unit, kv_head, first, state);
    state.clear();
    __syncthreads();
    query_fragments<D, MT, held> query;
    ready_queries<D, MT, held>(shared_address(shared), first, query);
    for (int slot = 0; !now.done(); now.next(), slot ^= 1) {
        copies_wait<0>();
        __syncthreads();
        fetch(slot ^ 1);
        tile_place at = place_of<tile>(p, unit, now);
        char *values = ring + slot * 2 * bytes + bytes;
        if (!at.full && __syncthreads_or(scan_not_finite<T, bytes, THREADS>(values, threadIdx.x))) {
            add_not_finite<T, D, MT, tile>(p, at, values, state);
            __syncthreads();
            clear_not_finite<T, bytes, THREADS>(values, threadIdx.x);
            __syncthreads();
        }
        /* two rows of fragments leave registers for half a tile of scores */
        constexpr int step = MT == 2 ? tile / 2 : tile;
#pragma unroll 1
        for (int done = 0; done < tile; done += step, at.token += step) {
            uint32_t keys = ring_at + slot * 2 * bytes + done * D * 2;
            attend_tile<T, D, MT, step>(p, at, query, keys, keys + bytes, state);
        }
    }
    complete_sums<D, MT>(state);
    store_states<D, MT>(p, unit, kv_head, first, state);
}

/* ---- the kernel ----------------------------------------------------------- */

template <typename T, int D>
__global__ void __launch_bounds__(THREADS, sizes<D>::blocks) attend(const __grid_constant__ relayi_cuda_params p) {
    extern __shared__ __align__(128) char shared[];
    __shared__ uint32_t next;
    relayi_cuda_header *header = static_cast<relayi_cuda_header *>(p.list);
    const relayi_cuda_unit *units =
        reinterpret_cast<const relayi_cuda_unit *>(static_cast<const char *>(p.list) + p.units);
    uint32_t total = static_cast<uint32_t>(header->num_units) * static_cast<uint32_t>(p.kv_heads);
    for (uint32_t work = blockIdx.x; work < total; work = next) {
        relayi_cuda_unit unit = units[work / p.kv_heads];
        int kv_head = static_cast<int>(work % p.kv_heads);
        __syncthreads(); /* everybody has read `next`, and is done with shared memory */
        if (threadIdx.x == 0) next = gridDim.x + atomicAdd(&header->next, 1u);
        if (unit.shape == RELAYI_CUDA_FLAT) attend_flat<T, D>(p, unit, kv_head, shared);
        else if (unit.shape == RELAYI_CUDA_TALL) attend_tall<T, D, 1>(p, unit, kv_head, shared);
        else if constexpr (sizes<D>::wide) attend_tall<T, D, 2>(p, unit, kv_head, shared);
        __syncthreads(); /* `next` is there */
    }
}

#endif
