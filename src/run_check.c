#include <inttypes.h>

#include "run_internal.h"
#include "tensor.h"

/* Rows that the tensors must have: a graph's later batches may be larger than this one. */
static int64_t rows_needed(const relay_plan *plan) {
    return plan->cuda != NULL && plan->options.max_requests > 0 ? plan->options.max_rows : plan->num_rows;
}

static relay_status check_query_output(const relay_plan *plan, const relay_run_args *args) {
    const relay_attention *a = &plan->attention;
    int64_t rows = rows_needed(plan);
    relayi_expect expect = {.name = "relay_run_args.query", .ndim = 3, .min_first = true, .dense_last = true,
                            .shape = {rows, a->num_heads, a->head_dim}, .dtype = a->query_dtype};
    relay_status status = relayi_check_tensor(plan->device, &args->query, &expect);
    if (status != RELAY_OK) return status;
    expect.name = "relay_run_args.output";
    expect.dtype = a->output_dtype;
    status = relayi_check_tensor(plan->device, &args->output, &expect);
    if (status != RELAY_OK || args->lse.data == NULL) return status;
    relayi_expect lse = {.name = "relay_run_args.lse", .ndim = 2, .min_first = true,
                         .shape = {rows, a->num_heads}, .dtype = RELAY_F32};
    return relayi_check_tensor(plan->device, &args->lse, &lse);
}

static relay_status check_pool(const relay_plan *plan, const char *name, const relay_tensor *pool) {
    const relayi_forest_content *content = relayi_forest_now(plan->forest);
    relayi_expect expect = {.name = name, .ndim = 4, .min_first = true, .dense_last = true,
                            .shape = {content->num_blocks, content->block_size, plan->attention.num_kv_heads,
                                      plan->attention.head_dim},
                            .dtype = plan->attention.kv_dtype};
    if (pool->data == NULL)
        return relayi_fail(plan->device, RELAY_NULL_POINTER, "%s: data is NULL, but the forest has pages", name);
    return relayi_check_tensor(plan->device, pool, &expect);
}

/* Spans of a forest reach as far as its longest contiguous one of the same index. */
static relay_status check_contiguous_span(const relay_plan *plan, const relay_run_args *args,
                                          const relay_kv_span *span) {
    if (span->layout != RELAY_KV_CONTIGUOUS || span->length == 0) return RELAY_OK;
    const relay_kv_tensors *kv = &args->contiguous[span->tensor_index];
    relayi_expect expect = {.name = "relay_run_args.contiguous[].key", .ndim = 3, .min_first = true,
                            .dense_last = true,
                            .shape = {span->length, plan->attention.num_kv_heads, plan->attention.head_dim},
                            .dtype = plan->attention.kv_dtype};
    relay_status status = relayi_check_tensor(plan->device, &kv->key, &expect);
    expect.name = "relay_run_args.contiguous[].value";
    return status != RELAY_OK ? status : relayi_check_tensor(plan->device, &kv->value, &expect);
}

static relay_status check_contiguous(const relay_plan *plan, const relay_run_args *args) {
    const relayi_forest_content *content = relayi_forest_now(plan->forest);
    if (plan->max_contiguous == 0) return RELAY_OK;
    if (args->contiguous == NULL)
        return relayi_fail(plan->device, RELAY_NULL_POINTER,
                           "relay_run_args.contiguous is NULL, but the forest has contiguous spans");
    if (args->num_contiguous < plan->max_contiguous)
        return relayi_fail(plan->device, RELAY_OUT_OF_RANGE,
                           "relay_run_args.num_contiguous: %d, but the forest uses tensor_index %d",
                           args->num_contiguous, plan->max_contiguous - 1);
    relay_status status = RELAY_OK;
    for (int32_t s = 0; status == RELAY_OK && s < content->num_segments; s++)
        status = check_contiguous_span(plan, args, &content->segments[s].kv);
    for (int32_t r = 0; status == RELAY_OK && r < content->num_requests; r++)
        status = check_contiguous_span(plan, args, &content->own[r]);
    return status;
}

static relay_status check_kv(const relay_plan *plan, const relay_run_args *args) {
    relay_status status = RELAY_OK;
    if (plan->uses_pages) {
        status = check_pool(plan, "relay_run_args.key_pool", &args->key_pool);
        if (status == RELAY_OK) status = check_pool(plan, "relay_run_args.value_pool", &args->value_pool);
    }
    if (status == RELAY_OK) status = check_contiguous(plan, args);
    if (status == RELAY_OK && (args->layer < 0 || args->layer >= plan->packed_layers))
        return relayi_fail(plan->device, RELAY_OUT_OF_RANGE,
                           "relay_run_args.layer: %d, but the packed prompts have %d layers", args->layer,
                           plan->packed_layers);
    return status;
}

static relay_status check_per_head(const relay_plan *plan, const relay_run_args *args) {
    if (plan->attention.use_alibi != (args->alibi_slopes != NULL))
        return relayi_fail(plan->device, plan->attention.use_alibi ? RELAY_NULL_POINTER : RELAY_INVALID_ARGUMENT,
                           "relay_run_args.alibi_slopes is %s, but relay_attention.use_alibi is %d",
                           args->alibi_slopes ? "given" : "NULL", plan->attention.use_alibi);
    if (plan->attention.use_sinks != (args->sinks != NULL))
        return relayi_fail(plan->device, plan->attention.use_sinks ? RELAY_NULL_POINTER : RELAY_INVALID_ARGUMENT,
                           "relay_run_args.sinks is %s, but relay_attention.use_sinks is %d",
                           args->sinks ? "given" : "NULL", plan->attention.use_sinks);
    return RELAY_OK;
}

static relay_status check_workspace(const relay_plan *plan, const relay_run_args *args) {
    size_t need = relayi_plan_workspace(plan).bytes;
    if (need == 0) return RELAY_OK;
    if (args->workspace == NULL)
        return relayi_fail(plan->device, RELAY_NULL_POINTER, "relay_run_args.workspace is NULL");
    if ((uintptr_t)args->workspace % RELAYI_ALIGNMENT != 0)
        return relayi_fail(plan->device, RELAY_MISALIGNED,
                           "relay_run_args.workspace: not aligned to %d bytes", RELAYI_ALIGNMENT);
    if (args->workspace_bytes < need)
        return relayi_fail(plan->device, RELAY_WORKSPACE_TOO_SMALL,
                           "relay_run_args.workspace_bytes: %zu, the plan needs %zu", args->workspace_bytes, need);
    return RELAY_OK;
}

typedef struct named_tensor {
    const char *name;
    const relay_tensor *tensor;
} named_tensor;

static relay_status check_apart(const relay_plan *plan, named_tensor a, named_tensor b) {
    if (a.tensor->data == NULL || b.tensor->data == NULL || !relayi_tensors_overlap(a.tensor, b.tensor))
        return RELAY_OK;
    return relayi_fail(plan->device, RELAY_OVERLAP, "relay_run_args.%s overlaps relay_run_args.%s", a.name, b.name);
}

/* What is written (output, lse, workspace) meets nothing else. */
static relay_status check_overlap(const relay_plan *plan, const relay_run_args *args) {
    relay_tensor area = relay_tensor_2d(args->workspace, RELAY_F32, 1,
                                        (int64_t)(relayi_plan_workspace(plan).bytes / sizeof(float)));
    const named_tensor all[] = {{"output", &args->output}, {"lse", &args->lse}, {"workspace", &area},
                                {"query", &args->query}, {"key_pool", &args->key_pool},
                                {"value_pool", &args->value_pool}};
    const int num_all = plan->uses_pages ? 6 : 4, num_written = 3;
    relay_status status = RELAY_OK;
    for (int i = 0; i < num_written; i++) {
        for (int j = i + 1; status == RELAY_OK && j < num_all; j++) status = check_apart(plan, all[i], all[j]);
        for (int32_t k = 0; status == RELAY_OK && k < plan->max_contiguous; k++) {
            status = check_apart(plan, all[i], (named_tensor){"contiguous[].key", &args->contiguous[k].key});
            if (status == RELAY_OK)
                status = check_apart(plan, all[i], (named_tensor){"contiguous[].value", &args->contiguous[k].value});
        }
    }
    return status;
}

relay_status relayi_check_run(const relay_plan *plan, const relay_run_args *args) {
    relay_status status = relayi_check_size(plan->device, "relay_run_args", args->struct_size, sizeof *args);
    if (status != RELAY_OK) return status;
    if (plan->forest == NULL || plan->forest->generation != plan->generation)
        return relayi_fail(plan->device, RELAY_STALE_PLAN, "relay_run: %s",
                           plan->forest ? "the forest has changed since the plan was built" : "the plan is not built");
    if (plan->num_rows == 0) return RELAY_OK;
    if (args->stream != NULL && plan->device->kind == RELAY_DEVICE_CPU)
        return relayi_fail(plan->device, RELAY_INVALID_ARGUMENT, "relay_run_args.stream: the CPU has no streams");
    status = check_query_output(plan, args);
    if (status == RELAY_OK) status = check_kv(plan, args);
    if (status == RELAY_OK) status = check_per_head(plan, args);
    if (status == RELAY_OK) status = check_workspace(plan, args);
    return status != RELAY_OK ? status : check_overlap(plan, args);
}
