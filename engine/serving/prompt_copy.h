/* A prompt's K/V under another prompt's name: for timing what private copies cost.
 *
 * Thirty-two prompts of 4,000 tokens would take minutes to compute and hold the same number of bytes as
 * thirty-two copies of one.  The copy is real memory, packed anew; only its numbers are another prompt's. */
#ifndef RELAY_ENGINE_PROMPT_COPY_H
#define RELAY_ENGINE_PROMPT_COPY_H

#include "kv_pool.h"
#include "prompt_set.h"

/* `from` is in memory and `to` is not yet; both are single nodes of the same length.  The set counts the
 * tokens as computed.  On failure `to` is still missing. */
bool eng_prompt_copy(eng_prompt_set *set, const eng_kv_shape *shape, int32_t from, int32_t to, eng_error *err);

#endif
