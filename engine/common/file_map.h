/* A whole file in memory, read-only. */
#ifndef RELAY_ENGINE_FILE_MAP_H
#define RELAY_ENGINE_FILE_MAP_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"

typedef struct eng_file_map {
    const void *data; /* NULL for an empty file */
    size_t size;
} eng_file_map;

/* On failure *out is empty. */
bool eng_file_map_open(const char *path, eng_file_map *out, eng_error *err);
void eng_file_map_close(eng_file_map *map);

#endif
