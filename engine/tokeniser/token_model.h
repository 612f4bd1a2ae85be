/* The `model` of a tokenizer.json: BPE or WordLevel, and the vocabulary. */
#ifndef RELAY_ENGINE_TOKEN_MODEL_H
#define RELAY_ENGINE_TOKEN_MODEL_H

#include <jansson.h>
#include <stdbool.h>

#include "bpe.h"
#include "splits.h"
#include "tokens.h"
#include "vocab.h"

typedef struct eng_token_model {
    eng_vocab vocab;
    bool is_bpe;
    eng_bpe bpe;
    char *unk_token; /* WordLevel */
    int32_t unk_id;
} eng_token_model;

bool eng_token_model_load(const json_t *model, eng_token_model *out, eng_error *err);
void eng_token_model_free(eng_token_model *model);

/* Appends the tokens of all pieces: each word's, or the token that a piece is already. */
bool eng_token_model_encode(const eng_token_model *model, const eng_splits *splits, eng_tokens *out, eng_error *err);

/* Whether no token ever reaches from the one of these characters to the other, where they stand side by side in a
 * word: then each side of the word is tokenised as if it stood alone. */
bool eng_token_model_never_joins(const eng_token_model *model, const char *left, size_t left_size, const char *right,
                                 size_t right_size);

#endif
