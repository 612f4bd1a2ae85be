/* The ids that have been seen, each with a number. */
#ifndef RELAY_ID_TABLE_H
#define RELAY_ID_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct id_entry {
    char *id;
    uint64_t value;
} id_entry;

/* All zero is an empty one. */
typedef struct id_table {
    id_entry *entries; /* [room], open addressing; id NULL: free */
    size_t count, room;
} id_table;

/* NULL where it is not there. */
const id_entry *id_table_find(const id_table *table, const char *id);

/* Adds an id that is not there (copied).  False without memory. */
bool id_table_add(id_table *table, const char *id, uint64_t value);

void id_table_free(id_table *table);

/* FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/. */
uint64_t hash_text(const char *text, size_t size);

#endif
