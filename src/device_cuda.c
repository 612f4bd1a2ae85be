#include "device_cuda.h"

#include <stdio.h>

#include "cuda_loader.h"
#include "log.h"

relay_status relayi_cuda_open(relay_device *device, int32_t index) {
    relayi_cuda_error error = {{0}};
    relay_status status = relayi_cuda_load(device, &device->cuda);
    if (status != RELAY_OK) return status;
    status = device->cuda->open(index, &device->gpu, &error);
    if (status != RELAY_OK) return relayi_fail(device, status, "relay_device_open: CUDA: %s", error.text);
    const relayi_cuda_device *gpu = &device->gpu;
    device->kind = RELAY_DEVICE_CUDA;
    device->threads = 1;
    device->level = "cuda";
    snprintf(device->name, sizeof device->name, "%s", gpu->name);
    snprintf(device->features, sizeof device->features,
             "sm_%d%d, %d multiprocessors, %lld MiB, L2 %lld MiB, driver %d.%d, runtime %d.%d", gpu->major, gpu->minor,
             gpu->multiprocessors, (long long)(gpu->memory_bytes >> 20), (long long)(gpu->l2_bytes >> 20),
             gpu->driver / 1000, gpu->driver % 1000 / 10, gpu->runtime / 1000, gpu->runtime % 1000 / 10);
    relayi_log(device, RELAY_LOG_INFO, "%s: %s", device->name, device->features);
    return RELAY_OK;
}

relay_status relayi_cuda_calibrate(const relay_device *device, relay_calibration *result) {
    relayi_cuda_error error = {{0}};
    relayi_cuda_rates rates = {0};
    relay_status status = device->cuda->calibrate(device->gpu.index, &rates, &error);
    if (status != RELAY_OK) return relayi_fail(device, status, "relay_device_calibrate: CUDA: %s", error.text);
    *result = (relay_calibration){.struct_size = sizeof *result, .read_gbps = rates.read_gbps,
                                  .f32_gflops = rates.f32_gflops, .bf16_gflops = rates.bf16_gflops};
    result->peak_gflops = rates.f32_gflops > rates.bf16_gflops ? rates.f32_gflops : rates.bf16_gflops;
    return RELAY_OK;
}

bool relayi_cuda_is_hopper(const relay_device *device) { return device->gpu.major == 9 && device->gpu.minor == 0; }

const char *relayi_cuda_name_of(const relay_device *device, relayi_cuda_kernel kernel, relay_dtype query, relay_dtype kv) {
    const char *name = device->cuda->kernel_name(kernel, query, kv);
    return name ? name : "none";
}

const char *relayi_cuda_kernel_name(const relay_device *device, relay_dtype query, relay_dtype kv) {
    return relayi_cuda_name_of(device, relayi_cuda_is_hopper(device) ? RELAYI_CUDA_HOPPER : RELAYI_CUDA_GENERAL, query, kv);
}

relay_status relayi_cuda_check_attention(const relay_device *device, const relay_attention *a) {
    if (device->cuda->kernel_name(RELAYI_CUDA_GENERAL, a->query_dtype, a->kv_dtype) == NULL)
        return relayi_fail(device, RELAY_UNSUPPORTED,
                           "relay_attention: query_dtype %s, kv_dtype %s; a CUDA device computes f16 or bf16, both alike",
                           relay_dtype_name(a->query_dtype), relay_dtype_name(a->kv_dtype));
    if (a->output_dtype == RELAY_F32)
        return relayi_fail(device, RELAY_UNSUPPORTED,
                           "relay_attention.output_dtype: f32; a CUDA device writes f16 or bf16");
    return RELAY_OK;
}
