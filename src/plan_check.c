/* What a plan refuses, before anything is built. */
#include <limits.h>
#include <math.h>

#include "log.h"
#include "plan_internal.h"
#include "prompt.h"

static relay_status bad(const relay_device *device, const char *field, int value, const char *expected) {
    return relayi_fail(device, RELAY_INVALID_ARGUMENT, "relay_attention.%s: %d, expected %s", field, value,
                       expected);
}

static relay_status check_heads(const relay_device *device, const relay_attention *a) {
    if (a->num_kv_heads < 1 || a->num_kv_heads > 65536)
        return bad(device, "num_kv_heads", a->num_kv_heads, "1..65536");
    if (a->num_heads < 1 || a->num_heads > 65536 || a->num_heads % a->num_kv_heads != 0)
        return bad(device, "num_heads", a->num_heads, "a multiple of num_kv_heads, at most 65536");
    if (a->head_dim < 8 || a->head_dim > 256 || a->head_dim % 8 != 0)
        return bad(device, "head_dim", a->head_dim, "a multiple of 8 in 8..256");
    return RELAY_OK;
}

static relay_status check_dtype(const relay_device *device, const char *field, relay_dtype dtype) {
    if (relay_dtype_size(dtype) != 0) return RELAY_OK;
    return relayi_fail(device, RELAY_BAD_DTYPE, "relay_attention.%s: %d, expected f32, f16 or bf16", field,
                       (int)dtype);
}

static relay_status check_scores(const relay_device *device, const relay_attention *a) {
    if (!isfinite(a->softmax_scale) || a->softmax_scale < 0.0f)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT,
                           "relay_attention.softmax_scale: %g, expected a positive number, or 0 for "
                           "1/sqrt(head_dim)",
                           (double)a->softmax_scale);
    if (!isfinite(a->logit_soft_cap) || a->logit_soft_cap < 0.0f)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT,
                           "relay_attention.logit_soft_cap: %g, expected >= 0", (double)a->logit_soft_cap);
    if (a->sliding_window < 0) return bad(device, "sliding_window", a->sliding_window, ">= 0");
    if (a->num_sink_tokens < 0) return bad(device, "num_sink_tokens", a->num_sink_tokens, ">= 0");
    if (a->use_alibi != 0 && a->use_alibi != 1) return bad(device, "use_alibi", a->use_alibi, "0 or 1");
    if (a->use_sinks != 0 && a->use_sinks != 1) return bad(device, "use_sinks", a->use_sinks, "0 or 1");
    return RELAY_OK;
}

relay_status relayi_check_attention(const relay_device *device, relay_attention *a) {
    relay_status status = check_heads(device, a);
    if (status == RELAY_OK) status = check_dtype(device, "query_dtype", a->query_dtype);
    if (status == RELAY_OK) status = check_dtype(device, "kv_dtype", a->kv_dtype);
    if (status == RELAY_OK) status = check_dtype(device, "output_dtype", a->output_dtype);
    if (status == RELAY_OK) status = check_scores(device, a);
    if (status != RELAY_OK) return status;
    if (a->softmax_scale == 0.0f) a->softmax_scale = 1.0f / sqrtf((float)a->head_dim);
    return RELAY_OK;
}

/* All of the bounds or none, and small enough for what is laid out by them. */
static relay_status check_bounds(const relay_device *device, const relay_plan_options *o) {
    const struct {
        const char *name;
        int32_t value, least;
    } bounds[] = {{"max_requests", o->max_requests, 0},
                  {"max_rows", o->max_rows, 1},
                  {"max_depth", o->max_depth, 0},
                  {"max_tokens", o->max_tokens, 1},
                  {"max_blocks", o->max_blocks, 0}};
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
        int32_t least = o->max_requests > 0 ? bounds[i].least : 0;
        int32_t most = o->max_requests != 0 ? RELAYI_MAX_TOKENS : 0;
        if (bounds[i].value < least || bounds[i].value > most)
            return relayi_fail(device, RELAY_INVALID_ARGUMENT, "relay_plan_options.%s: %d is not in %d..%d%s",
                               bounds[i].name, bounds[i].value, least, most,
                               o->max_requests == 0 ? ", as max_requests is 0" : "");
    }
    return RELAY_OK;
}

relay_status relayi_check_plan_options(const relay_device *device, const relay_plan_options *options) {
    relay_status status = relayi_check_size(device, "relay_plan_options", options->struct_size, sizeof *options);
    if (status != RELAY_OK) return status;
    if ((int)options->strategy < RELAY_STRATEGY_AUTO || options->strategy > RELAY_STRATEGY_PLAIN)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT, "relay_plan_options.strategy: %d is no strategy",
                           (int)options->strategy);
    if (options->repeatable != 0 && options->repeatable != 1)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT, "relay_plan_options.repeatable: %d, expected 0 or 1",
                           options->repeatable);
    return check_bounds(device, options);
}

static relay_status check_span(relay_plan *plan, const char *what, int32_t index, const relay_kv_span *span) {
    const relay_attention *a = &plan->attention;
    if (span->length == 0) return RELAY_OK;
    if (span->layout == RELAY_KV_PAGED) plan->uses_pages = true;
    if (span->layout == RELAY_KV_CONTIGUOUS && span->tensor_index >= plan->max_contiguous)
        plan->max_contiguous = span->tensor_index + 1;
    if (span->layout != RELAY_KV_PACKED) return RELAY_OK;
    relayi_prompt_shape shape = relayi_prompt_get_shape(span->prompt);
    if (shape.num_kv_heads != a->num_kv_heads || shape.head_dim != a->head_dim || shape.kv_dtype != a->kv_dtype)
        return relayi_fail(plan->device, RELAY_INVALID_ARGUMENT,
                           "%s %d: prompt \"%s\" has %d kv heads of %d, %s; the plan's attention has %d of %d, %s",
                           what, index, relay_prompt_key(span->prompt), shape.num_kv_heads, shape.head_dim,
                           relay_dtype_name(shape.kv_dtype), a->num_kv_heads, a->head_dim,
                           relay_dtype_name(a->kv_dtype));
    if (shape.num_layers < plan->packed_layers) plan->packed_layers = shape.num_layers;
    return RELAY_OK;
}

static relay_status check_own(relay_plan *plan, const relayi_forest_content *content, int32_t position) {
    int32_t request = content->order[position];
    const relay_kv_span *own = &content->own[request];
    int32_t rows = content->query_start[request + 1] - content->query_start[request];
    if (rows > own->length)
        return relayi_fail(plan->device, RELAY_INVALID_ARGUMENT,
                           "relay_plan_build: request %d has %d query rows and %d tokens of its own", request,
                           rows, own->length);
    const relayi_segment *leaf = content->leaf[position] < 0 ? NULL : &content->segments[content->leaf[position]];
    if (leaf && leaf->start + leaf->kv.length > RELAYI_MAX_TOKENS - own->length)
        return relayi_fail(plan->device, RELAY_INVALID_ARGUMENT,
                           "relay_plan_build: request %d is longer than %d tokens", request, RELAYI_MAX_TOKENS);
    return check_span(plan, "request", request, own);
}

/* Whether all own tokens are in pages and nothing is wrong with any, as in nearly every step; without branches,
 * since each step waits for it. */
static bool own_in_pages(relay_plan *plan, const relayi_forest_content *content, int32_t longest_path) {
    int32_t most = RELAYI_MAX_TOKENS - longest_path, wrong = 0, tokens = 0;
    for (int32_t r = 0; r < content->num_requests; r++) {
        const relay_kv_span *own = &content->own[r];
        int32_t rows = content->query_start[r + 1] - content->query_start[r];
        wrong |= (rows > own->length) | (own->length > most) | (own->layout != RELAY_KV_PAGED);
        tokens |= own->length;
    }
    if (wrong == 0 && tokens != 0) plan->uses_pages = true;
    return wrong == 0;
}

relay_status relayi_check_plan_forest(relay_plan *plan, const relay_forest *forest) {
    const relayi_forest_content *content = relayi_forest_now(forest);
    if (forest->device != plan->device)
        return relayi_fail(plan->device, RELAY_WRONG_DEVICE, "relay_plan_build: the forest is of another device");
    plan->uses_pages = false;
    plan->max_contiguous = 0;
    plan->packed_layers = INT_MAX;
    relay_status status = RELAY_OK;
    int32_t longest_path = 0;
    for (int32_t s = 0; status == RELAY_OK && s < content->num_segments; s++) {
        const relayi_segment *segment = &content->segments[s];
        int32_t end = segment->start + segment->kv.length;
        longest_path = end > longest_path ? end : longest_path;
        status = check_span(plan, "segment", s, &segment->kv);
    }
    if (status == RELAY_OK && own_in_pages(plan, content, longest_path)) return RELAY_OK;
    for (int32_t p = 0; status == RELAY_OK && p < content->num_requests; p++)
        status = check_own(plan, content, p);
    return status;
}
