#include "id_table.h"

#include <stdlib.h>
#include <string.h>

uint64_t hash_text(const char *text, size_t size) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < size; i++) hash = (hash ^ (unsigned char)text[i]) * UINT64_C(0x100000001b3);
    return hash;
}

/* The id's entry, or the free one where it would go; the table has a free one. */
static id_entry *slot_of(const id_table *table, const char *id) {
    size_t at = hash_text(id, strlen(id)) & (table->room - 1);
    while (table->entries[at].id != NULL && strcmp(table->entries[at].id, id) != 0) at = (at + 1) & (table->room - 1);
    return &table->entries[at];
}

const id_entry *id_table_find(const id_table *table, const char *id) {
    if (table->count == 0) return NULL;
    const id_entry *slot = slot_of(table, id);
    return slot->id != NULL ? slot : NULL;
}

static bool enlarge(id_table *table) {
    id_table larger = {.room = table->room == 0 ? 256 : 2 * table->room, .count = table->count};
    larger.entries = calloc(larger.room, sizeof *larger.entries);
    if (larger.entries == NULL) return false;
    for (size_t i = 0; i < table->room; i++)
        if (table->entries[i].id != NULL) *slot_of(&larger, table->entries[i].id) = table->entries[i];
    free(table->entries);
    *table = larger;
    return true;
}

bool id_table_add(id_table *table, const char *id, uint64_t value) {
    if (2 * (table->count + 1) > table->room && !enlarge(table)) return false;
    char *copy = strdup(id);
    if (copy == NULL) return false;
    *slot_of(table, id) = (id_entry){copy, value};
    table->count++;
    return true;
}

void id_table_free(id_table *table) {
    for (size_t i = 0; i < table->room; i++) free(table->entries[i].id);
    free(table->entries);
    *table = (id_table){0};
}
