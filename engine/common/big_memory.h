/* Large blocks, aligned for huge pages: weights are read once per step, and small pages cost bandwidth. */
#ifndef RELAY_ENGINE_BIG_MEMORY_H
#define RELAY_ENGINE_BIG_MEMORY_H

#include <stddef.h>

/* Uninitialised; NULL when there is none.  Given back with free(). */
void *eng_big_alloc(size_t bytes);

#endif
