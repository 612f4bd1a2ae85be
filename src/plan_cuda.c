/* From a forest to the work list of a CUDA device.
 *
 * Runs: a segment that the relay reads once, for the rows of all its requests; and for each request
 * what is left to it (plain segments and its own tokens).  A run's stacked rows are divided into
 * tiles, its tokens into chunks, so that a unit costs no more than its share of one block's time. */
#include "plan_cuda.h"

#include <stdlib.h>
#include <string.h>

#include "device_cuda.h"
#include "log.h"

/* Time of a token in one kv head by shape, in units of what reading it alone takes, and what a
 * unit costs besides: start, merging of warps, writing its states. */
static const float token_cost[RELAYI_CUDA_NUM_SHAPES] = {1.0f, 1.6f, 3.0f};
#define UNIT_COST 96.0f
/* Fewest tokens of a chunk; and what sharing has to save, in tokens of one kv head read
 * again, to pay for a part. */
#define MIN_CHUNK 128
#define MIN_SAVING 8000
/* On the Hopper kernel, of all prompts together: bench/fit_cuda.py.  Prompts take time of their own, rows have more states
 * to merge, and requests' own tokens less memory on its way; rows of one head make the least of memory without prompts.
 * The first is three times what it is where nothing but this kernel runs: its code is longer than plain attention's, and
 * between the layers of a model it comes from memory (docs/kernels/hopper.md). */
#define MIN_SAVING_HOPPER 60000
#define SAVING_PER_ROW 12 /* and query head */
#define SAVING_PER_OWN 1.35
#define MOST_OWN 131072 /* of own tokens that count: more of them keep memory busy either way */
#define SAVING_PER_OWN_ALONE 0.5 /* if a kv head has one query head */
#define EXTRA_STATES_PER_SLOT 256 /* states that cutting may add */
#define EXTRA_UNITS_PER_SLOT 10   /* and units */

typedef struct builder {
    relay_plan *plan;
    relayi_cuda_plan *cuda;
    const relayi_forest_content *content;
    int32_t *row_start;           /* [requests + 1] by position */
    int32_t *relayed;             /* [segments]: index of its cut, or -1 */
    relayi_cuda_row *rows;        /* [rows]: source and position */
    relayi_cuda_cut *cuts;        /* [segments + requests] */
    relayi_cuda_piece *pieces;    /* of all cuts */
    int32_t *own_cut;             /* [requests]: cut of a position, or -1 */
    int32_t *order;               /* cuts by falling unit cost */
    int32_t num_cuts, num_rows;
    int64_t num_pieces, num_ids;
    bool hopper, shares; /* the kernel; whether sharing pays at all */
} builder;

/* ---- memory --------------------------------------------------------------- */

static char *place(char **at, size_t bytes) {
    char *here = *at;
    *at += (bytes + 15) / 16 * 16;
    return here;
}

/* Pieces: each segment once, if read once; else once a request. */
static int64_t most_pieces(const builder *b) {
    int64_t count = b->content->num_segments + b->content->num_requests;
    for (int32_t p = 0; p < b->content->num_requests; p++)
        for (int32_t s = b->content->leaf[p]; s >= 0; s = b->content->segments[s].parent) count++;
    return count;
}

static bool reserve_scratch(builder *b) {
    size_t requests = (size_t)b->content->num_requests, segments = (size_t)b->content->num_segments;
    size_t pieces = (size_t)most_pieces(b), rows = (size_t)b->num_rows;
    size_t bytes = (3 * requests + 2 * segments + 8) * sizeof(int32_t) + rows * sizeof *b->rows +
                   (segments + requests) * sizeof *b->cuts + pieces * sizeof *b->pieces + 8 * 16;
    if (!relayi_grow(&b->cuda->scratch_memory, bytes, 1)) return false;
    char *at = b->cuda->scratch_memory.data;
    b->row_start = (void *)place(&at, (requests + 1) * sizeof(int32_t));
    b->relayed = (void *)place(&at, segments * sizeof(int32_t));
    b->own_cut = (void *)place(&at, requests * sizeof(int32_t));
    b->order = (void *)place(&at, (segments + requests) * sizeof(int32_t));
    b->rows = (void *)place(&at, rows * sizeof *b->rows);
    b->cuts = (void *)place(&at, (segments + requests) * sizeof *b->cuts);
    b->pieces = (void *)place(&at, pieces * sizeof *b->pieces);
    return true;
}

/* ---- rows and spans ------------------------------------------------------- */

static void number_rows(builder *b) {
    const relayi_forest_content *content = b->content;
    int32_t row = 0;
    for (int32_t p = 0; p < content->num_requests; p++) {
        int32_t request = content->order[p], begin = content->query_start[request];
        int32_t count = content->query_start[request + 1] - begin;
        int32_t first = relayi_path_end(content, p) + content->own[request].length - count;
        b->row_start[p] = row;
        for (int32_t i = 0; i < count; i++)
            b->rows[row++] = (relayi_cuda_row){.source = begin + i, .position = first + i};
    }
    b->row_start[content->num_requests] = row;
}

static void position_range(const builder *b, int32_t row_begin, int32_t row_end, int32_t *first, int32_t *last) {
    *first = *last = b->rows[row_begin].position;
    for (int32_t i = row_begin + 1; i < row_end; i++) {
        if (b->rows[i].position < *first) *first = b->rows[i].position;
        if (b->rows[i].position > *last) *last = b->rows[i].position;
    }
}

/* Narrows a piece to what rows at positions [first, last] see between them. */
static void narrow(const builder *b, relayi_cuda_piece *piece, int32_t first, int32_t last) {
    const relay_attention *a = &b->plan->attention;
    if (last + 1 - piece->start < piece->end) piece->end = last + 1 - piece->start;
    bool keep_front = a->sliding_window == 0 || a->num_sink_tokens > piece->start;
    int64_t lo = (int64_t)first - a->sliding_window + 1 - piece->start;
    if (keep_front || lo <= piece->begin) return;
    int32_t grid = b->plan->options.repeatable ? RELAYI_CUDA_REPEATABLE_CUT : RELAYI_CUDA_CUT;
    int32_t begin = (int32_t)(lo > piece->end ? piece->end : lo) / grid * grid;
    if (begin > piece->begin) piece->begin = begin;
}

static int64_t round_up(int64_t tokens, int64_t to) { return (tokens + to - 1) / to * to; }

static int64_t cut_tokens(const builder *b, const relayi_cuda_piece *piece) {
    if (piece->end <= piece->begin) return 0;
    return round_up((int64_t)piece->end - piece->begin, b->hopper ? RELAYI_CUDA_PAGE : RELAYI_CUDA_CUT);
}

/* Adds a span to the cut in progress, if its rows see any of it. */
static void add_span(builder *b, relayi_cuda_cut *cut, const relay_kv_span *span, int32_t start, int32_t ids,
                     int32_t first, int32_t last) {
    relayi_cuda_piece piece = {.tensor = span->layout == RELAY_KV_PAGED ? -1 : span->tensor_index, .ids = ids,
                               .start = start, .end = span->length};
    narrow(b, &piece, first, last);
    if (cut_tokens(b, &piece) == 0) return;
    b->pieces[b->num_pieces++] = piece;
    cut->num_pieces++;
    cut->tokens += cut_tokens(b, &piece);
}

/* ---- what is shared ------------------------------------------------------- */

static bool hopper_computes(const relay_plan *plan) {
    const relay_attention *a = &plan->attention;
    return relayi_cuda_is_hopper(plan->device) && (a->head_dim == 64 || a->head_dim == 128) && a->logit_soft_cap == 0.0f &&
           !a->use_alibi && a->sliding_window == 0 && plan->group <= RELAYI_CUDA_HOPPER_ROWS && !plan->options.repeatable;
}

static int64_t saving_of(const builder *b, int32_t segment) {
    const relayi_segment *s = &b->content->segments[segment];
    return (int64_t)(s->count - 1) * s->kv.length * b->plan->attention.num_kv_heads;
}

/* Prompts beside requests' own tokens cost the Hopper kernel some microseconds more than plain attention. */
static void weigh_sharing(builder *b) {
    const relay_attention *a = &b->plan->attention;
    double total = 0.0, own = 0.0;
    b->shares = true;
    if (!b->hopper) return;
    for (int32_t s = 0; s < b->content->num_segments; s++)
        if (saving_of(b, s) >= MIN_SAVING) total += (double)saving_of(b, s);
    for (int32_t r = 0; r < b->content->num_requests; r++) own += (double)b->content->own[r].length * a->num_kv_heads;
    if (own > MOST_OWN) own = MOST_OWN;
    double least = MIN_SAVING_HOPPER + (double)SAVING_PER_ROW * b->num_rows * a->num_heads +
                   own * (b->plan->group == 1 ? SAVING_PER_OWN_ALONE : SAVING_PER_OWN);
    b->shares = total >= least;
}

static bool relay_pays(const builder *b, int32_t segment) {
    switch (b->plan->options.strategy) {
    case RELAY_STRATEGY_RELAY: return true;
    case RELAY_STRATEGY_PLAIN: return false;
    default: break;
    }
    return b->plan->options.repeatable || (b->shares && saving_of(b, segment) >= MIN_SAVING);
}

static void shape_rows(const builder *b, relayi_cuda_cut *cut, int32_t most) {
    int32_t stacked = (cut->row_end - cut->row_begin) * b->plan->group;
    cut->tiles = (stacked + most - 1) / most;
    cut->tile_rows = ((stacked + cut->tiles - 1) / cut->tiles + 15) / 16 * 16;
    cut->shape = cut->tile_rows > 64 ? RELAYI_CUDA_WIDE : RELAYI_CUDA_TALL;
    /* a repeatable row is computed alike whoever is beside it */
    if (cut->tile_rows <= 16 && !b->plan->options.repeatable) cut->shape = RELAYI_CUDA_FLAT;
    cut->tiles = (stacked + cut->tile_rows - 1) / cut->tile_rows;
}

/* Tiles of more than 64 rows, which keep both consumers of a block busy with every token, by twos: a cluster of two
 * blocks reads K and V for both. */
static int32_t pairs_of(const builder *b, const relayi_cuda_cut *cut) {
    int32_t last = (cut->row_end - cut->row_begin) * b->plan->group - (cut->tiles - 1) * cut->tile_rows;
    return cut->tile_rows > 64 ? (last > 64 ? cut->tiles : cut->tiles - 1) / 2 : 0;
}

/* Few rows, or rows that do not all see the same tokens, go to single warps. */
static void shape_hopper(const builder *b, relayi_cuda_cut *cut, bool shared) {
    int32_t stacked = (cut->row_end - cut->row_begin) * b->plan->group;
    shape_rows(b, cut, RELAYI_CUDA_HOPPER_WIDE);
    if (shared && stacked > RELAYI_CUDA_HOPPER_ROWS) {
        if (cut->shape == RELAYI_CUDA_FLAT) cut->shape = RELAYI_CUDA_TALL;
        cut->pairs = pairs_of(b, cut);
        return;
    }
    cut->shape = RELAYI_CUDA_FLAT;
    cut->tile_rows = RELAYI_CUDA_HOPPER_ROWS;
    cut->tiles = (stacked + cut->tile_rows - 1) / cut->tile_rows;
}

static relayi_cuda_cut *begin_cut(builder *b, int32_t row_begin, int32_t row_end, bool shared) {
    relayi_cuda_cut *cut = &b->cuts[b->num_cuts];
    *cut = (relayi_cuda_cut){.row_begin = row_begin, .row_end = row_end, .first_piece = (int32_t)b->num_pieces};
    if (b->hopper) {
        shape_hopper(b, cut, shared);
        return cut;
    }
    bool wide = b->plan->attention.head_dim <= 128 && !b->plan->options.repeatable;
    shape_rows(b, cut, wide ? 128 : 64);
    return cut;
}

/* Few tokens: narrower tiles read them twice but keep more of the device busy. */
static bool leaves_idle(const builder *b, const relayi_cuda_cut *cut) {
    int64_t units = (cut->tokens + MIN_CHUNK - 1) / MIN_CHUNK * cut->tiles * 2 * b->plan->attention.num_kv_heads;
    return units <= b->cuda->work_slots;
}

static int32_t end_cut(builder *b, relayi_cuda_cut *cut) {
    if (cut->num_pieces == 0) return -1;
    if (!b->hopper && cut->shape == RELAYI_CUDA_WIDE && leaves_idle(b, cut)) shape_rows(b, cut, 64);
    return b->num_cuts++;
}

static double bytes_of(const builder *b, const relayi_cuda_piece *piece) {
    const relay_attention *a = &b->plan->attention;
    if (piece->end <= piece->begin) return 0.0;
    return 2.0 * (piece->end - piece->begin) * a->num_kv_heads * a->head_dim * (double)relay_dtype_size(a->kv_dtype);
}

/* Each K/V byte that any row sees, once. */
static void count_bytes(builder *b, const relay_kv_span *span, int32_t start, int32_t row_begin, int32_t row_end) {
    if (row_begin == row_end) return;
    int32_t first, last;
    relayi_cuda_piece piece = {.start = start, .end = span->length};
    position_range(b, row_begin, row_end, &first, &last);
    narrow(b, &piece, first, last);
    b->plan->info.unique_kv_bytes += bytes_of(b, &piece);
}

static void cut_segment(builder *b, int32_t index) {
    const relayi_segment *s = &b->content->segments[index];
    int32_t begin = b->row_start[s->first], end = b->row_start[s->first + s->count], first, last;
    b->relayed[index] = -1;
    count_bytes(b, &s->kv, s->start, begin, end);
    if (begin == end || s->kv.length == 0) return;
    if (!relay_pays(b, index)) {
        b->relayed[index] = -2; /* left to its requests */
        b->plan->info.plain_segments++;
        return;
    }
    b->plan->info.relay_segments++;
    b->plan->info.shared_tokens_saved += (int64_t)(s->count - 1) * s->kv.length;
    relayi_cuda_cut *cut = begin_cut(b, begin, end, true);
    position_range(b, begin, end, &first, &last);
    add_span(b, cut, &s->kv, s->start, relayi_ids_of(b->content, &s->kv), first, last);
    b->relayed[index] = end_cut(b, cut);
}

static void add_path(builder *b, relayi_cuda_cut *cut, int32_t segment, int32_t first, int32_t last) {
    int32_t depth = 0;
    for (int32_t s = segment; s >= 0; s = b->content->segments[s].parent) depth++;
    for (; depth > 0; depth--) { /* the root first: paths are a few segments deep */
        int32_t s = segment;
        for (int32_t i = 1; i < depth; i++) s = b->content->segments[s].parent;
        const relayi_segment *found = &b->content->segments[s];
        if (b->relayed[s] == -2) add_span(b, cut, &found->kv, found->start, relayi_ids_of(b->content, &found->kv), first, last);
    }
}

static void cut_request(builder *b, int32_t position) {
    int32_t begin = b->row_start[position], end = b->row_start[position + 1];
    const relay_kv_span *own = &b->content->own[b->content->order[position]];
    int32_t start = relayi_path_end(b->content, position);
    b->own_cut[position] = -1;
    if (begin == end) return;
    count_bytes(b, own, start, begin, end);
    relayi_cuda_cut *cut = begin_cut(b, begin, end, false);
    int32_t first = b->rows[begin].position, last = b->rows[end - 1].position;
    add_path(b, cut, b->content->leaf[position], first, last);
    add_span(b, cut, own, start, relayi_ids_of(b->content, own), first, last);
    b->own_cut[position] = end_cut(b, cut);
}

/* ---- cutting along tokens -------------------------------------------------- */

static int64_t states_of(const builder *b, const relayi_cuda_cut *cut) {
    return (int64_t)(cut->row_end - cut->row_begin) * b->plan->attention.num_heads;
}

/* Chunks of a repeatable plan: every span by itself, from its own start. */
static int32_t fixed_chunks(const builder *b, const relayi_cuda_cut *cut) {
    int32_t chunks = 0;
    for (int32_t i = 0; i < cut->num_pieces; i++) {
        const relayi_cuda_piece *piece = &b->pieces[cut->first_piece + i];
        chunks += (piece->end - piece->begin + RELAYI_CUDA_REPEATABLE_CUT - 1) / RELAYI_CUDA_REPEATABLE_CUT;
    }
    return chunks;
}

static float unit_cost(const relayi_cuda_cut *cut, int64_t tokens) {
    return (float)tokens * token_cost[cut->shape] + UNIT_COST;
}

/* The cost that no unit should exceed. */
static float fair_share(const builder *b) {
    double total = 0.0;
    for (int32_t i = 0; i < b->num_cuts; i++)
        total += (double)unit_cost(&b->cuts[i], b->cuts[i].tokens) * b->cuts[i].tiles;
    return (float)(total * b->plan->attention.num_kv_heads / b->cuda->work_slots);
}

/* Tokens of a chunk that keep a unit within a share, the chunks being equal. */
static int64_t chunk_within(const relayi_cuda_cut *cut, float share, int64_t most_chunks) {
    float tokens = (share - UNIT_COST) / token_cost[cut->shape];
    int64_t chunk = tokens > MIN_CHUNK ? (int64_t)tokens : MIN_CHUNK;
    int64_t chunks = (cut->tokens + chunk - 1) / chunk;
    if (chunks > most_chunks) chunks = most_chunks;
    chunk = (cut->tokens + chunks - 1) / chunks;
    return (chunk + RELAYI_CUDA_CUT - 1) / RELAYI_CUDA_CUT * RELAYI_CUDA_CUT;
}

static void choose_chunk(relayi_cuda_cut *cut, float share, int64_t *budget, int64_t states) {
    int64_t chunk = chunk_within(cut, share, 1 + *budget / states);
    cut->chunk_tokens = (int32_t)chunk;
    cut->chunks = (int32_t)((cut->tokens + chunk - 1) / chunk);
    *budget -= (cut->chunks - 1) * states;
}

/* How long the device would take for one kind of unit, in whole rounds. */
static float rounds_of(const builder *b, const relayi_cuda_cut *cut, float share) {
    int64_t chunk = chunk_within(cut, share, INT32_MAX), slots = b->cuda->work_slots;
    int64_t units = (cut->tokens + chunk - 1) / chunk * cut->tiles * b->num_cuts * b->plan->attention.num_kv_heads;
    return (float)((units + slots - 1) / slots) * unit_cost(cut, cut->tokens < chunk ? cut->tokens : chunk);
}

/* Units of several sizes fill each other's gaps.  Where all are alike, a share that leaves the last
 * round half empty is worse than a larger or a smaller one. */
static float best_share(const builder *b, float fair) {
    static const float factors[] = {0.55f, 0.7f, 0.85f, 1.15f, 1.35f, 1.6f, 2.0f};
    for (int32_t i = 1; i < b->num_cuts; i++)
        if (b->cuts[i].tokens != b->cuts[0].tokens || b->cuts[i].shape != b->cuts[0].shape) return fair;
    if (b->num_cuts == 0) return fair;
    float best = fair, least = rounds_of(b, &b->cuts[0], fair);
    for (size_t i = 0; i < sizeof factors / sizeof *factors; i++) {
        float took = rounds_of(b, &b->cuts[0], fair * factors[i]);
        if (took >= 0.98f * least) continue;
        least = took;
        best = fair * factors[i];
    }
    return best;
}

/* Tokens that one step of a cut takes on Hopper. */
static int64_t step_tokens(const relayi_cuda_cut *cut) {
    return cut->shape == RELAYI_CUDA_FLAT ? RELAYI_CUDA_PAGE : RELAYI_CUDA_HOPPER_TILE;
}

static relayi_cuda_load weigh_cuts(const builder *b, bool tall) {
    relayi_cuda_load load = {.alike = true};
    for (int32_t i = 0; i < b->num_cuts; i++) {
        const relayi_cuda_cut *cut = &b->cuts[i];
        if ((cut->shape != RELAYI_CUDA_FLAT) != tall) continue;
        int64_t steps = round_up(cut->tokens, step_tokens(cut)) / step_tokens(cut);
        int64_t units = (int64_t)cut->tiles * b->plan->attention.num_kv_heads;
        load.alike = load.alike && (load.cuts == 0 || steps == load.longest);
        load.longest = steps > load.longest ? steps : load.longest;
        load.shortest = load.cuts == 0 || steps < load.shortest ? steps : load.shortest;
        load.total += (double)(steps * units);
        load.distinct += (double)(steps * b->plan->attention.num_kv_heads);
        load.low += cut->tile_rows <= 64 ? (double)(steps * units) : 0.0;
        load.states += (double)states_of(b, cut);
        load.cuts += units;
    }
    return load;
}

/* What cutting may still add. */
typedef struct cutting_room {
    int64_t states, units;
} cutting_room;

static void chop(const builder *b, relayi_cuda_cut *cut, int64_t steps, cutting_room *left) {
    int64_t tokens = step_tokens(cut), all = round_up(cut->tokens, tokens) / tokens, states = states_of(b, cut);
    int64_t chunks = (all + steps - 1) / steps;
    if (chunks > 1 + left->states / states) chunks = 1 + left->states / states;
    if (chunks > 1 + left->units / cut->tiles) chunks = 1 + left->units / cut->tiles;
    steps = (all + chunks - 1) / chunks;
    cut->chunk_tokens = (int32_t)(steps * tokens);
    cut->chunks = (int32_t)((all + steps - 1) / steps);
    cut->cost = (float)steps + (cut->shape == RELAYI_CUDA_FLAT ? 0.0f : 1e6f); /* prompts come first */
    left->states -= (cut->chunks - 1) * states;
    left->units -= (cut->chunks - 1) * (int64_t)cut->tiles;
}

/* With bounds, a batch within them may have pairs. */
static bool may_pair(const builder *b) {
    bool some = b->cuda->bounded && (int64_t)b->plan->options.max_rows * b->plan->group > RELAYI_CUDA_HOPPER_WIDE;
    for (int32_t i = 0; i < b->num_cuts && !some; i++) some = b->cuts[i].pairs > 0;
    return some;
}

/* A plan with bounds keeps its first batch's layout, as it keeps its kernel: prompts may come later, so that they always
 * have a ring that suits them. */
static void choose_layout(builder *b, const relayi_cuda_load *tall, const relayi_cuda_load *flat) {
    relayi_cuda_plan *cuda = b->cuda;
    if (cuda->bounded && cuda->laid_out) return;
    bool alone = cuda->bounded ? b->plan->options.strategy == RELAY_STRATEGY_PLAIN : tall->cuts == 0;
    cuda->layout = alone ? RELAYI_CUDA_USERS_ALONE : relayi_cuda_choose_layout(tall, flat, cuda->work_slots / 2);
    if (cuda->layout == RELAYI_CUDA_FOR_USERS && cuda->bounded) cuda->layout = RELAYI_CUDA_FOR_BOTH;
    if (cuda->layout == RELAYI_CUDA_FOR_PROMPTS && may_pair(b)) cuda->layout = RELAYI_CUDA_FOR_PAIRS;
    cuda->laid_out = true;
}

static void choose_hopper_chunks(builder *b) {
    int64_t slots = b->cuda->work_slots, blocks = slots / 2;
    cutting_room left = {slots * EXTRA_STATES_PER_SLOT, slots * EXTRA_UNITS_PER_SLOT};
    relayi_cuda_load tall = weigh_cuts(b, true), flat = weigh_cuts(b, false);
    choose_layout(b, &tall, &flat);
    bool alone = b->cuda->layout == RELAYI_CUDA_USERS_ALONE;
    int64_t warps = alone ? RELAYI_CUDA_HOPPER_ALONE_WARPS : RELAYI_CUDA_HOPPER_USER_WARPS;
    double time = 0.0;
    int64_t tiles = relayi_cuda_spread(&tall, true, blocks, &time);
    int64_t pages = relayi_cuda_spread(&flat, false, warps * blocks, &time);
    for (int32_t i = 0; i < b->num_cuts; i++)
        chop(b, &b->cuts[i], b->cuts[i].shape == RELAYI_CUDA_FLAT ? pages : tiles, &left);
}

static void choose_chunks(builder *b) {
    if (b->hopper) {
        choose_hopper_chunks(b);
        return;
    }
    float share = b->plan->options.repeatable ? 0.0f : best_share(b, fair_share(b));
    int64_t budget = (int64_t)b->cuda->work_slots * EXTRA_STATES_PER_SLOT;
    for (int32_t i = 0; i < b->num_cuts; i++) {
        relayi_cuda_cut *cut = &b->cuts[i];
        if (b->plan->options.repeatable) {
            cut->chunks = fixed_chunks(b, cut);
            cut->chunk_tokens = RELAYI_CUDA_REPEATABLE_CUT;
        } else {
            choose_chunk(cut, share, &budget, states_of(b, cut));
        }
        cut->cost = unit_cost(cut, cut->tokens < cut->chunk_tokens ? cut->tokens : cut->chunk_tokens);
    }
}

/* Costliest first, and otherwise in the order they came: lists are short, and mostly sorted runs. */
static void order_cuts(builder *b) {
    for (int32_t i = 0; i < b->num_cuts; i++) {
        int32_t at = i;
        float cost = b->cuts[i].cost;
        if (i > 0 && b->cuts[b->order[i - 1]].cost < cost) {
            int32_t low = 0, high = i;
            while (low < high) {
                int32_t middle = (low + high) / 2;
                if (b->cuts[b->order[middle]].cost >= cost) low = middle + 1;
                else high = middle;
            }
            at = low;
            memmove(b->order + at + 1, b->order + at, (size_t)(i - at) * sizeof *b->order);
        }
        b->order[at] = i;
    }
}

static void give_states(builder *b, relayi_cuda_sizes *used) {
    for (int32_t i = 0; i < b->num_cuts; i++) {
        relayi_cuda_cut *cut = &b->cuts[i];
        cut->base = used->states;
        used->states += states_of(b, cut) * cut->chunks;
        used->units += (int64_t)cut->chunks * cut->tiles;
        used->pieces += ((int64_t)cut->chunks + cut->num_pieces) * cut->tiles;
    }
    for (int32_t p = 0; p < b->content->num_requests; p++) {
        used->runs += b->own_cut[p] >= 0;
        for (int32_t s = b->content->leaf[p]; s >= 0; s = b->content->segments[s].parent)
            used->runs += b->relayed[s] >= 0 && b->row_start[p] < b->row_start[p + 1];
    }
    used->rows = b->num_rows;
    used->ids = b->content->num_ids;
}

/* ---- bounds ---------------------------------------------------------------- */

relayi_cuda_sizes relayi_cuda_bounds(const relay_plan *plan) {
    const relay_plan_options *o = &plan->options;
    int64_t paths = 1 + (int64_t)o->max_depth, cuts = o->max_requests * paths;
    int64_t tiles = cuts + o->max_rows * paths * plan->group / RELAYI_CUDA_HOPPER_ROWS + 1;
    int64_t states = o->max_rows * paths * plan->attention.num_heads, slots = plan->cuda->work_slots;
    int64_t chunks = paths + o->max_tokens / RELAYI_CUDA_REPEATABLE_CUT;
    relayi_cuda_sizes sizes = {.rows = o->max_rows, .runs = cuts, .ids = o->max_blocks};
    sizes.units = o->repeatable ? tiles * chunks : 2 * tiles + slots * EXTRA_UNITS_PER_SLOT + 16;
    sizes.states = o->repeatable ? states * chunks : states + slots * EXTRA_STATES_PER_SLOT;
    sizes.pieces = sizes.units + tiles * paths;
    return sizes;
}

static relay_status check_bound(const builder *b, const char *what, int64_t have, int64_t most) {
    if (have <= most) return RELAY_OK;
    return relayi_fail(b->plan->device, RELAY_OUT_OF_RANGE,
                       "relay_plan_build: the batch has %lld %s, relay_plan_options allow %lld", (long long)have, what,
                       (long long)most);
}

static int32_t longest(const builder *b) {
    int32_t most = 0;
    for (int32_t p = 0; p < b->content->num_requests; p++) {
        int32_t tokens = relayi_path_end(b->content, p) + b->content->own[b->content->order[p]].length;
        if (tokens > most) most = tokens;
    }
    return most;
}

static int32_t deepest(const builder *b) {
    int32_t most = 0;
    for (int32_t p = 0; p < b->content->num_requests; p++) {
        int32_t depth = 0;
        for (int32_t s = b->content->leaf[p]; s >= 0; s = b->content->segments[s].parent) depth++;
        if (depth > most) most = depth;
    }
    return most;
}

static relay_status check_bounds(const builder *b) {
    const relay_plan_options *o = &b->plan->options;
    if (!b->cuda->bounded) return RELAY_OK;
    relay_status status = check_bound(b, "requests (max_requests)", b->content->num_requests, o->max_requests);
    if (status == RELAY_OK) status = check_bound(b, "query rows (max_rows)", b->num_rows, o->max_rows);
    if (status == RELAY_OK) status = check_bound(b, "segments on a path (max_depth)", deepest(b), o->max_depth);
    if (status == RELAY_OK) status = check_bound(b, "tokens in a request (max_tokens)", longest(b), o->max_tokens);
    if (status == RELAY_OK) status = check_bound(b, "block ids (max_blocks)", b->content->num_ids, o->max_blocks);
    return status;
}

/* The options' bounds hold what they promise; this says so if they ever did not. */
static relay_status check_room(const builder *b, const relayi_cuda_sizes *used, const relayi_cuda_sizes *room) {
    relay_status status = check_bound(b, "units", used->units, room->units);
    if (status == RELAY_OK) status = check_bound(b, "pieces", used->pieces, room->pieces);
    if (status == RELAY_OK) status = check_bound(b, "runs", used->runs, room->runs);
    return status != RELAY_OK ? status : check_bound(b, "partial states", used->states, room->states);
}

/* ---- the list -------------------------------------------------------------- */

static uint32_t section(size_t *used, int64_t count, size_t size) {
    uint32_t at = (uint32_t)*used;
    *used += ((size_t)count * size + 15) / 16 * 16;
    return at;
}

void relayi_cuda_lay_out(relayi_cuda_plan *cuda) {
    size_t used = sizeof(relayi_cuda_header);
    cuda->units = section(&used, cuda->sizes.units, sizeof(relayi_cuda_unit));
    cuda->pieces = section(&used, cuda->sizes.pieces, sizeof(relayi_cuda_piece));
    cuda->rows = section(&used, cuda->sizes.rows, sizeof(relayi_cuda_row));
    cuda->runs = section(&used, cuda->sizes.runs, sizeof(relayi_cuda_run));
    cuda->ids = section(&used, cuda->sizes.ids, sizeof(int32_t));
    cuda->list_bytes = used;
}

static relay_status reserve_list(relay_plan *plan) {
    relayi_cuda_plan *cuda = plan->cuda;
    relayi_cuda_error error = {{0}};
    relayi_cuda_lay_out(cuda);
    if (cuda->list_bytes > UINT32_MAX / 2)
        return relayi_fail(plan->device, RELAY_UNSUPPORTED, "relay_plan_build: a work list of %zu bytes", cuda->list_bytes);
    if (cuda->list_bytes <= cuda->list_room) return RELAY_OK;
    size_t room = cuda->list_bytes + cuda->list_bytes / 2;
    void *list = NULL;
    relay_status status = plan->device->cuda->pin(plan->device->gpu.index, room, &list, &error);
    if (status != RELAY_OK) return relayi_fail(plan->device, status, "relay_plan_build: %zu bytes: %s", room, error.text);
    if (cuda->list != NULL) plan->device->cuda->unpin(cuda->list);
    cuda->list = list;
    cuda->list_room = room;
    return RELAY_OK;
}

/* A run that is still in a stream's queue reads the list when its turn comes: until then it may not change. */
relay_status relayi_cuda_await_runs(relay_plan *plan) {
    relayi_cuda_error error = {{0}};
    if (plan->cuda->copied == NULL) return RELAY_OK;
    relay_status status = plan->device->cuda->event_wait(plan->device->gpu.index, plan->cuda->copied, &error);
    if (status != RELAY_OK) relayi_fail(plan->device, status, "relay_plan_build: CUDA: %s", error.text);
    return status;
}

static void *in_list(const builder *b, uint32_t offset) { return (char *)b->cuda->list + offset; }

/* Where a walk over the tokens of a tile's pieces stands. */
typedef struct walk {
    int32_t piece, token;
} walk;

/* Copies the next `tokens` of a cut's pieces, narrowed to a tile's rows; the cut is along the pieces
 * as they are for all rows, so that every tile has the same chunks. */
static void take_tokens(builder *b, const relayi_cuda_cut *cut, walk *at, relayi_cuda_unit *unit) {
    relayi_cuda_piece *to = (relayi_cuda_piece *)in_list(b, b->cuda->pieces) + unit->more_pieces;
    int64_t left = cut->chunk_tokens;
    unit->num_pieces = 0;
    unit->first = (relayi_cuda_piece){.tensor = -1};
    while (left > 0 && at->piece < cut->num_pieces) {
        relayi_cuda_piece part = b->pieces[cut->first_piece + at->piece];
        if (at->token > part.begin) part.begin = at->token;
        int64_t have = cut_tokens(b, &part), use = have < left ? have : left;
        if (have > use) part.end = part.begin + (int32_t)use;
        *at = have > use ? (walk){at->piece, part.end} : (walk){at->piece + 1, 0};
        left = b->plan->options.repeatable ? 0 : left - use;
        narrow(b, &part, unit->min_position, unit->max_position);
        if (part.end <= part.begin) continue;
        *(unit->num_pieces == 0 ? &unit->first : to++) = part;
        unit->num_pieces++;
    }
}

/* The source of stacked rows' first plan row, if the others' follow it. */
static int32_t first_source(const builder *b, int32_t begin, int32_t end) {
    int32_t first = begin / b->plan->group, last = (end - 1) / b->plan->group;
    for (int32_t row = first + 1; row <= last; row++)
        if (b->rows[row].source != b->rows[row - 1].source + 1) return -1;
    return b->rows[first].source;
}

static void write_tile(builder *b, const relayi_cuda_cut *cut, int32_t tile, int64_t *units, int64_t *pieces) {
    int32_t group = b->plan->group, begin = cut->row_begin * group + tile * cut->tile_rows;
    int32_t end = begin + cut->tile_rows < cut->row_end * group ? begin + cut->tile_rows : cut->row_end * group;
    relayi_cuda_unit unit = {.row_begin = begin, .rows = end - begin, .shape = cut->shape,
                             .head_states = (cut->row_end - cut->row_begin) * group,
                             .state = cut->base + begin - cut->row_begin * group};
    walk at = {0, 0};
    relayi_cuda_unit *to = in_list(b, b->cuda->units);
    unit.source = first_source(b, begin, end);
    position_range(b, begin / group, (end - 1) / group + 1, &unit.min_position, &unit.max_position);
    for (int32_t c = 0; c < cut->chunks; c++) {
        unit.more_pieces = (int32_t)*pieces;
        take_tokens(b, cut, &at, &unit);
        *pieces += unit.num_pieces > 1 ? unit.num_pieces - 1 : 0;
        to[b->hopper ? b->cuda->sizes.units - 1 - *units : *units] = unit;
        (*units)++;
        unit.state += states_of(b, cut);
    }
}

/* A prompt's pairs of tiles for the Hopper kernel, or its other tiles: all of a chunk before the next chunk, so that
 * what one tile has read is near when the others read it. */
static void write_prompt(builder *b, const relayi_cuda_cut *cut, bool pairs, int64_t *units) {
    int32_t group = b->plan->group, begin = cut->row_begin * group, end = cut->row_end * group;
    int32_t paired_end = begin + 2 * cut->pairs * cut->tile_rows, first_row = pairs ? begin : paired_end;
    int32_t last_row = pairs && paired_end < end ? paired_end : end;
    relayi_cuda_unit *to = in_list(b, b->cuda->units);
    relayi_cuda_unit unit = {.shape = cut->shape, .head_states = end - begin, .num_pieces = 1,
                             .first = b->pieces[cut->first_piece]};
    int32_t last = unit.first.end;
    position_range(b, cut->row_begin, cut->row_end, &unit.min_position, &unit.max_position);
    for (int32_t c = 0; c < cut->chunks; c++, unit.first.begin = unit.first.end) {
        unit.first.end = unit.first.begin + cut->chunk_tokens < last ? unit.first.begin + cut->chunk_tokens : last;
        for (int32_t row = first_row; row < last_row; row += cut->tile_rows) {
            unit.row_begin = row;
            unit.rows = row + cut->tile_rows < end ? cut->tile_rows : end - row;
            unit.state = cut->base + c * states_of(b, cut) + row - begin;
            unit.source = first_source(b, row, row + unit.rows);
            to[(*units)++] = unit;
        }
    }
}

static int64_t write_pairs(builder *b) {
    int64_t units = 0;
    for (int32_t i = 0; i < b->num_cuts; i++) {
        relayi_cuda_cut *cut = &b->cuts[b->order[i]];
        cut->first_pair = units;
        if (cut->pairs > 0) write_prompt(b, cut, true, &units);
    }
    return units;
}

static void write_units(builder *b) {
    int64_t paired = write_pairs(b), units[2] = {paired, 0}, pieces = 0; /* at the start of their room, at its end */
    for (int32_t i = 0; i < b->num_cuts; i++) {
        relayi_cuda_cut *cut = &b->cuts[b->order[i]];
        bool flat = b->hopper && cut->shape == RELAYI_CUDA_FLAT;
        cut->first_unit = units[flat];
        if (b->hopper && !flat) write_prompt(b, cut, false, &units[0]);
        else for (int32_t tile = 0; tile < cut->tiles; tile++) write_tile(b, cut, tile, &units[flat], &pieces);
    }
    b->cuda->used.units = units[0] + units[1];
    b->cuda->used.pieces = pieces;
    *(relayi_cuda_header *)b->cuda->list = (relayi_cuda_header){.num_units = (int32_t)b->cuda->used.units,
                                                                .num_rows = b->num_rows, .num_tall = (int32_t)units[0],
                                                                .num_pairs = (int32_t)(paired / 2)};
}

static relayi_cuda_run run_of(const relayi_cuda_cut *cut) {
    return (relayi_cuda_run){.base = cut->base, .chunks = cut->chunks, .row_begin = cut->row_begin,
                             .rows = cut->row_end - cut->row_begin};
}

/* The runs of a position, root first, its own last. */
static int32_t write_path(builder *b, int32_t position, relayi_cuda_run *to) {
    int32_t count = 0;
    for (int32_t s = b->content->leaf[position]; s >= 0; s = b->content->segments[s].parent)
        if (b->relayed[s] >= 0) to[count++] = run_of(&b->cuts[b->relayed[s]]);
    for (int32_t i = 0, j = count - 1; i < j; i++, j--) {
        relayi_cuda_run swap = to[i];
        to[i] = to[j];
        to[j] = swap;
    }
    if (b->own_cut[position] >= 0) to[count++] = run_of(&b->cuts[b->own_cut[position]]);
    return count;
}

static void write_rows(builder *b) {
    relayi_cuda_row *rows = in_list(b, b->cuda->rows);
    relayi_cuda_run *runs = in_list(b, b->cuda->runs);
    int32_t used = 0;
    for (int32_t p = 0; p < b->content->num_requests; p++) {
        if (b->row_start[p] == b->row_start[p + 1]) continue;
        int32_t count = write_path(b, p, runs + used);
        for (int32_t i = b->row_start[p]; i < b->row_start[p + 1]; i++) {
            rows[i] = b->rows[i];
            rows[i].first_run = used;
            rows[i].num_runs = count;
        }
        used += count;
    }
    if (b->content->num_ids > 0)
        memcpy(in_list(b, b->cuda->ids), b->content->ids, (size_t)b->content->num_ids * sizeof(int32_t));
}

/* ---- the whole ------------------------------------------------------------- */

static double visible_tokens(const relay_attention *a, int32_t position) {
    int64_t all = (int64_t)position + 1;
    if (a->sliding_window == 0 || all <= a->sliding_window) return (double)all;
    int64_t hidden = all - a->sliding_window;
    return (double)(a->sliding_window + (a->num_sink_tokens < hidden ? a->num_sink_tokens : hidden));
}

static void count_flops(builder *b) {
    const relay_attention *a = &b->plan->attention;
    for (int32_t i = 0; i < b->num_rows; i++)
        b->plan->info.flops += 4.0 * a->head_dim * a->num_heads * visible_tokens(a, b->rows[i].position);
}

static relay_status check_content(const relay_plan *plan, const relayi_forest_content *content) {
    if (plan->uses_pages && content->block_size % RELAYI_CUDA_PAGE != 0)
        return relayi_fail(plan->device, RELAY_UNSUPPORTED,
                           "relay_plan_build: a block_size of %d; a CUDA device takes multiples of %d",
                           content->block_size, RELAYI_CUDA_PAGE);
    if (plan->packed_layers != INT32_MAX)
        return relayi_fail(plan->device, RELAY_UNSUPPORTED,
                           "relay_plan_build: a packed prompt; on a CUDA device shared segments are pages or "
                           "contiguous device memory");
    if (plan->max_contiguous > RELAYI_CUDA_MAX_CONTIGUOUS)
        return relayi_fail(plan->device, RELAY_UNSUPPORTED,
                           "relay_plan_build: tensor_index %d; a CUDA device takes %d contiguous tensors",
                           plan->max_contiguous - 1, RELAYI_CUDA_MAX_CONTIGUOUS);
    if (content->num_ids > INT32_MAX)
        return relayi_fail(plan->device, RELAY_UNSUPPORTED, "relay_plan_build: more than 2^31 block ids");
    return RELAY_OK;
}

/* ---- which kernel ----------------------------------------------------------- */

/* Requests of more rows than a few share their own tokens among them: work for tiles. */
static bool few_rows(const builder *b) {
    const relay_plan_options *o = &b->plan->options;
    if (b->cuda->bounded) return o->max_rows <= (int64_t)o->max_requests * RELAYI_CUDA_HOPPER_ROWS;
    for (int32_t r = 0; r < b->content->num_requests; r++)
        if (b->content->query_start[r + 1] - b->content->query_start[r] > RELAYI_CUDA_HOPPER_ROWS) return false;
    return true;
}

static relay_status choose_kernel(builder *b) {
    relayi_cuda_plan *cuda = b->cuda;
    bool spans_fit = b->plan->max_contiguous <= RELAYI_CUDA_HOPPER_CONTIGUOUS;
    if (!cuda->bounded || !cuda->built)
        cuda->kernel = hopper_computes(b->plan) && few_rows(b) && spans_fit ? RELAYI_CUDA_HOPPER : RELAYI_CUDA_GENERAL;
    if (cuda->kernel == RELAYI_CUDA_HOPPER && !spans_fit)
        return relayi_fail(b->plan->device, RELAY_UNSUPPORTED,
                           "relay_plan_build: tensor_index %d; a plan with bounds that was built for up to %d contiguous "
                           "tensors keeps to them",
                           b->plan->max_contiguous - 1, RELAYI_CUDA_HOPPER_CONTIGUOUS);
    cuda->built = true;
    b->hopper = cuda->kernel == RELAYI_CUDA_HOPPER;
    b->plan->kernel.name = relayi_cuda_name_of(b->plan->device, cuda->kernel, b->plan->attention.query_dtype,
                                               b->plan->attention.kv_dtype);
    return RELAY_OK;
}

static void cut_all(builder *b) {
    number_rows(b);
    for (int32_t s = 0; s < b->content->num_segments; s++) cut_segment(b, s);
    for (int32_t p = 0; p < b->content->num_requests; p++) cut_request(b, p);
    choose_chunks(b);
    order_cuts(b);
    count_flops(b);
}

relay_status relayi_cuda_plan_build(relay_plan *plan, const relayi_forest_content *content) {
    builder b = {.plan = plan, .cuda = plan->cuda, .content = content};
    relay_status status = check_content(plan, content);
    if (status != RELAY_OK) plan->cuda->step.known = false;
    if (status != RELAY_OK || relayi_cuda_plan_step(plan, content, &status)) return status;
    plan->cuda->step.known = false;
    plan->info = (relay_plan_info){.num_requests = content->num_requests};
    b.num_rows = content->query_start ? content->query_start[content->num_requests] : 0;
    plan->num_rows = plan->info.num_rows = b.num_rows;
    status = check_bounds(&b);
    if (status == RELAY_OK) status = choose_kernel(&b);
    if (status != RELAY_OK) return status;
    weigh_sharing(&b);
    if (!reserve_scratch(&b))
        return relayi_fail(plan->device, RELAY_OUT_OF_MEMORY, "relay_plan_build: no memory for the plan");
    if (b.num_rows > 0) cut_all(&b);
    relayi_cuda_sizes used = {0};
    if (b.num_rows > 0) give_states(&b, &used);
    b.cuda->used = used;
    b.cuda->sizes = b.cuda->bounded ? relayi_cuda_bounds(plan) : used;
    status = check_room(&b, &used, &b.cuda->sizes);
    if (status == RELAY_OK) status = relayi_cuda_await_runs(plan);
    if (status == RELAY_OK) status = reserve_list(plan);
    if (status != RELAY_OK) return status;
    write_units(&b);
    if (b.num_rows > 0) write_rows(&b);
    plan->num_items = (int32_t)(b.cuda->used.units * plan->attention.num_kv_heads);
    plan->info.num_work_items = plan->num_items;
    const relayi_cuda_cuts made = {.cuts = b.cuts, .row_start = b.row_start, .relayed = b.relayed, .own_cut = b.own_cut};
    if (b.num_rows > 0) relayi_cuda_step_keep(plan, content, &made);
    return RELAY_OK;
}

relayi_cuda_workspace relayi_cuda_plan_workspace(const relay_plan *plan) {
    relayi_cuda_workspace map = {0};
    const relayi_cuda_plan *cuda = plan->cuda;
    if (plan->num_rows == 0 && !cuda->bounded) return map;
    size_t states = (size_t)cuda->sizes.states, dim = (size_t)plan->attention.head_dim;
    map.acc = (cuda->list_bytes + 255) / 256 * 256;
    map.lse = map.acc + states * dim * sizeof(float);
    map.bytes = (map.lse + states * RELAYI_CUDA_STATE_STATS + 255) / 256 * 256;
    return map;
}

/* Blocks of the attention kernel that one multiprocessor runs at once. */
static int32_t blocks_per_multiprocessor(const relay_plan *plan) { return plan->attention.head_dim <= 128 ? 2 : 1; }

relay_status relayi_cuda_plan_create(relay_plan *plan) {
    relayi_cuda_plan *cuda = relayi_alloc_array(1, sizeof *cuda);
    if (cuda == NULL) return relayi_fail(plan->device, RELAY_OUT_OF_MEMORY, "relay_plan_create: no memory");
    relayi_cuda_error error = {{0}};
    relay_status status = plan->device->cuda->event_create(plan->device->gpu.index, &cuda->copied, &error);
    if (status != RELAY_OK) {
        relayi_free(cuda);
        return relayi_fail(plan->device, status, "relay_plan_create: CUDA: %s", error.text);
    }
    cuda->bounded = plan->options.max_requests > 0;
    cuda->work_slots = plan->device->gpu.multiprocessors * blocks_per_multiprocessor(plan);
    plan->cuda = cuda;
    return RELAY_OK;
}

void relayi_cuda_plan_destroy(relay_plan *plan) {
    relayi_cuda_plan *cuda = plan->cuda;
    if (cuda == NULL) return;
    relayi_cuda_await_runs(plan);
    if (cuda->list != NULL) plan->device->cuda->unpin(cuda->list);
    if (cuda->copied != NULL) plan->device->cuda->event_destroy(plan->device->gpu.index, cuda->copied);
    relayi_cuda_step_forget(cuda);
    relayi_shrink(&cuda->scratch_memory);
    relayi_free(cuda);
}
