#include "tokens.h"

#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"

bool eng_tokens_reserve(eng_tokens *tokens, size_t more, eng_error *err) {
    if (more > SIZE_MAX - tokens->count) return eng_fail(err, "out of memory for tokens");
    int32_t *ids = eng_grow(tokens->ids, &tokens->room, tokens->count + more, sizeof *ids, err);
    if (ids == NULL) return false;
    tokens->ids = ids;
    return true;
}

bool eng_tokens_add(eng_tokens *tokens, int32_t id, eng_error *err) {
    if (!eng_tokens_reserve(tokens, 1, err)) return false;
    tokens->ids[tokens->count++] = id;
    return true;
}

bool eng_tokens_append(eng_tokens *tokens, const int32_t *ids, size_t count, eng_error *err) {
    if (!eng_tokens_reserve(tokens, count, err)) return false;
    if (count > 0) memcpy(tokens->ids + tokens->count, ids, count * sizeof *ids);
    tokens->count += count;
    return true;
}

void eng_tokens_free(eng_tokens *tokens) {
    free(tokens->ids);
    *tokens = (eng_tokens){0};
}
