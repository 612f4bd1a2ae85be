#include "template_detect.h"

#include <stdlib.h>
#include <string.h>

#include "common/sha256.h"

/* Of published texts that were rendered beside the row that they are taken for: the first 8 bytes of the SHA-256
 * of their one form. */
static const uint64_t compared[] = {
    UINT64_C(0x9a69ef3b6b0ab3b3), /* Llama-2-7b-chat */
    UINT64_C(0x84c5e3b41276fd51), /* Meta-Llama-3-8B-Instruct */
    UINT64_C(0xc1819385017032f3), /* Llama-3.1-8B-Instruct, Llama-3.3-70B-Instruct */
    UINT64_C(0x54a3f871a052d8e8), /* Llama-3.2-3B-Instruct */
    UINT64_C(0xc4825e3c405d65b7), /* Qwen2-7B-Instruct */
    UINT64_C(0x0afab52fb52f0a3a), /* Qwen2.5-7B-Instruct */
    UINT64_C(0xea67a07d89fd651a), /* Qwen3-0.6B */
    UINT64_C(0x5a113d44c08716a1), /* plain ChatML, as OpenHermes-2.5-Mistral-7B has it */
    UINT64_C(0x6da1400767ae126e), /* plain ChatML, shorter (tests/test_template_equal.py) */
    UINT64_C(0xd86b7f9eb4ceb432), /* gemma-3-4b-it */
    UINT64_C(0x0ee0ad349d84978e), /* Mistral-7B-Instruct-v0.2 of 2023 */
    UINT64_C(0x01d756b72feae231), /* Mistral-7B-Instruct-v0.2 since */
    UINT64_C(0xa4a50af146688e07), /* Mistral-Large-Instruct-2407 */
    UINT64_C(0xd83228c045f22a0b), /* Mistral-Nemo-Instruct-2407 */
    UINT64_C(0x5c41cb62deee3dda), /* Mistral-Large-Instruct-2411 */
    UINT64_C(0x05cab640b4ee0896), /* Mistral-Small-3.2-24B-Instruct-2506 */
};

/* ---- one form of a program ---------------------------------------------- */

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* From behind "{#" to behind "#}", or to the end. */
static const char *skip_comment(const char *at) {
    const char *end = strstr(at, "#}");
    return end == NULL ? at + strlen(at) : end + 2;
}

/* One character of a literal, or one escape; returns how many of its bytes were read, 0 on failure. */
static size_t append_character(const char *at, eng_bytes *out, eng_error *err) {
    size_t read = at[0] == '\\' && at[1] != '\0' ? 2 : 1;
    const char *what = at;
    if (at[read - 1] == '\'') what = "\\'";
    else if (at[0] == '\n') what = "\\n";
    else if (read == 2 && at[1] == '"') what = "\"";
    size_t written = what == at ? read : strlen(what);
    return eng_bytes_append(out, what, written, err) ? read : 0;
}

/* A literal in single quotes, its newlines as escapes; *at is its opening quote. */
static bool append_literal(const char **at, eng_bytes *out, eng_error *err) {
    const char quote = *(*at)++;
    bool ok = eng_bytes_append(out, "'", 1, err);
    while (ok && **at != '\0' && **at != quote) {
        size_t read = append_character(*at, out, err);
        *at += read;
        ok = read > 0;
    }
    if (**at == quote) ++*at;
    return ok && eng_bytes_append(out, "'", 1, err);
}

/* Outside tags nothing is a literal: an apostrophe there is text. */
static bool unify(const char *program, eng_bytes *out, eng_error *err) {
    bool tag = false, ok = true;
    for (const char *at = program; ok && *at != '\0';) {
        if (strncmp(at, "{#", 2) == 0) {
            at = skip_comment(at + 2);
            continue;
        }
        if (tag && (*at == '\'' || *at == '"')) {
            ok = append_literal(&at, out, err);
            continue;
        }
        if (strncmp(at, "{{", 2) == 0 || strncmp(at, "{%", 2) == 0) tag = true;
        if (strncmp(at, "}}", 2) == 0 || strncmp(at, "%}", 2) == 0) tag = false;
        if (!is_space(*at)) ok = eng_bytes_append(out, at, 1, err);
        at++;
    }
    return ok && eng_bytes_append(out, "", 1, err);
}

static bool is_compared(uint64_t hash) {
    for (size_t i = 0; i < sizeof compared / sizeof *compared; i++)
        if (compared[i] == hash) return true;
    return false;
}

/* ---- signs -------------------------------------------------------------- */

static bool has_signs(const eng_template *t, const char *form) {
    if (t->signs[0] == NULL || (t->bar != NULL && strstr(form, t->bar) != NULL)) return false;
    for (int i = 0; i < ENG_TEMPLATE_SIGNS && t->signs[i] != NULL; i++)
        if (strstr(form, t->signs[i]) == NULL) return false;
    return true;
}

/* ---- the default system text of a ChatML program ------------------------ */

/* The character that an escape of a Jinja literal stands for. */
static char unescape(char c) {
    return c == 'n' ? '\n' : c == 't' ? '\t' : c;
}

/* The literal's text from `at` to `end`; false where the literal ends before: what comes there is no fixed text. */
static bool copy_fixed(const char *at, const char *end, char **out, eng_error *err) {
    char *text = malloc((size_t)(end - at) + 1), *to = text;
    if (text == NULL) return eng_fail(err, "out of memory");
    for (; at < end && *at != '\''; at++) *to++ = *at == '\\' ? unescape(*++at) : *at;
    *to = '\0';
    if (at < end) {
        free(text);
        text = NULL;
    }
    *out = text;
    return true;
}

static bool find_default(const char *form, char **out, eng_error *err) {
    static const char open[] = "<|im_start|>system\\n", close[] = "<|im_end|>";
    *out = NULL;
    for (const char *at = strstr(form, open); at != NULL && *out == NULL; at = strstr(at, open)) {
        at += sizeof open - 1;
        const char *end = strstr(at, close);
        if (end != NULL && end > at && !copy_fixed(at, end, out, err)) return false;
    }
    return true;
}

/* ---- all together ------------------------------------------------------- */

static bool is_chatml(const eng_template *t) {
    return strncmp(t->turn_open, "<|im_start|>", 12) == 0;
}

static bool match_form(const char *where, const char *form, eng_template_match *out, eng_error *err) {
    for (int i = 0; out->format == NULL && eng_template_at(i) != NULL; i++)
        if (has_signs(eng_template_at(i), form)) out->format = eng_template_at(i);
    if (out->format == NULL)
        return eng_fail(err, "%s: chat_template: not one that is known; choose with --template: %s", where,
                        eng_template_names());
    out->hash = eng_sha256_head(form, strlen(form));
    out->compared = is_compared(out->hash);
    out->writes_bos = out->format->begin[0] == '\0' && strstr(form, "bos_token") != NULL;
    out->other_default = strstr(form, "default_system_message") != NULL;
    return !is_chatml(out->format) || find_default(form, &out->default_system, err);
}

bool eng_template_detect(const char *where, const char *chat_template, eng_template_match *out, eng_error *err) {
    *out = (eng_template_match){.compared = true};
    if (chat_template == NULL) {
        out->format = eng_template_at(0);
        return true;
    }
    eng_bytes form = {0};
    bool ok = unify(chat_template, &form, err) && match_form(where, form.data, out, err);
    eng_bytes_free(&form);
    return ok;
}

void eng_template_match_free(eng_template_match *match) {
    free(match->default_system);
    *match = (eng_template_match){0};
}

bool eng_template_match_doubt(const char *where, const eng_template_match *match, eng_error *line) {
    const char *name = match->format->name;
    if (!match->compared)
        eng_fail(line, "%s: chat_template: taken for \"%s\" by its markers, but this text of it is none that was compared; "
                 "prompts may differ from what the model knows (--template chooses another)", where, name);
    else if (match->other_default)
        eng_fail(line, "%s: chat_template: its default system prompt is left out where a request has none", where);
    else return false;
    return true;
}
