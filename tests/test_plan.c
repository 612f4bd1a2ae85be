/* Plans: every visible token of every row is attended exactly once, every partial state that is
 * merged is written exactly once, and bad input is refused. */
#include <stdlib.h>
#include <time.h>

#include "plan_internal.h"
#include "relay/relay.h"
#include "test.h"

static char last_log[1024];

static void keep_log(void *user, relay_log_level level, const char *message) {
    (void)user;
    if (level == RELAY_LOG_ERROR) snprintf(last_log, sizeof last_log, "%s", message);
}

static relay_device *open_device(int threads) {
    relay_device_options options = relay_device_options_defaults();
    options.log = keep_log;
    options.threads = threads;
    relay_device *device = NULL;
    CHECK(relay_device_open(&options, &device) == RELAY_OK);
    return device;
}

enum { MOST = 12, MOST_SEGMENTS = 12 };

typedef struct batch {
    relay_forest_desc desc;
    relay_kv_span own[MOST];
    relay_segment segments[MOST_SEGMENTS];
    int32_t query_start[MOST + 1];
} batch;

static int draw(int below) { return rand() % below; }

/* Nested ranges: a segment over [first, first + count), then smaller ones inside it. */
static void add_segments(batch *b, int32_t parent, int32_t first, int32_t count, int depth) {
    while (count > 0 && depth < 4) {
        int32_t take = 1 + draw(count);
        if (draw(3) && b->desc.num_segments < MOST_SEGMENTS) {
            int32_t index = b->desc.num_segments++;
            b->segments[index] = (relay_segment){
                .parent = parent, .first_request = first, .num_requests = take,
                .kv = {.layout = RELAY_KV_CONTIGUOUS, .length = draw(4) ? draw(900) : 0, .tensor_index = index}};
            add_segments(b, index, first, take, depth + 1);
        }
        first += take;
        count -= take;
    }
}

static void make_batch(batch *b) {
    *b = (batch){.desc = relay_forest_desc_defaults()};
    b->desc.num_requests = draw(MOST + 1);
    for (int r = 0; r < b->desc.num_requests; r++) {
        int rows = draw(3) ? draw(3) : draw(90);
        b->own[r] = (relay_kv_span){.layout = RELAY_KV_CONTIGUOUS, .length = rows + draw(400),
                                    .tensor_index = MOST_SEGMENTS + r};
        b->query_start[r + 1] = b->query_start[r] + rows;
    }
    b->desc.query_start_loc = b->query_start;
    b->desc.own = b->own;
    b->desc.segments = b->segments;
    add_segments(b, -1, 0, b->desc.num_requests, 0);
}

static relay_attention make_attention(void) {
    static const int groups[] = {1, 4, 7, 300}, windows[] = {0, 0, 1, 100, 1000};
    relay_attention a = relay_attention_defaults();
    a.num_kv_heads = 1 + draw(3);
    a.num_heads = a.num_kv_heads * groups[draw(4)];
    a.head_dim = 64;
    a.sliding_window = windows[draw(5)];
    a.num_sink_tokens = draw(2) ? draw(30) : 0;
    a.query_dtype = a.kv_dtype = a.output_dtype = RELAY_F32;
    return a;
}

static bool sees(const relay_attention *a, int32_t query, int32_t token) {
    if (token > query) return false;
    return a->sliding_window == 0 || token > query - a->sliding_window || token < a->num_sink_tokens;
}

/* Counts, for one head and row, how often each global position is attended and each part written. */
static void check_row(const relay_plan *plan, int32_t row, int32_t head) {
    static int32_t attended[8192], written[4096];
    memset(attended, 0, sizeof attended);
    memset(written, 0, sizeof written);
    int32_t kv = head / plan->group, stacked = row * plan->group + head % plan->group;
    for (int32_t i = 0; i < plan->num_items; i++) {
        const relayi_item *item = &plan->items[i];
        if (kv < item->kv_begin || kv >= item->kv_end || stacked < item->row_begin || stacked >= item->row_end)
            continue;
        written[item->part]++;
        for (int32_t p = item->first_piece; p < item->first_piece + item->num_pieces; p++) {
            const relayi_piece *piece = &plan->pieces[p];
            CHECK(piece->begin % RELAYI_TILE == 0 && piece->begin < piece->end && piece->end <= piece->span->length);
            for (int32_t n = piece->begin; n < piece->end; n++) attended[piece->start + n]++;
        }
    }
    int wrong = 0;
    int32_t position = plan->rows[row].position;
    for (int32_t n = 0; n < 8192; n++) {
        bool visible = sees(&plan->attention, position, n);
        wrong += attended[n] > 1 || (visible && attended[n] != 1);
    }
    for (int32_t part = 0; part < plan->max_parts; part++) wrong += written[part] != (part < plan->rows[row].parts);
    CHECK_MSG(wrong == 0, "row %d head %d: %d tokens or parts wrong", row, head, wrong);
}

static void test_coverage(void) {
    static const int threads[] = {1, 2, 7, 64};
    for (unsigned seed = 1; seed <= 240; seed++) {
        srand(seed);
        relay_device *device = open_device(threads[draw(4)]);
        relay_attention attention = make_attention();
        relay_plan_options options = relay_plan_options_defaults();
        options.strategy = (relay_strategy)draw(3);
        options.repeatable = draw(4) == 0;
        batch b;
        make_batch(&b);
        relay_forest *forest;
        relay_plan *plan;
        CHECK(relay_forest_create(device, &forest) == RELAY_OK);
        CHECK(relay_forest_set(forest, &b.desc) == RELAY_OK);
        CHECK(relay_plan_create(device, &attention, &options, &plan) == RELAY_OK);
        CHECK_MSG(relay_plan_build(plan, forest) == RELAY_OK, "seed %u: %s", seed, last_log);
        for (int i = 0; i < 12 && plan->num_rows > 0; i++)
            check_row(plan, draw(plan->num_rows), draw(attention.num_heads));
        relay_plan_destroy(plan);
        relay_forest_destroy(forest);
        relay_device_close(device);
    }
}

/* The cost model: sharing among many pays, one request alone has nobody to share with. */
static void test_strategy(void) {
    relay_device *device = open_device(2);
    relay_attention attention = relay_attention_defaults();
    attention.num_heads = 8;
    attention.num_kv_heads = 2;
    attention.head_dim = 64;
    batch b = {.desc = relay_forest_desc_defaults()};
    for (int r = 0; r < MOST; r++) {
        b.own[r] = (relay_kv_span){.layout = RELAY_KV_CONTIGUOUS, .length = 20, .tensor_index = r};
        b.query_start[r + 1] = r + 1;
    }
    b.segments[0] = (relay_segment){.parent = -1, .first_request = 0, .num_requests = MOST - 1,
                                    .kv = {.layout = RELAY_KV_CONTIGUOUS, .length = 1000, .tensor_index = MOST}};
    b.segments[1] = b.segments[0];
    b.segments[1].first_request = MOST - 1;
    b.segments[1].num_requests = 1;
    b.desc.num_requests = MOST;
    b.desc.num_segments = 2;
    b.desc.query_start_loc = b.query_start;
    b.desc.own = b.own;
    b.desc.segments = b.segments;
    relay_forest *forest;
    relay_plan *plan;
    relay_plan_info info = {.struct_size = sizeof info};
    CHECK(relay_forest_create(device, &forest) == RELAY_OK);
    CHECK(relay_forest_set(forest, &b.desc) == RELAY_OK);
    CHECK(relay_plan_create(device, &attention, NULL, &plan) == RELAY_OK);
    CHECK(relay_plan_get_info(plan, &info) == RELAY_STALE_PLAN);
    CHECK(relay_plan_workspace_bytes(plan) == 0);
    CHECK(relay_plan_build(plan, forest) == RELAY_OK);
    CHECK(relay_plan_get_info(plan, &info) == RELAY_OK);
    CHECK(info.relay_segments == 1 && info.plain_segments == 1);
    CHECK(info.shared_tokens_saved == (MOST - 2) * 1000);
    CHECK(info.num_rows == MOST && info.num_requests == MOST);
    CHECK(info.unique_kv_bytes == 2.0 * (2 * 1000 + MOST * 20) * 2 * 64 * 2);
    CHECK(info.flops == 4.0 * 64 * 8 * MOST * 1020);
    CHECK(relay_forest_set(forest, &b.desc) == RELAY_OK);
    relay_run_args args = relay_run_args_defaults();
    CHECK(relay_run(plan, &args) == RELAY_STALE_PLAN);
    relay_plan_destroy(plan);
    relay_forest_destroy(forest);
    relay_device_close(device);
}

/* One request's plan on a device of so many threads. */
static void plan_alone(int device_threads, int32_t tokens, int32_t *threads, int32_t *items) {
    relay_device *device = open_device(device_threads);
    relay_attention attention = relay_attention_defaults();
    attention.num_heads = 8;
    attention.num_kv_heads = 2;
    attention.head_dim = 64;
    int32_t starts[] = {0, 1};
    relay_kv_span own = {.layout = RELAY_KV_CONTIGUOUS, .length = tokens};
    relay_forest_desc desc = relay_forest_desc_defaults();
    desc.num_requests = 1;
    desc.query_start_loc = starts;
    desc.own = &own;
    relay_forest *forest;
    relay_plan *plan;
    CHECK(relay_forest_create(device, &forest) == RELAY_OK);
    CHECK(relay_forest_set(forest, &desc) == RELAY_OK);
    CHECK(relay_plan_create(device, &attention, NULL, &plan) == RELAY_OK);
    CHECK(relay_plan_build(plan, forest) == RELAY_OK);
    *threads = plan->threads;
    *items = plan->num_items;
    relay_plan_destroy(plan);
    relay_forest_destroy(forest);
    relay_device_close(device);
}

/* What one thread does before others have woken up is cut for one and run by one. */
static void test_threads(void) {
    int32_t threads, items, items_of_one;
    plan_alone(1, 17, &threads, &items_of_one);
    CHECK(threads == 1);
    plan_alone(4, 17, &threads, &items);
    CHECK(threads == 1 && items == items_of_one);
    plan_alone(1, 1 << 20, &threads, &items_of_one);
    plan_alone(4, 1 << 20, &threads, &items);
    CHECK(threads == 4 && items > items_of_one);
}

static void refuse(relay_device *device, relay_attention attention, relay_status expected, const char *named) {
    relay_plan *plan = (relay_plan *)1;
    last_log[0] = '\0';
    relay_status status = relay_plan_create(device, &attention, NULL, &plan);
    CHECK_MSG(status == expected, "%s: %s", named, relay_status_name(status));
    CHECK_CONTAINS(last_log, named);
    CHECK(plan == NULL);
}

static void test_refusals(void) {
    relay_device *device = open_device(1), *other = open_device(1);
    relay_attention good = relay_attention_defaults();
    good.num_heads = 8;
    good.num_kv_heads = 2;
    good.head_dim = 64;
#define REFUSE(field, value, status)             \
    do {                                         \
        relay_attention bad = good;              \
        bad.field = value;                       \
        refuse(device, bad, status, #field);     \
    } while (0)
    REFUSE(struct_size, 4, RELAY_BAD_STRUCT_SIZE);
    REFUSE(num_heads, 7, RELAY_INVALID_ARGUMENT);
    REFUSE(num_heads, -8, RELAY_INVALID_ARGUMENT);
    REFUSE(num_kv_heads, 0, RELAY_INVALID_ARGUMENT);
    REFUSE(head_dim, 4, RELAY_INVALID_ARGUMENT);
    REFUSE(head_dim, 65, RELAY_INVALID_ARGUMENT);
    REFUSE(head_dim, 264, RELAY_INVALID_ARGUMENT);
    REFUSE(query_dtype, (relay_dtype)0, RELAY_BAD_DTYPE);
    REFUSE(kv_dtype, (relay_dtype)77, RELAY_BAD_DTYPE);
    REFUSE(output_dtype, (relay_dtype)-1, RELAY_BAD_DTYPE);
    REFUSE(softmax_scale, -1.0f, RELAY_INVALID_ARGUMENT);
    REFUSE(logit_soft_cap, 0.0f / 0.0f * -1.0f, RELAY_INVALID_ARGUMENT);
    REFUSE(sliding_window, -1, RELAY_INVALID_ARGUMENT);
    REFUSE(num_sink_tokens, -1, RELAY_INVALID_ARGUMENT);
    REFUSE(use_alibi, 2, RELAY_INVALID_ARGUMENT);
    REFUSE(use_sinks, -1, RELAY_INVALID_ARGUMENT);
#undef REFUSE
    relay_plan *plan;
    relay_plan_options options = relay_plan_options_defaults();
    options.strategy = (relay_strategy)3;
    CHECK(relay_plan_create(device, &good, &options, &plan) == RELAY_INVALID_ARGUMENT);
    CHECK_CONTAINS(last_log, "strategy");
    CHECK(relay_plan_create(NULL, &good, NULL, &plan) == RELAY_NULL_POINTER);
    CHECK(relay_plan_create(device, &good, NULL, NULL) == RELAY_NULL_POINTER);
    CHECK(relay_plan_create(device, &good, NULL, &plan) == RELAY_OK);
    relay_forest *forest;
    CHECK(relay_forest_create(other, &forest) == RELAY_OK);
    CHECK(relay_plan_build(plan, forest) == RELAY_WRONG_DEVICE);
    relay_forest_destroy(forest);
    CHECK(relay_forest_create(device, &forest) == RELAY_OK);
    CHECK(relay_plan_build(plan, forest) == RELAY_OK); /* an empty batch is ordinary */
    CHECK(relay_plan_workspace_bytes(plan) == 0);
    relay_forest_desc desc = relay_forest_desc_defaults();
    const int32_t query_start[] = {0, 3};
    const relay_kv_span own = {.layout = RELAY_KV_CONTIGUOUS, .length = 2};
    desc.num_requests = 1;
    desc.query_start_loc = query_start;
    desc.own = &own;
    CHECK(relay_forest_set(forest, &desc) == RELAY_OK);
    CHECK(relay_plan_build(plan, forest) == RELAY_INVALID_ARGUMENT);
    CHECK_CONTAINS(last_log, "3 query rows and 2 tokens");
    relay_plan_destroy(plan);
    relay_plan_destroy(NULL);
    relay_forest_destroy(forest);
    relay_device_close(other);
    relay_device_close(device);
}

/* What a plan notes of its forest, and refuses, is the same whatever the other requests' own tokens lie in. */
static void test_own_tokens(void) {
    enum { HALF = 1 << 29 };
    static const int32_t ids[] = {0, 1, 2}, query_start[] = {0, 1, 2, 3};
    relay_device *device = open_device(1);
    relay_attention attention = relay_attention_defaults();
    attention.num_heads = attention.num_kv_heads = 1;
    attention.head_dim = 64;
    relay_plan *plan;
    relay_forest *forest;
    CHECK(relay_plan_create(device, &attention, NULL, &plan) == RELAY_OK && relay_forest_create(device, &forest) == RELAY_OK);
    for (int i = 0; i < 3 * 8; i++) { /* request r lies in pages where bit r is set */
        relay_kv_span own[3];
        int odd = i % 3, layouts = i / 3;
        for (int r = 0; r < 3; r++)
            own[r] = (relay_kv_span){.layout = layouts >> r & 1 ? RELAY_KV_PAGED : RELAY_KV_CONTIGUOUS, .length = 1,
                                     .block_table = ids, .tensor_index = r};
        relay_segment segment = {.parent = -1, .num_requests = 3,
                                 .kv = {.layout = RELAY_KV_CONTIGUOUS, .length = HALF, .tensor_index = 1}};
        relay_forest_desc desc = relay_forest_desc_defaults();
        desc.num_requests = 3, desc.query_start_loc = query_start, desc.own = own, desc.num_blocks = 3;
        desc.num_segments = 1, desc.segments = &segment, desc.block_size = HALF;
        CHECK(relay_forest_set(forest, &desc) == RELAY_OK && relay_plan_build(plan, forest) == RELAY_OK);
        CHECK(plan->uses_pages == (layouts > 0));
        CHECK(plan->max_contiguous == (layouts & 4 ? 2 : 3));
        own[odd].length = HALF; /* just fits */
        CHECK(relay_forest_set(forest, &desc) == RELAY_OK && relay_plan_build(plan, forest) == RELAY_OK);
        own[odd].length = HALF + 1;
        CHECK(relay_forest_set(forest, &desc) == RELAY_OK && relay_plan_build(plan, forest) == RELAY_INVALID_ARGUMENT);
        CHECK_CONTAINS(last_log, odd == 0 ? "request 0 is longer" : odd == 1 ? "request 1 is longer" : "request 2 is longer");
        own[odd].length = 0; /* and a query row */
        CHECK(relay_forest_set(forest, &desc) == RELAY_OK && relay_plan_build(plan, forest) == RELAY_INVALID_ARGUMENT);
        CHECK_CONTAINS(last_log, "1 query rows and 0 tokens");
    }
    relay_plan_destroy(plan);
    relay_forest_destroy(forest);
    relay_device_close(device);
}

int main(void) {
    test_coverage();
    test_strategy();
    test_threads();
    test_refusals();
    test_own_tokens();
    return test_result();
}
