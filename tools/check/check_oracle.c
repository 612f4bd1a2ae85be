#include "check_oracle.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

/* Tokens of less than this share of the largest weight do not count for `magnitude`. */
static const double negligible = 1e-12;

typedef struct scored {
    double score; /* -INFINITY if the query does not see it */
    double size;  /* scale * sum |q k| + |bias| */
} scored;

static bool sees(const oracle_attention *a, int64_t query_position, int64_t token) {
    if (token > query_position) return false;
    if (a->window == 0) return true;
    return query_position - token < a->window || token < a->sink_tokens;
}

static scored score_of(const oracle_attention *a, int32_t head, const double *q, const double *k,
                       int64_t query_position, int64_t token) {
    double dot[4] = {0}, size[4] = {0};
    for (int32_t d = 0; d < a->head_dim; d++) {
        double product = q[d] * k[d];
        dot[d % 4] += product;
        size[d % 4] += fabs(product);
    }
    scored s = {.score = (dot[0] + dot[1] + dot[2] + dot[3]) * a->scale,
                .size = (size[0] + size[1] + size[2] + size[3]) * fabs(a->scale)};
    if (!isfinite(s.size)) s.size = 0; /* an infinite score is exact */
    if (a->soft_cap > 0) s.score = a->soft_cap * tanh(s.score / a->soft_cap);
    if (a->slopes != NULL) {
        double bias = a->slopes[head] * (double)(token - query_position);
        s.score += bias;
        s.size += fabs(bias);
    }
    return s;
}

static void score_row(const oracle_attention *a, const oracle_sequence *seq, int64_t row, int32_t head,
                      scored *scores) {
    int32_t kv_head = head / (a->num_heads / a->num_kv_heads);
    int64_t position = seq->tokens - seq->rows + row;
    const double *q = seq->query + (row * a->num_heads + head) * a->head_dim;
    for (int64_t t = 0; t < seq->tokens; t++) {
        const double *k = seq->key + (t * a->num_kv_heads + kv_head) * a->head_dim;
        scores[t] = (scored){.score = -INFINITY, .size = 0};
        if (sees(a, position, t)) scores[t] = score_of(a, head, q, k, position, t);
    }
}

/* The largest score, sink logit included; NaN where there is one. */
static double top_of(const oracle_attention *a, int32_t head, const scored *scores, int64_t tokens) {
    double top = a->sinks != NULL ? a->sinks[head] : -INFINITY;
    for (int64_t t = 0; t < tokens; t++) {
        if (isnan(scores[t].score)) return NAN;
        if (scores[t].score > top) top = scores[t].score;
    }
    return top;
}

static void answer_row(const oracle_attention *a, const oracle_sequence *seq, int64_t row, int32_t head,
                       const scored *scores, const oracle_answer *answer) {
    int32_t kv_head = head / (a->num_heads / a->num_kv_heads), dim = a->head_dim;
    int64_t place = row * a->num_heads + head;
    double *out = answer->out + place * dim, *spread = answer->spread + place * dim;
    double top = top_of(a, head, scores, seq->tokens);
    double denominator = a->sinks != NULL ? exp(a->sinks[head] - top) : 0, size = 0;
    for (int32_t d = 0; d < dim; d++) out[d] = spread[d] = 0;
    for (int64_t t = 0; top != -INFINITY && t < seq->tokens; t++) {
        if (scores[t].score == -INFINITY) continue;
        const double *v = seq->value + (t * a->num_kv_heads + kv_head) * dim;
        double p = exp(scores[t].score - top);
        denominator += p;
        if (p > negligible) size = fmax(size, scores[t].size);
        for (int32_t d = 0; d < dim; d++) {
            out[d] += p * v[d];
            spread[d] += p * fabs(v[d]);
        }
    }
    for (int32_t d = 0; denominator != 0 && d < dim; d++) {
        out[d] /= denominator;
        spread[d] /= denominator;
    }
    answer->lse[place] = top == -INFINITY ? -INFINITY : top + log(denominator);
    answer->magnitude[place] = size;
}

int oracle_attend(const oracle_attention *a, const oracle_sequence *seq, const oracle_answer *answer) {
    scored *scores = malloc((size_t)(seq->tokens > 0 ? seq->tokens : 1) * sizeof *scores);
    if (scores == NULL) return -1;
    for (int64_t row = 0; row < seq->rows; row++) {
        for (int32_t head = 0; head < a->num_heads; head++) {
            score_row(a, seq, row, head, scores);
            answer_row(a, seq, row, head, scores, answer);
        }
    }
    free(scores);
    return 0;
}

void oracle_fuse(int32_t parts, int32_t dim, const double *const *out, const double *lse, double *fused,
                 double *fused_lse, double *spread) {
    double top = -INFINITY, denominator = 0;
    for (int32_t i = 0; i < parts; i++) {
        if (isinf(lse[i])) continue;
        if (isnan(lse[i]) || lse[i] > top) top = lse[i];
        if (isnan(top)) break;
    }
    for (int32_t d = 0; d < dim; d++) fused[d] = spread[d] = 0;
    *fused_lse = top;
    if (top == -INFINITY) return;
    for (int32_t i = 0; i < parts; i++)
        if (!isinf(lse[i])) denominator += exp(lse[i] - top);
    *fused_lse = top + log(denominator);
    for (int32_t i = 0; i < parts; i++) {
        if (isinf(lse[i])) continue;
        double weight = exp(lse[i] - *fused_lse);
        for (int32_t d = 0; d < dim; d++) {
            fused[d] += weight * out[i][d];
            spread[d] += weight * fabs(out[i][d]);
        }
    }
}
