#include "conversation.h"

#include <string.h>

static const char *system_of(const eng_talk *talk, const char *system) {
    return system != NULL ? system : talk->default_system;
}

static bool append_bos(const eng_talk *talk, eng_tokens *out, eng_error *err) {
    int32_t bos = talk->writes_bos ? eng_tokenizer_bos(talk->tokenizer) : -1;
    return bos < 0 || eng_tokens_append(out, &bos, 1, err);
}

bool eng_talk_begin_on(const eng_talk *talk, const eng_talk_stem *stem, const char *system, const char *user,
                       eng_tokens *out, eng_error *err) {
    eng_bytes text = {0};
    size_t from = stem->resume, first = out->count;
    bool ok = eng_template_render(talk->format, system_of(talk, system), user, &text, err) &&
              (from > 0 ? eng_tokens_append(out, stem->tokens.ids, stem->tokens.count, err) : append_bos(talk, out, err)) &&
              eng_tokenizer_encode(talk->tokenizer, text.data + from, text.size - from,
                                   from == 0 && eng_template_is_raw(talk->format), out, err);
    eng_bytes_free(&text);
    if (!ok) out->count = first;
    return ok;
}

bool eng_talk_begin(const eng_talk *talk, const char *system, const char *user, eng_tokens *out, eng_error *err) {
    return eng_talk_begin_on(talk, &(eng_talk_stem){0}, system, user, out, err);
}

/* Whether the tokeniser's own special tokens all come before a text. */
static bool only_begins(const eng_tokenizer *tokenizer, bool *out, eng_error *err) {
    eng_tokens plain = {0}, whole = {0};
    bool ok = eng_tokenizer_encode(tokenizer, "a", 1, false, &plain, err) &&
              eng_tokenizer_encode(tokenizer, "a", 1, true, &whole, err);
    size_t more = whole.count - plain.count;
    *out = ok && plain.count > 0 && whole.count >= plain.count &&
           memcmp(whole.ids + more, plain.ids, plain.count * sizeof *plain.ids) == 0;
    eng_tokens_free(&plain);
    eng_tokens_free(&whole);
    return ok;
}

static bool fill_stem(const eng_talk *talk, const eng_bytes *text, eng_talk_stem *out, eng_error *err) {
    bool raw = eng_template_is_raw(talk->format), settles = true;
    if (text->size == 0 || (raw && !only_begins(talk->tokenizer, &settles, err))) return text->size == 0;
    eng_settled settled = {0};
    if (settles) settled = eng_tokenizer_settled(talk->tokenizer, text->data, text->size);
    if (settled.end == 0) return true;
    out->resume = settled.resume;
    return append_bos(talk, &out->tokens, err) &&
           eng_tokenizer_encode(talk->tokenizer, text->data, settled.end, raw, &out->tokens, err);
}

bool eng_talk_prepare(const eng_talk *talk, const char *system, eng_talk_stem *out, eng_error *err) {
    eng_bytes text = {0};
    *out = (eng_talk_stem){0};
    bool ok = eng_template_render_open(talk->format, system_of(talk, system), &text, err) && fill_stem(talk, &text, out, err);
    eng_bytes_free(&text);
    if (!ok) eng_talk_stem_free(out);
    return ok;
}

void eng_talk_stem_free(eng_talk_stem *stem) {
    eng_tokens_free(&stem->tokens);
    *stem = (eng_talk_stem){0};
}

/* The model may have closed its answer itself: nothing up to that token is said twice. */
static size_t already_said(const eng_talk *talk, const eng_tokens *said, const eng_tokens *next) {
    char end[64];
    size_t size;
    const char *text = eng_template_turn_end(talk->format, &size);
    if (size == 0 || size >= sizeof end || said->count == 0) return 0;
    memcpy(end, text, size);
    end[size] = '\0';
    int32_t id = eng_tokenizer_token_id(talk->tokenizer, end);
    if (id < 0 || said->ids[said->count - 1] != id) return 0;
    for (size_t i = 0; i < next->count; i++)
        if (next->ids[i] == id) return i + 1;
    return 0;
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
