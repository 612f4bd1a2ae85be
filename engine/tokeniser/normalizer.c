#include "normalizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "common/json_read.h"
#include "unicode.h"
#include "common/utf8.h"

#define MAX_DEPTH 8

typedef enum step_kind { PREPEND, REPLACE, UNICODE_FORM, LOWERCASE, STRIP } step_kind;

typedef struct step {
    step_kind kind;
    eng_bytes content;   /* PREPEND, REPLACE */
    eng_pattern *pattern; /* REPLACE */
    int form;            /* UNICODE_FORM: utf8proc's options */
    bool left, right;    /* STRIP */
} step;

struct eng_normalizer {
    step *steps;
    size_t count, room;
};

static bool load_content(step *s, const json_t *json, const char *where, const char *field, eng_error *err) {
    const char *text;
    size_t size;
    return eng_json_text(json, where, field, &text, &size, err) && eng_bytes_append(&s->content, text, size, err);
}

static bool load_prepend(step *s, const json_t *json, const char *where, eng_error *err) {
    s->kind = PREPEND;
    return load_content(s, json, where, "prepend", err);
}

static bool load_replace(step *s, const json_t *json, const char *where, eng_error *err) {
    s->kind = REPLACE;
    return load_content(s, json, where, "content", err) && eng_pattern_load(json, where, &s->pattern, err);
}

static bool load_strip(step *s, const json_t *json, const char *where, eng_error *err) {
    s->kind = STRIP;
    return eng_json_bool(json, where, "strip_left", &s->left, err) &&
           eng_json_bool(json, where, "strip_right", &s->right, err);
}

static bool load_lowercase(step *s, const json_t *json, const char *where, eng_error *err) {
    (void)json, (void)where, (void)err;
    s->kind = LOWERCASE;
    return true;
}

static bool load_form(step *s, int form) {
    s->kind = UNICODE_FORM;
    s->form = UTF8PROC_STABLE | form;
    return true;
}

static bool load_part(eng_normalizer *normalizer, const json_t *json, const char *where, int depth, eng_error *err);

static bool load_sequence(eng_normalizer *normalizer, const json_t *json, const char *where, int depth,
                          eng_error *err) {
    const json_t *parts;
    if (depth >= MAX_DEPTH) return eng_fail(err, "%s: sequences nested more than %d deep", where, MAX_DEPTH);
    if (!eng_json_array(json, where, "normalizers", &parts, err)) return false;
    for (size_t i = 0; i < json_array_size(parts); i++) {
        char place[160];
        snprintf(place, sizeof place, "%.120s[%zu]", where, i);
        if (!load_part(normalizer, json_array_get(parts, i), place, depth + 1, err)) return false;
    }
    return true;
}

static bool load_step(step *s, const char *type, const json_t *json, const char *where, eng_error *err) {
    if (strcmp(type, "Prepend") == 0) return load_prepend(s, json, where, err);
    if (strcmp(type, "Replace") == 0) return load_replace(s, json, where, err);
    if (strcmp(type, "Strip") == 0) return load_strip(s, json, where, err);
    if (strcmp(type, "Lowercase") == 0) return load_lowercase(s, json, where, err);
    if (strcmp(type, "NFC") == 0) return load_form(s, UTF8PROC_COMPOSE);
    if (strcmp(type, "NFD") == 0) return load_form(s, UTF8PROC_DECOMPOSE);
    if (strcmp(type, "NFKC") == 0) return load_form(s, UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
    if (strcmp(type, "NFKD") == 0) return load_form(s, UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
    return eng_fail(err, "%s: unknown type \"%.60s\"; supported: Sequence, Prepend, Replace, NFC, NFD, NFKC, NFKD, "
                    "Lowercase, Strip", where, type);
}

static bool load_part(eng_normalizer *normalizer, const json_t *json, const char *where, int depth, eng_error *err) {
    const char *type;
    if (!json_is_object(json)) return eng_json_unexpected(where, "", "an object", json, err);
    if (!eng_json_string(json, where, "type", &type, err)) return false;
    if (strcmp(type, "Sequence") == 0) return load_sequence(normalizer, json, where, depth, err);
    step *steps = eng_grow(normalizer->steps, &normalizer->room, normalizer->count + 1, sizeof *steps, err);
    if (steps == NULL) return false;
    normalizer->steps = steps;
    steps[normalizer->count] = (step){0};
    return load_step(&steps[normalizer->count++], type, json, where, err);
}

bool eng_normalizer_load(const json_t *json, eng_normalizer **out, eng_error *err) {
    *out = calloc(1, sizeof **out);
    if (*out == NULL) return eng_fail(err, "out of memory");
    if (json == NULL || json_is_null(json) || load_part(*out, json, "normalizer", 0, err)) return true;
    eng_normalizer_free(*out);
    *out = NULL;
    return false;
}

void eng_normalizer_free(eng_normalizer *normalizer) {
    if (normalizer == NULL) return;
    for (size_t i = 0; i < normalizer->count; i++) {
        eng_bytes_free(&normalizer->steps[i].content);
        eng_pattern_free(normalizer->steps[i].pattern);
    }
    free(normalizer->steps);
    free(normalizer);
}

static bool prepend(const step *s, const eng_bytes *text, eng_bytes *out, size_t *front, eng_error *err) {
    if (*front > 0) *front += s->content.size;
    return eng_bytes_append(out, s->content.data, s->content.size, err) &&
           eng_bytes_append(out, text->data, text->size, err);
}

static bool replace(const step *s, const eng_bytes *text, eng_bytes *out, size_t *front, eng_spans *spans,
                    eng_error *err) {
    size_t new_front = 0;
    if (!eng_pattern_find(s->pattern, text->data, text->size, spans, err)) return false;
    for (size_t i = 0; i < spans->count; i++) {
        eng_span span = spans->list[i];
        const char *from = span.is_match ? s->content.data : text->data + span.begin;
        size_t size = span.is_match ? s->content.size : span.end - span.begin;
        if (!eng_bytes_append(out, from, size, err)) return false;
        /* What replaces a match stems from where the match's last byte did. */
        if (span.end <= *front || span.end == 0) {
            new_front = out->size;
        } else if (!span.is_match && span.begin < *front) {
            new_front = out->size - (span.end - *front);
        }
    }
    *front = new_front;
    return true;
}

/* Appends the normal form of text in which nothing is to be left alone. */
static bool append_form(int form, const char *text, size_t size, eng_bytes *out, eng_error *err) {
    utf8proc_uint8_t *normal = NULL;
    if (size == 0) return true;
    utf8proc_ssize_t length = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)size, &normal,
                                           (utf8proc_option_t)form);
    if (length < 0) return eng_fail(err, "Unicode normalisation: %s", utf8proc_errmsg(length));
    bool ok = eng_bytes_append(out, (const char *)normal, (size_t)length, err);
    free(normal);
    return ok;
}

/* Below U+00A0 (below U+0300 for canonical composition) every form is the text itself. */
static size_t plain_prefix(const step *s, const eng_bytes *text) {
    unsigned char limit = s->form & UTF8PROC_COMPAT || s->form & UTF8PROC_DECOMPOSE ? 0x80 : 0xCC;
    size_t at = 0;
    while (at < text->size && (unsigned char)text->data[at] < limit) at++;
    return at;
}

/* A character that the reference does not normalise neither joins its neighbours nor lets marks pass, so the
 * text is normalised between such characters. */
static bool normalise(const step *s, const eng_bytes *text, eng_bytes *out, size_t *front, eng_error *err) {
    size_t begin = 0, length;
    if (plain_prefix(s, text) == text->size) return eng_bytes_append(out, text->data, text->size, err);
    for (size_t at = 0; at < text->size; at += length) {
        uint32_t code = eng_utf8_decode(text->data + at, text->size - at, &length);
        if (code < 0x7FD || !eng_unicode_is_unnormalised(code)) continue;
        if (!append_form(s->form, text->data + begin, at - begin, out, err)) return false;
        if (!eng_bytes_append(out, text->data + at, length, err)) return false;
        begin = at + length;
    }
    if (!append_form(s->form, text->data + begin, text->size - begin, out, err)) return false;
    if (*front > 0 && out->size > 0) eng_utf8_decode(out->data, out->size, front);
    return true;
}

static bool lowercase(const eng_bytes *text, eng_bytes *out, size_t *front, eng_error *err) {
    size_t old_front = *front, length;
    for (size_t at = 0; at < text->size; at += length) {
        uint32_t code = eng_utf8_decode(text->data + at, text->size - at, &length);
        uint32_t lower = code == 0x130 ? 'i' : (uint32_t)utf8proc_tolower((utf8proc_int32_t)code);
        if (!eng_bytes_append_code(out, lower, err)) return false;
        if (code == 0x130 && !eng_bytes_append_code(out, 0x307, err)) return false; /* the one that becomes two */
        if (at < old_front) *front = out->size;
    }
    return true;
}

static bool is_space_before(const eng_bytes *text, size_t end, size_t *begin) {
    *begin = end - 1;
    while (*begin > 0 && ((unsigned char)text->data[*begin] & 0xC0) == 0x80) --*begin;
    size_t length;
    return eng_unicode_is_space(eng_utf8_decode(text->data + *begin, end - *begin, &length));
}

static bool strip(const step *s, const eng_bytes *text, eng_bytes *out, size_t *front, eng_error *err) {
    size_t begin = 0, end = text->size, length, before;
    while (s->left && begin < end &&
           eng_unicode_is_space(eng_utf8_decode(text->data + begin, end - begin, &length)))
        begin += length;
    while (s->right && end > begin && is_space_before(text, end, &before)) end = before;
    *front = *front > begin ? *front - begin : 0;
    if (*front > end - begin) *front = end - begin;
    return eng_bytes_append(out, text->data + begin, end - begin, err);
}

static bool apply_step(const step *s, const eng_bytes *text, eng_bytes *out, size_t *front, eng_spans *spans,
                       eng_error *err) {
    switch (s->kind) {
    case PREPEND: return prepend(s, text, out, front, err);
    case REPLACE: return replace(s, text, out, front, spans, err);
    case UNICODE_FORM: return normalise(s, text, out, front, err);
    case LOWERCASE: return lowercase(text, out, front, err);
    case STRIP: return strip(s, text, out, front, err);
    }
    return false;
}

bool eng_normalizer_apply(const eng_normalizer *normalizer, eng_bytes *text, size_t *front, eng_spans *spans,
                          eng_error *err) {
    eng_bytes out = {0};
    bool ok = true;
    for (size_t i = 0; ok && i < normalizer->count && text->size > 0; i++) {
        out.size = 0;
        ok = apply_step(&normalizer->steps[i], text, &out, front, spans, err);
        if (ok) eng_bytes_swap(text, &out);
    }
    eng_bytes_free(&out);
    return ok;
}

bool eng_normalizer_is_none(const eng_normalizer *normalizer) {
    return normalizer->count == 0;
}

static bool writes(const step *s, step_kind kind, const char *text) {
    return s->kind == kind && s->content.size == strlen(text) && memcmp(s->content.data, text, s->content.size) == 0;
}

bool eng_normalizer_marks_spaces(const eng_normalizer *normalizer, const char *mark, bool *prepends) {
    const step *s = normalizer->steps;
    *prepends = normalizer->count == 2 && writes(&s[0], PREPEND, mark);
    if (normalizer->count != (*prepends ? 2u : 1u)) return false;
    s = &s[normalizer->count - 1];
    return writes(s, REPLACE, mark) && eng_pattern_is_literal(s->pattern, " ");
}
