#include "json_read.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "json_memory.h"

static bool read_whole(FILE *file, char **out, size_t *size) {
    size_t room = 1 << 16, used = 0;
    struct stat info;
    if (fstat(fileno(file), &info) == 0 && info.st_size > 0) room = (size_t)info.st_size + 1;
    char *bytes = malloc(room);
    while (bytes != NULL) {
        used += fread(bytes + used, 1, room - used, file);
        if (used < room) break;
        char *larger = room > SIZE_MAX / 2 ? NULL : realloc(bytes, room *= 2);
        if (larger == NULL) free(bytes);
        bytes = larger;
    }
    if (bytes == NULL) errno = ENOMEM;
    if (bytes == NULL || ferror(file)) {
        int cause = errno;
        free(bytes);
        errno = cause;
        return false;
    }
    *out = bytes;
    *size = used;
    return true;
}

bool eng_json_load_file(const char *path, json_t **out, eng_error *err) {
    *out = NULL;
    FILE *file = fopen(path, "rb");
    if (file == NULL) return eng_fail(err, "%s: %s", path, strerror(errno));
    char *bytes = NULL;
    size_t size = 0;
    bool ok = read_whole(file, &bytes, &size);
    int cause = errno;
    fclose(file);
    if (!ok) return eng_fail(err, "%s: %s", path, strerror(cause));
    json_error_t detail;
    *out = eng_json_parse(bytes, size, JSON_ALLOW_NUL, &detail);
    free(bytes);
    if (*out != NULL) return true;
    if (detail.line < 0) return eng_fail(err, "%s: %s", path, detail.text);
    return eng_fail(err, "%s: line %d, column %d: %s", path, detail.line, detail.column, detail.text);
}

json_t *eng_json_find(const json_t *object, const char *field) {
    json_t *value = NULL;
    for (;;) {
        const char *dot = strchr(field, '.');
        size_t length = dot ? (size_t)(dot - field) : strlen(field);
        value = json_object_getn(object, field, length);
        if (json_is_null(value)) return NULL;
        if (dot == NULL) return value;
        object = value;
        field = dot + 1;
    }
}

/* A short form of the value: what it is, and its text where that is short. */
static void describe(const json_t *value, char *text, size_t size) {
    if (value == NULL) {
        snprintf(text, size, "nothing");
    } else if (json_is_array(value)) {
        snprintf(text, size, "an array of %zu", json_array_size(value));
    } else if (json_is_object(value)) {
        snprintf(text, size, "an object of %zu fields", json_object_size(value));
    } else {
        char *dump = json_dumps(value, JSON_ENCODE_ANY); /* best effort: it is part of a message */
        snprintf(text, size, "%.60s%s", dump ? dump : "?", dump && strlen(dump) > 60 ? "..." : "");
        free(dump);
    }
}

bool eng_json_unexpected(const char *where, const char *field, const char *expected, const json_t *got,
                         eng_error *err) {
    char text[80];
    describe(got, text, sizeof text);
    const char *colon = field[0] ? ": " : "";
    return eng_fail(err, "%s%s%s: expected %s, got %s", where, colon, field, expected, text);
}

static bool missing(const char *where, const char *field, const char *expected, eng_error *err) {
    return eng_fail(err, "%s: %s: missing; expected %s", where, field, expected);
}

static bool take_string(const json_t *value, const char *where, const char *field, const char **out, eng_error *err) {
    if (!json_is_string(value)) return eng_json_unexpected(where, field, "a string", value, err);
    *out = json_string_value(value);
    if (strlen(*out) != json_string_length(value))
        return eng_json_unexpected(where, field, "a string without U+0000", value, err);
    return true;
}

bool eng_json_string(const json_t *object, const char *where, const char *field, const char **out, eng_error *err) {
    const json_t *value = eng_json_find(object, field);
    if (value == NULL) return missing(where, field, "a string", err);
    return take_string(value, where, field, out, err);
}

bool eng_json_string_or(const json_t *object, const char *where, const char *field, const char *fallback,
                        const char **out, eng_error *err) {
    const json_t *value = eng_json_find(object, field);
    *out = fallback;
    return value == NULL || take_string(value, where, field, out, err);
}

bool eng_json_text(const json_t *object, const char *where, const char *field, const char **out, size_t *size,
                   eng_error *err) {
    const json_t *value = eng_json_find(object, field);
    if (value == NULL) return missing(where, field, "a string", err);
    if (!json_is_string(value)) return eng_json_unexpected(where, field, "a string", value, err);
    *out = json_string_value(value);
    *size = json_string_length(value);
    return true;
}

static void name_range(int64_t low, int64_t high, char *text, size_t size) {
    if (low == INT64_MIN && high == INT64_MAX) {
        snprintf(text, size, "an integer");
    } else if (low == 1 && high >= INT32_MAX) {
        snprintf(text, size, "a positive integer");
    } else {
        snprintf(text, size, "an integer from %lld to %lld", (long long)low, (long long)high);
    }
}

static bool take_int(const json_t *value, const char *where, const char *field, int64_t low, int64_t high,
                     int64_t *out, eng_error *err) {
    int64_t number = json_is_integer(value) ? (int64_t)json_integer_value(value) : 0;
    if (json_is_integer(value) && number >= low && number <= high) {
        *out = number;
        return true;
    }
    char expected[80];
    name_range(low, high, expected, sizeof expected);
    return eng_json_unexpected(where, field, expected, value, err);
}

bool eng_json_int(const json_t *object, const char *where, const char *field, int64_t low, int64_t high, int64_t *out,
                  eng_error *err) {
    const json_t *value = eng_json_find(object, field);
    if (value == NULL) {
        char expected[80];
        name_range(low, high, expected, sizeof expected);
        return missing(where, field, expected, err);
    }
    return take_int(value, where, field, low, high, out, err);
}

bool eng_json_int_or(const json_t *object, const char *where, const char *field, int64_t low, int64_t high,
                     int64_t fallback, int64_t *out, eng_error *err) {
    const json_t *value = eng_json_find(object, field);
    *out = fallback;
    return value == NULL || take_int(value, where, field, low, high, out, err);
}

static bool take_double(const json_t *value, const char *where, const char *field, double *out, eng_error *err) {
    if (!json_is_number(value) || !isfinite(json_number_value(value)))
        return eng_json_unexpected(where, field, "a number", value, err);
    *out = json_number_value(value);
    return true;
}

bool eng_json_double(const json_t *object, const char *where, const char *field, double *out, eng_error *err) {
    const json_t *value = eng_json_find(object, field);
    if (value == NULL) return missing(where, field, "a number", err);
    return take_double(value, where, field, out, err);
}

bool eng_json_double_or(const json_t *object, const char *where, const char *field, double fallback, double *out,
                        eng_error *err) {
    const json_t *value = eng_json_find(object, field);
    *out = fallback;
    return value == NULL || take_double(value, where, field, out, err);
}

static bool take_bool(const json_t *value, const char *where, const char *field, bool *out, eng_error *err) {
    if (!json_is_boolean(value)) return eng_json_unexpected(where, field, "true or false", value, err);
    *out = json_is_true(value);
    return true;
}

bool eng_json_bool(const json_t *object, const char *where, const char *field, bool *out, eng_error *err) {
    const json_t *value = eng_json_find(object, field);
    if (value == NULL) return missing(where, field, "true or false", err);
    return take_bool(value, where, field, out, err);
}

bool eng_json_bool_or(const json_t *object, const char *where, const char *field, bool fallback, bool *out,
                      eng_error *err) {
    const json_t *value = eng_json_find(object, field);
    *out = fallback;
    return value == NULL || take_bool(value, where, field, out, err);
}

bool eng_json_array_or_null(const json_t *object, const char *where, const char *field, const json_t **out,
                            eng_error *err) {
    *out = eng_json_find(object, field);
    if (*out == NULL || json_is_array(*out)) return true;
    return eng_json_unexpected(where, field, "an array", *out, err);
}

bool eng_json_array(const json_t *object, const char *where, const char *field, const json_t **out, eng_error *err) {
    if (!eng_json_array_or_null(object, where, field, out, err)) return false;
    return *out != NULL || missing(where, field, "an array", err);
}

bool eng_json_object_or_null(const json_t *object, const char *where, const char *field, const json_t **out,
                             eng_error *err) {
    *out = eng_json_find(object, field);
    if (*out == NULL || json_is_object(*out)) return true;
    return eng_json_unexpected(where, field, "an object", *out, err);
}

bool eng_json_object(const json_t *object, const char *where, const char *field, const json_t **out, eng_error *err) {
    if (!eng_json_object_or_null(object, where, field, out, err)) return false;
    return *out != NULL || missing(where, field, "an object", err);
}
