#include "pretokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "byte_level.h"
#include "common/json_read.h"
#include "metaspace.h"
#include "unicode.h"
#include "common/utf8.h"

#define MAX_DEPTH 8

/* What ByteLevel cuts with unless told not to: the expression that GPT-2 was published with. */
static const char gpt2_words[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

typedef enum step_kind {
    SPLIT,       /* by `pattern` */
    CLASS,       /* by `is_member` */
    WORDS,       /* runs of word characters and runs of others but space */
    PREFIX,      /* a space before text without one */
    BYTE_LEVEL,  /* bytes to characters */
    METASPACE,
} step_kind;

typedef struct step {
    step_kind kind;
    eng_pattern *pattern;
    bool (*is_member)(uint32_t);
    eng_behavior behavior;
    bool invert;
    eng_metaspace metaspace;
} step;

struct eng_pretokenizer {
    step *steps;
    size_t count, room;
};

static step *add_step(eng_pretokenizer *pretokenizer, step_kind kind, eng_error *err) {
    step *steps = eng_grow(pretokenizer->steps, &pretokenizer->room, pretokenizer->count + 1, sizeof *steps, err);
    if (steps == NULL) return NULL;
    pretokenizer->steps = steps;
    steps[pretokenizer->count] = (step){.kind = kind, .behavior = ENG_ISOLATED};
    return &steps[pretokenizer->count++];
}

static bool add_class(eng_pretokenizer *pretokenizer, bool (*is_member)(uint32_t), eng_behavior behavior,
                      eng_error *err) {
    step *s = add_step(pretokenizer, CLASS, err);
    if (s == NULL) return false;
    s->is_member = is_member;
    s->behavior = behavior;
    return true;
}

static bool load_byte_level(eng_pretokenizer *pretokenizer, const json_t *json, const char *where, eng_error *err) {
    bool prefix, use_regex, trim_offsets; /* the last concerns offsets, which are not computed here */
    if (!eng_json_bool(json, where, "add_prefix_space", &prefix, err) ||
        !eng_json_bool_or(json, where, "use_regex", true, &use_regex, err) ||
        !eng_json_bool(json, where, "trim_offsets", &trim_offsets, err))
        return false;
    if (prefix && add_step(pretokenizer, PREFIX, err) == NULL) return false;
    if (use_regex) {
        step *s = add_step(pretokenizer, SPLIT, err);
        if (s == NULL || !eng_pattern_from_regex(gpt2_words, sizeof gpt2_words - 1, &s->pattern, err)) return false;
    }
    return add_step(pretokenizer, BYTE_LEVEL, err) != NULL;
}

static bool load_split(eng_pretokenizer *pretokenizer, const json_t *json, const char *where, eng_error *err) {
    step *s = add_step(pretokenizer, SPLIT, err);
    return s != NULL && eng_pattern_load(json, where, &s->pattern, err) &&
           eng_behavior_load(json, where, &s->behavior, err) && eng_json_bool(json, where, "invert", &s->invert, err);
}

static bool load_digits(eng_pretokenizer *pretokenizer, const json_t *json, const char *where, eng_error *err) {
    bool single;
    return eng_json_bool(json, where, "individual_digits", &single, err) &&
           add_class(pretokenizer, eng_unicode_is_number, single ? ENG_ISOLATED : ENG_CONTIGUOUS, err);
}

static bool load_punctuation(eng_pretokenizer *pretokenizer, const json_t *json, const char *where, eng_error *err) {
    eng_behavior behavior = ENG_ISOLATED;
    if (json_object_get(json, "behavior") != NULL && !eng_behavior_load(json, where, &behavior, err)) return false;
    return add_class(pretokenizer, eng_unicode_is_punctuation, behavior, err);
}

static bool load_metaspace(eng_pretokenizer *pretokenizer, const json_t *json, const char *where, eng_error *err) {
    step *s = add_step(pretokenizer, METASPACE, err);
    return s != NULL && eng_metaspace_load(json, where, &s->metaspace, err);
}

static bool load_part(eng_pretokenizer *pretokenizer, const json_t *json, const char *where, int depth,
                      eng_error *err);

static bool load_sequence(eng_pretokenizer *pretokenizer, const json_t *json, const char *where, int depth,
                          eng_error *err) {
    const json_t *parts;
    if (depth >= MAX_DEPTH) return eng_fail(err, "%s: sequences nested more than %d deep", where, MAX_DEPTH);
    if (!eng_json_array(json, where, "pretokenizers", &parts, err)) return false;
    for (size_t i = 0; i < json_array_size(parts); i++) {
        char place[160];
        snprintf(place, sizeof place, "%.120s[%zu]", where, i);
        if (!load_part(pretokenizer, json_array_get(parts, i), place, depth + 1, err)) return false;
    }
    return true;
}

static bool load_part(eng_pretokenizer *pretokenizer, const json_t *json, const char *where, int depth,
                      eng_error *err) {
    const char *type;
    if (!json_is_object(json)) return eng_json_unexpected(where, "", "an object", json, err);
    if (!eng_json_string(json, where, "type", &type, err)) return false;
    if (strcmp(type, "Sequence") == 0) return load_sequence(pretokenizer, json, where, depth, err);
    if (strcmp(type, "ByteLevel") == 0) return load_byte_level(pretokenizer, json, where, err);
    if (strcmp(type, "Split") == 0) return load_split(pretokenizer, json, where, err);
    if (strcmp(type, "Metaspace") == 0) return load_metaspace(pretokenizer, json, where, err);
    if (strcmp(type, "Digits") == 0) return load_digits(pretokenizer, json, where, err);
    if (strcmp(type, "Punctuation") == 0) return load_punctuation(pretokenizer, json, where, err);
    if (strcmp(type, "WhitespaceSplit") == 0) return add_class(pretokenizer, eng_unicode_is_space, ENG_REMOVED, err);
    if (strcmp(type, "Whitespace") == 0) return add_step(pretokenizer, WORDS, err) != NULL;
    return eng_fail(err, "%s: unknown type \"%.60s\"; supported: Sequence, ByteLevel, Split, Metaspace, Digits, "
                    "Punctuation, WhitespaceSplit, Whitespace", where, type);
}

bool eng_pretokenizer_load(const json_t *json, eng_pretokenizer **out, eng_error *err) {
    *out = calloc(1, sizeof **out);
    if (*out == NULL) return eng_fail(err, "out of memory");
    if (json == NULL || json_is_null(json) || load_part(*out, json, "pre_tokenizer", 0, err)) return true;
    eng_pretokenizer_free(*out);
    *out = NULL;
    return false;
}

void eng_pretokenizer_free(eng_pretokenizer *pretokenizer) {
    if (pretokenizer == NULL) return;
    for (size_t i = 0; i < pretokenizer->count; i++) eng_pattern_free(pretokenizer->steps[i].pattern);
    free(pretokenizer->steps);
    free(pretokenizer);
}

/* Runs of the two classes are matches, space lies between them. */
static bool find_words(const char *text, size_t size, eng_spans *spans, eng_error *err) {
    int previous = 0; /* 0 space, 1 word, 2 other */
    spans->count = 0;
    for (size_t at = 0, length; at < size; at += length) {
        uint32_t code = eng_utf8_decode(text + at, size - at, &length);
        int kind = eng_unicode_is_word(code) ? 1 : eng_unicode_is_space(code) ? 0 : 2;
        if (kind != 0 && kind == previous) {
            spans->list[spans->count - 1].end = at + length;
        } else if (kind != 0 && !eng_spans_add(spans, at, at + length, true, err)) {
            return false;
        }
        previous = kind;
    }
    return true;
}

static bool find_spans(const step *s, const char *text, size_t size, eng_spans *spans, eng_error *err) {
    if (s->kind == WORDS) return find_words(text, size, spans, err);
    if (s->kind == CLASS) {
        if (!eng_spans_by_class(s->is_member, text, size, spans, err)) return false;
    } else {
        if (!eng_pattern_find(s->pattern, text, size, spans, err)) return false;
        if (s->invert) eng_spans_invert(spans);
    }
    eng_spans_apply(spans, s->behavior);
    return true;
}

static bool split(const step *s, const char *text, const eng_piece *piece, eng_splits *out, eng_spans *spans,
                  eng_error *err) {
    if (!find_spans(s, text, piece->size, spans, err)) return false;
    for (size_t i = 0; i < spans->count; i++) {
        eng_span span = spans->list[i];
        size_t front = eng_front_within(piece->front, span.begin, span.end);
        if (!span.is_dropped && !eng_splits_add_text(out, text + span.begin, span.end - span.begin, front, err))
            return false;
    }
    return true;
}

static bool prefix(const char *text, const eng_piece *piece, eng_splits *out, eng_error *err) {
    size_t begin = eng_splits_open(out), added = text[0] != ' ';
    return eng_bytes_append(&out->text, " ", added, err) && eng_bytes_append(&out->text, text, piece->size, err) &&
           eng_splits_close(out, begin, piece->front > 0 ? piece->front + added : 0, err);
}

static bool to_byte_level(const char *text, const eng_piece *piece, eng_splits *out, eng_error *err) {
    size_t begin = eng_splits_open(out), front = 0;
    if (!eng_bytes_reserve(&out->text, 2 * piece->size, err)) return false;
    for (size_t i = 0; i < piece->size; i++) {
        uint32_t code = eng_byte_level_code((unsigned char)text[i]);
        out->text.size += eng_utf8_encode(code, out->text.data + out->text.size);
        if (i < piece->front) front = out->text.size - begin;
    }
    return eng_splits_close(out, begin, front, err);
}

static bool apply_step(const step *s, const eng_splits *in, const eng_piece *piece, eng_splits *out, eng_spans *spans,
                       eng_error *err) {
    const char *text = in->text.data + piece->begin;
    switch (s->kind) {
    case SPLIT:
    case CLASS:
    case WORDS: return split(s, text, piece, out, spans, err);
    case PREFIX: return prefix(text, piece, out, err);
    case BYTE_LEVEL: return to_byte_level(text, piece, out, err);
    case METASPACE: return eng_metaspace_split(&s->metaspace, text, piece, out, err);
    }
    return false;
}

bool eng_pretokenizer_apply(const eng_pretokenizer *pretokenizer, eng_splits *splits, eng_splits *spare,
                            eng_spans *spans, eng_error *err) {
    for (size_t i = 0; i < pretokenizer->count; i++) {
        eng_splits_clear(spare);
        for (size_t k = 0; k < splits->count; k++) {
            const eng_piece *piece = &splits->pieces[k];
            bool ok = piece->token >= 0 ? eng_splits_add_token(spare, piece->token, err)
                                        : apply_step(&pretokenizer->steps[i], splits, piece, spare, spans, err);
            if (!ok) return false;
        }
        eng_splits_swap(splits, spare);
    }
    return true;
}

bool eng_pretokenizer_drops_space(const eng_pretokenizer *pretokenizer) {
    const step *s = pretokenizer->steps;
    return pretokenizer->count == 1 &&
           (s->kind == WORDS || (s->kind == CLASS && s->is_member == eng_unicode_is_space && s->behavior == ENG_REMOVED));
}

bool eng_pretokenizer_marks_spaces(const eng_pretokenizer *pretokenizer, const char *mark) {
    const step *s = pretokenizer->steps;
    return pretokenizer->count == 1 && s->kind == METASPACE && s->metaspace.size == strlen(mark) &&
           memcmp(s->metaspace.replacement, mark, s->metaspace.size) == 0;
}

bool eng_pretokenizer_cuts_spaces_only(const eng_pretokenizer *pretokenizer) {
    const step *s = pretokenizer->steps;
    return pretokenizer->count == 0 ||
           (pretokenizer->count == 1 && s->kind == SPLIT && !s->invert && eng_pattern_is_literal(s->pattern, " "));
}
