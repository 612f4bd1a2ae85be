/* Two requests under one system prompt: its K/V is read once for both.
 *
 *     cc shared_prompt.c $(pkg-config --cflags --libs relayattn) -lm -o shared_prompt
 */
#include <relay/relay.h>

#include <stdio.h>
#include <stdlib.h>

enum { HEADS = 8, KV_HEADS = 2, DIM = 64, PROMPT = 1000, OWN = 20, REQUESTS = 2, BLOCK = 16 };

static void print_log(void *user, relay_log_level level, const char *message) {
    (void)user;
    if (level <= RELAY_LOG_WARN) fprintf(stderr, "relay: %s\n", message);
}

static void check(relay_status status) {
    if (status == RELAY_OK) return;
    fprintf(stderr, "%s: %s\n", relay_status_name(status), relay_status_text(status));
    exit(1);
}

static float *random_floats(size_t n) {
    float *x = malloc(n * sizeof *x);
    if (x == NULL) exit(1);
    for (size_t i = 0; i < n; i++) x[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    return x;
}

/* Puts a system prompt's K/V (one layer here) into a cache, in the layout that kernels like. */
static relay_prompt *cache_prompt(relay_prompt_cache *cache) {
    relay_prompt *prompt;
    relay_tensor key = relay_tensor_3d(random_floats(PROMPT * KV_HEADS * DIM), RELAY_F32, PROMPT, KV_HEADS, DIM);
    relay_tensor value = relay_tensor_3d(random_floats(PROMPT * KV_HEADS * DIM), RELAY_F32, PROMPT, KV_HEADS, DIM);
    check(relay_prompt_cache_begin(cache, "you are a helpful assistant", PROMPT, &prompt));
    check(relay_prompt_write(prompt, 0, 0, &key, &value));
    check(relay_prompt_commit(prompt));
    free(key.data);
    free(value.data);
    return prompt;
}

int main(void) {
    relay_device_options device_options = relay_device_options_defaults();
    device_options.log = print_log;
    relay_device *device;
    check(relay_device_open(&device_options, &device));

    relay_prompt_cache_options cache_options = relay_prompt_cache_options_defaults();
    cache_options.num_layers = 1;
    cache_options.num_kv_heads = KV_HEADS;
    cache_options.head_dim = DIM;
    cache_options.kv_dtype = RELAY_F32;
    relay_prompt_cache *cache;
    check(relay_prompt_cache_create(device, &cache_options, &cache));
    relay_prompt *prompt = cache_prompt(cache);

    /* The batch: one new token each (decode), 20 own tokens in two blocks of a paged pool. */
    const int32_t tables[REQUESTS][2] = {{3, 0}, {1, 2}}, query_start_loc[] = {0, 1, 2};
    const relay_kv_span own[REQUESTS] = {
        {.layout = RELAY_KV_PAGED, .length = OWN, .block_table = tables[0]},
        {.layout = RELAY_KV_PAGED, .length = OWN, .block_table = tables[1]},
    };
    const relay_segment shared = {.parent = -1, .first_request = 0, .num_requests = REQUESTS,
                                  .kv = {.layout = RELAY_KV_PACKED, .length = PROMPT, .prompt = prompt}};
    relay_forest_desc batch = relay_forest_desc_defaults();
    batch.num_requests = REQUESTS;
    batch.query_start_loc = query_start_loc;
    batch.own = own;
    batch.num_segments = 1;
    batch.segments = &shared;
    batch.block_size = BLOCK;
    batch.num_blocks = 4;
    relay_forest *forest;
    check(relay_forest_create(device, &forest));
    check(relay_forest_set(forest, &batch));

    /* The plan: once per step, for all layers. */
    relay_attention attention = relay_attention_defaults();
    attention.num_heads = HEADS;
    attention.num_kv_heads = KV_HEADS;
    attention.head_dim = DIM;
    attention.query_dtype = attention.kv_dtype = attention.output_dtype = RELAY_F32;
    relay_plan *plan;
    check(relay_plan_create(device, &attention, NULL, &plan));
    check(relay_plan_build(plan, forest));

    /* The run: once per layer. */
    relay_run_args run = relay_run_args_defaults();
    run.query = relay_tensor_3d(random_floats(REQUESTS * HEADS * DIM), RELAY_F32, REQUESTS, HEADS, DIM);
    run.key_pool = relay_tensor_4d(random_floats(4 * BLOCK * KV_HEADS * DIM), RELAY_F32, 4, BLOCK, KV_HEADS, DIM);
    run.value_pool = relay_tensor_4d(random_floats(4 * BLOCK * KV_HEADS * DIM), RELAY_F32, 4, BLOCK, KV_HEADS, DIM);
    run.output = relay_tensor_3d(random_floats(REQUESTS * HEADS * DIM), RELAY_F32, REQUESTS, HEADS, DIM);
    float lse[REQUESTS * HEADS];
    run.lse = relay_tensor_2d(lse, RELAY_F32, REQUESTS, HEADS);
    run.workspace_bytes = relay_plan_workspace_bytes(plan);
    run.workspace = aligned_alloc(64, run.workspace_bytes);
    check(relay_run(plan, &run));

    relay_plan_info info = {.struct_size = sizeof info};
    check(relay_plan_get_info(plan, &info));
    printf("%d segment read once, %lld tokens not read again, kernel %s\n", info.relay_segments,
           (long long)info.shared_tokens_saved, info.kernel);
    for (int r = 0; r < REQUESTS; r++)
        printf("request %d: o[0] = %+.6f, lse[0] = %.6f\n", r, (double)((float *)run.output.data)[r * HEADS * DIM],
               (double)lse[r * HEADS]);

    free(run.workspace);
    free(run.output.data);
    free(run.value_pool.data);
    free(run.key_pool.data);
    free(run.query.data);
    relay_plan_destroy(plan);
    relay_forest_destroy(forest);
    relay_prompt_release(prompt);
    relay_prompt_cache_destroy(cache);
    relay_device_close(device);
    return 0;
}
