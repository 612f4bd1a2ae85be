#define PCRE2_CODE_UNIT_WIDTH 8
#include "pattern.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "common/json_read.h"
#include "common/utf8.h"

struct eng_pattern {
    pcre2_code *regex; /* NULL: `literal` */
    eng_bytes literal;
};

static bool compile(eng_pattern *pattern, const char *regex, size_t size, eng_error *err) {
    eng_bytes translated = {0};
    bool ok = eng_pattern_translate(regex, size, &translated, err);
    pcre2_compile_context *context = ok ? pcre2_compile_context_create(NULL) : NULL;
    if (ok && context == NULL) ok = eng_fail(err, "out of memory");
    if (ok) {
        int code = 0;
        PCRE2_SIZE at = 0;
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        /* Oniguruma's ^ and $ are those of lines. */
        pattern->regex = pcre2_compile((PCRE2_SPTR)translated.data, translated.size,
                                       PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &code, &at, context);
        char reason[128] = "?";
        if (pattern->regex == NULL) {
            pcre2_get_error_message(code, (PCRE2_UCHAR *)reason, sizeof reason);
            ok = eng_fail(err, "regular expression \"%.*s\": %s", size > 200 ? 200 : (int)size, regex, reason);
        } else {
            pcre2_jit_compile(pattern->regex, PCRE2_JIT_COMPLETE); /* where there is no JIT, matching interprets */
        }
    }
    pcre2_compile_context_free(context);
    eng_bytes_free(&translated);
    return ok;
}

bool eng_pattern_from_regex(const char *regex, size_t size, eng_pattern **out, eng_error *err) {
    *out = calloc(1, sizeof **out);
    if (*out == NULL) return eng_fail(err, "out of memory");
    if (compile(*out, regex, size, err)) return true;
    eng_pattern_free(*out);
    *out = NULL;
    return false;
}

static bool from_literal(const char *text, size_t size, eng_pattern **out, eng_error *err) {
    *out = calloc(1, sizeof **out);
    if (*out == NULL) return eng_fail(err, "out of memory");
    if (eng_bytes_append(&(*out)->literal, text, size, err)) return true;
    eng_pattern_free(*out);
    *out = NULL;
    return false;
}

bool eng_pattern_load(const json_t *part, const char *where, eng_pattern **out, eng_error *err) {
    const json_t *kinds;
    const char *text;
    size_t size;
    if (!eng_json_object(part, where, "pattern", &kinds, err)) return false;
    bool is_regex = json_object_get(kinds, "Regex") != NULL;
    if (json_object_size(kinds) != 1 || (!is_regex && json_object_get(kinds, "String") == NULL))
        return eng_json_unexpected(where, "pattern", "one field, \"String\" or \"Regex\"", kinds, err);
    if (!eng_json_text(part, where, is_regex ? "pattern.Regex" : "pattern.String", &text, &size, err)) return false;
    /* An empty string matches where an empty expression does. */
    bool ok = is_regex || size == 0 ? eng_pattern_from_regex(text, size, out, err) : from_literal(text, size, out, err);
    return ok || eng_fail_in(err, where);
}

void eng_pattern_free(eng_pattern *pattern) {
    if (pattern == NULL) return;
    pcre2_code_free(pattern->regex);
    eng_bytes_free(&pattern->literal);
    free(pattern);
}

bool eng_spans_add(eng_spans *spans, size_t begin, size_t end, bool is_match, eng_error *err) {
    eng_span *list = eng_grow(spans->list, &spans->room, spans->count + 1, sizeof *list, err);
    if (list == NULL) return false;
    spans->list = list;
    list[spans->count++] = (eng_span){begin, end, is_match, false};
    return true;
}

/* Adds a match and what lies between it and the one before. */
static bool add_match(eng_spans *spans, size_t *covered, size_t begin, size_t end, eng_error *err) {
    if (begin > *covered && !eng_spans_add(spans, *covered, begin, false, err)) return false;
    *covered = end;
    return eng_spans_add(spans, begin, end, true, err);
}

static bool add_rest(eng_spans *spans, size_t covered, size_t size, eng_error *err) {
    return covered == size || eng_spans_add(spans, covered, size, false, err);
}

static bool find_literal(const eng_bytes *literal, const char *text, size_t size, eng_spans *out, eng_error *err) {
    size_t covered = 0;
    const char *at = text, *end = text + size;
    while ((size_t)(end - at) >= literal->size && (at = memchr(at, literal->data[0], (size_t)(end - at))) != NULL) {
        if ((size_t)(end - at) < literal->size) break;
        if (memcmp(at, literal->data, literal->size) != 0) {
            at++;
            continue;
        }
        size_t begin = (size_t)(at - text);
        if (!add_match(out, &covered, begin, begin + literal->size, err)) return false;
        at += literal->size;
    }
    return add_rest(out, covered, size, err);
}

static int match_once(const pcre2_code *regex, const char *text, size_t size, size_t from, pcre2_match_data *match) {
    int found = pcre2_match(regex, (PCRE2_SPTR)text, size, from, PCRE2_NO_UTF_CHECK, match, NULL);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT)
        found = pcre2_match(regex, (PCRE2_SPTR)text, size, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match, NULL);
    return found;
}

static bool fail_match(int code, eng_error *err) {
    char reason[128] = "?";
    pcre2_get_error_message(code, (PCRE2_UCHAR *)reason, sizeof reason);
    return eng_fail(err, "a regular expression of the tokeniser: %s", reason);
}

static bool find_regex(const pcre2_code *regex, const char *text, size_t size, eng_spans *out, eng_error *err) {
    if (out->match == NULL) out->match = pcre2_match_data_create(1, NULL);
    if (out->match == NULL) return eng_fail(err, "out of memory");
    size_t covered = 0, from = 0, length;
    while (from <= size) {
        int found = match_once(regex, text, size, from, out->match);
        if (found == PCRE2_ERROR_NOMATCH) break;
        if (found < 0) return fail_match(found, err);
        const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(out->match);
        size_t begin = ends[0], end = ends[1];
        /* An empty match right after another match does not count. */
        if (begin == end && out->count > 0 && end == covered && out->list[out->count - 1].is_match) {
            if (from == size) break;
            eng_utf8_decode(text + from, size - from, &length);
            from += length;
            continue;
        }
        if (!add_match(out, &covered, begin, end, err)) return false;
        from = end;
    }
    return add_rest(out, covered, size, err);
}

bool eng_pattern_find(const eng_pattern *pattern, const char *text, size_t size, eng_spans *out, eng_error *err) {
    out->count = 0;
    if (size == 0) return true;
    if (pattern->regex != NULL) return find_regex(pattern->regex, text, size, out, err);
    return find_literal(&pattern->literal, text, size, out, err);
}

bool eng_spans_by_class(bool (*is_member)(uint32_t), const char *text, size_t size, eng_spans *out, eng_error *err) {
    out->count = 0;
    size_t covered = 0;
    for (size_t at = 0, length; at < size; at += length) {
        uint32_t code = eng_utf8_decode(text + at, size - at, &length);
        if (is_member(code) && !add_match(out, &covered, at, at + length, err)) return false;
    }
    return add_rest(out, covered, size, err);
}

void eng_spans_invert(eng_spans *spans) {
    for (size_t i = 0; i < spans->count; i++) spans->list[i].is_match = !spans->list[i].is_match;
}

/* Joins a span to the last one kept where the behaviour says so. */
static void join_contiguous(eng_spans *spans) {
    size_t kept = 0;
    bool previous = false;
    for (size_t i = 0; i < spans->count; i++) {
        eng_span span = spans->list[i];
        if (span.is_match == previous && kept > 0) {
            spans->list[kept - 1].end = span.end;
        } else {
            spans->list[kept++] = span;
        }
        previous = span.is_match;
    }
    spans->count = kept;
}

static void join_to_previous(eng_spans *spans) {
    size_t kept = 0;
    bool previous = false;
    for (size_t i = 0; i < spans->count; i++) {
        eng_span span = spans->list[i];
        if (span.is_match && !previous && kept > 0) {
            spans->list[kept - 1].end = span.end;
        } else {
            spans->list[kept++] = span;
        }
        previous = span.is_match;
    }
    spans->count = kept;
}

static void join_to_next(eng_spans *spans) {
    size_t kept = spans->count;
    bool previous = false;
    for (size_t i = spans->count; i-- > 0;) {
        eng_span span = spans->list[i];
        if (span.is_match && !previous && kept < spans->count) {
            spans->list[kept].begin = span.begin;
        } else {
            spans->list[--kept] = span;
        }
        previous = span.is_match;
    }
    if (kept > 0) memmove(spans->list, spans->list + kept, (spans->count - kept) * sizeof *spans->list);
    spans->count -= kept;
}

void eng_spans_apply(eng_spans *spans, eng_behavior behavior) {
    switch (behavior) {
    case ENG_REMOVED:
        for (size_t i = 0; i < spans->count; i++) spans->list[i].is_dropped = spans->list[i].is_match;
        break;
    case ENG_ISOLATED: break;
    case ENG_MERGED_WITH_PREVIOUS: join_to_previous(spans); break;
    case ENG_MERGED_WITH_NEXT: join_to_next(spans); break;
    case ENG_CONTIGUOUS: join_contiguous(spans); break;
    }
}

bool eng_behavior_load(const json_t *part, const char *where, eng_behavior *out, eng_error *err) {
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *name;
    if (!eng_json_string(part, where, "behavior", &name, err)) return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        *out = (eng_behavior)i;
        if (strcmp(name, names[i]) == 0) return true;
    }
    return eng_fail(err, "%s: behavior: unknown \"%.60s\"; supported: Removed, Isolated, MergedWithPrevious, "
                    "MergedWithNext, Contiguous", where, name);
}

void eng_spans_free(eng_spans *spans) {
    free(spans->list);
    pcre2_match_data_free(spans->match);
    *spans = (eng_spans){0};
}

bool eng_pattern_is_literal(const eng_pattern *pattern, const char *text) {
    return pattern->regex == NULL && pattern->literal.size == strlen(text) &&
           memcmp(pattern->literal.data, text, pattern->literal.size) == 0;
}
