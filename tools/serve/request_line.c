#include "request_line.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/json_memory.h"

char *request_id_text(const json_t *id) {
    if (!json_is_string(id) && !json_is_number(id)) return NULL;
    return json_dumps(id, JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
}

/* A text without U+0000, which ends texts on the way to the model; NULL and a problem for another. */
static const char *read_text(request_line *line, const char *field) {
    const json_t *value = json_object_get(line->root, field);
    if (!json_is_string(value)) {
        snprintf(line->problem, sizeof line->problem, "\"%s\": expected a text", field);
        return NULL;
    }
    const char *text = json_string_value(value);
    if (strlen(text) == json_string_length(value)) return text;
    snprintf(line->problem, sizeof line->problem, "\"%s\": holds U+0000", field);
    return NULL;
}

static void read_system(request_line *line) {
    const json_t *value = json_object_get(line->root, "system");
    line->default_system = value == NULL;
    if (value == NULL || json_is_null(value)) return;
    line->system = read_text(line, "system");
    if (line->system == NULL)
        snprintf(line->problem, sizeof line->problem, "\"system\": expected the name of a system prompt, or null");
}

static void read_max_tokens(request_line *line) {
    const json_t *value = json_object_get(line->root, "max_tokens");
    if (value == NULL || json_is_null(value)) return;
    json_int_t count = json_is_integer(value) ? json_integer_value(value) : 0;
    if (count >= 1 && count <= INT32_MAX) line->max_tokens = (int32_t)count;
    else snprintf(line->problem, sizeof line->problem, "\"max_tokens\": expected a whole number from 1 on");
}

static void read_fields(request_line *line) {
    const json_t *expected = json_object_get(line->root, "expected");
    line->text = read_text(line, "text");
    if (line->text == NULL) return;
    if (expected != NULL && !json_is_null(expected)) line->expected = read_text(line, "expected");
    if (line->problem[0] == '\0') read_max_tokens(line);
    if (line->problem[0] == '\0') read_system(line);
}

bool request_line_parse(const char *text, size_t size, request_line *out) {
    json_error_t error;
    *out = (request_line){.root = eng_json_parse(text, size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error)};
    if (out->root == NULL && error.line < 0) snprintf(out->problem, sizeof out->problem, "%s", error.text);
    else if (out->root == NULL) snprintf(out->problem, sizeof out->problem, "no JSON: %s (column %d)", error.text, error.column);
    else if (!json_is_object(out->root)) snprintf(out->problem, sizeof out->problem, "expected a JSON object {\"id\", \"text\", ...}");
    else if ((out->id = request_id_text(json_object_get(out->root, "id"))) == NULL)
        snprintf(out->problem, sizeof out->problem, "\"id\": expected a text or a number");
    if (eng_json_starved()) snprintf(out->problem, sizeof out->problem, "out of memory");
    if (out->id == NULL) return false;
    read_fields(out);
    return true;
}

void request_line_free(request_line *line) {
    json_decref(line->root);
    free(line->id);
    *line = (request_line){0};
}
