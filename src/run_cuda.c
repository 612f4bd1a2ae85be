/* One layer, a cache write or a fusion on a CUDA device: what the kernels cannot take is refused
 * here, then everything goes to librelayattn_cuda. */
#include <string.h>

#include "device_cuda.h"
#include "log.h"
#include "plan_cuda.h"

/* Up to so many (row, head) pairs a warp each would leave most of the device idle. */
#define SPLIT_MERGE_PAIRS 1024

static relay_status check_reachable(const relay_device *device, const char *name, const void *address) {
    if (address == NULL || device->cuda->reachable(device->gpu.index, address)) return RELAY_OK;
    return relayi_fail(device, RELAY_WRONG_DEVICE, "%s: %p is no memory of CUDA device %d", name, address,
                       device->gpu.index);
}

/* K/V travel 16 bytes at a time. */
static relay_status check_aligned(const relay_device *device, const char *name, const relay_tensor *tensor) {
    const int64_t unit = RELAYI_CUDA_ALIGNMENT / (int64_t)relay_dtype_size(tensor->dtype);
    if ((uintptr_t)tensor->data % RELAYI_CUDA_ALIGNMENT != 0)
        return relayi_fail(device, RELAY_MISALIGNED, "%s: data is not aligned to %d bytes", name, RELAYI_CUDA_ALIGNMENT);
    for (int32_t i = 0; i + 1 < tensor->ndim; i++)
        if (tensor->shape[i] > 1 && tensor->stride[i] % unit != 0)
            return relayi_fail(device, RELAY_BAD_STRIDE, "%s: stride[%d] is %lld, a CUDA device takes multiples of %lld",
                               name, i, (long long)tensor->stride[i], (long long)unit);
    return check_reachable(device, name, tensor->data);
}

static relay_status check_kv(const relay_plan *plan, const relay_run_args *args) {
    const relay_device *device = plan->device;
    relay_status status = RELAY_OK;
    if (plan->uses_pages) {
        status = check_aligned(device, "relay_run_args.key_pool", &args->key_pool);
        if (status == RELAY_OK) status = check_aligned(device, "relay_run_args.value_pool", &args->value_pool);
    }
    for (int32_t i = 0; status == RELAY_OK && i < plan->max_contiguous; i++) {
        if (args->contiguous[i].key.data == NULL) continue; /* no span of this index is in use */
        status = check_aligned(device, "relay_run_args.contiguous[].key", &args->contiguous[i].key);
        if (status == RELAY_OK)
            status = check_aligned(device, "relay_run_args.contiguous[].value", &args->contiguous[i].value);
    }
    return status;
}

static relay_status check_addresses(const relay_plan *plan, const relay_run_args *args) {
    const relay_device *device = plan->device;
    relay_status status = check_reachable(device, "relay_run_args.query", args->query.data);
    if (status == RELAY_OK) status = check_reachable(device, "relay_run_args.output", args->output.data);
    if (status == RELAY_OK) status = check_reachable(device, "relay_run_args.lse", args->lse.data);
    if (status == RELAY_OK) status = check_reachable(device, "relay_run_args.workspace", args->workspace);
    if (status == RELAY_OK) status = check_reachable(device, "relay_run_args.alibi_slopes", args->alibi_slopes);
    if (status == RELAY_OK) status = check_reachable(device, "relay_run_args.sinks", args->sinks);
    return status != RELAY_OK ? status : check_kv(plan, args);
}

/* Rows can be moved in words of `bytes`. */
static bool dense(const relay_tensor *tensor, int64_t bytes) {
    int64_t unit = bytes / (int64_t)relay_dtype_size(tensor->dtype);
    bool aligned = (uintptr_t)tensor->data % (uint64_t)bytes == 0;
    for (int i = 0; i < 2; i++) aligned = aligned && (tensor->shape[i] <= 1 || tensor->stride[i] % unit == 0);
    return aligned;
}

static void point_at_list(const relay_plan *plan, const relay_run_args *args, relayi_cuda_params *p) {
    const relayi_cuda_plan *cuda = plan->cuda;
    relayi_cuda_workspace map = relayi_cuda_plan_workspace(plan);
    char *workspace = args->workspace;
    p->list = workspace;
    p->units = cuda->units;
    p->unit_room = (int32_t)cuda->sizes.units;
    p->pieces = cuda->pieces;
    p->rows = cuda->rows;
    p->runs = cuda->runs;
    p->ids = cuda->ids;
    p->acc = (float *)(void *)(workspace + map.acc);
    p->lse = (float *)(void *)(workspace + map.lse);
}

static void point_at_tensors(const relay_run_args *args, relayi_cuda_params *p) {
    p->query = args->query.data;
    p->query_row = args->query.stride[0];
    p->query_head = args->query.stride[1];
    p->query_aligned = dense(&args->query, 16);
    p->output = args->output.data;
    p->output_row = args->output.stride[0];
    p->output_head = args->output.stride[1];
    p->output_aligned = dense(&args->output, 4);
    p->output_lse = args->lse.data;
    p->lse_row = args->lse.stride[0];
    p->lse_head = args->lse.stride[1];
    p->key_pool = args->key_pool.data;
    p->value_pool = args->value_pool.data;
    const int64_t *key = args->key_pool.stride, *value = args->value_pool.stride;
    p->key_block = key[0], p->key_token = key[1], p->key_head = key[2];
    p->value_block = value[0], p->value_token = value[1], p->value_head = value[2];
}

static void point_at_spans(const relay_plan *plan, const relay_run_args *args, relayi_cuda_attend *call) {
    call->num_contiguous = plan->max_contiguous;
    for (int32_t i = 0; i < plan->max_contiguous; i++) {
        const relay_kv_tensors *kv = &args->contiguous[i];
        call->contiguous[i] = (relayi_cuda_kv){.key = kv->key.data, .value = kv->value.data,
                                               .tokens = kv->key.data != NULL ? kv->key.shape[0] : 0,
                                               .key_token = kv->key.stride[0], .key_head = kv->key.stride[1],
                                               .value_token = kv->value.stride[0], .value_head = kv->value.stride[1]};
    }
}

/* The copy engine's maps: the heads of a token side by side, strides of less than 2^40 bytes. */
static bool mapped(const relay_tensor *tensor, int32_t head) {
    const int64_t most = (int64_t)1 << 38;
    int64_t dim = tensor->shape[head + 1];
    bool fits = tensor->shape[head] <= 1 || tensor->stride[head] == dim;
    for (int32_t i = 0; i < head; i++) fits = fits && tensor->stride[i] > 0 && tensor->stride[i] < most;
    return fits;
}

/* A list for the Hopper kernel runs on the general one where the tensors are not what it can take. */
static bool hopper_takes(const relay_plan *plan, const relay_run_args *args) {
    bool takes = plan->cuda->kernel == RELAYI_CUDA_HOPPER && dense(&args->query, RELAYI_CUDA_ALIGNMENT);
    if (plan->uses_pages) takes = takes && mapped(&args->key_pool, 2) && mapped(&args->value_pool, 2);
    for (int32_t i = 0; takes && i < plan->max_contiguous; i++) {
        const relay_kv_tensors *kv = &args->contiguous[i];
        takes = kv->key.data == NULL || (mapped(&kv->key, 1) && mapped(&kv->value, 1));
    }
    return takes;
}

static relayi_cuda_params make_params(const relay_plan *plan, const relay_run_args *args) {
    const relay_attention *a = &plan->attention;
    relayi_cuda_params p = {.heads = a->num_heads, .kv_heads = a->num_kv_heads, .group = plan->group,
                            .head_dim = a->head_dim, .block_size = relayi_forest_now(plan->forest)->block_size,
                            .slopes = args->alibi_slopes, .sinks = args->sinks, .scale = a->softmax_scale,
                            .soft_cap = a->logit_soft_cap, .window = a->sliding_window,
                            .sink_tokens = a->sliding_window > 0 ? a->num_sink_tokens : 0};
    p.by_heads = relayi_cuda_divide_by((uint32_t)p.heads);
    p.by_kv_heads = relayi_cuda_divide_by((uint32_t)p.kv_heads);
    p.by_group = relayi_cuda_divide_by((uint32_t)p.group);
    p.by_block_size = relayi_cuda_divide_by((uint32_t)p.block_size);
    point_at_list(plan, args, &p);
    point_at_tensors(args, &p);
    return p;
}

relay_status relayi_run_on_cuda(const relay_plan *plan, const relay_run_args *args) {
    const relayi_cuda_plan *cuda = plan->cuda;
    relayi_cuda_error error = {{0}};
    relay_status status = check_addresses(plan, args);
    if (status != RELAY_OK) return status;
    int64_t work = (cuda->bounded ? cuda->sizes.units : cuda->used.units) * plan->attention.num_kv_heads;
    relayi_cuda_attend call = {.device = plan->device->gpu.index, .stream = args->stream,
                               .dtype = plan->attention.kv_dtype, .output_dtype = plan->attention.output_dtype,
                               .host_list = cuda->list,
                               .list_bytes = args->plan_in_workspace ? 0 : cuda->list_bytes,
                               .max_rows = cuda->bounded ? plan->options.max_rows : plan->num_rows,
                               .copied = cuda->copied,
                               .max_work = work < INT32_MAX ? (int32_t)work : INT32_MAX,
                               .kernel = hopper_takes(plan, args) ? RELAYI_CUDA_HOPPER : RELAYI_CUDA_GENERAL,
                               .layout = cuda->layout,
                               .num_blocks = plan->uses_pages ? args->key_pool.shape[0] : 0,
                               .params = make_params(plan, args)};
    point_at_spans(plan, args, &call);
    /* a repeatable row is merged alike however many there are */
    call.split_merge = plan->options.repeatable || (int64_t)call.max_rows * plan->attention.num_heads <= SPLIT_MERGE_PAIRS;
    status = plan->device->cuda->attend(&call, &error);
    return status == RELAY_OK ? status : relayi_fail(plan->device, status, "relay_run: CUDA: %s", error.text);
}

relay_status relayi_write_on_cuda(const relay_device *device, const relay_cache_write_args *args) {
    relayi_cuda_error error = {{0}};
    if (args->num_slots == 0) return RELAY_OK;
    relay_status status = check_reachable(device, "relay_cache_write_args.key", args->key.data);
    if (status == RELAY_OK) status = check_reachable(device, "relay_cache_write_args.value", args->value.data);
    if (status == RELAY_OK) status = check_reachable(device, "relay_cache_write_args.key_pool", args->key_pool.data);
    if (status == RELAY_OK) status = check_reachable(device, "relay_cache_write_args.value_pool", args->value_pool.data);
    if (status == RELAY_OK) status = check_reachable(device, "relay_cache_write_args.slot_mapping", args->slot_mapping);
    if (status != RELAY_OK) return status;
    if (args->num_slots > INT32_MAX)
        return relayi_fail(device, RELAY_UNSUPPORTED, "relay_cache_write_args.num_slots: a CUDA device takes 2^31-1");
    relayi_cuda_write call = {.device = device->gpu.index, .stream = args->stream, .key = args->key,
                              .value = args->value, .key_pool = args->key_pool, .value_pool = args->value_pool,
                              .slots = args->slot_mapping, .num_slots = args->num_slots};
    status = device->cuda->write(&call, &error);
    return status == RELAY_OK ? status : relayi_fail(device, status, "relay_cache_write: CUDA: %s", error.text);
}

relay_status relayi_fuse_on_cuda(const relay_device *device, const relay_fuse_args *args) {
    relayi_cuda_error error = {{0}};
    if (args->num_parts > RELAYI_CUDA_MAX_PARTS)
        return relayi_fail(device, RELAY_UNSUPPORTED, "relay_fuse_args.num_parts: %d; a CUDA device merges %d at once",
                           args->num_parts, RELAYI_CUDA_MAX_PARTS);
    relay_status status = check_reachable(device, "relay_fuse_args.output", args->output.data);
    if (status == RELAY_OK) status = check_reachable(device, "relay_fuse_args.lse", args->lse.data);
    for (int32_t i = 0; status == RELAY_OK && i < args->num_parts; i++) {
        status = check_reachable(device, "relay_fuse_args.outputs[]", args->outputs[i].data);
        if (status == RELAY_OK) status = check_reachable(device, "relay_fuse_args.lses[]", args->lses[i].data);
    }
    if (status != RELAY_OK) return status;
    relayi_cuda_fuse call = {.device = device->gpu.index, .stream = args->stream, .num_parts = args->num_parts,
                             .outputs = args->outputs, .lses = args->lses, .output = args->output, .lse = args->lse};
    status = device->cuda->fuse(&call, &error);
    return status == RELAY_OK ? status : relayi_fail(device, status, "relay_fuse: CUDA: %s", error.text);
}
