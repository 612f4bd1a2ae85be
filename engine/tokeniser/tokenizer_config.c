#include "tokenizer_config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/json_read.h"
#include "common/utf8.h"

static bool keep(const char *text, char **out, eng_error *err) {
    size_t size = strlen(text) + 1;
    *out = malloc(size);
    if (*out == NULL) return eng_fail(err, "out of memory");
    memcpy(*out, text, size);
    return true;
}

/* A special token is its text, or an object that holds it. */
static bool load_token(const json_t *json, const char *path, const char *field, char **out, eng_error *err) {
    char place[64];
    const char *text;
    snprintf(place, sizeof place, "%s%s", field, json_is_object(eng_json_find(json, field)) ? ".content" : "");
    return eng_json_string_or(json, path, place, NULL, &text, err) && (text == NULL || keep(text, out, err));
}

static bool load_flag(const json_t *json, const char *path, const char *field, eng_flag *out, eng_error *err) {
    bool value;
    *out = ENG_UNSAID;
    if (eng_json_find(json, field) == NULL) return true;
    if (!eng_json_bool(json, path, field, &value, err)) return false;
    *out = value ? ENG_YES : ENG_NO;
    return true;
}

static bool load_named_template(const json_t *list, const char *path, char **out, eng_error *err) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        const char *name, *text;
        if (!eng_json_string(entry, path, "name", &name, err) || !eng_json_string(entry, path, "template", &text, err))
            return eng_fail_in(err, "chat_template");
        if (strcmp(name, "default") == 0 && *out == NULL && !keep(text, out, err)) return false;
    }
    return true;
}

static bool load_template(const json_t *json, const char *path, char **out, eng_error *err) {
    const json_t *value = eng_json_find(json, "chat_template");
    const char *text;
    if (json_is_array(value)) return load_named_template(value, path, out, err);
    return eng_json_string_or(json, path, "chat_template", NULL, &text, err) &&
           (text == NULL || keep(text, out, err));
}

static bool load_fields(const json_t *json, const char *path, eng_tokenizer_config *out, eng_error *err) {
    if (!json_is_object(json)) return eng_json_unexpected(path, "", "an object", json, err);
    return load_token(json, path, "bos_token", &out->bos_token, err) &&
           load_token(json, path, "eos_token", &out->eos_token, err) &&
           load_token(json, path, "pad_token", &out->pad_token, err) &&
           load_token(json, path, "unk_token", &out->unk_token, err) &&
           load_flag(json, path, "add_bos_token", &out->add_bos, err) &&
           load_flag(json, path, "add_eos_token", &out->add_eos, err) &&
           (out->chat_template != NULL || load_template(json, path, &out->chat_template, err));
}

static bool read_text(FILE *file, eng_bytes *out, const char *path, eng_error *err) {
    size_t count;
    do {
        if (!eng_bytes_reserve(out, 1 << 16, err)) return false;
        count = fread(out->data + out->size, 1, 1 << 16, file);
        out->size += count;
    } while (count > 0);
    if (ferror(file)) return eng_fail(err, "%s: %s", path, strerror(errno));
    if (memchr(out->data, '\0', out->size) || !eng_utf8_is_valid(out->data, out->size))
        return eng_fail(err, "%s: expected UTF-8 text", path);
    return eng_bytes_append(out, "", 1, err);
}

static bool load_template_file(const char *path, char **out, eng_error *err) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) return errno == ENOENT || eng_fail(err, "%s: %s", path, strerror(errno));
    eng_bytes text = {0};
    bool ok = read_text(file, &text, path, err);
    fclose(file);
    if (!ok) {
        eng_bytes_free(&text);
        return false;
    }
    *out = text.data;
    return true;
}

static bool load_config_file(const char *path, eng_tokenizer_config *out, eng_error *err) {
    FILE *file = fopen(path, "rb");
    if (file == NULL && errno == ENOENT) return true;
    if (file != NULL) fclose(file);
    json_t *json;
    if (!eng_json_load_file(path, &json, err)) return false;
    bool ok = load_fields(json, path, out, err);
    json_decref(json);
    return ok;
}

bool eng_tokenizer_config_load(const char *model_dir, eng_tokenizer_config *out, eng_error *err) {
    eng_bytes path = {0}, jinja = {0};
    *out = (eng_tokenizer_config){0};
    bool ok = eng_bytes_append_string(&path, model_dir, err) &&
              eng_bytes_append(&path, "/tokenizer_config.json", 23, err) &&
              eng_bytes_append_string(&jinja, model_dir, err) &&
              eng_bytes_append(&jinja, "/chat_template.jinja", 21, err) &&
              load_template_file(jinja.data, &out->chat_template, err) && load_config_file(path.data, out, err);
    eng_bytes_free(&path);
    eng_bytes_free(&jinja);
    if (!ok) eng_tokenizer_config_free(out);
    return ok;
}

void eng_tokenizer_config_free(eng_tokenizer_config *config) {
    free(config->bos_token);
    free(config->eos_token);
    free(config->pad_token);
    free(config->unk_token);
    free(config->chat_template);
    *config = (eng_tokenizer_config){0};
}
