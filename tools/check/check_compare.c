/* Comparing results, and how large an error is allowed to be.
 *
 * float32 paths (K/V f32 or f16, and everything at the scalar level): 1e-5.  Products and sums in
 * float32 over a few hundred terms come to about 1e-6.
 *
 * 16-bit outputs: half a unit in the last place, at most 2^-8 of a bf16 and 2^-11 of an f16.
 *
 * bf16 K/V on a fast kernel: probabilities may be rounded to bf16, each by up to u = 2^-8, 0.4u in
 * the mean square.  With a bf16 output that is 0.6u = 2.3e-3 over a tensor, against 4e-3 that are
 * promised and allowed.  One element may be worse: 1.5u of what was summed for it, besides its own
 * rounding.  The LSE comes from probabilities before they are rounded and stays a float32 number.
 *
 * Scores: a float32 score is off by some ulps of scale * sum |q k|, and exp() turns that into a
 * relative error of the weight.  The oracle reports that sum (magnitude), so that gaps of 10000
 * are not excused for more than they cost: 2^-24 * magnitude, times the root of the number of sums
 * (rounding errors go both ways) and a few for what follows. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

static double score_error(int32_t dim, double magnitude) {
    return (4 + sqrt(dim)) * 0x1p-24 * magnitude;
}

static const double smallest = 1e-7; /* 16-bit outputs have no finer numbers near 0 */

bool chk_result_make(chk_result *result, int64_t rows, int32_t heads, int32_t dim, bool oracle) {
    size_t pairs = (size_t)rows * (size_t)heads + 1, elements = pairs * (size_t)dim;
    *result = (chk_result){.rows = rows, .heads = heads, .dim = dim};
    result->out = calloc(elements, sizeof(double));
    result->lse = calloc(pairs, sizeof(double));
    bool ok = result->out != NULL && result->lse != NULL;
    if (oracle) {
        result->spread = calloc(elements, sizeof(double));
        result->magnitude = calloc(pairs, sizeof(double));
        ok = ok && result->spread != NULL && result->magnitude != NULL;
    }
    return ok;
}

void chk_result_free(chk_result *result) {
    free(result->out);
    free(result->lse);
    free(result->spread);
    free(result->magnitude);
    memset(result, 0, sizeof *result);
}

chk_tolerance chk_tolerance_for(const chk *c, relay_dtype kv, relay_dtype output) {
    chk_tolerance t = {.relative = 1e-5, .element = 1e-5};
    if (output == RELAY_BF16) t.rounding = 0x1p-8;
    if (output == RELAY_F16) t.rounding = 0x1p-11;
    t.relative += t.rounding;
    if (kv != RELAY_BF16 || c->exact) return t;
    t.relative = 4e-3;
    t.element = 1.5 * 0x1p-8;
    return t;
}

/* NaN against NaN, an infinity against the same; both finite otherwise. */
static bool same_class(double want, double got) {
    if (isnan(want) || isnan(got)) return isnan(want) && isnan(got);
    if (isinf(want) || isinf(got)) return want == got;
    return true;
}

/* d < 0: an lse. */
static void report(chk *c, const chk_result *want, const char *what, int64_t place, int32_t d, double expected,
                   double seen, double limit) {
    int64_t row = place / want->heads, head = place % want->heads;
    char element[32] = "";
    if (d >= 0) snprintf(element, sizeof element, ", element %d", (int)d);
    chk_fail(c, "%s: worst at row %lld of %lld, head %lld%s: expected %.9g, got %.9g (error %.3g, allowed %.3g)",
             what, (long long)row, (long long)want->rows, (long long)head, element, expected, seen,
             fabs(expected - seen), limit);
}

static bool compare_classes(chk *c, const chk_result *want, const chk_result *got) {
    int64_t pairs = want->rows * want->heads;
    for (int64_t i = 0; i < pairs * want->dim; i++) {
        if (same_class(want->out[i], got->out[i])) continue;
        report(c, want, "output (NaN or infinity)", i / want->dim, (int32_t)(i % want->dim), want->out[i],
               got->out[i], 0);
        return false;
    }
    for (int64_t i = 0; got->lse != NULL && i < pairs; i++) {
        if (same_class(want->lse[i], got->lse[i])) continue;
        report(c, want, "lse (NaN or infinity)", i, -1, want->lse[i], got->lse[i], 0);
        return false;
    }
    return true;
}

/* The worst violation by the ratio of error to what is allowed. */
typedef struct worst {
    double ratio, limit;
    int64_t at;
} worst;

static void note(worst *w, double error, double limit, int64_t at) {
    double ratio = error / limit;
    if (!(ratio > w->ratio)) return;
    *w = (worst){ratio, limit, at};
}

static void compare_elements(chk *c, const chk_result *want, const chk_result *got, chk_tolerance allowed) {
    worst w = {0, 0, 0};
    double least = smallest * (allowed.size > 0 ? allowed.size : 1);
    for (int64_t i = 0; i < want->rows * want->heads * want->dim; i++) {
        if (!isfinite(want->out[i])) continue;
        double relative = allowed.element + score_error(want->dim, want->magnitude[i / want->dim]);
        double limit = least + relative * want->spread[i] + allowed.rounding * fabs(want->out[i]);
        note(&w, fabs(want->out[i] - got->out[i]), limit, i);
    }
    if (w.ratio > 1)
        report(c, want, "output", w.at / want->dim, (int32_t)(w.at % want->dim), want->out[w.at], got->out[w.at],
               w.limit);
}

static void compare_lse(chk *c, const chk_result *want, const chk_result *got) {
    worst w = {0, 0, 0};
    for (int64_t i = 0; got->lse != NULL && i < want->rows * want->heads; i++) {
        if (!isfinite(want->lse[i])) continue;
        double limit = 1e-5 * (1 + fabs(want->lse[i])) + score_error(want->dim, want->magnitude[i]);
        note(&w, fabs(want->lse[i] - got->lse[i]), limit, i);
    }
    if (w.ratio > 1) report(c, want, "lse", w.at, -1, want->lse[w.at], got->lse[w.at], w.limit);
}

/* Frobenius: the error's square sum against the sum that the tolerance allows.  What rounding
 * leaves where values cancel (spread above |out|) is allowed in float32 ulps of the spread. */
static void compare_norms(chk *c, const chk_result *want, const chk_result *got, chk_tolerance allowed) {
    double error = 0, limit = 0, size = 0;
    for (int64_t i = 0; i < want->rows * want->heads * want->dim; i++) {
        if (!isfinite(want->out[i]) || isnan(got->out[i])) continue; /* classes have been compared */
        double difference = want->out[i] - got->out[i];
        double relative = allowed.relative + score_error(want->dim, want->magnitude[i / want->dim]);
        double bound = relative * fabs(want->out[i]) + 4 * 0x1p-24 * want->spread[i];
        error += difference * difference;
        limit += bound * bound;
        size += want->out[i] * want->out[i];
    }
    double ratio = size > 0 ? sqrt(error / size) : 0;
    int rounded = allowed.relative > 1e-5;
    bool plain = limit < 2 * allowed.relative * allowed.relative * size; /* no excuse by magnitude */
    if (plain && ratio > c->worst[rounded]) c->worst[rounded] = ratio;
    if (!(error <= limit))
        chk_fail(c, "output: relative error %.3g over the whole tensor, allowed %.3g", ratio,
                 size > 0 ? sqrt(limit / size) : 0);
}

void chk_compare(chk *c, const chk_result *want, const chk_result *got, chk_tolerance allowed) {
    if (!compare_classes(c, want, got)) return;
    compare_elements(c, want, got, allowed);
    compare_lse(c, want, got);
    compare_norms(c, want, got, allowed);
}

static bool same_bits(double a, double b) {
    return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b));
}

void chk_compare_bits(chk *c, const char *what, const chk_result *want, const chk_result *got) {
    int64_t pairs = want->rows * want->heads;
    for (int64_t i = 0; i < pairs * want->dim; i++) {
        if (same_bits(want->out[i], got->out[i])) continue;
        report(c, want, what, i / want->dim, (int32_t)(i % want->dim), want->out[i], got->out[i], 0);
        return;
    }
    for (int64_t i = 0; want->lse != NULL && got->lse != NULL && i < pairs; i++) {
        if (same_bits(want->lse[i], got->lse[i])) continue;
        report(c, want, what, i, -1, want->lse[i], got->lse[i], 0);
        return;
    }
}
