/* A decoder is a chain of stages through which tokens pass one by one.  A stage that fuses (Fuse, ByteLevel, the
 * joining of tokens by spaces) makes all that follows one long token, which the later stages see in parts: they work
 * on the parts where they can, and else wait for the end.  So the parts given out add up to what decoding everything
 * at once gives, and that is done by the same code. */
#include "token_decoder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "byte_level.h"
#include "common/json_read.h"
#include "metaspace.h"
#include "pattern.h"
#include "common/utf8.h"

#define MAX_DEPTH 8
#define MAX_STAGES 16
#define MAX_STRIP 4096

typedef enum stage_kind { REPLACE, BYTE_FALLBACK, FUSE, STRIP, METASPACE, BYTE_LEVEL, JOIN } stage_kind;

typedef struct stage {
    stage_kind kind;
    bool in_parts; /* what comes in is parts of one token */
    eng_pattern *pattern;
    eng_bytes content;
    eng_metaspace metaspace;
    char strip[4]; /* the character and its size */
    size_t strip_size, strip_start, strip_stop;
} stage;

struct eng_token_decoder {
    stage stages[MAX_STAGES];
    size_t count;
};

typedef struct stage_state {
    eng_bytes held;   /* bytes that wait for more */
    bool has_started; /* a token has come */
    size_t stripped;  /* characters taken from the front, for STRIP in parts */
    bool is_inside;   /* another character has come, for STRIP in parts */
} stage_state;

struct eng_decoding {
    const eng_token_decoder *decoder;
    stage_state states[MAX_STAGES];
    eng_spans spans;
    eng_bytes *out;
};

static bool load_replace(stage *s, const json_t *json, const char *where, eng_error *err) {
    const char *text;
    size_t size;
    s->kind = REPLACE;
    return eng_json_text(json, where, "content", &text, &size, err) &&
           eng_bytes_append(&s->content, text, size, err) && eng_pattern_load(json, where, &s->pattern, err);
}

static bool load_strip(stage *s, const json_t *json, const char *where, eng_error *err) {
    const char *text;
    size_t length = 0;
    int64_t start, stop;
    s->kind = STRIP;
    if (!eng_json_text(json, where, "content", &text, &s->strip_size, err)) return false;
    if (s->strip_size > 0) eng_utf8_decode(text, s->strip_size, &length);
    if (s->strip_size == 0 || length != s->strip_size)
        return eng_json_unexpected(where, "content", "one character", json_object_get(json, "content"), err);
    memcpy(s->strip, text, length);
    if (!eng_json_int(json, where, "start", 0, MAX_STRIP, &start, err) ||
        !eng_json_int(json, where, "stop", 0, MAX_STRIP, &stop, err))
        return false;
    s->strip_start = (size_t)start;
    s->strip_stop = (size_t)stop;
    return true;
}

static bool load_metaspace(stage *s, const json_t *json, const char *where, eng_error *err) {
    s->kind = METASPACE;
    return eng_metaspace_load(json, where, &s->metaspace, err);
}

static bool load_plain(stage *s, stage_kind kind) {
    s->kind = kind;
    return true;
}

static bool load_stage(stage *s, const char *type, const json_t *json, const char *where, eng_error *err) {
    if (strcmp(type, "Replace") == 0) return load_replace(s, json, where, err);
    if (strcmp(type, "Strip") == 0) return load_strip(s, json, where, err);
    if (strcmp(type, "Metaspace") == 0) return load_metaspace(s, json, where, err);
    if (strcmp(type, "ByteFallback") == 0) return load_plain(s, BYTE_FALLBACK);
    if (strcmp(type, "Fuse") == 0) return load_plain(s, FUSE);
    if (strcmp(type, "ByteLevel") == 0) return load_plain(s, BYTE_LEVEL);
    return eng_fail(err, "%s: unknown type \"%.60s\"; supported: Sequence, Replace, Strip, Metaspace, ByteFallback, "
                    "Fuse, ByteLevel", where, type);
}

static bool load_part(eng_token_decoder *decoder, const json_t *json, const char *where, int depth, eng_error *err);

static bool load_sequence(eng_token_decoder *decoder, const json_t *json, const char *where, int depth,
                          eng_error *err) {
    const json_t *parts;
    if (depth >= MAX_DEPTH) return eng_fail(err, "%s: sequences nested more than %d deep", where, MAX_DEPTH);
    if (!eng_json_array(json, where, "decoders", &parts, err)) return false;
    for (size_t i = 0; i < json_array_size(parts); i++) {
        char place[160];
        snprintf(place, sizeof place, "%.120s[%zu]", where, i);
        if (!load_part(decoder, json_array_get(parts, i), place, depth + 1, err)) return false;
    }
    return true;
}

static bool load_part(eng_token_decoder *decoder, const json_t *json, const char *where, int depth, eng_error *err) {
    const char *type;
    if (!json_is_object(json)) return eng_json_unexpected(where, "", "an object", json, err);
    if (!eng_json_string(json, where, "type", &type, err)) return false;
    if (strcmp(type, "Sequence") == 0) return load_sequence(decoder, json, where, depth, err);
    if (decoder->count == MAX_STAGES) return eng_fail(err, "%s: more than %d decoders", where, MAX_STAGES);
    return load_stage(&decoder->stages[decoder->count++], type, json, where, err);
}

static bool fuses(stage_kind kind) { return kind == FUSE || kind == BYTE_LEVEL || kind == JOIN; }

bool eng_token_decoder_load(const json_t *json, eng_token_decoder **out, eng_error *err) {
    *out = calloc(1, sizeof **out);
    if (*out == NULL) return eng_fail(err, "out of memory");
    if (json == NULL || json_is_null(json)) {
        (*out)->stages[(*out)->count++].kind = JOIN;
    } else if (!load_part(*out, json, "decoder", 0, err)) {
        eng_token_decoder_free(*out);
        *out = NULL;
        return false;
    }
    for (size_t i = 1; i < (*out)->count; i++) {
        const stage *before = &(*out)->stages[i - 1];
        (*out)->stages[i].in_parts = before->in_parts || fuses(before->kind);
    }
    return true;
}

void eng_token_decoder_free(eng_token_decoder *decoder) {
    if (decoder == NULL) return;
    for (size_t i = 0; i < decoder->count; i++) {
        eng_pattern_free(decoder->stages[i].pattern);
        eng_bytes_free(&decoder->stages[i].content);
    }
    free(decoder);
}

bool eng_decoding_start(const eng_token_decoder *decoder, eng_decoding **out, eng_error *err) {
    *out = calloc(1, sizeof **out);
    if (*out == NULL) return eng_fail(err, "out of memory");
    (*out)->decoder = decoder;
    return true;
}

void eng_decoding_free(eng_decoding *decoding) {
    if (decoding == NULL) return;
    for (size_t i = 0; i < MAX_STAGES; i++) eng_bytes_free(&decoding->states[i].held);
    eng_spans_free(&decoding->spans);
    free(decoding);
}

static bool push_to(eng_decoding *d, size_t place, const char *text, size_t size, eng_error *err);

static bool push_bytes(eng_decoding *d, size_t place, eng_bytes *bytes, bool ok, eng_error *err) {
    ok = ok && push_to(d, place, bytes->data ? bytes->data : "", bytes->size, err);
    eng_bytes_free(bytes);
    return ok;
}

static bool replace(eng_decoding *d, size_t place, const char *text, size_t size, eng_error *err) {
    const stage *s = &d->decoder->stages[place];
    eng_bytes out = {0};
    bool ok = eng_pattern_find(s->pattern, text, size, &d->spans, err);
    for (size_t i = 0; ok && i < d->spans.count; i++) {
        eng_span span = d->spans.list[i];
        ok = span.is_match ? eng_bytes_append(&out, s->content.data, s->content.size, err)
                           : eng_bytes_append(&out, text + span.begin, span.end - span.begin, err);
    }
    return push_bytes(d, place + 1, &out, ok, err);
}

/* The value of <0xNN>, or -1.  The package lets a sign take the place of the first digit. */
static int byte_token(const char *text, size_t size) {
    if (size != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    int value = 0;
    for (size_t i = 3; i < 5; i++) {
        char c = text[i], letter = (char)(c | 0x20);
        if (i == 3 && c == '+') continue;
        if (c >= '0' && c <= '9') {
            value = value * 16 + (c - '0');
        } else if (letter >= 'a' && letter <= 'f') {
            value = value * 16 + (letter - 'a' + 10);
        } else {
            return -1;
        }
    }
    return value;
}

/* A run of byte tokens is a text where it is UTF-8 as a whole, and else one U+FFFD for each byte. */
static bool flush_run(eng_decoding *d, size_t place, eng_error *err) {
    eng_bytes *held = &d->states[place].held;
    size_t size = held->size;
    held->size = 0;
    if (size == 0) return true;
    if (eng_utf8_is_valid(held->data, size)) return push_to(d, place + 1, held->data, size, err);
    for (size_t i = 0; i < size; i++)
        if (!push_to(d, place + 1, "\xEF\xBF\xBD", 3, err)) return false;
    return true;
}

static bool byte_fallback(eng_decoding *d, size_t place, const char *text, size_t size, eng_error *err) {
    int byte = byte_token(text, size);
    char value = (char)byte;
    if (byte >= 0) return eng_bytes_append(&d->states[place].held, &value, 1, err);
    return flush_run(d, place, err) && push_to(d, place + 1, text, size, err);
}

static bool join(eng_decoding *d, size_t place, const char *text, size_t size, eng_error *err) {
    bool first = !d->states[place].has_started;
    d->states[place].has_started = true;
    return (first || push_to(d, place + 1, " ", 1, err)) && push_to(d, place + 1, text, size, err);
}

static bool is_strip_character(const stage *s, const char *text, size_t length) {
    return length == s->strip_size && memcmp(text, s->strip, length) == 0;
}

static size_t strip_front(const stage *s, const char *text, size_t size) {
    size_t at = 0, length;
    for (size_t i = 0; i < s->strip_start && at < size; i++, at += length) {
        eng_utf8_decode(text + at, size - at, &length);
        if (!is_strip_character(s, text + at, length)) break;
    }
    return at;
}

static size_t strip_back(const stage *s, const char *text, size_t size) {
    for (size_t i = 0; i < s->strip_stop && size >= s->strip_size; i++) {
        if (memcmp(text + size - s->strip_size, s->strip, s->strip_size) != 0) break;
        size -= s->strip_size;
    }
    return size;
}

static bool strip_token(eng_decoding *d, size_t place, const char *text, size_t size, eng_error *err) {
    const stage *s = &d->decoder->stages[place];
    size_t begin = strip_front(s, text, size), end = strip_back(s, text, size);
    return push_to(d, place + 1, text + begin, end > begin ? end - begin : 0, err);
}

/* The end of the text is not known yet, so what might be stripped there waits. */
static bool strip_part(eng_decoding *d, size_t place, const char *text, size_t size, eng_error *err) {
    const stage *s = &d->decoder->stages[place];
    stage_state *state = &d->states[place];
    size_t length;
    for (; !state->is_inside && size > 0; text += length, size -= length, state->stripped++) {
        eng_utf8_decode(text, size, &length);
        state->is_inside = state->stripped == s->strip_start || !is_strip_character(s, text, length);
        if (state->is_inside) break;
    }
    if (!eng_bytes_append(&state->held, text, size, err)) return false;
    size_t settled = strip_back(s, state->held.data, state->held.size), waiting = state->held.size - settled;
    bool ok = settled == 0 || push_to(d, place + 1, state->held.data, settled, err);
    if (waiting > 0) memmove(state->held.data, state->held.data + settled, waiting);
    state->held.size = waiting;
    return ok;
}

static bool metaspace(eng_decoding *d, size_t place, const char *text, size_t size, eng_error *err) {
    const stage *s = &d->decoder->stages[place];
    stage_state *state = &d->states[place];
    eng_bytes out = {0};
    bool is_first = s->in_parts || !state->has_started;
    state->has_started = true;
    bool ok = eng_metaspace_decode(&s->metaspace, text, size, is_first, &out, err);
    return push_bytes(d, place + 1, &out, ok, err);
}

/* Appends the token's bytes, or its text where some character stands for none. */
static bool append_byte_level(eng_bytes *held, const char *text, size_t size, eng_error *err) {
    size_t before = held->size;
    for (size_t at = 0, length; at < size; at += length) {
        int byte = eng_byte_level_byte(eng_utf8_decode(text + at, size - at, &length));
        char value = (char)byte;
        if (byte < 0) {
            held->size = before;
            return eng_bytes_append(held, text, size, err);
        }
        if (!eng_bytes_append(held, &value, 1, err)) return false;
    }
    return true;
}

/* What of the bytes held is settled: all but a character whose end is missing. */
static size_t settled_size(const eng_bytes *held) {
    size_t at = 0, length;
    uint32_t code;
    for (; at < held->size; at += length)
        if (eng_utf8_next(held->data + at, held->size - at, &length, &code) == ENG_UTF8_INCOMPLETE) break;
    return at;
}

static bool push_repaired(eng_decoding *d, size_t place, size_t size, eng_error *err) {
    eng_bytes *held = &d->states[place].held, out = {0};
    bool ok = eng_utf8_append_repaired(&out, held->data, size, err);
    if (ok && held->size > size) memmove(held->data, held->data + size, held->size - size);
    held->size -= size;
    return push_bytes(d, place + 1, &out, ok, err);
}

static bool byte_level(eng_decoding *d, size_t place, const char *text, size_t size, eng_error *err) {
    eng_bytes *held = &d->states[place].held;
    if (!append_byte_level(held, text, size, err)) return false;
    return push_repaired(d, place, settled_size(held), err);
}

/* These need the whole of a token. */
static bool waits_for_end(const stage *s) {
    return s->in_parts && (s->kind == REPLACE || s->kind == BYTE_FALLBACK || s->kind == BYTE_LEVEL);
}

static bool process(eng_decoding *d, size_t place, const char *text, size_t size, eng_error *err) {
    const stage *s = &d->decoder->stages[place];
    switch (s->kind) {
    case REPLACE: return replace(d, place, text, size, err);
    case BYTE_FALLBACK: return byte_fallback(d, place, text, size, err);
    case FUSE: return push_to(d, place + 1, text, size, err);
    case STRIP: return s->in_parts ? strip_part(d, place, text, size, err) : strip_token(d, place, text, size, err);
    case METASPACE: return metaspace(d, place, text, size, err);
    case BYTE_LEVEL: return byte_level(d, place, text, size, err);
    case JOIN: return join(d, place, text, size, err);
    }
    return false;
}

static bool push_to(eng_decoding *d, size_t place, const char *text, size_t size, eng_error *err) {
    if (place == d->decoder->count) return eng_bytes_append(d->out, text, size, err);
    if (waits_for_end(&d->decoder->stages[place])) return eng_bytes_append(&d->states[place].held, text, size, err);
    return process(d, place, text, size, err);
}

static bool finish_stage(eng_decoding *d, size_t place, eng_error *err) {
    const stage *s = &d->decoder->stages[place];
    eng_bytes *held = &d->states[place].held;
    if (waits_for_end(s)) {
        eng_bytes whole = *held;
        *held = (eng_bytes){0};
        bool ok = process(d, place, whole.data ? whole.data : "", whole.size, err);
        eng_bytes_free(&whole);
        if (!ok) return false;
    }
    if (s->kind == BYTE_FALLBACK) return flush_run(d, place, err);
    if (s->kind == BYTE_LEVEL) return push_repaired(d, place, held->size, err);
    return true;
}

bool eng_decoding_push(eng_decoding *decoding, const char *token, size_t size, eng_bytes *out, eng_error *err) {
    decoding->out = out;
    return push_to(decoding, 0, token, size, err);
}

bool eng_decoding_finish(eng_decoding *decoding, eng_bytes *out, eng_error *err) {
    decoding->out = out;
    for (size_t i = 0; i < decoding->decoder->count; i++)
        if (!finish_stage(decoding, i, err)) return false;
    return true;
}
