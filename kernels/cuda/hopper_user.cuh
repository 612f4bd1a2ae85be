/* What requests attend by themselves on Hopper: four warps of a block, each with its own units and its
 * own ring of pages.  Operands are swapped (scores: tokens x rows, outputs: dims x rows), so that up to
 * eight stacked rows fill a product. */
#ifndef RELAY_HOPPER_USER_CUH
#define RELAY_HOPPER_USER_CUH

#include "hopper_layout.cuh"
#include "hopper_state.cuh"

/* What the computing side has to know of a page. */
struct user_page {
    int32_t token, end, start; /* as in tile_place */
    int32_t flags;
};
enum { USER_PAGE_FULL = 1, USER_PAGE_LAST = 2, USER_PAGE_MORE = 4 };
static_assert(sizeof(user_page) == 16, "one store");
/* The units of a user warp, in shared memory: `shape` is the kv head. */
template <int D, int L> DEVICE relayi_cuda_unit *user_unit(const hopper_block<D, L> &b, int warp, int number) {
    using S = hopper_sizes<D, L>;
    return reinterpret_cast<relayi_cuda_unit *>(b.memory + S::user_units_at) + warp * S::user_units + number % S::user_units;
}
template <int D, int L> DEVICE user_page *user_pages(const hopper_block<D, L> &b, int warp) {
    using S = hopper_sizes<D, L>;
    return reinterpret_cast<user_page *>(b.memory + S::user_pages_at) + warp * S::user_stages;
}

/* What fills the ring of one user warp: half a warp, one lane of which gives the orders.  The lanes hold the places
 * of 16 pages, so that a page is sent without a look-up.  Both halves run through send() together where both can. */
template <int D, int L> struct user_feed {
    using S = hopper_sizes<D, L>;
    static constexpr int lanes = 16;
    const hopper_params &p;
    const hopper_block<D, L> &b;
    int stage, entered; /* entered: units so far */
    uint32_t phase, total, coming;     /* coming: the work after this one */
    uint32_t asked;                    /* its number, on its way to the first lane; `known`: it is in `coming` */
    token_walk walk;
    page_place place; /* of the page that begins at token first + 16 * lane */
    int first;
    bool known, called; /* called: the unit of `coming` is on its way */
    uint64_t policy;

    DEVICE user_feed(const hopper_params &params, const hopper_block<D, L> &block) : p(params), b(block), stage(0), entered(0), phase(0), known(true), called(false) {
        coming = blockIdx.x + gridDim.x * static_cast<uint32_t>(warp());
        if (in_room(p, coming)) call_unit();
        total = flat_total(p);
        policy = read_once_policy();
    }
    DEVICE static int lane() { return static_cast<int>(threadIdx.x) % lanes; }
    /* The user warp whose ring it is. */
    DEVICE static int warp() { return static_cast<int>(threadIdx.x) / lanes - S::first_feeder * 2; }
    DEVICE static uint32_t half() { return 0xFFFFu << (threadIdx.x & 16); }

    /* Starts the copy of the unit of `coming` into its place; `shape` becomes the kv head there. */
    DEVICE void call_unit() {
        const char *from = reinterpret_cast<const char *>(flat_entry(p, coming));
        uint32_t to = shared_address(user_unit(b, warp(), entered));
        if (lane() < 4) copy16(to + lane() * 16, from + lane() * 16, true);
        copies_commit();
        called = true;
    }
    DEVICE bool another() {
        if (!known) coming = __shfl_sync(half(), asked, threadIdx.x & 16);
        known = true;
        return coming < total;
    }
    DEVICE void find_pages() {
        first = walk.token;
        place = find_page(p, section_of<int32_t>(p, p.ids), walk, lane());
    }
    /* The unit that was called is there: makes it the current one and asks for the number of the next. */
    DEVICE void enter() {
        copies_wait<0>();
        __syncwarp(half());
        relayi_cuda_unit *unit = user_unit(b, warp(), entered++);
        called = known = false;
        walk.begin(p, *unit, 0, PAGE);
        find_pages();
        if (lane() > 0) return;
        unit->shape = head_of(p, coming);
        asked = p.flat_slots + atomicAdd(&static_cast<relayi_cuda_header *>(p.list)->next_flat, 1u);
    }
    DEVICE bool ready() const { return barrier_test(b.user_empty(warp(), stage), phase ^ 1); }
    DEVICE void next_stage() {
        if (++stage < S::user_stages) return;
        stage = 0;
        phase ^= 1;
    }
    DEVICE void copy(uint32_t to, uint32_t full, const page_place &page) const {
        int kv_head = user_unit(b, warp(), entered - 1)->shape;
        if (walk.tensor < 0) {
            copy_box5(to, &p.pool[0], full, policy, kv_head * S::halves, page.inside / 8, page.block);
            copy_box5(to + S::page, &p.pool[1], full, policy, kv_head * S::halves, page.inside / 8, page.block);
            return;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            copy_box3(to + i * S::page, &p.spans[walk.tensor][i], full, policy, page.inside, kv_head * S::halves);
            copy_box3(to + i * S::page + S::group, &p.spans[walk.tensor][i], full, policy, page.inside + 8, kv_head * S::halves);
        }
    }
    /* Goes on to the next page; the places of 16 more are looked up where these are used up. */
    DEVICE void advance() {
        int left = walk.left;
        walk.next();
        if (!walk.done() && (left != walk.left || walk.token - first >= lanes * PAGE)) find_pages();
    }
    /* The page at the walk's place, which lies at `page`; false: it was the last one of all. */
    DEVICE bool send(const page_place &page) {
        uint32_t full = b.user_full(warp(), stage);
        user_page now = {walk.token, walk.end, walk.start, 0};
        bool any = !walk.done(), more = true;
        if (!any) now.token = now.end = 0; /* a unit of nothing */
        else if (walk.token + PAGE <= walk.end && walk.token + PAGE - 1 + walk.start <= user_unit(b, warp(), entered - 1)->min_position) now.flags = USER_PAGE_FULL;
        if (any && lane() == 0) copy(b.user(warp(), stage), full, page);
        if (any) advance();
        if (walk.done()) {
            more = another();
            now.flags |= USER_PAGE_LAST | (more ? USER_PAGE_MORE : 0);
        }
        if (lane() == 0) user_pages(b, warp())[stage] = now;
        if (!called && another()) call_unit();
        /* before the arrival: the computing side reads the next unit with this one's last page */
        if (walk.done() && more) enter();
        __syncwarp(half());
        if (lane() == 0) barrier_expect(full, any ? 2 * S::page : 0);
        next_stage();
        return more;
    }
};

template <int D, int L> DEVICE void feed_users(const hopper_params &p, const hopper_block<D, L> &b) {
    user_feed<D, L> feed(p, b);
    await_ready(HOPPER_FEEDERS, hopper_roles<L>::feeders * 32);
    bool more = feed.coming < feed.total;
    if (more) feed.enter();
    __syncwarp();
#pragma unroll 1
    while (__any_sync(0xFFFFFFFF, more)) {
        bool ready = more && feed.ready();
        if (!__any_sync(0xFFFFFFFF, ready)) continue;
        int from = static_cast<int>(threadIdx.x & 16) + (feed.walk.token - feed.first) / PAGE;
        page_place page = {__shfl_sync(0xFFFFFFFF, feed.place.block, from % 32), __shfl_sync(0xFFFFFFFF, feed.place.inside, from % 32)};
        if (ready) more = feed.send(page);
        __syncwarp();
    }
}

/* Queries as the second operand: row lane / 4, elements (lane % 4) * 2 + {0, 1, 8, 9} of every 16. */
template <int D> struct user_query {
    uint32_t pairs[D / 16][2];
};

template <int D>
DEVICE void load_user_query(const relayi_cuda_params &p, const relayi_cuda_unit &unit, int kv_head, user_query<D> &query) {
    int row = static_cast<int>(threadIdx.x % 32) / 4;
    bool real = row < unit.rows;
    const uint16_t *from = static_cast<const uint16_t *>(p.query) + threadIdx.x % 4 * 2;
    if (real) from += hopper_query(p, unit, kv_head, row);
#pragma unroll
    for (int k = 0; k < D / 16; k++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            query.pairs[k][i] = real ? *reinterpret_cast<const uint32_t *>(from + k * 16 + i * 8) : 0;
}

/* What outlives a unit's place in shared memory. */
struct user_rows {
    int64_t state; /* of its first row */
    int rows, position; /* position: of this lane's row, lane / 4; -1: there is none */
};

DEVICE user_rows rows_of(const relayi_cuda_params &p, const relayi_cuda_unit &unit, int kv_head) {
    int row = static_cast<int>(threadIdx.x % 32) / 4;
    int after = static_cast<int>(divide(unit.row_begin + row, p.by_group) - divide(unit.row_begin, p.by_group));
    return {unit.state + kv_head * static_cast<int64_t>(unit.head_states), unit.rows,
            row < unit.rows ? unit.min_position + after : -1};
}

template <int D> struct user_state {
    float acc[D / 16][4]; /* dims lane / 4 and + 8, rows (lane % 4) * 2 and + 1 */
    float max[2], sum[2];

    DEVICE void clear() {
#pragma unroll
        for (int m = 0; m < D / 16; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[m][i] = 0.0f;
        max[0] = max[1] = -CUDART_INF_F;
        sum[0] = sum[1] = 0.0f;
    }
};

/* Tokens of the page that the lane's two rows see: those before seen[e]. */
DEVICE void find_seen(const user_page &page, int position, int (&seen)[2]) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
        int of = __shfl_sync(0xFFFFFFFF, position, (threadIdx.x % 4 * 2 + e) * 4);
        seen[e] = min(of + 1 - page.start, page.end) - page.token;
    }
}

/* Values that are not finite reach the rows that see them, and leave shared memory: 0 times NaN is NaN. */
template <typename T, int D>
__device__ __noinline__ void take_not_finite(char *values, const int *seen, float (*acc)[4]) {
    int lane = threadIdx.x % 32;
    bool found = false;
    for (int i = lane * 16; i < hopper_sizes<D>::page; i += 32 * 16) {
        uint4 word = *reinterpret_cast<const uint4 *>(values + i);
        found |= not_finite<T>(word.x) || not_finite<T>(word.y) || not_finite<T>(word.z) || not_finite<T>(word.w);
    }
    if (!__any_sync(0xFFFFFFFF, found)) return;
#pragma unroll 1
    for (int i = 0; i < PAGE * (D / 16) * 4; i++) {
        int e = i % 4, m = i / 4 % (D / 16), n = i / 4 / (D / 16), d = m * 16 + e / 2 * 8 + lane / 4;
        float value = half_ops<T>::load(values + block_place<D>(n, d / 8) + d % 8 * 2);
        if (!isfinite(value) && n < seen[e % 2]) acc[m][e] += value;
    }
    __syncwarp();
    clear_not_finite<T, hopper_sizes<D>::page, 32>(values, lane);
    fence_async(); /* the copy engine writes there next */
    __syncwarp();
}

template <typename T, int D>
DEVICE void mask_page(char *values, const user_page &page, int position, float (&s)[4], user_state<D> &state) {
    int seen[2], token = threadIdx.x % 32 / 4;
    find_seen(page, position, seen);
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (token + i / 2 * 8 >= seen[i % 2]) s[i] = -CUDART_INF_F;
    float acc[D / 16][4];
#pragma unroll
    for (int m = 0; m < D / 16; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) acc[m][i] = state.acc[m][i];
    take_not_finite<T, D>(values, seen, acc);
#pragma unroll
    for (int m = 0; m < D / 16; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) state.acc[m][i] = acc[m][i];
}

DEVICE uint32_t transpose_pairs(uint32_t pairs) {
    uint32_t turned;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pairs));
    return turned;
}

/* Scores become weights; the state is scaled to a larger maximum where one is needed. */
template <int D> DEVICE void weigh_page(float (&s)[4], float unit, user_state<D> &state) {
    float top[2] = {fmaxf(s[0], s[2]), fmaxf(s[1], s[3])};
    bool grew = (top[0] - state.max[0]) * unit > MAX_LAG || (top[1] - state.max[1]) * unit > MAX_LAG;
    if (__any_sync(0xFFFFFFFF, grew)) {
        float scale[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float before = state.max[e];
#pragma unroll
            for (int by = 4; by < 32; by *= 2) top[e] = fmaxf(top[e], __shfl_xor_sync(0xFFFFFFFF, top[e], by));
            bool grows = (top[e] - before) * unit > MAX_LAG;
            /* nothing to scale before the first page, but for what is infinite */
            scale[e] = grows && before != -CUDART_INF_F ? exp2_fast((before - top[e]) * unit) : 1.0f;
            state.max[e] = grows ? top[e] : before;
            state.sum[e] *= scale[e];
        }
#pragma unroll
        for (int m = 0; m < D / 16; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) state.acc[m][i] *= scale[i % 2];
    }
#pragma unroll
    for (int e = 0; e < 2; e++) {
        float shift = state.max[e] == -CUDART_INF_F ? 0.0f : state.max[e] * unit;
        s[e] = exp2_fast(fmaf(s[e], unit, -shift));
        s[2 + e] = exp2_fast(fmaf(s[2 + e], unit, -shift));
        state.sum[e] += s[e] + s[2 + e];
    }
}

/* Four fragments of 16 x 16 at `at` + `offset[i]`; loaded together, so that their latencies overlap. */
struct user_fragments {
    uint32_t a[4][4];

    template <bool TRANSPOSED> DEVICE void load(uint32_t at, const uint32_t (&offset)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (TRANSPOSED) load_transposed(a[i], at + offset[i]);
            else load_matrices(a[i], at + offset[i]);
        }
    }
};

/* Where a lane's addresses of a page lie: its row of a block, and the four chunks of 64 dims swizzled. */
template <int D> struct user_lane {
    uint32_t key, value, key_offset[4], value_offset[4];

    DEVICE user_lane() {
        uint32_t lane = threadIdx.x % 32, row = lane % 8;
        key = lane / 8 % 2 * hopper_sizes<D>::group + row * 128;
        value = hopper_sizes<D>::page + lane / 16 * hopper_sizes<D>::group + row * 128;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            key_offset[i] = ((i * 2 + lane / 16) ^ row) * 16;
            value_offset[i] = ((i * 2 + lane / 8 % 2) ^ row) * 16;
        }
    }
};

/* s = tokens x rows. */
template <typename T, int D>
DEVICE void score_page(uint32_t at, const user_lane<D> &lane, const user_query<D> &query, float (&s)[4]) {
    float sums[4][4] = {};
    user_fragments part[D / 64];
#pragma unroll
    for (int h = 0; h < D / 64; h++) part[h].template load<false>(at + lane.key + h * 1024, lane.key_offset);
#pragma unroll
    for (int h = 0; h < D / 64; h++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            half_ops<T>::mma(sums[i], part[h].a[i], query.pairs[h * 4 + i][0], query.pairs[h * 4 + i][1]);
#pragma unroll
    for (int i = 0; i < 4; i++) s[i] = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
}

/* Adds weights x values. */
template <typename T, int D>
DEVICE void add_page(uint32_t at, const user_lane<D> &lane, const float (&s)[4], user_state<D> &state) {
    user_fragments part[D / 64];
#pragma unroll
    for (int h = 0; h < D / 64; h++) part[h].template load<true>(at + lane.value + h * 1024, lane.value_offset);
    uint32_t low = transpose_pairs(half_ops<T>::pack(s[0], s[1])), high = transpose_pairs(half_ops<T>::pack(s[2], s[3]));
#pragma unroll
    for (int h = 0; h < D / 64; h++)
#pragma unroll
        for (int i = 0; i < 4; i++) half_ops<T>::mma(state.acc[h * 4 + i], part[h].a[i], low, high);
}

/* A lane's sums become words of two dims of one row each, and they lie as those of a prompt. */
template <int D> DEVICE void store_user(const relayi_cuda_params &p, const user_rows &of, user_state<D> &state) {
    int lane = threadIdx.x % 32;
    float by[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        float largest = largest_finite<D / 8>([&](int i) { return state.acc[i / 2][i % 2 * 2 + e]; });
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) {
            state.sum[e] += __shfl_xor_sync(0xFFFFFFFF, state.sum[e], lanes);
            largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFF, largest, lanes));
        }
        state_scale scale(largest, state.sum[e] == 0.0f ? 0.0f : __fdividef(1.0f, state.sum[e]));
        by[e] = scale.by;
        if (lane >= 4 || lane * 2 + e >= of.rows) continue;
        float lse = lse_of(state.max[e], p.scale * LOG2E, state.sum[e]);
        *stats_of(p, of.state + lane * 2 + e) = {lse, scale.both()};
    }
    uint4 *at = state_chunks<D>(p, of.state + lane / 4) + lane % 4;
#pragma unroll
    for (int j = 0; j < D / 32; j++) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float *two = state.acc[j * 2 + i / 2] + i % 2 * 2;
            words[i] = transpose_pairs(half_ops<__half>::pack(two[0] * by[0], two[1] * by[1]));
        }
        if (lane / 4 < of.rows) at[j * 4] = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

template <typename T, int D, int L>
DEVICE void attend_users(const hopper_params &p, const hopper_block<D, L> &b, int warp) {
    using S = hopper_sizes<D, L>;
    const first_unit first(p, hopper_roles<L>());
    const user_lane<D> lane;
    user_query<D> query;
    user_state<D> state;
    int stage = 0, done = 0;
    uint32_t phase = 0;
    await_ready(HOPPER_USERS, S::user_warps * 32);
    if (first.work >= flat_total(p)) return;
    const relayi_cuda_unit of = first.unit(); /* its rows, without waiting for its pages */
    load_user_query<D>(p, of, head_of(p, first.work), query);
    user_rows rows = rows_of(p, of, head_of(p, first.work));
    state.clear();
#pragma unroll 1
    for (;;) {
        barrier_wait(b.user_full(warp, stage), phase);
        user_page page = user_pages(b, warp)[stage];
        bool last = page.flags & USER_PAGE_LAST, more = page.flags & USER_PAGE_MORE;
        uint32_t at = b.user(warp, stage);
        float s[4];
        score_page<T, D>(at, lane, query, s);
        if (more) { /* the queries are done with: the next unit's are on their way while the rest is computed */
            const relayi_cuda_unit *unit = user_unit(b, warp, done + 1);
            load_user_query<D>(p, *unit, unit->shape, query);
        }
        if (!(page.flags & USER_PAGE_FULL)) mask_page<T, D>(b.memory + (at - b.at) + S::page, page, rows.position, s, state);
        weigh_page<D>(s, p.scale * LOG2E, state);
        add_page<T, D>(at, lane, s, state);
        if (last) {
            store_user<D>(p, rows, state);
            if (!more) return;
            state.clear();
            const relayi_cuda_unit *unit = user_unit(b, warp, ++done);
            rows = rows_of(p, *unit, unit->shape);
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(b.user_empty(warp, stage), 1);
        if (++stage == S::user_stages) {
            stage = 0;
            phase ^= 1;
        }
    }
}

#endif
