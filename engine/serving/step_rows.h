/* The rows of one step, put together from requests and the system prompt being filled. */
#ifndef RELAY_ENGINE_STEP_ROWS_H
#define RELAY_ENGINE_STEP_ROWS_H

#include "attention.h"
#include "request.h"

typedef struct eng_step_rows {
    int32_t max_rows, max_sequences;
    int32_t num_rows, num_sequences, num_logits;
    int32_t *tokens, *positions, *logit_rows; /* [max_rows], [max_rows], [max_sequences] */
    eng_sequence *sequences;                  /* [max_sequences] */
    eng_request **requests;                   /* [max_sequences] NULL: the prompt being filled */
    eng_request **logit_requests;             /* [max_sequences] */
} eng_step_rows;

bool eng_step_rows_create(eng_step_rows *rows, int32_t max_rows, int32_t max_sequences, eng_error *err);
void eng_step_rows_free(eng_step_rows *rows);
void eng_step_rows_clear(eng_step_rows *rows);

/* Adds as many of a request's uncomputed tokens as there is room for, with a logit row if that is all. */
void eng_step_rows_add_request(eng_step_rows *rows, eng_request *request);

/* Likewise for the prompt being filled. */
void eng_step_rows_add_filling(eng_step_rows *rows, const eng_prompt_set *prompts);

#endif
