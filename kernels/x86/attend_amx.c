/* Attention on AMX tiles for bf16 K/V: how super-tiles, row groups and phases follow each other.
 * docs/kernels/amx.md has the blocking and what it reaches. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "amx_attend.h"
#include "amx_vector.h"
#include "x86.h"

/* ---- scratch */

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
    char *scratch = args->scratch;
    work.query = amx_carve(&scratch, (int64_t)work.blocks * query_terms * work.steps * AMX_TILE_BYTES);
    work.scores = amx_carve(&scratch, SCORE_BYTES);
    work.prob = amx_carve(&scratch, PROB_BYTES);
    work.tail = amx_carve(&scratch, TAIL_BYTES);
    work.key = amx_carve(&scratch, KV_BYTES);
    work.value = amx_carve(&scratch, KV_BYTES);
    work.clean = amx_carve(&scratch, KV_BYTES);
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

/* acc += P V, where value[] are the tiles' V.  What not all rows see, or P's terms do not meet alike, is
 * cleaned first. */
static void add_values(amx_work *work, const amx_group *group, token_span span, const uint16_t *const *value) {
    const uint16_t *used[AMX_SUPER] = {0};
    bool unclean[AMX_SUPER];
    for (int32_t t = 0; t < span.tiles; t++) {
        uint16_t *clean = work->clean + t * relayi_tile_elements(work->dim);
        bool alike = work->prob_terms == 1 && tile_open(work, group, span.start + t * RELAYI_TILE);
        unclean[t] = !alike && relayi_amx_clean_value(value[t], work->dim, clean);
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
        relayi_amx_repair_scores(work, group, &(amx_keys){.packed = key}, 4 * t);
        if (work->transform) relayi_amx_transform(work, group, start, 4 * t);
        if (!tile_open(work, group, start)) relayi_amx_mask(work, group, start, 4 * t);
    }
    relayi_amx_softmax(work, group, span.tiles);
    add_values(work, group, span, value);
}

static const char **list_pieces(const char **list, const uint16_t *area, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += AMX_PIECE) *list++ = (const char *)area + at;
    return list;
}

/* As many rows as there is room for. */
static const char **list_rows(const char **list, const char *const *end, const relayi_soon *soon) {
    int64_t pieces = (soon->bytes + AMX_PIECE - 1) / AMX_PIECE;
    for (int32_t row = 0; row < soon->rows && end - list >= pieces; row++)
        for (int64_t piece = 0; piece < pieces; piece++) *list++ = soon->at + row * soon->stride + piece * AMX_PIECE;
    return list;
}

/* The next super-tile's K and V, or what the next call reads, in as many portions as this super-tile
 * has steps. */
static void look_ahead_of(amx_work *work, token_span super, const char **pieces) {
    const relayi_attend_args *args = work->args;
    token_span next = super_tile(args, super.start + super.tiles * RELAYI_TILE);
    const char **end = pieces;
    if (next.tiles > 0) {
        int64_t bytes = 2 * next.tiles * relayi_tile_elements(work->dim);
        end = list_pieces(end, packed_tile(work, args->kv.key, next.start), bytes);
        end = list_pieces(end, packed_tile(work, args->kv.value, next.start), bytes);
    }
    for (int32_t i = 0; next.tiles <= 0 && i < args->num_soon; i++)
        end = list_rows(end, pieces + AMX_MAX_PIECES, &args->soon[i]);
    work->ahead = (amx_ahead){.next = pieces, .end = end, .lines = AMX_PIECE / 64};
    if (end == pieces) return;
    int64_t a_group = 4 * super.tiles * work->steps * work->query_terms +
                      2 * super.tiles * (work->dim / 16) * work->prob_terms;
    int64_t steps = work->args->rows;
    for (int32_t first = 0; first < work->blocks; first += AMX_GROUP)
        steps += a_group / relayi_amx_columns(work->blocks - first);
    work->ahead.a_step = (int32_t)((work->ahead.end - pieces + steps - 1) / steps);
}

static void attend_packed(amx_work *work) {
    const char *pieces[AMX_MAX_PIECES];
    relayi_amx_pack_query(work, false);
    for (token_span super = super_tile(work->args, work->args->begin); super.tiles > 0;
         super = super_tile(work->args, super.start + super.tiles * RELAYI_TILE)) {
        look_ahead_of(work, super, pieces);
        for (int32_t first = 0; first < work->blocks; first += AMX_GROUP) {
            amx_group group = make_group(work, first);
            attend_packed_group(work, &group, super);
        }
    }
}

/* ---- pages, and any memory with strides */

/* One super-tile of pages.  A tile is brought into the form that the products take when the first
 * row group needs it. */
typedef struct page_tiles {
    token_span super;
    bool key_ready[AMX_SUPER], value_ready[AMX_SUPER];
    const uint16_t *key_rows[AMX_SUPER][4]; /* first of 16 rows, key_stride bytes apart */
    int64_t key_stride[AMX_SUPER];
    /* Element 0 of each token of the super-tile, and of the K of the tile behind it. */
    const uint16_t *key[(AMX_SUPER + 1) * RELAYI_TILE], *value[AMX_SUPER * RELAYI_TILE];
    const char *pieces[(2 * AMX_SUPER + 1) * RELAYI_TILE];
} page_tiles;

/* Where tokens [begin, end) begin in K or V; one division a block, not one a token. */
static void find_tokens(const relayi_kv *kv, const void *base, int64_t block_stride, int64_t token_stride,
                        int32_t begin, int32_t end, const uint16_t **tokens) {
    for (int32_t n = begin; n < end;) {
        int32_t in_block = kv->block_table ? n % kv->block_size : n;
        int32_t stop = kv->block_table && end - n > kv->block_size - in_block ? n + kv->block_size - in_block : end;
        int64_t block = kv->block_table ? kv->block_table[n / kv->block_size] : 0;
        const uint16_t *token = (const uint16_t *)base + block * block_stride + in_block * token_stride;
        for (; n < stop; n++, token += token_stride) *tokens++ = token;
    }
}

static int32_t clamp_token(const relayi_attend_args *args, int32_t token) {
    return token < args->end ? token : args->end;
}

/* Finds the super-tile's tokens and lists them as pieces: its K, its V, and the next K tile. */
static void find_pages(amx_work *work, token_span super, page_tiles *pages) {
    const relayi_attend_args *args = work->args;
    const relayi_kv *kv = &args->kv;
    int32_t begin = super.start, end = clamp_token(args, super.start + super.tiles * RELAYI_TILE);
    int32_t next = clamp_token(args, end + RELAYI_TILE);
    pages->super = super;
    memset(pages->key_ready, 0, sizeof pages->key_ready);
    memset(pages->value_ready, 0, sizeof pages->value_ready);
    find_tokens(kv, kv->key, kv->key_block_stride, kv->key_token_stride, begin, next, pages->key);
    find_tokens(kv, kv->value, kv->value_block_stride, kv->value_token_stride, begin, end, pages->value);
    const char **piece = pages->pieces;
    bool first = begin == args->begin; /* later ones were asked for by their forerunner */
    for (int32_t n = first ? begin : clamp_token(args, begin + RELAYI_TILE); n < end; n++)
        *piece++ = (const char *)pages->key[n - begin];
    for (int32_t n = begin; n < end; n++) *piece++ = (const char *)pages->value[n - begin];
    for (int32_t n = end; n < next; n++) *piece++ = (const char *)pages->key[n - begin];
    work->ahead = (amx_ahead){.next = pages->pieces, .end = piece, .lines = (2 * work->dim + 63) / 64};
    if (first) look_ahead(&work->ahead, RELAYI_TILE);
}

/* K as it lies, if it lies in rows of 16, and if too few query rows use it to pay for a copy. */
static bool key_in_place(const amx_work *work, page_tiles *pages, int32_t tile, int32_t count) {
    const relayi_kv *kv = &work->args->kv;
    if (work->blocks > 1 || work->dim % AMX_DEPTH || count < RELAYI_TILE) return false;
    if (kv->block_table && kv->block_size < AMX_ROWS) return false;
    for (int32_t i = 0; i < 4; i++) {
        const uint16_t *const *row = pages->key + tile * RELAYI_TILE + i * AMX_ROWS;
        if (row[AMX_ROWS - 1] - row[0] != (AMX_ROWS - 1) * kv->key_token_stride) return false;
        pages->key_rows[tile][i] = row[0];
    }
    pages->key_stride[tile] = 2 * kv->key_token_stride;
    return true;
}

static int32_t tokens_of_tile(const amx_work *work, const page_tiles *pages, int32_t tile) {
    int32_t start = pages->super.start + tile * RELAYI_TILE;
    return clamp_token(work->args, start + RELAYI_TILE) - start;
}

static void prepare_key(amx_work *work, page_tiles *pages, int32_t tile) {
    int32_t count = tokens_of_tile(work, pages, tile);
    int64_t stride = (int64_t)work->steps * AMX_DEPTH;
    if (pages->key_ready[tile]) return;
    pages->key_ready[tile] = true;
    if (key_in_place(work, pages, tile, count)) return;
    uint16_t *key = work->key + tile * RELAYI_TILE * stride;
    relayi_amx_gather_key(work, pages->key + tile * RELAYI_TILE, count, key);
    pages->key_stride[tile] = 2 * stride;
    for (int32_t i = 0; i < 4; i++) pages->key_rows[tile][i] = key + AMX_ROWS * i * stride;
}

static const uint16_t *prepare_value(amx_work *work, page_tiles *pages, int32_t tile) {
    uint16_t *value = work->value + tile * relayi_tile_elements(work->dim);
    if (!pages->value_ready[tile])
        relayi_amx_gather_value(work, pages->value + tile * RELAYI_TILE, tokens_of_tile(work, pages, tile), value);
    pages->value_ready[tile] = true;
    return value;
}

static void attend_pages_group(amx_work *work, const amx_group *group, page_tiles *pages) {
    token_span span = visible_span(work, group, pages->super);
    if (span.tiles == 0) return;
    int32_t skipped = (span.start - pages->super.start) / RELAYI_TILE;
    for (int32_t t = 0; t < span.tiles; t++) {
        int32_t start = span.start + t * RELAYI_TILE, tile = skipped + t;
        prepare_key(work, pages, tile);
        relayi_amx_scores_t(work, group, pages->key_rows[tile], pages->key_stride[tile], 4 * t);
        amx_keys keys = {.rows = pages->key_rows[tile], .stride = pages->key_stride[tile]};
        relayi_amx_repair_scores(work, group, &keys, 4 * t);
        if (work->transform) relayi_amx_transform_t(work, group, start, 4 * t);
        if (!tile_open(work, group, start)) relayi_amx_mask_t(work, group, start, 4 * t);
    }
    relayi_amx_softmax_t(work, group, span.tiles);
    const uint16_t *value[AMX_SUPER];
    for (int32_t t = 0; t < span.tiles; t++) value[t] = prepare_value(work, pages, skipped + t);
    add_values(work, group, span, value);
}

static void attend_pages(amx_work *work) {
    page_tiles pages;
    relayi_amx_pack_query(work, true);
    for (token_span super = super_tile(work->args, work->args->begin); super.tiles > 0;
         super = super_tile(work->args, super.start + super.tiles * RELAYI_TILE)) {
        find_pages(work, super, &pages);
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
    relayi_amx_begin(args->kv.packed && work.blocks == 1 ? args->rows : AMX_ROWS);
    if (args->kv.packed) attend_packed(&work);
    else attend_pages(&work);
    relayi_amx_end();
    store_tail(&work);
}

void relayi_attend_bf16_amx(const relayi_attend_args *args) { attend(args, 1, 1); }
void relayi_attend_bf16_split_amx(const relayi_attend_args *args) { attend(args, 3, 2); }

/* The same as AVX-512 does it, for queries that are not rounded. */
static void attend_few_split(const relayi_attend_args *calls, int32_t num_calls) {
    for (int32_t i = 0; i < num_calls; i++) relayi_attend_bf16_avx512(&calls[i]);
}

static relayi_attend_kernel entry(const char *name, relayi_attend_fn *fn, int32_t needs_16bit_query,
                                  int32_t gflops) {
    return (relayi_attend_kernel){.name = name, .attend = fn, .features = RELAYI_DOES_ALL,
                                  .needs_16bit_query = needs_16bit_query, .head_dim_multiple = 16,
                                  .row_block = AMX_ROWS, .gflops = gflops, .scratch_bytes = RELAYI_SCRATCH_AMX};
}

void relayi_kernels_amx(relayi_kernels *table, uint32_t flags) {
    if ((flags & RELAYI_NEEDS_AMX) != RELAYI_NEEDS_AMX) return;
    relayi_attend_kernel rounding = entry("relayi_attend_bf16_amx", relayi_attend_bf16_amx, 1, 350);
    rounding.few = relayi_attend_heads_bf16_few_amx;
    rounding.few_rows = AMX_ROWS;
    table->attend_16bit[RELAYI_DT_BF16] = rounding;
    relayi_attend_kernel split = entry("relayi_attend_bf16_split_amx", relayi_attend_bf16_split_amx, 0, 250);
    split.few = attend_few_split;
    split.few_rows = 8; /* up to here a tile's fixed work on pages costs more than AVX-512 does */
    table->attend[RELAYI_DT_BF16] = split;
}
