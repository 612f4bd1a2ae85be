#include "generate_case.h"

#include <stdio.h>
#include <stdlib.h>

static bool say(const eng_error *err) {
    fprintf(stderr, "relay bench generate: %s\n", err->text);
    return false;
}

static void print_log(void *user, relay_log_level level, const char *message) {
    (void)user;
    if (level <= RELAY_LOG_WARN) fprintf(stderr, "relay bench generate: %s\n", message);
}

/* Pages for every request at once, and one to spare for each. */
static uint64_t pool_bytes(const generate_shape *s, const eng_kv_shape *kv) {
    uint64_t pages = ((uint64_t)s->user + (uint64_t)s->max_tokens) / ENG_PAGE_TOKENS + 2;
    return pages * (uint64_t)s->batch * ENG_PAGE_TOKENS * eng_kv_token_bytes(kv);
}

/* The pool is sized before the engine knows its model: by the largest K/V that a shape here can have. */
static eng_engine_options engine_options(const generate_shape *s) {
    const eng_kv_shape largest = {.layers = 16, .kv_heads = 8, .head_dim = 64, .dtype = RELAY_F32};
    eng_engine_options options = eng_engine_options_defaults();
    options.random_shape = s->model;
    options.threads = s->threads;
    options.compute = s->compute;
    options.kv_dtype = s->kv_dtype;
    options.kv_bytes = pool_bytes(s, &largest);
    options.max_batch = s->batch;
    options.step_rows = s->step_rows;
    options.strategy = RELAY_STRATEGY_RELAY;
    options.ignore_eos = true;
    options.log = print_log;
    return options;
}

/* Prompt 0, then copies: they differ in their first token, so that the engine takes them for others. */
static bool add_prompts(generate_case *c) {
    eng_error err = {""};
    for (int32_t i = 0; i <= c->copies; i++) {
        c->tokens[0] = i;
        if (!eng_engine_add_prompt_tokens(c->engine, c->tokens, c->shape.system, &err)) return say(&err);
    }
    return eng_engine_start(c->engine, &err) || say(&err);
}

/* Any tokens do; these are below the vocabulary of every shape. */
static bool make_tokens(generate_case *c) {
    const int32_t count = c->shape.system + c->shape.user;
    c->tokens = malloc((size_t)count * sizeof *c->tokens);
    if (c->tokens == NULL) return false;
    for (int32_t i = 0; i < count; i++) c->tokens[i] = (int32_t)((uint32_t)i * 2654435761u >> 22);
    return true;
}

bool generate_case_open(generate_case *c, const generate_shape *shape, int32_t copies) {
    eng_error err = {"out of memory"};
    *c = (generate_case){.shape = *shape, .copies = copies};
    const eng_engine_options options = engine_options(shape);
    bool ok = (make_tokens(c) && eng_engine_open(&options, &c->engine, &err)) || say(&err);
    ok = ok && add_prompts(c);
    if (!ok) generate_case_close(c);
    return ok;
}

void generate_case_close(generate_case *c) {
    eng_engine_close(c->engine);
    free(c->tokens);
    *c = (generate_case){0};
}

bool generate_case_prefill(generate_case *c, generate_prefill *prefill) {
    eng_error err = {""};
    double begun = bench_now();
    if (!eng_engine_prepare(c->engine, 0, &err)) return say(&err);
    prefill->seconds = bench_now() - begun;
    eng_engine_stats stats = eng_engine_get_stats(c->engine);
    prefill->attention_seconds = stats.attention.seconds;
    prefill->linear_seconds = eng_model_linear_seconds(eng_engine_model(c->engine));
    prefill->steps = (int32_t)stats.scheduler.steps;
    return true;
}

bool generate_case_copy(generate_case *c) {
    eng_error err = {""};
    for (int32_t i = 1; i <= c->copies; i++)
        if (!eng_engine_copy_prompt(c->engine, 0, i, &err)) return say(&err);
    return true;
}

/* ---- a batch -------------------------------------------------------------- */

static bool submit(generate_case *c, generate_method method) {
    eng_error err = {""};
    const int32_t system = c->shape.system;
    for (int32_t i = 0; i < c->shape.batch; i++) {
        eng_answer *ignored;
        eng_submission s = {.prompt = method == GENERATE_PRIVATE ? i + 1 : 0, .tokens = c->tokens,
                            .num_tokens = system + c->shape.user, .max_tokens = c->shape.max_tokens,
                            .sampling = eng_sampling_defaults(), .stream = (uint64_t)i};
        c->tokens[0] = s.prompt;
        c->tokens[system] = i % 1024; /* each request's own text begins with another token */
        if (!eng_engine_submit(c->engine, &s, &ignored, &err)) return say(&err);
    }
    return true;
}

typedef struct reading {
    eng_engine_stats stats;
    double linear, at;
} reading;

static reading read_now(const generate_case *c) {
    reading r = {.stats = eng_engine_get_stats(c->engine),
                 .linear = eng_model_linear_seconds(eng_engine_model(c->engine))};
    r.at = bench_now();
    return r;
}

static bool is_decode(const generate_case *c, const reading *before, const reading *after) {
    return after->stats.scheduler.rows - before->stats.scheduler.rows == c->shape.batch &&
           after->stats.scheduler.prefill_rows == before->stats.scheduler.prefill_rows;
}

static bool add_reading(generate_times *times, const reading *before, const reading *after) {
    double step = after->at - before->at, linear = after->linear - before->linear;
    double attention = after->stats.attention.seconds - before->stats.attention.seconds;
    times->relay_steps += after->stats.attention.relay_steps - before->stats.attention.relay_steps;
    return bench_times_add(&times->parts[PART_STEP], step) && bench_times_add(&times->parts[PART_LINEAR], linear) &&
           bench_times_add(&times->parts[PART_ATTENTION], attention) &&
           bench_times_add(&times->parts[PART_OTHER], step - linear - attention);
}

/* Own tokens that a request has in the step that computes its answer's next token, the mean over requests. */
static double count_own(const generate_case *c, int64_t answer_tokens) {
    return c->shape.user + (double)answer_tokens / c->shape.batch;
}

static bool poll_answers(generate_case *c) {
    eng_answer *a;
    while ((a = eng_engine_poll(c->engine)) != NULL) {
        bool failed = a->request.finish == ENG_FINISH_ERROR;
        if (failed) say(&a->request.error);
        eng_engine_free_answer(c->engine, a);
        if (failed) return false;
    }
    return true;
}

static bool step_timed(generate_case *c, int64_t answered, generate_times *times) {
    eng_error err = {""};
    const reading before = read_now(c);
    if (!eng_engine_step(c->engine, &err)) return say(&err);
    const reading after = read_now(c);
    if (!is_decode(c, &before, &after)) return true;
    double n = times->parts[PART_STEP].count, own = count_own(c, before.stats.scheduler.answer_tokens - answered);
    times->own_tokens = (times->own_tokens * n + own) / (n + 1);
    return add_reading(times, &before, &after);
}

bool generate_case_run(generate_case *c, generate_method method, generate_times *times) {
    eng_error err = {""};
    relay_strategy strategy = method == GENERATE_PLAIN ? RELAY_STRATEGY_PLAIN : RELAY_STRATEGY_RELAY;
    if (!eng_engine_set_strategy(c->engine, strategy, &err)) return say(&err);
    const int64_t answered = eng_engine_get_stats(c->engine).scheduler.answer_tokens;
    bool ok = submit(c, method);
    while (ok && eng_engine_busy(c->engine)) ok = step_timed(c, answered, times);
    if (!ok) eng_engine_drop(c->engine, true);
    return poll_answers(c) && ok;
}

void generate_times_free(generate_times *times) {
    for (int part = 0; part < NUM_PARTS; part++) bench_times_free(&times->parts[part]);
    *times = (generate_times){0};
}
