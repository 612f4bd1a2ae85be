#include "stop_text.h"

#include <string.h>

static size_t find_one(const char *stop, const char *text, size_t size, size_t searched) {
    size_t length = strlen(stop);
    size_t from = searched >= length ? searched - length + 1 : 0;
    for (size_t at = from; at + length <= size; at++)
        if (memcmp(text + at, stop, length) == 0) return at;
    return ENG_NO_STOP;
}

size_t eng_stops_find(const eng_stops *stops, const char *text, size_t size, size_t searched) {
    size_t first = ENG_NO_STOP;
    for (int32_t i = 0; i < stops->count; i++) {
        size_t at = find_one(stops->items[i], text, size, searched);
        if (at < first) first = at;
    }
    return first;
}

static size_t pending_one(const char *stop, const char *text, size_t size) {
    size_t length = strlen(stop) - 1;
    if (length > size) length = size;
    while (length > 0 && memcmp(text + size - length, stop, length) != 0) length--;
    return length;
}

size_t eng_stops_pending(const eng_stops *stops, const char *text, size_t size) {
    size_t most = 0;
    for (int32_t i = 0; i < stops->count; i++) {
        size_t pending = pending_one(stops->items[i], text, size);
        if (pending > most) most = pending;
    }
    return most;
}
