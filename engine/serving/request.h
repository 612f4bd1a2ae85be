/* One request on its way through the scheduler. */
#ifndef RELAY_ENGINE_REQUEST_H
#define RELAY_ENGINE_REQUEST_H

#include "prompt_set.h"
#include "sampler.h"
#include "tokeniser/tokens.h"

typedef enum eng_finish {
    ENG_FINISH_NONE,
    ENG_FINISH_STOP,   /* the model ended its answer, or a stop string did */
    ENG_FINISH_LENGTH, /* max_tokens */
    ENG_FINISH_ERROR   /* see the request's error */
} eng_finish;

const char *eng_finish_name(eng_finish finish); /* "stop", "length", "error" */

typedef struct eng_request {
    /* the caller's */
    eng_tokens tokens; /* the prompt, to which the answer is added */
    int32_t prompt_tokens, max_tokens;
    eng_path path;     /* what of the prompt is shared */
    eng_sampling sampling;
    uint64_t stream;   /* of random numbers: a hash of the id */
    bool keep_pages;   /* at the end, for a next turn */
    void *user;

    /* the scheduler's */
    uint64_t seniority; /* order of arrival: the youngest is preempted first */
    int32_t *pages;
    int32_t num_pages;
    size_t page_room;
    int32_t computed;   /* own tokens whose K/V is in the pages */
    bool pinned;        /* the path */
    eng_finish finish;
    eng_error error;
    struct eng_request *next;
} eng_request;

/* Tokens behind the shared ones, and those of the answer. */
int32_t eng_request_own_tokens(const eng_request *request);
int32_t eng_request_answer_tokens(const eng_request *request);

/* What the request holds but its pages and pins, which the scheduler has taken back at its end. */
void eng_request_free(eng_request *request);

#endif
