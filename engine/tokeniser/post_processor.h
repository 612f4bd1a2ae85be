/* The `post_processor` of a tokenizer.json: the special tokens put around an input. */
#ifndef RELAY_ENGINE_POST_PROCESSOR_H
#define RELAY_ENGINE_POST_PROCESSOR_H

#include <jansson.h>
#include <stdbool.h>

#include "tokens.h"

typedef struct eng_post_processor eng_post_processor;

/* `json` may be NULL or null: nothing is put around. */
bool eng_post_processor_load(const json_t *json, eng_post_processor **out, eng_error *err);
void eng_post_processor_free(eng_post_processor *processor);

/* Rewrites the tokens of one input; without `add_special` no special token is added. */
bool eng_post_processor_apply(const eng_post_processor *processor, bool add_special, eng_tokens *tokens,
                              eng_error *err);

#endif
