/* Byte pair encoding: a word's characters, merged pair by pair in the order of the pairs' ranks. */
#ifndef RELAY_ENGINE_BPE_H
#define RELAY_ENGINE_BPE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tokens.h"
#include "vocab.h"

/* What the merges say of a pair; `left` < 0 marks a free slot. */
typedef struct eng_merge {
    int32_t left, right, merged;
    uint32_t rank;
} eng_merge;

typedef struct eng_bpe {
    eng_merge *merges; /* by hash of the pair, open addressing */
    size_t merge_slots;
    int32_t byte_ids[256]; /* of <0x00> and so on, -1 where missing */
    char *unk_token;       /* NULL: characters without a token are left out */
    int32_t unk_id;
    bool fuse_unk, byte_fallback, ignore_merges;
} eng_bpe;

/* Working storage of one thread; all zero is an empty one. */
typedef struct eng_bpe_space {
    struct symbol *symbols;
    struct candidate *heap;
    size_t symbol_count, symbol_room, heap_count, heap_room;
} eng_bpe_space;

bool eng_bpe_load(const json_t *model, const eng_vocab *vocab, eng_bpe *out, eng_error *err);
void eng_bpe_free(eng_bpe *bpe);

/* Appends the tokens of one word of well-formed UTF-8. */
bool eng_bpe_encode(const eng_bpe *bpe, const eng_vocab *vocab, const char *word, size_t size, eng_bpe_space *space,
                    eng_tokens *out, eng_error *err);
void eng_bpe_space_free(eng_bpe_space *space);

#endif
