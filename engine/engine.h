/* The embedded host in one piece: a checkpoint, its tokeniser, system prompts, and requests that are
 * answered together.
 *
 *     eng_engine_open -> eng_engine_add_prompt ... -> eng_engine_start
 *     -> (eng_engine_submit, eng_engine_step, eng_engine_poll) ... -> eng_engine_close
 *
 * An engine belongs to one thread; its work is spread over the device's threads inside a step. */
#ifndef RELAY_ENGINE_ENGINE_H
#define RELAY_ENGINE_ENGINE_H

#include "serving/answer.h"
#include "model/model.h"
#include "relay/plan.h"
#include "serving/scheduler.h"
#include "serving/template.h"

typedef struct eng_engine_options {
    const char *model_dir;
    const char *random_shape;  /* instead of model_dir: eng_model_random's, tokens in and out, no text */
    const char *template_name; /* NULL: the checkpoint's own */
    const char *cache_dir;     /* for system prompts; NULL: memory only */
    int32_t threads;           /* 0: one for each processor */
    eng_compute compute;
    relay_dtype kv_dtype;      /* 0: f32 with ENG_COMPUTE_F32, else the checkpoint's */
    uint64_t kv_bytes;         /* the paged pool; system prompts come on top */
    uint64_t prompt_bytes;     /* system prompts in memory; 0: no bound */
    int32_t max_batch, step_rows;
    relay_strategy strategy;
    bool repeatable;           /* an answer's bits do not depend on the batch */
    bool ignore_eos;           /* every answer has max_tokens: for timing */
    relay_log_fn log;
    void *log_user;
} eng_engine_options;

eng_engine_options eng_engine_options_defaults(void);

typedef struct eng_engine eng_engine;
bool eng_engine_open(const eng_engine_options *options, eng_engine **out, eng_error *err);
void eng_engine_close(eng_engine *engine); /* frees the answers that are still its own */

/* Prompts count from 0.  `name` is for messages. */
bool eng_engine_add_prompt(eng_engine *engine, const char *name, const char *text, eng_error *err);
bool eng_engine_add_prompt_tokens(eng_engine *engine, const int32_t *tokens, int32_t count, eng_error *err);

/* All prompts are known: from here on requests are taken. */
bool eng_engine_start(eng_engine *engine, eng_error *err);

/* Brings a prompt's K/V in, from the cache or by computing it, before any request wants it. */
bool eng_engine_prepare(eng_engine *engine, int32_t prompt, eng_error *err);

/* For timing: gives prompt `to` the K/V of `from`, which has been brought in, instead of computing it.
 * What is answered under `to` is then an answer under `from`.  See prompt_copy.h. */
bool eng_engine_copy_prompt(eng_engine *engine, int32_t from, int32_t to, eng_error *err);

/* From the next step on; on failure the engine is of no more use. */
bool eng_engine_set_strategy(eng_engine *engine, relay_strategy strategy, eng_error *err);

enum { ENG_NO_PROMPT = -1 };

typedef struct eng_submission {
    int32_t prompt;            /* or ENG_NO_PROMPT */
    const char *text;          /* or tokens: the whole sequence, the prompt's tokens included */
    const int32_t *tokens;
    int32_t num_tokens;
    int32_t max_tokens;
    bool shorten;              /* max_tokens is a default: less where the model's maximum is nearer */
    eng_sampling sampling;
    uint64_t stream;           /* of random numbers, see eng_stream_of */
    eng_stops stops;           /* borrowed until the answer is freed */
    bool keep;                 /* for eng_engine_continue */
    void *user;
} eng_submission;

/* A stream of random numbers for a request's id. */
uint64_t eng_stream_of(const char *id);

/* *out is the engine's until eng_engine_poll gives it out.  A request that can never be answered is
 * given out with its error; false is for what is wrong with the engine itself. */
bool eng_engine_submit(eng_engine *engine, const eng_submission *submission, eng_answer **out, eng_error *err);

/* The next turn of a polled answer that was kept: what was said so far, `text`, and the answer to it,
 * in a fresh answer->text. */
bool eng_engine_continue(eng_engine *engine, eng_answer *answer, const char *text, int32_t max_tokens, bool shorten,
                         eng_error *err);

void eng_engine_cancel(eng_engine *engine, eng_answer *answer);

/* Gives up the requests that have not begun to be answered, or all: polling gives them out with
 * ENG_FINISH_NONE. */
void eng_engine_drop(eng_engine *engine, bool all);

bool eng_engine_busy(const eng_engine *engine);
bool eng_engine_step(eng_engine *engine, eng_error *err);

/* A finished answer, the caller's from now on; NULL when there is none. */
eng_answer *eng_engine_poll(eng_engine *engine);
void eng_engine_free_answer(eng_engine *engine, eng_answer *answer);

/* ---- reading ---- */

const eng_model *eng_engine_model(const eng_engine *engine);
const eng_scheduler *eng_engine_scheduler(const eng_engine *engine);
const eng_prompt_set *eng_engine_prompts(const eng_engine *engine);
int32_t eng_engine_shared_index(const eng_engine *engine, int32_t prompt); /* in that set; -1: not in it */
const char *eng_engine_template_name(const eng_engine *engine);
relay_dtype eng_engine_kv_dtype(const eng_engine *engine);

typedef struct eng_engine_stats {
    eng_scheduler_stats scheduler;
    eng_attention_stats attention;
    eng_prompt_set_stats prompts;
    relay_prompt_cache_stats cache;
    uint64_t peak_pool_bytes;
} eng_engine_stats;
eng_engine_stats eng_engine_get_stats(const eng_engine *engine);

#endif
