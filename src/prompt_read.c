/* Packed tokens back as rows of float32. */
#include <string.h>

#include "device_internal.h"
#include "log.h"
#include "prompt_internal.h"
#include "tensor.h"

#define MAX_HEAD_DIM 256

/* Whether two elements of a [n, heads, dim] tensor with a dense last dimension share memory. */
static bool overlaps_itself(const relay_tensor *tensor) {
    int64_t rows = tensor->shape[0], heads = tensor->shape[1], dim = tensor->shape[2];
    int64_t row = tensor->stride[0], head = tensor->stride[1];
    if (rows <= 1) return heads > 1 && head < dim;
    if (heads <= 1) return row < dim;
    bool rows_outside = head >= dim && row >= head * (heads - 1) + dim;
    bool heads_outside = row >= dim && head >= row * (rows - 1) + dim;
    return !rows_outside && !heads_outside;
}

static relay_status check_output(const relay_prompt *prompt, const char *name,
                                 const relay_tensor *tensor, int32_t first_token) {
    const relay_device *device = prompt->cache->device;
    const relay_prompt_cache_options *options = &prompt->cache->options;
    relayi_expect expect = {.name = name, .ndim = 3, .dense_last = true, .dtype = RELAY_F32,
                            .shape = {-1, options->num_kv_heads, options->head_dim}};
    relay_status status = relayi_check_tensor(device, tensor, &expect);
    if (status != RELAY_OK) return status;
    if (first_token < 0 || tensor->shape[0] > (int64_t)prompt->num_tokens - first_token)
        return relayi_fail(device, RELAY_OUT_OF_RANGE, "%s: first_token %d and %lld tokens, the prompt has %d",
                           name, first_token, (long long)tensor->shape[0], prompt->num_tokens);
    if (overlaps_itself(tensor))
        return relayi_fail(device, RELAY_BAD_STRIDE, "%s: elements share memory", name);
    return RELAY_OK;
}

static relay_status check_read(const relay_prompt *prompt, int32_t layer, int32_t first_token,
                               const relay_tensor *key, const relay_tensor *value) {
    const relay_device *device = prompt->cache->device;
    relay_status status = RELAY_OK;
    if (layer < 0 || layer >= prompt->cache->options.num_layers)
        return relayi_fail(device, RELAY_OUT_OF_RANGE, "relay_prompt_read: layer is %d, the cache has %d",
                           layer, prompt->cache->options.num_layers);
    if (key != NULL) status = check_output(prompt, "relay_prompt_read.key", key, first_token);
    if (status == RELAY_OK && value != NULL)
        status = check_output(prompt, "relay_prompt_read.value", value, first_token);
    if (status == RELAY_OK && key != NULL && value != NULL && relayi_tensors_overlap(key, value))
        return relayi_fail(device, RELAY_OVERLAP, "relay_prompt_read: key and value overlap");
    return status;
}

static int64_t offset_of(const relay_prompt_cache_options *options, bool is_key, int64_t token, int32_t d) {
    bool pairs = options->kv_dtype == RELAY_BF16;
    int32_t n = (int32_t)(token % RELAYI_TILE);
    return token / RELAYI_TILE * relayi_tile_elements(options->head_dim) +
           (is_key ? relayi_k_offset(pairs, n, d) : relayi_v_offset(pairs, options->head_dim, n, d));
}

static void read_row(const relay_prompt *prompt, const void *area, bool is_key, int64_t token, float *row) {
    const relay_prompt_cache_options *options = &prompt->cache->options;
    const relayi_kernels *kernels = &prompt->cache->device->kernels;
    uint16_t half[MAX_HEAD_DIM];
    for (int32_t d = 0; d < options->head_dim; d++) {
        int64_t offset = offset_of(options, is_key, token, d);
        if (options->kv_dtype == RELAY_F32)
            row[d] = ((const float *)area)[offset];
        else
            half[d] = ((const uint16_t *)area)[offset];
    }
    if (options->kv_dtype == RELAY_BF16) kernels->bf16_to_f32(half, row, options->head_dim);
    if (options->kv_dtype == RELAY_F16) kernels->f16_to_f32(half, row, options->head_dim);
}

static void read_tensor(const relay_prompt *prompt, int32_t layer, int32_t first_token, bool is_key,
                        const relay_tensor *to) {
    const void *key, *value;
    for (int32_t head = 0; head < prompt->cache->options.num_kv_heads; head++) {
        relayi_prompt_head(prompt, layer, head, &key, &value);
        for (int64_t i = 0; i < to->shape[0]; i++)
            read_row(prompt, is_key ? key : value, is_key, first_token + i,
                     (float *)to->data + i * to->stride[0] + head * to->stride[1]);
    }
}

relay_status relay_prompt_read(const relay_prompt *prompt, int32_t layer, int32_t first_token,
                               relay_tensor *key, relay_tensor *value) {
    if (prompt == NULL) return RELAY_NULL_POINTER;
    relay_status status = check_read(prompt, layer, first_token, key, value);
    if (status != RELAY_OK) return status;
    if (key != NULL) read_tensor(prompt, layer, first_token, true, key);
    if (value != NULL) read_tensor(prompt, layer, first_token, false, value);
    return RELAY_OK;
}
