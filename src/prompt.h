/* What the plan and the run need of a pinned prompt. */
#ifndef RELAY_PROMPT_H
#define RELAY_PROMPT_H

#include "relay/prompt_cache.h"

typedef struct relayi_prompt_shape {
    int32_t num_tokens, num_layers, num_kv_heads, head_dim;
    relay_dtype kv_dtype;
} relayi_prompt_shape;

relayi_prompt_shape relayi_prompt_get_shape(const relay_prompt *prompt);

/* The packed K and V areas (packed.h) of one kv head of one layer; arguments are in range. */
void relayi_prompt_head(const relay_prompt *prompt, int32_t layer, int32_t kv_head,
                        const void **key, const void **value);

#endif
