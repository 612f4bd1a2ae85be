/* The work list of a CUDA device, made and read without one: every visible token of every row exactly
 * once, states that no two parts share, bounds that hold; and the loader's refusals. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "plan_cuda.h"
#include "relay/relay.h"
#include "test.h"

enum { MOST_SEGMENTS = 12, MOST_REQUESTS = 40, BLOCK_SIZE = 16 };

/* ---- a device without a GPU ------------------------------------------------- */

static relay_status pin(int32_t device, size_t bytes, void **memory, relayi_cuda_error *error) {
    (void)device;
    (void)error;
    *memory = malloc(bytes);
    return *memory ? RELAY_OK : RELAY_OUT_OF_MEMORY;
}

static const char *kernel_name(relayi_cuda_kernel kernel, relay_dtype query, relay_dtype kv) {
    if (kernel == RELAYI_CUDA_HOPPER) return query == kv && query != RELAY_F32 ? "pretended hopper" : NULL;
    return query == kv && query != RELAY_F32 ? "pretended" : NULL;
}

static relay_status wait_answer = RELAY_OK;
static int32_t waits; /* for runs that have not read their list */

static relay_status event_create(int32_t device, void **event, relayi_cuda_error *error) {
    (void)device;
    (void)error;
    *event = malloc(1);
    return *event ? RELAY_OK : RELAY_OUT_OF_MEMORY;
}

static relay_status event_wait(int32_t device, void *event, relayi_cuda_error *error) {
    (void)device;
    (void)error;
    CHECK(event != NULL);
    waits++;
    return wait_answer;
}

static void event_destroy(int32_t device, void *event) {
    (void)device;
    free(event);
}

static const relayi_cuda_ops pretended = {.version = RELAYI_CUDA_VERSION, .size = sizeof pretended, .pin = pin,
                                          .unpin = free, .kernel_name = kernel_name,
                                          .event_create = event_create, .event_wait = event_wait,
                                          .event_destroy = event_destroy};

static char last_error[1024];

static void keep_error(void *user, relay_log_level level, const char *message) {
    (void)user;
    if (level == RELAY_LOG_ERROR) snprintf(last_error, sizeof last_error, "%s", message);
}

static relay_device device = {.kind = RELAY_DEVICE_CUDA, .threads = 1, .level = "cuda", .cuda = &pretended,
                              .gpu = {.multiprocessors = 132, .major = 8}, .log = keep_error};

/* The same batches on a device with the Hopper kernel. */
static void pretend(bool hopper) { device.gpu.major = hopper ? 9 : 8; }

/* ---- random batches --------------------------------------------------------- */

static uint64_t random_state = 1;

static int32_t between(int32_t low, int32_t high) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return low + (int32_t)((random_state >> 33) % (uint64_t)(high - low + 1));
}

typedef struct batch {
    int32_t requests, segments, query_start[MOST_REQUESTS + 1];
    relay_kv_span own[MOST_REQUESTS];
    relay_segment segment[MOST_SEGMENTS];
    int32_t ids[4096], order[MOST_REQUESTS];
    bool ordered;
} batch;

static bool only_pages;               /* in the batches that are drawn */
static int32_t most_rows_drawn = 300; /* of a request */

static relay_kv_span draw_span(batch *b, int32_t length, int32_t tensor) {
    relay_kv_span span = {.layout = only_pages || between(0, 3) ? RELAY_KV_PAGED : RELAY_KV_CONTIGUOUS, .length = length,
                          .tensor_index = tensor, .block_table = b->ids};
    return span;
}

static void draw_segments(batch *b, int32_t parent, int32_t first, int32_t last, int32_t depth) {
    while (first < last && b->segments < MOST_SEGMENTS) {
        int32_t count = between(1, last - first);
        if (between(0, 3)) {
            int32_t made = b->segments++;
            b->segment[made] = (relay_segment){.parent = parent, .first_request = first, .num_requests = count,
                                               .kv = draw_span(b, between(0, 4) ? between(1, 4000) : 0, made)};
            if (depth < 3) draw_segments(b, made, first, first + count, depth + 1);
        }
        first += count;
    }
}

static void draw_batch(batch *b) {
    *b = (batch){.requests = between(0, 20) ? between(1, MOST_REQUESTS) : 0};
    for (int32_t i = 0; i < 4096; i++) b->ids[i] = i;
    int32_t most_rows = between(0, 1) ? 1 : between(1, most_rows_drawn);
    for (int32_t r = 0; r < b->requests; r++) {
        int32_t rows = between(0, 9) ? between(1, most_rows) : 0;
        b->query_start[r + 1] = b->query_start[r] + rows;
        b->own[r] = draw_span(b, rows + (between(0, 3) ? between(0, 900) : 0), r % 8);
        b->order[r] = r;
    }
    for (int32_t i = b->requests - 1; i > 0; i--) {
        int32_t j = between(0, i), swap = b->order[i];
        b->order[i] = b->order[j];
        b->order[j] = swap;
    }
    b->ordered = between(0, 1);
    draw_segments(b, -1, 0, b->requests, 0);
}

static int32_t block_size = BLOCK_SIZE;

static bool set_forest(const batch *b, relay_forest *forest) {
    relay_forest_desc desc = relay_forest_desc_defaults();
    desc.num_requests = b->requests;
    desc.query_start_loc = b->query_start;
    desc.own = b->own;
    desc.order = b->ordered ? b->order : NULL;
    desc.num_segments = b->segments;
    desc.segments = b->segment;
    desc.block_size = block_size;
    desc.num_blocks = 4096;
    return relay_forest_set(forest, &desc) == RELAY_OK;
}

static relay_attention draw_attention(void) {
    static const int32_t dims[] = {64, 128, 256, 80}, groups[] = {1, 4, 8, 7, 20};
    relay_attention a = relay_attention_defaults();
    a.num_kv_heads = between(1, 8);
    a.num_heads = a.num_kv_heads * groups[between(0, 4)];
    a.head_dim = dims[between(0, 3)];
    if (between(0, 2) == 0) a.sliding_window = between(1, 2500);
    if (a.sliding_window > 0 && between(0, 1)) a.num_sink_tokens = between(1, 200);
    return a;
}

/* ---- reading a list ---------------------------------------------------------- */

typedef struct reader {
    const relay_plan *plan;
    const char *list;
    const relayi_cuda_header *header;
    const relayi_cuda_unit *units;
    const relayi_cuda_piece *pieces;
    const relayi_cuda_row *rows;
    const relayi_cuda_run *runs;
    unsigned char *written; /* [states]: by how many units */
} reader;

static reader read_list(const relay_plan *plan) {
    const relayi_cuda_plan *c = plan->cuda;
    const char *list = c->list;
    reader r = {.plan = plan, .list = list, .header = (const void *)list, .units = (const void *)(list + c->units),
                .pieces = (const void *)(list + c->pieces), .rows = (const void *)(list + c->rows),
                .runs = (const void *)(list + c->runs)};
    r.written = calloc((size_t)c->sizes.states + 1, 1);
    return r;
}

static const relayi_cuda_unit *unit_at(const reader *r, int32_t u) {
    return &r->units[RELAYI_CUDA_ENTRY(u, r->header->num_tall, (int32_t)r->plan->cuda->sizes.units)];
}

static const relayi_cuda_piece *piece_at(const reader *r, const relayi_cuda_unit *unit, int32_t i) {
    return i == 0 ? &unit->first : &r->pieces[unit->more_pieces + i - 1];
}

static bool sees(const relay_attention *a, int32_t position, int32_t token) {
    if (token > position) return false;
    return a->sliding_window == 0 || token > position - a->sliding_window || token < a->num_sink_tokens;
}

static void check_unit(reader *r, const relayi_cuda_unit *unit) {
    const relay_attention *a = &r->plan->attention;
    int32_t most = unit->shape == RELAYI_CUDA_FLAT ? 16 : unit->shape == RELAYI_CUDA_TALL ? 64 : 128;
    CHECK(unit->rows >= 1 && unit->rows <= most && unit->row_begin >= 0);
    CHECK(unit->shape != RELAYI_CUDA_WIDE || a->head_dim <= 128);
    for (int32_t i = 0; i < unit->rows; i++) {
        int32_t position = r->rows[(unit->row_begin + i) / r->plan->group].position;
        CHECK(position >= unit->min_position && position <= unit->max_position);
        for (int32_t h = 0; h < a->num_kv_heads; h++) {
            int64_t state = unit->state + (int64_t)h * unit->head_states + i;
            CHECK(state >= 0 && state < r->plan->cuda->sizes.states);
            if (state >= 0 && state < r->plan->cuda->sizes.states) r->written[state]++;
        }
    }
    for (int32_t i = 0; i < unit->num_pieces; i++) {
        const relayi_cuda_piece *piece = piece_at(r, unit, i);
        CHECK(piece->begin >= 0 && piece->begin < piece->end && piece->begin % RELAYI_CUDA_PAGE == 0);
    }
}

/* Counts the tokens of the unit that holds a row's state `state` of kv head 0. */
static void count_tokens(const reader *r, int32_t row, int64_t state, unsigned char *seen) {
    int32_t group = r->plan->group;
    for (int32_t u = 0; u < r->header->num_units; u++) {
        const relayi_cuda_unit *unit = unit_at(r, u);
        if (state < unit->state || state >= unit->state + unit->rows) continue;
        CHECK(unit->row_begin + (int32_t)(state - unit->state) == row * group);
        for (int32_t i = 0; i < unit->num_pieces; i++) {
            const relayi_cuda_piece *piece = piece_at(r, unit, i);
            for (int32_t n = piece->begin; n < piece->end; n++)
                if (seen[n + piece->start] < 255) seen[n + piece->start]++;
        }
        return;
    }
    CHECK_MSG(false, "no unit computes state %lld", (long long)state);
}

static void check_row(const reader *r, int32_t row, unsigned char *seen, int32_t room) {
    const relay_attention *a = &r->plan->attention;
    const relayi_cuda_row *of = &r->rows[row];
    memset(seen, 0, (size_t)room);
    for (int32_t i = 0; i < of->num_runs; i++) {
        const relayi_cuda_run *run = &r->runs[of->first_run + i];
        CHECK(row >= run->row_begin && row < run->row_begin + run->rows);
        for (int32_t c = 0; c < run->chunks; c++)
            count_tokens(r, row, run->base + ((int64_t)c * a->num_kv_heads * run->rows + row - run->row_begin) * r->plan->group,
                         seen);
    }
    int32_t wrong = 0;
    for (int32_t t = 0; t <= of->position; t++) wrong += sees(a, of->position, t) ? seen[t] != 1 : seen[t] > 1;
    CHECK_MSG(wrong == 0, "row %d at position %d: %d tokens not covered exactly once", row, of->position, wrong);
}

/* What the Hopper kernel takes for granted: prompts first, each unit one piece that all its rows see. */
static void check_hopper_unit(const reader *r, const relayi_cuda_unit *unit, bool tall) {
    CHECK((unit->shape != RELAYI_CUDA_FLAT) == tall);
    int32_t group = r->plan->group, first = unit->row_begin / group;
    for (int32_t i = 0; i < unit->rows && unit->source >= 0; i++)
        CHECK(r->rows[(unit->row_begin + i) / group].source == unit->source + (unit->row_begin + i) / group - first);
    if (!tall) {
        CHECK(unit->rows <= RELAYI_CUDA_HOPPER_ROWS);
        for (int32_t i = 0; i < unit->rows; i++) {
            int32_t plan_row = (unit->row_begin + i) / group, position = r->rows[plan_row].position;
            bool all = true; /* it sees all of the unit */
            for (int32_t n = 0; n < unit->num_pieces; n++)
                all = all && position >= piece_at(r, unit, n)->start + piece_at(r, unit, n)->end - 1;
            CHECK(position == unit->min_position + plan_row - first || all);
        }
        return;
    }
    CHECK(unit->num_pieces == 1 && unit->min_position >= unit->first.start + unit->first.end - 1);
    CHECK(unit->shape == (unit->rows > 64 ? RELAYI_CUDA_WIDE : RELAYI_CUDA_TALL) || unit->rows <= 64);
    for (int32_t i = 0; i < unit->rows; i++)
        CHECK(r->rows[(unit->row_begin + i) / r->plan->group].position >= unit->min_position);
}

/* The blocks of a cluster, as many as a device has: who takes which of the prompts' work (hopper_prompt.cuh).  Pairs go
 * to both blocks at once; everything is taken once. */
static void check_taken(const reader *r) {
    int64_t heads = r->plan->attention.num_kv_heads, paired = 2 * r->header->num_pairs * heads;
    int64_t total = r->header->num_tall * heads, blocks = r->plan->device->gpu.multiprocessors, next = paired + blocks;
    unsigned char *taken = calloc((size_t)(total + 1), 1);
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t work = b, pair = true; work < total; work = pair ? work + blocks : next++) {
            pair = work < paired;
            int64_t unit = pair ? RELAYI_CUDA_PAIRED_UNIT(work, heads) : work / heads;
            int64_t head = pair ? RELAYI_CUDA_PAIRED_HEAD(work, heads) : work % heads;
            CHECK(unit >= 0 && unit < r->header->num_tall && ++taken[unit * heads + head] == 1);
            if (!pair) continue;
            int64_t other = b % 2 ? work - 1 : work + 1; /* of the block beside it, in the same round */
            CHECK(unit % 2 == b % 2 && RELAYI_CUDA_PAIRED_UNIT(other, heads) == (unit ^ 1) && RELAYI_CUDA_PAIRED_HEAD(other, heads) == head);
        }
    for (int64_t i = 0; i < total; i++) CHECK(taken[i] == 1);
    free(taken);
}

static void check_pairs(const reader *r) {
    CHECK(r->header->num_pairs >= 0 && 2 * r->header->num_pairs <= r->header->num_tall);
    for (int32_t i = 0; i < r->header->num_pairs; i++) {
        const relayi_cuda_unit *a = unit_at(r, 2 * i), *b = unit_at(r, 2 * i + 1);
        CHECK(a->rows > 64 && b->rows > 64 && a->shape == RELAYI_CUDA_WIDE && b->shape == RELAYI_CUDA_WIDE);
        CHECK(memcmp(&a->first, &b->first, sizeof a->first) == 0 && b->row_begin == a->row_begin + a->rows);
    }
    for (int32_t u = 2 * r->header->num_pairs; u + 1 < r->header->num_tall; u++) { /* no pair was missed */
        const relayi_cuda_unit *a = unit_at(r, u), *b = unit_at(r, u + 1);
        CHECK(a->rows <= 64 || b->rows <= 64 || memcmp(&a->first, &b->first, sizeof a->first) != 0);
    }
}

static int64_t pairs_seen;
static unsigned layouts_seen; /* a bit each */

static void check_hopper(const reader *r) {
    int32_t tall = r->header->num_tall;
    bool hopper = r->plan->cuda->kernel == RELAYI_CUDA_HOPPER;
    CHECK(hopper || (tall == r->header->num_units && r->header->num_pairs == 0));
    if (hopper) {
        relayi_cuda_layout layout = r->plan->cuda->layout;
        layouts_seen |= 1u << layout;
        CHECK(layout != RELAYI_CUDA_USERS_ALONE || tall == 0);
        CHECK(layout != RELAYI_CUDA_FOR_USERS || !r->plan->cuda->bounded);
        CHECK(layout == RELAYI_CUDA_USERS_ALONE || tall > 0 || r->plan->cuda->bounded || r->header->num_units == 0);
    }
    if (hopper) check_pairs(r);
    if (hopper) check_taken(r);
    pairs_seen += r->header->num_pairs;
    for (int32_t u = 0; hopper && u < r->header->num_units; u++) check_hopper_unit(r, unit_at(r, u), u < tall);
}

/* The list, an output of head_dim floats for each state, and what lies beside it, loaded in 8 bytes. */
static void check_workspace(const relay_plan *plan) {
    relayi_cuda_workspace map = relayi_cuda_plan_workspace(plan);
    size_t states = (size_t)plan->cuda->sizes.states;
    CHECK(map.acc >= plan->cuda->list_bytes && map.acc % 16 == 0 && map.lse % 8 == 0);
    CHECK(map.lse - map.acc >= states * (size_t)plan->attention.head_dim * sizeof(float));
    CHECK(map.bytes - map.lse >= states * RELAYI_CUDA_STATE_STATS && map.bytes == relay_plan_workspace_bytes(plan));
}

static void check_list(const relay_plan *plan, int32_t rows) {
    enum { ROOM = 1 << 16 };
    static unsigned char seen[ROOM];
    reader r = read_list(plan);
    CHECK(r.header->num_rows == rows && r.header->next == 0 && plan->info.num_rows == rows);
    for (int32_t u = 0; u < r.header->num_units; u++) check_unit(&r, unit_at(&r, u));
    check_hopper(&r);
    if (rows > 0) check_workspace(plan);
    int64_t twice = 0;
    for (int64_t s = 0; s < plan->cuda->sizes.states; s++) twice += r.written[s] > 1;
    CHECK_MSG(twice == 0, "%lld states are written by more than one unit", (long long)twice);
    for (int32_t row = 0; row < rows; row += rows > 200 ? between(1, rows / 40) : 1) check_row(&r, row, seen, ROOM);
    free(r.written);
}

/* ---- tests ------------------------------------------------------------------ */

static void test_coverage(void) {
    static batch b;
    relay_forest *forest = NULL;
    int32_t hoppers = 0;
    CHECK(relay_forest_create(&device, &forest) == RELAY_OK);
    for (int32_t i = 0; i < 900; i++) {
        pretend(i % 3 != 0);
        only_pages = i % 3 == 1;
        most_rows_drawn = only_pages ? 8 : 300;
        relay_attention a = draw_attention();
        relay_plan_options options = relay_plan_options_defaults();
        relay_plan *plan = NULL;
        options.strategy = (relay_strategy)between(0, 2);
        options.repeatable = between(0, 2) == 0;
        draw_batch(&b);
        CHECK(set_forest(&b, forest));
        CHECK(relay_plan_create(&device, &a, &options, &plan) == RELAY_OK);
        relay_status status = relay_plan_build(plan, forest);
        CHECK_MSG(status == RELAY_OK, "batch %d: %s", i, last_error);
        if (status == RELAY_OK) check_list(plan, b.query_start[b.requests]);
        hoppers += plan->cuda->kernel == RELAYI_CUDA_HOPPER;
        relay_plan_destroy(plan);
    }
    pretend(false);
    only_pages = false;
    most_rows_drawn = 300;
    CHECK_MSG(hoppers > 30, "only %d lists for the Hopper kernel", hoppers);
    relay_forest_destroy(forest);
}

/* ---- from step to step --------------------------------------------------------- */

static const relayi_segment *segment_at(const relayi_forest_content *content, int32_t position, int32_t start) {
    for (int32_t s = content->leaf[position]; s >= 0; s = content->segments[s].parent)
        if (content->segments[s].start == start && content->segments[s].kv.length > 0) return &content->segments[s];
    return NULL;
}

/* Every paged piece finds its first token's block where the forest has it. */
static void check_blocks(const relay_plan *plan, const relay_forest *forest) {
    const relayi_forest_content *content = relayi_forest_now(forest);
    reader r = read_list(plan);
    const int32_t *ids = (const void *)(r.list + plan->cuda->ids);
    CHECK(plan->cuda->ids + (size_t)content->num_ids * sizeof *ids <= plan->cuda->list_bytes); /* a run copies them all */
    for (int32_t u = 0; u < r.header->num_units; u++) {
        const relayi_cuda_unit *unit = unit_at(&r, u);
        int32_t source = r.rows[unit->row_begin / plan->group].source, position = 0;
        while (content->query_start[content->order[position] + 1] <= source || content->query_start[content->order[position]] > source)
            position++;
        for (int32_t i = 0; i < unit->num_pieces; i++) {
            const relayi_cuda_piece *piece = piece_at(&r, unit, i);
            if (piece->tensor >= 0) continue;
            const relayi_segment *segment = segment_at(content, position, piece->start);
            const relay_kv_span *span = segment ? &segment->kv : &content->own[content->order[position]];
            int32_t last = (piece->end - 1) / BLOCK_SIZE;
            CHECK(ids[piece->ids + piece->begin / BLOCK_SIZE] == span->block_table[piece->begin / BLOCK_SIZE]);
            CHECK(ids[piece->ids + last] == span->block_table[last]);
        }
    }
    free(r.written);
}

/* Units of one request's rows say where those begin and end, not a token further. */
static void check_positions(const relay_plan *plan, const relay_forest *forest) {
    const relayi_forest_content *content = relayi_forest_now(forest);
    reader r = read_list(plan);
    for (int32_t u = 0; u < r.header->num_units; u++) {
        const relayi_cuda_unit *unit = unit_at(&r, u);
        const relayi_cuda_row *first = &r.rows[unit->row_begin / plan->group];
        const relayi_cuda_row *last = &r.rows[(unit->row_begin + unit->rows - 1) / plan->group];
        bool one = last - first == last->source - first->source;
        for (int32_t q = first->source + 1; one && q <= last->source; q++)
            for (int32_t p = 0; p < content->num_requests; p++) one = one && content->query_start[p] != q;
        CHECK(!one || (unit->min_position == first->position && unit->max_position == last->position) || unit->shape != RELAYI_CUDA_FLAT);
    }
    free(r.written);
}

/* The same info as a plan that was built from nothing. */
static void check_info(const relay_plan *plan, const relay_forest *forest) {
    relay_plan *fresh = NULL;
    CHECK(relay_plan_create(&device, &plan->attention, &plan->options, &fresh) == RELAY_OK);
    CHECK(relay_plan_build(fresh, forest) == RELAY_OK);
    CHECK(fresh->info.flops == plan->info.flops && fresh->info.unique_kv_bytes == plan->info.unique_kv_bytes);
    CHECK(fresh->info.num_rows == plan->info.num_rows && fresh->info.num_requests == plan->info.num_requests);
    relay_plan_destroy(fresh);
}

/* Builds again; whether it was a step: a whole build writes the header anew. */
static bool build_again(relay_plan *plan, const relay_forest *forest) {
    ((relayi_cuda_header *)plan->cuda->list)->reserved[0] = 77;
    CHECK_MSG(relay_plan_build(plan, forest) == RELAY_OK, "%s", last_error);
    relayi_cuda_header *header = plan->cuda->list;
    bool stepped = header->reserved[0] == 77;
    header->reserved[0] = 0;
    return stepped;
}

static void give_tables(batch *b) {
    for (int32_t r = 0; r < b->requests; r++) b->own[r].block_table = b->ids + r * 64;
    for (int32_t s = 0; s < b->segments; s++) b->segment[s].kv.block_table = b->ids + 2560 + s * 100;
}

/* Requests grow by a token a step, some by none or three; a plan that is built again and again must be as right as a
 * new one, and is seldom built whole. */
static void test_steps(void) {
    static batch b;
    relay_forest *forest = NULL;
    int32_t steps = 0, stepped = 0;
    CHECK(relay_forest_create(&device, &forest) == RELAY_OK);
    for (int32_t i = 0; i < 60; i++) {
        pretend(i % 2);
        only_pages = i % 4 < 2;
        most_rows_drawn = i % 5 < 3 ? 1 : 4;
        relay_attention a = draw_attention();
        if (i % 10) a.sliding_window = a.num_sink_tokens = 0;
        relay_plan_options options = {.struct_size = sizeof options, .strategy = (relay_strategy)(i % 3), .repeatable = i % 7 == 6};
        if (i % 5 == 4)
            options = (relay_plan_options){.struct_size = sizeof options, .max_requests = MOST_REQUESTS, .max_depth = 4,
                                           .max_rows = 4 * MOST_REQUESTS, .max_tokens = 20000, .max_blocks = 30000};
        relay_plan *plan = NULL;
        draw_batch(&b);
        if (b.query_start[b.requests] == 0) continue;
        give_tables(&b);
        for (int32_t r = 0; r < b.requests; r++) b.own[r].tensor_index = 0; /* few tensors: any kernel */
        CHECK(relay_plan_create(&device, &a, &options, &plan) == RELAY_OK && set_forest(&b, forest));
        CHECK_MSG(relay_plan_build(plan, forest) == RELAY_OK, "%s", last_error);
        for (int32_t j = 0; j < 40; j++) {
            for (int32_t r = 0; r < b.requests; r++) b.own[r].length += between(0, 9) ? 1 : 3 * between(0, 1);
            CHECK(set_forest(&b, forest));
            bool step = build_again(plan, forest);
            steps++;
            stepped += step;
            CHECK(!step || (!options.repeatable && a.sliding_window == 0));
            check_blocks(plan, forest);
            check_positions(plan, forest);
            if (j % 8 == 0) check_list(plan, b.query_start[b.requests]);
            if (j % 8 == 0) check_info(plan, forest);
        }
        check_list(plan, b.query_start[b.requests]);
        relay_plan_destroy(plan);
    }
    CHECK_MSG(stepped * 2 > steps, "%d of %d builds were steps", stepped, steps);
    pretend(false);
    only_pages = false;
    most_rows_drawn = 300;
    relay_forest_destroy(forest);
}

/* Prompts over many rows, two tiles of which are a pair: with tiles left over, several prompts, before and after steps. */
static void test_pairs(void) {
    static batch b;
    relay_forest *forest = NULL;
    int32_t stepped = 0;
    pairs_seen = 0;
    pretend(true);
    CHECK(relay_forest_create(&device, &forest) == RELAY_OK);
    for (int32_t i = 0; i < 80; i++) {
        relay_attention a = relay_attention_defaults();
        relay_plan_options options = relay_plan_options_defaults();
        relay_plan *plan = NULL;
        a.num_kv_heads = between(1, 8);
        a.num_heads = a.num_kv_heads * between(3, 8);
        a.head_dim = 64 * between(1, 2);
        options.strategy = RELAY_STRATEGY_RELAY;
        b = (batch){.requests = between(20, MOST_REQUESTS), .segments = between(1, 3)};
        for (int32_t n = 0; n < 4096; n++) b.ids[n] = n;
        for (int32_t r = 0; r < b.requests; r++) {
            b.query_start[r + 1] = b.query_start[r] + (i % 2 ? 1 : between(1, 8));
            b.own[r] = (relay_kv_span){.layout = RELAY_KV_PAGED, .length = between(8, 400)};
        }
        for (int32_t s = 0, first = 0; s < b.segments; s++) {
            int32_t count = s + 1 < b.segments ? between(1, 9) : b.requests - first;
            b.segment[s] = (relay_segment){.parent = -1, .first_request = first, .num_requests = count,
                                           .kv = {.layout = RELAY_KV_PAGED, .length = between(1, 1500)}};
            first += count;
        }
        give_tables(&b);
        CHECK(relay_plan_create(&device, &a, &options, &plan) == RELAY_OK && set_forest(&b, forest));
        CHECK_MSG(relay_plan_build(plan, forest) == RELAY_OK, "%s", last_error);
        CHECK(plan->cuda->kernel == RELAYI_CUDA_HOPPER);
        check_list(plan, b.query_start[b.requests]);
        for (int32_t r = 0; r < b.requests; r++) b.own[r].length += 1 + (r == 0);
        CHECK(set_forest(&b, forest));
        stepped += build_again(plan, forest);
        check_blocks(plan, forest);
        check_list(plan, b.query_start[b.requests]);
        relay_plan_destroy(plan);
    }
    CHECK_MSG(pairs_seen > 1000 && stepped > 20, "only %lld pairs of units, %d steps", (long long)pairs_seen, stepped);
    pretend(false);
    relay_forest_destroy(forest);
}

/* Whatever else changes is no step. */
static void test_no_step(void) {
    static batch b;
    relay_attention a = relay_attention_defaults();
    relay_plan *plan = NULL;
    relay_forest *forest = NULL;
    a.num_heads = a.num_kv_heads = 1;
    a.head_dim = 64;
    b = (batch){.requests = 3, .query_start = {0, 1, 2, 3}, .segments = 1, .ordered = true, .order = {0, 1, 2}};
    for (int32_t i = 0; i < 4096; i++) b.ids[i] = i;
    for (int32_t r = 0; r < 3; r++) b.own[r] = (relay_kv_span){.layout = RELAY_KV_PAGED, .length = 40, .block_table = b.ids};
    b.segment[0] = (relay_segment){.parent = -1, .num_requests = 3,
                                   .kv = {.layout = RELAY_KV_PAGED, .length = 100, .block_table = b.ids}};
    CHECK(relay_forest_create(&device, &forest) == RELAY_OK && set_forest(&b, forest));
    CHECK(relay_plan_create(&device, &a, NULL, &plan) == RELAY_OK && relay_plan_build(plan, forest) == RELAY_OK);
    b.own[1].length++;
    CHECK(set_forest(&b, forest) && build_again(plan, forest));
    b.own[1].length--; /* shorter */
    CHECK(set_forest(&b, forest) && !build_again(plan, forest));
    b.own[1].length += 4000; /* too long for its unit */
    CHECK(set_forest(&b, forest) && !build_again(plan, forest));
    b.segment[0].kv.length = 101;
    CHECK(set_forest(&b, forest) && !build_again(plan, forest));
    b.segment[0].num_requests = 2;
    CHECK(set_forest(&b, forest) && !build_again(plan, forest));
    b.order[0] = 1, b.order[1] = 0;
    CHECK(set_forest(&b, forest) && !build_again(plan, forest));
    b.requests = 2;
    CHECK(set_forest(&b, forest) && !build_again(plan, forest));
    b.query_start[2] = 3; /* a draft */
    CHECK(set_forest(&b, forest) && !build_again(plan, forest));
    b.own[0].length++;
    CHECK(set_forest(&b, forest) && build_again(plan, forest));
    wait_answer = RELAY_DEVICE_ERROR;
    CHECK(relay_plan_build(plan, forest) == RELAY_DEVICE_ERROR);
    wait_answer = RELAY_OK;
    CHECK(!build_again(plan, forest)); /* after a failure all is made anew */
    relay_plan_destroy(plan);
    relay_forest_destroy(forest);
}

/* Three requests over a prompt that is too short to be read once. */
static void make_three(batch *b) {
    *b = (batch){.requests = 3, .query_start = {0, 1, 2, 3}, .segments = 1};
    for (int32_t i = 0; i < 4096; i++) b->ids[i] = i;
    for (int32_t r = 0; r < 3; r++) b->own[r] = (relay_kv_span){.layout = RELAY_KV_PAGED, .length = 40, .block_table = b->ids + r * 64};
    b->segment[0] = (relay_segment){.parent = -1, .num_requests = 3,
                                    .kv = {.layout = RELAY_KV_PAGED, .length = 100, .block_table = b->ids + 1000}};
}

/* Tables that are others but of the same lengths are a step, to which no other place of a span is known. */
static void test_moved_spans(void) {
    static batch b;
    relay_attention a = {.struct_size = sizeof a, .query_dtype = RELAY_BF16, .kv_dtype = RELAY_BF16, .output_dtype = RELAY_BF16,
                         .num_heads = 1, .num_kv_heads = 1, .head_dim = 64};
    const relay_plan_options options[] = {{.struct_size = sizeof *options}, {.struct_size = sizeof *options, .strategy = RELAY_STRATEGY_RELAY}};
    relay_kv_span in_tensor = {.layout = RELAY_KV_CONTIGUOUS, .length = 100};
    for (int32_t i = 0; i < 4; i++) {
        relay_plan *plan = NULL;
        relay_forest *forest = NULL;
        pretend(i % 2);
        make_three(&b);
        CHECK(relay_forest_create(&device, &forest) == RELAY_OK && set_forest(&b, forest));
        CHECK(relay_plan_create(&device, &a, &options[i / 2], &plan) == RELAY_OK && relay_plan_build(plan, forest) == RELAY_OK);
        b.own[1].block_table = b.ids + 2000;
        b.segment[0].kv.block_table = b.ids + 3000;
        CHECK(set_forest(&b, forest) && build_again(plan, forest));
        check_blocks(plan, forest);
        b.ids[2000] = b.ids[3000] = 7; /* the same table, other ids */
        CHECK(set_forest(&b, forest) && build_again(plan, forest));
        check_blocks(plan, forest);
        b.own[1] = (relay_kv_span){.layout = RELAY_KV_CONTIGUOUS, .length = 40};
        CHECK(set_forest(&b, forest) && !build_again(plan, forest));
        CHECK(build_again(plan, forest));
        b.own[1].tensor_index = 1;
        CHECK(set_forest(&b, forest) && !build_again(plan, forest));
        for (in_tensor.tensor_index = 0; in_tensor.tensor_index < 2; in_tensor.tensor_index++)
            CHECK(relay_forest_move_segment(forest, 0, &in_tensor) == RELAY_OK && !build_again(plan, forest));
        b.own[1] = b.own[0];
        CHECK(set_forest(&b, forest) && !build_again(plan, forest));
        block_size = 32;
        CHECK(set_forest(&b, forest) && !build_again(plan, forest) && build_again(plan, forest));
        block_size = BLOCK_SIZE;
        relay_plan_destroy(plan);
        relay_forest_destroy(forest);
    }
    pretend(false);
}

/* A request grows by single tokens: its last unit takes a quarter of a chunk more than the others have, or 64 tokens, and
 * not one beyond; nor does it grow beyond the options' bounds. */
static void test_how_far(int32_t max_tokens) {
    static batch b;
    relay_attention a = {.struct_size = sizeof a, .query_dtype = RELAY_BF16, .kv_dtype = RELAY_BF16, .output_dtype = RELAY_BF16,
                         .num_heads = 1, .num_kv_heads = 1, .head_dim = 64};
    relay_plan_options options = {.struct_size = sizeof options, .strategy = RELAY_STRATEGY_RELAY};
    if (max_tokens > 0) options.max_requests = options.max_rows = 3, options.max_depth = 1, options.max_blocks = 3000, options.max_tokens = max_tokens;
    for (int32_t i = 0; i < 2; i++) {
        relay_plan *plan = NULL;
        relay_forest *forest = NULL;
        pretend(i);
        make_three(&b);
        b.own[1].length = 1500;
        CHECK(relay_forest_create(&device, &forest) == RELAY_OK && set_forest(&b, forest));
        CHECK(relay_plan_create(&device, &a, &options, &plan) == RELAY_OK && relay_plan_build(plan, forest) == RELAY_OK);
        const relayi_cuda_run *run = read_list(plan).runs + 3; /* of request 1 by itself, behind two of 0 and the prompt's */
        int32_t chunks = run->chunks, all = (1500 + RELAYI_CUDA_CUT - 1) / RELAYI_CUDA_CUT * RELAYI_CUDA_CUT;
        if (i) all = (1500 + RELAYI_CUDA_PAGE - 1) / RELAYI_CUDA_PAGE * RELAYI_CUDA_PAGE;
        int32_t grid = i ? RELAYI_CUDA_PAGE : RELAYI_CUDA_CUT, chunk = ((all + chunks - 1) / chunks + grid - 1) / grid * grid;
        int32_t most = (chunks * chunk + (chunk / 4 > 64 ? chunk / 4 : 64)) / grid * grid;
        if (max_tokens > 0 && max_tokens - 100 < most) most = max_tokens - 100;
        while (b.own[1].length < most) {
            b.own[1].length++;
            CHECK(set_forest(&b, forest) && build_again(plan, forest));
        }
        b.own[1].length++;
        CHECK(set_forest(&b, forest));
        if (max_tokens > 0) {
            CHECK(relay_plan_build(plan, forest) == RELAY_OUT_OF_RANGE);
            b.own[1].length--;
            CHECK(set_forest(&b, forest));
        }
        CHECK(!build_again(plan, forest)); /* after a failure, too */
        check_list(plan, 3);
        relay_plan_destroy(plan);
        relay_forest_destroy(forest);
    }
    pretend(false);
}

/* Nor does a batch get more block ids than the options' bounds. */
static void test_most_blocks(void) {
    static batch b;
    relay_attention a = {.struct_size = sizeof a, .query_dtype = RELAY_BF16, .kv_dtype = RELAY_BF16, .output_dtype = RELAY_BF16,
                         .num_heads = 1, .num_kv_heads = 1, .head_dim = 64};
    const relay_plan_options options = {.struct_size = sizeof options, .max_requests = 3, .max_rows = 3, .max_depth = 1,
                                        .max_tokens = 1000, .max_blocks = 3 * 3 + 7};
    relay_plan *plan = NULL;
    relay_forest *forest = NULL;
    make_three(&b);
    CHECK(relay_forest_create(&device, &forest) == RELAY_OK && set_forest(&b, forest));
    CHECK(relay_plan_create(&device, &a, &options, &plan) == RELAY_OK && relay_plan_build(plan, forest) == RELAY_OK);
    b.own[0].length = 48;
    CHECK(set_forest(&b, forest) && build_again(plan, forest));
    b.own[0].length = 49;
    CHECK(set_forest(&b, forest) && relay_plan_build(plan, forest) == RELAY_OUT_OF_RANGE);
    relay_plan_destroy(plan);
    relay_forest_destroy(forest);
}

/* Rows of a request that fill more than one tile are no step. */
static void test_several_tiles(void) {
    static batch b;
    relay_attention a = {.struct_size = sizeof a, .query_dtype = RELAY_BF16, .kv_dtype = RELAY_BF16, .output_dtype = RELAY_BF16,
                         .num_heads = 8, .num_kv_heads = 1, .head_dim = 64};
    const relay_plan_options options = {.struct_size = sizeof options, .strategy = RELAY_STRATEGY_RELAY};
    relay_plan *plan = NULL;
    relay_forest *forest = NULL;
    pretend(true);
    make_three(&b);
    for (int32_t r = 0; r < 3; r++) b.query_start[r + 1] = 2 * (r + 1);
    CHECK(relay_forest_create(&device, &forest) == RELAY_OK && set_forest(&b, forest));
    CHECK(relay_plan_create(&device, &a, &options, &plan) == RELAY_OK && relay_plan_build(plan, forest) == RELAY_OK);
    b.own[0].length++;
    CHECK(set_forest(&b, forest) && !build_again(plan, forest));
    check_list(plan, 6);
    relay_plan_destroy(plan);
    relay_forest_destroy(forest);
    pretend(false);
}

/* Within its bounds a plan's layout never moves. */
static void test_bounds(void) {
    static batch b;
    relay_forest *forest = NULL;
    CHECK(relay_forest_create(&device, &forest) == RELAY_OK);
    for (int32_t i = 0; i < 60; i++) {
        pretend(i % 2);
        most_rows_drawn = i % 4 == 1 ? 8 : 300;
        relay_attention a = draw_attention();
        relay_plan_options options = {.struct_size = sizeof options, .repeatable = i % 3 == 0, .max_requests = MOST_REQUESTS,
                                      .max_rows = most_rows_drawn * MOST_REQUESTS, .max_depth = 4, .max_tokens = 20000,
                                      .max_blocks = 30000};
        options.strategy = (relay_strategy)(i % 3);
        relay_plan *plan = NULL;
        size_t workspace = 0, list = 0;
        CHECK(relay_plan_create(&device, &a, &options, &plan) == RELAY_OK);
        for (int32_t j = 0; j < 12; j++) {
            draw_batch(&b);
            int32_t before = waits;
            relay_status status = set_forest(&b, forest) ? relay_plan_build(plan, forest) : RELAY_INVALID_ARGUMENT;
            CHECK(status != RELAY_OK || waits == before + 1); /* the list may still be in use */
            if (status == RELAY_UNSUPPORTED && plan->cuda->kernel == RELAYI_CUDA_HOPPER) {
                CHECK_CONTAINS(last_error, "contiguous tensors");
                continue;
            }
            CHECK_MSG(status == RELAY_OK, "batch %d: %s", j, last_error);
            if (status != RELAY_OK) continue;
            check_list(plan, b.query_start[b.requests]);
            CHECK(workspace == 0 || (workspace == relay_plan_workspace_bytes(plan) && list == plan->cuda->list_bytes));
            workspace = relay_plan_workspace_bytes(plan);
            list = plan->cuda->list_bytes;
        }
        relay_plan_destroy(plan);
    }
    pretend(false);
    most_rows_drawn = 300;
    relay_forest_destroy(forest);
}

/* Requests so long that every worker would take several of their chunks: units stay within their room. */
static void test_longest_requests(void) {
    enum { TOKENS = 700000, BLOCKS = TOKENS / 16 };
    static int32_t ids[BLOCKS];
    const int32_t query_start[3] = {0, 1, 2};
    const relay_kv_span own[2] = {{.layout = RELAY_KV_PAGED, .length = TOKENS, .block_table = ids},
                                  {.layout = RELAY_KV_PAGED, .length = TOKENS / 2, .block_table = ids}};
    const relay_forest_desc desc = {.struct_size = sizeof desc, .num_requests = 2, .block_size = 16, .num_blocks = BLOCKS,
                                    .query_start_loc = query_start, .own = own};
    relay_plan_options options = {.struct_size = sizeof options, .strategy = RELAY_STRATEGY_PLAIN, .max_requests = 2,
                                  .max_rows = 2, .max_depth = 1, .max_tokens = TOKENS, .max_blocks = 2 * BLOCKS};
    relay_attention a = relay_attention_defaults();
    a.num_heads = a.num_kv_heads = 1;
    a.head_dim = 128;
    a.query_dtype = a.kv_dtype = a.output_dtype = RELAY_BF16;
    relay_forest *forest = NULL;
    relay_plan *plan = NULL;
    pretend(true);
    for (int32_t i = 0; i < BLOCKS; i++) ids[i] = i;
    CHECK(relay_forest_create(&device, &forest) == RELAY_OK && relay_forest_set(forest, &desc) == RELAY_OK);
    CHECK(relay_plan_create(&device, &a, &options, &plan) == RELAY_OK);
    CHECK_MSG(relay_plan_build(plan, forest) == RELAY_OK, "%s", last_error);
    CHECK(plan->cuda->layout == RELAYI_CUDA_USERS_ALONE && plan->cuda->used.units > 1000);
    relay_plan_destroy(plan);
    relay_forest_destroy(forest);
    pretend(false);
}

static void refuse(const relay_plan_options *options, const batch *b, const char *word) {
    relay_attention a = relay_attention_defaults();
    relay_plan *plan = NULL;
    relay_forest *forest = NULL;
    a.num_heads = a.num_kv_heads = 1;
    a.head_dim = 64;
    CHECK(relay_forest_create(&device, &forest) == RELAY_OK && set_forest(b, forest));
    CHECK(relay_plan_create(&device, &a, options, &plan) == RELAY_OK);
    last_error[0] = '\0';
    CHECK(relay_plan_build(plan, forest) == RELAY_OUT_OF_RANGE);
    CHECK_CONTAINS(last_error, word);
    relay_plan_destroy(plan);
    relay_forest_destroy(forest);
}

static void test_beyond_bounds(void) {
    static batch b;
    b = (batch){.requests = 2, .query_start = {0, 2, 4}, .segments = 1};
    b.own[0] = b.own[1] = (relay_kv_span){.layout = RELAY_KV_PAGED, .length = 40, .block_table = b.ids};
    b.segment[0] = (relay_segment){.parent = -1, .num_requests = 2,
                                   .kv = {.layout = RELAY_KV_PAGED, .length = 100, .block_table = b.ids}};
    const relay_plan_options fits = {.struct_size = sizeof fits, .max_requests = 2, .max_rows = 4, .max_depth = 1,
                                     .max_tokens = 140, .max_blocks = 13};
    relay_plan_options o = fits;
    o.max_requests = 1;
    refuse(&o, &b, "max_requests");
    o = fits;
    o.max_rows = 3;
    refuse(&o, &b, "max_rows");
    o = fits;
    o.max_depth = 0;
    refuse(&o, &b, "max_depth");
    o = fits;
    o.max_tokens = 139;
    refuse(&o, &b, "max_tokens");
    o = fits;
    o.max_blocks = 12;
    refuse(&o, &b, "max_blocks");
}

static void test_options(void) {
    relay_attention a = relay_attention_defaults();
    relay_plan_options o = relay_plan_options_defaults();
    relay_plan *plan = NULL;
    a.num_heads = a.num_kv_heads = 1;
    a.head_dim = 64;
    o.max_rows = 4; /* without max_requests */
    CHECK(relay_plan_create(&device, &a, &o, &plan) == RELAY_INVALID_ARGUMENT && plan == NULL);
    CHECK_CONTAINS(last_error, "max_rows");
    o = (relay_plan_options){.struct_size = sizeof o, .max_requests = 4};
    CHECK(relay_plan_create(&device, &a, &o, &plan) == RELAY_INVALID_ARGUMENT && plan == NULL);
    a.kv_dtype = RELAY_F32;
    CHECK(relay_plan_create(&device, &a, NULL, &plan) == RELAY_UNSUPPORTED && plan == NULL);
    a.kv_dtype = RELAY_BF16;
    a.output_dtype = RELAY_F32;
    CHECK(relay_plan_create(&device, &a, NULL, &plan) == RELAY_UNSUPPORTED && plan == NULL);
}

static void test_block_size(void) {
    relay_attention a = relay_attention_defaults();
    relay_plan *plan = NULL;
    relay_forest *forest = NULL;
    int32_t ids[8] = {0}, query_start[2] = {0, 1};
    relay_kv_span own = {.layout = RELAY_KV_PAGED, .length = 20, .block_table = ids};
    a.num_heads = a.num_kv_heads = 1;
    a.head_dim = 64;
    relay_forest_desc desc = relay_forest_desc_defaults();
    desc.num_requests = 1;
    desc.query_start_loc = query_start;
    desc.own = &own;
    desc.block_size = 24;
    desc.num_blocks = 1;
    CHECK(relay_forest_create(&device, &forest) == RELAY_OK && relay_forest_set(forest, &desc) == RELAY_OK);
    CHECK(relay_plan_create(&device, &a, NULL, &plan) == RELAY_OK);
    CHECK(relay_plan_build(plan, forest) == RELAY_UNSUPPORTED);
    CHECK_CONTAINS(last_error, "block_size");
    relay_plan_destroy(plan);
    relay_forest_destroy(forest);
}

/* ---- the loader --------------------------------------------------------------- */

static void expect_no_device(const char *library, const char *words) {
    relay_device_options options = relay_device_options_defaults();
    relay_device *none = NULL;
    options.kind = RELAY_DEVICE_CUDA;
    options.log = keep_error;
    if (library != NULL) setenv("RELAY_CUDA_LIBRARY", library, 1);
    last_error[0] = '\0';
    CHECK(relay_device_open(&options, &none) == RELAY_NO_DEVICE && none == NULL);
    CHECK_CONTAINS(last_error, words);
    unsetenv("RELAY_CUDA_LIBRARY");
}

static void test_loader(void) {
    expect_no_device("/nonexistent/librelayattn_cuda.so", "/nonexistent/librelayattn_cuda.so");
    expect_no_device("libm.so.6", RELAYI_CUDA_OPS_SYMBOL);
    expect_no_device(OTHER_VERSION, "another version");
}

/* As kernels do it: tile_cuda.cuh, divide(). */
static uint32_t divide(uint32_t n, relayi_cuda_divisor by) {
    return ((uint32_t)((uint64_t)n * by.multiplier >> 32) + n) >> by.shift;
}

static void test_divisors(void) {
    for (uint32_t d = 1; d < 1000; d++) {
        relayi_cuda_divisor by = relayi_cuda_divide_by(d);
        for (uint32_t n = 0; n < 3 * d + 10; n++) CHECK(divide(n, by) == n / d);
        for (uint32_t turn = 1; turn <= 40; turn++) {
            uint32_t multiple = INT32_MAX / d / turn * d;
            CHECK(divide(multiple, by) == multiple / d);
            if (multiple > 0) CHECK(divide(multiple - 1, by) == (multiple - 1) / d);
        }
        CHECK(divide(INT32_MAX, by) == INT32_MAX / d);
    }
    CHECK(divide(12345, relayi_cuda_divide_by(0)) == 12345); /* of a forest that was never set: no crash */
    static const uint32_t large[] = {65535, 65536, 65537, 1u << 30, (1u << 30) + 1, INT32_MAX - 1, INT32_MAX};
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
        relayi_cuda_divisor by = relayi_cuda_divide_by(large[i]);
        for (uint32_t n = large[i] - 2; n <= large[i]; n++) CHECK(divide(n, by) == n / large[i]);
        CHECK(divide(INT32_MAX, by) == INT32_MAX / large[i]);
    }
}

/* One prompt of so many tokens over requests of one row: shared only where much is saved beside what they have themselves. */
static bool shares(int32_t kv_heads, int32_t group, int32_t requests, int32_t prompt, int32_t user) {
    enum { MOST = 128 };
    static int32_t start[MOST + 1], ids[4096];
    static relay_kv_span own[MOST];
    relay_attention a = relay_attention_defaults();
    relay_forest *forest = NULL;
    relay_plan *plan = NULL;
    relay_forest_desc desc = relay_forest_desc_defaults();
    relay_plan_info info = {.struct_size = sizeof info};
    a.query_dtype = a.kv_dtype = a.output_dtype = RELAY_BF16;
    a.head_dim = 128, a.num_kv_heads = kv_heads, a.num_heads = kv_heads * group;
    for (int32_t r = 0; r < requests; r++) {
        start[r + 1] = r + 1;
        own[r] = (relay_kv_span){.layout = RELAY_KV_PAGED, .length = user, .block_table = ids};
    }
    relay_segment segment = {.parent = -1, .num_requests = requests,
                             .kv = {.layout = RELAY_KV_PAGED, .length = prompt, .block_table = ids}};
    desc.num_requests = requests, desc.query_start_loc = start, desc.own = own, desc.num_segments = 1;
    desc.segments = &segment, desc.block_size = 16, desc.num_blocks = 1;
    CHECK(relay_forest_create(&device, &forest) == RELAY_OK && relay_forest_set(forest, &desc) == RELAY_OK);
    CHECK(relay_plan_create(&device, &a, NULL, &plan) == RELAY_OK && relay_plan_build(plan, forest) == RELAY_OK);
    CHECK(relay_plan_get_info(plan, &info) == RELAY_OK && plan->cuda->kernel == RELAYI_CUDA_HOPPER);
    relay_plan_destroy(plan);
    relay_forest_destroy(forest);
    return info.relay_segments > 0;
}

/* As bench/results/h200 has it; the general kernel takes none of these. */
static void test_sharing(void) {
    pretend(true);
    CHECK(shares(8, 4, 8, 2048, 128) && shares(8, 4, 32, 1024, 512) && shares(8, 4, 128, 512, 512) && shares(32, 1, 8, 512, 128));
    CHECK(!shares(8, 4, 8, 512, 128) && !shares(8, 4, 32, 512, 512) && !shares(1, 8, 8, 4000, 128) && !shares(32, 1, 8, 128, 512));
    pretend(false);
}

int main(void) {
    test_divisors();
    test_sharing();
    test_coverage();
    test_steps();
    test_pairs();
    test_no_step();
    test_moved_spans();
    test_how_far(0);
    test_how_far(1620);
    test_most_blocks();
    test_several_tiles();
    test_bounds();
    test_longest_requests();
    test_beyond_bounds();
    test_options();
    test_block_size();
    test_loader();
    CHECK_MSG(layouts_seen == 0x1F, "the random batches met layouts %x alone", layouts_seen);
    return test_result();
}
