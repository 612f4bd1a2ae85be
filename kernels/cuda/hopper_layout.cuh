/* The Hopper kernel's block: 132 of them, one a multiprocessor, each of four warpgroups.
 *
 *     warps 0-3, 4-7   prompt consumers: wgmma on shared tiles of up to 128 stacked rows
 *     warps 8-11       user part: each warp alone, mma.sync with swapped operands, up to 8 stacked rows
 *     warp 12          fills the prompt's ring by tensor maps
 *     warps 13, 14     half a warp each fills a user warp's ring
 *     warp 15          brings what the merge reads of the list near
 *
 * Where nothing is shared by more than 8 stacked rows (RELAYI_CUDA_USERS_ALONE), three warpgroups with deeper rings:
 *
 *     warps 0-7        user part
 *     warps 8-11       half a warp each fills a user warp's ring
 *
 * K and V lie in shared memory in blocks of 8 tokens x 64 dims (1024 bytes, 128-byte swizzle), the
 * blocks of one group of 8 tokens side by side: what one copy of a page leaves there is what wgmma,
 * ldmatrix and a second page can continue. */
#ifndef RELAY_HOPPER_LAYOUT_CUH
#define RELAY_HOPPER_LAYOUT_CUH

#include "hopper_ptx.cuh"
#include "kernels_cuda.h"

enum {
    HOPPER_CONSUMERS = 2,      /* warpgroups */
    HOPPER_TILE = RELAYI_CUDA_HOPPER_TILE,
    HOPPER_UNIT_QUEUE = 2
};

/* K and V of the pool and of contiguous tensors as the copy engine sees them. */
struct hopper_params : relayi_cuda_params {
    int32_t flat_slots; /* warps of the grid that take user units */
    int32_t output_f16; /* else bf16 */
    int32_t inside;     /* the merge happens in this launch; else a kernel after it */
    relayi_cuda_divisor by_blocks; /* of the grid */
    CUtensorMap pool[2];
    CUtensorMap spans[RELAYI_CUDA_HOPPER_CONTIGUOUS][2];
};

/* Which warp does what; L is a relayi_cuda_layout. */
template <int L> struct hopper_roles {
    static constexpr bool alone = L == RELAYI_CUDA_USERS_ALONE, paired = L == RELAYI_CUDA_FOR_PAIRS;
    static constexpr int threads = alone ? 384 : 512;
    static constexpr int first_user = alone ? 0 : 8;
    static constexpr int user_warps = alone ? RELAYI_CUDA_HOPPER_ALONE_WARPS : RELAYI_CUDA_HOPPER_USER_WARPS;
    static constexpr int producer = 12; /* no warp of a block of users alone */
    static constexpr int first_feeder = alone ? 8 : 13, feeders = user_warps / 2;
};

/* What the merge inside keeps in shared memory once the rings are done with, in words of 4 bytes: of each warp two batches
 * of parts and what these weigh; then what warps that share a row tell each other. */
enum { MERGE_WARPS = 12, MERGE_BATCH = 32 };
template <int D> struct hopper_merge_sizes {
    static constexpr int batch = MERGE_BATCH * (D / 2), warp = 2 * batch + 2 * MERGE_BATCH;
    static constexpr int join_at = MERGE_WARPS * warp, joined = D + 4;
    static constexpr int bytes = (join_at + MERGE_WARPS * joined) * 4;
};

/* How much of a block's memory the prompt's ring and the users' rings have. */
template <int D, int L> struct hopper_rings;
template <> struct hopper_rings<128, RELAYI_CUDA_FOR_PROMPTS> { enum { slots = 5, stages = 2 }; };
template <> struct hopper_rings<128, RELAYI_CUDA_FOR_PAIRS> { enum { slots = 5, stages = 2 }; };
template <> struct hopper_rings<128, RELAYI_CUDA_FOR_BOTH> { enum { slots = 4, stages = 3 }; };
template <> struct hopper_rings<128, RELAYI_CUDA_FOR_USERS> { enum { slots = 2, stages = 4 }; };
template <> struct hopper_rings<128, RELAYI_CUDA_USERS_ALONE> { enum { slots = 0, stages = 3 }; };
template <> struct hopper_rings<64, RELAYI_CUDA_USERS_ALONE> { enum { slots = 0, stages = 6 }; };
template <int L> struct hopper_rings<64, L> { enum { slots = 8, stages = 6 }; };

template <int D, int L = RELAYI_CUDA_FOR_PROMPTS> struct hopper_sizes : hopper_roles<L> {
    using roles = hopper_roles<L>;
    static constexpr int halves = D / 64;                  /* blocks of 64 dims */
    static constexpr int group = halves * 1024;            /* bytes of 8 tokens */
    static constexpr int page = 2 * group;
    static constexpr int slot = HOPPER_TILE / 8 * group;   /* K or V of a tile */
    static constexpr int slots = hopper_rings<D, L>::slots;
    static constexpr int query = 64 * D * 2;               /* of one consumer */
    static constexpr int user_stages = hopper_rings<D, L>::stages;
    static constexpr int user_units = user_stages <= 3 ? 4 : 8; /* being computed or fetched; stages + 1 at least */
    static constexpr int user_ring = user_stages * 2 * page; /* of one warp */
    static constexpr int ring_at = 0, query_at = slots * slot;
    static constexpr int user_at = query_at + (roles::alone ? 0 : HOPPER_CONSUMERS * query);
    static constexpr int rings_end = user_at + roles::user_warps * user_ring, merge_end = hopper_merge_sizes<D>::bytes;
    static constexpr int barriers_at = rings_end > merge_end ? rings_end : merge_end;
    static constexpr int num_barriers = 2 * slots + 2 * HOPPER_UNIT_QUEUE + 2 * roles::user_warps * user_stages + 1;
    static constexpr int units_at = barriers_at + (num_barriers * 8 + 63) / 64 * 64;
    static constexpr int stats_at = units_at + HOPPER_UNIT_QUEUE * 128;
    static constexpr int tags_at = stats_at + HOPPER_CONSUMERS * 32 * 16;
    static constexpr int user_units_at = tags_at + 64;
    static constexpr int user_pages_at = user_units_at + roles::user_warps * user_units * 64;
    static constexpr int bytes = user_pages_at + roles::user_warps * user_stages * 16;
    static_assert(bytes <= 227 * 1024, "a block's shared memory");
};

/* Addresses of what the roles share. */
template <int D, int L> struct hopper_block {
    using S = hopper_sizes<D, L>;
    char *memory;
    uint32_t at; /* of memory */

    DEVICE explicit hopper_block(char *start) : memory(start), at(shared_address(start)) {}
    DEVICE uint32_t ring(uint32_t slot) const { return at + S::ring_at + slot * S::slot; }
    DEVICE uint32_t query(int consumer) const { return at + S::query_at + consumer * S::query; }
    DEVICE uint32_t user(int warp, int stage) const { return at + S::user_at + warp * S::user_ring + stage * 2 * S::page; }
    DEVICE uint32_t barrier(int i) const { return at + S::barriers_at + i * 8; }
    /* Number, since the kernel's start, of what a slot is being filled with. */
    DEVICE uint32_t tag(uint32_t slot) const { return at + S::tags_at + slot * 4; }
    DEVICE uint32_t full(uint32_t slot) const { return barrier(slot); }
    DEVICE uint32_t empty(uint32_t slot) const { return barrier(S::slots + slot); }
    DEVICE uint32_t unit_full(int i) const { return barrier(2 * S::slots + i); }
    DEVICE uint32_t unit_empty(int i) const { return barrier(2 * S::slots + HOPPER_UNIT_QUEUE + i); }
    DEVICE uint32_t user_full(int warp, int stage) const {
        return barrier(2 * S::slots + 2 * HOPPER_UNIT_QUEUE + warp * S::user_stages + stage);
    }
    DEVICE uint32_t user_empty(int warp, int stage) const {
        return barrier(2 * S::slots + 2 * HOPPER_UNIT_QUEUE + (S::user_warps + warp) * S::user_stages + stage);
    }
    /* The cluster's other block lets go of this one. */
    DEVICE uint32_t parted() const { return barrier(S::num_barriers - 1); }
};

/* A unit on its way from the producer to the consumers. */
struct hopper_unit {
    relayi_cuda_unit unit;
    int32_t kv_head; /* -1: no more */
    int32_t tiles;
    int32_t pair; /* the cluster's other block has the same tokens */
    int32_t pad[13];
};
static_assert(sizeof(hopper_unit) == 128 && sizeof(relayi_cuda_unit) == 64, "the queue's entries");

/* Byte of (row, 16-byte chunk) in blocks of 8 rows. */
template <int D> DEVICE uint32_t block_place(int row, int chunk) {
    return static_cast<uint32_t>(row / 8 * hopper_sizes<D>::group + chunk / 8 * 1024 + row % 8 * 128 +
                                 ((chunk % 8) ^ (row % 8)) * 16);
}

DEVICE const relayi_cuda_header *header_of(const relayi_cuda_params &p) {
    return static_cast<const relayi_cuda_header *>(p.list);
}
template <typename E> DEVICE const E *section_of(const relayi_cuda_params &p, uint32_t offset) {
    return reinterpret_cast<const E *>(static_cast<const char *>(p.list) + offset);
}

/* Unit and kv head of work number `work`, a unit's kv heads side by side.  A pair's two units take turns: of those, the kv
 * head of work / 2. */
DEVICE uint32_t unit_of(const hopper_params &p, uint32_t work) { return divide(work, p.by_kv_heads); }
DEVICE int head_of(const hopper_params &p, uint32_t work) { return static_cast<int>(work - unit_of(p, work) * p.kv_heads); }
DEVICE uint32_t paired_unit_of(const hopper_params &p, uint32_t work) { return unit_of(p, work / 2) * 2 + work % 2; }

/* The list's entry of FLAT work number `work`. */
DEVICE const relayi_cuda_unit *flat_entry(const hopper_params &p, uint32_t work) {
    return section_of<relayi_cuda_unit>(p, p.units) + (p.unit_room - 1 - static_cast<int>(unit_of(p, work)));
}
DEVICE bool in_room(const hopper_params &p, uint32_t work) { return work < static_cast<uint32_t>(p.unit_room) * p.kv_heads; }

DEVICE uint32_t tall_total(const hopper_params &p) {
    return static_cast<uint32_t>(header_of(p)->num_tall) * static_cast<uint32_t>(p.kv_heads);
}
/* Pieces of work that the blocks of a cluster take together: the first ones. */
DEVICE uint32_t paired_total(const hopper_params &p) {
    return 2 * static_cast<uint32_t>(header_of(p)->num_pairs) * static_cast<uint32_t>(p.kv_heads);
}
DEVICE uint32_t flat_total(const hopper_params &p) {
    return static_cast<uint32_t>(header_of(p)->num_units - header_of(p)->num_tall) * static_cast<uint32_t>(p.kv_heads);
}

/* Barriers by number, for threads of a block: 1 to 5 are the consumers'. */
enum { HOPPER_STORED = 6, HOPPER_MERGE = 7 };
/* The barriers in shared memory are ready; each role waits here by itself, once its first loads are under way. */
enum { HOPPER_CONSUME, HOPPER_USERS, HOPPER_PRODUCER, HOPPER_FEEDERS, HOPPER_READY = 10 /* the first role's number */ };
DEVICE void await_ready(int role, int threads) { meet(HOPPER_READY + role, threads + (role == HOPPER_CONSUME ? 0 : 32)); }

/* The first unit of a user warp or of the producer, whether or not there is one: lane i < 16 has word i of its entry.
 * The producer of a cluster has, in lane 16 + i, word i of its entry if that is a pair's. */
struct first_unit {
    uint32_t work, word;

    template <int L> DEVICE first_unit(const hopper_params &p, hopper_roles<L>, bool clustered = false) {
        int lane = threadIdx.x % 32, user = static_cast<int>(threadIdx.x) / 32 - hopper_roles<L>::first_user;
        bool users = user < hopper_roles<L>::user_warps;
        work = blockIdx.x + (users ? gridDim.x * static_cast<uint32_t>(user) : 0);
        word = 0;
        if ((lane >= 16 && !clustered) || !in_room(p, work)) return;
        uint32_t unit = lane < 16 ? unit_of(p, work) : paired_unit_of(p, work);
        if (unit >= static_cast<uint32_t>(p.unit_room)) return;
        const relayi_cuda_unit *entry = users ? flat_entry(p, work) : section_of<relayi_cuda_unit>(p, p.units) + unit;
        word = reinterpret_cast<const uint32_t *>(entry)[lane % 16];
    }
    /* The entry, whole, in every lane. */
    DEVICE relayi_cuda_unit unit() const {
        union {
            uint32_t words[16];
            relayi_cuda_unit unit;
        } all;
#pragma unroll
        for (int i = 0; i < 16; i++) all.words[i] = __shfl_sync(0xFFFFFFFF, word, i);
        return all.unit;
    }
};

/* Where the query of a unit's row lies; without a look-up where the sources follow each other. */
DEVICE int64_t hopper_query(const relayi_cuda_params &p, const relayi_cuda_unit &unit, int kv_head, int row) {
    int stacked = unit.row_begin + row, plan_row = divide(stacked, p.by_group);
    int source = unit.source >= 0 ? unit.source + plan_row - divide(unit.row_begin, p.by_group)
                                  : section_of<relayi_cuda_row>(p, p.rows)[plan_row].source;
    return source * p.query_row + (kv_head * p.group + stacked - plan_row * p.group) * p.query_head;
}

/* Where in the ring lies what is the `number`th to be filled in since the kernel's start.  Reckoned from the one before:
 * consumers wait for each step of a division. */
template <int SLOTS> struct slot_place {
    static constexpr uint32_t slots = SLOTS, most = 4; /* that a step of two consumers which take turns goes on by */
    uint32_t number, slot, parity;

    __host__ DEVICE constexpr explicit slot_place(uint32_t n) : number(n), slot(n % slots), parity(n / slots & 1) {}
    __host__ DEVICE constexpr void advance(uint32_t by) {
        number += by;
        slot += by;
#pragma unroll
        for (uint32_t turn = 0; turn < (most + slots - 1) / slots; turn++) {
            if (slot < slots) continue;
            slot -= slots;
            parity ^= 1;
        }
    }
};
template <int SLOTS> constexpr bool advances() {
    for (uint32_t n = 0; n < 4 * SLOTS; n++)
        for (uint32_t by = 0; by <= slot_place<SLOTS>::most; by++) {
            slot_place<SLOTS> at(n), expected(n + by);
            at.advance(by);
            if (at.number != expected.number || at.slot != expected.slot || at.parity != expected.parity) return false;
        }
    return true;
}
static_assert(advances<2>() && advances<3>() && advances<4>() && advances<5>() && advances<8>(), "as by division");
template <int D, int L> using ring_place = slot_place<hopper_sizes<D, L>::slots>;

/* Which of a prompt's tiles come in which order through the ring: keys `step` tiles ahead of the values.
 * step 1: both consumers see every tile; 2: they take turns. */
struct ring_order {
    int tiles, step;
    DEVICE uint32_t key(int tile) const { return tile < step ? tile : 2 * tile - step; }
    DEVICE uint32_t value(int tile) const { return tile + step < tiles ? 2 * tile + step + 1 : tiles + tile; }
};

#endif
