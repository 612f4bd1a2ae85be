/* Oniguruma's regular expressions in PCRE2's syntax.  Most of both is the same; what differs in meaning is
 * rewritten, and what has no counterpart here is refused by name rather than matched differently. */
#include <string.h>

#include "pattern.h"

typedef struct translation {
    const char *regex;
    size_t size, at;
    eng_bytes *out;
    eng_error *err;
} translation;

/* Members of \w: what UTS #18 says, and the Latin-1 numbers that Oniguruma adds. */
#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"

static bool emit(translation *t, const char *text) { return eng_bytes_append_string(t->out, text, t->err); }

static bool copy(translation *t, size_t count) {
    bool ok = eng_bytes_append(t->out, t->regex + t->at, count, t->err);
    t->at += count;
    return ok;
}

static bool refuse(translation *t, const char *what) {
    return eng_fail(t->err, "regular expression \"%.*s\": %s at byte %zu is not supported",
                    t->size > 200 ? 200 : (int)t->size, t->regex, what, t->at);
}

/* The byte `ahead` of the current one, or 0 past the end. */
static char peek(const translation *t, size_t ahead) {
    return t->size - t->at > ahead ? t->regex[t->at + ahead] : '\0';
}

static bool is_hex(char c) { return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f'); }

static bool is_letter(char c) { return (c | 0x20) >= 'a' && (c | 0x20) <= 'z'; }

static size_t count_hex(const translation *t, size_t ahead) {
    size_t count = 0;
    while (is_hex(peek(t, ahead + count))) count++;
    return count;
}

static bool is_general_category(const char *name, size_t size) {
    static const char *const names[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",  "Nd", "Nl",
                                        "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk",
                                        "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Cn", "Co", "Cs"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strlen(names[i]) == size && memcmp(names[i], name, size) == 0) return true;
    return false;
}

/* \p{Name}, \p{^Name}, \P{Name}.  A script is PCRE2's sc: kind, since its plain name would take in the
 * script extensions too. */
static bool translate_property(translation *t) {
    bool negated = peek(t, 1) == 'P';
    size_t begin = 3, end;
    if (peek(t, 2) != '{') return refuse(t, "\\p without {");
    if (peek(t, begin) == '^') {
        negated = !negated;
        begin++;
    }
    for (end = begin; is_letter(peek(t, end)) || peek(t, end) == '_'; end++) continue;
    if (end == begin || peek(t, end) != '}') return refuse(t, "this property");
    const char *name = t->regex + t->at + begin;
    bool ok = emit(t, negated ? "\\P{" : "\\p{") && emit(t, is_general_category(name, end - begin) ? "" : "sc:") &&
              eng_bytes_append(t->out, name, end - begin, t->err) && emit(t, "}");
    t->at += end + 1;
    return ok;
}

/* \xHH and \uHHHH; \x{...} is the same in both. */
static bool translate_code(translation *t) {
    bool is_short = peek(t, 1) == 'x';
    if (is_short && peek(t, 2) == '{') {
        size_t digits = count_hex(t, 3);
        if (digits == 0 || digits > 6 || peek(t, 3 + digits) != '}') return refuse(t, "this \\x{...}");
        return copy(t, digits + 4);
    }
    size_t digits = is_short ? 2 : 4;
    if (count_hex(t, 2) < digits) return refuse(t, "this escape");
    /* \x80 and above are bytes to Oniguruma, not characters. */
    if (is_short && peek(t, 2) > '7') return refuse(t, "a raw byte");
    bool ok = emit(t, "\\x{") && eng_bytes_append(t->out, t->regex + t->at + 2, digits, t->err) && emit(t, "}");
    t->at += 2 + digits;
    return ok;
}

/* Escapes that mean a set of characters; NULL for others.  The plain form is for use inside brackets. */
static const char *set_escape(char letter, bool in_brackets) {
    switch (letter) {
    case 's': return "\\p{White_Space}";
    case 'S': return "\\P{White_Space}";
    case 'w': return in_brackets ? WORD : "[" WORD "]";
    case 'W': return in_brackets ? NULL : "[^" WORD "]";
    case 'h': return in_brackets ? "0-9a-fA-F" : "[0-9a-fA-F]";
    case 'H': return in_brackets ? NULL : "[^0-9a-fA-F]";
    case 'v': return "\\x{0b}";
    default: return NULL;
    }
}

static bool translate_escape(translation *t, bool in_brackets) {
    char letter = peek(t, 1);
    const char *set = set_escape(letter, in_brackets);
    if (set != NULL) {
        t->at += 2;
        return emit(t, set);
    }
    if (letter == 'p' || letter == 'P') return translate_property(t);
    if (letter == 'x' || letter == 'u') return translate_code(t);
    if (letter == '\0') return refuse(t, "\\ at the end");
    bool is_same = !is_letter(letter) || strchr("dDtnrfae", letter) || (!in_brackets && strchr("Az", letter));
    if (!is_same || letter == '0') {
        char name[] = {'\\', letter, '\0'};
        return refuse(t, name);
    }
    return copy(t, 2);
}

static bool translate_brackets(translation *t) {
    if (!copy(t, 1)) return false;
    if (peek(t, 0) == '^' && !copy(t, 1)) return false;
    if (peek(t, 0) == ']') return refuse(t, "] at the start of a set");
    while (t->at < t->size) {
        char c = peek(t, 0);
        if (c == ']') return copy(t, 1);
        if (c == '[') return refuse(t, "a set inside a set");
        if (c == '&' && peek(t, 1) == '&') return refuse(t, "&&");
        if (!(c == '\\' ? translate_escape(t, true) : copy(t, 1))) return false;
    }
    return refuse(t, "a set without its ]");
}

/* (?imx-imx) and (?imx-imx:...): Oniguruma's m lets . match newlines, which PCRE2 calls s. */
static bool translate_options(translation *t) {
    if (!copy(t, 2)) return false;
    for (; t->at < t->size && peek(t, 0) != ')' && peek(t, 0) != ':'; t->at++) {
        char option[] = {peek(t, 0), '\0'};
        if (strchr("imx-", option[0]) == NULL) return refuse(t, "this option");
        if (!emit(t, option[0] == 'm' ? "s" : option)) return false;
    }
    return true;
}

static bool translate_group(translation *t) {
    if (peek(t, 1) == '*') return refuse(t, "(*");
    if (peek(t, 1) != '?') return copy(t, 1);
    char kind = peek(t, 2);
    if (kind == '<' && peek(t, 3) != '=' && peek(t, 3) != '!') return copy(t, 3); /* a name follows */
    if (kind != '\0' && strchr(":=!>#<", kind)) return copy(t, kind == '<' ? 4 : 3);
    if (kind != '\0' && strchr("imx-", kind)) return translate_options(t);
    return refuse(t, "this kind of group");
}

static size_t count_digits(const translation *t, size_t ahead) {
    size_t count = 0;
    while (peek(t, ahead + count) >= '0' && peek(t, ahead + count) <= '9') count++;
    return count;
}

/* {n}, {n,}, {n,m} and {,m}; any other { is itself. */
static bool translate_interval(translation *t) {
    size_t low = count_digits(t, 1), length = 1 + low;
    bool has_comma = peek(t, length) == ',';
    size_t high = has_comma ? count_digits(t, length + 1) : 0;
    length += (has_comma ? 1 : 0) + high;
    if (peek(t, length) != '}' || low + high == 0) return emit(t, "\\{") && ++t->at;
    /* Oniguruma takes these as a second quantifier on the whole, PCRE2 as possessive and as lazy. */
    if (peek(t, length + 1) == '+') return refuse(t, "+ after an interval");
    if (peek(t, length + 1) == '?' && !has_comma) return refuse(t, "? after {n}");
    if (low > 0) return copy(t, length + 1);
    t->at++;
    return emit(t, "{0") && copy(t, length);
}

static bool translate_next(translation *t) {
    switch (peek(t, 0)) {
    case '\\': return translate_escape(t, false);
    case '[': return translate_brackets(t);
    case '(': return translate_group(t);
    case '{': return translate_interval(t);
    default: return copy(t, 1);
    }
}

bool eng_pattern_translate(const char *regex, size_t size, eng_bytes *out, eng_error *err) {
    translation t = {regex, size, 0, out, err};
    if (memchr(regex, '\0', size) != NULL) return refuse(&t, "U+0000");
    if (size > 65536) return eng_fail(err, "regular expression of %zu bytes: expected at most 65536", size);
    if (size == 0) return emit(&t, "(?:)");
    while (t.at < t.size)
        if (!translate_next(&t)) return false;
    return true;
}
