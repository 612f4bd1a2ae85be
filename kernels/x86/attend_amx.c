/* Attention on AMX tiles for bf16 K/V: how super-tiles, row groups and phases follow each other.
 * docs/kernels/amx.md has the blocking and what it reaches. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "amx_attend.h"
#include "x86.h"

/* ---- scratch */

typedef struct carver {
    char *at;
} carver;

static void *carve(carver *scratch, int64_t bytes) {
    void *area = scratch->at;
    scratch->at += bytes;
    return area;
}

enum {
    QUERY_BYTES = AMX_MAX_BLOCKS * AMX_MAX_TERMS * AMX_MAX_STEPS * AMX_TILE_BYTES,
    SCORE_BYTES = AMX_GROUP * AMX_COLUMNS * AMX_ROWS * AMX_ROWS * 4,
    PROB_BYTES = AMX_GROUP * 2 * AMX_PROB_STEPS * AMX_TILE_BYTES,
    KV_BYTES = AMX_SUPER * RELAYI_TILE * AMX_MAX_DIM * 2, /* of K, or of V */
    TAIL_BYTES = AMX_ROWS * AMX_MAX_DIM * 4
};
_Static_assert(QUERY_BYTES + SCORE_BYTES + PROB_BYTES + 3 * KV_BYTES + TAIL_BYTES <=
                   RELAYI_SCRATCH_AMX, "kernel_list.h");

static amx_work begin_work(const relayi_attend_args *args, int32_t query_terms, int32_t prob_terms) {
    amx_work work = {.args = args, .dim = args->head_dim, .query_terms = query_terms, .prob_terms = prob_terms};
    work.steps = (args->head_dim + AMX_DEPTH - 1) / AMX_DEPTH;
    work.blocks = (args->rows + AMX_ROWS - 1) / AMX_ROWS;
    /* The largest raw score is the largest score only where the scale is positive. */
    work.transform = args->soft_cap > 0.0f || args->slope || !(args->scale > 0.0f);
    work.natural = work.transform ? 1.0f : args->scale;
    carver scratch = {args->scratch};
    work.query = carve(&scratch, (int64_t)work.blocks * query_terms * work.steps * AMX_TILE_BYTES);
    work.scores = carve(&scratch, SCORE_BYTES);
    work.prob = carve(&scratch, PROB_BYTES);
    work.tail = carve(&scratch, TAIL_BYTES);
    work.key = carve(&scratch, KV_BYTES);
    work.value = carve(&scratch, KV_BYTES);
    work.clean = carve(&scratch, KV_BYTES);
    return work;
}

/* The last row block's acc, where it is not full, lives in scratch: padding rows are written. */
static void load_tail(const amx_work *work) {
    int32_t full = work->args->rows / AMX_ROWS * AMX_ROWS, rows = work->args->rows - full;
    size_t row_bytes = sizeof(float) * (size_t)work->dim;
    if (rows == 0) return;
    memcpy(work->tail, work->args->acc + (int64_t)full * work->dim, row_bytes * (size_t)rows);
    memset(work->tail + (int64_t)rows * work->dim, 0, row_bytes * (size_t)(AMX_ROWS - rows));
}

static void store_tail(const amx_work *work) {
    int32_t full = work->args->rows / AMX_ROWS * AMX_ROWS, rows = work->args->rows - full;
    memcpy(work->args->acc + (int64_t)full * work->dim, work->tail,
           sizeof(float) * (size_t)work->dim * (size_t)rows);
}

/* ---- groups and what they see */

static amx_group make_group(const amx_work *work, int32_t first) {
    const relayi_attend_args *args = work->args;
    amx_group group = {.first = first, .row = first * AMX_ROWS, .min_lo = INT32_MAX, .max_lo = INT32_MIN,
                       .min_hi = INT32_MAX, .max_hi = INT32_MIN, .min_sinks = INT32_MAX, .max_sinks = INT32_MIN};
    group.blocks = work->blocks - first < AMX_GROUP ? work->blocks - first : AMX_GROUP;
    group.rows = args->rows - group.row < AMX_GROUP * AMX_ROWS ? args->rows - group.row : AMX_GROUP * AMX_ROWS;
    if (args->all_visible) return group;
    for (int32_t row = group.row; row < group.row + group.rows; row++) {
        const relayi_range *range = &args->range[row];
        if (range->lo < group.min_lo) group.min_lo = range->lo;
        if (range->lo > group.max_lo) group.max_lo = range->lo;
        if (range->hi < group.min_hi) group.min_hi = range->hi;
        if (range->hi > group.max_hi) group.max_hi = range->hi;
        if (range->sinks < group.min_sinks) group.min_sinks = range->sinks;
        if (range->sinks > group.max_sinks) group.max_sinks = range->sinks;
    }
    return group;
}

/* May any row of the group see any of the tile's 64 tokens? */
static bool tile_visible(const amx_work *work, const amx_group *group, int32_t start) {
    if (work->args->all_visible) return true;
    return (group->min_lo < start + RELAYI_TILE && group->max_hi > start) || group->max_sinks > start;
}

/* Do all rows see all of them? */
static bool tile_open(const amx_work *work, const amx_group *group, int32_t start) {
    int32_t end = start + RELAYI_TILE;
    if (end > work->args->end) return false;
    if (work->args->all_visible) return true;
    return (group->max_lo <= start && group->min_hi >= end) || group->min_sinks >= end;
}

/* ---- one super-tile for one group */

typedef struct token_span {
    int32_t start; /* of the first tile */
    int32_t tiles;
} token_span;

/* The super-tile without the tiles at its ends that no row of the group sees. */
static token_span visible_span(const amx_work *work, const amx_group *group, token_span super) {
    while (super.tiles > 0 && !tile_visible(work, group, super.start)) {
        super.start += RELAYI_TILE;
        super.tiles--;
    }
    while (super.tiles > 0 && !tile_visible(work, group, super.start + (super.tiles - 1) * RELAYI_TILE))
        super.tiles--;
    return super;
}

/* acc += P V, where value[] are the tiles' V: what not all rows see is cleaned first. */
static void add_values(amx_work *work, const amx_group *group, token_span span, const uint16_t *const *value) {
    const uint16_t *used[AMX_SUPER] = {0};
    bool unclean[AMX_SUPER];
    for (int32_t t = 0; t < span.tiles; t++) {
        uint16_t *clean = work->clean + t * relayi_tile_elements(work->dim);
        unclean[t] = !tile_open(work, group, span.start + t * RELAYI_TILE) &&
                     relayi_amx_clean_value(value[t], work->dim, clean);
        used[t] = unclean[t] ? clean : value[t];
    }
    relayi_amx_values(work, group, used, span.tiles);
    for (int32_t t = 0; t < span.tiles; t++)
        if (unclean[t]) relayi_amx_add_unclean(work, group, value[t], span.start + t * RELAYI_TILE, 2 * t);
}

static token_span super_tile(const relayi_attend_args *args, int32_t start) {
    int64_t tiles = relayi_num_tiles((int64_t)args->end - start);
    return (token_span){start, tiles < AMX_SUPER ? (int32_t)tiles : AMX_SUPER};
}

/* ---- packed K/V */

static const uint16_t *packed_tile(const amx_work *work, const void *base, int32_t token) {
    return (const uint16_t *)base + token / RELAYI_TILE * relayi_tile_elements(work->dim);
}

static void attend_packed_group(amx_work *work, const amx_group *group, token_span super) {
    token_span span = visible_span(work, group, super);
    if (span.tiles == 0) return;
    const uint16_t *value[AMX_SUPER];
    for (int32_t t = 0; t < span.tiles; t++) {
        int32_t start = span.start + t * RELAYI_TILE;
        const uint16_t *key = packed_tile(work, work->args->kv.key, start);
        value[t] = packed_tile(work, work->args->kv.value, start);
        if (work->dim % AMX_DEPTH) relayi_amx_key_tail(work, key);
        relayi_amx_scores(work, group, key, 4 * t);
        if (work->transform) relayi_amx_transform(work, group, start, 4 * t);
        if (!tile_open(work, group, start)) relayi_amx_mask(work, group, start, 4 * t);
    }
    relayi_amx_softmax(work, group, span.tiles);
    add_values(work, group, span, value);
}

/* The next super-tile's K and V, in as many portions as this one has steps. */
static amx_ahead look_ahead_of(const amx_work *work, token_span super) {
    amx_ahead ahead = {.lines = 0};
    token_span next = super_tile(work->args, super.start + super.tiles * RELAYI_TILE);
    if (next.start >= work->args->end) return ahead;
    int64_t bytes = 2 * next.tiles * relayi_tile_elements(work->dim);
    ahead.at[0] = (const char *)packed_tile(work, work->args->kv.key, next.start);
    ahead.at[1] = (const char *)packed_tile(work, work->args->kv.value, next.start);
    ahead.end[0] = ahead.at[0] + bytes;
    ahead.end[1] = ahead.at[1] + bytes;
    int64_t groups = (work->blocks + AMX_GROUP - 1) / AMX_GROUP;
    int64_t score_steps = 4 * super.tiles * work->steps * work->query_terms;
    int64_t value_steps = 2 * super.tiles * (work->dim / 16) * work->prob_terms;
    int64_t steps = groups * (score_steps + value_steps) + work->args->rows;
    ahead.lines = (int32_t)(2 * bytes / 64 / steps + 1);
    return ahead;
}

static void attend_packed(amx_work *work) {
    relayi_amx_pack_query(work, false);
    for (token_span super = super_tile(work->args, work->args->begin); super.tiles > 0;
         super = super_tile(work->args, super.start + super.tiles * RELAYI_TILE)) {
        work->ahead = look_ahead_of(work, super);
        for (int32_t first = 0; first < work->blocks; first += AMX_GROUP) {
            amx_group group = make_group(work, first);
            attend_packed_group(work, &group, super);
        }
    }
}

/* ---- pages, and any memory with strides */

/* Can the 16 tokens from `token` on be read as rows of one block? */
static bool rows_together(const relayi_attend_args *args, int32_t token) {
    if (args->end - token < 16) return false;
    return !args->kv.block_table || token % args->kv.block_size + 16 <= args->kv.block_size;
}

/* One super-tile of pages as the tile products take it; what a row group needs first gathers. */
typedef struct page_tiles {
    token_span super;
    bool ready[AMX_SUPER];
    const uint16_t *key[AMX_SUPER][4]; /* first of 16 rows */
    int64_t key_stride[AMX_SUPER];     /* bytes */
} page_tiles;

static uint16_t *tile_area(const amx_work *work, uint16_t *area, int32_t tile) {
    return area + (int64_t)tile * RELAYI_TILE * work->steps * AMX_DEPTH;
}

/* K as it lies, if it can be read in rows of 16, and if too few rows use it to pay for a copy. */
static bool key_in_place(const amx_work *work, int32_t start, page_tiles *pages, int32_t tile) {
    if (work->blocks > 1 || work->dim % AMX_DEPTH) return false;
    for (int32_t i = 0; i < 4; i++) {
        if (!rows_together(work->args, start + 16 * i)) return false;
        pages->key[tile][i] = amx_key_at(&work->args->kv, start + 16 * i);
    }
    pages->key_stride[tile] = 2 * work->args->kv.key_token_stride;
    return true;
}

static void prepare_tile(amx_work *work, page_tiles *pages, int32_t tile) {
    if (pages->ready[tile]) return;
    pages->ready[tile] = true;
    int32_t start = pages->super.start + tile * RELAYI_TILE;
    int32_t count = work->args->end - start < RELAYI_TILE ? work->args->end - start : RELAYI_TILE;
    if (!key_in_place(work, start, pages, tile)) {
        uint16_t *key = tile_area(work, work->key, tile);
        relayi_amx_gather_key(work, start, count, key);
        pages->key_stride[tile] = 2 * (int64_t)work->steps * AMX_DEPTH;
        for (int32_t i = 0; i < 4; i++) pages->key[tile][i] = key + 16 * i * work->steps * AMX_DEPTH;
    }
    relayi_amx_gather_value(work, start, count, tile_area(work, work->value, tile));
}

static void attend_pages_group(amx_work *work, const amx_group *group, page_tiles *pages) {
    token_span span = visible_span(work, group, pages->super);
    if (span.tiles == 0) return;
    int32_t skipped = (span.start - pages->super.start) / RELAYI_TILE;
    const uint16_t *value[AMX_SUPER];
    for (int32_t t = 0; t < span.tiles; t++) {
        int32_t start = span.start + t * RELAYI_TILE, tile = skipped + t;
        prepare_tile(work, pages, tile);
        value[t] = tile_area(work, work->value, tile);
        relayi_amx_scores_t(work, group, pages->key[tile], pages->key_stride[tile], 4 * t);
        if (work->transform) relayi_amx_transform_t(work, group, start, 4 * t);
        if (!tile_open(work, group, start)) relayi_amx_mask_t(work, group, start, 4 * t);
    }
    relayi_amx_softmax_t(work, group, span.tiles);
    add_values(work, group, span, value);
}

static void attend_pages(amx_work *work) {
    relayi_amx_pack_query(work, true);
    for (token_span super = super_tile(work->args, work->args->begin); super.tiles > 0;
         super = super_tile(work->args, super.start + super.tiles * RELAYI_TILE)) {
        page_tiles pages = {.super = super};
        for (int32_t first = 0; first < work->blocks; first += AMX_GROUP) {
            amx_group group = make_group(work, first);
            attend_pages_group(work, &group, &pages);
        }
    }
}

/* ---- entries */

static void attend(const relayi_attend_args *args, int32_t query_terms, int32_t prob_terms) {
    amx_work work = begin_work(args, query_terms, prob_terms);
    load_tail(&work);
    relayi_amx_begin();
    if (args->kv.packed) attend_packed(&work);
    else attend_pages(&work);
    relayi_amx_end();
    store_tail(&work);
}

void relayi_attend_bf16_amx(const relayi_attend_args *args) { attend(args, 1, 1); }
void relayi_attend_bf16_split_amx(const relayi_attend_args *args) { attend(args, 3, 2); }

static relayi_attend_kernel entry(const char *name, relayi_attend_fn *fn, int32_t needs_16bit_query) {
    return (relayi_attend_kernel){.name = name, .attend = fn, .features = RELAYI_DOES_ALL,
                                  .needs_16bit_query = needs_16bit_query, .head_dim_multiple = 16,
                                  .row_block = AMX_ROWS, .scratch_bytes = RELAYI_SCRATCH_AMX};
}

void relayi_kernels_amx(relayi_kernels *table, uint32_t flags) {
    if ((flags & RELAYI_NEEDS_AMX) != RELAYI_NEEDS_AMX) return;
    table->attend_16bit[RELAYI_DT_BF16] = entry("relayi_attend_bf16_amx", relayi_attend_bf16_amx, 1);
    table->attend[RELAYI_DT_BF16] = entry("relayi_attend_bf16_split_amx", relayi_attend_bf16_split_amx, 0);
}
