/* From texts to tokens by way of a chat template: system and user text are one conversation. */
#ifndef RELAY_ENGINE_CONVERSATION_H
#define RELAY_ENGINE_CONVERSATION_H

#include "template.h"
#include "tokeniser/tokenizer.h"

typedef struct eng_talk {
    const eng_tokenizer *tokenizer;
    const eng_template *format;
    const char *default_system; /* goes before the format's; NULL: the format's */
    bool writes_bos;            /* the BOS token comes before what the format writes */
} eng_talk;

/* Appends the tokens of a conversation up to where its first answer begins.  `system` NULL: none. */
bool eng_talk_begin(const eng_talk *talk, const char *system, const char *user, eng_tokens *out, eng_error *err);

/* What all conversations under one system text begin with, tokenised once; `resume` is where the rest of their texts
 * begins.  All zero: nothing. */
typedef struct eng_talk_stem {
    eng_tokens tokens;
    size_t resume;
} eng_talk_stem;

/* Only as far as the tokens are the same whatever the user says (eng_tokenizer_settled). */
bool eng_talk_prepare(const eng_talk *talk, const char *system, eng_talk_stem *out, eng_error *err);
void eng_talk_stem_free(eng_talk_stem *stem);

/* The same tokens as eng_talk_begin's; `stem` is the one of this system text. */
bool eng_talk_begin_on(const eng_talk *talk, const eng_talk_stem *stem, const char *system, const char *user,
                       eng_tokens *out, eng_error *err);

/* Appends what follows an answer, up to where the next one begins.  `tokens` end in the answer, with or
 * without the token that closes it. */
bool eng_talk_go_on(const eng_talk *talk, const char *user, eng_tokens *tokens, eng_error *err);

/* Appends the tokens that conversations under `system` begin with, whatever the user says: the longest
 * common prefix over some beginnings.  May be none. */
bool eng_talk_shared(const eng_talk *talk, const char *system, eng_tokens *out, eng_error *err);

#endif
