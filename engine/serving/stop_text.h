/* Stop strings: an answer ends before the first of them, wherever token boundaries lie. */
#ifndef RELAY_ENGINE_STOP_TEXT_H
#define RELAY_ENGINE_STOP_TEXT_H

#include <stddef.h>
#include <stdint.h>

typedef struct eng_stops {
    const char *const *items; /* non-empty strings; borrowed */
    int32_t count;
} eng_stops;

#define ENG_NO_STOP ((size_t)-1)

/* Where the earliest stop string begins in `text`, of whose first `searched` bytes it is known that
 * none ends there; ENG_NO_STOP where there is none. */
size_t eng_stops_find(const eng_stops *stops, const char *text, size_t size, size_t searched);

/* How many bytes at the end of `text` may yet become a stop string: a stream holds them back. */
size_t eng_stops_pending(const eng_stops *stops, const char *text, size_t size);

#endif
