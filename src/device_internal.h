#ifndef RELAY_DEVICE_INTERNAL_H
#define RELAY_DEVICE_INTERNAL_H

#include "cuda_ops.h"
#include "kernel.h"
#include "relay/device.h"

/* Immutable once opened, and so shareable. */
struct relay_device {
    relay_device_kind kind;
    int32_t threads;
    uint32_t flags;         /* RELAYI_CPU_* in use */
    const char *level;      /* name of the family in use */
    char name[128];
    char features[256];
    relayi_kernels kernels;
    const relayi_cuda_ops *cuda; /* of a CUDA device, else NULL */
    relayi_cuda_device gpu;
    relay_log_fn log;
    void *log_user;
};

/* Index into the tables of relayi_kernels; dtype must be valid. */
static inline int relayi_dt(relay_dtype dtype) {
    return dtype == RELAY_F32 ? RELAYI_DT_F32 : dtype == RELAY_F16 ? RELAYI_DT_F16 : RELAYI_DT_BF16;
}

/* The attend kernel for a pair of dtypes. */
const relayi_attend_kernel *relayi_pick_attend(const relay_device *device, relay_dtype query_dtype,
                                               relay_dtype kv_dtype);

#endif
