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

/* ---- shared memory -------------------------------------------------------- */

DEVICE uint32_t shared_address(const void *at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

/* Bytes from a tile's start to 16-byte chunk `chunk` of row `row`; the exclusive-or keeps the eight
 * rows that one ldmatrix reads in different banks. */
template <int D> DEVICE uint32_t place(int row, int chunk) {
    constexpr int chunks = D / 8;
    int flip = chunks % 8 == 0 ? row & 7 : (row >> 1) & 3;
    return static_cast<uint32_t>(row * chunks + (chunk ^ flip)) * 16;
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

/* ---- arithmetic ----------------------------------------------------------- */

DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

/* ---- the tokens of a unit ------------------------------------------------- */

/* Visits tiles of a unit's pieces: of every piece the tokens begin + offset, + step, ... */
struct token_walk {
    const relayi_cuda_piece *piece, *last;
    int offset, step;
    int tensor, ids, start, token, end;

    DEVICE void enter() {
        for (; piece != last; piece++) {
            token = piece->begin + offset;
            end = piece->end;
            if (token < end) {
                tensor = piece->tensor;
                ids = piece->ids;
                start = piece->start;
                return;
            }
        }
    }
    DEVICE void begin(const relayi_cuda_piece *first, int count, int from, int by) {
        piece = first;
        last = first + count;
        offset = from;
        step = by;
        enter();
    }
    DEVICE bool done() const { return piece == last; }
    DEVICE void next() {
        token += step;
        if (token < end) return;
        piece++;
        enter();
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
        int index = token / p.block_size;
        at.block = __ldg(ids + walk.ids + index);
        at.inside = token - index * p.block_size;
    }
    return at;
}

/* K and V of one kv head where the walk stands. */
template <typename T> struct kv_view {
    const T *key, *value;
    int64_t key_block, key_token, value_block, value_token;

    DEVICE kv_view(const relayi_cuda_params &p, int tensor, int kv_head) {
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

/* Starts the copies of TOKENS tokens by COUNT threads of number `thread`; tokens past the end and
 * dims past head_dim become zeros.  Lane g of each warp holds the page of tokens [16g, +16). */
template <typename T, int D, int TOKENS, int COUNT>
DEVICE void fetch_tile(const relayi_cuda_params &p, const token_walk &walk, page_place page, int kv_head,
                       uint32_t keys, uint32_t values, int thread) {
    constexpr int chunks = D / 8;
    kv_view<T> kv(p, walk.tensor, kv_head);
#pragma unroll
    for (int i = 0; i < TOKENS * chunks / COUNT; i++) {
        int index = thread + i * COUNT, row = index / chunks, chunk = index % chunks;
        int block = page.block, inside = page.inside + row;
        if (TOKENS > PAGE) {
            block = __shfl_sync(0xFFFFFFFF, page.block, row / PAGE);
            inside = __shfl_sync(0xFFFFFFFF, page.inside, row / PAGE) + row % PAGE;
        }
        bool valid = walk.token + row < walk.end && chunk * 8 < p.head_dim;
        const T *key = kv.key + block * kv.key_block + inside * kv.key_token + chunk * 8;
        const T *value = kv.value + block * kv.value_block + inside * kv.value_token + chunk * 8;
        copy16(keys + place<D>(row, chunk), valid ? key : kv.key, valid);
        copy16(values + place<D>(row, chunk), valid ? value : kv.value, valid);
    }
}

#endif
