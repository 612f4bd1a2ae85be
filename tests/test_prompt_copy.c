/* A prompt under another's name: what is answered under the copy is what is answered under the original,
 * and what cannot be copied is refused. */
#include "test.h"

#include <stdlib.h>

#include "engine.h"

enum { SYSTEM = 70, USER = 9, ANSWER = 12, COPY = 1, COMPUTED = 2, SHORT = 3 };

static void make_tokens(int32_t *tokens, int32_t first) {
    for (int32_t i = 0; i < SYSTEM + USER; i++) tokens[i] = (int32_t)((uint32_t)i * 2654435761u >> 22);
    tokens[0] = first;
}

/* Prompts 0 to 2 differ in their first token; 3 is shorter. */
static eng_engine *open_engine(void) {
    eng_error err = {""};
    eng_engine *e = NULL;
    int32_t tokens[SYSTEM + USER];
    eng_engine_options options = eng_engine_options_defaults();
    options.random_shape = "tiny";
    options.threads = 2;
    options.kv_bytes = 1 << 22;
    options.ignore_eos = true;
    options.repeatable = true;
    CHECK_MSG(eng_engine_open(&options, &e, &err), "%s", err.text);
    for (int32_t i = 0; i < 4; i++) {
        make_tokens(tokens, 100 * i);
        CHECK(eng_engine_add_prompt_tokens(e, tokens, i == SHORT ? SYSTEM - 1 : SYSTEM, &err));
    }
    CHECK(eng_engine_start(e, &err));
    return e;
}

static void answer(eng_engine *e, int32_t prompt, int32_t *out) {
    eng_error err = {""};
    int32_t tokens[SYSTEM + USER];
    make_tokens(tokens, 100 * prompt);
    eng_answer *a;
    const eng_submission s = {.prompt = prompt, .tokens = tokens, .num_tokens = SYSTEM + USER, .max_tokens = ANSWER,
                              .sampling = eng_sampling_defaults()};
    CHECK(eng_engine_submit(e, &s, &a, &err));
    while (eng_engine_busy(e)) CHECK(eng_engine_step(e, &err));
    a = eng_engine_poll(e);
    CHECK(a != NULL && a->request.path.tokens == SYSTEM && a->request.tokens.count == SYSTEM + USER + ANSWER);
    memcpy(out, a->request.tokens.ids + SYSTEM + USER, ANSWER * sizeof *out);
    eng_engine_free_answer(e, a);
}

static void test_copy(eng_engine *e) {
    eng_error err = {""};
    int32_t original[ANSWER], copy[ANSWER], computed[ANSWER];
    CHECK(!eng_engine_copy_prompt(e, 0, COPY, &err)); /* not there yet */
    CHECK(eng_engine_prepare(e, 0, &err));
    CHECK_MSG(eng_engine_copy_prompt(e, 0, COPY, &err), "%s", err.text);
    answer(e, 0, original);
    answer(e, COPY, copy);
    answer(e, COMPUTED, computed);
    CHECK(memcmp(original, copy, sizeof copy) == 0);
    CHECK(memcmp(original, computed, sizeof computed) != 0); /* or the line above says nothing */
    CHECK(!eng_engine_copy_prompt(e, 0, COPY, &err));        /* there already */
    CHECK(!eng_engine_copy_prompt(e, 0, 0, &err));
    CHECK(!eng_engine_copy_prompt(e, 0, SHORT, &err));
}

/* Answers do not depend on the strategy, which may change between steps. */
static void test_strategy(eng_engine *e) {
    eng_error err = {""};
    int32_t relay[ANSWER], plain[ANSWER];
    answer(e, 0, relay);
    CHECK(eng_engine_set_strategy(e, RELAY_STRATEGY_PLAIN, &err));
    answer(e, 0, plain);
    CHECK(memcmp(relay, plain, sizeof plain) == 0);
}

int main(void) {
    eng_engine *e = open_engine();
    if (e != NULL) {
        test_copy(e);
        test_strategy(e);
    }
    eng_engine_close(e);
    return test_result();
}
