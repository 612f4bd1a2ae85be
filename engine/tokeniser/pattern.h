/* What a tokenizer.json calls a pattern: {"String": text} or {"Regex": Oniguruma syntax}; and the spans of a text
 * that such a pattern, or a class of characters, cuts it into. */
#ifndef RELAY_ENGINE_PATTERN_H
#define RELAY_ENGINE_PATTERN_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bytes.h"

typedef struct eng_pattern eng_pattern;

/* Spans cover the text without gaps. */
typedef struct eng_span {
    size_t begin, end;
    bool is_match;
    bool is_dropped; /* set by eng_spans_apply */
} eng_span;

/* All zero is an empty one.  Besides the spans it keeps what one thread needs for matching. */
typedef struct eng_spans {
    eng_span *list;
    size_t count, room;
    void *match; /* pcre2_match_data */
} eng_spans;

typedef enum eng_behavior {
    ENG_REMOVED,
    ENG_ISOLATED,
    ENG_MERGED_WITH_PREVIOUS,
    ENG_MERGED_WITH_NEXT,
    ENG_CONTIGUOUS,
} eng_behavior;

/* Reads the field `pattern` of a part; `where` names the part. */
bool eng_pattern_load(const json_t *part, const char *where, eng_pattern **out, eng_error *err);
bool eng_pattern_from_regex(const char *regex, size_t size, eng_pattern **out, eng_error *err);
void eng_pattern_free(eng_pattern *pattern);

/* Well-formed UTF-8 in; fails where the expression takes too many steps or memory is out. */
bool eng_pattern_find(const eng_pattern *pattern, const char *text, size_t size, eng_spans *out, eng_error *err);

/* Every character of the class is a match of its own. */
bool eng_spans_by_class(bool (*is_member)(uint32_t), const char *text, size_t size, eng_spans *out, eng_error *err);

bool eng_spans_add(eng_spans *spans, size_t begin, size_t end, bool is_match, eng_error *err);
void eng_spans_invert(eng_spans *spans);
void eng_spans_apply(eng_spans *spans, eng_behavior behavior);
bool eng_behavior_load(const json_t *part, const char *where, eng_behavior *out, eng_error *err);
void eng_spans_free(eng_spans *spans);

/* Rewrites a regular expression from Oniguruma's syntax into PCRE2's, or says what it uses that has no
 * counterpart here (pattern_translate.c). */
bool eng_pattern_translate(const char *regex, size_t size, eng_bytes *out, eng_error *err);

/* Whether it finds this very text, and is no expression. */
bool eng_pattern_is_literal(const eng_pattern *pattern, const char *text);

#endif
