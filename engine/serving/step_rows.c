#include "step_rows.h"

#include <stdlib.h>
#include <string.h>

bool eng_step_rows_create(eng_step_rows *s, int32_t max_rows, int32_t max_sequences, eng_error *err) {
    size_t rows = (size_t)max_rows, sequences = (size_t)max_sequences;
    *s = (eng_step_rows){.max_rows = max_rows, .max_sequences = max_sequences};
    s->tokens = malloc(rows * sizeof *s->tokens);
    s->positions = malloc(rows * sizeof *s->positions);
    s->logit_rows = malloc(sequences * sizeof *s->logit_rows);
    s->sequences = malloc(sequences * sizeof *s->sequences);
    s->requests = malloc(sequences * sizeof *s->requests);
    s->logit_requests = malloc(sequences * sizeof *s->logit_requests);
    if (s->tokens != NULL && s->positions != NULL && s->logit_rows != NULL && s->sequences != NULL &&
        s->requests != NULL && s->logit_requests != NULL)
        return true;
    eng_step_rows_free(s);
    return eng_fail(err, "out of memory for steps of %d rows", (int)max_rows);
}

void eng_step_rows_free(eng_step_rows *s) {
    free(s->tokens);
    free(s->positions);
    free(s->logit_rows);
    free(s->sequences);
    free(s->requests);
    free(s->logit_requests);
    *s = (eng_step_rows){0};
}

void eng_step_rows_clear(eng_step_rows *s) {
    s->num_rows = s->num_sequences = s->num_logits = 0;
}

/* Returns how many of the tokens found room. */
static int32_t add(eng_step_rows *s, eng_request *request, const eng_path *path, int32_t position,
                   const int32_t *tokens, int32_t count) {
    int32_t room = s->max_rows - s->num_rows;
    if (count > room) count = room;
    if (count == 0 || s->num_sequences == s->max_sequences) return 0;
    memcpy(s->tokens + s->num_rows, tokens, (size_t)count * sizeof *tokens);
    for (int32_t i = 0; i < count; i++) s->positions[s->num_rows + i] = position + i;
    s->num_rows += count;
    s->requests[s->num_sequences] = request;
    s->sequences[s->num_sequences++] = (eng_sequence){.rows = count, .path = *path};
    return count;
}

void eng_step_rows_add_request(eng_step_rows *s, eng_request *request) {
    int32_t first = request->path.tokens + request->computed, left = (int32_t)request->tokens.count - first;
    int32_t count = add(s, request, &request->path, first, request->tokens.ids + first, left);
    if (count == 0) return;
    eng_sequence *sequence = &s->sequences[s->num_sequences - 1];
    sequence->own_tokens = request->computed + count;
    sequence->pages = request->pages;
    if (count < left) return;
    s->logit_requests[s->num_logits] = request;
    s->logit_rows[s->num_logits++] = s->num_rows - 1;
}

void eng_step_rows_add_filling(eng_step_rows *s, const eng_prompt_set *prompts) {
    int32_t left;
    const int32_t *tokens = eng_prompt_set_filling_tokens(prompts, &left);
    eng_path path = eng_prompt_set_filling_path(prompts);
    int32_t count = add(s, NULL, &path, path.tokens, tokens, left);
    if (count > 0) s->sequences[s->num_sequences - 1].own_tokens = count;
}
