/* Forests: what is accepted, refused, and found in block tables. */
#include <stdlib.h>

#include "relay/relay.h"
#include "test.h"

static char last_log[1024];

static void keep_log(void *user, relay_log_level level, const char *message) {
    (void)user;
    if (level == RELAY_LOG_ERROR) snprintf(last_log, sizeof last_log, "%s", message);
}

static relay_device *open_device(void) {
    relay_device_options options = relay_device_options_defaults();
    options.log = keep_log;
    options.threads = 2;
    relay_device *device = NULL;
    CHECK(relay_device_open(&options, &device) == RELAY_OK);
    return device;
}

typedef struct batch {
    relay_forest_desc desc;
    relay_kv_span own[8];
    relay_segment segments[4];
    int32_t query_start[9], tables[8][4], order[8];
} batch;

/* Eight requests of one row, two own blocks each; two nested segments over the first four and a
 * root over the next two. */
static void make_batch(batch *b) {
    static const int32_t prompt_table[] = {40, 41, 42, 43};
    b->desc = relay_forest_desc_defaults();
    for (int r = 0; r < 8; r++) {
        b->query_start[r] = b->order[r] = r;
        b->tables[r][0] = 2 * r;
        b->tables[r][1] = 2 * r + 1;
        b->own[r] = (relay_kv_span){.layout = RELAY_KV_PAGED, .length = 20, .block_table = b->tables[r]};
    }
    b->query_start[8] = 8;
    relay_kv_span prompt = {.layout = RELAY_KV_PAGED, .length = 60, .block_table = prompt_table};
    b->segments[0] = (relay_segment){.parent = -1, .first_request = 0, .num_requests = 4, .kv = prompt};
    b->segments[1] = (relay_segment){.parent = 0, .first_request = 1, .num_requests = 2, .kv = prompt};
    b->segments[2] = (relay_segment){.parent = -1, .first_request = 4, .num_requests = 2, .kv = prompt};
    b->desc.num_requests = 8;
    b->desc.query_start_loc = b->query_start;
    b->desc.own = b->own;
    b->desc.order = b->order;
    b->desc.num_segments = 3;
    b->desc.segments = b->segments;
    b->desc.num_blocks = 44;
}

static void test_set(relay_device *device) {
    relay_forest *forest;
    batch b;
    make_batch(&b);
    CHECK(relay_forest_create(device, &forest) == RELAY_OK);
    CHECK(relay_forest_num_requests(forest) == 0);
    CHECK(relay_forest_set(forest, &b.desc) == RELAY_OK);
    CHECK(relay_forest_num_requests(forest) == 8 && relay_forest_num_segments(forest) == 3);
    memset(b.tables, 0x7f, sizeof b.tables); /* the forest has copies */
    relay_kv_span own;
    CHECK(relay_forest_get_own(forest, 7, &own) == RELAY_OK && own.length == 20);
    CHECK(own.block_table[0] == 14 && own.block_table[1] == 15);
    relay_segment segment;
    CHECK(relay_forest_get_segment(forest, 1, &segment) == RELAY_OK && segment.parent == 0);
    CHECK(segment.kv.block_table[3] == 43);
    CHECK(relay_forest_get_segment(forest, 3, &segment) == RELAY_OUT_OF_RANGE);
    relay_forest_destroy(forest);
}

/* One defect a row: what is changed in a good batch, the status, and what the message names. */
static void refuse(relay_device *device, const char *what, batch *b, relay_status expected, const char *named) {
    relay_forest *forest;
    batch good;
    make_batch(&good);
    CHECK(relay_forest_create(device, &forest) == RELAY_OK);
    CHECK(relay_forest_set(forest, &good.desc) == RELAY_OK);
    last_log[0] = '\0';
    relay_status status = relay_forest_set(forest, &b->desc);
    CHECK_MSG(status == expected, "%s: %s", what, relay_status_name(status));
    CHECK_CONTAINS(last_log, named);
    CHECK(relay_forest_num_segments(forest) == 3); /* as it was */
    relay_forest_destroy(forest);
}

static void test_refusals(relay_device *device) {
    batch b;
#define REFUSE(change, status, named)          \
    do {                                       \
        make_batch(&b);                        \
        change;                                \
        refuse(device, #change, &b, status, named); \
    } while (0)
    REFUSE(b.desc.struct_size += 8, RELAY_BAD_STRUCT_SIZE, "struct_size");
    REFUSE(b.desc.num_requests = -1, RELAY_INVALID_ARGUMENT, "num_requests");
    REFUSE(b.desc.num_segments = -1, RELAY_INVALID_ARGUMENT, "num_segments");
    REFUSE(b.desc.block_size = 0, RELAY_INVALID_ARGUMENT, "block_size");
    REFUSE(b.desc.own = NULL, RELAY_NULL_POINTER, "own");
    REFUSE(b.desc.segments = NULL, RELAY_NULL_POINTER, "segments");
    REFUSE(b.desc.query_start_loc = NULL, RELAY_NULL_POINTER, "query_start_loc");
    REFUSE(b.query_start[0] = 1, RELAY_INVALID_ARGUMENT, "query_start_loc[0]");
    REFUSE(b.query_start[3] = 1, RELAY_INVALID_ARGUMENT, "query_start_loc[3]");
    REFUSE(b.own[2].length = -5, RELAY_INVALID_ARGUMENT, "own[2].length");
    REFUSE(b.own[2].layout = (relay_kv_layout)9, RELAY_INVALID_ARGUMENT, "own[2].layout");
    REFUSE(b.own[2].block_table = NULL, RELAY_NULL_POINTER, "own[2].block_table");
    REFUSE(b.tables[5][1] = 44, RELAY_OUT_OF_RANGE, "own[5].block_table[1]");
    REFUSE(b.tables[5][1] = -1, RELAY_OUT_OF_RANGE, "own[5].block_table[1]");
    REFUSE(b.own[1] = ((relay_kv_span){.layout = RELAY_KV_PACKED, .length = 1}), RELAY_NULL_POINTER, "own[1].prompt");
    REFUSE(b.own[1].layout = RELAY_KV_CONTIGUOUS; b.own[1].tensor_index = -1, RELAY_OUT_OF_RANGE, "tensor_index");
    REFUSE(b.order[0] = 1, RELAY_INVALID_ARGUMENT, "order[1]");
    REFUSE(b.order[7] = 8, RELAY_INVALID_ARGUMENT, "order[7]");
    REFUSE(b.segments[1].parent = 1, RELAY_INVALID_ARGUMENT, "segments[1].parent");
    REFUSE(b.segments[1].num_requests = 0, RELAY_INVALID_ARGUMENT, "segments[1]");
    REFUSE(b.segments[1].num_requests = 4, RELAY_INVALID_ARGUMENT, "segments[1]"); /* beyond its parent */
    REFUSE(b.segments[2].first_request = 3, RELAY_INVALID_ARGUMENT, "segments[2]"); /* two roots overlap */
    REFUSE(b.segments[2].num_requests = 5, RELAY_INVALID_ARGUMENT, "segments[2]");
    REFUSE(b.segments[2].num_requests = INT32_MAX, RELAY_INVALID_ARGUMENT, "segments[2]");
#undef REFUSE
    CHECK(relay_forest_set(NULL, &b.desc) == RELAY_NULL_POINTER);
    relay_forest_destroy(NULL);
}

/* An id outside the pool is found wherever it stands, and nothing behind a table is read. */
static void test_block_ids(relay_device *device) {
    static const int32_t wrong[] = {-1, INT32_MIN, 100, INT32_MAX};
    int32_t query_start[2] = {0, 1};
    char name[64];
    relay_forest *forest;
    CHECK(relay_forest_create(device, &forest) == RELAY_OK);
    for (int32_t count = 1; count <= 40; count++) {
        int32_t *ids = malloc((size_t)count * sizeof *ids); /* of the very size */
        CHECK(ids != NULL);
        for (int32_t i = 0; i < count; i++) ids[i] = i % 2 ? 99 : 0;
        for (int32_t at = 0; at < 4 * count; at++) {
            relay_forest_desc desc = relay_forest_desc_defaults();
            relay_kv_span own = {.layout = RELAY_KV_PAGED, .length = count * 16 - at % 16, .block_table = ids}, kept;
            desc.num_requests = 1, desc.num_blocks = 100, desc.query_start_loc = query_start, desc.own = &own;
            CHECK(relay_forest_set(forest, &desc) == RELAY_OK && relay_forest_get_own(forest, 0, &kept) == RELAY_OK);
            CHECK(memcmp(kept.block_table, ids, (size_t)count * sizeof *ids) == 0);
            int32_t right = ids[at / 4];
            ids[at / 4] = wrong[at % 4];
            CHECK(relay_forest_set(forest, &desc) == RELAY_OUT_OF_RANGE);
            snprintf(name, sizeof name, "own[0].block_table[%d]: %d", at / 4, wrong[at % 4]);
            CHECK_CONTAINS(last_log, name);
            ids[at / 4] = right;
        }
        free(ids);
    }
    relay_forest_destroy(forest);
}

/* What relay_forest_find must find, by brute force: the number of leading whole blocks that two
 * requests share before their new rows. */
enum { WIDTH = 24, MOST = 40 };

typedef struct tables {
    int32_t query_start[MOST + 1], seq_lens[MOST], ids[MOST][WIDTH];
    relay_block_tables desc;
} tables;

static int32_t shared_blocks(const tables *t, int a, int b) {
    int32_t limit = WIDTH, same = 0;
    for (int i = 0; i < 2; i++) {
        int r = i ? b : a;
        int32_t whole = (t->seq_lens[r] - (t->query_start[r + 1] - t->query_start[r])) / t->desc.block_size;
        if (whole < limit) limit = whole;
    }
    while (same < limit && t->ids[a][same] == t->ids[b][same]) same++;
    return same;
}

/* A random family tree: each request copies a random number of leading blocks of an earlier one. */
static void make_tables(tables *t, unsigned seed) {
    srand(seed);
    t->desc = relay_block_tables_defaults();
    t->desc.num_requests = 1 + rand() % MOST;
    t->desc.block_size = 1 + rand() % 20;
    t->desc.min_shared_tokens = rand() % 3 * 16;
    t->desc.max_depth = rand() % 5;
    t->query_start[0] = 0;
    int32_t next = 0;
    for (int r = 0; r < t->desc.num_requests; r++) {
        int32_t blocks = 1 + rand() % WIDTH, copied = r ? rand() % (blocks + 1) : 0, from = r ? rand() % r : 0;
        t->seq_lens[r] = blocks * t->desc.block_size - rand() % t->desc.block_size;
        t->query_start[r + 1] = t->query_start[r] + rand() % (t->seq_lens[r] < 3 ? t->seq_lens[r] + 1 : 4);
        for (int i = 0; i < WIDTH; i++) t->ids[r][i] = i < copied ? t->ids[from][i] : next++;
    }
    t->desc.query_start_loc = t->query_start;
    t->desc.seq_lens = t->seq_lens;
    t->desc.block_table = t->ids[0];
    t->desc.block_table_stride = WIDTH;
    t->desc.num_blocks = next;
}

/* Every request's segments and own tokens, put one after the other, are its block table. */
static void check_paths(const relay_forest *forest, const tables *t) {
    const int32_t *order = relay_forest_order(forest);
    int32_t depth_of[MOST] = {0}, covered[MOST] = {0};
    for (int32_t s = 0; s < relay_forest_num_segments(forest); s++) {
        relay_segment segment;
        CHECK(relay_forest_get_segment(forest, s, &segment) == RELAY_OK);
        CHECK(segment.num_requests >= 2);
        CHECK(segment.kv.length >= t->desc.min_shared_tokens && segment.kv.length % t->desc.block_size == 0);
        for (int32_t p = segment.first_request; p < segment.first_request + segment.num_requests; p++) {
            int32_t r = order[p], at = covered[r] / t->desc.block_size;
            CHECK(memcmp(segment.kv.block_table, &t->ids[r][at],
                         (size_t)(segment.kv.length / t->desc.block_size) * sizeof(int32_t)) == 0);
            covered[r] += segment.kv.length;
            depth_of[r]++;
        }
    }
    for (int32_t r = 0; r < t->desc.num_requests; r++) {
        relay_kv_span own;
        CHECK(relay_forest_get_own(forest, r, &own) == RELAY_OK);
        CHECK(depth_of[r] <= t->desc.max_depth);
        CHECK(own.length == t->seq_lens[r] - covered[r]);
        CHECK(own.length >= t->query_start[r + 1] - t->query_start[r]);
        CHECK(own.length == 0 || own.block_table[0] == t->ids[r][covered[r] / t->desc.block_size]);
    }
}

/* With depth to spare and any length welcome, two requests share exactly what they have in common. */
static void check_complete(const relay_forest *forest, const tables *t) {
    const int32_t *order = relay_forest_order(forest);
    static int32_t shared[MOST][MOST];
    memset(shared, 0, sizeof shared);
    for (int32_t s = 0; s < relay_forest_num_segments(forest); s++) {
        relay_segment segment;
        CHECK(relay_forest_get_segment(forest, s, &segment) == RELAY_OK);
        for (int32_t p = segment.first_request; p < segment.first_request + segment.num_requests; p++)
            for (int32_t q = segment.first_request; q < segment.first_request + segment.num_requests; q++)
                shared[order[p]][order[q]] += segment.kv.length / t->desc.block_size;
    }
    for (int a = 0; a < t->desc.num_requests; a++)
        for (int b = 0; b < a; b++)
            CHECK_MSG(shared[a][b] == shared_blocks(t, a, b), "requests %d and %d share %d of %d blocks", a, b,
                      shared[a][b], shared_blocks(t, a, b));
}

static void test_find(relay_device *device) {
    relay_forest *forest;
    static tables t;
    CHECK(relay_forest_create(device, &forest) == RELAY_OK);
    for (unsigned seed = 1; seed <= 300; seed++) {
        make_tables(&t, seed);
        CHECK(relay_forest_find(forest, &t.desc) == RELAY_OK);
        check_paths(forest, &t);
        t.desc.max_depth = MOST;
        t.desc.min_shared_tokens = 0;
        CHECK(relay_forest_find(forest, &t.desc) == RELAY_OK);
        check_paths(forest, &t);
        check_complete(forest, &t);
    }
    make_tables(&t, 7);
    t.ids[0][0] = t.desc.num_blocks;
    CHECK(relay_forest_find(forest, &t.desc) == RELAY_OUT_OF_RANGE);
    CHECK_CONTAINS(last_log, "[0].block_table[0]");
    make_tables(&t, 7);
    t.seq_lens[0] = -1;
    CHECK(relay_forest_find(forest, &t.desc) == RELAY_INVALID_ARGUMENT);
    CHECK_CONTAINS(last_log, "seq_lens[0]");
    relay_forest_destroy(forest);
}

int main(void) {
    relay_device *device = open_device();
    test_set(device);
    test_refusals(device);
    test_block_ids(device);
    test_find(device);
    relay_device_close(device);
    return test_result();
}
