/* The library without memory: every call that asks for some is refused it once, and once for good.
 * (The prompt cache's files have a test of their own, test_prompt_faults.c.) */
#include <math.h>
#include <stdlib.h>

#include "failing_memory.h"
#include "relay/relay.h"
#include "test.h"

enum { REQUESTS = 8, HEADS = 4, KV_HEADS = 2, DIM = 64, BLOCK = 16, OWN_BLOCKS = 2, SHARED_BLOCKS = 4,
       BLOCKS = REQUESTS * OWN_BLOCKS + SHARED_BLOCKS, PROMPT_TOKENS = SHARED_BLOCKS * BLOCK,
       PROMPT_SLOT = REQUESTS * OWN_BLOCKS * BLOCK, LARGE = 100, MANY = 200 };

static char last_log[1024];

static void keep_log(void *user, relay_log_level level, const char *message) {
    (void)user;
    if (level == RELAY_LOG_ERROR) snprintf(last_log, sizeof last_log, "%s", message);
}

/* What a call gave: it worked, or it said why not. */
static bool worked(const char *call, long which, relay_status status) {
    CHECK_MSG(status == RELAY_OK || status == RELAY_OUT_OF_MEMORY, "call %ld fails: %s gave %s", which, call,
              relay_status_name(status));
    CHECK_MSG(status == RELAY_OK || last_log[0] != '\0', "call %ld fails: %s gave no reason", which, call);
    last_log[0] = '\0';
    return status == RELAY_OK;
}

static relay_device *open_device(long which) {
    relay_device_options options = relay_device_options_defaults();
    options.threads = 2;
    options.log = keep_log;
    relay_device *device = (relay_device *)(void *)&options;
    bool ok = worked("relay_device_open", which, relay_device_open(&options, &device));
    CHECK(ok == (device != NULL));
    return device;
}

/* ---- forests ------------------------------------------------------------- */

typedef struct batch {
    relay_forest_desc desc;
    relay_block_tables tables;
    relay_kv_span own[MANY];
    relay_segment segment;
    int32_t query_start[MANY + 1], seq_lens[MANY], own_table[MANY][OWN_BLOCKS], shared[SHARED_BLOCKS],
        whole[MANY][SHARED_BLOCKS + OWN_BLOCKS];
} batch;

/* `count` requests of one row over one prompt in pages, or packed. */
static void make_batch(batch *b, int32_t count, const relay_prompt *prompt) {
    memset(b, 0, sizeof *b);
    b->desc = relay_forest_desc_defaults();
    b->tables = relay_block_tables_defaults();
    for (int32_t i = 0; i < SHARED_BLOCKS; i++) b->shared[i] = REQUESTS * OWN_BLOCKS + i;
    for (int32_t r = 0; r < count; r++) {
        b->query_start[r + 1] = r + 1;
        b->seq_lens[r] = SHARED_BLOCKS * BLOCK + BLOCK + 5;
        for (int32_t i = 0; i < SHARED_BLOCKS; i++) b->whole[r][i] = b->shared[i];
        for (int32_t i = 0; i < OWN_BLOCKS; i++)
            b->own_table[r][i] = b->whole[r][SHARED_BLOCKS + i] = r % REQUESTS * OWN_BLOCKS + i;
        b->own[r] = (relay_kv_span){.layout = RELAY_KV_PAGED, .length = BLOCK + 5, .block_table = b->own_table[r]};
    }
    b->segment = (relay_segment){.parent = -1, .num_requests = count,
                                 .kv = {.layout = RELAY_KV_PAGED, .length = SHARED_BLOCKS * BLOCK, .block_table = b->shared}};
    if (prompt != NULL) b->segment.kv = (relay_kv_span){.layout = RELAY_KV_PACKED, .length = PROMPT_TOKENS, .prompt = prompt};
    b->desc.num_requests = b->tables.num_requests = count;
    b->desc.query_start_loc = b->tables.query_start_loc = b->query_start;
    b->desc.own = b->own;
    b->desc.num_segments = 1;
    b->desc.segments = &b->segment;
    b->desc.num_blocks = b->tables.num_blocks = BLOCKS;
    b->tables.seq_lens = b->seq_lens;
    b->tables.block_table = b->whole[0];
    b->tables.block_table_stride = SHARED_BLOCKS + OWN_BLOCKS;
}

static bool holds(const relay_forest *forest, int32_t count) {
    relay_segment segment;
    relay_kv_span own;
    if (relay_forest_num_requests(forest) != count) return false;
    if (count == 0) return relay_forest_num_segments(forest) == 0;
    return relay_forest_num_segments(forest) == 1 && relay_forest_get_segment(forest, 0, &segment) == RELAY_OK &&
           segment.num_requests == count && relay_forest_get_own(forest, count - 1, &own) == RELAY_OK &&
           own.length == BLOCK + 5;
}

/* Larger batches one after the other; a failure leaves the one before. */
static void use_forest(relay_device *device, long which) {
    static batch b;
    relay_forest *forest = (relay_forest *)(void *)&b;
    bool ok = worked("relay_forest_create", which, relay_forest_create(device, &forest));
    CHECK(ok == (forest != NULL));
    int32_t held = 0;
    for (int32_t count = 3; ok && count < MANY; count = 2 * count + 1) {
        make_batch(&b, count, NULL);
        if (worked("relay_forest_set", which, relay_forest_set(forest, &b.desc))) held = count;
        CHECK_MSG(holds(forest, held), "call %ld fails: after set the forest is not that of %d requests", which, held);
        make_batch(&b, count + 1, NULL);
        if (worked("relay_forest_find", which, relay_forest_find(forest, &b.tables))) held = count + 1;
        CHECK_MSG(holds(forest, held), "call %ld fails: after find the forest is not that of %d requests", which, held);
    }
    relay_forest_destroy(forest);
}

/* ---- plans and runs ------------------------------------------------------ */

typedef struct tensors {
    float query[MANY * HEADS * DIM], key[BLOCKS * BLOCK * KV_HEADS * DIM], value[BLOCKS * BLOCK * KV_HEADS * DIM],
        output[MANY * HEADS * DIM], expected[MANY * HEADS * DIM];
} tensors;

static tensors data;

static void fill(float *to, size_t count, uint32_t seed) {
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        to[i] = (float)(seed >> 8) * 0x1p-23f - 1.0f;
    }
}

static relay_run_args arguments(int32_t rows) {
    relay_run_args args = relay_run_args_defaults();
    args.query = relay_tensor_3d(data.query, RELAY_F32, rows, HEADS, DIM);
    args.key_pool = relay_tensor_4d(data.key, RELAY_F32, BLOCKS, BLOCK, KV_HEADS, DIM);
    args.value_pool = relay_tensor_4d(data.value, RELAY_F32, BLOCKS, BLOCK, KV_HEADS, DIM);
    args.output = relay_tensor_3d(data.output, RELAY_F32, rows, HEADS, DIM);
    return args;
}

/* A run allocates nothing: there is nothing to fail in it. */
static void run(const relay_plan *plan, int32_t rows, long which) {
    static _Alignas(64) unsigned char workspace[32 << 20];
    relay_run_args args = arguments(rows);
    args.workspace = workspace;
    args.workspace_bytes = relay_plan_workspace_bytes(plan);
    CHECK_MSG(args.workspace_bytes <= sizeof workspace, "%zu bytes of workspace", args.workspace_bytes);
    long calls = failing_memory_calls();
    relay_status status = relay_run(plan, &args);
    CHECK_MSG(status == RELAY_OK, "call %ld fails: a built plan gives %s: %s", which, relay_status_name(status), last_log);
    CHECK(failing_memory_calls() == calls);
    for (int32_t i = 0; i < rows * HEADS * DIM; i++)
        if (!(fabsf(data.output[i] - data.expected[i]) <= 1e-5f)) {
            CHECK_MSG(false, "call %ld fails: element %d is %g, expected %g", which, i, (double)data.output[i],
                      (double)data.expected[i]);
            return;
        }
}

/* A plan that could not be built is none: no info, nothing to run; and the next one is built. */
static void check_unbuilt(relay_plan *plan, int32_t rows, long which) {
    relay_plan_info info = {.struct_size = sizeof info};
    relay_run_args args = arguments(rows);
    CHECK(relay_plan_workspace_bytes(plan) == 0);
    CHECK_MSG(relay_plan_get_info(plan, &info) == RELAY_STALE_PLAN, "call %ld fails: the plan has an info", which);
    CHECK_MSG(relay_run(plan, &args) == RELAY_STALE_PLAN, "call %ld fails: the plan can be run", which);
    last_log[0] = '\0';
}

/* First the forest as it is, then a larger one, for which a plan that has been built needs more memory. */
static void use_plan(relay_device *device, relay_forest *forest, int32_t rows, long which) {
    static batch b;
    relay_attention attention = relay_attention_defaults();
    attention.num_heads = HEADS;
    attention.num_kv_heads = KV_HEADS;
    attention.head_dim = DIM;
    attention.query_dtype = attention.kv_dtype = attention.output_dtype = RELAY_F32;
    relay_plan *plan = (relay_plan *)(void *)&attention;
    bool ok = worked("relay_plan_create", which, relay_plan_create(device, &attention, NULL, &plan));
    CHECK(ok == (plan != NULL));
    for (int turn = 0; ok && turn < 3; turn++) {
        make_batch(&b, LARGE, NULL);
        if (turn > 0 && worked("relay_forest_set", which, relay_forest_set(forest, &b.desc))) rows = LARGE;
        if (worked("relay_plan_build", which, relay_plan_build(plan, forest))) run(plan, rows, which);
        else check_unbuilt(plan, rows, which);
    }
    relay_plan_destroy(plan);
}

/* ---- prompts ------------------------------------------------------------- */

static relay_prompt *build_prompt(relay_prompt_cache *cache, long which) {
    relay_prompt *prompt = NULL;
    relay_tensor key = relay_tensor_3d(data.key + PROMPT_SLOT * KV_HEADS * DIM, RELAY_F32, PROMPT_TOKENS, KV_HEADS, DIM);
    relay_tensor value = relay_tensor_3d(data.value + PROMPT_SLOT * KV_HEADS * DIM, RELAY_F32, PROMPT_TOKENS, KV_HEADS, DIM);
    bool ok = worked("relay_prompt_cache_begin", which, relay_prompt_cache_begin(cache, "prompt", PROMPT_TOKENS, &prompt));
    CHECK(ok == (prompt != NULL));
    ok = ok && worked("relay_prompt_write", which, relay_prompt_write(prompt, 0, 0, &key, &value)) &&
         worked("relay_prompt_commit", which, relay_prompt_commit(prompt));
    if (ok) return prompt;
    relay_prompt_release(prompt);
    return NULL;
}

static void use_prompt(relay_device *device, relay_forest *forest, long which) {
    static batch b;
    relay_prompt_cache_options options = relay_prompt_cache_options_defaults();
    options.num_layers = 1;
    options.num_kv_heads = KV_HEADS;
    options.head_dim = DIM;
    options.kv_dtype = RELAY_F32;
    relay_prompt_cache *cache = (relay_prompt_cache *)(void *)&options;
    bool ok = worked("relay_prompt_cache_create", which, relay_prompt_cache_create(device, &options, &cache));
    CHECK(ok == (cache != NULL));
    if (!ok) return;
    relay_prompt *prompt = build_prompt(cache, which);
    if (prompt == NULL) prompt = build_prompt(cache, which); /* what failed once is not in the way */
    if (prompt != NULL) {
        make_batch(&b, REQUESTS, prompt);
        if (worked("relay_forest_set", which, relay_forest_set(forest, &b.desc))) use_plan(device, forest, REQUESTS, which);
    }
    relay_prompt_release(prompt);
    relay_prompt_cache_destroy(cache);
}

/* ---- the rest ------------------------------------------------------------ */

static void use_config(relay_device *device, long which) {
    relay_config config = relay_config_defaults();
    relay_prompt_cache_options cache = relay_prompt_cache_options_defaults();
    relay_plan_options plan = relay_plan_options_defaults();
    relay_info info;
    CHECK_MSG(relay_config_apply(device, &config, &cache, &plan) == RELAY_OK, "call %ld fails", which);
    CHECK_MSG(relay_config_create_info(device, &config, 7, &info) == RELAY_OK && info.system_length == 7, "call %ld fails", which);
}

static void calibrate(relay_device *device, long which) {
    relay_calibration seen = {.struct_size = sizeof seen, .read_gbps = -1};
    if (worked("relay_device_calibrate", which, relay_device_calibrate(device, &seen))) CHECK(seen.read_gbps > 0);
    else CHECK_MSG(seen.read_gbps < 0, "call %ld fails: half a calibration", which);
}

/* ---- sweeps -------------------------------------------------------------- */

static void live_without_calibration(long which) {
    static batch b;
    relay_device *device = open_device(which);
    if (device == NULL) return;
    relay_forest *forest = NULL;
    use_config(device, which);
    use_forest(device, which);
    if (worked("relay_forest_create", which, relay_forest_create(device, &forest))) {
        make_batch(&b, REQUESTS, NULL);
        if (worked("relay_forest_set", which, relay_forest_set(forest, &b.desc))) use_plan(device, forest, REQUESTS, which);
        use_prompt(device, forest, which);
    }
    relay_forest_destroy(forest);
    relay_device_close(device);
}

static void live_with_calibration(long which) {
    relay_device *device = open_device(which);
    if (device != NULL) calibrate(device, which);
    relay_device_close(device);
}

/* Fails the first call, the second, ..., until there is no such call. */
static void sweep(void (*live)(long), bool for_good, long least) {
    size_t mapped = failing_memory_mapped();
    int files = failing_memory_open_files();
    bool happened = true;
    long which = 0;
    for (; happened; which++) {
        failing_memory_begin(which, for_good);
        live(which);
        happened = failing_memory_end();
        CHECK_MSG(failing_memory_mapped() == mapped, "call %ld fails: %zd bytes stay mapped", which,
                  (ssize_t)(failing_memory_mapped() - mapped));
        CHECK(failing_memory_open_files() == files);
    }
    CHECK_MSG(which > least, "only %ld calls were seen", which - 1);
}

/* Both kinds of prompt hold the same tokens, so one answer is right for both: that of plain memory,
 * computed here in float64. */
static void attend_plainly(int32_t row, int32_t head) {
    enum { OWN = BLOCK + 5, SHARED = PROMPT_TOKENS };
    static double scores[SHARED + OWN];
    const float *q = data.query + (row * HEADS + head) * DIM;
    double sum = 0, top = -INFINITY, out[DIM] = {0};
    int32_t kv_head = head / (HEADS / KV_HEADS);
    for (int32_t n = 0; n < SHARED + OWN; n++) {
        int32_t slot = n < SHARED ? PROMPT_SLOT + n : row % REQUESTS * OWN_BLOCKS * BLOCK + n - SHARED;
        scores[n] = 0;
        for (int32_t d = 0; d < DIM; d++) scores[n] += (double)q[d] * (double)data.key[(slot * KV_HEADS + kv_head) * DIM + d] / 8;
        if (scores[n] > top) top = scores[n];
    }
    for (int32_t n = 0; n < SHARED + OWN; n++) {
        int32_t slot = n < SHARED ? PROMPT_SLOT + n : row % REQUESTS * OWN_BLOCKS * BLOCK + n - SHARED;
        double p = exp(scores[n] - top);
        sum += p;
        for (int32_t d = 0; d < DIM; d++) out[d] += p * (double)data.value[(slot * KV_HEADS + kv_head) * DIM + d];
    }
    for (int32_t d = 0; d < DIM; d++) data.expected[(row * HEADS + head) * DIM + d] = (float)(out[d] / sum);
}

int main(void) {
    fill(data.query, sizeof data.query / sizeof *data.query, 1);
    fill(data.key, sizeof data.key / sizeof *data.key, 2);
    fill(data.value, sizeof data.value / sizeof *data.value, 3);
    for (int32_t row = 0; row < LARGE; row++)
        for (int32_t head = 0; head < HEADS; head++) attend_plainly(row, head);
    sweep(live_without_calibration, false, 40);
    sweep(live_without_calibration, true, 40);
    sweep(live_with_calibration, false, 1);
    return test_result();
}
