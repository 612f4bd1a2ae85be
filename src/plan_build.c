/* From a forest to work items.
 *
 * Shared items: a segment that the relay reads once is attended by the stacked rows of all its
 * requests.  Request items: the rows of one request attend, in one running state, the segments on
 * its path that are left to it (plain) and its own tokens.  Long ones are cut along tokens, into
 * several partial states a row, where that is needed to keep all threads busy. */
#include "plan_build.h"

#include <stdlib.h>

/* Fewest tiles that a cut may leave, and the fixed cut of repeatable plans. */
#define MIN_CHUNK_TILES 4
#define REPEATABLE_CHUNK_TILES 32
#define ITEMS_PER_THREAD 2
/* Request items are kept smaller than a fair share by this, for balance at the end. */
#define REQUEST_ITEM_FRACTION 4
/* Below this waking the other threads costs more than they bring: some us where they spin, up to a
 * hundred where they sleep. */
#define PARALLEL_FROM_NS 50000.0f

typedef struct builder {
    relay_plan *plan;
    const relayi_forest_content *content;
    int32_t *row_start; /* [num_requests + 1] by position */
    int32_t *parts;     /* [num_requests] states given so far to the rows of a position */
    int32_t *relayed;   /* [num_segments] */
    float share;        /* cost that an item should not exceed */
    relayi_piece *path; /* scratch: the pieces of one request, as many as a path is deep + 1 */
    bool out_of_memory;
} builder;

typedef struct token_range {
    int32_t lo, hi;
} token_range;

/* ---- what is visible ------------------------------------------------------ */

/* Tokens of a span starting at `start` that queries at positions [first, last] see between them. */
static token_range visible(const relay_plan *plan, int32_t start, int32_t length, int32_t first, int32_t last) {
    const relay_attention *a = &plan->attention;
    token_range range = {0, length};
    if (last + 1 - start < range.hi) range.hi = last + 1 - start;
    bool keep_front = a->sliding_window == 0 || (a->num_sink_tokens > start);
    if (!keep_front && first - a->sliding_window + 1 > start) range.lo = first - a->sliding_window + 1 - start;
    return range;
}

static void position_range(const relay_plan *plan, int32_t row_begin, int32_t row_end, int32_t *first,
                           int32_t *last) {
    *first = *last = plan->rows[row_begin].position;
    for (int32_t i = row_begin + 1; i < row_end; i++) {
        if (plan->rows[i].position < *first) *first = plan->rows[i].position;
        if (plan->rows[i].position > *last) *last = plan->rows[i].position;
    }
}

/* The piece of a span that plan rows [row_begin, row_end) need; empty if begin >= end. */
static relayi_piece piece_of(const relay_plan *plan, const relay_kv_span *span, int32_t start, int32_t row_begin,
                             int32_t row_end) {
    int32_t first, last;
    position_range(plan, row_begin, row_end, &first, &last);
    token_range range = visible(plan, start, span->length, first, last);
    /* A repeatable plan cuts at the same tokens whoever else is in the batch. */
    int32_t grid = plan->options.repeatable ? REPEATABLE_CHUNK_TILES * RELAYI_TILE : RELAYI_TILE;
    return (relayi_piece){.span = span, .start = start, .begin = range.lo / grid * grid, .end = range.hi};
}

static int64_t tiles_of(const relayi_piece *piece) {
    return piece->end > piece->begin ? relayi_num_tiles(piece->end - piece->begin) : 0;
}

/* ---- emitting items ------------------------------------------------------- */

static relayi_piece *add_piece(builder *b) {
    relay_plan *plan = b->plan;
    size_t used = (size_t)plan->num_pieces * sizeof *plan->pieces;
    if (!relayi_grow_keep(&plan->piece_memory, (size_t)plan->num_pieces + 1, sizeof *plan->pieces, used)) {
        b->out_of_memory = true;
        return NULL;
    }
    plan->pieces = plan->piece_memory.data;
    return &plan->pieces[plan->num_pieces++];
}

static void add_item(builder *b, relayi_item item) {
    relay_plan *plan = b->plan;
    size_t used = (size_t)plan->num_items * sizeof *plan->items;
    if (!relayi_grow_keep(&plan->item_memory, (size_t)plan->num_items + 1, sizeof *plan->items, used)) {
        b->out_of_memory = true;
        return;
    }
    plan->items = plan->item_memory.data;
    plan->items[plan->num_items++] = item;
}

/* Where a walk over the tiles of a list of pieces stands. */
typedef struct walk {
    int32_t piece, token;
} walk;

/* Copies the next `tiles` tiles of the pieces into the plan; returns how many pieces that made. */
static int32_t take_tiles(builder *b, const relayi_piece *pieces, int32_t num_pieces, walk *at, int64_t tiles,
                          int64_t *taken_tokens) {
    int32_t made = 0;
    *taken_tokens = 0;
    while (tiles > 0 && at->piece < num_pieces) {
        relayi_piece part = pieces[at->piece];
        if (at->token > part.begin) part.begin = at->token;
        int64_t have = tiles_of(&part), use = have < tiles ? have : tiles;
        if (have > use) part.end = part.begin + (int32_t)use * RELAYI_TILE;
        at->token = part.end;
        if (have <= use) *at = (walk){.piece = at->piece + 1};
        tiles -= use;
        if (use == 0) continue;
        relayi_piece *copy = add_piece(b);
        if (copy == NULL) return made;
        *copy = part;
        *taken_tokens += part.end - part.begin;
        made++;
    }
    return made;
}

/* One chunk of pieces for some stacked rows: an item for each run of kv heads. */
static void add_chunk(builder *b, int32_t row_begin, int32_t row_end, int32_t first_piece, int32_t num_pieces,
                      int64_t tokens, int32_t part) {
    int32_t heads = b->plan->attention.num_kv_heads;
    float cost = relayi_cost(b->plan, row_end - row_begin, tokens);
    float fit = b->share / REQUEST_ITEM_FRACTION / (cost > 0.0f ? cost : 1.0f);
    int32_t per_item = fit >= (float)heads ? heads : fit > 1.0f ? (int32_t)fit : 1;
    for (int32_t kv = 0; kv < heads; kv += per_item) {
        int32_t end = kv + per_item < heads ? kv + per_item : heads;
        add_item(b, (relayi_item){.kv_begin = kv, .kv_end = end, .row_begin = row_begin, .row_end = row_end,
                                  .first_piece = first_piece, .num_pieces = num_pieces, .part = part,
                                  .cost = cost * (float)(end - kv)});
    }
}

/* Tiles a chunk may have so that no item exceeds the share. */
static int64_t chunk_tiles(const builder *b, int32_t rows, const relayi_piece *pieces, int32_t num_pieces) {
    if (b->plan->options.repeatable) return REPEATABLE_CHUNK_TILES;
    int64_t tiles = 0;
    for (int32_t i = 0; i < num_pieces; i++) tiles += tiles_of(&pieces[i]);
    float cost = relayi_cost(b->plan, rows, tiles * RELAYI_TILE);
    int64_t chunks = cost > b->share ? (int64_t)(cost / b->share) + 1 : 1;
    int64_t each = (tiles + chunks - 1) / chunks;
    return each < MIN_CHUNK_TILES ? MIN_CHUNK_TILES : each;
}

/* All chunks of a list of pieces for stacked rows [row_begin, row_end); returns their number. */
static int32_t add_chunks(builder *b, int32_t row_begin, int32_t row_end, const relayi_piece *pieces,
                          int32_t num_pieces, int64_t tiles, int32_t part) {
    int32_t chunks = 0;
    walk at = {0};
    while (at.piece < num_pieces && !b->out_of_memory) {
        int32_t first = b->plan->num_pieces;
        int64_t tokens;
        int32_t made = take_tiles(b, pieces, num_pieces, &at, tiles, &tokens);
        if (made > 0) add_chunk(b, row_begin, row_end, first, made, tokens, part + chunks++);
    }
    return chunks;
}

/* ---- shared items --------------------------------------------------------- */

static int32_t slice_rows(int32_t rows) {
    int32_t slices = (rows + RELAYI_MAX_ROWS - 1) / RELAYI_MAX_ROWS;
    int32_t each = (rows + slices - 1) / slices;
    each = (each + 15) / 16 * 16;
    return each < RELAYI_MAX_ROWS ? each : RELAYI_MAX_ROWS;
}

static void add_shared(builder *b, int32_t index) {
    const relayi_segment *segment = &b->content->segments[index];
    int32_t row_begin = b->row_start[segment->first], row_end = b->row_start[segment->first + segment->count];
    relayi_piece piece = piece_of(b->plan, &segment->kv, segment->start, row_begin, row_end);
    if (tiles_of(&piece) == 0) return;
    int32_t group = b->plan->group, part = b->parts[segment->first], chunks = 0;
    int32_t slice = slice_rows((row_end - row_begin) * group);
    int64_t tiles = chunk_tiles(b, slice, &piece, 1);
    for (int32_t row = row_begin * group; row < row_end * group; row += slice) {
        int32_t end = row + slice < row_end * group ? row + slice : row_end * group;
        chunks = add_chunks(b, row, end, &piece, 1, tiles, part);
    }
    for (int32_t p = segment->first; p < segment->first + segment->count; p++) b->parts[p] += chunks;
}

/* ---- request items -------------------------------------------------------- */

/* The plain segments on a position's path, root first, then its own tokens, as plan rows
 * [row_begin, row_end) see them. */
static int32_t collect_path(builder *b, int32_t position, int32_t row_begin, int32_t row_end) {
    const relayi_forest_content *content = b->content;
    int32_t count = 0, end = 0;
    for (int32_t s = content->leaf[position]; s >= 0; s = content->segments[s].parent) {
        const relayi_segment *segment = &content->segments[s];
        if (end == 0) end = segment->start + segment->kv.length;
        if (!b->relayed[s])
            b->path[count++] = piece_of(b->plan, &segment->kv, segment->start, row_begin, row_end);
    }
    for (int32_t i = 0, j = count - 1; i < j; i++, j--) {
        relayi_piece swap = b->path[i];
        b->path[i] = b->path[j];
        b->path[j] = swap;
    }
    const relay_kv_span *own = &content->own[content->order[position]];
    b->path[count++] = piece_of(b->plan, own, end, row_begin, row_end);
    return count;
}

static int32_t add_pieces(builder *b, int32_t begin, int32_t end, int32_t num_pieces, int64_t tiles,
                          int32_t part) {
    if (!b->plan->options.repeatable) return add_chunks(b, begin, end, b->path, num_pieces, tiles, part);
    int32_t chunks = 0; /* spans are never joined, so that sharing one or not cuts alike */
    for (int32_t i = 0; i < num_pieces; i++)
        chunks += add_chunks(b, begin, end, &b->path[i], 1, tiles, part + chunks);
    return chunks;
}

/* Plan rows [begin, end): few enough for one kernel call, or a single row of a huge group, whose
 * slices are then all cut alike. */
static void add_row_block(builder *b, int32_t position, int32_t begin, int32_t end) {
    relay_plan *plan = b->plan;
    int32_t row_end = end * plan->group, part = b->parts[position], chunks = 0;
    int32_t num_pieces = collect_path(b, position, begin, end);
    int32_t slice = row_end - begin * plan->group;
    if (slice > RELAYI_MAX_ROWS) slice = RELAYI_MAX_ROWS;
    int64_t tiles = chunk_tiles(b, slice, b->path, num_pieces);
    for (int32_t row = begin * plan->group; row < row_end; row += slice)
        chunks = add_pieces(b, row, row + slice < row_end ? row + slice : row_end, num_pieces, tiles, part);
    for (int32_t i = begin; i < end; i++) plan->rows[i].parts = part + chunks;
}

static void add_request(builder *b, int32_t position) {
    int32_t last = b->row_start[position + 1];
    int32_t block = b->plan->group < RELAYI_MAX_ROWS ? RELAYI_MAX_ROWS / b->plan->group : 1;
    for (int32_t row = b->row_start[position]; row < last; row += block)
        add_row_block(b, position, row, row + block < last ? row + block : last);
}

/* ---- the whole ------------------------------------------------------------ */

static void number_rows(builder *b) {
    const relayi_forest_content *content = b->content;
    relayi_row *row = b->plan->rows;
    for (int32_t p = 0; p < content->num_requests; p++) {
        int32_t request = content->order[p], begin = content->query_start[request];
        int32_t count = content->query_start[request + 1] - begin;
        const relayi_segment *leaf = content->leaf[p] < 0 ? NULL : &content->segments[content->leaf[p]];
        int32_t first = (leaf ? leaf->start + leaf->kv.length : 0) + content->own[request].length - count;
        b->row_start[p] = (int32_t)(row - b->plan->rows);
        b->parts[p] = 0;
        for (int32_t i = 0; i < count; i++)
            *row++ = (relayi_row){.source = begin + i, .position = first + i, .path = p};
    }
    b->row_start[content->num_requests] = (int32_t)(row - b->plan->rows);
}

static int32_t rows_of(const builder *b, const relayi_segment *segment) {
    return b->row_start[segment->first + segment->count] - b->row_start[segment->first];
}

static void choose_relayed(builder *b) {
    relay_plan *plan = b->plan;
    for (int32_t s = 0; s < b->content->num_segments; s++) {
        const relayi_segment *segment = &b->content->segments[s];
        int32_t rows = rows_of(b, segment);
        switch (plan->options.strategy) {
        case RELAY_STRATEGY_RELAY: b->relayed[s] = 1; break;
        case RELAY_STRATEGY_PLAIN: b->relayed[s] = 0; break;
        default: b->relayed[s] = plan->options.repeatable || relayi_relay_pays(plan, segment, rows);
        }
        if (rows == 0 || segment->kv.length == 0) continue;
        if (b->relayed[s]) {
            plan->info.relay_segments++;
            plan->info.shared_tokens_saved += (int64_t)(segment->count - 1) * segment->kv.length;
        } else {
            plan->info.plain_segments++;
        }
    }
}

static int64_t visible_tokens(const relay_attention *a, int32_t position) {
    int64_t all = (int64_t)position + 1;
    if (a->sliding_window == 0 || all <= a->sliding_window) return all;
    int64_t hidden = all - a->sliding_window;
    return a->sliding_window + (a->num_sink_tokens < hidden ? a->num_sink_tokens : hidden);
}

static double bytes_of(const relay_plan *plan, const relay_kv_span *span, int32_t start, int32_t row_begin,
                       int32_t row_end) {
    if (row_begin == row_end) return 0.0;
    relayi_piece piece = piece_of(plan, span, start, row_begin, row_end);
    if (piece.end <= piece.begin) return 0.0;
    const relay_attention *a = &plan->attention;
    return 2.0 * (piece.end - piece.begin) * a->num_kv_heads * a->head_dim * (double)relay_dtype_size(a->kv_dtype);
}

/* What the step reads and computes, and the cost of all of it as it has been chosen. */
static float measure(builder *b) {
    relay_plan *plan = b->plan;
    const relayi_forest_content *content = b->content;
    float cost = 0.0f;
    for (int32_t s = 0; s < content->num_segments; s++) {
        const relayi_segment *segment = &content->segments[s];
        int32_t begin = b->row_start[segment->first], end = b->row_start[segment->first + segment->count];
        plan->info.unique_kv_bytes += bytes_of(plan, &segment->kv, segment->start, begin, end);
        float once = relayi_cost(plan, (int64_t)(end - begin) * plan->group, segment->kv.length);
        float each = relayi_cost(plan, (int64_t)(end - begin) / segment->count * plan->group, segment->kv.length);
        cost += b->relayed[s] ? once : each * (float)segment->count;
    }
    for (int32_t p = 0; p < content->num_requests; p++) {
        const relay_kv_span *own = &content->own[content->order[p]];
        int32_t begin = b->row_start[p], end = b->row_start[p + 1];
        const relayi_segment *leaf = content->leaf[p] < 0 ? NULL : &content->segments[content->leaf[p]];
        plan->info.unique_kv_bytes += bytes_of(plan, own, leaf ? leaf->start + leaf->kv.length : 0, begin, end);
        cost += relayi_cost(plan, (int64_t)(end - begin) * plan->group, own->length);
    }
    for (int32_t i = 0; i < plan->num_rows; i++)
        plan->info.flops += 4.0 * plan->attention.head_dim * plan->attention.num_heads *
                            (double)visible_tokens(&plan->attention, plan->rows[i].position);
    return cost * (float)plan->attention.num_kv_heads;
}

static int by_falling_cost(const void *a, const void *b) {
    const relayi_item *x = a, *y = b;
    if (x->cost != y->cost) return x->cost > y->cost ? -1 : 1;
    /* A total order: the same plan on every platform's qsort. */
    if (x->row_begin != y->row_begin) return x->row_begin < y->row_begin ? -1 : 1;
    if (x->part != y->part) return x->part < y->part ? -1 : 1;
    return (x->kv_begin > y->kv_begin) - (x->kv_begin < y->kv_begin);
}

static void sort_items(relayi_item *items, int32_t count) {
    for (int32_t i = 1; i < count; i++)
        if (by_falling_cost(&items[i - 1], &items[i]) > 0) {
            qsort(items, (size_t)count, sizeof *items, by_falling_cost);
            return;
        }
}

static bool reserve(builder *b) {
    relay_plan *plan = b->plan;
    size_t requests = (size_t)b->content->num_requests, segments = (size_t)b->content->num_segments;
    size_t marks = (2 * requests + segments + 1) * sizeof(int32_t);
    marks = (marks + sizeof(void *) - 1) / sizeof(void *) * sizeof(void *);
    if (!relayi_grow(&plan->row_memory, (size_t)plan->num_rows, sizeof *plan->rows) ||
        !relayi_grow(&plan->mark_memory, 1, marks + (segments + 1) * sizeof *b->path))
        return false;
    plan->rows = plan->row_memory.data;
    b->row_start = plan->mark_memory.data;
    b->parts = b->row_start + requests + 1;
    b->relayed = b->parts + requests;
    b->path = (relayi_piece *)(void *)((char *)plan->mark_memory.data + marks);
    return true;
}

static void count_parts(relay_plan *plan) {
    plan->max_parts = 1;
    for (int32_t i = 0; i < plan->num_rows; i++)
        if (plan->rows[i].parts > plan->max_parts) plan->max_parts = plan->rows[i].parts;
}

bool relayi_build(relay_plan *plan, const relayi_forest_content *content) {
    builder b = {.plan = plan, .content = content};
    plan->info = (relay_plan_info){.num_requests = content->num_requests};
    plan->num_rows = content->query_start ? content->query_start[content->num_requests] : 0;
    plan->num_items = plan->num_pieces = plan->num_shared_items = 0;
    plan->info.num_rows = plan->num_rows;
    if (plan->num_rows == 0) return true;
    if (!reserve(&b)) return false;
    number_rows(&b);
    choose_relayed(&b);
    plan->cost = measure(&b);
    plan->threads = plan->cost < PARALLEL_FROM_NS ? 1 : plan->device->threads;
    b.share = plan->cost / (float)(plan->threads == 1 ? 1 : plan->threads * ITEMS_PER_THREAD);
    for (int32_t s = 0; s < content->num_segments; s++)
        if (b.relayed[s] && rows_of(&b, &content->segments[s]) > 0) add_shared(&b, s);
    plan->num_shared_items = plan->num_items;
    for (int32_t p = 0; p < content->num_requests; p++) add_request(&b, p);
    if (b.out_of_memory) return false;
    sort_items(plan->items, plan->num_shared_items);
    sort_items(plan->items + plan->num_shared_items, plan->num_items - plan->num_shared_items);
    count_parts(plan);
    plan->info.num_work_items = plan->num_items;
    return true;
}
