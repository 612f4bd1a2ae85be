#include "sampler.h"

#include <math.h>
#include <stdlib.h>

#include "philox.h"

typedef struct candidate {
    float logit;
    int32_t token;
} candidate;

struct eng_sampler {
    int32_t vocab_size;
    uint32_t mark;       /* tokens penalised in this pick carry it */
    uint32_t *marks;     /* [vocab_size] */
    candidate *heap;     /* [vocab_size] */
    candidate *kept;     /* [vocab_size], best first */
};

eng_sampling eng_sampling_defaults(void) {
    return (eng_sampling){.top_p = 1, .repetition_penalty = 1};
}

bool eng_sampling_check(const eng_sampling *s, eng_error *err) {
    if (!(s->temperature >= 0 && s->temperature <= 1000))
        return eng_fail(err, "temperature: expected 0 to 1000, got %g", (double)s->temperature);
    if (s->top_k < 0) return eng_fail(err, "top_k: expected 0 or more, got %d", (int)s->top_k);
    if (!(s->top_p > 0 && s->top_p <= 1))
        return eng_fail(err, "top_p: expected above 0 and at most 1, got %g", (double)s->top_p);
    if (!(s->min_p >= 0 && s->min_p <= 1)) return eng_fail(err, "min_p: expected 0 to 1, got %g", (double)s->min_p);
    if (!(s->repetition_penalty > 0 && s->repetition_penalty <= 1000))
        return eng_fail(err, "repetition_penalty: expected above 0 and at most 1000, got %g",
                        (double)s->repetition_penalty);
    return true;
}

bool eng_sampler_create(int32_t vocab_size, eng_sampler **out, eng_error *err) {
    *out = NULL;
    if (vocab_size < 1) return eng_fail(err, "vocabulary: expected at least one token, got %d", (int)vocab_size);
    eng_sampler *sampler = calloc(1, sizeof *sampler);
    if (sampler == NULL) return eng_fail(err, "out of memory for the sampler");
    sampler->vocab_size = vocab_size;
    sampler->marks = calloc((size_t)vocab_size, sizeof *sampler->marks);
    sampler->heap = malloc((size_t)vocab_size * sizeof *sampler->heap);
    sampler->kept = malloc((size_t)vocab_size * sizeof *sampler->kept);
    if (sampler->marks == NULL || sampler->heap == NULL || sampler->kept == NULL) {
        eng_sampler_destroy(sampler);
        return eng_fail(err, "out of memory for the sampler of %d tokens", (int)vocab_size);
    }
    *out = sampler;
    return true;
}

void eng_sampler_destroy(eng_sampler *sampler) {
    if (sampler == NULL) return;
    free(sampler->marks);
    free(sampler->heap);
    free(sampler->kept);
    free(sampler);
}

/* ---- filters ------------------------------------------------------------ */

static void penalise_repetition(eng_sampler *sampler, float penalty, const eng_draw *draw, float *logits) {
    if (penalty == 1) return;
    sampler->mark++;
    for (int32_t i = 0; i < draw->context_size; i++) {
        int32_t token = draw->context[i];
        if (token < 0 || token >= sampler->vocab_size || sampler->marks[token] == sampler->mark) continue;
        sampler->marks[token] = sampler->mark;
        logits[token] = logits[token] < 0 ? logits[token] * penalty : logits[token] / penalty;
    }
}

/* The first of the largest; -1 where there are none but NaN.  In lanes, so that compilers vectorise it:
 * a large vocabulary is looked through for every token of an answer. */
int32_t eng_sampler_largest(const float *logits, int32_t count) {
    enum { LANES = 16 };
    float lanes[LANES], best = -INFINITY;
    int32_t whole = count / LANES * LANES;
    for (int j = 0; j < LANES; j++) lanes[j] = -INFINITY;
    for (int32_t i = 0; i < whole; i += LANES)
        for (int j = 0; j < LANES; j++) lanes[j] = logits[i + j] > lanes[j] ? logits[i + j] : lanes[j];
    for (int j = 0; j < LANES; j++) best = lanes[j] > best ? lanes[j] : best;
    for (int32_t i = whole; i < count; i++) best = logits[i] > best ? logits[i] : best;
    for (int32_t i = 0; i < count; i++)
        if (logits[i] == best) return i;
    return -1;
}

/* Equal logits go by token, so that the order is one and the same everywhere. */
static bool before(candidate a, candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

static void sift_down(candidate *heap, int32_t size, int32_t at) {
    for (;;) {
        int32_t child = 2 * at + 1;
        if (child >= size) return;
        if (child + 1 < size && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], heap[at])) return;
        candidate moved = heap[at];
        heap[at] = heap[child];
        heap[child] = moved;
        at = child;
    }
}

static int32_t fill_heap(eng_sampler *sampler, const float *logits) {
    int32_t size = 0;
    for (int32_t i = 0; i < sampler->vocab_size; i++)
        if (!isnan(logits[i])) sampler->heap[size++] = (candidate){logits[i], i};
    for (int32_t i = size / 2; i-- > 0;) sift_down(sampler->heap, size, i);
    return size;
}

static candidate pop(candidate *heap, int32_t *size) {
    candidate top = heap[0];
    heap[0] = heap[--*size];
    sift_down(heap, *size, 0);
    return top;
}

/* A weight relative to the best candidate's; the differences are taken before exp so that
 * nothing overflows. */
static double weight(float logit, float best) {
    return logit == best ? 1 : exp((double)logit - (double)best);
}

/* The best k and those equal to the last of them. */
static int32_t keep_top_k(eng_sampler *sampler, int32_t *heap_size, int32_t k) {
    int32_t kept = 0;
    while (*heap_size > 0 && (kept < k || sampler->heap[0].logit == sampler->kept[kept - 1].logit))
        sampler->kept[kept++] = pop(sampler->heap, heap_size);
    return kept;
}

/* What of the best-first candidates top-p and min-p leave; `more` draws on the heap. */
static int32_t keep_leading(eng_sampler *sampler, const eng_sampling *s, int32_t kept, int32_t heap_size,
                            double total, bool more) {
    float best = more ? sampler->heap[0].logit : sampler->kept[0].logit;
    double sum = 0;
    int32_t count = 0;
    while (more ? heap_size > 0 : count < kept) {
        if (count > 0 && s->top_p < 1 && sum >= (double)s->top_p * total) break;
        candidate next = more ? sampler->heap[0] : sampler->kept[count];
        double w = weight(next.logit, best);
        if (count > 0 && w < (double)s->min_p) break;
        if (more) sampler->kept[count] = pop(sampler->heap, &heap_size);
        sum += w;
        count++;
    }
    return count;
}

static double sum_weights(const candidate *candidates, int32_t count, float best) {
    double sum = 0;
    for (int32_t i = 0; i < count; i++) sum += weight(candidates[i].logit, best);
    return sum;
}

static int32_t filter(eng_sampler *sampler, const eng_sampling *s, const float *logits) {
    int32_t heap_size = fill_heap(sampler, logits);
    float best = sampler->heap[0].logit;
    if (s->top_k == 0)
        return keep_leading(sampler, s, 0, heap_size, sum_weights(sampler->heap, heap_size, best), true);
    int32_t kept = keep_top_k(sampler, &heap_size, s->top_k);
    return keep_leading(sampler, s, kept, 0, sum_weights(sampler->kept, kept, best), false);
}

/* ---- the draw ----------------------------------------------------------- */

static int32_t draw_from(const candidate *candidates, int32_t count, float best, double u) {
    double target = u * sum_weights(candidates, count, best), sum = 0;
    int32_t last = candidates[0].token;
    for (int32_t i = 0; i < count; i++) {
        double w = weight(candidates[i].logit, best);
        if (w > 0) last = candidates[i].token; /* where rounding leaves the target beyond the sum */
        sum += w;
        if (sum > target) return candidates[i].token;
    }
    return last;
}

static int32_t all_candidates(eng_sampler *sampler, const float *logits) {
    int32_t count = 0;
    for (int32_t i = 0; i < sampler->vocab_size; i++)
        if (!isnan(logits[i])) sampler->kept[count++] = (candidate){logits[i], i};
    return count;
}

int32_t eng_sampler_pick(eng_sampler *sampler, const eng_sampling *s, const eng_draw *draw, float *logits) {
    penalise_repetition(sampler, s->repetition_penalty, draw, logits);
    const bool known = draw->largest != NULL && s->repetition_penalty == 1;
    int32_t best = known ? *draw->largest : eng_sampler_largest(logits, sampler->vocab_size);
    if (best < 0 || s->temperature == 0 || isinf(logits[best])) return best;
    for (int32_t i = 0; i < sampler->vocab_size; i++) logits[i] /= s->temperature;
    bool unfiltered = s->top_k == 0 && s->top_p >= 1 && s->min_p <= 0;
    int32_t count = unfiltered ? all_candidates(sampler, logits) : filter(sampler, s, logits);
    return draw_from(sampler->kept, count, logits[best], eng_philox_uniform(s->seed, draw->stream, draw->index));
}
