#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "alloc.h"
#include "cpu.h"
#include "device_cuda.h"
#include "device_internal.h"
#include "log.h"

#define MAX_THREADS 4096

relay_device_options relay_device_options_defaults(void) {
    return (relay_device_options){.struct_size = sizeof(relay_device_options), .kind = RELAY_DEVICE_CPU};
}

/* A device that lends its log before it exists. */
static relay_device log_only(const relay_device_options *options) {
    return (relay_device){.log = options->log, .log_user = options->log_user};
}

static relay_status check_level(const relay_device *log, const char *field, const char *name,
                                int *level) {
    if (name == NULL || name[0] == '\0') return RELAY_OK;
    int asked = relayi_find_level(name);
    if (asked < 0)
        return relayi_fail(log, RELAY_INVALID_ARGUMENT,
                           "%s: \"%s\" is none of scalar, avx2, avx512, avx512bf16, amx", field, name);
    if (asked < *level) *level = asked;
    return RELAY_OK;
}

static relay_status check_options(const relay_device *log, const relay_device_options *options,
                                  int *level) {
    relay_status status = relayi_check_size(log, "relay_device_options", options->struct_size,
                                            sizeof *options);
    if (status != RELAY_OK) return status;
    if (options->kind != RELAY_DEVICE_CPU && options->kind != RELAY_DEVICE_CUDA)
        return relayi_fail(log, RELAY_INVALID_ARGUMENT, "relay_device_options.kind: %d is no device kind",
                           (int)options->kind);
    if (options->kind == RELAY_DEVICE_CUDA) return RELAY_OK; /* its library checks the index */
    if (options->index != 0)
        return relayi_fail(log, RELAY_INVALID_ARGUMENT, "relay_device_options.index: %d, but the CPU is 0",
                           options->index);
    if (options->threads < 0 || options->threads > MAX_THREADS)
        return relayi_fail(log, RELAY_INVALID_ARGUMENT, "relay_device_options.threads: %d is not in 0..%d",
                           options->threads, MAX_THREADS);
    status = check_level(log, "relay_device_options.cpu_level", options->cpu_level, level);
    if (status == RELAY_OK) status = check_level(log, "RELAY_CPU", getenv("RELAY_CPU"), level);
    return status;
}

/* The name of the highest family that the flags hold in full. */
static const char *level_name(uint32_t flags) {
    static const uint32_t own[RELAYI_NUM_LEVELS] = {0, RELAYI_CPU_AVX2, RELAYI_CPU_AVX512,
                                                    RELAYI_CPU_AVX512BF16, RELAYI_CPU_AMX};
    int level = 0;
    for (int i = 1; i < RELAYI_NUM_LEVELS; i++)
        if (flags & own[i]) level = i;
    return relayi_level_names[level];
}

static void open_cpu(relay_device *device, const relay_device_options *options, int level) {
    device->kind = RELAY_DEVICE_CPU;
    device->threads = options->threads ? options->threads : omp_get_max_threads();
    device->flags = relayi_cpu_flags() & relayi_level_flags[level];
    device->level = level_name(device->flags);
    relayi_cpu_describe(device->name, sizeof device->name, device->features, sizeof device->features);
    relayi_kernels_ref(&device->kernels);
#if defined(__x86_64__)
    relayi_kernels_x86(&device->kernels, device->flags);
#endif
    relayi_log(device, RELAY_LOG_INFO, "%s, %d threads, level %s: f32 %s, f16 %s, bf16 %s",
               device->name, device->threads, device->level, device->kernels.attend[RELAYI_DT_F32].name,
               device->kernels.attend_16bit[RELAYI_DT_F16].name,
               device->kernels.attend_16bit[RELAYI_DT_BF16].name);
}

relay_status relay_device_open(const relay_device_options *options, relay_device **out) {
    if (out == NULL) return RELAY_NULL_POINTER;
    *out = NULL;
    if (options == NULL) return RELAY_NULL_POINTER;
    int level = RELAYI_NUM_LEVELS - 1;
    relay_device log = {0};
    if (options->struct_size == sizeof *options) log = log_only(options);
    relay_status status = check_options(&log, options, &level);
    if (status != RELAY_OK) return status;
    relay_device *device = relayi_alloc_array(1, sizeof *device);
    if (device == NULL) return relayi_fail(&log, RELAY_OUT_OF_MEMORY, "relay_device_open: no memory");
    device->log = options->log;
    device->log_user = options->log_user;
    if (options->kind == RELAY_DEVICE_CPU) open_cpu(device, options, level);
    else status = relayi_cuda_open(device, options->index);
    if (status == RELAY_OK) *out = device;
    else relayi_free(device);
    return status;
}

void relay_device_close(relay_device *device) { relayi_free(device); }

relay_status relay_device_get_info(const relay_device *device, relay_device_info *info) {
    if (device == NULL || info == NULL) return RELAY_NULL_POINTER;
    relay_status status = relayi_check_size(device, "relay_device_info", info->struct_size, sizeof *info);
    if (status != RELAY_OK) return status;
    *info = (relay_device_info){.struct_size = sizeof *info, .kind = device->kind,
                                .threads = device->threads, .name = device->name,
                                .features = device->features, .cpu_level = device->level};
    return RELAY_OK;
}

const relayi_attend_kernel *relayi_pick_attend(const relay_device *device, relay_dtype query_dtype,
                                               relay_dtype kv_dtype) {
    int dt = relayi_dt(kv_dtype);
    const relayi_attend_kernel *narrow = &device->kernels.attend_16bit[dt];
    if (query_dtype == kv_dtype && query_dtype != RELAY_F32) return narrow;
    return &device->kernels.attend[dt];
}

const char *relay_device_kernel_name(const relay_device *device, relay_dtype query_dtype,
                                     relay_dtype kv_dtype) {
    if (device == NULL || relay_dtype_size(query_dtype) == 0 || relay_dtype_size(kv_dtype) == 0)
        return "none";
    if (device->kind == RELAY_DEVICE_CUDA) return relayi_cuda_kernel_name(device, query_dtype, kv_dtype);
    return relayi_pick_attend(device, query_dtype, kv_dtype)->name;
}
