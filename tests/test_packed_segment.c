/* A segment that relay_forest_find found in pages, moved to a packed copy: the same attention, for any
 * place in a nest of segments; what is refused leaves the forest as it was. */
#include <math.h>

#include "prompt_fixture.h"
#include "relay/relay.h"

enum {
    REQUESTS = 5,
    HEADS = 4,
    SIZE = 16,
    BLOCK = 8,
    SHARED = 20, /* blocks */
    DEEP = 10,
    OWN = 3,
    MOST = SHARED + DEEP + OWN,
    BLOCKS = SHARED + DEEP + REQUESTS * OWN,
    KV = 2,
    LAYERS = 3
};

static float key[BLOCKS * BLOCK * KV * SIZE], value[BLOCKS * BLOCK * KV * SIZE];
static float query[REQUESTS * HEADS * SIZE];
static _Alignas(64) char workspace[8 << 20];

static relay_tensor tensor_of(void *data, int64_t a, int64_t b, int64_t c, int64_t d) {
    relay_tensor t = {.data = data, .dtype = RELAY_F32, .ndim = d ? 4 : 3, .shape = {a, b, c, d}};
    int64_t last = d ? d : 1;
    t.stride[0] = b * c * last;
    t.stride[1] = c * last;
    t.stride[2] = last;
    t.stride[3] = d ? 1 : 0;
    return t;
}

static relay_tensor pool_of(float *data) { return tensor_of(data, BLOCKS, BLOCK, KV, SIZE); }

typedef struct scene {
    relay_device *device;
    relay_prompt_cache *cache;
    relay_forest *forest;
    relay_plan *plan;
    int32_t starts[REQUESTS + 1], lens[REQUESTS], ids[REQUESTS][MOST];
} scene;

/* All share SHARED blocks, the last three DEEP more; ids are far from in order. */
static void find(scene *s) {
    for (int r = 0; r < REQUESTS; r++) {
        int32_t shared = r < 2 ? SHARED : SHARED + DEEP;
        s->starts[r + 1] = r + 1;
        s->lens[r] = (shared + OWN) * BLOCK - r;
        for (int i = 0; i < shared; i++) s->ids[r][i] = i * 7 % (SHARED + DEEP);
        for (int i = 0; i < OWN; i++) s->ids[r][shared + i] = SHARED + DEEP + r * OWN + i;
    }
    relay_block_tables tables = relay_block_tables_defaults();
    tables.num_requests = REQUESTS;
    tables.query_start_loc = s->starts;
    tables.seq_lens = s->lens;
    tables.block_table = s->ids[0];
    tables.block_table_stride = MOST;
    tables.block_size = BLOCK;
    tables.num_blocks = BLOCKS;
    CHECK(relay_forest_find(s->forest, &tables) == RELAY_OK);
    CHECK(relay_forest_num_segments(s->forest) == 2);
}

static relay_run_args make_args(float *out) {
    relay_run_args args = relay_run_args_defaults();
    args.query = tensor_of(query, REQUESTS, HEADS, SIZE, 0);
    args.output = args.query;
    args.output.data = out;
    args.key_pool = pool_of(key);
    args.value_pool = pool_of(value);
    args.layer = LAYERS - 1;
    args.workspace = workspace;
    args.workspace_bytes = sizeof workspace;
    return args;
}

static void run(scene *s, float *out) {
    relay_run_args args = make_args(out);
    CHECK(relay_run(s->plan, &args) == RELAY_STALE_PLAN);
    CHECK(relay_plan_build(s->plan, s->forest) == RELAY_OK);
    CHECK(relay_plan_workspace_bytes(s->plan) <= sizeof workspace);
    CHECK(relay_run(s->plan, &args) == RELAY_OK);
}

/* A prompt of a segment's blocks and `more` beyond them. */
static relay_prompt *pack(scene *s, int32_t index, int32_t more, const char *name) {
    relay_segment found;
    int32_t ids[MOST + 4] = {0};
    relay_tensor keys = pool_of(key), values = pool_of(value);
    CHECK(relay_forest_get_segment(s->forest, index, &found) == RELAY_OK);
    memcpy(ids, found.kv.block_table, (size_t)(found.kv.length / BLOCK) * sizeof *ids);
    relay_prompt *prompt = NULL;
    CHECK(relay_prompt_cache_begin(s->cache, name, found.kv.length + more, &prompt) == RELAY_OK);
    for (int32_t layer = 0; layer < LAYERS; layer++)
        CHECK(relay_prompt_write_pages(prompt, layer, &keys, &values, ids) == RELAY_OK);
    CHECK(relay_prompt_commit(prompt) == RELAY_OK);
    return prompt;
}

static relay_kv_span span_of(const scene *s, int32_t index, const relay_prompt *prompt) {
    relay_segment found;
    CHECK(relay_forest_get_segment(s->forest, index, &found) == RELAY_OK);
    return (relay_kv_span){.layout = RELAY_KV_PACKED, .length = found.kv.length, .prompt = prompt};
}

/* The root, the one on it, and both, by copies that are longer than what they stand for. */
static void test_moved(scene *s) {
    float pages[REQUESTS * HEADS * SIZE], packed[REQUESTS * HEADS * SIZE];
    find(s);
    run(s, pages);
    for (int which = 1; which < 4; which++) {
        find(s);
        relay_prompt *prompts[2] = {NULL, NULL};
        for (int32_t i = 0; i < 2; i++)
            if (which >> i & 1) prompts[i] = pack(s, i, 3, i ? "second" : "first");
        for (int32_t i = 0; i < 2; i++) {
            if (prompts[i] == NULL) continue;
            relay_kv_span span = span_of(s, i, prompts[i]);
            CHECK(relay_forest_move_segment(s->forest, i, &span) == RELAY_OK);
            relay_segment now;
            CHECK(relay_forest_get_segment(s->forest, i, &now) == RELAY_OK);
            CHECK(now.kv.layout == RELAY_KV_PACKED && now.kv.prompt == prompts[i] && now.kv.block_table == NULL);
        }
        run(s, packed);
        for (int i = 0; i < REQUESTS * HEADS * SIZE; i++)
            CHECK_MSG(fabsf(pages[i] - packed[i]) < 1e-5f, "moved %d: %d: %g, in pages %g", which, i, (double)packed[i],
                      (double)pages[i]);
        find(s); /* lets go of the prompts */
        for (int32_t i = 0; i < 2; i++) {
            if (prompts[i] == NULL) continue;
            relay_prompt_release(prompts[i]);
            CHECK(relay_prompt_cache_forget(s->cache, i ? "second" : "first") == RELAY_OK);
        }
    }
}

/* Stands in front of a plan that stays valid: a refusal changes nothing. */
static void test_refused(scene *s) {
    float out[REQUESTS * HEADS * SIZE];
    find(s);
    relay_prompt *prompt = pack(s, 1, 0, "short");
    run(s, out);
    relay_run_args args = make_args(out);
    relay_kv_span right = span_of(s, 1, prompt), wrong = right;
    CHECK(relay_forest_move_segment(s->forest, 2, &right) == RELAY_OUT_OF_RANGE);
    CHECK(relay_forest_move_segment(s->forest, -1, &right) == RELAY_OUT_OF_RANGE);
    CHECK(relay_forest_move_segment(s->forest, 1, NULL) == RELAY_NULL_POINTER);
    CHECK(relay_forest_move_segment(NULL, 1, &right) == RELAY_NULL_POINTER);
    CHECK(relay_forest_move_segment(s->forest, 0, &right) == RELAY_INVALID_ARGUMENT);
    CHECK_CONTAINS(logged.last, "kv.length: 80, but segment 0 has 160");
    wrong.length = SHARED * BLOCK;
    CHECK(relay_forest_move_segment(s->forest, 0, &wrong) == RELAY_OUT_OF_RANGE);
    CHECK_CONTAINS(logged.last, "prompt \"short\" has 80 tokens");
    wrong = right;
    wrong.prompt = NULL;
    CHECK(relay_forest_move_segment(s->forest, 1, &wrong) == RELAY_NULL_POINTER);
    wrong = right;
    wrong.layout = RELAY_KV_PAGED;
    wrong.block_table = s->ids[0];
    CHECK(relay_forest_move_segment(s->forest, 1, &wrong) == RELAY_INVALID_ARGUMENT);
    CHECK_CONTAINS(logged.last, "PAGED");
    wrong.layout = (relay_kv_layout)9;
    CHECK(relay_forest_move_segment(s->forest, 1, &wrong) == RELAY_INVALID_ARGUMENT);
    CHECK(relay_run(s->plan, &args) == RELAY_OK);
    CHECK(relay_forest_move_segment(s->forest, 1, &right) == RELAY_OK);
    CHECK(relay_run(s->plan, &args) == RELAY_STALE_PLAN);
    relay_prompt_release(prompt);
}

int main(void) {
    scene s = {.device = open_device(2)};
    relay_prompt_cache_options options = relay_prompt_cache_options_defaults();
    options.num_layers = LAYERS;
    options.num_kv_heads = KV;
    options.head_dim = SIZE;
    options.kv_dtype = RELAY_F32;
    s.cache = make_cache(s.device, &options);
    for (int i = 0; i < (int)(sizeof key / sizeof *key); i++) {
        key[i] = sinf((float)i);
        value[i] = cosf((float)i * 0.7f);
    }
    for (int i = 0; i < (int)(sizeof query / sizeof *query); i++) query[i] = 3.0f * sinf((float)i * 1.3f);
    relay_attention attention = relay_attention_defaults();
    attention.num_heads = HEADS;
    attention.num_kv_heads = KV;
    attention.head_dim = SIZE;
    attention.query_dtype = attention.kv_dtype = attention.output_dtype = RELAY_F32;
    CHECK(relay_forest_create(s.device, &s.forest) == RELAY_OK);
    CHECK(relay_plan_create(s.device, &attention, NULL, &s.plan) == RELAY_OK);
    test_moved(&s);
    test_refused(&s);
    relay_plan_destroy(s.plan);
    relay_forest_destroy(s.forest);
    relay_prompt_cache_destroy(s.cache);
    relay_device_close(s.device);
    return test_result();
}
