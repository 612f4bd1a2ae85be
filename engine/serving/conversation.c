#include "conversation.h"

#include <string.h>

bool eng_talk_begin(const eng_talk *talk, const char *system, const char *user, eng_tokens *out, eng_error *err) {
    eng_bytes text = {0};
    bool ok = eng_template_render(talk->format, system, user, &text, err) &&
              eng_tokenizer_encode(talk->tokenizer, text.data, text.size, eng_template_is_raw(talk->format), out, err);
    eng_bytes_free(&text);
    return ok;
}

/* The model may have closed its answer itself: the token is not said twice. */
static size_t already_said(const eng_talk *talk, const eng_tokens *said, const eng_tokens *next) {
    size_t size;
    eng_template_turn_end(talk->format, &size);
    bool closed = size > 0 && said->count > 0 && next->count > 0 && said->ids[said->count - 1] == next->ids[0];
    return closed ? 1 : 0;
}

bool eng_talk_go_on(const eng_talk *talk, const char *user, eng_tokens *tokens, eng_error *err) {
    eng_bytes text = {0};
    eng_tokens next = {0};
    bool ok = eng_template_render_next(talk->format, user, &text, err) &&
              eng_tokenizer_encode(talk->tokenizer, text.data, text.size, false, &next, err);
    if (ok) {
        size_t said = already_said(talk, tokens, &next);
        ok = eng_tokens_append(tokens, next.ids + said, next.count - said, err);
    }
    eng_bytes_free(&text);
    eng_tokens_free(&next);
    return ok;
}

bool eng_talk_shared(const eng_talk *talk, const char *system, eng_tokens *out, eng_error *err) {
    static const char *const beginnings[] = {"", "a", "Z", "1"}; /* no two of them one token in every vocabulary */
    size_t first = out->count, common = 0;
    if (!eng_talk_begin(talk, system, beginnings[0], out, err)) return false;
    common = out->count - first;
    for (size_t i = 1; i < sizeof beginnings / sizeof *beginnings; i++) {
        eng_tokens other = {0};
        if (!eng_talk_begin(talk, system, beginnings[i], &other, err)) {
            eng_tokens_free(&other);
            out->count = first;
            return false;
        }
        size_t n = 0;
        while (n < common && n < other.count && out->ids[first + n] == other.ids[n]) n++;
        common = n;
        eng_tokens_free(&other);
    }
    out->count = first + common;
    return true;
}
