/* A list of token ids that grows. */
#ifndef RELAY_ENGINE_TOKENS_H
#define RELAY_ENGINE_TOKENS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/* All zero is an empty one. */
typedef struct eng_tokens {
    int32_t *ids;
    size_t count, room;
} eng_tokens;

bool eng_tokens_reserve(eng_tokens *tokens, size_t more, eng_error *err);
bool eng_tokens_add(eng_tokens *tokens, int32_t id, eng_error *err);
bool eng_tokens_append(eng_tokens *tokens, const int32_t *ids, size_t count, eng_error *err);
void eng_tokens_free(eng_tokens *tokens);

#endif
