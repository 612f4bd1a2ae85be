/* What the attention kernels are made of: 16-byte copies into swizzled shared memory, fragments,
 * m16n8k16 products, and a walk over a unit's tokens.  Everything here runs on sm_80 and newer. */
#ifndef RELAY_TILE_CUDA_CUH
#define RELAY_TILE_CUDA_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>

#include "cuda_ops.h"

#define DEVICE __device__ __forceinline__

enum { WARPS = 4, THREADS = 128, PAGE = RELAYI_CUDA_PAGE };

/* ---- 16-bit numbers ------------------------------------------------------- */

template <typename T> struct half_ops;

template <> struct half_ops<__nv_bfloat16> {
    static constexpr uint32_t exponent = 0x7F80; /* all ones: infinity or NaN */
    static DEVICE uint32_t pack(float low, float high) {
        __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
        return *reinterpret_cast<uint32_t *>(&two);
    }
    static DEVICE float load(const void *at) { return __bfloat162float(*static_cast<const __nv_bfloat16 *>(at)); }
    static DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

template <> struct half_ops<__half> {
    static constexpr uint32_t exponent = 0x7C00;
    static DEVICE uint32_t pack(float low, float high) {
        __half2 two = __floats2half2_rn(low, high);
        return *reinterpret_cast<uint32_t *>(&two);
    }
    static DEVICE float load(const void *at) { return __half2float(*static_cast<const __half *>(at)); }
    static DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

/* Two elements side by side, in one word where rows are aligned for it. */
template <typename T> DEVICE void store_two(T *to, bool aligned, float low, float high) {
    uint32_t two = half_ops<T>::pack(low, high);
    if (aligned) {
        *reinterpret_cast<uint32_t *>(to) = two;
    } else {
        reinterpret_cast<uint16_t *>(to)[0] = static_cast<uint16_t>(two);
        reinterpret_cast<uint16_t *>(to)[1] = static_cast<uint16_t>(two >> 16);
    }
}

/* What the general kernel is given, by value: a graph keeps it. */
struct attend_params : relayi_cuda_params {
    relayi_cuda_kv contiguous[RELAYI_CUDA_MAX_CONTIGUOUS];
};

/* ---- shared memory -------------------------------------------------------- */

DEVICE uint32_t shared_address(const void *at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

/* Bytes from a tile's start to 16-byte chunk `chunk` of row `row`; the exclusive-or keeps the eight
 * rows that one ldmatrix reads in different banks. */
template <int D> DEVICE uint32_t place(int row, int chunk) {
    constexpr int chunks = D / 8;
    int flip = chunks % 8 == 0 ? row & 7 : (row >> 1) & 3;
    return static_cast<uint32_t>(row * chunks + (chunk ^ flip)) * 16;
}

/* From place(row, c) with c in {0, 1} to place(row, c + chunks), `chunks` even: one exclusive-or, and a
 * constant.  Tiles start at multiples of 128 bytes. */
template <int D> DEVICE uint32_t ahead(uint32_t first, int chunks) {
    constexpr int flipped = D / 8 % 8 == 0 ? 8 : 4;
    return (first ^ static_cast<uint32_t>(chunks % flipped * 16)) + static_cast<uint32_t>(chunks / flipped * flipped * 16);
}

DEVICE void copy16(uint32_t to, const void *from, bool valid) {
    int bytes = valid ? 16 : 0; /* 0: writes zeros and reads nothing */
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;"); }
template <int N> DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

DEVICE void load_matrices(uint32_t (&r)[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}
DEVICE void load_transposed(uint32_t (&r)[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}

/* ---- one kernel after another ---------------------------------------------- */

/* The next kernel of the stream may be set up; it waits for this one's end before it reads. */
DEVICE void start_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
DEVICE void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* ---- arithmetic ----------------------------------------------------------- */

/* n / d, n < 2^31. */
DEVICE uint32_t divide(uint32_t n, const relayi_cuda_divisor &by) { return (__umulhi(n, by.multiplier) + n) >> by.shift; }

DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Off by about 1e-7, which a soft cap makes cap * 1e-7 of a score. */
DEVICE float tanh_fast(float x) {
    return 1.0f - __fdividef(2.0f, 1.0f + exp2_fast(x * (2.0f * 1.4426950408889634f)));
}

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

/* ---- the tokens of a unit ------------------------------------------------- */

/* Visits tiles of a unit's pieces: of every piece the tokens begin + offset, + step, ... */
struct token_walk {
    const relayi_cuda_piece *more; /* after the current one */
    int left;                      /* pieces, the current one included */
    int offset, step;
    int tensor, ids, start, token, end;

    DEVICE void enter(const relayi_cuda_piece &piece) {
        token = piece.begin + offset;
        end = piece.end;
        tensor = piece.tensor;
        ids = piece.ids;
        start = piece.start;
    }
    DEVICE void skip_empty() {
        while (token >= end && --left > 0) enter(*more++);
    }
    DEVICE void begin(const relayi_cuda_params &p, const relayi_cuda_unit &unit, int from, int by) {
        more = reinterpret_cast<const relayi_cuda_piece *>(static_cast<const char *>(p.list) + p.pieces) + unit.more_pieces;
        left = unit.num_pieces;
        offset = from;
        step = by;
        enter(unit.first);
        if (left > 0) skip_empty();
    }
    DEVICE bool done() const { return left <= 0; }
    DEVICE void next() {
        token += step;
        skip_empty();
    }
};

/* Where 16 tokens that share a page lie: block number and token inside it. */
struct page_place {
    int block, inside;
};

/* The page of the walk's tokens [16 * group, +16). */
DEVICE page_place find_page(const relayi_cuda_params &p, const int32_t *ids, const token_walk &walk, int group) {
    page_place at = {0, 0};
    if (walk.done()) return at;
    int token = walk.token + group * PAGE;
    if (token >= walk.end) return at;
    at.inside = token;
    if (walk.tensor < 0) {
        int index = divide(token, p.by_block_size);
        at.block = __ldg(ids + walk.ids + index);
        at.inside = token - index * p.block_size;
    }
    return at;
}

/* A pointer that lane `from` holds. */
template <typename T> DEVICE const T *shuffle(const T *pointer, int from) {
    return reinterpret_cast<const T *>(__shfl_sync(0xFFFFFFFF, reinterpret_cast<unsigned long long>(pointer), from));
}

/* K and V of one kv head where the walk stands. */
template <typename T> struct kv_view {
    const T *key, *value;
    int64_t key_block, key_token, value_block, value_token;

    DEVICE kv_view(const attend_params &p, int tensor, int kv_head) {
        if (tensor < 0) {
            key = static_cast<const T *>(p.key_pool) + kv_head * p.key_head;
            value = static_cast<const T *>(p.value_pool) + kv_head * p.value_head;
            key_block = p.key_block;
            key_token = p.key_token;
            value_block = p.value_block;
            value_token = p.value_token;
        } else {
            const relayi_cuda_kv &kv = p.contiguous[tensor];
            key = static_cast<const T *>(kv.key) + kv_head * kv.key_head;
            value = static_cast<const T *>(kv.value) + kv_head * kv.value_head;
            key_block = value_block = 0;
            key_token = kv.key_token;
            value_token = kv.value_token;
        }
    }
};

/* Starts the copies of TOKENS tokens by a whole block; tokens past the end and dims past head_dim
 * become zeros.  Lane g of each warp holds the page of tokens [16g, +16). */
template <typename T, int D, int TOKENS>
DEVICE void fetch_tile(const attend_params &p, const token_walk &walk, page_place page, int kv_head,
                       uint32_t keys, uint32_t values) {
    constexpr int chunks = D / 8;
    kv_view<T> kv(p, walk.tensor, kv_head);
    const T *key_page = kv.key + page.block * kv.key_block + page.inside * kv.key_token;
    const T *value_page = kv.value + page.block * kv.value_block + page.inside * kv.value_token;
    int left = walk.end - walk.token, thread = threadIdx.x;
    if constexpr (THREADS % chunks == 0) { /* a thread keeps its chunk, and its place within a page */
        constexpr int rows = THREADS / chunks;
        int row = thread / chunks, chunk = thread % chunks;
        bool inside = chunk * 8 < p.head_dim;
        int64_t key_at = row * kv.key_token + chunk * 8, value_at = row * kv.value_token + chunk * 8;
        int64_t key_step = rows * kv.key_token, value_step = rows * kv.value_token;
#pragma unroll
        for (int group = 0; group < TOKENS / PAGE; group++) {
            const T *key = shuffle(key_page, group) + key_at, *value = shuffle(value_page, group) + value_at;
#pragma unroll
            for (int i = 0; i < PAGE / rows; i++, key += key_step, value += value_step) {
                int at = group * PAGE + i * rows + row;
                bool valid = inside && at < left;
                copy16(keys + place<D>(at, chunk), valid ? key : kv.key, valid);
                copy16(values + place<D>(at, chunk), valid ? value : kv.value, valid);
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < TOKENS * chunks / THREADS; i++) {
            int index = thread + i * THREADS, row = index / chunks, chunk = index % chunks;
            const T *key = shuffle(key_page, row / PAGE) + row % PAGE * kv.key_token + chunk * 8;
            const T *value = shuffle(value_page, row / PAGE) + row % PAGE * kv.value_token + chunk * 8;
            bool valid = row < left && chunk * 8 < p.head_dim;
            copy16(keys + place<D>(row, chunk), valid ? key : kv.key, valid);
            copy16(values + place<D>(row, chunk), valid ? value : kv.value, valid);
        }
    }
}

/* The same for one page, by one warp: rows follow each other by one stride. */
template <typename T, int D>
DEVICE void fetch_page(const attend_params &p, const token_walk &walk, page_place page, int kv_head, uint32_t keys,
                       uint32_t values, int lane) {
    constexpr int chunks = D / 8;
    kv_view<T> kv(p, walk.tensor, kv_head);
    kv.key += page.block * kv.key_block + page.inside * kv.key_token;
    kv.value += page.block * kv.value_block + page.inside * kv.value_token;
    int left = walk.end - walk.token;
    if constexpr (32 % chunks == 0) {
        constexpr int rows = 32 / chunks;
        int row = lane / chunks, chunk = lane % chunks;
        const T *key = kv.key + row * kv.key_token + chunk * 8, *value = kv.value + row * kv.value_token + chunk * 8;
        int64_t key_step = rows * kv.key_token, value_step = rows * kv.value_token;
        bool inside = chunk * 8 < p.head_dim;
#pragma unroll
        for (int i = 0; i < PAGE; i += rows, key += key_step, value += value_step) {
            bool valid = inside && row + i < left;
            copy16(keys + place<D>(row + i, chunk), valid ? key : kv.key, valid);
            copy16(values + place<D>(row + i, chunk), valid ? value : kv.value, valid);
        }
    } else {
#pragma unroll
        for (int i = 0; i < PAGE * chunks / 32; i++) {
            int index = lane + i * 32, row = index / chunks, chunk = index % chunks;
            bool valid = row < left && chunk * 8 < p.head_dim;
            copy16(keys + place<D>(row, chunk), valid ? kv.key + row * kv.key_token + chunk * 8 : kv.key, valid);
            copy16(values + place<D>(row, chunk), valid ? kv.value + row * kv.value_token + chunk * 8 : kv.value, valid);
        }
    }
}

#endif
