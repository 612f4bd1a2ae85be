#include "tensor.h"

#include <inttypes.h>

static relay_tensor dense(void *data, relay_dtype dtype, int32_t ndim, const int64_t *shape) {
    relay_tensor tensor = {.data = data, .dtype = dtype, .ndim = ndim};
    int64_t stride = 1;
    for (int32_t i = ndim - 1; i >= 0; i--) {
        tensor.shape[i] = shape[i];
        tensor.stride[i] = stride;
        stride *= shape[i];
    }
    return tensor;
}

relay_tensor relay_tensor_2d(void *data, relay_dtype dtype, int64_t d0, int64_t d1) {
    return dense(data, dtype, 2, (int64_t[]){d0, d1});
}

relay_tensor relay_tensor_3d(void *data, relay_dtype dtype, int64_t d0, int64_t d1, int64_t d2) {
    return dense(data, dtype, 3, (int64_t[]){d0, d1, d2});
}

relay_tensor relay_tensor_4d(void *data, relay_dtype dtype, int64_t d0, int64_t d1, int64_t d2,
                             int64_t d3) {
    return dense(data, dtype, 4, (int64_t[]){d0, d1, d2, d3});
}

static relay_status check_shape(const relay_device *device, const relay_tensor *tensor,
                                const relayi_expect *expect) {
    if (tensor->ndim != expect->ndim)
        return relayi_fail(device, RELAY_BAD_SHAPE, "%s: %d dimensions, expected %d", expect->name,
                           tensor->ndim, expect->ndim);
    for (int32_t i = 0; i < expect->ndim; i++) {
        int64_t want = expect->shape[i], have = tensor->shape[i];
        bool fits = have >= 0 && (want < 0 || have == want || (i == 0 && expect->min_first && have > want));
        if (!fits)
            return relayi_fail(device, RELAY_BAD_SHAPE,
                               "%s: shape[%d] is %" PRId64 ", expected %s%" PRId64, expect->name, i, have,
                               want < 0 || (i == 0 && expect->min_first) ? "at least " : "",
                               want < 0 ? 0 : want);
    }
    return RELAY_OK;
}

/* Strides are positive where they matter, and the last element's offset fits 62 bits. */
static relay_status check_strides(const relay_device *device, const relay_tensor *tensor,
                                  const relayi_expect *expect) {
    int64_t reach = 0;
    for (int32_t i = 0; i < tensor->ndim; i++) {
        int64_t extent = tensor->shape[i], stride = tensor->stride[i];
        if (extent <= 1) continue;
        if (stride <= 0 || stride > (INT64_MAX / 4 - reach) / (extent - 1))
            return relayi_fail(device, RELAY_BAD_STRIDE, "%s: stride[%d] is %" PRId64, expect->name, i,
                               stride);
        reach += stride * (extent - 1);
    }
    int32_t last = tensor->ndim - 1;
    if (expect->dense_last && tensor->shape[last] > 1 && tensor->stride[last] != 1)
        return relayi_fail(device, RELAY_BAD_STRIDE, "%s: stride[%d] is %" PRId64 ", expected 1",
                           expect->name, last, tensor->stride[last]);
    return RELAY_OK;
}

static bool is_empty(const relay_tensor *tensor) {
    for (int32_t i = 0; i < tensor->ndim; i++)
        if (tensor->shape[i] == 0) return true;
    return false;
}

relay_status relayi_check_tensor(const relay_device *device, const relay_tensor *tensor,
                                 const relayi_expect *expect) {
    size_t size = relay_dtype_size(tensor->dtype);
    if (size == 0 || (expect->dtype != 0 && tensor->dtype != expect->dtype))
        return relayi_fail(device, RELAY_BAD_DTYPE, "%s: dtype %s (%d), expected %s", expect->name,
                           relay_dtype_name(tensor->dtype), (int)tensor->dtype,
                           expect->dtype ? relay_dtype_name(expect->dtype) : "f32, f16 or bf16");
    relay_status status = check_shape(device, tensor, expect);
    if (status == RELAY_OK) status = check_strides(device, tensor, expect);
    if (status != RELAY_OK || is_empty(tensor)) return status;
    if (tensor->data == NULL)
        return relayi_fail(device, RELAY_NULL_POINTER, "%s: data is NULL", expect->name);
    if ((uintptr_t)tensor->data % size != 0)
        return relayi_fail(device, RELAY_MISALIGNED, "%s: data is not aligned to %zu bytes",
                           expect->name, size);
    return RELAY_OK;
}

void relayi_tensor_bytes(const relay_tensor *tensor, const char **first, const char **end) {
    *first = *end = tensor->data;
    if (tensor->data == NULL || is_empty(tensor)) return;
    int64_t reach = 1;
    for (int32_t i = 0; i < tensor->ndim; i++)
        if (tensor->shape[i] > 1) reach += (tensor->shape[i] - 1) * tensor->stride[i];
    *end += (uint64_t)reach * relay_dtype_size(tensor->dtype);
}

bool relayi_tensors_overlap(const relay_tensor *a, const relay_tensor *b) {
    const char *a_first, *a_end, *b_first, *b_end;
    relayi_tensor_bytes(a, &a_first, &a_end);
    relayi_tensor_bytes(b, &b_first, &b_end);
    return a_first < a_end && b_first < b_end && (uintptr_t)a_first < (uintptr_t)b_end &&
           (uintptr_t)b_first < (uintptr_t)a_end;
}
