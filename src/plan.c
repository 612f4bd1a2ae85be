#include "plan_internal.h"

#include "device_cuda.h"
#include "log.h"
#include "plan_build.h"
#include "plan_cuda.h"

relay_attention relay_attention_defaults(void) {
    return (relay_attention){.struct_size = sizeof(relay_attention), .query_dtype = RELAY_BF16,
                             .kv_dtype = RELAY_BF16, .output_dtype = RELAY_BF16};
}

relay_plan_options relay_plan_options_defaults(void) {
    return (relay_plan_options){.struct_size = sizeof(relay_plan_options)};
}

/* The fast kernel where it computes all that this attention asks for, the reference otherwise. */
static relayi_attend_kernel pick_kernel(const relay_device *device, const relay_attention *a) {
    relayi_attend_kernel fast = *relayi_pick_attend(device, a->query_dtype, a->kv_dtype);
    int32_t needed = (a->logit_soft_cap > 0.0f ? RELAYI_DOES_SOFT_CAP : 0) |
                     (a->use_alibi ? RELAYI_DOES_ALIBI : 0) |
                     (a->num_sink_tokens > 0 ? RELAYI_DOES_SINK_TOKENS : 0);
    if ((fast.features & needed) == needed && a->head_dim % fast.head_dim_multiple == 0) return fast;
    relayi_kernels reference;
    relayi_kernels_ref(&reference);
    relayi_attend_kernel kernel = reference.attend[relayi_dt(a->kv_dtype)];
    relayi_log(device, RELAY_LOG_INFO, "%s does not compute this attention; %s does", fast.name, kernel.name);
    return kernel;
}

/* What a plan needs of its device's kind. */
static relay_status prepare(relay_plan *plan) {
    if (plan->device->kind == RELAY_DEVICE_CPU) {
        plan->kernel = pick_kernel(plan->device, &plan->attention);
        return RELAY_OK;
    }
    relay_status status = relayi_cuda_check_attention(plan->device, &plan->attention);
    if (status != RELAY_OK) return status;
    plan->kernel.name = relayi_cuda_kernel_name(plan->device, plan->attention.query_dtype, plan->attention.kv_dtype);
    return relayi_cuda_plan_create(plan);
}

relay_status relay_plan_create(relay_device *device, const relay_attention *attention,
                               const relay_plan_options *options, relay_plan **out) {
    if (out == NULL) return RELAY_NULL_POINTER;
    *out = NULL;
    if (device == NULL || attention == NULL) return RELAY_NULL_POINTER;
    relay_plan_options chosen = options ? *options : relay_plan_options_defaults();
    relay_status status = relayi_check_size(device, "relay_attention", attention->struct_size, sizeof *attention);
    if (status == RELAY_OK) status = relayi_check_plan_options(device, &chosen);
    if (status != RELAY_OK) return status;
    relay_attention checked = *attention;
    status = relayi_check_attention(device, &checked);
    if (status != RELAY_OK) return status;
    relay_plan *plan = relayi_alloc_array(1, sizeof *plan);
    if (plan == NULL) return relayi_fail(device, RELAY_OUT_OF_MEMORY, "relay_plan_create: no memory");
    plan->device = device;
    plan->attention = checked;
    plan->options = chosen;
    plan->group = checked.num_heads / checked.num_kv_heads;
    status = prepare(plan);
    if (status == RELAY_OK) *out = plan;
    else relay_plan_destroy(plan);
    return status;
}

void relay_plan_destroy(relay_plan *plan) {
    if (plan == NULL) return;
    relayi_cuda_plan_destroy(plan);
    relayi_shrink(&plan->row_memory);
    relayi_shrink(&plan->item_memory);
    relayi_shrink(&plan->piece_memory);
    relayi_shrink(&plan->mark_memory);
    relayi_free(plan);
}

relay_status relay_plan_build(relay_plan *plan, const relay_forest *forest) {
    if (plan == NULL || forest == NULL) return RELAY_NULL_POINTER;
    plan->forest = NULL;
    relay_status status = relayi_check_plan_forest(plan, forest);
    if (status != RELAY_OK) return status;
    if (plan->cuda != NULL) status = relayi_cuda_plan_build(plan, relayi_forest_now(forest));
    else if (!relayi_build(plan, relayi_forest_now(forest)))
        status = relayi_fail(plan->device, RELAY_OUT_OF_MEMORY, "relay_plan_build: no memory for the plan");
    if (status != RELAY_OK) return status;
    plan->forest = forest;
    plan->generation = forest->generation;
    relayi_log(plan->device, RELAY_LOG_DEBUG,
               "plan: %d requests, %d rows, %d segments relayed, %d plain, %lld tokens saved, %d items, %s",
               plan->info.num_requests, plan->info.num_rows, plan->info.relay_segments,
               plan->info.plain_segments, (long long)plan->info.shared_tokens_saved,
               plan->info.num_work_items, plan->kernel.name);
    return RELAY_OK;
}

static size_t take(size_t *used, size_t bytes) {
    size_t at = *used;
    *used += (bytes + RELAYI_ALIGNMENT - 1) / RELAYI_ALIGNMENT * RELAYI_ALIGNMENT;
    return at;
}

relayi_workspace relayi_plan_workspace(const relay_plan *plan) {
    relayi_workspace map = {0};
    if (plan->cuda != NULL) {
        map.bytes = relayi_cuda_plan_workspace(plan).bytes;
        return map;
    }
    if (plan->num_items == 0) return map;
    size_t dim = (size_t)plan->attention.head_dim, rows = RELAYI_MAX_ROWS;
    size_t states = (size_t)plan->max_parts * (size_t)plan->num_rows * (size_t)plan->attention.num_heads;
    map.acc = take(&map.bytes, states * dim * sizeof(float));
    map.max = take(&map.bytes, states * sizeof(float));
    map.sum = take(&map.bytes, states * sizeof(float));
    map.cursors = take(&map.bytes, 4 * RELAYI_ALIGNMENT);
    map.query = take(&map.per_thread, rows * dim * sizeof(float));
    map.range = take(&map.per_thread, rows * sizeof(relayi_range));
    map.slope = take(&map.per_thread, rows * sizeof(float));
    map.kernel = take(&map.per_thread, plan->kernel.scratch_bytes);
    map.threads = take(&map.bytes, map.per_thread * (size_t)plan->device->threads);
    return map;
}

size_t relay_plan_workspace_bytes(const relay_plan *plan) {
    return plan && plan->forest ? relayi_plan_workspace(plan).bytes : 0;
}

relay_status relay_plan_get_info(const relay_plan *plan, relay_plan_info *info) {
    if (plan == NULL || info == NULL) return RELAY_NULL_POINTER;
    relay_status status = relayi_check_size(plan->device, "relay_plan_info", info->struct_size, sizeof *info);
    if (status != RELAY_OK) return status;
    if (plan->forest == NULL)
        return relayi_fail(plan->device, RELAY_STALE_PLAN, "relay_plan_get_info: the plan is not built");
    *info = plan->info;
    info->struct_size = sizeof *info;
    info->kernel = plan->kernel.name;
    return RELAY_OK;
}
