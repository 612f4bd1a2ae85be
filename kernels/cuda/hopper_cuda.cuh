/* The Hopper kernel and its launch: one persistent block a multiprocessor, prompt and user part side
 * by side, then the merge of all parts.  hopper_layout.cuh says who does what. */
#ifndef RELAY_HOPPER_CUDA_CUH
#define RELAY_HOPPER_CUDA_CUH

#include <atomic>

#include "attend_cuda.cuh"
#include "hopper_merge.cuh"
#include "hopper_prompt.cuh"
#include "hopper_user.cuh"

/* Arrivals that a phase of a block's barrier number `i` takes. */
template <int D, int L> DEVICE uint32_t arrivals(int i) {
    using S = hopper_sizes<D, L>;
    bool slot = i >= S::slots && i < 2 * S::slots, parted = i == S::num_barriers - 1;
    bool unit = i >= 2 * S::slots + HOPPER_UNIT_QUEUE && i < 2 * S::slots + 2 * HOPPER_UNIT_QUEUE;
    return (slot || unit || parted ? HOPPER_CONSUMERS * 4 : 1) * (S::paired && (slot || parted) ? 2 : 1);
}

/* By the block's first warp.  One thread prepares the barriers, one instruction each: the address of that instruction is the
 * same for a whole warp, and lanes that each prepare one take turns, 60 clocks a turn. */
template <int D, int L> DEVICE void prepare_block(const hopper_params &p, const hopper_block<D, L> &b) {
    using S = hopper_sizes<D, L>;
    int lane = threadIdx.x;
    if (lane == 0) {
#pragma unroll
        for (int i = 0; i < S::num_barriers; i++) barrier_init(b.barrier(i), arrivals<D, L>(i));
    }
    if (lane < S::slots) store_tag(b.tag(lane), 0xFFFFFFFFu);
    barriers_ready();
    if (lane < 2) prefetch_map(&p.pool[lane]);
    __syncwarp();
    pass(HOPPER_READY + HOPPER_USERS, S::user_warps * 32 + 32);
    if (!S::alone) pass(HOPPER_READY + HOPPER_PRODUCER, 32 + 32);
    pass(HOPPER_READY + HOPPER_FEEDERS, S::feeders * 32 + 32);
}

template <typename T, int D, int L>
__global__ void __launch_bounds__(hopper_roles<L>::threads, 1) attend_hopper(const __grid_constant__ hopper_params p) {
    using R = hopper_roles<L>;
    extern __shared__ __align__(1024) char hopper_shared[];
    hopper_block<D, L> b(hopper_shared);
    if (threadIdx.x < 32) prepare_block(p, b);
    if (R::paired) cluster_arrive();
    if (!p.inside) start_dependents();
    int group = threadIdx.x / 128;
    if (group < HOPPER_CONSUMERS) {
        registers_more<176>();
        consume<T>(p, b);
        registers_fewer<112>();
    } else if (group == HOPPER_CONSUMERS) {
        registers_fewer<112>();
        attend_users<T>(p, b, threadIdx.x % 128 / 32);
    } else {
        registers_fewer<48>();
        int warp = threadIdx.x / 32;
        if (warp == R::producer) {
            produce(p, b);
            return;
        } else if (warp < R::first_feeder + R::feeders) {
            feed_users(p, b);
        } else if (p.inside) {
            touch_rows(p);
        }
        __syncwarp();
        if (R::paired) cluster_wait(); /* long past: an arrival without a wait would leave the barrier in doubt */
        return;
    }
    if (p.inside) finish<D>(p, hopper_shared);
    __syncwarp();
    if (R::paired) cluster_wait();
}

/* For a list without prompts. */
template <typename T, int D>
__global__ void __launch_bounds__(hopper_roles<RELAYI_CUDA_USERS_ALONE>::threads, 1)
attend_alone(const __grid_constant__ hopper_params p) {
    using R = hopper_roles<RELAYI_CUDA_USERS_ALONE>;
    extern __shared__ __align__(1024) char hopper_shared[];
    hopper_block<D, RELAYI_CUDA_USERS_ALONE> b(hopper_shared);
    if (threadIdx.x < 32) prepare_block(p, b);
    if (!p.inside) start_dependents();
    int warp = threadIdx.x / 32;
    if (warp < R::user_warps) attend_users<T>(p, b, warp);
    else feed_users(p, b);
    if (p.inside) finish<D>(p, hopper_shared);
}

/* ---- tensor maps ------------------------------------------------------------- */

typedef CUresult (*encode_map_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                  const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                                  CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static cudaError_t find_encode(encode_map_fn *found) {
    static encode_map_fn known;
    cudaDriverEntryPointQueryResult result;
    void *address = nullptr;
    if (known == nullptr) {
        cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &address, 12000, cudaEnableDefault, &result);
        if (error != cudaSuccess) return error;
        if (result != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
        known = reinterpret_cast<encode_map_fn>(address);
    }
    *found = known;
    return cudaSuccess;
}

/* One of the pool's tensors: 64 dims, 8 tokens, blocks of 64 dims over all heads, groups of 8 tokens, pages. */
template <int D>
static cudaError_t map_pool(encode_map_fn encode, CUtensorMapDataType type, const relayi_cuda_attend *call, const void *data,
                            int64_t block, int64_t token, CUtensorMap *map) {
    const cuuint64_t blocks = call->num_blocks > 0 ? static_cast<cuuint64_t>(call->num_blocks) : 1;
    const cuuint64_t size[5] = {64, 8, static_cast<cuuint64_t>(call->params.kv_heads) * (D / 64),
                                static_cast<cuuint64_t>(call->params.block_size / 8), blocks};
    const cuuint64_t stride[4] = {static_cast<cuuint64_t>(token) * 2, 128, static_cast<cuuint64_t>(token) * 16,
                                  static_cast<cuuint64_t>(block) * 2};
    const cuuint32_t box[5] = {64, 8, D / 64, 2, 1}, one[5] = {1, 1, 1, 1, 1};
    CUresult result = encode(map, type, 5, const_cast<void *>(data), size, stride, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE,
                             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

/* A contiguous span: 64 dims, tokens, blocks of 64 dims over all heads. */
template <int D>
static cudaError_t map_span(encode_map_fn encode, CUtensorMapDataType type, const relayi_cuda_attend *call, const void *data,
                            int64_t tokens, int64_t token, CUtensorMap *map) {
    const cuuint64_t size[3] = {64, static_cast<cuuint64_t>(tokens), static_cast<cuuint64_t>(call->params.kv_heads) * (D / 64)};
    const cuuint64_t stride[2] = {static_cast<cuuint64_t>(token) * 2, 128};
    const cuuint32_t box[3] = {64, 8, D / 64}, one[3] = {1, 1, 1};
    CUresult result = encode(map, type, 3, const_cast<void *>(data), size, stride, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE,
                             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <int D> static cudaError_t make_maps(const relayi_cuda_attend *call, hopper_params *p) {
    encode_map_fn encode;
    cudaError_t error = find_encode(&encode);
    CUtensorMapDataType type = call->dtype == RELAY_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    if (error == cudaSuccess && p->key_pool) {
        error = map_pool<D>(encode, type, call, p->key_pool, p->key_block, p->key_token, &p->pool[0]);
        if (error == cudaSuccess)
            error = map_pool<D>(encode, type, call, p->value_pool, p->value_block, p->value_token, &p->pool[1]);
    }
    for (int i = 0; error == cudaSuccess && i < call->num_contiguous; i++) {
        const relayi_cuda_kv &kv = call->contiguous[i];
        if (kv.key == nullptr || kv.tokens == 0) continue;
        error = map_span<D>(encode, type, call, kv.key, kv.tokens, kv.key_token, &p->spans[i][0]);
        if (error == cudaSuccess) error = map_span<D>(encode, type, call, kv.value, kv.tokens, kv.value_token, &p->spans[i][1]);
    }
    return error;
}

/* A kernel with what its launch has to know. */
struct hopper_kernel {
    void (*function)(hopper_params);
    int threads, bytes, user_warps, cluster; /* cluster: blocks */
};
template <int D, int L> static hopper_kernel kernel_of(void (*function)(hopper_params)) {
    using S = hopper_sizes<D, L>;
    return {function, S::threads, S::bytes, S::user_warps, S::paired ? 2 : 1};
}
template <typename T, int D> static hopper_kernel choose_kernel(relayi_cuda_layout layout) {
    if (layout == RELAYI_CUDA_USERS_ALONE) return kernel_of<D, RELAYI_CUDA_USERS_ALONE>(attend_alone<T, D>);
    if (layout == RELAYI_CUDA_FOR_PAIRS) return kernel_of<D, RELAYI_CUDA_FOR_PAIRS>(attend_hopper<T, D, RELAYI_CUDA_FOR_PAIRS>);
    if constexpr (D == 128) { /* the others were never measured with half the head dim */
        if (layout == RELAYI_CUDA_FOR_USERS) return kernel_of<D, RELAYI_CUDA_FOR_USERS>(attend_hopper<T, D, RELAYI_CUDA_FOR_USERS>);
        if (layout == RELAYI_CUDA_FOR_BOTH) return kernel_of<D, RELAYI_CUDA_FOR_BOTH>(attend_hopper<T, D, RELAYI_CUDA_FOR_BOTH>);
    }
    return kernel_of<D, RELAYI_CUDA_FOR_PROMPTS>(attend_hopper<T, D, RELAYI_CUDA_FOR_PROMPTS>);
}

/* A launch of a kernel on all multiprocessors. */
struct hopper_launch {
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};

    hopper_launch(const hopper_kernel &kernel, int multiprocessors, cudaStream_t stream) {
        config.gridDim = static_cast<unsigned>(multiprocessors);
        config.blockDim = static_cast<unsigned>(kernel.threads);
        config.dynamicSmemBytes = static_cast<size_t>(kernel.bytes);
        config.stream = stream;
        config.attrs = attributes;
        if (kernel.cluster == 1) return;
        attributes[0].id = cudaLaunchAttributeClusterDimension;
        attributes[0].val.clusterDim.x = static_cast<unsigned>(kernel.cluster);
        attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
        config.numAttrs = 1;
    }
    hopper_launch(const hopper_launch &) = delete; /* config points at attributes */

    /* Blocks wait for each other: all run at once, or none. */
    void together() {
        attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
        attributes[config.numAttrs++].val.cooperative = 1;
    }
};

static cudaError_t allow_memory(const hopper_kernel &kernel) {
    return cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.bytes);
}

/* All multiprocessors can be had in clusters of two. */
template <typename T, int D> static bool find_clusters(int multiprocessors) {
    const hopper_kernel kernel = choose_kernel<T, D>(RELAYI_CUDA_FOR_PAIRS);
    hopper_launch launch(kernel, multiprocessors, nullptr);
    int clusters = 0;
    cudaError_t error = allow_memory(kernel);
    if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(&clusters, kernel.function, &launch.config);
    if (error != cudaSuccess) cudaGetLastError();
    return error == cudaSuccess && 2 * clusters >= multiprocessors;
}

/* Asked once a device: a launch would be the slower for it. */
template <typename T, int D> static bool has_clusters(int device, int multiprocessors) {
    static std::atomic<signed char> known[64]; /* 1: yes, -1: no */
    if (multiprocessors % 2 != 0) return false;
    if (device < 0 || device >= 64) return find_clusters<T, D>(multiprocessors);
    if (known[device] == 0) known[device] = find_clusters<T, D>(multiprocessors) ? 1 : -1;
    return known[device] > 0;
}

template <typename T, int D>
static cudaError_t launch_hopper(const relayi_cuda_attend *call, int multiprocessors, cudaStream_t stream) {
    relayi_cuda_layout layout = call->layout;
    if (layout == RELAYI_CUDA_FOR_PAIRS && !has_clusters<T, D>(call->device, multiprocessors)) layout = RELAYI_CUDA_FOR_PROMPTS;
    const hopper_kernel kernel = choose_kernel<T, D>(layout);
    hopper_params p = {};
    static_cast<relayi_cuda_params &>(p) = call->params;
    p.flat_slots = multiprocessors * kernel.user_warps;
    p.inside = relayi_cuda_merges_inside(call);
    p.by_blocks = relayi_cuda_divide_by(static_cast<uint32_t>(multiprocessors));
    p.output_f16 = call->output_dtype == RELAY_F16;
    cudaError_t error = make_maps<D>(call, &p);
    if (error == cudaSuccess) error = allow_memory(kernel);
    if (error != cudaSuccess) return error;
    hopper_launch launch(kernel, multiprocessors, stream);
    if (p.inside) launch.together();
    return cudaLaunchKernelEx(&launch.config, kernel.function, p);
}

#define RELAY_CUDA_HOPPER(D)                                                                                        \
    cudaError_t relayi_cuda_hopper_d##D(const relayi_cuda_attend *call, int multiprocessors, cudaStream_t stream) { \
        return call->dtype == RELAY_BF16 ? launch_hopper<__nv_bfloat16, D>(call, multiprocessors, stream)           \
                                         : launch_hopper<__half, D>(call, multiprocessors, stream);                 \
    }

#endif
