/* Serving with a small random model: many requests through few pages, whatever runs short. */
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine.h"
#include "test.h"

enum { SYSTEM = 64, MAX_ANSWERS = 16, MAX_TOKENS = 64 };

static uint64_t page_bytes(void) {
    const eng_kv_shape tiny = {.layers = 2, .kv_heads = 2, .head_dim = 64, .dtype = RELAY_F32};
    return ENG_PAGE_TOKENS * eng_kv_token_bytes(&tiny);
}

static eng_engine_options options_for(uint64_t pages, int32_t batch) {
    eng_engine_options options = eng_engine_options_defaults();
    options.random_shape = "tiny";
    options.compute = ENG_COMPUTE_F32;
    options.kv_bytes = pages * page_bytes();
    options.max_batch = batch;
    options.threads = 2;
    options.ignore_eos = true;
    options.repeatable = true;
    return options;
}

static void fill_tokens(int32_t *tokens, int32_t count, int32_t seed) {
    for (int32_t i = 0; i < count; i++) tokens[i] = (int32_t)(((uint32_t)seed * 7919u + (uint32_t)i * 104729u) % 1024u);
}

static eng_engine *open_engine(const eng_engine_options *options, int32_t prompts) {
    eng_engine *engine;
    eng_error err;
    bool ok = eng_engine_open(options, &engine, &err);
    for (int32_t p = 0; ok && p < prompts; p++) {
        int32_t tokens[SYSTEM];
        fill_tokens(tokens, SYSTEM, 1000 + p);
        ok = eng_engine_add_prompt_tokens(engine, tokens, SYSTEM, &err);
    }
    ok = ok && eng_engine_start(engine, &err);
    CHECK_MSG(ok, "%s", err.text);
    if (!ok) exit(test_result());
    return engine;
}

/* A request of `own` tokens behind a system prompt, or behind none. */
static bool submit(eng_engine *engine, int32_t prompt, int32_t seed, int32_t own, int32_t answer, float temperature) {
    int32_t tokens[SYSTEM + 2048];
    int32_t first = prompt >= 0 ? SYSTEM : 0;
    if (prompt >= 0) fill_tokens(tokens, SYSTEM, 1000 + prompt);
    fill_tokens(tokens + first, own, seed);
    eng_sampling sampling = eng_sampling_defaults();
    sampling.temperature = temperature;
    const eng_submission submission = {.prompt = prompt, .tokens = tokens, .num_tokens = first + own, .max_tokens = answer,
                                       .sampling = sampling, .stream = (uint64_t)seed,
                                       .user = (void *)(intptr_t)seed};
    eng_answer *out;
    eng_error err = {""};
    bool ok = eng_engine_submit(engine, &submission, &out, &err);
    CHECK_MSG(ok, "%s", err.text);
    return ok;
}

typedef struct answers {
    int32_t tokens[MAX_ANSWERS][MAX_TOKENS], counts[MAX_ANSWERS];
    eng_finish finish[MAX_ANSWERS];
    char error[MAX_ANSWERS][256];
    int32_t shared[MAX_ANSWERS];
    int done;
} answers;

static void take_finished(eng_engine *engine, answers *into) {
    eng_answer *a;
    while ((a = eng_engine_poll(engine)) != NULL) {
        int32_t i = (int32_t)(intptr_t)a->user;
        const eng_request *r = &a->request;
        into->counts[i] = eng_request_answer_tokens(r);
        into->finish[i] = r->finish;
        into->shared[i] = r->path.tokens;
        snprintf(into->error[i], sizeof into->error[i], "%.200s", r->error.text);
        memcpy(into->tokens[i], r->tokens.ids + r->prompt_tokens, (size_t)into->counts[i] * sizeof(int32_t));
        into->done++;
        eng_engine_free_answer(engine, a);
    }
}

/* A bound on the steps stands for "never": a run that needs more has stopped getting on. */
static void run_all(eng_engine *engine, answers *into, int most_steps) {
    eng_error err = {""};
    take_finished(engine, into);
    for (int step = 0; eng_engine_busy(engine) && step < most_steps; step++) {
        bool ok = eng_engine_step(engine, &err);
        CHECK_MSG(ok, "%s", err.text);
        if (!ok) return;
        take_finished(engine, into);
    }
    CHECK_MSG(!eng_engine_busy(engine), "still busy after %d steps", most_steps);
}

static bool same_answers(const answers *a, const answers *b, int32_t count) {
    bool same = a->done == b->done;
    for (int32_t i = 0; i < count; i++)
        same = same && a->counts[i] == b->counts[i] &&
               memcmp(a->tokens[i], b->tokens[i], (size_t)a->counts[i] * sizeof(int32_t)) == 0;
    return same;
}

/* ---- preemption --------------------------------------------------------- */

enum { GROWING = 12, ANSWER = 40 };

static eng_scheduler_stats run_growing(const eng_engine_options *options, answers *into, float temperature) {
    eng_engine *engine = open_engine(options, 2);
    for (int32_t i = 0; i < GROWING; i++) submit(engine, i % 3 - 1, i, 3 + i, ANSWER, temperature);
    run_all(engine, into, 5000);
    eng_scheduler_stats stats = eng_engine_get_stats(engine).scheduler;
    eng_engine_stats all = eng_engine_get_stats(engine);
    CHECK_MSG(all.prompts.tokens_computed == 2 * SYSTEM, "%" PRId64 " system tokens computed", all.prompts.tokens_computed);
    eng_engine_close(engine);
    return stats;
}

static void test_preemption(void) {
    for (int drawn = 0; drawn < 2; drawn++) {
        float temperature = drawn ? 1.0f : 0.0f;
        answers wide = {.done = 0}, narrow = {.done = 0}, single = {.done = 0};
        eng_engine_options large = options_for(200, GROWING), small = options_for(10, GROWING), one = options_for(200, 1);
        eng_scheduler_stats plenty = run_growing(&large, &wide, temperature);
        eng_scheduler_stats short_of = run_growing(&small, &narrow, temperature);
        run_growing(&one, &single, temperature);
        CHECK(wide.done == GROWING && plenty.preemptions == 0 && plenty.most_running == GROWING);
        CHECK_MSG(short_of.preemptions > 0, "nothing was preempted");
        CHECK_MSG(same_answers(&wide, &narrow, GROWING), "preemption changed an answer (drawn: %d)", drawn);
        CHECK_MSG(same_answers(&wide, &single, GROWING), "the batch changed an answer (drawn: %d)", drawn);
        for (int32_t i = 0; i < GROWING; i++)
            CHECK(wide.counts[i] == ANSWER && wide.finish[i] == ENG_FINISH_LENGTH && wide.shared[i] == (i % 3 ? SYSTEM : 0));
    }
}

static void test_relay_and_plain(void) {
    answers relay = {.done = 0}, plain = {.done = 0}, chunked = {.done = 0};
    eng_engine_options options = options_for(200, GROWING);
    options.strategy = RELAY_STRATEGY_RELAY;
    run_growing(&options, &relay, 0);
    options.strategy = RELAY_STRATEGY_PLAIN;
    run_growing(&options, &plain, 0);
    CHECK(same_answers(&relay, &plain, GROWING));
    options.step_rows = 1; /* as few as there may be: prompts go through in pieces */
    run_growing(&options, &chunked, 0);
    CHECK(same_answers(&plain, &chunked, GROWING));
}

/* ---- pools -------------------------------------------------------------- */

/* 20 + 29 - 1 tokens of its own: three pages, which are all there are. */
static void test_pool_of_one(void) {
    eng_engine_options options = options_for(3, 8);
    eng_engine *engine = open_engine(&options, 1);
    answers got = {.done = 0};
    for (int32_t i = 0; i < 6; i++) submit(engine, 0, i, 20, 29, 0);
    submit(engine, 0, 6, 20, 30, 0);      /* a token more */
    submit(engine, 0, 7, 20, 131072, 0);  /* more than the model takes */
    submit(engine, -1, 8, 0, 4, 0);       /* nothing to go on from */
    run_all(engine, &got, 5000);
    CHECK(got.done == 9);
    for (int32_t i = 0; i < 6; i++) CHECK(got.finish[i] == ENG_FINISH_LENGTH && got.counts[i] == 29);
    CHECK(got.finish[6] == ENG_FINISH_ERROR && got.finish[7] == ENG_FINISH_ERROR && got.finish[8] == ENG_FINISH_ERROR);
    CHECK_CONTAINS(got.error[6], "K/V pool");
    CHECK_CONTAINS(got.error[7], "131072");
    CHECK_CONTAINS(got.error[8], "empty");
    eng_engine_close(engine);

    options.kv_bytes = page_bytes() - 1;
    eng_error err = {""};
    CHECK(!eng_engine_open(&options, &engine, &err) && engine == NULL);
    CHECK_CONTAINS(err.text, "K/V pool");
}

/* Room for the K/V of one system prompt where three are wanted in turn. */
static void test_few_prompts(void) {
    eng_engine_options options = options_for(100, 4);
    options.prompt_bytes = SYSTEM * page_bytes() / ENG_PAGE_TOKENS * 3 / 2;
    eng_engine *engine = open_engine(&options, 3);
    answers got = {.done = 0}, wide = {.done = 0};
    for (int32_t i = 0; i < MAX_ANSWERS; i++) submit(engine, i % 3, i, 5, 6, 0);
    run_all(engine, &got, 5000);
    CHECK(got.done == MAX_ANSWERS);
    for (int32_t i = 0; i < MAX_ANSWERS; i++) CHECK_MSG(got.finish[i] == ENG_FINISH_LENGTH, "%d: %s", i, got.error[i]);
    CHECK(eng_engine_get_stats(engine).prompts.tokens_computed > 3 * SYSTEM);
    eng_engine_close(engine);
    options.prompt_bytes = 0;
    engine = open_engine(&options, 3);
    for (int32_t i = 0; i < MAX_ANSWERS; i++) submit(engine, i % 3, i, 5, 6, 0);
    run_all(engine, &wide, 5000);
    CHECK(same_answers(&got, &wide, MAX_ANSWERS));
    eng_engine_close(engine);

    options.prompt_bytes = 1000; /* for none */
    engine = open_engine(&options, 1);
    answers refused = {.done = 0};
    submit(engine, 0, 0, 5, 6, 0);
    submit(engine, -1, 1, 5, 6, 0);
    run_all(engine, &refused, 100);
    CHECK(refused.finish[0] == ENG_FINISH_ERROR && refused.finish[1] == ENG_FINISH_LENGTH);
    CHECK_CONTAINS(refused.error[0], "system prompt");
    eng_engine_close(engine);
}

static void test_dropping(void) {
    eng_engine_options options = options_for(100, 2);
    eng_engine *engine = open_engine(&options, 0);
    answers got = {.done = 0};
    eng_error err;
    for (int32_t i = 0; i < 6; i++) submit(engine, -1, i, 5, 8, 0);
    CHECK(eng_engine_step(engine, &err));
    eng_engine_drop(engine, false);
    run_all(engine, &got, 100);
    CHECK(got.done == 6 && got.finish[0] == ENG_FINISH_LENGTH && got.finish[1] == ENG_FINISH_LENGTH);
    for (int32_t i = 2; i < 6; i++) CHECK(got.finish[i] == ENG_FINISH_NONE);
    submit(engine, -1, 0, 5, 8, 0);
    CHECK(eng_engine_step(engine, &err));
    eng_engine_drop(engine, true);
    CHECK(!eng_engine_busy(engine));
    take_finished(engine, &got);
    CHECK(got.finish[0] == ENG_FINISH_NONE);
    submit(engine, -1, 1, 5, 8, 0); /* left behind: closing takes care of it */
    CHECK(eng_engine_step(engine, &err));
    eng_engine_close(engine);
}

/* ---- many --------------------------------------------------------------- */

static long resident_kib(void) {
    long size = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL) return -1;
    if (fscanf(file, "%ld %ld", &size, &resident) != 2) resident = -1;
    fclose(file);
    return resident < 0 ? -1 : resident * (sysconf(_SC_PAGESIZE) / 1024);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { MANY = 1000, FLAT_KIB = 1 << 30 }; /* a sanitizer keeps freed memory: it is not flat by design */
#else
enum { MANY = 10000, FLAT_KIB = 1024 };
#endif

/* Eight requests' pages, thousands of requests. */
static void test_many(void) {
    eng_engine_options options = options_for(8, 8);
    options.threads = 1; /* steps are too small to share */
    eng_engine *engine = open_engine(&options, 1);
    eng_error err = {""};
    long early = 0;
    int32_t next = 0, done = 0, in_hand = 0, bad = 0;
    while (done < MANY) {
        for (; next < MANY && in_hand < 16; next++, in_hand++) submit(engine, next % 4 - 1 < 0 ? -1 : 0, next, 4 + next % 5, 4, 0);
        if (!eng_engine_busy(engine) || !eng_engine_step(engine, &err)) break;
        for (eng_answer *a; (a = eng_engine_poll(engine)) != NULL; done++, in_hand--) {
            bad += a->request.finish != ENG_FINISH_LENGTH || eng_request_answer_tokens(&a->request) != 4;
            eng_engine_free_answer(engine, a);
        }
        if (early == 0 && done >= MANY / 5) early = resident_kib();
    }
    long grown = resident_kib() - early;
    CHECK_MSG(done == MANY && bad == 0, "%d of %d answered, %d wrongly: %s", done, MANY, bad, err.text);
    CHECK_MSG(grown < FLAT_KIB, "memory grew by %ld KiB", grown);
    eng_engine_stats stats = eng_engine_get_stats(engine);
    CHECK(stats.prompts.tokens_computed == SYSTEM && stats.peak_pool_bytes <= 8 * page_bytes());
    CHECK_MSG(stats.scheduler.most_running == 8, "at most %d at once", stats.scheduler.most_running);
    eng_engine_close(engine);
}

int main(void) {
    test_preemption();
    test_relay_and_plain();
    test_pool_of_one();
    test_few_prompts();
    test_dropping();
    test_many();
    return test_result();
}
