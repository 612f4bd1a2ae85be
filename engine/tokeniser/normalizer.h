/* The `normalizer` of a tokenizer.json: what is done to the text before it is cut. */
#ifndef RELAY_ENGINE_NORMALIZER_H
#define RELAY_ENGINE_NORMALIZER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "common/bytes.h"
#include "pattern.h"

typedef struct eng_normalizer eng_normalizer;

/* `json` may be NULL or null: a normaliser that changes nothing. */
bool eng_normalizer_load(const json_t *json, eng_normalizer **out, eng_error *err);
void eng_normalizer_free(eng_normalizer *normalizer);

/* Rewrites well-formed UTF-8 in place.  *front counts the bytes at the text's front that stem from the very first
 * character of the whole input; it is kept up to date.  `spans` is working storage. */
bool eng_normalizer_apply(const eng_normalizer *normalizer, eng_bytes *text, size_t *front, eng_spans *spans,
                          eng_error *err);

/* Whether it leaves every text as it is. */
bool eng_normalizer_is_none(const eng_normalizer *normalizer);

/* Whether it puts `mark` for each space and does no more than put one before a text as well; that in *prepends. */
bool eng_normalizer_marks_spaces(const eng_normalizer *normalizer, const char *mark, bool *prepends);

#endif
