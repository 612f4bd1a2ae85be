/* Token texts and their ids, both ways. */
#ifndef RELAY_ENGINE_VOCAB_H
#define RELAY_ENGINE_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bytes.h"

/* Ids above this are refused, so that a hostile one cannot make the tables huge. */
#define ENG_TOKEN_ID_MAX ((1 << 24) - 1)

typedef struct eng_vocab_entry {
    size_t begin, size; /* in `texts` */
    uint64_t hash;
    int32_t id;
} eng_vocab_entry;

/* All zero is an empty one. */
typedef struct eng_vocab {
    eng_bytes texts;
    eng_vocab_entry *entries;
    size_t count, room;
    uint32_t *slots; /* entry index + 1 by hash, open addressing; 0 is free */
    size_t slot_count;
    uint32_t *by_id; /* entry index + 1 */
    size_t id_count, id_room;
} eng_vocab;

/* Adds a text that is not there yet under an id that is not taken yet; fails on either. */
bool eng_vocab_add(eng_vocab *vocab, const char *text, size_t size, int32_t id, eng_error *err);

/* The text's id, or -1. */
int32_t eng_vocab_find(const eng_vocab *vocab, const char *text, size_t size);

/* The id's text and its size in bytes, or NULL. */
const char *eng_vocab_text(const eng_vocab *vocab, int32_t id, size_t *size);

void eng_vocab_free(eng_vocab *vocab);

/* A hash of bytes; the word caches use it too. */
uint64_t eng_hash(const char *text, size_t size);

#endif
