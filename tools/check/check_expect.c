/* What the oracle says to a case: every request by itself, its tokens put end to end. */
#include <math.h>
#include <stdlib.h>

#include "check_oracle.h"
#include "check_world.h"

typedef struct gathered {
    double *query, *key, *value;
    int64_t tokens;
} gathered;

/* Appends `length` tokens of a dense span, as stored. */
static void append(gathered *to, const relay_attention *a, const chk_placed *placed, int32_t length) {
    int64_t width = (int64_t)a->num_kv_heads * a->head_dim, at = to->tokens * width;
    for (int64_t i = 0; i < length * width; i++) {
        to->key[at + i] = chk_load(placed->key, a->kv_dtype, i);
        to->value[at + i] = chk_load(placed->value, a->kv_dtype, i);
    }
    to->tokens += length;
}

/* Segments are listed parents first, so along a path they come in order. */
static void gather_path(const chk_world *w, int32_t position, gathered *to) {
    const chk_case *k = w->plain;
    for (int32_t s = 0; s < k->num_segments; s++) {
        const chk_segment *segment = &k->segments[s];
        if (position < segment->first || position >= segment->first + segment->count) continue;
        append(to, &k->attention, &w->spans[s], segment->kv.length);
    }
    int32_t request = chk_request_at(k, position);
    append(to, &k->attention, &w->spans[k->num_segments + request], k->requests[request].own.length);
}

static void gather_query(const chk_world *w, int32_t request, gathered *to) {
    const relay_attention *a = &w->plain->attention;
    double *at = to->query;
    for (int32_t row = w->query_start[request]; row < w->query_start[request + 1]; row++)
        for (int32_t h = 0; h < a->num_heads; h++)
            for (int32_t d = 0; d < a->head_dim; d++)
                *at++ = chk_load(w->query.view.data, a->query_dtype, chk_tensor_at(&w->query.view, row, h, d, 0));
}

static oracle_attention attention_of(const chk_world *w, double *slopes, double *sinks) {
    const relay_attention *a = &w->plain->attention;
    for (int32_t h = 0; h < a->num_heads; h++) {
        slopes[h] = ((const float *)w->slopes.data)[h];
        sinks[h] = ((const float *)w->sinks.data)[h];
    }
    return (oracle_attention){
        .num_heads = a->num_heads, .num_kv_heads = a->num_kv_heads, .head_dim = a->head_dim,
        .scale = a->softmax_scale != 0 ? (double)a->softmax_scale : 1 / sqrt(a->head_dim),
        .soft_cap = a->logit_soft_cap, .window = a->sliding_window, .sink_tokens = a->num_sink_tokens,
        .slopes = a->use_alibi ? slopes : NULL, .sinks = a->use_sinks ? sinks : NULL};
}

static bool expect_request(const chk_world *w, const oracle_attention *attention, int32_t position,
                           chk_result *want) {
    const chk_case *k = w->plain;
    int32_t request = chk_request_at(k, position), rows = k->requests[request].rows;
    int64_t tokens = chk_shared_tokens(k, request) + k->requests[request].own.length;
    size_t width = (size_t)want->heads * (size_t)want->dim;
    gathered all = {.query = malloc(((size_t)rows * width + 1) * sizeof(double)),
                    .key = malloc(((size_t)tokens * width + 1) * sizeof(double)),
                    .value = malloc(((size_t)tokens * width + 1) * sizeof(double))};
    bool ok = all.query != NULL && all.key != NULL && all.value != NULL;
    if (ok) {
        gather_path(w, position, &all);
        gather_query(w, request, &all);
        int64_t place = (int64_t)w->query_start[request] * want->heads;
        oracle_sequence sequence = {all.tokens, rows, all.query, all.key, all.value};
        oracle_answer answer = {want->out + place * want->dim, want->lse + place, want->spread + place * want->dim,
                                want->magnitude + place};
        ok = oracle_attend(attention, &sequence, &answer) == 0;
    }
    free(all.query);
    free(all.key);
    free(all.value);
    return ok;
}

bool chk_world_expect(chk *c, const chk_world *w, chk_result *want) {
    const relay_attention *a = &w->plain->attention;
    double slopes[256], sinks[256];
    if (!chk_result_make(want, chk_total_rows(w->plain), a->num_heads, a->head_dim, true)) return false;
    oracle_attention attention = attention_of(w, slopes, sinks);
    bool ok = true;
    for (int32_t p = 0; ok && p < w->plain->num_requests; p++) ok = expect_request(w, &attention, p, want);
    if (!ok) chk_fail(c, "no memory for the oracle");
    return ok;
}

void chk_case_check(chk *c, const chk_case *plain) {
    chk_world world;
    chk_result got = {0}, want = {0};
    if (chk_world_make(c, plain, &world) && chk_world_run(c, &world, NULL, &got) &&
        chk_world_expect(c, &world, &want))
        chk_compare(c, &want, &got, chk_tolerance_for(c, plain->attention.kv_dtype, plain->attention.output_dtype));
    chk_world_free(&world);
    chk_result_free(&got);
    chk_result_free(&want);
}
