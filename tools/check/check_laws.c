/* Laws that relate one way of computing a problem to another. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check_world.h"

static const relay_kv_layout layouts[] = {RELAY_KV_PAGED, RELAY_KV_CONTIGUOUS, RELAY_KV_PACKED};
static const relay_dtype dtypes[] = {RELAY_F32, RELAY_F16, RELAY_BF16};

/* ---- two ways, one answer ------------------------------------------------ */

static bool answer(chk *c, const chk_case *k, chk_result *got, chk_result *want) {
    chk_world world;
    bool ok = chk_world_make(c, k, &world) && chk_world_run(c, &world, NULL, got) &&
              (want == NULL || chk_world_expect(c, &world, want));
    chk_world_free(&world);
    return ok;
}

/* Replaces an oracle's answer by the library's, keeping what the tolerance needs. */
static void adopt(chk_result *want, const chk_result *got) {
    memcpy(want->out, got->out, (size_t)(got->rows * got->heads * got->dim) * sizeof(double));
    memcpy(want->lse, got->lse, (size_t)(got->rows * got->heads) * sizeof(double));
}

static chk_tolerance tolerance(const chk *c, const chk_case *k) {
    return chk_tolerance_for(c, k->attention.kv_dtype, k->attention.output_dtype);
}

/* ---- every split point --------------------------------------------------- */

enum { SPLIT_TOKENS = 150 };

/* The same tokens as [0, first) + [first, second) + own. */
static chk_case split_case(const chk *c, int32_t variant, int32_t rows, int32_t first, int32_t second) {
    chk_case k = chk_case_defaults(chk_mix(c->seed, 400 + (uint64_t)variant));
    relay_kv_layout layout = layouts[variant % 3];
    int32_t ends[3] = {first, second, SPLIT_TOKENS}, parent = -1, begin = 0;
    for (int i = 0; i < 3; i++) {
        chk_span span = {.layout = layout, .length = ends[i] - begin, .content = 1, .first = begin};
        if (i == 2) {
            chk_add_request(&k, rows, layout, span.length);
            k.requests[0].own = span;
        } else if (ends[i] > begin) {
            parent = chk_add_segment(&k, parent, 0, 1, layout, span.length);
            k.segments[parent].kv = span;
        }
        begin = ends[i];
    }
    k.attention.kv_dtype = k.attention.query_dtype = dtypes[variant / 3 % 3];
    k.strategy = (relay_strategy)(first % 3);
    k.threads = 1 + (first % 8 == 1);
    if (variant >= 9) k.attention.sliding_window = 60;
    if (variant >= 9) k.attention.num_sink_tokens = 70;
    if (variant >= 9) k.attention.use_alibi = k.attention.use_sinks = 1;
    return k;
}

static void check_split(chk *c, int32_t variant, int32_t rows, chk_result *unsplit, int32_t first, int32_t second) {
    if (!chk_begin(c, "split %d: %s %s, %d rows, %d tokens cut at %d and %d%s", variant,
                   relay_dtype_name(dtypes[variant / 3 % 3]), variant % 3 == 0 ? "paged" : variant % 3 == 1 ? "contiguous" : "packed",
                   rows, SPLIT_TOKENS, first, second, variant >= 9 ? ", window, sink tokens, sinks, alibi" : ""))
        return;
    chk_case k = split_case(c, variant, rows, first, second);
    chk_result got = {0};
    if (answer(c, &k, &got, NULL)) chk_compare(c, unsplit, &got, tolerance(c, &k));
    chk_result_free(&got);
    chk_end(c);
}

static void check_splits(chk *c) {
    for (int32_t variant = 0; variant < 18; variant++) {
        int32_t rows = variant % 2 ? 5 : 1, step = c->quick ? 23 : variant < 3 ? 1 : 7;
        chk_case whole = split_case(c, variant, rows, 0, 0);
        chk_result got = {0}, want = {0};
        if (chk_begin(c, "split %d: unsplit", variant)) {
            if (answer(c, &whole, &got, &want)) chk_compare(c, &want, &got, tolerance(c, &whole));
            chk_end(c);
        } else if (!answer(c, &whole, &got, &want)) {
            continue;
        }
        if (want.out != NULL && got.out != NULL) {
            adopt(&want, &got);
            for (int32_t at = 1; at <= SPLIT_TOKENS - rows; at += step) check_split(c, variant, rows, &want, at, at);
            for (int32_t at = 1; at < SPLIT_TOKENS - rows; at += 11 * step)
                check_split(c, variant, rows, &want, at, at + (SPLIT_TOKENS - rows - at) / 2 + 1);
        }
        chk_result_free(&got);
        chk_result_free(&want);
    }
}

/* ---- relay and plain ----------------------------------------------------- */

/* Two nested prompts and another one; requests of all three kinds, not side by side. */
static chk_case shared_case(const chk *c, int64_t index, relay_kv_layout layout) {
    chk_case k = chk_case_defaults(chk_mix(c->seed, 500 + (uint64_t)index));
    int32_t a = chk_add_segment(&k, -1, 0, 4, layout, 144);
    chk_add_segment(&k, a, 1, 2, layout, 48);
    chk_add_segment(&k, -1, 4, 3, layout, 96);
    for (int32_t r = 0; r < 8; r++) chk_add_request(&k, r % 3 == 2 ? 9 : 1, layout, 9 + 17 * r);
    chk_rng rng = chk_rng_at(k.seed, 2);
    k.ordered = true;
    k.threads = CHK_MAX_THREADS;
    chk_shuffle(&rng, k.order, k.num_requests);
    k.attention.kv_dtype = k.attention.query_dtype = dtypes[index % 3];
    if (index % 4 == 3) k.attention.sliding_window = 100;
    if (index % 5 == 4) k.attention.use_sinks = 1;
    return k;
}

static void check_strategies(chk *c) {
    for (int64_t index = 0; index < (c->quick ? 3 : 18); index++) {
        if (!chk_begin(c, "relay equals plain %lld", (long long)index)) continue;
        chk_case k = shared_case(c, index, layouts[index / 3 % 3]);
        chk_result plain = {0}, relay = {0}, want = {0};
        k.strategy = RELAY_STRATEGY_PLAIN;
        bool ok = answer(c, &k, &plain, &want);
        k.strategy = RELAY_STRATEGY_RELAY;
        if (ok && answer(c, &k, &relay, NULL)) {
            adopt(&want, &plain);
            chk_compare(c, &want, &relay, tolerance(c, &k));
        }
        chk_result_free(&plain);
        chk_result_free(&relay);
        chk_result_free(&want);
        chk_end(c);
    }
}

/* ---- a forest found, made by hand, and none ------------------------------ */

enum { TABLE_STRIDE = 64 };

/* Each request's whole block table, out of its segments' and its own; the rest are wild. */
static void write_table(const chk_world *w, int32_t position, int32_t *to) {
    const chk_case *k = w->plain;
    int32_t count = 0, request = chk_request_at(k, position);
    for (int32_t s = 0; s <= k->num_segments; s++) {
        bool own = s == k->num_segments;
        const chk_segment *segment = &k->segments[own ? 0 : s];
        if (!own && (position < segment->first || position >= segment->first + segment->count)) continue;
        const chk_placed *placed = &w->spans[own ? k->num_segments + request : s];
        int32_t length = own ? k->requests[request].own.length : segment->kv.length;
        const int32_t *ids = placed->blocks.data;
        for (int32_t i = 0; i < (length + k->block_size - 1) / k->block_size; i++) to[count++] = ids[i];
    }
    while (count < TABLE_STRIDE) to[count++] = INT32_MAX - request;
}

static bool find_forest(chk *c, const chk_world *w, const int32_t *table, int32_t max_depth, relay_forest **forest) {
    int32_t lengths[CHK_MAX_REQUESTS];
    const chk_case *k = w->plain;
    for (int32_t r = 0; r < k->num_requests; r++)
        lengths[r] = (int32_t)chk_shared_tokens(k, r) + k->requests[r].own.length;
    relay_block_tables tables = relay_block_tables_defaults();
    tables.num_requests = k->num_requests;
    tables.query_start_loc = w->query_start;
    tables.seq_lens = lengths;
    tables.block_table = table;
    tables.block_table_stride = TABLE_STRIDE;
    tables.block_size = k->block_size;
    tables.num_blocks = w->num_blocks;
    tables.max_depth = max_depth;
    return chk_ok(c, "relay_forest_create", relay_forest_create(w->device, forest)) &&
           chk_ok(c, "relay_forest_find", relay_forest_find(*forest, &tables));
}

/* Every segment and every request's path, read back, must spell the request's table. */
static void check_spelling(chk *c, const chk_world *w, const relay_forest *forest, const int32_t *table) {
    const chk_case *k = w->plain;
    const int32_t *order = relay_forest_order(forest);
    for (int32_t p = 0; p < k->num_requests; p++) {
        int32_t request = order[p], count = 0;
        relay_segment segment = {0};
        relay_kv_span own;
        const int32_t *ids = table + request * TABLE_STRIDE;
        for (int32_t s = 0; s < relay_forest_num_segments(forest); s++) {
            if (relay_forest_get_segment(forest, s, &segment) != RELAY_OK) chk_fail(c, "segment %d cannot be read", s);
            if (p < segment.first_request || p >= segment.first_request + segment.num_requests) continue;
            int32_t blocks = segment.kv.length / k->block_size;
            if (segment.kv.length % k->block_size != 0 ||
                memcmp(ids + count, segment.kv.block_table, (size_t)blocks * sizeof *ids) != 0)
                chk_fail(c, "segment %d is not what request %d has from block %d on", s, request, count);
            count += blocks;
        }
        if (relay_forest_get_own(forest, request, &own) != RELAY_OK) chk_fail(c, "own part %d cannot be read", request);
        int32_t total = (int32_t)chk_shared_tokens(k, request) + k->requests[request].own.length;
        int32_t rest = (total + k->block_size - 1) / k->block_size - count;
        if (count * k->block_size + own.length != total || own.length < k->requests[request].rows ||
            (rest > 0 && memcmp(ids + count, own.block_table, (size_t)rest * sizeof *ids) != 0))
            chk_fail(c, "request %d: %d blocks shared and %d own tokens of %d", request, count, own.length, total);
    }
}

static void compare_found(chk *c, chk_world *w, const int32_t *table, chk_result *want) {
    chk_result found = {0}, none = {0};
    relay_forest *forest = NULL, *flat = NULL;
    if (find_forest(c, w, table, 4, &forest) && find_forest(c, w, table, 0, &flat) &&
        chk_world_run(c, w, forest, &found) && chk_world_run(c, w, flat, &none)) {
        if (relay_forest_num_segments(forest) != w->plain->num_segments)
            chk_fail(c, "%d segments found of %d", relay_forest_num_segments(forest), w->plain->num_segments);
        if (relay_forest_num_segments(flat) != 0) chk_fail(c, "segments found though max_depth is 0");
        check_spelling(c, w, forest, table);
        check_spelling(c, w, flat, table);
        chk_compare(c, want, &found, tolerance(c, w->plain));
        chk_compare(c, want, &none, tolerance(c, w->plain));
    }
    relay_forest_destroy(forest);
    relay_forest_destroy(flat);
    chk_result_free(&found);
    chk_result_free(&none);
}

static void check_found(chk *c) {
    for (int64_t index = 0; index < (c->quick ? 3 : 12); index++) {
        if (!chk_begin(c, "forest found, by hand, none %lld", (long long)index)) continue;
        chk_case k = shared_case(c, index, RELAY_KV_PAGED);
        k.strategy = (relay_strategy)(index % 3);
        chk_world world;
        chk_result hand = {0}, want = {0};
        chk_buffer table = {0};
        bool ok = chk_buffer_make(&table, (size_t)k.num_requests * TABLE_STRIDE * sizeof(int32_t), sizeof(int32_t));
        ok = chk_world_make(c, &k, &world) && ok;
        for (int32_t p = 0; ok && p < k.num_requests; p++)
            write_table(&world, p, (int32_t *)table.data + chk_request_at(&k, p) * TABLE_STRIDE);
        if (ok && chk_world_run(c, &world, NULL, &hand) && chk_world_expect(c, &world, &want)) {
            chk_compare(c, &want, &hand, tolerance(c, &k));
            adopt(&want, &hand);
            compare_found(c, &world, table.data, &want);
        }
        chk_world_free(&world);
        chk_buffer_free(&table);
        chk_result_free(&hand);
        chk_result_free(&want);
        chk_end(c);
    }
}

/* Requests with the very same blocks, new tokens included: what is new must stay each one's own. */
static void check_identical(chk *c) {
    static const int32_t lengths[] = {96, 80, 81, 96, 64, 97}, rows[] = {1, 17, 1, 33, 0, 16};
    if (!chk_begin(c, "forest found where requests are the same, new tokens included")) return;
    chk_case k = chk_case_defaults(chk_mix(c->seed, 600));
    for (int32_t r = 0; r < 6; r++) {
        chk_add_request(&k, rows[r], RELAY_KV_PAGED, lengths[r]);
        k.requests[r].own.content = 1;
    }
    chk_world world;
    chk_result want = {0}, found = {0};
    relay_forest *forest = NULL;
    int32_t *table = malloc(6 * TABLE_STRIDE * sizeof *table);
    bool ok = chk_world_make(c, &k, &world) && table != NULL;
    if (ok) write_table(&world, 5, table); /* the longest: all others are its beginnings */
    for (int32_t r = 1; ok && r < 6; r++) memcpy(table + r * TABLE_STRIDE, table, TABLE_STRIDE * sizeof *table);
    if (ok && find_forest(c, &world, table, 4, &forest) && chk_world_run(c, &world, forest, &found) &&
        chk_world_expect(c, &world, &want)) {
        check_spelling(c, &world, forest, table);
        chk_compare(c, &want, &found, tolerance(c, &k));
        if (relay_forest_num_segments(forest) == 0) chk_fail(c, "nothing found to share");
    }
    relay_forest_destroy(forest);
    chk_world_free(&world);
    chk_result_free(&want);
    chk_result_free(&found);
    free(table);
    chk_end(c);
}

/* ---- repeatable ---------------------------------------------------------- */

/* The case with only those requests whose position has a bit in `keep`, paths unchanged. */
static chk_case reduce(const chk_case *k, uint32_t keep, int32_t *kept) {
    chk_case out = *k;
    int32_t place[CHK_MAX_REQUESTS + 1] = {0}, map[CHK_MAX_SEGMENTS];
    out.num_requests = out.num_segments = 0;
    out.ordered = false;
    for (int32_t p = 0; p < k->num_requests; p++) {
        place[p] = out.num_requests;
        if (!(keep >> p & 1)) continue;
        kept[out.num_requests] = chk_request_at(k, p);
        out.requests[out.num_requests] = k->requests[chk_request_at(k, p)];
        out.num_requests++;
    }
    place[k->num_requests] = out.num_requests;
    for (int32_t s = 0; s < k->num_segments; s++) {
        const chk_segment *from = &k->segments[s];
        int32_t first = place[from->first], count = place[from->first + from->count] - first;
        if (count == 0) continue;
        map[s] = out.num_segments++;
        chk_segment *to = &out.segments[map[s]];
        *to = *from;
        to->parent = from->parent < 0 ? -1 : map[from->parent];
        to->first = first;
        to->count = count;
    }
    return out;
}

/* A request's rows in a batch's result, as a view. */
static chk_result rows_of(const chk_case *k, const chk_result *all, int32_t request) {
    int64_t first = 0;
    for (int32_t r = 0; r < request; r++) first += k->requests[r].rows;
    chk_result view = *all;
    view.rows = k->requests[request].rows;
    view.out += first * all->heads * all->dim;
    view.lse += first * all->heads;
    return view;
}

static void check_reduced(chk *c, const chk_case *k, const chk_result *all, uint32_t keep, int32_t threads) {
    int32_t kept[CHK_MAX_REQUESTS];
    chk_case part = reduce(k, keep, kept);
    part.threads = threads;
    chk_result got = {0};
    if (answer(c, &part, &got, NULL)) {
        for (int32_t r = 0; r < part.num_requests; r++) {
            chk_result want = rows_of(k, all, kept[r]), seen = rows_of(&part, &got, r);
            chk_compare_bits(c, "in another batch", &want, &seen);
        }
    }
    chk_result_free(&got);
}

static void check_repeatable(chk *c) {
    for (int64_t index = 0; index < (c->quick ? 3 : 18); index++) {
        chk_case k = shared_case(c, index, layouts[index / 3 % 3]);
        if (index % 2) k.segments[0].kv.length = 2100; /* longer than a fixed cut */
        if (index % 2) k.segments[0].kv.first = 3;
        k.repeatable = 1;
        k.strategy = (relay_strategy)(index % 3);
        if (!chk_begin(c, "repeatable %lld: a request alone and in other batches, 1 and 2 threads", (long long)index))
            continue;
        chk_result all = {0}, again = {0};
        if (answer(c, &k, &all, NULL)) {
            k.threads = 1;
            if (answer(c, &k, &again, NULL)) chk_compare_bits(c, "on one thread", &all, &again);
            for (int32_t p = 0; p < k.num_requests; p++) check_reduced(c, &k, &all, 1u << p, 1 + p % 2);
            check_reduced(c, &k, &all, 0xAA, 2);
            check_reduced(c, &k, &all, 0x3C, 1);
        }
        chk_result_free(&all);
        chk_result_free(&again);
        chk_end(c);
    }
}

/* One plan, run twice on workspaces at other addresses. */
static void check_twice(chk *c) {
    for (int64_t index = 0; index < (c->quick ? 2 : 9); index++) {
        if (!chk_begin(c, "the same plan twice %lld", (long long)index)) continue;
        chk_case k = shared_case(c, index, layouts[index / 3 % 3]);
        k.segments[0].kv.length = 1200;
        chk_world world;
        chk_result first = {0}, second = {0};
        if (chk_world_make(c, &k, &world) && chk_world_run_twice(c, &world, &first, &second))
            chk_compare_bits(c, "in a second run", &first, &second);
        chk_world_free(&world);
        chk_result_free(&first);
        chk_result_free(&second);
        chk_end(c);
    }
}

void chk_laws(chk *c) {
    check_splits(c);
    check_strategies(c);
    check_found(c);
    check_identical(c);
    check_repeatable(c);
    check_twice(c);
}
