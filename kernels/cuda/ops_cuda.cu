/* The table of functions that the core finds in librelayattn_cuda. */
#include <stdio.h>
#include <string.h>

#include "kernels_cuda.h"

namespace {

/* Makes a device current for a scope. */
class current_device {
    int before = -1;

public:
    cudaError_t error;
    explicit current_device(int index) {
        error = cudaGetDevice(&before);
        if (error == cudaSuccess && before != index) error = cudaSetDevice(index);
        else before = -1;
    }
    ~current_device() {
        if (before >= 0) cudaSetDevice(before);
    }
};

relay_status say(relayi_cuda_error *to, const char *what, cudaError_t error) {
    if (error == cudaSuccess) return RELAY_OK;
    snprintf(to->text, sizeof to->text, "%s: %s: %s", what, cudaGetErrorName(error), cudaGetErrorString(error));
    if (error == cudaErrorMemoryAllocation) return RELAY_OUT_OF_MEMORY;
    if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver || error == cudaErrorInvalidDevice)
        return RELAY_NO_DEVICE;
    return RELAY_DEVICE_ERROR;
}

/* An error of this thread's or the device's past would otherwise look like ours. */
relay_status check_past(cudaStream_t stream, relayi_cuda_error *to) {
    cudaStreamCaptureStatus capture;
    cudaError_t error = cudaPeekAtLastError();
    if (error == cudaSuccess) error = cudaStreamIsCapturing(stream, &capture);
    return say(to, "an error from before this call", error);
}

relay_status open_device(int32_t index, relayi_cuda_device *device, relayi_cuda_error *to) {
    int count = 0, driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0) {
        snprintf(to->text, sizeof to->text, "no NVIDIA driver is loaded");
        return RELAY_NO_DEVICE;
    }
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorInsufficientDriver) {
        snprintf(to->text, sizeof to->text, "the driver knows CUDA %d.%d, and CUDA %d is needed", driver / 1000,
                 driver % 1000 / 10, runtime / 1000);
        return RELAY_NO_DEVICE;
    }
    if (error != cudaSuccess) return say(to, "counting devices", error);
    if (index < 0 || index >= count) {
        snprintf(to->text, sizeof to->text, "device %d of %d", index, count);
        return RELAY_NO_DEVICE;
    }
    cudaDeviceProp properties;
    error = cudaGetDeviceProperties(&properties, index);
    if (error != cudaSuccess) return say(to, "reading the device's properties", error);
    if (properties.major < 8) {
        snprintf(to->text, sizeof to->text, "%s has compute capability %d.%d, and 8.0 is needed", properties.name,
                 properties.major, properties.minor);
        return RELAY_NO_DEVICE;
    }
    *device = relayi_cuda_device{index, properties.multiProcessorCount, properties.major, properties.minor,
                                 static_cast<int64_t>(properties.totalGlobalMem), properties.l2CacheSize, driver,
                                 runtime, {0}};
    snprintf(device->name, sizeof device->name, "%s", properties.name);
    current_device current(index);
    if (current.error == cudaSuccess) current.error = cudaFree(nullptr); /* makes the context */
    return say(to, "opening the device", current.error);
}

relay_status pin(int32_t index, size_t bytes, void **memory, relayi_cuda_error *to) {
    current_device current(index);
    if (current.error != cudaSuccess) return say(to, "cudaSetDevice", current.error);
    return say(to, "pinned memory", cudaHostAlloc(memory, bytes, cudaHostAllocPortable));
}

void unpin(void *memory) { cudaFreeHost(memory); }

int32_t reachable(int32_t index, const void *address) {
    cudaPointerAttributes found;
    if (cudaPointerGetAttributes(&found, address) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    if (found.type == cudaMemoryTypeDevice) return found.device == index;
    return found.type == cudaMemoryTypeManaged || (found.type == cudaMemoryTypeHost && found.devicePointer == address);
}

cudaError_t launch_attend(const relayi_cuda_attend *call, int multiprocessors, cudaStream_t stream) {
    int32_t dim = call->params.head_dim;
    if (call->kernel == RELAYI_CUDA_HOPPER && dim == 64) return relayi_cuda_hopper_d64(call, multiprocessors, stream);
    if (call->kernel == RELAYI_CUDA_HOPPER && dim == 128) return relayi_cuda_hopper_d128(call, multiprocessors, stream);
#define RELAY_CUDA_CASE(D) \
    if (dim <= D) return relayi_cuda_attend_d##D(call, multiprocessors, stream);
    RELAY_CUDA_DIMS(RELAY_CUDA_CASE)
#undef RELAY_CUDA_CASE
    return cudaErrorInvalidValue;
}

relay_status event_create(int32_t index, void **event, relayi_cuda_error *to) {
    current_device current(index);
    cudaEvent_t made = nullptr;
    cudaError_t error = current.error;
    if (error == cudaSuccess) error = cudaEventCreateWithFlags(&made, cudaEventDisableTiming);
    *event = made;
    return say(to, "cudaEventCreate", error);
}

relay_status event_wait(int32_t index, void *event, relayi_cuda_error *to) {
    cudaError_t error = cudaEventQuery(static_cast<cudaEvent_t>(event));
    if (error == cudaSuccess) return RELAY_OK;
    if (error != cudaErrorNotReady) return say(to, "a run of this plan", error);
    cudaGetLastError();
    current_device current(index);
    return say(to, "waiting for a run of this plan", cudaEventSynchronize(static_cast<cudaEvent_t>(event)));
}

void event_destroy(int32_t index, void *event) {
    current_device current(index);
    if (event) cudaEventDestroy(static_cast<cudaEvent_t>(event));
}

/* Copies the list and marks when that is done.  One event stands for all streams, so a copy comes after the last
 * one of the plan, whichever stream that is on; a graph's copies are in order where its launches are. */
cudaError_t copy_list(const relayi_cuda_attend *call, cudaStream_t stream) {
    cudaEvent_t copied = static_cast<cudaEvent_t>(call->copied);
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    cudaError_t error = copied ? cudaStreamIsCapturing(stream, &capture) : cudaSuccess;
    bool captured = capture == cudaStreamCaptureStatusActive;
    if (error == cudaSuccess && copied && !captured) error = cudaStreamWaitEvent(stream, copied, 0);
    if (error == cudaSuccess)
        error = cudaMemcpyAsync(call->params.list, call->host_list, call->list_bytes, cudaMemcpyHostToDevice, stream);
    if (error != cudaSuccess || !copied) return error;
    return cudaEventRecordWithFlags(copied, stream, captured ? cudaEventRecordExternal : cudaEventRecordDefault);
}

relay_status attend(const relayi_cuda_attend *call, relayi_cuda_error *to) {
    current_device current(call->device);
    if (current.error != cudaSuccess) return say(to, "cudaSetDevice", current.error);
    cudaStream_t stream = static_cast<cudaStream_t>(call->stream);
    relay_status status = check_past(stream, to);
    if (status != RELAY_OK) return status;
    int multiprocessors = 0, major = 0;
    cudaError_t error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, call->device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, call->device);
    if (error == cudaSuccess && call->list_bytes > 0) error = copy_list(call, stream);
    if (error != cudaSuccess) return say(to, "copying the work list", error);
    status = say(to, "launching attention", launch_attend(call, multiprocessors, stream));
    if (status != RELAY_OK || relayi_cuda_merges_inside(call)) return status;
    return say(to, "launching the merge", relayi_cuda_merge(call, major, stream));
}

relay_status write(const relayi_cuda_write *call, relayi_cuda_error *to) {
    current_device current(call->device);
    if (current.error != cudaSuccess) return say(to, "cudaSetDevice", current.error);
    cudaStream_t stream = static_cast<cudaStream_t>(call->stream);
    relay_status status = check_past(stream, to);
    return status != RELAY_OK ? status : say(to, "launching the cache write", relayi_cuda_write_pages(call, stream));
}

relay_status fuse(const relayi_cuda_fuse *call, relayi_cuda_error *to) {
    current_device current(call->device);
    if (current.error != cudaSuccess) return say(to, "cudaSetDevice", current.error);
    cudaStream_t stream = static_cast<cudaStream_t>(call->stream);
    relay_status status = check_past(stream, to);
    return status != RELAY_OK ? status : say(to, "launching the fusion", relayi_cuda_fuse_parts(call, stream));
}

relay_status calibrate(int32_t index, relayi_cuda_rates *rates, relayi_cuda_error *to) {
    relayi_cuda_device device;
    relay_status status = open_device(index, &device, to);
    if (status != RELAY_OK) return status;
    current_device current(index);
    return say(to, "calibrating", current.error != cudaSuccess ? current.error : relayi_cuda_measure(&device, rates));
}

const char *kernel_name(relayi_cuda_kernel kernel, relay_dtype query, relay_dtype kv) {
    if (query != kv || query == RELAY_F32) return nullptr;
    if (kernel == RELAYI_CUDA_HOPPER) return query == RELAY_BF16 ? "relayi_attend_bf16_hopper" : "relayi_attend_f16_hopper";
    return query == RELAY_BF16 ? "relayi_attend_bf16_cuda" : "relayi_attend_f16_cuda";
}

/* ---- for the checker and the benchmarks ------------------------------------ */

relay_status alloc(int32_t index, size_t bytes, void **memory, relayi_cuda_error *to) {
    current_device current(index);
    return say(to, "cudaMalloc", current.error != cudaSuccess ? current.error : cudaMalloc(memory, bytes ? bytes : 1));
}

void release(int32_t index, void *memory) {
    current_device current(index);
    cudaFree(memory);
}

relay_status copy(int32_t index, void *target, const void *from, size_t bytes, relayi_cuda_copy kind,
                  relayi_cuda_error *to) {
    current_device current(index);
    if (current.error != cudaSuccess) return say(to, "cudaSetDevice", current.error);
    cudaMemcpyKind direction = kind == RELAYI_CUDA_TO_DEVICE ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
    cudaError_t error = cudaMemcpy(target, from, bytes, direction);
    if (error == cudaSuccess) error = cudaStreamSynchronize(cudaStreamLegacy); /* streams of ours do not wait for it */
    return say(to, "cudaMemcpy", error);
}

relay_status fill(int32_t index, void *memory, int32_t byte, size_t bytes, relayi_cuda_error *to) {
    current_device current(index);
    cudaError_t error = current.error;
    if (error == cudaSuccess) error = cudaMemset(memory, byte, bytes);
    if (error == cudaSuccess) error = cudaStreamSynchronize(cudaStreamLegacy);
    return say(to, "cudaMemset", error);
}

relay_status stream_create(int32_t index, void **stream, relayi_cuda_error *to) {
    current_device current(index);
    cudaStream_t made = nullptr;
    cudaError_t error = current.error;
    if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking);
    *stream = made;
    return say(to, "cudaStreamCreate", error);
}

relay_status stream_wait(int32_t index, void *stream, relayi_cuda_error *to) {
    current_device current(index);
    return say(to, "waiting for the stream", cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
}

void stream_destroy(int32_t index, void *stream) {
    current_device current(index);
    if (stream) cudaStreamDestroy(static_cast<cudaStream_t>(stream));
}

relay_status capture_begin(int32_t index, void *stream, relayi_cuda_error *to) {
    current_device current(index);
    return say(to, "cudaStreamBeginCapture", cudaStreamBeginCapture(static_cast<cudaStream_t>(stream), cudaStreamCaptureModeGlobal));
}

relay_status capture_end(int32_t index, void *stream, void **graph, relayi_cuda_error *to) {
    current_device current(index);
    cudaGraph_t captured = nullptr;
    cudaGraphExec_t made = nullptr;
    cudaError_t error = cudaStreamEndCapture(static_cast<cudaStream_t>(stream), &captured);
    if (error == cudaSuccess) error = cudaGraphInstantiate(&made, captured, 0);
    if (captured) cudaGraphDestroy(captured);
    *graph = made;
    return say(to, "capturing a graph", error);
}

relay_status graph_launch(int32_t index, void *graph, void *stream, relayi_cuda_error *to) {
    current_device current(index);
    return say(to, "cudaGraphLaunch", cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), static_cast<cudaStream_t>(stream)));
}

void graph_destroy(int32_t index, void *graph) {
    current_device current(index);
    if (graph) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
}

relay_status flush(int32_t index, const void *memory, size_t bytes, void *stream, relayi_cuda_error *to) {
    current_device current(index);
    return say(to, "launching a flush", relayi_cuda_read_bytes(memory, bytes, static_cast<cudaStream_t>(stream)));
}

relay_status time_graph(int32_t index, void *graph, const void *flushed, size_t flush_bytes, void *on, double *seconds,
                        relayi_cuda_error *to) {
    current_device current(index);
    cudaStream_t stream = static_cast<cudaStream_t>(on);
    cudaEvent_t begin = nullptr, end = nullptr;
    float milliseconds = 0.0f;
    cudaError_t error = cudaEventCreate(&begin);
    if (error == cudaSuccess) error = cudaEventCreate(&end);
    if (error == cudaSuccess && flushed) error = relayi_cuda_read_bytes(flushed, flush_bytes, stream);
    if (error == cudaSuccess) error = cudaEventRecord(begin, stream);
    if (error == cudaSuccess) error = cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream);
    if (error == cudaSuccess) error = cudaEventRecord(end, stream);
    if (error == cudaSuccess) error = cudaEventSynchronize(end);
    if (error == cudaSuccess) error = cudaEventElapsedTime(&milliseconds, begin, end);
    if (begin) cudaEventDestroy(begin);
    if (end) cudaEventDestroy(end);
    *seconds = milliseconds * 1e-3;
    return say(to, "timing a graph", error);
}

const relayi_cuda_ops ops = {RELAYI_CUDA_VERSION, sizeof(relayi_cuda_ops), open_device, pin, unpin, reachable, attend,
                             write, fuse, calibrate, kernel_name,
                             event_create, event_wait, event_destroy, alloc, release, copy, fill, stream_create,
                             stream_wait, stream_destroy, capture_begin, capture_end, graph_launch, graph_destroy,
                             flush, time_graph};

} // namespace

extern "C" __attribute__((visibility("default"))) const relayi_cuda_ops *relay_cuda_ops(void);
extern "C" const relayi_cuda_ops *relay_cuda_ops(void) { return &ops; }
