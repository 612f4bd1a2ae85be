/* All memory of the library comes from here.  Everything returns NULL on failure, a size that
 * overflows included; nothing logs. */
#ifndef RELAY_ALLOC_H
#define RELAY_ALLOC_H

#include <stdbool.h>
#include <stddef.h>

#define RELAYI_ALIGNMENT 64 /* a cache line, and the widest vector */

/* `size` bytes, 64-byte aligned and not initialised; 0 is as good as 1.  Free by relayi_free. */
void *relayi_alloc(size_t size);

/* The same, zeroed, for `count` elements of `size` bytes. */
void *relayi_alloc_array(size_t count, size_t size);

/* A copy of a NUL-terminated string. */
char *relayi_copy_string(const char *text);

void relayi_free(void *memory); /* accepts NULL */

/* `size` zeroed bytes straight from the operating system, given back to it by relayi_unmap with
 * the same size.  Large areas start on a huge page and ask to be backed by such. */
void *relayi_map(size_t size);
void relayi_unmap(void *memory, size_t size); /* accepts NULL */

/* *product = a * b, or false where that does not fit. */
static inline bool relayi_multiply(size_t a, size_t b, size_t *product) {
    *product = a * b;
    return b == 0 || *product / b == a;
}

#endif
