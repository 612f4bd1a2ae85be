#include "bytes.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "utf8.h"

void *eng_grow(void *array, size_t *room, size_t need, size_t item_size, eng_error *err) {
    if (need <= *room && array != NULL) return array;
    size_t larger = *room + *room / 2 + 16;
    if (larger < need) larger = need;
    void *moved = larger > SIZE_MAX / item_size ? NULL : realloc(array, larger * item_size);
    if (moved == NULL) {
        eng_fail(err, "out of memory for %zu items of %zu bytes", larger, item_size);
        return NULL;
    }
    *room = larger;
    return moved;
}

bool eng_bytes_reserve(eng_bytes *bytes, size_t more, eng_error *err) {
    if (more > SIZE_MAX - bytes->size) return eng_fail(err, "out of memory for a text");
    char *data = eng_grow(bytes->data, &bytes->room, bytes->size + more, 1, err);
    if (data == NULL) return false;
    bytes->data = data;
    return true;
}

bool eng_bytes_append(eng_bytes *bytes, const char *data, size_t size, eng_error *err) {
    if (!eng_bytes_reserve(bytes, size, err)) return false;
    if (size > 0) memcpy(bytes->data + bytes->size, data, size);
    bytes->size += size;
    return true;
}

bool eng_bytes_append_code(eng_bytes *bytes, unsigned code, eng_error *err) {
    char encoded[4];
    return eng_bytes_append(bytes, encoded, eng_utf8_encode(code, encoded), err);
}

bool eng_bytes_append_string(eng_bytes *bytes, const char *string, eng_error *err) {
    return eng_bytes_append(bytes, string, strlen(string), err);
}

void eng_bytes_swap(eng_bytes *a, eng_bytes *b) {
    eng_bytes held = *a;
    *a = *b;
    *b = held;
}

void eng_bytes_free(eng_bytes *bytes) {
    free(bytes->data);
    *bytes = (eng_bytes){0};
}
