/* Fusion as a public operation: any number of parts, any strides. */
#include "relay/fusion.h"

#include <math.h>

#include "convert.h"
#include "device_cuda.h"
#include "tensor.h"

/* Elements merged at a time, so that the accumulator stays on the stack. */
#define BLOCK 256
#define PARALLEL_FROM_ELEMENTS 65536

relay_fuse_args relay_fuse_args_defaults(void) {
    return (relay_fuse_args){.struct_size = sizeof(relay_fuse_args)};
}

static bool same_tensor(const relay_tensor *a, const relay_tensor *b) {
    bool same = a->data == b->data && a->dtype == b->dtype && a->ndim == b->ndim;
    for (int32_t i = 0; same && i < a->ndim; i++)
        same = a->shape[i] == b->shape[i] && (a->stride[i] == b->stride[i] || a->shape[i] == 1);
    return same;
}

/* `target` may meet `source` only if both are one tensor and that is allowed. */
static relay_status check_apart(const relay_device *device, const char *target_name, const relay_tensor *target,
                                const char *source_name, int32_t index, const relay_tensor *source, bool may_be_same) {
    if (target->data == NULL || !relayi_tensors_overlap(target, source)) return RELAY_OK;
    if (may_be_same && same_tensor(target, source)) return RELAY_OK;
    return relayi_fail(device, RELAY_OVERLAP, "relay_fuse_args.%s overlaps %s[%d]", target_name, source_name, index);
}

static relay_status check_part(const relay_device *device, const relay_fuse_args *args, int32_t i,
                               const relayi_expect *output, const relayi_expect *lse) {
    relay_status status = relayi_check_tensor(device, &args->outputs[i], output);
    if (status == RELAY_OK) status = relayi_check_tensor(device, &args->lses[i], lse);
    if (status == RELAY_OK)
        status = check_apart(device, "output", &args->output, "outputs", i, &args->outputs[i], i == 0);
    if (status == RELAY_OK)
        status = check_apart(device, "output", &args->output, "lses", i, &args->lses[i], false);
    if (status == RELAY_OK)
        status = check_apart(device, "lse", &args->lse, "outputs", i, &args->outputs[i], false);
    if (status == RELAY_OK) status = check_apart(device, "lse", &args->lse, "lses", i, &args->lses[i], i == 0);
    return status;
}

static relay_status check_args(const relay_device *device, const relay_fuse_args *args) {
    relay_status status = relayi_check_size(device, "relay_fuse_args", args->struct_size, sizeof *args);
    if (status != RELAY_OK) return status;
    if (args->stream != NULL && device->kind == RELAY_DEVICE_CPU)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT, "relay_fuse_args.stream: the CPU has no streams");
    if (args->num_parts < 1)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT, "relay_fuse_args.num_parts: %d, expected >= 1",
                           args->num_parts);
    if (args->outputs == NULL || args->lses == NULL)
        return relayi_fail(device, RELAY_NULL_POINTER, "relay_fuse_args.%s is NULL",
                           args->outputs == NULL ? "outputs" : "lses");
    relayi_expect output = {.name = "relay_fuse_args.output", .ndim = 3, .shape = {-1, -1, -1}, .dense_last = true};
    status = relayi_check_tensor(device, &args->output, &output);
    if (status != RELAY_OK) return status;
    for (int i = 0; i < 3; i++) output.shape[i] = args->output.shape[i];
    output.name = "relay_fuse_args.outputs[]";
    relayi_expect lse = {.name = "relay_fuse_args.lse", .ndim = 2, .shape = {output.shape[0], output.shape[1]},
                         .dtype = RELAY_F32};
    if (args->lse.data != NULL) status = relayi_check_tensor(device, &args->lse, &lse);
    if (status == RELAY_OK) status = check_apart(device, "output", &args->output, "lse", 0, &args->lse, false);
    lse.name = "relay_fuse_args.lses[]";
    for (int32_t i = 0; status == RELAY_OK && i < args->num_parts; i++)
        status = check_part(device, args, i, &output, &lse);
    return status;
}

/* The lse of one part of a row; +INFINITY marks an empty row for some producers. */
static float lse_of(const relay_fuse_args *args, int32_t part, int64_t t, int64_t h) {
    const relay_tensor *lse = &args->lses[part];
    float value = ((const float *)lse->data)[t * lse->stride[0] + h * lse->stride[1]];
    return value == INFINITY ? -INFINITY : value;
}

static void merge_block(const relayi_kernels *kernels, const relay_fuse_args *args, int64_t t, int64_t h,
                        float top, float denominator, int64_t begin, int32_t count) {
    float merged[BLOCK] = {0}, part[BLOCK];
    bool first = true; /* taken as it is, not added to 0: that would lose the sign of -0 */
    for (int32_t i = 0; i < args->num_parts; i++) {
        float lse = lse_of(args, i, t, h);
        if (lse == -INFINITY) continue;
        const relay_tensor *from = &args->outputs[i];
        float weight = expf(lse - top) / denominator;
        relayi_load_f32(kernels, from, t * from->stride[0] + h * from->stride[1] + begin, part, count);
        for (int32_t d = 0; d < count; d++) merged[d] = first ? weight * part[d] : merged[d] + weight * part[d];
        first = false;
    }
    relayi_store_f32(kernels, &args->output, t * args->output.stride[0] + h * args->output.stride[1] + begin,
                     merged, count);
}

static void merge_row(const relayi_kernels *kernels, const relay_fuse_args *args, int64_t t, int64_t h) {
    float top = -INFINITY, denominator = 0.0f;
    for (int32_t i = 0; i < args->num_parts; i++) {
        float lse = lse_of(args, i, t, h);
        if (lse > top || isnan(lse)) top = lse; /* a NaN stays: nothing compares greater */
    }
    for (int32_t i = 0; top != -INFINITY && i < args->num_parts; i++)
        denominator += expf(lse_of(args, i, t, h) - top);
    for (int64_t d = 0; d < args->output.shape[2]; d += BLOCK) {
        int64_t rest = args->output.shape[2] - d;
        merge_block(kernels, args, t, h, top, denominator, d, rest < BLOCK ? (int32_t)rest : BLOCK);
    }
    if (args->lse.data != NULL)
        ((float *)args->lse.data)[t * args->lse.stride[0] + h * args->lse.stride[1]] =
            top == -INFINITY ? top : top + logf(denominator);
}

relay_status relay_fuse(relay_device *device, const relay_fuse_args *args) {
    if (device == NULL || args == NULL) return RELAY_NULL_POINTER;
    relay_status status = check_args(device, args);
    if (status != RELAY_OK) return status;
    if (device->kind == RELAY_DEVICE_CUDA) return relayi_fuse_on_cuda(device, args);
    int64_t heads = args->output.shape[1], rows = args->output.shape[0] * heads;
    int threads = rows * args->output.shape[2] < PARALLEL_FROM_ELEMENTS ? 1 : device->threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i++) merge_row(&device->kernels, args, i / heads, i % heads);
    return RELAY_OK;
}
