/* Sampling: the generator against its published vectors, the filters against a plain reference, the
 * draws against their probabilities. */
#include "serving/sampler.h"

#include <math.h>
#include <stdlib.h>

#include "serving/philox.h"
#include "serving/stop_text.h"
#include "test.h"

enum { VOCAB = 97 };

/* Known answers of Random123's kat_vectors for philox4x32-10. */
static void test_philox_vectors(void) {
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        uint32_t out[4];
        eng_philox4x32(known[i].key, known[i].counter, out);
        CHECK_MSG(memcmp(out, known[i].out, sizeof out) == 0, "vector %zu: %08x %08x %08x %08x", i, out[0], out[1], out[2],
                  out[3]);
    }
}

static void test_uniform(void) {
    double sum = 0, least = 1, most = 0;
    enum { DRAWS = 20000 };
    for (uint64_t i = 0; i < DRAWS; i++) {
        double u = eng_philox_uniform(7, 11, i);
        sum += u;
        if (u < least) least = u;
        if (u > most) most = u;
    }
    CHECK(least >= 0 && least < 1e-3 && most < 1 && most > 1 - 1e-3);
    CHECK_MSG(fabs(sum / DRAWS - 0.5) < 0.01, "mean %g", sum / DRAWS);
    CHECK(eng_philox_uniform(7, 11, 3) == eng_philox_uniform(7, 11, 3));
    CHECK(eng_philox_uniform(7, 11, 3) != eng_philox_uniform(8, 11, 3));
    CHECK(eng_philox_uniform(7, 11, 3) != eng_philox_uniform(7, 12, 3));
    CHECK(eng_philox_uniform(7, UINT64_C(1) << 32, 3) != eng_philox_uniform(7, 0, 3));
}

static void fill_logits(float *logits, uint64_t seed) {
    for (int32_t i = 0; i < VOCAB; i++) logits[i] = (float)(8 * eng_philox_uniform(seed, 1, (uint64_t)i) - 4);
}

/* ---- a plain reference -------------------------------------------------- */

typedef struct ranked {
    double logit;
    int32_t token;
} ranked;

static int by_logit(const void *left, const void *right) {
    const ranked *a = left, *b = right;
    if (a->logit != b->logit) return a->logit > b->logit ? -1 : 1;
    return a->token - b->token;
}

/* Probabilities after all filters, in the order that transformers applies them. */
static void reference(const eng_sampling *s, const float *logits, double p[VOCAB]) {
    ranked all[VOCAB];
    int32_t kept = VOCAB;
    for (int32_t i = 0; i < VOCAB; i++) all[i] = (ranked){(double)(logits[i] / s->temperature), i};
    qsort(all, VOCAB, sizeof *all, by_logit);
    if (s->top_k > 0 && s->top_k < VOCAB) {
        kept = s->top_k;
        while (kept < VOCAB && all[kept].logit == all[s->top_k - 1].logit) kept++;
    }
    double total = 0, before = 0, sum = 0;
    for (int32_t i = 0; i < kept; i++) total += exp(all[i].logit - all[0].logit);
    for (int32_t i = 0; i < VOCAB; i++) p[i] = 0;
    for (int32_t i = 0; i < kept; i++) {
        double w = exp(all[i].logit - all[0].logit);
        bool in = i == 0 || ((s->top_p >= 1 || before / total < (double)s->top_p) && w >= (double)s->min_p);
        before += w;
        if (!in) continue;
        p[all[i].token] = w;
        sum += w;
    }
    for (int32_t i = 0; i < VOCAB; i++) p[i] /= sum;
}

/* Draws often: only what the reference keeps, and each about as often as it says. */
static void compare_draws(eng_sampler *sampler, const eng_sampling *s, uint64_t seed) {
    enum { DRAWS = 20000 };
    float logits[VOCAB], scratch[VOCAB];
    double p[VOCAB];
    int32_t counts[VOCAB] = {0};
    fill_logits(logits, seed);
    reference(s, logits, p);
    for (uint64_t i = 0; i < DRAWS; i++) {
        const eng_draw draw = {.stream = 5, .index = i};
        memcpy(scratch, logits, sizeof scratch);
        int32_t token = eng_sampler_pick(sampler, s, &draw, scratch);
        CHECK(token >= 0 && token < VOCAB);
        if (token >= 0 && token < VOCAB) counts[token]++;
    }
    for (int32_t i = 0; i < VOCAB; i++) {
        double expected = p[i] * DRAWS, spread = 5 * sqrt(expected) + 3;
        CHECK_MSG(p[i] > 0 ? fabs(counts[i] - expected) < spread : counts[i] == 0,
                  "token %d: drawn %d times, expected %.1f (top_k %d top_p %g min_p %g)", i, counts[i], expected, s->top_k,
                  (double)s->top_p, (double)s->min_p);
    }
}

static void test_filters(eng_sampler *sampler) {
    static const eng_sampling cases[] = {
        {.temperature = 1, .top_p = 1, .repetition_penalty = 1},
        {.temperature = 0.5f, .top_p = 1, .repetition_penalty = 1},
        {.temperature = 1, .top_k = 5, .top_p = 1, .repetition_penalty = 1},
        {.temperature = 1.5f, .top_p = 0.6f, .repetition_penalty = 1},
        {.temperature = 1, .top_p = 1, .min_p = 0.3f, .repetition_penalty = 1},
        {.temperature = 2, .top_k = 30, .top_p = 0.8f, .min_p = 0.1f, .repetition_penalty = 1},
        {.temperature = 1, .top_k = 1000, .top_p = 0.95f, .repetition_penalty = 1},
        {.temperature = 1, .top_p = 1e-6f, .repetition_penalty = 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) compare_draws(sampler, &cases[i], 100 + i);
}

/* ---- single cases ------------------------------------------------------- */

static void test_greedy(eng_sampler *sampler) {
    eng_sampling greedy = eng_sampling_defaults();
    const eng_draw draw = {0};
    float logits[VOCAB];
    fill_logits(logits, 1);
    logits[41] = logits[17] = 9;
    CHECK(eng_sampler_pick(sampler, &greedy, &draw, logits) == 17); /* the first of equals */
    logits[3] = NAN;
    logits[60] = INFINITY;
    CHECK(eng_sampler_pick(sampler, &greedy, &draw, logits) == 60);
    greedy.temperature = 1;
    CHECK(eng_sampler_pick(sampler, &greedy, &draw, logits) == 60);
    for (int32_t i = 0; i < VOCAB; i++) logits[i] = NAN;
    CHECK(eng_sampler_pick(sampler, &greedy, &draw, logits) == -1);
    for (int32_t i = 0; i < VOCAB; i++) logits[i] = -INFINITY;
    logits[5] = 0;
    CHECK(eng_sampler_pick(sampler, &greedy, &draw, logits) == 5);
}

static void test_ties_at_top_k(eng_sampler *sampler) {
    const eng_sampling s = {.temperature = 1, .top_k = 2, .top_p = 1, .repetition_penalty = 1};
    bool seen[VOCAB] = {false};
    for (uint64_t i = 0; i < 500; i++) {
        float logits[VOCAB] = {0};
        for (int32_t t = 0; t < VOCAB; t++) logits[t] = -50;
        logits[4] = 1;
        logits[8] = logits[9] = logits[10] = 0;
        const eng_draw draw = {.index = i};
        int32_t token = eng_sampler_pick(sampler, &s, &draw, logits);
        if (token >= 0) seen[token] = true;
    }
    for (int32_t t = 0; t < VOCAB; t++) CHECK(seen[t] == (t == 4 || (t >= 8 && t <= 10)));
}

static void test_repetition(eng_sampler *sampler) {
    eng_sampling s = eng_sampling_defaults();
    const int32_t context[] = {7, 7, 7, 2, -1, VOCAB};
    const eng_draw draw = {.context = context, .context_size = 6};
    float logits[VOCAB];
    for (int32_t i = 0; i < VOCAB; i++) logits[i] = -3;
    logits[7] = 4;
    logits[9] = 3;
    s.repetition_penalty = 1.25f; /* 4 / 1.25 once, not thrice: still the largest */
    CHECK(eng_sampler_pick(sampler, &s, &draw, logits) == 7);
    CHECK(logits[7] == 4 / 1.25f && logits[2] == -3 * 1.25f && logits[9] == 3);
    logits[7] = 4;
    s.repetition_penalty = 2;
    CHECK(eng_sampler_pick(sampler, &s, &draw, logits) == 9);
}

static void test_ranges(void) {
    eng_error err = {""};
    eng_sampling s = eng_sampling_defaults();
    CHECK(eng_sampling_check(&s, &err));
    s.top_p = 0;
    CHECK(!eng_sampling_check(&s, &err));
    CHECK_CONTAINS(err.text, "top_p");
    s = eng_sampling_defaults();
    s.temperature = NAN;
    CHECK(!eng_sampling_check(&s, &err));
    CHECK_CONTAINS(err.text, "temperature");
    s = eng_sampling_defaults();
    s.repetition_penalty = 0;
    CHECK(!eng_sampling_check(&s, &err));
    CHECK_CONTAINS(err.text, "repetition_penalty");
}

/* ---- stop strings ------------------------------------------------------- */

static void test_stops(void) {
    static const char *const items[] = {"END", "\n\n", "ab"};
    const eng_stops stops = {items, 3};
    const char text[] = "one two\n\nthree END";
    CHECK(eng_stops_find(&stops, text, sizeof text - 1, 0) == 7);
    CHECK(eng_stops_find(&stops, text, 8, 0) == ENG_NO_STOP); /* its second half has not come */
    CHECK(eng_stops_find(&stops, text, 9, 8) == 7);           /* it came with the token behind byte 8 */
    CHECK(eng_stops_find(&stops, text, sizeof text - 1, 10) == 15);
    CHECK(eng_stops_pending(&stops, text, 8) == 1);
    CHECK(eng_stops_pending(&stops, "x EN", 4) == 2);
    CHECK(eng_stops_pending(&stops, "x Ea", 4) == 1);
    CHECK(eng_stops_pending(&stops, "x", 1) == 0);
    CHECK(eng_stops_pending(&stops, "", 0) == 0);
    const eng_stops none = {NULL, 0};
    CHECK(eng_stops_find(&none, text, sizeof text - 1, 0) == ENG_NO_STOP);
    CHECK(eng_stops_pending(&none, text, sizeof text - 1) == 0);
}

int main(void) {
    eng_sampler *sampler;
    eng_error err;
    test_philox_vectors();
    test_uniform();
    CHECK(!eng_sampler_create(0, &sampler, &err) && sampler == NULL);
    CHECK(eng_sampler_create(VOCAB, &sampler, &err));
    test_greedy(sampler);
    test_ties_at_top_k(sampler);
    test_filters(sampler);
    test_repetition(sampler);
    eng_sampler_destroy(sampler);
    test_ranges();
    test_stops();
    return test_result();
}
