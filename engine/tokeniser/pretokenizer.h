/* The `pre_tokenizer` of a tokenizer.json: cuts text into the words that the model tokenises one by one. */
#ifndef RELAY_ENGINE_PRETOKENIZER_H
#define RELAY_ENGINE_PRETOKENIZER_H

#include <jansson.h>
#include <stdbool.h>

#include "pattern.h"
#include "splits.h"

typedef struct eng_pretokenizer eng_pretokenizer;

/* `json` may be NULL or null: text is not cut. */
bool eng_pretokenizer_load(const json_t *json, eng_pretokenizer **out, eng_error *err);
void eng_pretokenizer_free(eng_pretokenizer *pretokenizer);

/* Replaces the text pieces of *splits by their parts.  `spare` and `spans` are working storage. */
bool eng_pretokenizer_apply(const eng_pretokenizer *pretokenizer, eng_splits *splits, eng_splits *spare,
                            eng_spans *spans, eng_error *err);

/* Whether it cuts at every white space, drops it, and looks at nothing beyond it. */
bool eng_pretokenizer_drops_space(const eng_pretokenizer *pretokenizer);

/* Whether it puts `mark` for each space, before a text as well where there is none yet, and cuts nowhere but there. */
bool eng_pretokenizer_marks_spaces(const eng_pretokenizer *pretokenizer, const char *mark);

/* Whether it leaves text without a space in one piece. */
bool eng_pretokenizer_cuts_spaces_only(const eng_pretokenizer *pretokenizer);

#endif
