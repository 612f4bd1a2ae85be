/* Reading JSON files whose fields come from anybody: every failure names the file and the field.
 *
 * A field is named from the object it is looked up in, with dots between nested objects
 * ("rope_scaling.factor").  `where` is what a message starts with: the file's path, or the path
 * and the place in it ("m/tokenizer.json: pre_tokenizer[2]").  A message then reads
 * "m/config.json: rope_scaling.factor: expected a number, got \"8\"".
 *
 * The plain getters require the field.  The _or getters take `fallback` where the field, or an
 * object on the way to it, is absent or null; a field of the wrong type fails in both.
 * What a getter gives out is borrowed from the root and lives as long as it does. */
#ifndef RELAY_ENGINE_JSON_READ_H
#define RELAY_ENGINE_JSON_READ_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* Reads a whole file; the caller gives *out back with json_decref.  On failure *out is NULL.
 * Syntax errors carry line and column.  Strings may hold U+0000, so mind their lengths. */
bool eng_json_load_file(const char *path, json_t **out, eng_error *err);

/* The field's value, or NULL where it, or an object on the way, is absent or null. */
json_t *eng_json_find(const json_t *object, const char *field);

/* Text without U+0000. */
bool eng_json_string(const json_t *object, const char *where, const char *field, const char **out, eng_error *err);
bool eng_json_string_or(const json_t *object, const char *where, const char *field, const char *fallback,
                        const char **out, eng_error *err);

/* Text of any code points with its length in bytes (a 0 byte follows, uncounted). */
bool eng_json_text(const json_t *object, const char *where, const char *field, const char **out, size_t *size,
                   eng_error *err);

/* An integer in [low, high]; 8.0 and "8" are not integers. */
bool eng_json_int(const json_t *object, const char *where, const char *field, int64_t low, int64_t high, int64_t *out,
                  eng_error *err);
bool eng_json_int_or(const json_t *object, const char *where, const char *field, int64_t low, int64_t high,
                     int64_t fallback, int64_t *out, eng_error *err);

/* A finite number, written as an integer or not. */
bool eng_json_double(const json_t *object, const char *where, const char *field, double *out, eng_error *err);
bool eng_json_double_or(const json_t *object, const char *where, const char *field, double fallback, double *out,
                        eng_error *err);

bool eng_json_bool(const json_t *object, const char *where, const char *field, bool *out, eng_error *err);
bool eng_json_bool_or(const json_t *object, const char *where, const char *field, bool fallback, bool *out,
                      eng_error *err);

/* Arrays and objects; the _or forms give NULL where there is none. */
bool eng_json_array(const json_t *object, const char *where, const char *field, const json_t **out, eng_error *err);
bool eng_json_array_or_null(const json_t *object, const char *where, const char *field, const json_t **out,
                            eng_error *err);
bool eng_json_object(const json_t *object, const char *where, const char *field, const json_t **out, eng_error *err);
bool eng_json_object_or_null(const json_t *object, const char *where, const char *field, const json_t **out,
                             eng_error *err);

/* Writes a message "where: field: expected WHAT, got VALUE" and returns false; for checks of one's own.
 * `field` may be empty. */
bool eng_json_unexpected(const char *where, const char *field, const char *expected, const json_t *got, eng_error *err);

#endif
