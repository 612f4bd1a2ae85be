/* jansson and memory that is refused.  It does not always say so: while building, a text may come out
 * shorter and a field be missing; while parsing, its buffer may be overrun.  So building is watched, and
 * parsing is left at once. */
#ifndef RELAY_ENGINE_JSON_MEMORY_H
#define RELAY_ENGINE_JSON_MEMORY_H

#include <jansson.h>
#include <stdbool.h>

/* From here on what jansson does on this thread is watched; then, whether it was refused memory. */
void eng_json_watch(void);
bool eng_json_starved(void);

/* json_loadb, watched.  NULL with "out of memory" and line -1 in *detail where memory was out. */
json_t *eng_json_parse(const char *text, size_t size, size_t flags, json_error_t *detail);

#endif
