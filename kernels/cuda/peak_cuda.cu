/* What the device can do: reading memory, copying it, float32 multiply-adds, bf16 products. */
#include "kernels_cuda.h"
#include "tile_cuda.cuh"

namespace {

enum { PASSES = 5, FMA_STEPS = 4096, MMA_STEPS = 8192, PEAK_LAUNCHES = 64 };
const size_t memory_bytes = static_cast<size_t>(2) << 30;

__global__ void __launch_bounds__(512) read_memory(const uint4 *memory, size_t words, uint32_t *sink) {
    uint32_t sum = 0;
    size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x, at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; at + 3 * stride < words; at += 4 * stride) {
        uint4 w[4];
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = __ldcs(memory + at + i * stride);
#pragma unroll
        for (int i = 0; i < 4; i++) sum ^= w[i].x ^ w[i].y ^ w[i].z ^ w[i].w;
    }
    for (; at < words; at += stride) sum ^= __ldcs(memory + at).x;
    if (sum == 0x9E3779B9u) *sink = sum; /* keeps the loads; memory that hits it costs one store */
}

__global__ void __launch_bounds__(512) multiply_add(float *sink, float factor) {
    float x[16];
    for (int i = 0; i < 16; i++) x[i] = static_cast<float>(threadIdx.x + i);
    for (int step = 0; step < FMA_STEPS; step++)
#pragma unroll
        for (int i = 0; i < 16; i++) x[i] = fmaf(x[i], factor, 1.0f);
    float sum = 0.0f;
    for (int i = 0; i < 16; i++) sum += x[i];
    if (sum == 3.0f) *sink = sum;
}

/* A bf16 in [-1, 1) from a hash: random operands, since zeros draw less power and run faster. */
DEVICE uint32_t random_pair(uint32_t at) {
    at = (at ^ 61u) * 0x9E3779B9u;
    at = (at ^ at >> 15) * 0x85EBCA6Bu;
    at ^= at >> 13;
    return half_ops<__nv_bfloat16>::pack(static_cast<float>(at & 0xFFFF) / 32768.0f - 1.0f,
                                         static_cast<float>(at >> 16) / 32768.0f - 1.0f);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define RELAY_PEAK_WGMMA 1
#endif

enum { PEAK_THREADS = 256, PEAK_SLICES = 4, PEAK_SHARED = PEAK_SLICES * 256 * 16 * 2 };

#ifdef RELAY_PEAK_WGMMA
/* 64 x 256 x 16 by one warpgroup: A from registers, B from unswizzled shared memory. */
DEVICE void multiply_group(float (&c)[128], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
            "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
            "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
            "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
            "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
            "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
            "{%128, %129, %130, %131}, %132, 1, 1, 1, 0;"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
              "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
              "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),
              "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]),
              "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]),
              "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]),
              "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]),
              "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63]),
              "+f"(c[64]), "+f"(c[65]), "+f"(c[66]), "+f"(c[67]), "+f"(c[68]), "+f"(c[69]), "+f"(c[70]), "+f"(c[71]),
              "+f"(c[72]), "+f"(c[73]), "+f"(c[74]), "+f"(c[75]), "+f"(c[76]), "+f"(c[77]), "+f"(c[78]), "+f"(c[79]),
              "+f"(c[80]), "+f"(c[81]), "+f"(c[82]), "+f"(c[83]), "+f"(c[84]), "+f"(c[85]), "+f"(c[86]), "+f"(c[87]),
              "+f"(c[88]), "+f"(c[89]), "+f"(c[90]), "+f"(c[91]), "+f"(c[92]), "+f"(c[93]), "+f"(c[94]), "+f"(c[95]),
              "+f"(c[96]), "+f"(c[97]), "+f"(c[98]), "+f"(c[99]), "+f"(c[100]), "+f"(c[101]), "+f"(c[102]), "+f"(c[103]),
              "+f"(c[104]), "+f"(c[105]), "+f"(c[106]), "+f"(c[107]), "+f"(c[108]), "+f"(c[109]), "+f"(c[110]), "+f"(c[111]),
              "+f"(c[112]), "+f"(c[113]), "+f"(c[114]), "+f"(c[115]), "+f"(c[116]), "+f"(c[117]), "+f"(c[118]), "+f"(c[119]),
              "+f"(c[120]), "+f"(c[121]), "+f"(c[122]), "+f"(c[123]), "+f"(c[124]), "+f"(c[125]), "+f"(c[126]), "+f"(c[127])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__global__ void __launch_bounds__(PEAK_THREADS, 1) multiply_matrices(float *sink) {
    extern __shared__ __align__(128) char shared[];
    for (int i = threadIdx.x; i < PEAK_SHARED / 4; i += PEAK_THREADS)
        reinterpret_cast<uint32_t *>(shared)[i] = random_pair(i);
    asm volatile("fence.proxy.async.shared::cta;");
    __syncthreads();
    float c[128] = {};
    uint32_t a[4];
    for (int i = 0; i < 4; i++) a[i] = random_pair(0x10000 + threadIdx.x * 4 + i);
    for (int step = 0; step < MMA_STEPS / PEAK_SLICES; step++) {
        asm volatile("wgmma.fence.sync.aligned;");
#pragma unroll
        for (int k = 0; k < PEAK_SLICES; k++) {
            uint64_t at = (shared_address(shared) + k * 256 * 16 * 2) >> 4;
            multiply_group(c, a, at | static_cast<uint64_t>(8) << 16 | static_cast<uint64_t>(16) << 32);
        }
        asm volatile("wgmma.commit_group.sync.aligned;");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    }
    float sum = 0.0f;
    for (int i = 0; i < 128; i++) sum += c[i];
    if (sum == 3.0f) *sink = sum;
}
#else
/* The same amount of work by m16n8k16: each warp 64 x 32 of its warpgroup's 64 x 256 twice. */
__global__ void __launch_bounds__(PEAK_THREADS, 1) multiply_matrices(float *sink) {
    float c[16][4] = {};
    uint32_t a[4], b[4];
    for (int i = 0; i < 4; i++) {
        a[i] = random_pair(0x10000 + threadIdx.x * 4 + i);
        b[i] = random_pair(0x20000 + threadIdx.x * 4 + i);
    }
    for (int step = 0; step < MMA_STEPS * 2; step++)
#pragma unroll
        for (int i = 0; i < 16; i++) half_ops<__nv_bfloat16>::mma(c[i], a, b[i % 2 * 2], b[i % 2 * 2 + 1]);
    float sum = 0.0f;
    for (int i = 0; i < 16; i++) sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
    if (sum == 3.0f) *sink = sum;
}
#endif

struct stopwatch {
    cudaEvent_t begin = nullptr, end = nullptr;
    cudaError_t open() {
        cudaError_t error = cudaEventCreate(&begin);
        return error == cudaSuccess ? cudaEventCreate(&end) : error;
    }
    ~stopwatch() {
        if (begin) cudaEventDestroy(begin);
        if (end) cudaEventDestroy(end);
    }
};

/* The shortest of some passes, in seconds. */
template <typename F> cudaError_t best_of(stopwatch &watch, F pass, double *seconds) {
    *seconds = 0.0;
    for (int i = -1; i < PASSES; i++) { /* the first one warms up */
        float milliseconds = 0.0f;
        cudaEventRecord(watch.begin);
        pass();
        cudaEventRecord(watch.end);
        cudaError_t error = cudaEventSynchronize(watch.end);
        if (error == cudaSuccess) error = cudaEventElapsedTime(&milliseconds, watch.begin, watch.end);
        if (error == cudaSuccess) error = cudaGetLastError();
        if (error != cudaSuccess) return error;
        if (i >= 0 && (*seconds == 0.0 || milliseconds * 1e-3 < *seconds)) *seconds = milliseconds * 1e-3;
    }
    return cudaSuccess;
}

cudaError_t measure_all(const relayi_cuda_device *device, stopwatch &watch, char *memory, relayi_cuda_rates *rates) {
    int sms = device->multiprocessors;
    uint32_t *sink = reinterpret_cast<uint32_t *>(memory + memory_bytes);
    double seconds = 0.0;
    cudaError_t error = cudaFuncSetAttribute(multiply_matrices, cudaFuncAttributeMaxDynamicSharedMemorySize, PEAK_SHARED);
    if (error == cudaSuccess) error = cudaMemset(memory, 1, memory_bytes);
    if (error == cudaSuccess)
        error = best_of(watch, [&] {
            read_memory<<<sms * 4, 512>>>(reinterpret_cast<const uint4 *>(memory), memory_bytes / 16, sink);
        }, &seconds);
    if (error != cudaSuccess) return error;
    rates->read_gbps = static_cast<double>(memory_bytes) / seconds * 1e-9;
    error = best_of(watch, [&] {
        cudaMemcpyAsync(memory, memory + memory_bytes / 2, memory_bytes / 2, cudaMemcpyDeviceToDevice);
    }, &seconds);
    if (error != cudaSuccess) return error;
    rates->copy_gbps = static_cast<double>(memory_bytes) / seconds * 1e-9;
    error = best_of(watch, [&] { multiply_add<<<sms * 4, 512>>>(reinterpret_cast<float *>(sink), 0.5f); }, &seconds);
    if (error != cudaSuccess) return error;
    rates->f32_gflops = 2.0 * sms * 4 * 512 * 16 * FMA_STEPS / seconds * 1e-9;
    error = best_of(watch, [&] {
        for (int i = 0; i < PEAK_LAUNCHES; i++) /* long enough for the clocks to settle under the load */
            multiply_matrices<<<sms, PEAK_THREADS, PEAK_SHARED>>>(reinterpret_cast<float *>(sink));
    }, &seconds);
    rates->bf16_gflops = 2.0 * PEAK_LAUNCHES * sms * 2 * 64 * 256 * 16 * MMA_STEPS / seconds * 1e-9;
    return error;
}

} // namespace

cudaError_t relayi_cuda_measure(const relayi_cuda_device *device, relayi_cuda_rates *rates) {
    stopwatch watch;
    char *memory = nullptr;
    cudaError_t error = watch.open();
    if (error == cudaSuccess) error = cudaMalloc(&memory, memory_bytes + 256);
    if (error == cudaSuccess) error = measure_all(device, watch, memory, rates);
    cudaFree(memory);
    return error;
}

cudaError_t relayi_cuda_read_bytes(const void *memory, size_t bytes, cudaStream_t stream) {
    uint32_t *sink = static_cast<uint32_t *>(const_cast<void *>(memory));
    read_memory<<<1056, 512, 0, stream>>>(static_cast<const uint4 *>(memory), bytes / 16, sink);
    return cudaGetLastError();
}
