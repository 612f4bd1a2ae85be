/* One request as a user sees it: its tokens on the way through the scheduler, and its text. */
#ifndef RELAY_ENGINE_ANSWER_H
#define RELAY_ENGINE_ANSWER_H

#include "request.h"
#include "stop_text.h"
#include "tokeniser/tokenizer.h"

typedef struct eng_answer {
    eng_request request;  /* request.user is the answer */
    eng_decoder *decoder; /* NULL: tokens only, or all text is out */
    eng_bytes text;       /* no 0 byte behind it */
    eng_stops stops;      /* borrowed */
    size_t searched;      /* bytes of the text in which no stop string ends */
    void *user;
    struct eng_answer *next, *previous; /* the engine's list */
} eng_answer;

/* Takes one token into the text.  *stopped where a stop string has come: the text is cut before it. */
bool eng_answer_add(eng_answer *answer, int32_t token, bool *stopped, eng_error *err);

/* Takes what the decoder held back. */
bool eng_answer_end(eng_answer *answer, bool *stopped, eng_error *err);

/* Bytes of the text that no stop string can take back any more. */
size_t eng_answer_settled(const eng_answer *answer);

void eng_answer_free(eng_answer *answer);

#endif
