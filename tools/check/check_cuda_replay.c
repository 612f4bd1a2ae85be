/* relay check --device cuda: one graph, captured once from a plan with bounds, serves batches of other
 * sizes and lengths.  Every replay must give the bits that a new plan gives, one with the same bounds: these decide how
 * a batch is cut. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check_cuda.h"

enum { VARIANTS = 24, MOST_REQUESTS = 12, MOST_OWN = 300, MOST_PROMPT = 900 };

/* A batch over the tokens of one world. */
typedef struct variant {
    int32_t requests, on_prompt, prompt, query_start[MOST_REQUESTS + 1];
    relay_kv_span own[MOST_REQUESTS];
    relay_segment segment;
    relay_forest_desc desc;
    char *output, *lse; /* what a plan of its own, with the same bounds, computes */
} variant;

typedef struct replay {
    chk *c;
    cuda_lab *lab;
    chk_world host;
    cuda_world world;
    relay_forest *full, *forest;
    relay_plan *plan;
    variant variants[VARIANTS];
    void *stream, *graph;
    char *output, *lse;
} replay;

static chk_case world_case(const chk *c) {
    chk_case k = chk_case_defaults(chk_mix(c->seed, 4242));
    k.attention.num_heads = 8;
    k.attention.num_kv_heads = 1; /* stacked, up to 240 rows: some batches have pairs of tiles */
    k.attention.head_dim = 128;
    k.attention.query_dtype = k.attention.kv_dtype = k.attention.output_dtype = RELAY_BF16;
    chk_add_segment(&k, -1, 0, MOST_REQUESTS, RELAY_KV_PAGED, MOST_PROMPT);
    for (int32_t r = 0; r < MOST_REQUESTS; r++) chk_add_request(&k, 1 + r % 4, RELAY_KV_PAGED, MOST_OWN);
    return k;
}

static bool describe(replay *r, chk_rng *rng, variant *v) {
    v->requests = chk_between(rng, 1, MOST_REQUESTS);
    v->on_prompt = chk_between(rng, 0, v->requests);
    v->prompt = chk_between(rng, 0, 3) ? chk_between(rng, 1, MOST_PROMPT) : 0;
    for (int32_t i = 0; i < v->requests; i++) {
        int32_t rows = 1 + i % 4;
        if (!chk_ok(r->c, "relay_forest_get_own", relay_forest_get_own(r->full, i, &v->own[i]))) return false;
        v->own[i].length = chk_between(rng, rows, MOST_OWN);
        v->query_start[i + 1] = v->query_start[i] + rows;
    }
    if (!chk_ok(r->c, "relay_forest_get_segment", relay_forest_get_segment(r->full, 0, &v->segment))) return false;
    v->segment.num_requests = v->on_prompt;
    v->segment.kv.length = v->prompt;
    v->desc = relay_forest_desc_defaults();
    v->desc.num_requests = v->requests;
    v->desc.query_start_loc = v->query_start;
    v->desc.own = v->own;
    v->desc.num_segments = v->on_prompt > 0;
    v->desc.segments = &v->segment;
    v->desc.block_size = r->host.plain->block_size;
    v->desc.num_blocks = r->host.num_blocks;
    return true;
}

static bool fetch(replay *r, char *output, char *lse) {
    if (cuda_lab_copy_out(r->lab, output, r->world.output, r->host.output.buffer.bytes) &&
        cuda_lab_copy_out(r->lab, lse, r->world.lse, r->host.lse.buffer.bytes))
        return true;
    chk_fail(r->c, "a run: %s", r->lab->error.text);
    return false;
}

static relay_plan_options bounds_of(const replay *r) {
    relay_plan_options options = relay_plan_options_defaults();
    options.strategy = RELAY_STRATEGY_RELAY;
    options.max_requests = MOST_REQUESTS;
    options.max_rows = (int32_t)chk_total_rows(r->host.plain);
    options.max_depth = 1;
    options.max_tokens = MOST_PROMPT + MOST_OWN;
    options.max_blocks = r->host.num_blocks;
    return options;
}

/* The answer by a plan that was made for this batch alone. */
static bool answer(replay *r, variant *v) {
    relay_plan *plan = NULL;
    relay_plan_options options = bounds_of(r);
    relay_run_args args;
    v->output = malloc(r->host.output.buffer.bytes);
    v->lse = malloc(r->host.lse.buffer.bytes);
    bool ok = v->output != NULL && v->lse != NULL &&
              chk_ok(r->c, "relay_forest_set", relay_forest_set(r->forest, &v->desc)) &&
              chk_ok(r->c, "relay_plan_create", relay_plan_create(r->lab->device, &r->host.plain->attention, &options, &plan)) &&
              chk_ok(r->c, "relay_plan_build", relay_plan_build(plan, r->forest)) &&
              cuda_world_args(r->c, &r->world, plan, &args) && cuda_world_reset(r->c, &r->world) &&
              chk_ok(r->c, "relay_run", relay_run(plan, &args)) && fetch(r, v->output, v->lse);
    relay_plan_destroy(plan);
    return ok;
}

static bool set(replay *r, const variant *v) {
    return chk_ok(r->c, "relay_forest_set", relay_forest_set(r->forest, &v->desc)) &&
           chk_ok(r->c, "relay_plan_build", relay_plan_build(r->plan, r->forest));
}

/* Captures whichever batch comes first. */
static bool capture(replay *r) {
    relay_plan_options options = bounds_of(r);
    relay_run_args args;
    if (!chk_ok(r->c, "relay_plan_create",
                relay_plan_create(r->lab->device, &r->host.plain->attention, &options, &r->plan)) ||
        !set(r, &r->variants[0]) || !cuda_world_args(r->c, &r->world, r->plan, &args))
        return false;
    const relayi_cuda_ops *ops = r->lab->ops;
    bool ok = ops->stream_create(r->lab->index, &r->stream, &r->lab->error) == RELAY_OK;
    args.stream = r->stream;
    /* once outside: kernels are loaded at their first launch, which a capture must not see */
    ok = ok && chk_ok(r->c, "relay_run", relay_run(r->plan, &args));
    ok = ok && ops->stream_wait(r->lab->index, r->stream, &r->lab->error) == RELAY_OK;
    ok = ok && ops->capture_begin(r->lab->index, r->stream, &r->lab->error) == RELAY_OK;
    ok = ok && chk_ok(r->c, "relay_run, captured", relay_run(r->plan, &args));
    ok = ok && ops->capture_end(r->lab->index, r->stream, &r->graph, &r->lab->error) == RELAY_OK;
    if (!ok) chk_fail(r->c, "capturing: %s", r->lab->error.text);
    return ok;
}

static bool play(replay *r, int32_t number, int32_t which) {
    const relayi_cuda_ops *ops = r->lab->ops;
    const variant *v = &r->variants[which];
    if (!set(r, v) || !cuda_world_reset(r->c, &r->world)) return false;
    if (ops->graph_launch(r->lab->index, r->graph, r->stream, &r->lab->error) != RELAY_OK ||
        ops->stream_wait(r->lab->index, r->stream, &r->lab->error) != RELAY_OK) {
        chk_fail(r->c, "replay %d: %s", number, r->lab->error.text);
        return false;
    }
    if (!fetch(r, r->output, r->lse)) return false;
    if (memcmp(r->output, v->output, r->host.output.buffer.bytes) == 0 &&
        memcmp(r->lse, v->lse, r->host.lse.buffer.bytes) == 0)
        return true;
    chk_fail(r->c, "replay %d, batch %d: other bits than a plan of its own", number, which);
    return false;
}

static bool prepare(replay *r, chk_rng *rng) {
    bool ok = cuda_world_make(r->c, r->lab, &r->host, &r->world) && chk_world_forest(r->c, &r->host, &r->full) &&
              chk_ok(r->c, "relay_forest_create", relay_forest_create(r->lab->device, &r->forest));
    r->output = malloc(r->host.output.buffer.bytes);
    r->lse = malloc(r->host.lse.buffer.bytes);
    ok = ok && r->output != NULL && r->lse != NULL;
    for (int i = 0; ok && i < VARIANTS; i++) ok = describe(r, rng, &r->variants[i]) && answer(r, &r->variants[i]);
    return ok && capture(r);
}

static void clean(replay *r) {
    r->lab->ops->graph_destroy(r->lab->index, r->graph);
    r->lab->ops->stream_destroy(r->lab->index, r->stream);
    relay_plan_destroy(r->plan);
    relay_forest_destroy(r->forest);
    relay_forest_destroy(r->full);
    for (int i = 0; i < VARIANTS; i++) {
        free(r->variants[i].output);
        free(r->variants[i].lse);
    }
    free(r->output);
    free(r->lse);
    cuda_world_free(&r->world);
    chk_world_free(&r->host);
}

void cuda_check_replays(chk *c, cuda_lab *lab, int32_t replays) {
    static replay r;
    if (!chk_begin(c, "graph replays: %d", (int)replays)) return;
    r = (replay){.c = c, .lab = lab};
    chk_case k = world_case(c);
    chk_rng rng = chk_rng_at(chk_mix(c->seed, 4243), 0);
    if (chk_world_make(c, &k, &r.host) && prepare(&r, &rng))
        for (int32_t i = 0; i < replays && play(&r, i, chk_between(&rng, 0, VARIANTS - 1)); i++) continue;
    clean(&r);
    chk_end(c);
}
