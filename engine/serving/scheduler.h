/* Continuous batching over a paged pool.
 *
 * A step computes one row for every request that is answering, then tokens of a system prompt that
 * requests wait for, then chunks of prompts, up to a number of rows.  A request enters when its
 * system prompt is there and its tokens find pages; where pages run out, the youngest request gives
 * its own up and is computed again later, from its prompt and what it had answered.  The oldest always
 * goes on, and every admitted request fits the pool alone, so that there is no deadlock. */
#ifndef RELAY_ENGINE_SCHEDULER_H
#define RELAY_ENGINE_SCHEDULER_H

#include "attention.h"
#include "request.h"

/* Called with each token of an answer, which is already in request->tokens: says whether the answer
 * ends with it.  An ENG_FINISH_ERROR leaves its reason in request->error. */
typedef eng_finish (*eng_token_fn)(void *user, eng_request *request, int32_t token);

typedef struct eng_scheduler_options {
    eng_model *model; /* these four are borrowed */
    eng_kv_pool *pool;
    eng_prompt_set *prompts;
    eng_attention *attention;
    int32_t max_batch; /* requests at once */
    int32_t step_rows; /* rows of a step; more where max_batch needs it */
    eng_token_fn on_token;
    void *user;
} eng_scheduler_options;

typedef struct eng_scheduler eng_scheduler;
bool eng_scheduler_create(const eng_scheduler_options *options, eng_scheduler **out, eng_error *err);

/* Requests that are not finished lose their pages and pins, and stay the caller's. */
void eng_scheduler_destroy(eng_scheduler *scheduler);

/* Borrows a request until it is finished.  One that can never be computed (longer than the model or
 * the pool) is finished at once, with its error. */
void eng_scheduler_add(eng_scheduler *scheduler, eng_request *request);

/* Goes on with a finished request that kept its pages and has got more tokens. */
void eng_scheduler_add_again(eng_scheduler *scheduler, eng_request *request);

/* Ends a request that is waiting or running, as if it had stopped. */
void eng_scheduler_cancel(eng_scheduler *scheduler, eng_request *request);

/* Takes back the pages and pins that a finished request kept. */
void eng_scheduler_release(eng_scheduler *scheduler, eng_request *request);

/* Gives up the requests that wait and have no token of an answer yet, or all there are: poll gives them
 * out with ENG_FINISH_NONE. */
void eng_scheduler_drop(eng_scheduler *scheduler, bool all);

/* One forward step.  False where the model or memory failed: no request is lost, none goes on. */
bool eng_scheduler_step(eng_scheduler *scheduler, eng_error *err);

/* Whether a step has anything to do. */
bool eng_scheduler_busy(const eng_scheduler *scheduler);
int32_t eng_scheduler_waiting(const eng_scheduler *scheduler);
int32_t eng_scheduler_running(const eng_scheduler *scheduler);

/* The next finished request, or NULL. */
eng_request *eng_scheduler_poll(eng_scheduler *scheduler);

typedef struct eng_scheduler_stats {
    int64_t steps, preemptions, rows, prefill_rows, answer_tokens;
    int32_t most_running;
    double seconds, prefill_seconds; /* of steps; their prefill rows' share, system prompts included */
} eng_scheduler_stats;
eng_scheduler_stats eng_scheduler_get_stats(const eng_scheduler *scheduler);

#endif
