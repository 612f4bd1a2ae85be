/* Text to tokens and back, as a model's tokenizer.json says and as the Python package `tokenizers` does it.
 *
 * Taken: models BPE and WordLevel; the normalizers, pre_tokenizers, post_processors and decoders named in the
 * message that refuses any other ("m/tokenizer.json: normalizer: unknown type \"Precompiled\"; supported: ...").
 * Not applied: `truncation` and `padding`, which concern batches of fixed length.
 *
 * A loaded tokeniser does not change: any number of threads may use it at once. */
#ifndef RELAY_ENGINE_TOKENIZER_H
#define RELAY_ENGINE_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bytes.h"
#include "common/error.h"
#include "tokenizer_config.h"
#include "tokens.h"

typedef struct eng_tokenizer eng_tokenizer;

/* Reads tokenizer.json and, where they are, tokenizer_config.json and chat_template.jinja of a model's directory.
 * On failure *out is NULL. */
bool eng_tokenizer_load(const char *model_dir, eng_tokenizer **out, eng_error *err);

/* NULL is fine. */
void eng_tokenizer_free(eng_tokenizer *tokenizer);

/* Appends the text's tokens to *out.  Added tokens in the text are recognised; `add_special` puts the post_processor's
 * special tokens around.  Bytes that are not UTF-8 count as U+FFFD, one for each maximal subpart, which is what
 * bytes.decode(errors="replace") makes of them.  On failure *out is as it was. */
bool eng_tokenizer_encode(const eng_tokenizer *tokenizer, const char *text, size_t size, bool add_special,
                          eng_tokens *out, eng_error *err);

/* How much of a text's front becomes the same tokens whatever follows the text: the tokens of the first `end` bytes, and
 * then those of what begins at `resume` (end, or one space behind it) together with what follows, without special tokens,
 * are the tokens of all of it.  Both 0 where no such place is known.  Places are before an added token; at white space
 * where it parts words; and before a marked space that no token of the vocabulary has in its middle. */
typedef struct eng_settled {
    size_t end, resume;
} eng_settled;
eng_settled eng_tokenizer_settled(const eng_tokenizer *tokenizer, const char *text, size_t size);

/* Appends the text of all tokens to *out.  Ids without a token give nothing; `skip_special` leaves special tokens
 * out.  What is appended is well-formed UTF-8. */
bool eng_tokenizer_decode(const eng_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip_special,
                          eng_bytes *out, eng_error *err);

/* How many tokens there are, added ones included; ids may lie higher where the file leaves gaps. */
size_t eng_tokenizer_vocab_size(const eng_tokenizer *tokenizer);

/* The id of a token's text, or -1. */
int32_t eng_tokenizer_token_id(const eng_tokenizer *tokenizer, const char *text);

/* A token's text as it stands in the file (not decoded, no 0 byte follows), or NULL. */
const char *eng_tokenizer_token_text(const eng_tokenizer *tokenizer, int32_t id, size_t *size);

/* Whether the token is left out by skip_special. */
bool eng_tokenizer_is_special(const eng_tokenizer *tokenizer, int32_t id);

/* Ids of tokenizer_config.json's special tokens; -1 where there is none. */
int32_t eng_tokenizer_bos(const eng_tokenizer *tokenizer);
int32_t eng_tokenizer_eos(const eng_tokenizer *tokenizer);
int32_t eng_tokenizer_pad(const eng_tokenizer *tokenizer);

/* tokenizer_config.json as read, the chat template among it. */
const eng_tokenizer_config *eng_tokenizer_get_config(const eng_tokenizer *tokenizer);

/* Decodes one answer as its tokens come; it borrows the tokeniser, and belongs to one thread at a time.  All that it
 * gives out adds up to what eng_tokenizer_decode gives for the same tokens. */
typedef struct eng_decoder eng_decoder;

bool eng_decoder_start(const eng_tokenizer *tokenizer, bool skip_special, eng_decoder **out, eng_error *err);

/* Takes one token.  *text and *size are what is settled now, always whole characters and possibly nothing; they stay
 * until the next call. */
bool eng_decoder_push(eng_decoder *decoder, int32_t id, const char **text, size_t *size, eng_error *err);

/* Gives out what was held back; then only eng_decoder_free may follow. */
bool eng_decoder_finish(eng_decoder *decoder, const char **text, size_t *size, eng_error *err);

/* NULL is fine. */
void eng_decoder_free(eng_decoder *decoder);

#endif
