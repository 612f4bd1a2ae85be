#include "scheduler.h"

#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/clock.h"
#include "scheduler_queue.h"
#include "step_rows.h"

/* Beside a full batch of answers, so that prompts go on too. */
enum { MIN_PREFILL_ROWS = 64 };

struct eng_scheduler {
    eng_scheduler_options options;
    int32_t max_positions, vocab;
    eng_sampler *sampler;
    eng_queue waiting, finished; /* waiting: by seniority */
    eng_request **running;       /* [max_batch] by seniority */
    int32_t num_running;
    uint64_t next_seniority;
    eng_step_rows step;
    float *logits;               /* [logit_room / vocab][vocab] */
    size_t logit_room;
    int32_t *largest;            /* [max_batch + 1] of each row of logits */
    eng_scheduler_stats stats;
};

/* ---- life --------------------------------------------------------------- */

bool eng_scheduler_create(const eng_scheduler_options *options, eng_scheduler **out, eng_error *err) {
    *out = NULL;
    eng_scheduler *s = calloc(1, sizeof *s);
    if (s == NULL) return eng_fail(err, "out of memory for the scheduler");
    s->options = *options;
    int32_t least = options->max_batch + MIN_PREFILL_ROWS;
    if (s->options.step_rows < least) s->options.step_rows = least;
    const eng_model_config *config = eng_model_config_of(options->model);
    s->max_positions = config->max_positions;
    s->vocab = config->vocab;
    s->running = calloc((size_t)options->max_batch, sizeof *s->running);
    bool ok = s->running != NULL || eng_fail(err, "out of memory for a batch of %d", (int)options->max_batch);
    s->largest = calloc((size_t)options->max_batch + 1, sizeof *s->largest);
    ok = ok && (s->largest != NULL || eng_fail(err, "out of memory for a batch of %d", (int)options->max_batch));
    ok = ok && eng_sampler_create(config->vocab, &s->sampler, err);
    ok = ok && eng_step_rows_create(&s->step, s->options.step_rows, options->max_batch + 1, err);
    if (!ok) {
        eng_scheduler_destroy(s);
        return false;
    }
    *out = s;
    return true;
}

static void take_back(eng_scheduler *s, eng_request *r) {
    for (int32_t i = 0; i < r->num_pages; i++) eng_kv_pool_give(s->options.pool, r->pages[i]);
    r->num_pages = r->computed = 0;
    if (r->pinned) eng_prompt_set_unpin(s->options.prompts, &r->path);
    r->pinned = false;
}

void eng_scheduler_destroy(eng_scheduler *s) {
    if (s == NULL) return;
    for (int32_t i = 0; i < s->num_running; i++) take_back(s, s->running[i]);
    eng_request *r;
    while ((r = eng_queue_pop(&s->waiting)) != NULL) take_back(s, r);
    eng_sampler_destroy(s->sampler);
    eng_step_rows_free(&s->step);
    free(s->running);
    free(s->logits);
    free(s->largest);
    free(s);
}

/* ---- ends --------------------------------------------------------------- */

static void end(eng_scheduler *s, eng_request *r, eng_finish how) {
    r->finish = how;
    if (!r->keep_pages || how == ENG_FINISH_ERROR || how == ENG_FINISH_NONE) take_back(s, r);
    eng_queue_push(&s->finished, r);
}

static void remove_running(eng_scheduler *s, int32_t index) {
    s->num_running--;
    memmove(s->running + index, s->running + index + 1, (size_t)(s->num_running - index) * sizeof *s->running);
}

void eng_scheduler_cancel(eng_scheduler *s, eng_request *r) {
    if (eng_queue_remove(&s->waiting, r)) end(s, r, ENG_FINISH_STOP);
    for (int32_t i = 0; i < s->num_running; i++) {
        if (s->running[i] != r) continue;
        remove_running(s, i);
        end(s, r, ENG_FINISH_STOP);
        return;
    }
}

void eng_scheduler_release(eng_scheduler *s, eng_request *r) {
    take_back(s, r);
}

/* ---- arrivals ----------------------------------------------------------- */

static int32_t pages_for(int64_t tokens) {
    return (int32_t)((tokens + ENG_PAGE_TOKENS - 1) / ENG_PAGE_TOKENS);
}

/* The last token of an answer is never computed, so it needs no place. */
static int64_t most_own_tokens(const eng_request *r) {
    return (int64_t)r->prompt_tokens + r->max_tokens - r->path.tokens - 1;
}

/* Whether the request could be computed with the pool to itself. */
static bool can_ever_run(const eng_scheduler *s, const eng_request *r, eng_error *err) {
    int64_t tokens = (int64_t)r->prompt_tokens + r->max_tokens;
    int64_t own = most_own_tokens(r);
    int32_t pages = eng_kv_pool_pages(s->options.pool);
    if (r->max_tokens < 1) return eng_fail(err, "max_tokens: expected at least 1, got %d", (int)r->max_tokens);
    if (r->prompt_tokens < 1) return eng_fail(err, "the prompt is empty: there is no token to go on from");
    if (tokens > s->max_positions)
        return eng_fail(err, "%d prompt tokens and max_tokens %d are more than the %d tokens that the model takes",
                        (int)r->prompt_tokens, (int)r->max_tokens, (int)s->max_positions);
    if (pages_for(own) > pages)
        return eng_fail(err, "%lld tokens of its own need %d pages of the K/V pool, which has %d: more --kv-memory "
                        "or a smaller max_tokens would do",
                        (long long)own, (int)pages_for(own), (int)pages);
    return true;
}

static void enqueue(eng_scheduler *s, eng_request *r) {
    r->seniority = s->next_seniority++;
    r->finish = ENG_FINISH_NONE;
    if (can_ever_run(s, r, &r->error)) eng_queue_push(&s->waiting, r);
    else end(s, r, ENG_FINISH_ERROR);
}

void eng_scheduler_add(eng_scheduler *s, eng_request *r) {
    r->num_pages = r->computed = 0;
    r->pinned = false;
    enqueue(s, r);
}

void eng_scheduler_add_again(eng_scheduler *s, eng_request *r) {
    enqueue(s, r);
}

void eng_scheduler_drop(eng_scheduler *s, bool all) {
    eng_request *r = s->waiting.first, *next;
    for (; r != NULL; r = next) {
        next = r->next;
        if (!all && eng_request_answer_tokens(r) > 0) continue;
        eng_queue_remove(&s->waiting, r);
        end(s, r, ENG_FINISH_NONE);
    }
    for (int32_t i = 0; all && i < s->num_running; i++) end(s, s->running[i], ENG_FINISH_NONE);
    if (all) s->num_running = 0;
    eng_prompt_set_abandon(s->options.prompts);
}

/* ---- admission ---------------------------------------------------------- */

typedef enum admission { ADMITTED, PROMPT_MISSING, NO_PAGES, ADMISSION_FAILED } admission;

static bool reserve_pages(eng_scheduler *s, eng_request *r, int32_t pages) {
    int32_t *grown = eng_grow(r->pages, &r->page_room, (size_t)pages, sizeof *grown, &r->error);
    if (grown == NULL) return false;
    r->pages = grown;
    while (r->num_pages < pages) r->pages[r->num_pages++] = eng_kv_pool_take(s->options.pool);
    return true;
}

static bool busy(const eng_scheduler *s) {
    return s->num_running > 0 || eng_prompt_set_filling(s->options.prompts) != NULL;
}

/* Starts on a node that a request waits for, unless another is being filled.  ADMITTED: it has come meanwhile. */
static admission begin_filling(eng_scheduler *s, eng_request *r, int32_t node) {
    bool full = false;
    if (eng_prompt_set_filling(s->options.prompts) != NULL) return PROMPT_MISSING;
    if (!eng_prompt_set_begin(s->options.prompts, node, busy(s), &full, &r->error)) return ADMISSION_FAILED;
    return full || eng_prompt_set_filling(s->options.prompts) != NULL ? PROMPT_MISSING : ADMITTED;
}

static admission pin_path(eng_scheduler *s, eng_request *r) {
    admission result = ADMITTED;
    while (!r->pinned && result == ADMITTED) {
        int32_t node;
        eng_prompt_state state = eng_prompt_set_pin(s->options.prompts, &r->path, &node, &r->error);
        r->pinned = state == ENG_PROMPT_READY;
        if (state == ENG_PROMPT_FAILED) result = ADMISSION_FAILED;
        if (state == ENG_PROMPT_MISSING) result = begin_filling(s, r, node);
    }
    return result;
}

/* Beside others, a newcomer that will grow leaves one page free: without it, it would soon be sent back. */
static admission admit_one(eng_scheduler *s, eng_request *r) {
    int32_t pages = pages_for(eng_request_own_tokens(r));
    int32_t spare = s->num_running > 0 && pages_for(most_own_tokens(r)) > pages ? 1 : 0;
    if (pages - r->num_pages + spare > eng_kv_pool_free_pages(s->options.pool)) return NO_PAGES;
    admission result = pin_path(s, r);
    if (result != ADMITTED) return result;
    return reserve_pages(s, r, pages) ? ADMITTED : ADMISSION_FAILED;
}

static void insert_running(eng_scheduler *s, eng_request *r) {
    int32_t at = s->num_running++;
    for (; at > 0 && s->running[at - 1]->seniority > r->seniority; at--) s->running[at] = s->running[at - 1];
    s->running[at] = r;
    if (s->num_running > s->stats.most_running) s->stats.most_running = s->num_running;
}

/* Requests whose prompt is missing are passed over; where pages are short nobody overtakes, or the
 * long ones would never get in. */
static void admit(eng_scheduler *s) {
    eng_request *r = s->waiting.first, *next;
    for (; r != NULL && s->num_running < s->options.max_batch; r = next) {
        next = r->next;
        admission result = admit_one(s, r);
        if (result == NO_PAGES) return;
        if (result == PROMPT_MISSING) continue;
        eng_queue_remove(&s->waiting, r);
        if (result == ADMITTED) insert_running(s, r);
        else end(s, r, ENG_FINISH_ERROR);
    }
}

/* ---- pages for the next token ------------------------------------------- */

static void preempt(eng_scheduler *s) {
    eng_request *r = s->running[s->num_running - 1];
    remove_running(s, s->num_running - 1);
    take_back(s, r);
    eng_queue_insert(&s->waiting, r);
    s->stats.preemptions++;
}

/* From the oldest on, so that it is never the oldest who has to wait. */
static bool find_pages(eng_scheduler *s, eng_error *err) {
    for (int32_t i = 0; i < s->num_running; i++) {
        eng_request *r = s->running[i];
        int32_t pages = pages_for(eng_request_own_tokens(r));
        while (i < s->num_running && pages - r->num_pages > eng_kv_pool_free_pages(s->options.pool)) preempt(s);
        if (i < s->num_running && !reserve_pages(s, r, pages)) {
            *err = r->error;
            return false;
        }
    }
    return true;
}

/* ---- a step ------------------------------------------------------------- */

static void compose(eng_scheduler *s) {
    eng_step_rows_clear(&s->step);
    for (int32_t i = 0; i < s->num_running; i++)
        if (eng_request_own_tokens(s->running[i]) - s->running[i]->computed == 1)
            eng_step_rows_add_request(&s->step, s->running[i]);
    if (eng_prompt_set_filling(s->options.prompts) != NULL) eng_step_rows_add_filling(&s->step, s->options.prompts);
    for (int32_t i = 0; i < s->num_running; i++)
        if (eng_request_own_tokens(s->running[i]) - s->running[i]->computed > 1)
            eng_step_rows_add_request(&s->step, s->running[i]);
}

static bool forward(eng_scheduler *s, eng_error *err) {
    eng_step_rows *rows = &s->step;
    float *grown = eng_grow(s->logits, &s->logit_room, (size_t)rows->num_logits * (size_t)s->vocab + 1, sizeof *grown, err);
    if (grown == NULL) return false;
    s->logits = grown;
    const eng_step step = {.rows = rows->num_rows, .tokens = rows->tokens, .positions = rows->positions,
                           .num_logit_rows = rows->num_logits, .logit_rows = rows->logit_rows, .logits = s->logits};
    return eng_attention_begin(s->options.attention, rows->sequences, rows->num_sequences, err) &&
           eng_model_forward(s->options.model, &step, eng_attention_run, s->options.attention, err);
}

/* Looking through a large vocabulary takes as long as reading it: all threads do. */
static void find_largest(eng_scheduler *s) {
    const int32_t count = s->step.num_logits, vocab = s->vocab;
#pragma omp parallel for schedule(static) if ((int64_t)count * vocab > (1 << 16))
    for (int32_t i = 0; i < count; i++)
        s->largest[i] = eng_sampler_largest(s->logits + (size_t)i * (size_t)vocab, vocab);
}

static void add_token(eng_scheduler *s, eng_request *r, float *logits, const int32_t *largest) {
    const eng_draw draw = {.stream = r->stream, .index = (uint64_t)eng_request_answer_tokens(r),
                           .context = r->tokens.ids, .context_size = (int32_t)r->tokens.count, .largest = largest};
    int32_t token = eng_sampler_pick(s->sampler, &r->sampling, &draw, logits);
    eng_finish how = ENG_FINISH_ERROR;
    if (token < 0) eng_fail(&r->error, "the model computed no numbers (NaN) for the next token");
    else if (eng_tokens_add(&r->tokens, token, &r->error)) {
        s->stats.answer_tokens++;
        how = s->options.on_token(s->options.user, r, token);
        if (how == ENG_FINISH_NONE && eng_request_answer_tokens(r) >= r->max_tokens) how = ENG_FINISH_LENGTH;
    }
    if (how == ENG_FINISH_NONE) return;
    for (int32_t i = 0; i < s->num_running; i++)
        if (s->running[i] == r) remove_running(s, i);
    end(s, r, how);
}

static bool use_results(eng_scheduler *s, double seconds, eng_error *err) {
    const eng_step_rows *rows = &s->step;
    double row_seconds = seconds / rows->num_rows;
    bool ok = true;
    for (int32_t i = 0; i < rows->num_sequences; i++) {
        int32_t n = rows->sequences[i].rows;
        if (rows->requests[i] != NULL) rows->requests[i]->computed += n;
        else ok = eng_prompt_set_filled(s->options.prompts, n, n * row_seconds, err);
        if (!ok) return false;
        if (n > 1 || rows->requests[i] == NULL) {
            s->stats.prefill_rows += n;
            s->stats.prefill_seconds += n * row_seconds;
        }
    }
    find_largest(s);
    for (int32_t i = 0; i < rows->num_logits; i++)
        add_token(s, rows->logit_requests[i], s->logits + (size_t)i * (size_t)s->vocab, &s->largest[i]);
    return true;
}

/* Nothing runs and nothing could be begun: whoever is first cannot be helped.  Not seen to happen; it
 * stands between a mistake in admission and a loop without end. */
static void refuse_first(eng_scheduler *s) {
    eng_request *r = eng_queue_pop(&s->waiting);
    if (r == NULL) return;
    eng_fail(&r->error, "no room in the K/V pool: %d of %d pages are free", (int)eng_kv_pool_free_pages(s->options.pool),
             (int)eng_kv_pool_pages(s->options.pool));
    end(s, r, ENG_FINISH_ERROR);
}

bool eng_scheduler_step(eng_scheduler *s, eng_error *err) {
    double begun = eng_seconds();
    admit(s);
    if (!find_pages(s, err)) return false;
    compose(s);
    if (s->step.num_rows == 0) {
        refuse_first(s);
        return true;
    }
    if (!forward(s, err)) return false;
    double seconds = eng_seconds() - begun;
    s->stats.steps++;
    s->stats.rows += s->step.num_rows;
    s->stats.seconds += seconds;
    return use_results(s, seconds, err);
}

/* ---- looking ------------------------------------------------------------ */

bool eng_scheduler_busy(const eng_scheduler *s) {
    return busy(s) || s->waiting.first != NULL;
}

int32_t eng_scheduler_waiting(const eng_scheduler *s) {
    return s->waiting.count;
}

int32_t eng_scheduler_running(const eng_scheduler *s) {
    return s->num_running;
}

eng_request *eng_scheduler_poll(eng_scheduler *s) {
    return eng_queue_pop(&s->finished);
}

eng_scheduler_stats eng_scheduler_get_stats(const eng_scheduler *s) {
    return s->stats;
}
