#include "attention_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/big_memory.h"

#define BLOCK_SIZE 16
/* Between two readings of the same byte at least so much else is read. */
#define ROTATED_BYTES ((double)(320 << 20))
#define SAMPLED_ROWS 32

const char *const attention_method_names[NUM_METHODS] = {"relay", "plain", "private"};

/* ---- sizes ---------------------------------------------------------------- */

static double token_bytes(const attention_shape *s) {
    return 2.0 * s->kv_heads * s->head_dim * (double)relay_dtype_size(s->kv_dtype);
}

static double user_bytes(const attention_shape *s) { return token_bytes(s) * s->batch * s->user; }

static double prompt_bytes(const attention_shape *s, attention_method method) {
    return token_bytes(s) * s->system * (method == METHOD_PRIVATE ? s->batch : s->groups);
}

static int32_t layers_for(const attention_shape *s, attention_method method) {
    return (int32_t)(ROTATED_BYTES / (prompt_bytes(s, method) + user_bytes(s) + 1.0)) + 1;
}

/* Everything that the method keeps in memory, the f32 originals included. */
static double needed_bytes(const attention_shape *s, attention_method method) {
    double floats = 8.0 * s->kv_heads * s->head_dim * ((double)s->system + (double)s->batch * s->user);
    return floats + layers_for(s, method) * (prompt_bytes(s, method) + user_bytes(s));
}

/* ---- numbers -------------------------------------------------------------- */

/* Uniform in [-2, 2): scores then spread by more than one. */
static float *draw(uint64_t *state, size_t count) {
    float *x = malloc((count ? count : 1) * sizeof *x);
    for (size_t i = 0; x != NULL && i < count; i++) {
        *state += 0x9e3779b97f4a7c15u; /* SplitMix64 */
        uint64_t z = *state;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        x[i] = (float)((z ^ z >> 31) >> 40) * 0x1p-22f - 2.0f;
    }
    return x;
}

/* Copies [n, heads, dim] tokens between dtypes, by the library's own rounding. */
static bool convert(relay_device *device, const void *from, relay_dtype from_dtype, void *to, relay_dtype to_dtype,
                    int64_t n, int64_t heads, int64_t dim, const int64_t *slots) {
    relay_cache_write_args args = relay_cache_write_args_defaults();
    args.key = args.value = relay_tensor_3d((void *)(uintptr_t)from, from_dtype, n, heads, dim);
    args.key_pool = args.value_pool = relay_tensor_4d(to, to_dtype, n, 1, heads, dim);
    args.slot_mapping = slots;
    args.num_slots = n;
    return relay_cache_write(device, &args) == RELAY_OK;
}

static int64_t *count_up(int64_t n) {
    int64_t *slots = malloc((size_t)(n ? n : 1) * sizeof *slots);
    for (int64_t i = 0; slots != NULL && i < n; i++) slots[i] = i;
    return slots;
}

/* Random tokens as `dtype` holds them, in f32. */
static float *draw_rounded(relay_device *device, uint64_t *state, relay_dtype dtype, int64_t n, int64_t heads,
                           int64_t dim) {
    size_t count = (size_t)(n * heads * dim);
    float *x = draw(state, count);
    void *narrow = malloc((count ? count : 1) * relay_dtype_size(dtype));
    int64_t *slots = count_up(n);
    bool ok = x != NULL && narrow != NULL && slots != NULL &&
              convert(device, x, RELAY_F32, narrow, dtype, n, heads, dim, slots) &&
              convert(device, narrow, dtype, x, RELAY_F32, n, heads, dim, slots);
    free(narrow);
    free(slots);
    if (ok) return x;
    free(x);
    return NULL;
}

static bool make_numbers(attention_case *c) {
    const attention_shape *s = &c->shape;
    uint64_t state = 1;
    int64_t users = (int64_t)s->batch * s->user;
    c->query = draw_rounded(c->device, &state, s->kv_dtype, s->batch, s->heads, s->head_dim);
    c->key = draw_rounded(c->device, &state, s->kv_dtype, s->system, s->kv_heads, s->head_dim);
    c->value = draw_rounded(c->device, &state, s->kv_dtype, s->system, s->kv_heads, s->head_dim);
    c->user_key = draw_rounded(c->device, &state, s->kv_dtype, users, s->kv_heads, s->head_dim);
    c->user_value = draw_rounded(c->device, &state, s->kv_dtype, users, s->kv_heads, s->head_dim);
    size_t bytes = (size_t)s->batch * (size_t)s->heads * (size_t)s->head_dim * relay_dtype_size(s->kv_dtype);
    c->query_data = malloc(bytes);
    c->output_data = malloc(bytes);
    int64_t *slots = count_up(s->batch);
    bool ok = c->query && c->key && c->value && c->user_key && c->user_value && c->query_data && c->output_data &&
              slots && convert(c->device, c->query, RELAY_F32, c->query_data, s->kv_dtype, s->batch, s->heads,
                               s->head_dim, slots);
    free(slots);
    return ok;
}

/* ---- pages ---------------------------------------------------------------- */

/* Block ids in random order, as a pool in use deals them out. */
static bool make_tables(attention_case *c) {
    c->blocks_each = (c->shape.user + BLOCK_SIZE - 1) / BLOCK_SIZE;
    c->num_blocks = c->shape.batch * c->blocks_each;
    c->tables = malloc((size_t)(c->num_blocks + 1) * sizeof *c->tables);
    if (c->tables == NULL) return false;
    uint64_t state = 99;
    for (int32_t i = 0; i < c->num_blocks; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        int32_t j = (int32_t)((state >> 33) % (uint64_t)(i + 1));
        c->tables[i] = c->tables[j];
        c->tables[j] = i;
    }
    return true;
}

static bool fill_pages(attention_case *c) {
    const attention_shape *s = &c->shape;
    int64_t users = (int64_t)s->batch * s->user;
    int64_t *slots = count_up(users);
    if (slots == NULL) return false;
    for (int64_t i = 0; i < users; i++) {
        int64_t at = i % s->user;
        slots[i] = (int64_t)c->tables[i / s->user * c->blocks_each + at / BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE;
    }
    relay_cache_write_args args = relay_cache_write_args_defaults();
    args.key = relay_tensor_3d(c->user_key, RELAY_F32, users, s->kv_heads, s->head_dim);
    args.value = relay_tensor_3d(c->user_value, RELAY_F32, users, s->kv_heads, s->head_dim);
    args.key_pool = relay_tensor_4d(c->key_pool, s->kv_dtype, c->num_blocks, BLOCK_SIZE, s->kv_heads, s->head_dim);
    args.value_pool = relay_tensor_4d(c->value_pool, s->kv_dtype, c->num_blocks, BLOCK_SIZE, s->kv_heads, s->head_dim);
    args.slot_mapping = slots;
    args.num_slots = users;
    relay_status status = relay_cache_write(c->device, &args);
    free(slots);
    return status == RELAY_OK;
}

static bool make_pages(attention_case *c) {
    int32_t layers = c->layers[METHOD_RELAY];
    if (!make_tables(c)) return false;
    c->pool_bytes = (size_t)(c->num_blocks * BLOCK_SIZE) * (size_t)(c->shape.kv_heads * c->shape.head_dim) *
                    relay_dtype_size(c->shape.kv_dtype);
    c->key_pool = eng_big_alloc((size_t)layers * c->pool_bytes + 1);
    c->value_pool = eng_big_alloc((size_t)layers * c->pool_bytes + 1);
    if (c->key_pool == NULL || c->value_pool == NULL || !fill_pages(c)) return false;
    for (int32_t layer = 1; layer < layers; layer++) {
        memcpy(c->key_pool + (size_t)layer * c->pool_bytes, c->key_pool, c->pool_bytes);
        memcpy(c->value_pool + (size_t)layer * c->pool_bytes, c->value_pool, c->pool_bytes);
    }
    return true;
}

/* ---- prompts, forests, plans ---------------------------------------------- */

static bool write_prompt(attention_case *c, relay_prompt *prompt, int32_t layers) {
    const attention_shape *s = &c->shape;
    relay_tensor key = relay_tensor_3d(c->key, RELAY_F32, s->system, s->kv_heads, s->head_dim);
    relay_tensor value = relay_tensor_3d(c->value, RELAY_F32, s->system, s->kv_heads, s->head_dim);
    for (int32_t layer = 0; layer < layers; layer++)
        if (relay_prompt_write(prompt, layer, 0, &key, &value) != RELAY_OK) return false;
    return relay_prompt_commit(prompt) == RELAY_OK;
}

static bool make_prompts(attention_case *c, attention_method method) {
    const attention_shape *s = &c->shape;
    relay_prompt_cache_options options = relay_prompt_cache_options_defaults();
    int32_t count = method == METHOD_PRIVATE ? s->batch : s->groups;
    options.num_layers = c->layers[method] = layers_for(s, method);
    options.num_kv_heads = s->kv_heads;
    options.head_dim = s->head_dim;
    options.kv_dtype = s->kv_dtype;
    options.max_cached_system_prompts = count;
    c->prompts[method] = calloc((size_t)count, sizeof **c->prompts);
    if (c->prompts[method] == NULL) return false;
    if (relay_prompt_cache_create(c->device, &options, &c->cache[method]) != RELAY_OK) return false;
    for (int32_t i = 0; i < count; i++) {
        char key[32];
        snprintf(key, sizeof key, "prompt %d", i);
        relay_status status = relay_prompt_cache_begin(c->cache[method], key, s->system, &c->prompts[method][i]);
        if (status != RELAY_OK) return false;
        c->num_prompts[method]++;
        if (!write_prompt(c, c->prompts[method][i], options.num_layers)) return false;
    }
    return true;
}

/* Requests are dealt to the prompts in runs of equal length, give or take one. */
static void describe(const attention_case *c, attention_method method, relay_segment *segments, relay_kv_span *own,
                     int32_t *query_start) {
    const attention_shape *s = &c->shape;
    attention_method owner = method == METHOD_PLAIN ? METHOD_RELAY : method;
    int32_t count = c->num_prompts[owner];
    for (int32_t i = 0; i < count; i++) {
        int32_t first = (int32_t)((int64_t)s->batch * i / count), end = (int32_t)((int64_t)s->batch * (i + 1) / count);
        segments[i] = (relay_segment){.parent = -1, .first_request = first, .num_requests = end - first,
                                      .kv = {.layout = RELAY_KV_PACKED, .length = s->system,
                                             .prompt = c->prompts[owner][i]}};
    }
    for (int32_t r = 0; r < s->batch; r++) {
        own[r] = (relay_kv_span){.layout = RELAY_KV_PAGED, .length = s->user,
                                 .block_table = c->tables + (size_t)r * (size_t)c->blocks_each};
        query_start[r] = r;
    }
    query_start[s->batch] = s->batch;
}

static bool make_forest(attention_case *c, attention_method method) {
    const attention_shape *s = &c->shape;
    relay_segment *segments = calloc((size_t)s->batch, sizeof *segments);
    relay_kv_span *own = calloc((size_t)s->batch, sizeof *own);
    int32_t *query_start = calloc((size_t)s->batch + 1, sizeof *query_start);
    bool ok = segments && own && query_start && relay_forest_create(c->device, &c->forest[method]) == RELAY_OK;
    if (ok) {
        describe(c, method, segments, own, query_start);
        relay_forest_desc desc = relay_forest_desc_defaults();
        desc.num_requests = s->batch;
        desc.query_start_loc = query_start;
        desc.own = own;
        desc.num_segments = c->num_prompts[method == METHOD_PLAIN ? METHOD_RELAY : method];
        desc.segments = segments;
        desc.num_blocks = c->num_blocks;
        ok = relay_forest_set(c->forest[method], &desc) == RELAY_OK;
    }
    free(segments);
    free(own);
    free(query_start);
    return ok;
}

static bool make_plan(attention_case *c, attention_method method) {
    const attention_shape *s = &c->shape;
    relay_attention attention = relay_attention_defaults();
    attention.num_heads = s->heads;
    attention.num_kv_heads = s->kv_heads;
    attention.head_dim = s->head_dim;
    attention.query_dtype = attention.kv_dtype = attention.output_dtype = s->kv_dtype;
    relay_plan_options options = relay_plan_options_defaults();
    if (method == METHOD_PLAIN) options.strategy = RELAY_STRATEGY_PLAIN;
    if (!make_forest(c, method) ||
        relay_plan_create(c->device, &attention, &options, &c->plan[method]) != RELAY_OK ||
        relay_plan_build(c->plan[method], c->forest[method]) != RELAY_OK)
        return false;
    c->workspace_bytes[method] = relay_plan_workspace_bytes(c->plan[method]);
    c->workspace[method] = aligned_alloc(64, (c->workspace_bytes[method] + 63) / 64 * 64);
    return c->workspace[method] != NULL;
}

bool attention_case_open(attention_case *c, relay_device *device, const attention_shape *shape, uint32_t methods,
                         uint64_t max_bytes) {
    *c = (attention_case){.shape = *shape, .device = device};
    double need = needed_bytes(shape, METHOD_RELAY), private_need = needed_bytes(shape, METHOD_PRIVATE);
    if (need > (double)max_bytes) {
        fprintf(stderr, "relay bench: the shape needs %.1f GB, --memory allows %.1f\n", need * 1e-9,
                (double)max_bytes * 1e-9);
        return false;
    }
    if (need + private_need > (double)max_bytes) methods &= ~(1u << METHOD_PRIVATE);
    bool ok = make_numbers(c) && make_prompts(c, METHOD_RELAY) && make_pages(c);
    c->layers[METHOD_PLAIN] = c->layers[METHOD_RELAY];
    if (ok && methods & 1u << METHOD_PRIVATE) ok = make_prompts(c, METHOD_PRIVATE);
    for (int m = 0; ok && m < NUM_METHODS; m++)
        if (methods & 1u << m) ok = make_plan(c, (attention_method)m);
    if (ok) return true;
    fprintf(stderr, "relay bench: the shape could not be set up (memory?)\n");
    attention_case_close(c);
    return false;
}

void attention_case_close(attention_case *c) {
    for (int m = 0; m < NUM_METHODS; m++) {
        relay_plan_destroy(c->plan[m]);
        relay_forest_destroy(c->forest[m]);
        for (int32_t i = 0; i < c->num_prompts[m]; i++) relay_prompt_release(c->prompts[m][i]);
        relay_prompt_cache_destroy(c->cache[m]);
        free(c->prompts[m]);
        free(c->workspace[m]);
    }
    void *areas[] = {c->query, c->key, c->value, c->user_key, c->user_value, c->query_data,
                     c->output_data, c->key_pool, c->value_pool, c->tables};
    for (size_t i = 0; i < sizeof areas / sizeof *areas; i++) free(areas[i]);
    *c = (attention_case){0};
}

/* ---- running -------------------------------------------------------------- */

bool attention_case_run(attention_case *c, attention_method method, int32_t layer) {
    const attention_shape *s = &c->shape;
    relay_run_args args = relay_run_args_defaults();
    size_t pool = (size_t)layer * c->pool_bytes;
    args.query = relay_tensor_3d(c->query_data, s->kv_dtype, s->batch, s->heads, s->head_dim);
    args.output = relay_tensor_3d(c->output_data, s->kv_dtype, s->batch, s->heads, s->head_dim);
    args.key_pool = relay_tensor_4d(c->key_pool + pool, s->kv_dtype, c->num_blocks, BLOCK_SIZE, s->kv_heads, s->head_dim);
    args.value_pool = relay_tensor_4d(c->value_pool + pool, s->kv_dtype, c->num_blocks, BLOCK_SIZE, s->kv_heads,
                                      s->head_dim);
    args.layer = layer;
    args.workspace = c->workspace[method];
    args.workspace_bytes = c->workspace_bytes[method];
    return relay_run(c->plan[method], &args) == RELAY_OK;
}

/* One token's score and value are added to a row's float64 sums, in two passes over all tokens. */
static double dot(const float *a, const float *b, int32_t n) {
    double sum = 0.0;
    for (int32_t i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

/* Token t of request r's sequence: the prompt, then its own. */
static size_t token_offset(const attention_case *c, int32_t r, int32_t t, int32_t kv_head, bool *own) {
    const attention_shape *s = &c->shape;
    *own = t >= s->system;
    int64_t token = *own ? (int64_t)r * s->user + (t - s->system) : t;
    return (size_t)(token * s->kv_heads + kv_head) * (size_t)s->head_dim;
}

static bool reference_row(const attention_case *c, int32_t r, int32_t head, double *out) {
    const attention_shape *s = &c->shape;
    int32_t tokens = s->system + s->user, kv_head = head / (s->heads / s->kv_heads);
    const float *query = c->query + ((size_t)r * (size_t)s->heads + (size_t)head) * (size_t)s->head_dim;
    double *p = malloc((size_t)tokens * sizeof *p), top = -INFINITY, sum = 0.0;
    if (p == NULL) return false;
    for (int32_t t = 0; t < tokens; t++) {
        bool own;
        size_t at = token_offset(c, r, t, kv_head, &own);
        p[t] = dot(query, (own ? c->user_key : c->key) + at, s->head_dim) / sqrt(s->head_dim);
        if (p[t] > top) top = p[t];
    }
    for (int32_t t = 0; t < tokens; t++) sum += p[t] = exp(p[t] - top);
    for (int32_t d = 0; d < s->head_dim; d++) out[d] = 0.0;
    for (int32_t t = 0; t < tokens; t++) {
        bool own;
        size_t at = token_offset(c, r, t, kv_head, &own);
        const float *value = (own ? c->user_value : c->value) + at;
        for (int32_t d = 0; d < s->head_dim; d++) out[d] += p[t] / sum * value[d];
    }
    free(p);
    return true;
}

double attention_case_error(const attention_case *c) {
    const attention_shape *s = &c->shape;
    size_t count = (size_t)s->batch * (size_t)s->heads * (size_t)s->head_dim;
    float *output = malloc(count * sizeof *output);
    int64_t *slots = count_up(s->batch);
    double expected[256], wrong = 0.0, norm = 0.0;
    bool ok = output && slots && convert(c->device, c->output_data, s->kv_dtype, output, RELAY_F32, s->batch,
                                         s->heads, s->head_dim, slots);
    for (int32_t i = 0; ok && i < SAMPLED_ROWS; i++) {
        int32_t r = (int32_t)((int64_t)i * 7919 % s->batch), head = (int32_t)((int64_t)i * 104729 % s->heads);
        ok = reference_row(c, r, head, expected);
        const float *got = output + ((size_t)r * (size_t)s->heads + (size_t)head) * (size_t)s->head_dim;
        for (int32_t d = 0; ok && d < s->head_dim; d++) {
            wrong += (got[d] - expected[d]) * (got[d] - expected[d]);
            norm += expected[d] * expected[d];
        }
    }
    free(output);
    free(slots);
    return ok ? sqrt(wrong / norm) : NAN;
}
