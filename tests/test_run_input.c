/* What relay_run, relay_cache_write, relay_fuse, devices and configs refuse: each with its status, a
 * message that names the field, and nothing written. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "relay/relay.h"
#include "test.h"

static char last_log[1024];

static void keep_log(void *user, relay_log_level level, const char *message) {
    (void)user;
    if (level == RELAY_LOG_ERROR) snprintf(last_log, sizeof last_log, "%s", message);
}

enum { ROWS = 3, HEADS = 4, KV_HEADS = 2, DIM = 16, BLOCKS = 4, BLOCK = 16, OWN = 20 };

static float query[ROWS][HEADS][DIM], output[ROWS][HEADS][DIM], lse[ROWS][HEADS];
static float key_pool[BLOCKS][BLOCK][KV_HEADS][DIM], value_pool[BLOCKS][BLOCK][KV_HEADS][DIM];
static float long_key[OWN][KV_HEADS][DIM], long_value[OWN][KV_HEADS][DIM], per_head[HEADS];

typedef struct setup {
    relay_device *device;
    relay_forest *forest;
    relay_plan *plan;
    relay_kv_tensors contiguous;
    void *workspace;
    size_t workspace_bytes;
} setup;

/* Two paged requests and one contiguous one, a row each. */
static setup make_setup(relay_device *device) {
    setup s = {.device = device};
    const int32_t tables[2][2] = {{0, 1}, {2, 3}}, query_start[] = {0, 1, 2, 3};
    const relay_kv_span own[] = {{.layout = RELAY_KV_PAGED, .length = OWN, .block_table = tables[0]},
                                 {.layout = RELAY_KV_PAGED, .length = OWN, .block_table = tables[1]},
                                 {.layout = RELAY_KV_CONTIGUOUS, .length = OWN}};
    relay_forest_desc desc = relay_forest_desc_defaults();
    desc.num_requests = 3;
    desc.query_start_loc = query_start;
    desc.own = own;
    desc.num_blocks = BLOCKS;
    relay_attention attention = relay_attention_defaults();
    attention.num_heads = HEADS;
    attention.num_kv_heads = KV_HEADS;
    attention.head_dim = DIM;
    attention.query_dtype = attention.kv_dtype = attention.output_dtype = RELAY_F32;
    CHECK(relay_forest_create(device, &s.forest) == RELAY_OK);
    CHECK(relay_forest_set(s.forest, &desc) == RELAY_OK);
    CHECK(relay_plan_create(device, &attention, NULL, &s.plan) == RELAY_OK);
    CHECK(relay_plan_build(s.plan, s.forest) == RELAY_OK);
    s.contiguous.key = relay_tensor_3d(long_key, RELAY_F32, OWN, KV_HEADS, DIM);
    s.contiguous.value = relay_tensor_3d(long_value, RELAY_F32, OWN, KV_HEADS, DIM);
    s.workspace_bytes = relay_plan_workspace_bytes(s.plan);
    s.workspace = aligned_alloc(64, s.workspace_bytes + 64);
    return s;
}

static relay_run_args make_args(setup *s) {
    relay_run_args args = relay_run_args_defaults();
    args.query = relay_tensor_3d(query, RELAY_F32, ROWS, HEADS, DIM);
    args.output = relay_tensor_3d(output, RELAY_F32, ROWS, HEADS, DIM);
    args.lse = relay_tensor_2d(lse, RELAY_F32, ROWS, HEADS);
    args.key_pool = relay_tensor_4d(key_pool, RELAY_F32, BLOCKS, BLOCK, KV_HEADS, DIM);
    args.value_pool = relay_tensor_4d(value_pool, RELAY_F32, BLOCKS, BLOCK, KV_HEADS, DIM);
    args.contiguous = &s->contiguous;
    args.num_contiguous = 1;
    args.workspace = s->workspace;
    args.workspace_bytes = s->workspace_bytes;
    return args;
}

static bool untouched(void) {
    for (size_t i = 0; i < sizeof output / sizeof(float); i++)
        if (((const float *)output)[i] != 7.0f) return false;
    for (size_t i = 0; i < sizeof lse / sizeof(float); i++)
        if (((const float *)lse)[i] != 7.0f) return false;
    return true;
}

static void poison(void) {
    for (size_t i = 0; i < sizeof output / sizeof(float); i++) ((float *)output)[i] = 7.0f;
    for (size_t i = 0; i < sizeof lse / sizeof(float); i++) ((float *)lse)[i] = 7.0f;
    last_log[0] = '\0';
}

#define REFUSE_RUN(change, expected, named)                                                   \
    do {                                                                                      \
        relay_run_args args = make_args(&s);                                                  \
        relay_kv_tensors contiguous = s.contiguous;                                           \
        args.contiguous = &contiguous;                                                        \
        poison();                                                                             \
        change;                                                                               \
        relay_status status = relay_run(s.plan, &args);                                       \
        CHECK_MSG(status == (expected), "%s: %s", #change, relay_status_name(status));        \
        CHECK_CONTAINS(last_log, named);                                                      \
        CHECK(untouched());                                                                   \
    } while (0)

static void test_run(relay_device *device) {
    setup s = make_setup(device);
    relay_run_args good = make_args(&s);
    CHECK(relay_run(s.plan, &good) == RELAY_OK);
    CHECK(relay_run(NULL, &good) == RELAY_NULL_POINTER);
    CHECK(relay_run(s.plan, NULL) == RELAY_NULL_POINTER);
    REFUSE_RUN(args.struct_size += 8, RELAY_BAD_STRUCT_SIZE, "struct_size");
    REFUSE_RUN(args.query.data = NULL, RELAY_NULL_POINTER, "query");
    REFUSE_RUN(args.query.dtype = RELAY_BF16, RELAY_BAD_DTYPE, "query");
    REFUSE_RUN(args.query.ndim = 2, RELAY_BAD_SHAPE, "query");
    REFUSE_RUN(args.query.shape[0] = 2, RELAY_BAD_SHAPE, "query: shape[0]");
    REFUSE_RUN(args.query.shape[1] = 5, RELAY_BAD_SHAPE, "query: shape[1]");
    REFUSE_RUN(args.query.shape[2] = -16, RELAY_BAD_SHAPE, "query: shape[2]");
    REFUSE_RUN(args.query.stride[2] = 2, RELAY_BAD_STRIDE, "query: stride[2]");
    REFUSE_RUN(args.query.stride[0] = -64, RELAY_BAD_STRIDE, "query: stride[0]");
    REFUSE_RUN(args.query.stride[0] = INT64_MAX, RELAY_BAD_STRIDE, "query: stride[0]");
    REFUSE_RUN(args.query.data = (char *)query + 1, RELAY_MISALIGNED, "query");
    REFUSE_RUN(args.output.data = NULL, RELAY_NULL_POINTER, "output");
    REFUSE_RUN(args.output.dtype = RELAY_F16, RELAY_BAD_DTYPE, "output");
    REFUSE_RUN(args.output.data = query, RELAY_OVERLAP, "output overlaps relay_run_args.query");
    REFUSE_RUN(args.output.data = &key_pool[0][8], RELAY_OVERLAP, "key_pool");
    REFUSE_RUN(args.output.data = long_value, RELAY_OVERLAP, "contiguous[].value");
    REFUSE_RUN(args.output.data = s.workspace, RELAY_OVERLAP, "workspace");
    REFUSE_RUN(args.lse.data = output, RELAY_OVERLAP, "lse");
    REFUSE_RUN(args.lse.shape[1] = 3, RELAY_BAD_SHAPE, "lse");
    REFUSE_RUN(args.lse.dtype = RELAY_BF16, RELAY_BAD_DTYPE, "lse");
    REFUSE_RUN(args.key_pool.data = NULL, RELAY_NULL_POINTER, "key_pool");
    REFUSE_RUN(args.key_pool.shape[0] = 3, RELAY_BAD_SHAPE, "key_pool: shape[0]");
    REFUSE_RUN(args.value_pool.shape[1] = 8, RELAY_BAD_SHAPE, "value_pool: shape[1]");
    REFUSE_RUN(args.value_pool.dtype = RELAY_BF16, RELAY_BAD_DTYPE, "value_pool");
    REFUSE_RUN(args.contiguous = NULL, RELAY_NULL_POINTER, "contiguous");
    REFUSE_RUN(args.num_contiguous = 0, RELAY_OUT_OF_RANGE, "num_contiguous");
    REFUSE_RUN(contiguous.key.shape[0] = OWN - 1, RELAY_BAD_SHAPE, "contiguous[].key");
    REFUSE_RUN(contiguous.value.data = NULL, RELAY_NULL_POINTER, "contiguous[].value");
    REFUSE_RUN(args.layer = -1, RELAY_OUT_OF_RANGE, "layer");
    REFUSE_RUN(args.alibi_slopes = per_head, RELAY_INVALID_ARGUMENT, "alibi_slopes");
    REFUSE_RUN(args.sinks = per_head, RELAY_INVALID_ARGUMENT, "sinks");
    REFUSE_RUN(args.workspace = NULL, RELAY_NULL_POINTER, "workspace");
    REFUSE_RUN(args.workspace = (char *)s.workspace + 4, RELAY_MISALIGNED, "workspace");
    REFUSE_RUN(args.workspace_bytes--, RELAY_WORKSPACE_TOO_SMALL, "workspace_bytes");
    REFUSE_RUN(args.stream = &s, RELAY_INVALID_ARGUMENT, "stream");
    free(s.workspace);
    relay_plan_destroy(s.plan);
    relay_forest_destroy(s.forest);
}

#define REFUSE_WRITE(change, expected, named)                                                 \
    do {                                                                                      \
        relay_cache_write_args args = good;                                                   \
        int64_t bad_slots[ROWS];                                                              \
        memcpy(bad_slots, slots, sizeof slots);                                               \
        args.slot_mapping = bad_slots;                                                        \
        last_log[0] = '\0';                                                                   \
        change;                                                                               \
        relay_status status = relay_cache_write(device, &args);                               \
        CHECK_MSG(status == (expected), "%s: %s", #change, relay_status_name(status));        \
        CHECK_CONTAINS(last_log, named);                                                      \
        CHECK(key_pool[0][0][0][0] == 5.0f && key_pool[3][15][1][15] == 5.0f);                \
    } while (0)

static void test_cache_write(relay_device *device) {
    static float key[ROWS][KV_HEADS][DIM], value[ROWS][KV_HEADS][DIM];
    const int64_t slots[ROWS] = {0, -1, BLOCKS * BLOCK - 1};
    relay_cache_write_args good = relay_cache_write_args_defaults();
    good.key = relay_tensor_3d(key, RELAY_F32, ROWS, KV_HEADS, DIM);
    good.value = relay_tensor_3d(value, RELAY_F32, ROWS, KV_HEADS, DIM);
    good.key_pool = relay_tensor_4d(key_pool, RELAY_F32, BLOCKS, BLOCK, KV_HEADS, DIM);
    good.value_pool = relay_tensor_4d(value_pool, RELAY_F32, BLOCKS, BLOCK, KV_HEADS, DIM);
    good.slot_mapping = slots;
    good.num_slots = ROWS;
    for (size_t i = 0; i < sizeof key / sizeof(float); i++) ((float *)key)[i] = 5.0f;
    CHECK(relay_cache_write(device, &good) == RELAY_OK);
    CHECK(key_pool[0][0][0][0] == 5.0f && key_pool[3][15][1][15] == 5.0f && key_pool[1][0][0][0] == 0.0f);
    for (size_t i = 0; i < sizeof key / sizeof(float); i++) ((float *)key)[i] = 6.0f;
    CHECK(relay_cache_write(NULL, &good) == RELAY_NULL_POINTER);
    REFUSE_WRITE(args.struct_size = 0, RELAY_BAD_STRUCT_SIZE, "struct_size");
    REFUSE_WRITE(bad_slots[2] = BLOCKS * BLOCK, RELAY_OUT_OF_RANGE, "slot_mapping[2]");
    REFUSE_WRITE(bad_slots[2] = INT64_MAX, RELAY_OUT_OF_RANGE, "slot_mapping[2]");
    REFUSE_WRITE(args.num_slots = -1, RELAY_INVALID_ARGUMENT, "num_slots");
    REFUSE_WRITE(args.num_slots = ROWS + 1, RELAY_BAD_SHAPE, "key: shape[0]");
    REFUSE_WRITE(args.slot_mapping = NULL, RELAY_NULL_POINTER, "slot_mapping");
    REFUSE_WRITE(args.value.shape[1] = 1, RELAY_BAD_SHAPE, "value");
    REFUSE_WRITE(args.key_pool.shape[3] = 8, RELAY_BAD_SHAPE, "key_pool");
    REFUSE_WRITE(args.value_pool.dtype = RELAY_BF16, RELAY_BAD_DTYPE, "value_pool");
    REFUSE_WRITE(args.key.data = key_pool, RELAY_OVERLAP, "key_pool overlaps key");
}

#define REFUSE_FUSE(change, expected, named)                                                  \
    do {                                                                                      \
        relay_tensor outs[2] = {outputs[0], outputs[1]}, ls[2] = {lses[0], lses[1]};          \
        relay_fuse_args args = good;                                                          \
        args.outputs = outs;                                                                  \
        args.lses = ls;                                                                       \
        poison();                                                                             \
        change;                                                                               \
        relay_status status = relay_fuse(device, &args);                                      \
        CHECK_MSG(status == (expected), "%s: %s", #change, relay_status_name(status));        \
        CHECK_CONTAINS(last_log, named);                                                      \
        CHECK(untouched());                                                                   \
    } while (0)

static void test_fuse(relay_device *device) {
    static float parts[2][ROWS][HEADS][DIM], part_lse[2][ROWS][HEADS];
    relay_tensor outputs[2], lses[2];
    for (int i = 0; i < 2; i++) {
        outputs[i] = relay_tensor_3d(parts[i], RELAY_F32, ROWS, HEADS, DIM);
        lses[i] = relay_tensor_2d(part_lse[i], RELAY_F32, ROWS, HEADS);
    }
    relay_fuse_args good = relay_fuse_args_defaults();
    good.num_parts = 2;
    good.outputs = outputs;
    good.lses = lses;
    good.output = relay_tensor_3d(output, RELAY_F32, ROWS, HEADS, DIM);
    good.lse = relay_tensor_2d(lse, RELAY_F32, ROWS, HEADS);
    CHECK(relay_fuse(device, &good) == RELAY_OK);
    CHECK(fabsf(lse[1][2] - logf(2.0f)) < 1e-6f); /* two parts of lse 0 */
    CHECK(relay_fuse(NULL, &good) == RELAY_NULL_POINTER);
    REFUSE_FUSE(args.struct_size = 1, RELAY_BAD_STRUCT_SIZE, "struct_size");
    REFUSE_FUSE(args.num_parts = 0, RELAY_INVALID_ARGUMENT, "num_parts");
    REFUSE_FUSE(args.outputs = NULL, RELAY_NULL_POINTER, "outputs");
    REFUSE_FUSE(args.lses = NULL, RELAY_NULL_POINTER, "lses");
    REFUSE_FUSE(outs[1].shape[0] = ROWS + 1, RELAY_BAD_SHAPE, "outputs[]");
    REFUSE_FUSE(ls[1].dtype = RELAY_BF16, RELAY_BAD_DTYPE, "lses[]");
    REFUSE_FUSE(args.output.stride[2] = 2, RELAY_BAD_STRIDE, "output");
    REFUSE_FUSE(outs[1] = args.output, RELAY_OVERLAP, "output overlaps outputs[1]");
    REFUSE_FUSE(outs[0].data = &output[0][1], RELAY_OVERLAP, "output overlaps outputs[0]");
    REFUSE_FUSE(args.lse.data = output, RELAY_OVERLAP, "overlaps");
    poison();
    relay_tensor in_place[2] = {good.output, outputs[1]};
    good.outputs = in_place; /* the first part may be the output itself */
    CHECK(relay_fuse(device, &good) == RELAY_OK);
    CHECK(output[0][0][0] == 3.5f);
}

static void test_device(void) {
    relay_device_options options = relay_device_options_defaults();
    relay_device *device = (relay_device *)1;
    options.log = keep_log;
    CHECK(relay_device_open(&options, NULL) == RELAY_NULL_POINTER);
    CHECK(relay_device_open(NULL, &device) == RELAY_NULL_POINTER && device == NULL);
#define REFUSE_DEVICE(field, value, expected)                                      \
    do {                                                                           \
        relay_device_options bad = options;                                        \
        bad.field = value;                                                         \
        last_log[0] = '\0';                                                        \
        device = (relay_device *)1;                                                \
        CHECK(relay_device_open(&bad, &device) == (expected) && device == NULL);   \
        CHECK_CONTAINS(last_log, #field);                                          \
    } while (0)
    REFUSE_DEVICE(kind, (relay_device_kind)9, RELAY_INVALID_ARGUMENT);
    REFUSE_DEVICE(index, 1, RELAY_INVALID_ARGUMENT);
    REFUSE_DEVICE(threads, -1, RELAY_INVALID_ARGUMENT);
    REFUSE_DEVICE(threads, 1 << 20, RELAY_INVALID_ARGUMENT);
    REFUSE_DEVICE(cpu_level, "sse9", RELAY_INVALID_ARGUMENT);
#undef REFUSE_DEVICE
    options.struct_size = sizeof options + 64; /* from the future: not even its log is read */
    CHECK(relay_device_open(&options, &device) == RELAY_BAD_STRUCT_SIZE && device == NULL);
    relay_device_close(NULL);
    CHECK(strcmp(relay_status_name(RELAY_OVERLAP), "OVERLAP") == 0 && RELAY_DEVICE_ERROR == 21);
    CHECK(strcmp(relay_status_name((relay_status)999), "UNKNOWN") == 0);
}

static void test_config(relay_device *device) {
    relay_config config = relay_config_defaults();
    relay_info info;
    CHECK(config.enabled == 0 && config.max_cached_system_prompts == 100 && config.prefetch_batch_size == 4);
    CHECK(relay_config_create_info(device, &config, 15, &info) == RELAY_OK);
    CHECK(info.system_length == 15 && info.enabled == 0 && info.cache_system_prompts == 1);
    relay_info given = relay_info_defaults(3);
    given.max_cached_system_prompts = 7;
    config.default_relay_info = &given;
    CHECK(relay_config_create_info(device, &config, 15, &info) == RELAY_OK);
    CHECK(info.system_length == 15 && info.enabled == 1 && info.max_cached_system_prompts == 7);
    relay_prompt_cache_options cache = relay_prompt_cache_options_defaults();
    relay_plan_options plan = relay_plan_options_defaults();
    config.prefetch_batch_size = 9;
    config.enable_prefetch = 0;
    CHECK(relay_config_apply(device, &config, &cache, &plan) == RELAY_OK);
    CHECK(cache.prefetch_batch_size == 9 && cache.enable_prefetch == 0);
    CHECK(plan.strategy == RELAY_STRATEGY_PLAIN); /* not enabled */
    config.enabled = 1;
    CHECK(relay_config_apply(device, &config, &cache, &plan) == RELAY_OK && plan.strategy == RELAY_STRATEGY_AUTO);
    config.prefetch_batch_size = 0;
    CHECK(relay_config_check(device, &config) == RELAY_INVALID_ARGUMENT);
    CHECK_CONTAINS(last_log, "relay_config.prefetch_batch_size: 0");
    config = relay_config_defaults();
    given.system_length = -1;
    config.default_relay_info = &given;
    CHECK(relay_config_check(device, &config) == RELAY_INVALID_ARGUMENT);
    CHECK_CONTAINS(last_log, "relay_info.system_length: -1");
    relay_metadata metadata = relay_metadata_defaults();
    CHECK(relay_metadata_has_info(&metadata) == 0 && relay_metadata_has_info(NULL) == 0);
    metadata.relay_info = &given;
    CHECK(relay_metadata_has_info(&metadata) == 1);
}

int main(void) {
    relay_device_options options = relay_device_options_defaults();
    options.log = keep_log;
    options.threads = 2;
    relay_device *device;
    CHECK(relay_device_open(&options, &device) == RELAY_OK);
    test_run(device);
    test_cache_write(device);
    test_fuse(device);
    test_device();
    test_config(device);
    relay_device_close(device);
    return test_result();
}
