#include "post_processor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/json_read.h"
#include "vocab.h"

#define MAX_DEPTH 8
#define MAX_TEMPLATES 16

/* A template's items in order: a token id, or INPUT. */
enum { INPUT = -1 };

struct eng_post_processor {
    eng_tokens templates[MAX_TEMPLATES]; /* applied one after the other */
    size_t count;
};

static bool add_special(eng_tokens *items, const json_t *template, const char *where, const char *name,
                        eng_error *err) {
    const json_t *token = json_object_get(json_object_get(template, "special_tokens"), name), *ids;
    if (token == NULL) return eng_fail(err, "%s: single: \"%.60s\" is not among the special_tokens", where, name);
    if (!eng_json_array(token, where, "ids", &ids, err)) return false;
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value > ENG_TOKEN_ID_MAX)
            return eng_json_unexpected(where, "special_tokens", "token ids", id, err);
        if (!eng_tokens_add(items, (int32_t)value, err)) return false;
    }
    return true;
}

static bool add_piece(eng_tokens *items, const json_t *template, const json_t *piece, const char *where,
                      eng_error *err) {
    const char *name;
    if (eng_json_find(piece, "SpecialToken") != NULL)
        return eng_json_string(piece, where, "SpecialToken.id", &name, err) &&
               add_special(items, template, where, name, err);
    if (eng_json_find(piece, "Sequence") == NULL)
        return eng_json_unexpected(where, "single", "pieces \"SpecialToken\" or \"Sequence\"", piece, err);
    if (!eng_json_string(piece, where, "Sequence.id", &name, err)) return false;
    if (strcmp(name, "A") != 0)
        return eng_fail(err, "%s: single: Sequence.id: expected \"A\", got \"%.60s\"", where, name);
    return eng_tokens_add(items, INPUT, err);
}

static bool load_template(eng_post_processor *processor, const json_t *json, const char *where, eng_error *err) {
    const json_t *pieces;
    size_t inputs = 0;
    if (!eng_json_array(json, where, "single", &pieces, err)) return false;
    if (processor->count == MAX_TEMPLATES) return eng_fail(err, "%s: more than %d templates", where, MAX_TEMPLATES);
    eng_tokens *items = &processor->templates[processor->count++];
    for (size_t i = 0; i < json_array_size(pieces); i++)
        if (!add_piece(items, json, json_array_get(pieces, i), where, err)) return false;
    for (size_t i = 0; i < items->count; i++) inputs += items->ids[i] == INPUT;
    return inputs <= 1 || eng_fail(err, "%s: single: the input more than once is not supported", where);
}

static bool load_part(eng_post_processor *processor, const json_t *json, const char *where, int depth,
                      eng_error *err);

static bool load_sequence(eng_post_processor *processor, const json_t *json, const char *where, int depth,
                          eng_error *err) {
    const json_t *parts;
    if (depth >= MAX_DEPTH) return eng_fail(err, "%s: sequences nested more than %d deep", where, MAX_DEPTH);
    if (!eng_json_array(json, where, "processors", &parts, err)) return false;
    for (size_t i = 0; i < json_array_size(parts); i++) {
        char place[160];
        snprintf(place, sizeof place, "%.120s[%zu]", where, i);
        if (!load_part(processor, json_array_get(parts, i), place, depth + 1, err)) return false;
    }
    return true;
}

static bool load_part(eng_post_processor *processor, const json_t *json, const char *where, int depth,
                      eng_error *err) {
    const char *type;
    if (!json_is_object(json)) return eng_json_unexpected(where, "", "an object", json, err);
    if (!eng_json_string(json, where, "type", &type, err)) return false;
    if (strcmp(type, "Sequence") == 0) return load_sequence(processor, json, where, depth, err);
    if (strcmp(type, "TemplateProcessing") == 0) return load_template(processor, json, where, err);
    if (strcmp(type, "ByteLevel") == 0) return true; /* it changes offsets only, which are not computed here */
    return eng_fail(err, "%s: unknown type \"%.60s\"; supported: Sequence, TemplateProcessing, ByteLevel", where, type);
}

bool eng_post_processor_load(const json_t *json, eng_post_processor **out, eng_error *err) {
    *out = calloc(1, sizeof **out);
    if (*out == NULL) return eng_fail(err, "out of memory");
    if (json == NULL || json_is_null(json) || load_part(*out, json, "post_processor", 0, err)) return true;
    eng_post_processor_free(*out);
    *out = NULL;
    return false;
}

void eng_post_processor_free(eng_post_processor *processor) {
    if (processor == NULL) return;
    for (size_t i = 0; i < processor->count; i++) eng_tokens_free(&processor->templates[i]);
    free(processor);
}

static bool fill_template(const eng_tokens *items, bool with_special, const eng_tokens *input, eng_tokens *out,
                          eng_error *err) {
    for (size_t i = 0; i < items->count; i++) {
        bool ok = true;
        if (items->ids[i] == INPUT) {
            ok = eng_tokens_append(out, input->ids, input->count, err);
        } else if (with_special) {
            ok = eng_tokens_add(out, items->ids[i], err);
        }
        if (!ok) return false;
    }
    return true;
}

bool eng_post_processor_apply(const eng_post_processor *processor, bool with_special, eng_tokens *tokens,
                              eng_error *err) {
    for (size_t i = 0; i < processor->count; i++) {
        eng_tokens filled = {0};
        bool ok = fill_template(&processor->templates[i], with_special, tokens, &filled, err);
        if (ok) {
            eng_tokens_free(tokens);
            *tokens = filled;
        } else {
            eng_tokens_free(&filled);
            return false;
        }
    }
    return true;
}
