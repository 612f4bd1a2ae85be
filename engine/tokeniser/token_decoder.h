/* The `decoder` of a tokenizer.json: token texts back to text, as they come. */
#ifndef RELAY_ENGINE_TOKEN_DECODER_H
#define RELAY_ENGINE_TOKEN_DECODER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "common/bytes.h"

typedef struct eng_token_decoder eng_token_decoder;

/* `json` may be NULL or null: the tokens with a space between them. */
bool eng_token_decoder_load(const json_t *json, eng_token_decoder **out, eng_error *err);
void eng_token_decoder_free(eng_token_decoder *decoder);

/* The state of one text being decoded; it borrows the decoder. */
typedef struct eng_decoding eng_decoding;

bool eng_decoding_start(const eng_token_decoder *decoder, eng_decoding **out, eng_error *err);

/* Takes one token and appends what is settled by now, always whole characters. */
bool eng_decoding_push(eng_decoding *decoding, const char *token, size_t size, eng_bytes *out, eng_error *err);

/* Appends what was held back.  Then only eng_decoding_free may follow. */
bool eng_decoding_finish(eng_decoding *decoding, eng_bytes *out, eng_error *err);
void eng_decoding_free(eng_decoding *decoding);

#endif
