/* The CUDA side of devices, plans and runs; each is called where the device's kind says so. */
#ifndef RELAY_DEVICE_CUDA_H
#define RELAY_DEVICE_CUDA_H

#include "plan_internal.h"
#include "relay/fusion.h"
#include "relay/run.h"

/* Fills a device whose log is set.  Errors: NO_DEVICE, OUT_OF_MEMORY, DEVICE_ERROR. */
relay_status relayi_cuda_open(relay_device *device, int32_t index);
relay_status relayi_cuda_calibrate(const relay_device *device, relay_calibration *result);
/* The fastest kernel that the device has for these dtypes; or the given one. */
const char *relayi_cuda_kernel_name(const relay_device *device, relay_dtype query, relay_dtype kv);
const char *relayi_cuda_name_of(const relay_device *device, relayi_cuda_kernel kernel, relay_dtype query, relay_dtype kv);
bool relayi_cuda_is_hopper(const relay_device *device);

/* What no CUDA kernel computes.  UNSUPPORTED. */
relay_status relayi_cuda_check_attention(const relay_device *device, const relay_attention *attention);

/* Arguments that relayi_check_run, or the operation's own check, has passed. */
relay_status relayi_run_on_cuda(const relay_plan *plan, const relay_run_args *args);
relay_status relayi_write_on_cuda(const relay_device *device, const relay_cache_write_args *args);
relay_status relayi_fuse_on_cuda(const relay_device *device, const relay_fuse_args *args);

#endif
