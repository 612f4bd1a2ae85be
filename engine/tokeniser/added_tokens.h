/* The `added_tokens` of a tokenizer.json: texts that are found in the input before anything else is done to it, or
 * after normalisation, and that are one token each. */
#ifndef RELAY_ENGINE_ADDED_TOKENS_H
#define RELAY_ENGINE_ADDED_TOKENS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "normalizer.h"
#include "splits.h"
#include "vocab.h"

typedef struct eng_added_token {
    int32_t id;
    size_t content_begin, content_size; /* in `texts` */
    size_t normal_begin, normal_size;   /* what is looked for: the content, normalised if so asked */
    bool single_word, lstrip, rstrip, normalized, special;
} eng_added_token;

/* A tree of bytes over the texts looked for; node 0 is the root. */
typedef struct eng_token_tree {
    struct tree_node *nodes;
    size_t count, room;
    uint32_t first[256]; /* the root's children */
} eng_token_tree;

typedef struct eng_added_tokens {
    eng_bytes texts;
    eng_vocab contents;
    eng_added_token *list; /* sorted by id */
    size_t count, room;
    eng_token_tree plain, normalized;
} eng_added_tokens;

/* `json` may be NULL or null. */
bool eng_added_tokens_load(const json_t *json, const eng_vocab *vocab, const eng_normalizer *normalizer,
                           eng_added_tokens *out, eng_error *err);
void eng_added_tokens_free(eng_added_tokens *added);

/* The token of this id, or NULL; the id of this content, or -1. */
const eng_added_token *eng_added_tokens_by_id(const eng_added_tokens *added, int32_t id);
int32_t eng_added_tokens_find(const eng_added_tokens *added, const char *content, size_t size);

/* Cuts the text pieces of `in` at the tokens found; `normalized` chooses which kind is looked for. */
bool eng_added_tokens_split(const eng_added_tokens *added, bool normalized, const eng_splits *in, eng_splits *out,
                            eng_error *err);

/* What is sure of the tokens that are looked for before normalisation, whatever follows the text. */
typedef struct eng_added_settled {
    size_t cut;        /* the last one begins here; what is before it is cut as it is; 0: nowhere */
    size_t open, sure; /* there is none in between: `open` is where the last one ends */
} eng_added_settled;

/* The text is well-formed UTF-8. */
eng_added_settled eng_added_tokens_settled(const eng_added_tokens *added, const char *text, size_t size);

/* Whether there is white space in any token. */
bool eng_added_tokens_hold_space(const eng_added_tokens *added);

#endif
