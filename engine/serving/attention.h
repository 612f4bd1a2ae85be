/* The model's attention on librelayattn: system prompts from the prompt cache, each request's own
 * tokens from the paged pool, one plan a step for each kind of layer (full, sliding window). */
#ifndef RELAY_ENGINE_ATTENTION_H
#define RELAY_ENGINE_ATTENTION_H

#include "kv_pool.h"
#include "model/model.h"
#include "prompt_set.h"
#include "relay/plan.h"

/* What one sequence adds to a step.  The rows of a step are those of its sequences, one after the other. */
typedef struct eng_sequence {
    int32_t rows;
    eng_path path;        /* what it stands on, pinned */
    int32_t own_tokens;   /* behind the path, the new ones included */
    const int32_t *pages; /* that hold them; NULL: the tokens of the prompt being filled, which go into it
                             (at most one such sequence a step; its own tokens are its rows) */
} eng_sequence;

typedef struct eng_attention_options {
    relay_device *device;            /* these four are borrowed */
    const eng_model_config *config;
    eng_kv_pool *pool;
    eng_prompt_set *prompts;
    relay_dtype query_dtype;
    relay_strategy strategy;
    bool repeatable;
} eng_attention_options;

typedef struct eng_attention eng_attention;
bool eng_attention_create(const eng_attention_options *options, eng_attention **out, eng_error *err);
void eng_attention_destroy(eng_attention *attention);

/* From the next step on.  On failure it is of no more use. */
bool eng_attention_set_strategy(eng_attention *attention, relay_strategy strategy, eng_error *err);

/* Plans a step. */
bool eng_attention_begin(eng_attention *attention, const eng_sequence *sequences, int32_t count, eng_error *err);

/* The eng_attend_fn of that step; `user` is the eng_attention. */
bool eng_attention_run(void *user, int32_t layer, const eng_attend_io *io, eng_error *err);

typedef struct eng_attention_stats {
    int64_t relay_steps; /* in which a shared segment was read once for several requests */
    int64_t plain_steps; /* the others */
    int64_t shared_tokens_saved; /* K/V tokens of one layer that were not read again, over all steps */
    double seconds;
} eng_attention_stats;
eng_attention_stats eng_attention_get_stats(const eng_attention *attention);

#endif
