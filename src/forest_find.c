/* Finding what a batch shares in its block tables: a descent of the tree of block ids that keeps,
 * for each group of requests, how many leading blocks all of them have in common. */
#include <stdlib.h>

#include "forest_internal.h"
#include "log.h"

relay_block_tables relay_block_tables_defaults(void) {
    return (relay_block_tables){.struct_size = sizeof(relay_block_tables), .block_size = 16,
                                .min_shared_tokens = 32, .max_depth = 4};
}

/* Requests [lo, hi) of order have their first `scanned` blocks in common; segments cover the
 * first `covered` of them. */
typedef struct group {
    int32_t lo, hi, scanned, covered, parent, depth;
} group;

typedef struct finder {
    const relay_block_tables *tables;
    relayi_forest_content *content;
    group *pending; /* [num_requests + 1]: groups on the stack are disjoint */
    int32_t num_pending;
    struct next_block {
        int32_t id, request;
    } *keys; /* [num_requests] */
} finder;

static const int32_t *row_of(const relay_block_tables *tables, int32_t request) {
    return tables->block_table + request * tables->block_table_stride;
}

/* Whole blocks that lie before every new query row of a request. */
static int32_t shareable(const relay_block_tables *tables, int32_t request) {
    int32_t rows = tables->query_start_loc[request + 1] - tables->query_start_loc[request];
    int32_t tokens = tables->seq_lens[request] - rows;
    return tables->block_size == 16 ? tokens / 16 : tokens / tables->block_size; /* the usual one: no division */
}

static int compare_keys(const void *a, const void *b) {
    const struct next_block *x = a, *y = b;
    if (x->id != y->id) return x->id < y->id ? -1 : 1;
    return (x->request > y->request) - (x->request < y->request);
}

/* Orders [lo, hi) by the block after the common ones; -1 where a request has none. */
static void sort_by_next_block(finder *f, const group *g) {
    int32_t *order = f->content->order, count = g->hi - g->lo, sorted = 1;
    for (int32_t i = 0; i < count; i++) {
        int32_t request = order[g->lo + i];
        bool ends = shareable(f->tables, request) <= g->scanned;
        f->keys[i].id = ends ? -1 : row_of(f->tables, request)[g->scanned];
        f->keys[i].request = request;
        if (i > 0 && compare_keys(&f->keys[i - 1], &f->keys[i]) > 0) sorted = 0;
    }
    if (!sorted) qsort(f->keys, (size_t)count, sizeof *f->keys, compare_keys);
    for (int32_t i = 0; i < count; i++) order[g->lo + i] = f->keys[i].request;
}

/* Ids from `known` up to `limit` that two rows have in common: mostly all. */
static int32_t same_ids(const int32_t *a, const int32_t *b, int32_t known, int32_t limit) {
    if (limit <= known) return known;
    if (memcmp(a + known, b + known, (size_t)(limit - known) * sizeof *a) == 0) return limit;
    while (a[known] == b[known]) known++;
    return known;
}

/* Leading blocks that requests order[lo..hi) have in common, at least `known`. */
static int32_t common_blocks(const finder *f, int32_t lo, int32_t hi, int32_t known) {
    const int32_t *order = f->content->order, *first = row_of(f->tables, order[lo]);
    int32_t common = shareable(f->tables, order[lo]);
    for (int32_t i = lo + 1; i < hi; i++) {
        const int32_t *row = row_of(f->tables, order[i]);
        int32_t limit = shareable(f->tables, order[i]);
        common = same_ids(row, first, known, limit < common ? limit : common);
    }
    return common;
}

static void add_found(finder *f, const group *g, int32_t common) {
    relayi_forest_content *content = f->content;
    int32_t block_size = f->tables->block_size, index = content->num_segments++;
    const int32_t *row = row_of(f->tables, content->order[g->lo]);
    int32_t *ids = content->ids + content->num_ids;
    memcpy(ids, row + g->covered, (size_t)(common - g->covered) * sizeof *ids);
    content->num_ids += common - g->covered;
    content->segments[index] =
        (relayi_segment){.parent = g->parent, .first = g->lo, .count = g->hi - g->lo,
                         .start = g->covered * block_size,
                         .kv = {.layout = RELAY_KV_PAGED, .length = (common - g->covered) * block_size,
                                .block_table = ids}};
    for (int32_t p = g->lo; p < g->hi; p++) content->leaf[p] = index;
}

/* One run of requests with the same next block: a segment if the common part is long enough, and
 * then whatever smaller groups share beyond it. */
static void descend(finder *f, const group *from, int32_t lo, int32_t hi) {
    group g = {.lo = lo, .hi = hi, .covered = from->covered, .parent = from->parent, .depth = from->depth};
    g.scanned = common_blocks(f, lo, hi, from->scanned + 1);
    if ((int64_t)(g.scanned - g.covered) * f->tables->block_size >= f->tables->min_shared_tokens) {
        add_found(f, &g, g.scanned);
        g.parent = f->content->num_segments - 1;
        g.covered = g.scanned;
        g.depth++;
    }
    if (g.depth < f->tables->max_depth) f->pending[f->num_pending++] = g;
}

static void find_segments(finder *f) {
    int32_t count = f->content->num_requests;
    if (f->tables->max_depth > 0 && count > 1)
        f->pending[f->num_pending++] = (group){.hi = count, .parent = -1};
    while (f->num_pending > 0) {
        group g = f->pending[--f->num_pending];
        sort_by_next_block(f, &g);
        /* keys are overwritten by no descent: it only pushes */
        for (int32_t i = 0, j; i < g.hi - g.lo; i = j) {
            for (j = i + 1; j < g.hi - g.lo && f->keys[j].id == f->keys[i].id; j++) continue;
            if (j - i > 1 && f->keys[i].id >= 0) descend(f, &g, g.lo + i, g.lo + j);
        }
    }
}

/* What no segment covers is the request's own. */
static void add_own(finder *f) {
    relayi_forest_content *content = f->content;
    for (int32_t p = 0; p < content->num_requests; p++) {
        int32_t request = content->order[p];
        const relayi_segment *leaf = content->leaf[p] < 0 ? NULL : &content->segments[content->leaf[p]];
        int32_t shared = leaf ? leaf->start + leaf->kv.length : 0;
        int32_t length = f->tables->seq_lens[request] - shared;
        int32_t blocks = relayi_blocks_of(length, content->block_size);
        int32_t *ids = content->ids + content->num_ids;
        if (blocks > 0)
            memcpy(ids, row_of(f->tables, request) + shared / content->block_size,
                   (size_t)blocks * sizeof *ids);
        content->num_ids += blocks;
        content->own[request] = (relay_kv_span){.layout = RELAY_KV_PAGED, .length = length, .block_table = ids};
    }
}

static relay_status check_request(const relay_device *device, const relay_block_tables *tables, int32_t r) {
    int32_t rows = tables->query_start_loc[r + 1] - tables->query_start_loc[r];
    if (tables->seq_lens[r] < rows || tables->seq_lens[r] > RELAYI_MAX_TOKENS)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT,
                           "relay_block_tables.seq_lens[%d]: %d, but the request has %d new rows", r,
                           tables->seq_lens[r], rows);
    int32_t blocks = relayi_blocks_of(tables->seq_lens[r], tables->block_size);
    if (blocks > tables->block_table_stride && tables->num_requests > 1)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT,
                           "relay_block_tables.block_table_stride: %lld, but request %d has %d blocks",
                           (long long)tables->block_table_stride, r, blocks);
    return relayi_check_blocks(device, "relay_block_tables", r, row_of(tables, r), blocks, tables->num_blocks);
}

static relay_status check_tables(const relay_device *device, const relay_block_tables *tables) {
    relay_status status = relayi_check_size(device, "relay_block_tables", tables->struct_size, sizeof *tables);
    if (status != RELAY_OK) return status;
    if (tables->num_requests < 0 || tables->num_requests > RELAYI_MAX_REQUESTS)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT, "relay_block_tables.num_requests: %d is not in 0..%d",
                           tables->num_requests, RELAYI_MAX_REQUESTS);
    if (tables->block_size < 1 || tables->num_blocks < 0 || tables->min_shared_tokens < 0 ||
        tables->max_depth < 0 || tables->block_table_stride < 0)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT,
                           "relay_block_tables: block_size %d, num_blocks %d, min_shared_tokens %d, max_depth %d, "
                           "block_table_stride %lld; expected >= 1 and >= 0",
                           tables->block_size, tables->num_blocks, tables->min_shared_tokens, tables->max_depth,
                           (long long)tables->block_table_stride);
    status = relayi_check_query_start(device, "relay_block_tables", tables->num_requests, tables->query_start_loc);
    if (status != RELAY_OK) return status;
    if (tables->num_requests > 0 && (tables->seq_lens == NULL || tables->block_table == NULL))
        return relayi_fail(device, RELAY_NULL_POINTER, "relay_block_tables.%s is NULL",
                           tables->seq_lens == NULL ? "seq_lens" : "block_table");
    for (int32_t r = 0; status == RELAY_OK && r < tables->num_requests; r++)
        status = check_request(device, tables, r);
    return status;
}

static bool reserve(relayi_forest_content *content, const relay_block_tables *tables, finder *f,
                    relayi_growing *scratch) {
    int64_t ids = 0;
    for (int32_t r = 0; r < tables->num_requests; r++)
        ids += relayi_blocks_of(tables->seq_lens[r], tables->block_size);
    /* Every segment splits off at least one request from the others on its level or ends: a tree
     * over n leaves whose inner nodes branch has fewer than n; unbranched chains add none, as a
     * segment always runs to where its requests part. */
    size_t requests = (size_t)tables->num_requests;
    if (!relayi_forest_reserve(content, tables->num_requests, tables->num_requests, ids)) return false;
    if (!relayi_grow(scratch, requests + 1, sizeof *f->pending + sizeof *f->keys)) return false;
    f->pending = scratch->data;
    f->keys = (struct next_block *)(void *)(f->pending + requests + 1);
    return true;
}

relay_status relay_forest_find(relay_forest *forest, const relay_block_tables *tables) {
    if (forest == NULL || tables == NULL) return RELAY_NULL_POINTER;
    relay_status status = check_tables(forest->device, tables);
    if (status != RELAY_OK) return status;
    relayi_forest_content *content = relayi_forest_next(forest);
    finder f = {.tables = tables, .content = content};
    if (!reserve(content, tables, &f, &forest->scratch))
        return relayi_fail(forest->device, RELAY_OUT_OF_MEMORY, "relay_forest_find: no memory for %d requests",
                           tables->num_requests);
    content->num_segments = 0;
    content->block_size = tables->block_size;
    content->num_blocks = tables->num_blocks;
    memcpy(content->query_start, tables->query_start_loc, ((size_t)tables->num_requests + 1) * sizeof(int32_t));
    for (int32_t p = 0; p < tables->num_requests; p++) {
        content->order[p] = p;
        content->leaf[p] = -1;
    }
    find_segments(&f);
    add_own(&f);
    relayi_forest_switch(forest);
    return RELAY_OK;
}
