#include "forest_internal.h"

#include "log.h"
#include "prompt.h"

relay_forest_desc relay_forest_desc_defaults(void) {
    return (relay_forest_desc){.struct_size = sizeof(relay_forest_desc), .block_size = 16};
}

relay_status relay_forest_create(relay_device *device, relay_forest **out) {
    if (out == NULL) return RELAY_NULL_POINTER;
    *out = NULL;
    if (device == NULL) return RELAY_NULL_POINTER;
    relay_forest *forest = relayi_alloc_array(1, sizeof *forest);
    if (forest == NULL) return relayi_fail(device, RELAY_OUT_OF_MEMORY, "relay_forest_create: no memory");
    memset(forest, 0, sizeof *forest);
    forest->device = device;
    *out = forest;
    return RELAY_OK;
}

void relay_forest_destroy(relay_forest *forest) {
    if (forest == NULL) return;
    for (int i = 0; i < 2; i++) {
        relayi_forest_content *content = &forest->content[i];
        relayi_shrink(&content->query_start_memory);
        relayi_shrink(&content->order_memory);
        relayi_shrink(&content->own_memory);
        relayi_shrink(&content->leaf_memory);
        relayi_shrink(&content->segment_memory);
        relayi_shrink(&content->id_memory);
    }
    relayi_shrink(&forest->scratch);
    relayi_free(forest);
}

void relayi_forest_switch(relay_forest *forest) {
    forest->current = !forest->current;
    forest->generation++;
}

bool relayi_forest_reserve(relayi_forest_content *content, int32_t num_requests, int32_t num_segments,
                           int64_t num_ids) {
    size_t requests = (size_t)num_requests;
    if (!relayi_grow(&content->query_start_memory, requests + 1, sizeof *content->query_start) ||
        !relayi_grow(&content->order_memory, requests, sizeof *content->order) ||
        !relayi_grow(&content->own_memory, requests, sizeof *content->own) ||
        !relayi_grow(&content->leaf_memory, requests, sizeof *content->leaf) ||
        !relayi_grow(&content->segment_memory, (size_t)num_segments, sizeof *content->segments) ||
        !relayi_grow(&content->id_memory, (size_t)num_ids, sizeof *content->ids))
        return false;
    content->query_start = content->query_start_memory.data;
    content->order = content->order_memory.data;
    content->own = content->own_memory.data;
    content->leaf = content->leaf_memory.data;
    content->segments = content->segment_memory.data;
    content->ids = content->id_memory.data;
    content->num_requests = num_requests;
    content->num_segments = num_segments;
    content->num_ids = 0;
    return true;
}

relay_status relayi_check_query_start(const relay_device *device, const char *what, int32_t num_requests,
                                      const int32_t *query_start) {
    if (query_start == NULL)
        return relayi_fail(device, RELAY_NULL_POINTER, "%s.query_start_loc is NULL", what);
    if (query_start[0] != 0)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT, "%s.query_start_loc[0]: %d, expected 0", what,
                           query_start[0]);
    for (int32_t r = 0; r < num_requests; r++)
        if (query_start[r + 1] < query_start[r] || query_start[r + 1] > RELAYI_MAX_TOKENS)
            return relayi_fail(device, RELAY_INVALID_ARGUMENT, "%s.query_start_loc[%d]: %d after %d", what,
                               r + 1, query_start[r + 1], query_start[r]);
    return RELAY_OK;
}

/* Negative, or so after subtraction: without a branch the loop takes several ids at once. */
static bool all_inside(const int32_t *ids, int32_t count, int32_t num_blocks) {
    uint32_t signs = 0;
    for (int32_t i = 0; i < count; i++) signs |= (uint32_t)ids[i] | ((uint32_t)num_blocks - 1 - (uint32_t)ids[i]);
    return signs >> 31 == 0;
}

relay_status relayi_check_blocks(const relay_device *device, const char *what, int32_t index,
                                 const int32_t *ids, int32_t count, int32_t num_blocks) {
    if (all_inside(ids, count, num_blocks)) return RELAY_OK;
    for (int32_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= num_blocks)
            return relayi_fail(device, RELAY_OUT_OF_RANGE,
                               "%s[%d].block_table[%d]: %d is outside the pool of %d blocks", what, index, i,
                               ids[i], num_blocks);
    return RELAY_OK;
}

static relay_status check_span(const relay_device *device, const char *what, int32_t index,
                               const relay_kv_span *span, int32_t block_size, int32_t num_blocks) {
    if (span->length < 0 || span->length > RELAYI_MAX_TOKENS)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT, "%s[%d].length: %d is not in 0..%d", what, index,
                           span->length, RELAYI_MAX_TOKENS);
    switch ((int)span->layout) {
    case RELAY_KV_PAGED: {
        int32_t blocks = relayi_blocks_of(span->length, block_size);
        if (blocks > 0 && span->block_table == NULL)
            return relayi_fail(device, RELAY_NULL_POINTER, "%s[%d].block_table is NULL", what, index);
        return relayi_check_blocks(device, what, index, span->block_table, blocks, num_blocks);
    }
    case RELAY_KV_CONTIGUOUS:
        if (span->tensor_index < 0)
            return relayi_fail(device, RELAY_OUT_OF_RANGE, "%s[%d].tensor_index: %d", what, index,
                               span->tensor_index);
        return RELAY_OK;
    case RELAY_KV_PACKED:
        if (span->prompt == NULL)
            return relayi_fail(device, RELAY_NULL_POINTER, "%s[%d].prompt is NULL", what, index);
        if (span->length > relayi_prompt_get_shape(span->prompt).num_tokens)
            return relayi_fail(device, RELAY_OUT_OF_RANGE, "%s[%d].length: %d, but prompt \"%s\" has %d tokens",
                               what, index, span->length, relay_prompt_key(span->prompt),
                               relayi_prompt_get_shape(span->prompt).num_tokens);
        return RELAY_OK;
    default:
        return relayi_fail(device, RELAY_INVALID_ARGUMENT, "%s[%d].layout: %d is no layout", what, index,
                           (int)span->layout);
    }
}

static relay_status check_counts(const relay_device *device, const relay_forest_desc *desc) {
    if (desc->num_requests < 0 || desc->num_requests > RELAYI_MAX_REQUESTS)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT, "relay_forest_desc.num_requests: %d is not in 0..%d",
                           desc->num_requests, RELAYI_MAX_REQUESTS);
    if (desc->num_segments < 0 || desc->num_segments > RELAYI_MAX_REQUESTS)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT, "relay_forest_desc.num_segments: %d is not in 0..%d",
                           desc->num_segments, RELAYI_MAX_REQUESTS);
    if (desc->block_size < 1 || desc->num_blocks < 0)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT,
                           "relay_forest_desc.block_size: %d, num_blocks: %d; expected >= 1 and >= 0",
                           desc->block_size, desc->num_blocks);
    if (desc->num_requests > 0 && desc->own == NULL)
        return relayi_fail(device, RELAY_NULL_POINTER, "relay_forest_desc.own is NULL");
    if (desc->num_segments > 0 && desc->segments == NULL)
        return relayi_fail(device, RELAY_NULL_POINTER, "relay_forest_desc.segments is NULL");
    return relayi_check_query_start(device, "relay_forest_desc", desc->num_requests, desc->query_start_loc);
}

static relay_status check_desc(const relay_device *device, const relay_forest_desc *desc) {
    relay_status status = relayi_check_size(device, "relay_forest_desc", desc->struct_size, sizeof *desc);
    if (status == RELAY_OK) status = check_counts(device, desc);
    for (int32_t r = 0; status == RELAY_OK && r < desc->num_requests; r++)
        status = check_span(device, "relay_forest_desc.own", r, &desc->own[r], desc->block_size, desc->num_blocks);
    for (int32_t s = 0; status == RELAY_OK && s < desc->num_segments; s++)
        status = check_span(device, "relay_forest_desc.segments", s, &desc->segments[s].kv, desc->block_size,
                            desc->num_blocks);
    return status;
}

static int64_t ids_of(const relay_kv_span *span, int32_t block_size) {
    return span->layout == RELAY_KV_PAGED ? relayi_blocks_of(span->length, block_size) : 0;
}

static int64_t count_ids(const relay_forest_desc *desc) {
    int64_t count = 0;
    for (int32_t r = 0; r < desc->num_requests; r++) count += ids_of(&desc->own[r], desc->block_size);
    for (int32_t s = 0; s < desc->num_segments; s++) count += ids_of(&desc->segments[s].kv, desc->block_size);
    return count;
}

static relay_kv_span copy_span(relayi_forest_content *content, const relay_kv_span *span) {
    relay_kv_span copy = *span;
    int64_t count = ids_of(span, content->block_size);
    copy.block_table = NULL;
    if (span->layout == RELAY_KV_PAGED) {
        copy.block_table = content->ids + content->num_ids;
        if (count > 0) memcpy(content->ids + content->num_ids, span->block_table, (size_t)count * sizeof(int32_t));
        content->num_ids += count;
    }
    return copy;
}

/* order must name each request once; leaf is used as the marks. */
static relay_status copy_order(const relay_device *device, relayi_forest_content *content,
                               const int32_t *order) {
    for (int32_t p = 0; p < content->num_requests; p++) content->leaf[p] = -1;
    for (int32_t p = 0; order == NULL && p < content->num_requests; p++) content->order[p] = p;
    if (order == NULL) return RELAY_OK;
    for (int32_t p = 0; p < content->num_requests; p++) {
        int32_t request = order[p];
        if (request < 0 || request >= content->num_requests || content->leaf[request] != -1)
            return relayi_fail(device, RELAY_INVALID_ARGUMENT,
                               "relay_forest_desc.order[%d]: %d is no request, or stands there twice", p, request);
        content->leaf[request] = 0;
        content->order[p] = request;
    }
    for (int32_t p = 0; p < content->num_requests; p++) content->leaf[p] = -1;
    return RELAY_OK;
}

/* Places one segment on its parent.  Every request of its range must stand exactly on the parent:
 * that makes the ranges nest and keeps siblings apart. */
static relay_status add_segment(const relay_device *device, relayi_forest_content *content, int32_t index,
                                const relay_segment *segment) {
    if (segment->parent < -1 || segment->parent >= index)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT,
                           "relay_forest_desc.segments[%d].parent: %d; parents come before their children",
                           index, segment->parent);
    if (segment->num_requests < 1 || segment->first_request < 0 ||
        segment->num_requests > content->num_requests - segment->first_request)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT,
                           "relay_forest_desc.segments[%d]: requests %d..+%d are not within %d", index,
                           segment->first_request, segment->num_requests, content->num_requests);
    for (int32_t p = segment->first_request; p < segment->first_request + segment->num_requests; p++) {
        if (content->leaf[p] != segment->parent)
            return relayi_fail(device, RELAY_INVALID_ARGUMENT,
                               "relay_forest_desc.segments[%d]: its request at position %d does not stand on "
                               "segment %d alone",
                               index, p, segment->parent);
        content->leaf[p] = index;
    }
    relayi_segment *made = &content->segments[index];
    const relayi_segment *parent = segment->parent < 0 ? NULL : &content->segments[segment->parent];
    *made = (relayi_segment){.parent = segment->parent, .first = segment->first_request,
                             .count = segment->num_requests,
                             .start = parent ? parent->start + parent->kv.length : 0,
                             .kv = copy_span(content, &segment->kv)};
    if (made->start > RELAYI_MAX_TOKENS - made->kv.length)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT,
                           "relay_forest_desc.segments[%d]: its path is longer than %d tokens", index,
                           RELAYI_MAX_TOKENS);
    return RELAY_OK;
}

static relay_status fill(const relay_device *device, relayi_forest_content *content,
                         const relay_forest_desc *desc) {
    content->block_size = desc->block_size;
    content->num_blocks = desc->num_blocks;
    memcpy(content->query_start, desc->query_start_loc, ((size_t)desc->num_requests + 1) * sizeof(int32_t));
    relay_status status = copy_order(device, content, desc->order);
    for (int32_t r = 0; status == RELAY_OK && r < desc->num_requests; r++)
        content->own[r] = copy_span(content, &desc->own[r]);
    for (int32_t s = 0; status == RELAY_OK && s < desc->num_segments; s++)
        status = add_segment(device, content, s, &desc->segments[s]);
    return status;
}

relay_status relay_forest_set(relay_forest *forest, const relay_forest_desc *desc) {
    if (forest == NULL || desc == NULL) return RELAY_NULL_POINTER;
    relay_status status = check_desc(forest->device, desc);
    if (status != RELAY_OK) return status;
    relayi_forest_content *next = relayi_forest_next(forest);
    if (!relayi_forest_reserve(next, desc->num_requests, desc->num_segments, count_ids(desc)))
        return relayi_fail(forest->device, RELAY_OUT_OF_MEMORY, "relay_forest_set: no memory for %d requests",
                           desc->num_requests);
    status = fill(forest->device, next, desc);
    if (status == RELAY_OK) relayi_forest_switch(forest);
    return status;
}

static relay_status check_move(const relay_forest *forest, int32_t index, const relay_kv_span *kv) {
    static const char call[] = "relay_forest_move_segment";
    const relayi_forest_content *content = relayi_forest_now(forest);
    if (index < 0 || index >= content->num_segments)
        return relayi_fail(forest->device, RELAY_OUT_OF_RANGE, "%s: %d of %d", call, index, content->num_segments);
    if (kv->layout == RELAY_KV_PAGED) /* its ids would need room of their own */
        return relayi_fail(forest->device, RELAY_INVALID_ARGUMENT, "%s: kv.layout is PAGED", call);
    if (kv->length != content->segments[index].kv.length)
        return relayi_fail(forest->device, RELAY_INVALID_ARGUMENT, "%s: kv.length: %d, but segment %d has %d tokens",
                           call, kv->length, index, content->segments[index].kv.length);
    return check_span(forest->device, "relay_forest_move_segment: segment", index, kv, content->block_size,
                      content->num_blocks);
}

relay_status relay_forest_move_segment(relay_forest *forest, int32_t index, const relay_kv_span *kv) {
    if (forest == NULL || kv == NULL) return RELAY_NULL_POINTER;
    relay_status status = check_move(forest, index, kv);
    if (status != RELAY_OK) return status;
    relay_kv_span *moved = &forest->content[forest->current].segments[index].kv;
    *moved = *kv;
    moved->block_table = NULL;
    forest->generation++;
    return RELAY_OK;
}

int32_t relay_forest_num_requests(const relay_forest *forest) {
    return forest ? relayi_forest_now(forest)->num_requests : 0;
}

int32_t relay_forest_num_segments(const relay_forest *forest) {
    return forest ? relayi_forest_now(forest)->num_segments : 0;
}

const int32_t *relay_forest_order(const relay_forest *forest) {
    return forest ? relayi_forest_now(forest)->order : NULL;
}

relay_status relay_forest_get_segment(const relay_forest *forest, int32_t index, relay_segment *segment) {
    if (forest == NULL || segment == NULL) return RELAY_NULL_POINTER;
    const relayi_forest_content *content = relayi_forest_now(forest);
    if (index < 0 || index >= content->num_segments)
        return relayi_fail(forest->device, RELAY_OUT_OF_RANGE, "relay_forest_get_segment: %d of %d", index,
                           content->num_segments);
    const relayi_segment *found = &content->segments[index];
    *segment = (relay_segment){.parent = found->parent, .first_request = found->first,
                               .num_requests = found->count, .kv = found->kv};
    return RELAY_OK;
}

relay_status relay_forest_get_own(const relay_forest *forest, int32_t request, relay_kv_span *own) {
    if (forest == NULL || own == NULL) return RELAY_NULL_POINTER;
    const relayi_forest_content *content = relayi_forest_now(forest);
    if (request < 0 || request >= content->num_requests)
        return relayi_fail(forest->device, RELAY_OUT_OF_RANGE, "relay_forest_get_own: %d of %d", request,
                           content->num_requests);
    *own = content->own[request];
    return RELAY_OK;
}
