/* An array that is reused from step to step and grows when a batch is larger than any before. */
#ifndef RELAY_GROWING_H
#define RELAY_GROWING_H

#include <stdbool.h>
#include <string.h>

#include "alloc.h"

typedef struct relayi_growing {
    void *data;
    size_t bytes;
} relayi_growing;

/* Makes room for count elements of `size` bytes; old content is lost.  False: no memory, and the
 * array is as it was. */
static inline bool relayi_grow(relayi_growing *array, size_t count, size_t size) {
    size_t need;
    if (!relayi_multiply(count, size, &need)) return false;
    if (need <= array->bytes) return true;
    size_t room = need + need / 2;
    if (room < need) return false;
    void *data = relayi_alloc(room);
    if (data == NULL) return false;
    relayi_free(array->data);
    *array = (relayi_growing){.data = data, .bytes = room};
    return true;
}

/* The same, keeping the first `used` bytes. */
static inline bool relayi_grow_keep(relayi_growing *array, size_t count, size_t size, size_t used) {
    relayi_growing larger = {0};
    size_t need;
    if (!relayi_multiply(count, size, &need)) return false;
    if (need <= array->bytes) return true;
    if (!relayi_grow(&larger, count, size)) return false;
    if (used != 0) memcpy(larger.data, array->data, used);
    relayi_free(array->data);
    *array = larger;
    return true;
}

static inline void relayi_shrink(relayi_growing *array) {
    relayi_free(array->data);
    *array = (relayi_growing){0};
}

#endif
