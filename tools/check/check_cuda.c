/* relay check --device cuda: whole problems, and what must hold bit by bit. */
#include "check_cuda.h"

#include <stdio.h>
#include <string.h>

static const relay_dtype halves[] = {RELAY_BF16, RELAY_F16};
static const int32_t head_dims[] = {64, 128, 128, 128, 96, 192, 256, 80, 112, 8, 40};
static const int32_t groups[][2] = {{4, 1}, {8, 2}, {2, 2}, {8, 1}, {7, 1}, {6, 2}, {16, 1}, {1, 1}, {5, 1}, {20, 1}};

static uint64_t case_seed(const chk *c, const char *group, int64_t index) {
    uint64_t hash = c->seed;
    for (const char *at = group; *at != '\0'; at++) hash = chk_mix(hash, (uint64_t)*at);
    return chk_mix(hash, (uint64_t)index);
}

/* ---- running a case -------------------------------------------------------- */

enum { MOST_KERNELS = 8 };

/* How many cases each kernel has computed. */
static struct tally {
    const char *kernel;
    int32_t cases;
} tallies[MOST_KERNELS];

static void count_kernel(const relay_plan *plan) {
    relay_plan_info info = {.struct_size = sizeof info};
    if (relay_plan_get_info(plan, &info) != RELAY_OK || info.num_rows == 0) return;
    for (int i = 0; i < MOST_KERNELS; i++) {
        if (tallies[i].kernel != NULL && strcmp(tallies[i].kernel, info.kernel) != 0) continue;
        tallies[i].kernel = info.kernel;
        tallies[i].cases++;
        return;
    }
}

static void show_kernels(void) {
    for (int i = 0; i < MOST_KERNELS && tallies[i].kernel != NULL; i++)
        printf("%s: %d cases\n", tallies[i].kernel, (int)tallies[i].cases);
}

static bool make_plan(chk *c, const chk_world *world, relay_forest **forest, relay_plan **plan) {
    const chk_case *k = world->plain;
    relay_plan_options options = relay_plan_options_defaults();
    options.strategy = k->strategy;
    options.repeatable = k->repeatable;
    return chk_world_forest(c, world, forest) &&
           chk_ok(c, "relay_plan_create", relay_plan_create(world->device, &k->attention, &options, plan)) &&
           chk_ok(c, "relay_plan_build", relay_plan_build(*plan, *forest));
}

static void check_plan(chk *c, cuda_world *world, const relay_plan *plan) {
    const relay_attention *a = &world->host->plain->attention;
    chk_result got = {0}, again = {0}, want = {0};
    count_kernel(plan);
    chk_tolerance allowed = cuda_tolerance(a->kv_dtype, a->output_dtype);
    if (a->output_dtype == RELAY_BF16) allowed.size = world->host->plain->value_size;
    if (cuda_world_run(c, world, plan, false, &got) && chk_world_expect(c, world->host, &want))
        chk_compare(c, &want, &got, allowed);
    /* the second run finds its plan in the workspace, and must give the same bits */
    if (!c->bad && cuda_world_run(c, world, plan, true, &again)) chk_compare_bits(c, "the second run", &got, &again);
    chk_result_free(&got);
    chk_result_free(&again);
    chk_result_free(&want);
}

static void check_case(chk *c, cuda_lab *lab, const char *group, const chk_case *k) {
    char text[400];
    if (!chk_begin(c, "%s: %s", group, chk_case_text(k, text, sizeof text))) return;
    static chk_world host;
    static cuda_world world;
    relay_forest *forest = NULL;
    relay_plan *plan = NULL;
    world = (cuda_world){0};
    if (chk_world_make(c, k, &host) && cuda_world_make(c, lab, &host, &world) && make_plan(c, &host, &forest, &plan))
        check_plan(c, &world, plan);
    relay_plan_destroy(plan);
    relay_forest_destroy(forest);
    cuda_world_free(&world);
    chk_world_free(&host);
    chk_end(c);
}

/* ---- drawing cases --------------------------------------------------------- */

static relay_kv_layout draw_layout(chk_rng *rng) {
    return chk_chance(rng, 75) ? RELAY_KV_PAGED : RELAY_KV_CONTIGUOUS;
}

static int32_t draw_length(chk_rng *rng, int32_t most) {
    static const int32_t awkward[] = {0, 1, 2, 15, 16, 17, 31, 61, 63, 64, 65, 97, 127, 128, 129, 193, 251, 257, 509};
    int32_t length = chk_chance(rng, 50) ? CHK_PICK(rng, awkward) : chk_between(rng, 0, most);
    return length < most ? length : most;
}

static void draw_segments(chk_rng *rng, chk_case *k, int32_t parent, int32_t first, int32_t last, int32_t depth) {
    while (first < last && k->num_segments < CHK_MAX_SEGMENTS) {
        int32_t count = chk_between(rng, 1, last - first);
        if (chk_chance(rng, depth == 0 ? 85 : 50)) {
            int32_t made = chk_add_segment(k, parent, first, count, draw_layout(rng), draw_length(rng, depth ? 150 : 1400));
            if (depth < 3) draw_segments(rng, k, made, first, first + count, depth + 1);
        }
        first += count;
    }
}

static void draw_attention(chk_rng *rng, relay_attention *a, int64_t index) {
    const int32_t *heads = groups[index / 3 % 10];
    int32_t few = 1 + (int32_t)(index % 3), which = chk_between(rng, 0, 31) & chk_between(rng, 0, 31);
    a->num_kv_heads = heads[1] * few;
    a->num_heads = heads[0] * few;
    a->head_dim = head_dims[index % 11];
    a->query_dtype = a->kv_dtype = CHK_PICK(rng, halves);
    a->output_dtype = chk_chance(rng, 85) ? a->kv_dtype : CHK_PICK(rng, halves);
    if (which & 1) a->logit_soft_cap = (float)chk_uniform(rng, 0.5, 50);
    if (which & 2) a->sliding_window = 1 + draw_length(rng, 600);
    if (which & 4) a->num_sink_tokens = 1 + draw_length(rng, 90);
    a->use_alibi = which & 8 ? 1 : 0;
    a->use_sinks = which & 16 ? 1 : 0;
    if (chk_chance(rng, 20)) a->softmax_scale = (float)chk_uniform(rng, 0.01, 0.3);
}

static chk_case draw_case(const chk *c, int64_t index, int32_t requests) {
    chk_case k = chk_case_defaults(case_seed(c, "cuda run", index));
    chk_rng rng = chk_rng_at(k.seed, 1);
    static const int32_t block_sizes[] = {16, 16, 32, 48, 128};
    draw_attention(&rng, &k.attention, index);
    int32_t most_rows = chk_chance(&rng, 50) ? 1 : chk_chance(&rng, 50) ? 8 : 150;
    for (int32_t r = 0; r < requests; r++) {
        int32_t rows = chk_chance(&rng, 6) ? 0 : chk_chance(&rng, 70) ? 1 : chk_between(&rng, 1, most_rows);
        int32_t more = chk_chance(&rng, 20) ? 0 : draw_length(&rng, requests > 16 ? 60 : 600);
        chk_add_request(&k, rows, requests > 24 ? RELAY_KV_PAGED : draw_layout(&rng), rows + more);
    }
    draw_segments(&rng, &k, -1, 0, requests, 0);
    k.ordered = chk_chance(&rng, 40);
    if (k.ordered) chk_shuffle(&rng, k.order, requests);
    k.kind = chk_chance(&rng, 50) ? CHK_UNIFORM : (chk_kind)chk_between(&rng, 0, CHK_NUM_KINDS - 1);
    k.strategy = (relay_strategy)chk_between(&rng, 0, 2);
    k.repeatable = chk_chance(&rng, 25);
    k.block_size = CHK_PICK(&rng, block_sizes);
    k.spare_rows = chk_between(&rng, 0, 2);
    k.query_form = (chk_form)chk_between(&rng, 0, CHK_NUM_FORMS - 1);
    k.key_form = k.value_form = chk_chance(&rng, 50) ? CHK_DENSE : CHK_HEADS_FIRST;
    k.output_form = (chk_form)chk_between(&rng, 0, CHK_NUM_FORMS - 1);
    k.lse = (chk_lse)chk_between(&rng, 0, CHK_NUM_LSE - 1);
    return k;
}

/* One prompt, B requests of one row: what serving is made of; then all else at random. */
static void check_batches(chk *c, cuda_lab *lab) {
    static const int32_t batches[] = {1, 2, 3, 8, 17, 32, 61, 128, 512};
    for (int64_t index = 0; index < (c->quick ? 9 : 36); index++) {
        chk_case k = chk_case_defaults(case_seed(c, "cuda batch", index));
        int32_t batch = batches[index % 9];
        chk_add_segment(&k, -1, 0, batch, RELAY_KV_PAGED, 997 + (int32_t)index * 64);
        for (int32_t r = 0; r < batch; r++) chk_add_request(&k, 1, RELAY_KV_PAGED, 1 + r * 13 % 197);
        k.attention.num_heads = 8;
        k.attention.num_kv_heads = index % 2 ? 2 : 8;
        k.attention.head_dim = index / 9 % 2 ? 64 : 128;
        k.attention.query_dtype = k.attention.kv_dtype = k.attention.output_dtype = halves[index / 2 % 2];
        k.strategy = (relay_strategy)(index % 3);
        check_case(c, lab, "batch", &k);
    }
}

/* Steps of decoding and of short drafts, as the Hopper kernel takes them: tiles of prompts of one to
 * hundreds of rows, ends at every place of a tile, pages and contiguous memory, empty parts. */
static chk_case draw_step(const chk *c, int64_t index) {
    static const int32_t batches[] = {1, 3, 9, 17, 33, 64, 100, 130}, block_sizes[] = {16, 32, 48, 128};
    chk_case k = chk_case_defaults(case_seed(c, "cuda step", index));
    chk_rng rng = chk_rng_at(k.seed, 2);
    int32_t requests = batches[index % 8], most_rows = index / 8 % 3 == 2 ? 8 : 1;
    k.attention.num_kv_heads = chk_between(&rng, 1, 3);
    k.attention.num_heads = k.attention.num_kv_heads * chk_between(&rng, 1, 8);
    k.attention.head_dim = index / 2 % 2 ? 64 : 128;
    k.attention.query_dtype = k.attention.kv_dtype = k.attention.output_dtype = halves[index % 2];
    k.attention.use_sinks = chk_chance(&rng, 25);
    relay_kv_layout prompt = chk_chance(&rng, 30) ? RELAY_KV_CONTIGUOUS : RELAY_KV_PAGED;
    for (int32_t r = 0; r < requests; r++) {
        int32_t rows = chk_chance(&rng, 5) ? 0 : chk_between(&rng, 1, most_rows);
        chk_add_request(&k, rows, requests == 1 ? draw_layout(&rng) : RELAY_KV_PAGED, rows + draw_length(&rng, 300));
    }
    int32_t split = chk_chance(&rng, 40) ? chk_between(&rng, 1, requests) : requests;
    chk_add_segment(&k, -1, 0, split, prompt, chk_between(&rng, 0, 1500));
    if (split < requests) chk_add_segment(&k, -1, split, requests - split, RELAY_KV_PAGED, draw_length(&rng, 700));
    if (chk_chance(&rng, 30)) chk_add_segment(&k, 0, 0, chk_between(&rng, 1, split), RELAY_KV_PAGED, draw_length(&rng, 200));
    k.ordered = chk_chance(&rng, 30);
    if (k.ordered) chk_shuffle(&rng, k.order, requests);
    k.kind = chk_chance(&rng, 50) ? CHK_UNIFORM : (chk_kind)chk_between(&rng, 0, CHK_NUM_KINDS - 1);
    k.strategy = (relay_strategy)(index % 5 % 3);
    k.block_size = CHK_PICK(&rng, block_sizes);
    k.spare_rows = chk_between(&rng, 0, 2);
    k.lse = (chk_lse)chk_between(&rng, 0, CHK_NUM_LSE - 1);
    return k;
}

static void check_steps(chk *c, cuda_lab *lab) {
    for (int32_t index = 0; index < (c->quick ? 24 : 120); index++) {
        chk_case k = draw_step(c, index);
        char group[32];
        snprintf(group, sizeof group, "step %d", index);
        check_case(c, lab, group, &k);
    }
}

/* Values of any size that their type has, also beside infinite ones: whatever outputs are kept in on their way must
 * neither overflow nor lose them.  Prompts of up to 64 stacked rows and of more; few rows, which are merged inside the
 * Hopper kernel, and many, which are not.  Outputs of small f16 values are bf16, which has numbers as small. */
static void check_sizes(chk *c, cuda_lab *lab) {
    static const struct { relay_dtype dtype; double size; } sizes[] = {
        {RELAY_BF16, 1e-30}, {RELAY_BF16, 1e-20}, {RELAY_BF16, 1e-6}, {RELAY_BF16, 1e6}, {RELAY_BF16, 1e30},
        {RELAY_F16, 1e-4}, {RELAY_F16, 3e4}};
    static const int32_t batches[] = {5, 40, 300};
    for (int64_t index = 0; index < 84; index++) {
        chk_case k = chk_case_defaults(case_seed(c, "cuda values", index));
        int32_t batch = batches[index / 7 % 3];
        if (c->quick && batch == 300 && index % 7 % 3 != 1) continue;
        k.value_size = sizes[index % 7].size;
        k.attention.query_dtype = k.attention.kv_dtype = k.attention.output_dtype = sizes[index % 7].dtype;
        if (k.value_size < 1) k.attention.output_dtype = RELAY_BF16;
        k.attention.head_dim = index / 21 % 2 ? 64 : 128;
        k.attention.num_heads = 8;
        k.attention.num_kv_heads = 2;
        k.kind = index / 42 ? CHK_INF_VALUES : CHK_UNIFORM;
        k.strategy = RELAY_STRATEGY_RELAY;
        chk_add_segment(&k, -1, 0, batch, RELAY_KV_PAGED, (batch == 300 ? 100 : 700) + (int32_t)index);
        for (int32_t r = 0; r < batch; r++) chk_add_request(&k, 1, RELAY_KV_PAGED, 1 + r * 13 % 61);
        check_case(c, lab, "values", &k);
    }
}

/* So much of a prompt that a block of the Hopper kernel takes many of its tiles in one unit, of few rows and of many,
 * beside few and many tokens of the requests' own: each way of dividing its memory.  Then long requests that are cut into
 * more parts than a warp merges at once: one row a block, which all warps merge, and more rows. */
static void check_long_units(chk *c, cuda_lab *lab) {
    static const struct { int32_t heads, kv_heads, head_dim, batch, prompt, own; } shapes[] = {
        {16, 16, 128, 17, 4300, 40}, {16, 16, 128, 17, 4300, 700}, {16, 16, 128, 130, 4300, 40}, {16, 16, 128, 130, 4300, 200},
        {8, 1, 128, 1, 0, 20000}, {8, 1, 128, 25, 0, 3000}, {4, 1, 64, 3, 0, 17000}, {7, 1, 64, 40, 0, 2000}};
    for (int64_t index = 0; index < (int64_t)(sizeof shapes / sizeof *shapes); index++) {
        chk_case k = chk_case_defaults(case_seed(c, "cuda long", index));
        k.attention.num_heads = shapes[index].heads;
        k.attention.num_kv_heads = shapes[index].kv_heads;
        k.attention.head_dim = shapes[index].head_dim;
        k.attention.query_dtype = k.attention.kv_dtype = k.attention.output_dtype = halves[index % 2];
        k.strategy = RELAY_STRATEGY_RELAY;
        if (shapes[index].prompt > 0) chk_add_segment(&k, -1, 0, shapes[index].batch, RELAY_KV_PAGED, shapes[index].prompt);
        for (int32_t r = 0; r < shapes[index].batch; r++) chk_add_request(&k, 1, RELAY_KV_PAGED, shapes[index].own + r % 7);
        check_case(c, lab, "long units", &k);
    }
}

static void check_random(chk *c, cuda_lab *lab) {
    static const int32_t most[] = {1, 4, 9, 16, 24, 9, 4, 90};
    for (int32_t index = 0; index < c->random_cases; index++) {
        chk_rng rng = chk_rng_at(case_seed(c, "cuda size", index), 0);
        chk_case k = draw_case(c, index, chk_chance(&rng, 3) ? 0 : chk_between(&rng, 1, most[index % 8]));
        char group[32];
        snprintf(group, sizeof group, "cuda run %d", index);
        check_case(c, lab, group, &k);
    }
}

void cuda_check_runs(chk *c, cuda_lab *lab) {
    check_batches(c, lab);
    check_steps(c, lab);
    check_sizes(c, lab);
    check_long_units(c, lab);
    check_random(c, lab);
}

/* ---- repeatable: bit by bit whatever else is in the batch ------------------- */

/* Keeps request `r` of a case, and what it stands on, alone. */
static chk_case only_request(const chk_case *k, int32_t r) {
    chk_case one = *k;
    int32_t position = 0, kept = 0, number[CHK_MAX_SEGMENTS];
    while (chk_request_at(k, position) != r) position++;
    for (int32_t s = 0; s < k->num_segments; s++) {
        const chk_segment *segment = &k->segments[s];
        if (position < segment->first || position >= segment->first + segment->count) continue;
        number[s] = kept;
        one.segments[kept] = *segment;
        one.segments[kept].parent = segment->parent < 0 ? -1 : number[segment->parent];
        one.segments[kept].first = 0;
        one.segments[kept++].count = 1;
    }
    one.num_segments = kept;
    one.requests[0] = k->requests[r];
    one.num_requests = 1;
    one.ordered = false;
    return one;
}

static bool compute(chk *c, cuda_lab *lab, const chk_case *k, chk_result *got) {
    static chk_world host;
    static cuda_world world;
    relay_forest *forest = NULL;
    relay_plan *plan = NULL;
    world = (cuda_world){0};
    bool ok = chk_world_make(c, k, &host) && cuda_world_make(c, lab, &host, &world) &&
              make_plan(c, &host, &forest, &plan) && cuda_world_run(c, &world, plan, false, got);
    relay_plan_destroy(plan);
    relay_forest_destroy(forest);
    cuda_world_free(&world);
    chk_world_free(&host);
    return ok;
}

static void check_alone(chk *c, cuda_lab *lab, const chk_case *k, int32_t r) {
    chk_case one = only_request(k, r);
    chk_result all = {0}, alone = {0};
    int64_t before = 0;
    for (int32_t i = 0; i < r; i++) before += k->requests[i].rows;
    if (compute(c, lab, k, &all) && compute(c, lab, &one, &alone)) {
        chk_result part = all;
        part.rows = alone.rows;
        part.out += before * all.heads * all.dim;
        if (part.lse != NULL) part.lse += before * all.heads;
        chk_compare_bits(c, "beside other requests", &alone, &part);
    }
    chk_result_free(&all);
    chk_result_free(&alone);
}

void cuda_check_laws(chk *c, cuda_lab *lab) {
    for (int64_t index = 0; index < (c->quick ? 8 : 40); index++) {
        chk_case k = draw_case(c, 1000000 + index, 2 + (int32_t)(index % 11));
        char text[400];
        k.repeatable = 1;
        k.spare_rows = 0;
        if (k.kind == CHK_NAN) k.kind = CHK_UNIFORM;
        if (!chk_begin(c, "repeatable %d: %s", (int)index, chk_case_text(&k, text, sizeof text))) continue;
        check_alone(c, lab, &k, (int32_t)(index % k.num_requests));
        chk_end(c);
    }
}

/* ---- the whole -------------------------------------------------------------- */

static void keep_log(void *user, relay_log_level level, const char *message) {
    chk *c = user;
    if (level == RELAY_LOG_ERROR) snprintf(c->log, sizeof c->log, "%s", message);
}

bool chk_cuda(chk *c, int32_t index, int32_t replays) {
    cuda_lab lab;
    if (!cuda_lab_open(&lab, index, keep_log, c)) {
        fprintf(stderr, "relay check: cannot open CUDA device %d: %s\n", index, c->log);
        return false;
    }
    relay_device_info info = {.struct_size = sizeof info};
    if (relay_device_get_info(lab.device, &info) == RELAY_OK)
        printf("relay %s, %s (%s), seed %llu\n", relay_version(), info.name, info.features, (unsigned long long)c->seed);
    fflush(stdout);
    for (int32_t i = 1; i <= CHK_MAX_THREADS; i++) c->device[i] = lab.device;
    cuda_check_operations(c, &lab);
    cuda_check_errors(c, &lab);
    cuda_check_runs(c, &lab);
    cuda_check_laws(c, &lab);
    cuda_check_replays(c, &lab, replays);
    show_kernels();
    for (int32_t i = 1; i <= CHK_MAX_THREADS; i++) c->device[i] = NULL;
    cuda_lab_close(&lab);
    return true;
}
