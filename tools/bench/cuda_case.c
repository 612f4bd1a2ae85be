/* A shape of the attention bench in device memory. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_cuda.h"

enum { BLOCK_SIZE = 16, MOST_ROWS = 24, FEWEST_ROWS = 4, SAMPLED_TOKENS = 100000 };
/* Read between two runs, so that a cache holds nothing of the first one. */
static const size_t flush_bytes = (size_t)192 << 20;
/* Numbers repeat after this many elements: no multiple of a token's or a page's. */
static const int64_t repeat_after = ((int64_t)1 << 24) + 8 * 1237;

static bool said(cuda_case *k, const char *what, relay_status status) {
    if (status == RELAY_OK) return true;
    fprintf(stderr, "relay bench: %s: %s: %s\n", what, relay_status_name(status), k->lab->error.text);
    return false;
}

static bool take(cuda_case *k, void **memory, size_t bytes) {
    return said(k, "device memory", k->lab->ops->alloc(k->lab->index, bytes, memory, &k->lab->error));
}

/* ---- numbers --------------------------------------------------------------- */

static float load(const cuda_case *k, int64_t i) {
    uint16_t bits = ((const uint16_t *)(const void *)k->numbers)[i % k->num_numbers];
    if (k->shape.kv_dtype == RELAY_BF16) {
        uint32_t wide = (uint32_t)bits << 16;
        float x;
        memcpy(&x, &wide, sizeof x);
        return x;
    }
    int exponent = bits >> 10 & 31, fraction = bits & 1023; /* drawn numbers are normal or zero */
    float x = exponent ? ldexpf((float)(1024 + fraction), exponent - 25) : ldexpf((float)fraction, -24);
    return bits & 0x8000 ? -x : x;
}

/* Multiples of 1/64 in [-2, 2): exact in both dtypes. */
static bool draw(cuda_case *k) {
    k->num_numbers = repeat_after;
    uint16_t *to = malloc((size_t)repeat_after * sizeof *to);
    k->numbers = (char *)to;
    uint64_t state = 1;
    for (int64_t i = 0; to != NULL && i < repeat_after; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        float x = (float)(int32_t)(state >> 56) / 64.0f - 2.0f;
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        if (k->shape.kv_dtype == RELAY_BF16 || x == 0.0f) to[i] = (uint16_t)(bits >> 16);
        else to[i] = (uint16_t)((bits >> 16 & 0x8000) | (((bits >> 23 & 255) - 112) << 10) | (bits >> 13 & 1023));
    }
    return to != NULL;
}

/* Element i becomes number (i + offset) % count. */
static bool fill(cuda_case *k, void *memory, int64_t elements, int64_t offset) {
    for (int64_t done = 0; done < elements;) {
        int64_t from = (done + offset) % k->num_numbers, count = k->num_numbers - from;
        if (count > elements - done) count = elements - done;
        if (!said(k, "copying", k->lab->ops->copy(k->lab->index, (char *)memory + 2 * done, k->numbers + 2 * from,
                                                  2 * (size_t)count, RELAYI_CUDA_TO_DEVICE, &k->lab->error)))
            return false;
        done += count;
    }
    return true;
}

enum { KEY_OFFSET = 0, VALUE_OFFSET = 5000011, QUERY_OFFSET = 9000017 };

/* ---- setting up ------------------------------------------------------------ */

/* Step `i` of `count` from `low` to `high`. */
static int32_t between(int64_t low, int64_t high, int32_t i, int32_t count) {
    return count > 1 ? (int32_t)(low + (high - low) * i / (count - 1)) : (int32_t)((low + high) / 2);
}

/* Ragged prompts are of 2/9 to 16/9 of the shape's tokens, users of 1 to twice theirs, in no order. */
static int32_t system_tokens(const cuda_case *k, int32_t group) {
    int64_t tokens = k->shape.system;
    return k->ragged ? between(tokens * 2 / 9, tokens * 16 / 9, group, k->shape.groups) : k->shape.system;
}
static int32_t user_tokens(const cuda_case *k, int32_t request) {
    int32_t batch = k->shape.batch, place = (int32_t)((int64_t)request * 7919 % batch);
    if (batch % 7919 == 0) place = request;
    return k->ragged ? between(1, 2 * (int64_t)k->shape.user - 1, place, batch) : k->shape.user;
}

static int32_t blocks_of(int32_t tokens) { return (tokens + BLOCK_SIZE - 1) / BLOCK_SIZE; }

static bool make_tables(cuda_case *k) {
    const attention_shape *s = &k->shape;
    k->table_at = malloc((size_t)(s->groups + s->batch + 1) * sizeof *k->table_at);
    if (k->table_at == NULL) return false;
    for (int32_t g = 0; g < s->groups; g++) {
        k->table_at[g] = k->num_blocks;
        k->num_blocks += blocks_of(system_tokens(k, g));
    }
    for (int32_t r = 0; r < s->batch; r++) {
        k->table_at[s->groups + r] = k->num_blocks;
        k->num_blocks += blocks_of(user_tokens(k, r));
    }
    k->tables = malloc((size_t)(k->num_blocks + 1) * sizeof *k->tables);
    uint64_t state = 99;
    for (int32_t i = 0; k->tables != NULL && i < k->num_blocks; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        int32_t j = (int32_t)((state >> 33) % (uint64_t)(i + 1));
        k->tables[i] = k->tables[j];
        k->tables[j] = i;
    }
    return k->tables != NULL;
}

static bool make_memory(cuda_case *k) {
    const attention_shape *s = &k->shape;
    int64_t pool = (int64_t)k->num_blocks * BLOCK_SIZE * s->kv_heads * s->head_dim;
    int64_t rows = (int64_t)s->batch * s->heads * s->head_dim;
    return take(k, &k->pool[0], 2 * (size_t)pool) && take(k, &k->pool[1], 2 * (size_t)pool) &&
           take(k, &k->query, 2 * (size_t)rows) && take(k, &k->output, 2 * (size_t)rows) &&
           take(k, &k->flush, flush_bytes) && fill(k, k->pool[0], pool, KEY_OFFSET) &&
           fill(k, k->pool[1], pool, VALUE_OFFSET) && fill(k, k->query, rows, QUERY_OFFSET) &&
           said(k, "clearing", k->lab->ops->fill(k->lab->index, k->flush, 1, flush_bytes, &k->lab->error)) &&
           said(k, "a stream", k->lab->ops->stream_create(k->lab->index, &k->stream, &k->lab->error));
}

/* `more`: tokens that each request has besides; their blocks are any. */
static void describe(const cuda_case *k, int32_t more, relay_segment *segments, relay_kv_span *own, int32_t *query_start) {
    const attention_shape *s = &k->shape;
    for (int32_t g = 0; g < s->groups; g++) {
        int32_t first = (int32_t)((int64_t)s->batch * g / s->groups);
        int32_t end = (int32_t)((int64_t)s->batch * (g + 1) / s->groups);
        segments[g] = (relay_segment){.parent = -1, .first_request = first, .num_requests = end - first,
                                      .kv = {.layout = RELAY_KV_PAGED, .length = system_tokens(k, g),
                                             .block_table = k->tables + k->table_at[g]}};
    }
    for (int32_t r = 0; r < s->batch; r++) {
        own[r] = (relay_kv_span){.layout = RELAY_KV_PAGED, .length = user_tokens(k, r) + more,
                                 .block_table = k->tables + (more ? 0 : k->table_at[s->groups + r])};
        query_start[r + 1] = r + 1;
    }
}

static bool set_forest(const cuda_case *k, int32_t more, relay_forest *forest) {
    const attention_shape *s = &k->shape;
    relay_segment *segments = calloc((size_t)s->groups, sizeof *segments);
    relay_kv_span *own = calloc((size_t)s->batch, sizeof *own);
    int32_t *query_start = calloc((size_t)s->batch + 1, sizeof *query_start);
    bool ok = segments && own && query_start;
    if (ok) {
        describe(k, more, segments, own, query_start);
        relay_forest_desc desc = relay_forest_desc_defaults();
        desc.num_requests = s->batch;
        desc.query_start_loc = query_start;
        desc.own = own;
        desc.num_segments = s->groups;
        desc.segments = segments;
        desc.num_blocks = k->num_blocks;
        ok = relay_forest_set(forest, &desc) == RELAY_OK;
    }
    free(segments);
    free(own);
    free(query_start);
    return ok;
}

static bool make_forest(cuda_case *k) {
    return relay_forest_create(k->lab->device, &k->forest) == RELAY_OK && set_forest(k, 0, k->forest);
}

static relay_attention attention_of(const attention_shape *s) {
    relay_attention attention = relay_attention_defaults();
    attention.num_heads = s->heads;
    attention.num_kv_heads = s->kv_heads;
    attention.head_dim = s->head_dim;
    attention.query_dtype = attention.kv_dtype = attention.output_dtype = s->kv_dtype;
    return attention;
}

static bool make_plan(cuda_case *k, int which) {
    relay_attention attention = attention_of(&k->shape);
    relay_plan_options options = relay_plan_options_defaults();
    options.strategy = which == 1 ? RELAY_STRATEGY_PLAIN : k->always ? RELAY_STRATEGY_RELAY : RELAY_STRATEGY_AUTO;
    if (relay_plan_create(k->lab->device, &attention, &options, &k->plan[which]) != RELAY_OK ||
        relay_plan_build(k->plan[which], k->forest) != RELAY_OK)
        return false;
    k->workspace_bytes[which] = relay_plan_workspace_bytes(k->plan[which]);
    return take(k, &k->workspace[which], k->workspace_bytes[which]);
}

bool cuda_case_open(cuda_case *k, cuda_lab *lab, const attention_shape *shape, bool ragged, bool always) {
    *k = (cuda_case){.lab = lab, .shape = *shape, .ragged = ragged, .always = always};
    if (draw(k) && make_tables(k) && make_memory(k) && make_forest(k) && make_plan(k, 0) && make_plan(k, 1)) return true;
    fprintf(stderr, "relay bench: the shape could not be set up\n");
    cuda_case_close(k);
    return false;
}

void cuda_case_close(cuda_case *k) {
    if (k->lab == NULL) return;
    void *areas[] = {k->pool[0], k->pool[1], k->query, k->output, k->flush, k->workspace[0], k->workspace[1]};
    for (size_t i = 0; i < sizeof areas / sizeof *areas; i++)
        if (areas[i] != NULL) k->lab->ops->release(k->lab->index, areas[i]);
    k->lab->ops->stream_destroy(k->lab->index, k->stream);
    for (int i = 0; i < 2; i++) relay_plan_destroy(k->plan[i]);
    relay_forest_destroy(k->forest);
    free(k->numbers);
    free(k->tables);
    free(k->table_at);
    *k = (cuda_case){0};
}

/* ---- running --------------------------------------------------------------- */

static bool run(cuda_case *k, int which, bool plan_in_workspace) {
    const attention_shape *s = &k->shape;
    relay_run_args args = relay_run_args_defaults();
    args.query = relay_tensor_3d(k->query, s->kv_dtype, s->batch, s->heads, s->head_dim);
    args.output = relay_tensor_3d(k->output, s->kv_dtype, s->batch, s->heads, s->head_dim);
    args.key_pool = relay_tensor_4d(k->pool[0], s->kv_dtype, k->num_blocks, BLOCK_SIZE, s->kv_heads, s->head_dim);
    args.value_pool = relay_tensor_4d(k->pool[1], s->kv_dtype, k->num_blocks, BLOCK_SIZE, s->kv_heads, s->head_dim);
    args.workspace = k->workspace[which];
    args.workspace_bytes = k->workspace_bytes[which];
    args.stream = k->stream;
    args.plan_in_workspace = plan_in_workspace;
    return relay_run(k->plan[which], &args) == RELAY_OK;
}

static bool run_and_wait(cuda_case *k, int which) {
    return run(k, which, false) && said(k, "a run", k->lab->ops->stream_wait(k->lab->index, k->stream, &k->lab->error));
}

void *cuda_case_graph(cuda_case *k, int which, int32_t repeats, bool flush, bool plan_in_workspace) {
    const relayi_cuda_ops *ops = k->lab->ops;
    void *graph = NULL;
    if (which >= 0 && !run_and_wait(k, which)) return NULL; /* kernels are loaded by their first launch */
    if (!said(k, "capture", ops->capture_begin(k->lab->index, k->stream, &k->lab->error))) return NULL;
    bool ok = true;
    for (int32_t i = 0; ok && i < repeats; i++) {
        if (flush) ok = said(k, "a flush", ops->flush(k->lab->index, k->flush, flush_bytes, k->stream, &k->lab->error));
        if (ok && which >= 0) ok = run(k, which, plan_in_workspace);
    }
    ok = said(k, "capture", ops->capture_end(k->lab->index, k->stream, &graph, &k->lab->error)) && ok;
    if (ok) return graph;
    ops->graph_destroy(k->lab->index, graph);
    return NULL;
}

/* The median of some launches of a graph. */
static double median_of(cuda_case *k, void *graph, const void *flush, int32_t readings) {
    bench_times times = {0};
    double seconds = 0.0;
    bool ok = graph != NULL;
    for (int32_t i = -3; ok && i < readings; i++) { /* three to warm up */
        ok = said(k, "timing", k->lab->ops->time_graph(k->lab->index, graph, flush, flush ? flush_bytes : 0, k->stream,
                                                       &seconds, &k->lab->error));
        if (ok && i >= 0) ok = bench_times_add(&times, seconds);
    }
    double median = ok ? bench_times_median(&times) : NAN;
    bench_times_free(&times);
    return median;
}

double cuda_case_time(cuda_case *k, int which, bench_cuda_method method, bool plan_in_workspace, int32_t readings) {
    enum { REPEATS = 8 };
    void *work = cuda_case_graph(k, which, method == BENCH_GD ? REPEATS : 1, method == BENCH_GD, plan_in_workspace);
    double seconds = NAN;
    if (method == BENCH_EV) {
        seconds = median_of(k, work, k->flush, readings);
    } else {
        void *flushes = cuda_case_graph(k, -1, REPEATS, true, false);
        int32_t few = readings / REPEATS + 3;
        seconds = (median_of(k, work, NULL, few) - median_of(k, flushes, NULL, few)) / REPEATS;
        k->lab->ops->graph_destroy(k->lab->index, flushes);
    }
    k->lab->ops->graph_destroy(k->lab->index, work);
    return seconds;
}

/* ---- the host's part --------------------------------------------------------- */

enum { PLAN_READINGS = 50 };

/* Reading i of a plan's build: whole, where the batch before it was longer; or a step on. */
static bool read_build(cuda_case *k, bool whole, int32_t i, relay_plan *plan, relay_forest *grown, bench_times *times) {
    if (!set_forest(k, whole ? 1 : i + 1, grown)) return false;
    if (whole && relay_plan_build(plan, grown) != RELAY_OK) return false;
    double start = bench_now();
    return relay_plan_build(plan, whole ? k->forest : grown) == RELAY_OK && bench_times_add(times, bench_now() - start);
}

double cuda_case_time_build(cuda_case *k, bool whole) {
    relay_attention attention = attention_of(&k->shape);
    relay_plan *plan = NULL;
    relay_forest *grown = NULL;
    bench_times times = {0};
    /* what a request gets besides lies anywhere in the tables: nobody reads it */
    bool ok = blocks_of(2 * k->shape.user + PLAN_READINGS) <= k->num_blocks &&
              relay_plan_create(k->lab->device, &attention, NULL, &plan) == RELAY_OK &&
              relay_forest_create(k->lab->device, &grown) == RELAY_OK && relay_plan_build(plan, k->forest) == RELAY_OK;
    for (int32_t i = 0; ok && i < PLAN_READINGS; i++) ok = read_build(k, whole, i, plan, grown, &times);
    double median = ok ? bench_times_median(&times) : NAN;
    bench_times_free(&times);
    relay_plan_destroy(plan);
    relay_forest_destroy(grown);
    return median;
}

/* ---- the float64 answer ------------------------------------------------------ */

static int32_t group_of(const cuda_case *k, int32_t r) {
    int32_t group = 0;
    while ((int32_t)((int64_t)k->shape.batch * (group + 1) / k->shape.groups) <= r) group++;
    return group;
}

/* First element of token t of request r in a pool, for one kv head. */
static int64_t element_of(const cuda_case *k, int32_t r, int32_t t, int32_t kv_head) {
    const attention_shape *s = &k->shape;
    int32_t group = group_of(k, r), system = system_tokens(k, group);
    const int32_t *table = k->tables + k->table_at[t >= system ? s->groups + r : group];
    if (t >= system) t -= system;
    return (((int64_t)table[t / BLOCK_SIZE] * BLOCK_SIZE + t % BLOCK_SIZE) * s->kv_heads + kv_head) * s->head_dim;
}

static bool reference(const cuda_case *k, int32_t r, int32_t head, double *out) {
    const attention_shape *s = &k->shape;
    int32_t tokens = system_tokens(k, group_of(k, r)) + user_tokens(k, r), kv_head = head / (s->heads / s->kv_heads), dim = s->head_dim;
    double *p = malloc((size_t)tokens * sizeof *p), top = -INFINITY, sum = 0.0;
    float query[256];
    if (p == NULL) return false;
    for (int32_t d = 0; d < dim; d++) query[d] = load(k, ((int64_t)r * s->heads + head) * dim + d + QUERY_OFFSET);
    for (int32_t t = 0; t < tokens; t++) {
        int64_t at = element_of(k, r, t, kv_head) + KEY_OFFSET;
        double dot = 0.0;
        for (int32_t d = 0; d < dim; d++) dot += (double)query[d] * load(k, at + d);
        p[t] = dot / sqrt(dim);
        if (p[t] > top) top = p[t];
    }
    for (int32_t t = 0; t < tokens; t++) sum += p[t] = exp(p[t] - top);
    for (int32_t d = 0; d < dim; d++) out[d] = 0.0;
    for (int32_t t = 0; t < tokens; t++) {
        int64_t at = element_of(k, r, t, kv_head) + VALUE_OFFSET;
        for (int32_t d = 0; d < dim; d++) out[d] += p[t] / sum * load(k, at + d);
    }
    free(p);
    return true;
}

static float load_output(const cuda_case *k, const uint16_t *output, int64_t i) {
    cuda_case one = *k;
    one.numbers = (char *)(uintptr_t)output;
    one.num_numbers = INT64_MAX;
    return load(&one, i);
}

double cuda_case_error(cuda_case *k, int which) {
    const attention_shape *s = &k->shape;
    size_t bytes = 2 * (size_t)s->batch * (size_t)s->heads * (size_t)s->head_dim;
    uint16_t *output = malloc(bytes);
    double expected[256], wrong = 0.0, norm = 0.0;
    bool ok = output != NULL && said(k, "clearing", k->lab->ops->fill(k->lab->index, k->output, 0xFF, bytes, &k->lab->error)) &&
              run_and_wait(k, which) && cuda_lab_copy_out(k->lab, output, k->output, bytes);
    int32_t rows = SAMPLED_TOKENS / (s->system + s->user);
    rows = rows > MOST_ROWS ? MOST_ROWS : rows < FEWEST_ROWS ? FEWEST_ROWS : rows;
    for (int32_t i = 0; ok && i < rows; i++) {
        int32_t r = (int32_t)((int64_t)i * 7919 % s->batch), head = (int32_t)((int64_t)i * 104729 % s->heads);
        ok = reference(k, r, head, expected);
        for (int32_t d = 0; ok && d < s->head_dim; d++) {
            double got = load_output(k, output, ((int64_t)r * s->heads + head) * s->head_dim + d);
            wrong += (got - expected[d]) * (got - expected[d]);
            norm += expected[d] * expected[d];
        }
    }
    free(output);
    return ok ? sqrt(wrong / norm) : NAN;
}
