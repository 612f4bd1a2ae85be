/* Arrays that grow: the storage under the tokeniser's texts and lists. */
#ifndef RELAY_ENGINE_BYTES_H
#define RELAY_ENGINE_BYTES_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"

/* All zero is an empty one. */
typedef struct eng_bytes {
    char *data;
    size_t size, room;
} eng_bytes;

/* Makes an array of `*room` items hold at least `need`.  Returns the array, moved or not, and
 * updates *room; returns NULL and leaves the array alone where memory is out (the error says so). */
void *eng_grow(void *array, size_t *room, size_t need, size_t item_size, eng_error *err);

bool eng_bytes_reserve(eng_bytes *bytes, size_t more, eng_error *err);
bool eng_bytes_append(eng_bytes *bytes, const char *data, size_t size, eng_error *err);
bool eng_bytes_append_code(eng_bytes *bytes, unsigned code, eng_error *err);
bool eng_bytes_append_string(eng_bytes *bytes, const char *string, eng_error *err);
void eng_bytes_swap(eng_bytes *a, eng_bytes *b);
void eng_bytes_free(eng_bytes *bytes);

#endif
