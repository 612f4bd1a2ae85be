/* New K/V into the pages that a run reads. */
#include "convert.h"
#include "device_cuda.h"
#include "relay/run.h"
#include "tensor.h"

#define PARALLEL_FROM_ELEMENTS 262144 /* some 100 us of one thread: waking another may take as long */
#define BLOCK 256

relay_cache_write_args relay_cache_write_args_defaults(void) {
    return (relay_cache_write_args){.struct_size = sizeof(relay_cache_write_args)};
}

static relay_status check_tensors(const relay_device *device, const relay_cache_write_args *args) {
    relayi_expect source = {.name = "relay_cache_write_args.key", .ndim = 3, .shape = {args->num_slots, -1, -1},
                            .min_first = true, .dense_last = true};
    relay_status status = relayi_check_tensor(device, &args->key, &source);
    if (status != RELAY_OK) return status;
    source.name = "relay_cache_write_args.value";
    for (int i = 1; i < 3; i++) source.shape[i] = args->key.shape[i];
    status = relayi_check_tensor(device, &args->value, &source);
    if (status != RELAY_OK) return status;
    relayi_expect pool = {.name = "relay_cache_write_args.key_pool", .ndim = 4,
                          .shape = {-1, -1, args->key.shape[1], args->key.shape[2]}, .dense_last = true};
    status = relayi_check_tensor(device, &args->key_pool, &pool);
    if (status != RELAY_OK) return status;
    pool.name = "relay_cache_write_args.value_pool";
    pool.dtype = args->key_pool.dtype;
    pool.shape[0] = args->key_pool.shape[0];
    pool.shape[1] = args->key_pool.shape[1];
    return relayi_check_tensor(device, &args->value_pool, &pool);
}

static relay_status check_overlap(const relay_device *device, const relay_cache_write_args *args) {
    const relay_tensor *pools[] = {&args->key_pool, &args->value_pool}, *sources[] = {&args->key, &args->value};
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++)
            if (relayi_tensors_overlap(pools[i], sources[j]))
                return relayi_fail(device, RELAY_OVERLAP, "relay_cache_write_args.%s_pool overlaps %s",
                                   i ? "value" : "key", j ? "value" : "key");
    return RELAY_OK;
}

static relay_status check_args(const relay_device *device, const relay_cache_write_args *args) {
    relay_status status = relayi_check_size(device, "relay_cache_write_args", args->struct_size, sizeof *args);
    if (status != RELAY_OK) return status;
    if (args->stream != NULL && device->kind == RELAY_DEVICE_CPU)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT, "relay_cache_write_args.stream: the CPU has no streams");
    if (args->num_slots < 0)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT, "relay_cache_write_args.num_slots: %lld",
                           (long long)args->num_slots);
    if (args->num_slots > 0 && args->slot_mapping == NULL)
        return relayi_fail(device, RELAY_NULL_POINTER, "relay_cache_write_args.slot_mapping is NULL");
    status = check_tensors(device, args);
    if (status == RELAY_OK) status = check_overlap(device, args);
    if (status != RELAY_OK || device->kind == RELAY_DEVICE_CUDA) return status; /* its slots are not ours to read */
    int64_t blocks = args->key_pool.shape[0], block_size = args->key_pool.shape[1];
    for (int64_t i = 0; i < args->num_slots; i++)
        if (args->slot_mapping[i] >= 0 && (block_size == 0 || args->slot_mapping[i] / block_size >= blocks))
            return relayi_fail(device, RELAY_OUT_OF_RANGE,
                               "relay_cache_write_args.slot_mapping[%lld]: %lld is outside %lld blocks of %lld",
                               (long long)i, (long long)args->slot_mapping[i], (long long)blocks,
                               (long long)block_size);
    return RELAY_OK;
}

static void write_head(const relayi_kernels *kernels, const relay_tensor *source, int64_t from,
                       const relay_tensor *pool, int64_t to) {
    int64_t dim = source->shape[2];
    if (source->dtype == pool->dtype) { /* bit by bit, NaN payloads too */
        size_t size = relay_dtype_size(pool->dtype);
        memcpy((char *)pool->data + to * (int64_t)size, (const char *)source->data + from * (int64_t)size,
               (size_t)dim * size);
        return;
    }
    float block[BLOCK];
    for (int64_t d = 0; d < dim; d += BLOCK) {
        int64_t count = dim - d < BLOCK ? dim - d : BLOCK;
        relayi_load_f32(kernels, source, from + d, block, count);
        relayi_store_f32(kernels, pool, to + d, block, count);
    }
}

static void write_token(const relayi_kernels *kernels, const relay_tensor *source, int64_t token,
                        const relay_tensor *pool, int64_t slot) {
    int64_t block = slot / pool->shape[1], offset = slot % pool->shape[1];
    for (int64_t head = 0; head < source->shape[1]; head++)
        write_head(kernels, source, token * source->stride[0] + head * source->stride[1], pool,
                   block * pool->stride[0] + offset * pool->stride[1] + head * pool->stride[2]);
}

relay_status relay_cache_write(relay_device *device, const relay_cache_write_args *args) {
    if (device == NULL || args == NULL) return RELAY_NULL_POINTER;
    relay_status status = check_args(device, args);
    if (status != RELAY_OK) return status;
    if (device->kind == RELAY_DEVICE_CUDA) return relayi_write_on_cuda(device, args);
    int64_t elements = args->num_slots * args->key.shape[1] * args->key.shape[2];
    int threads = elements < PARALLEL_FROM_ELEMENTS ? 1 : device->threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < args->num_slots; i++) {
        if (args->slot_mapping[i] < 0) continue;
        write_token(&device->kernels, &args->key, i, &args->key_pool, args->slot_mapping[i]);
        write_token(&device->kernels, &args->value, i, &args->value_pool, args->slot_mapping[i]);
    }
    return RELAY_OK;
}
