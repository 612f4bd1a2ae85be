/* Choosing the next token from logits.
 *
 * The filters and their order are those of Hugging Face transformers' generate(): repetition
 * penalty, temperature, top-k, top-p, min-p.  The draw is a function of the seed, the request's
 * stream and the token's index, so that a batch's other members never change an answer. */
#ifndef RELAY_ENGINE_SAMPLER_H
#define RELAY_ENGINE_SAMPLER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

typedef struct eng_sampling {
    float temperature;        /* 0: the largest logit, no draw */
    int32_t top_k;            /* 0: all; ties with the last one kept stay */
    float top_p;              /* 1: all; else the smallest leading set that reaches it */
    float min_p;              /* 0: all; else those of at least min_p times the best one's probability */
    float repetition_penalty; /* 1: none; of Keskar et al., arXiv 1909.05858 */
    uint64_t seed;
} eng_sampling;

/* Greedy, no filter. */
eng_sampling eng_sampling_defaults(void);

/* Names the first value outside its range. */
bool eng_sampling_check(const eng_sampling *sampling, eng_error *err);

/* Scratch for one vocabulary; belongs to one thread. */
typedef struct eng_sampler eng_sampler;
bool eng_sampler_create(int32_t vocab_size, eng_sampler **out, eng_error *err);
void eng_sampler_destroy(eng_sampler *sampler);

typedef struct eng_draw {
    uint64_t stream;        /* the request: a hash of its id */
    uint64_t index;         /* tokens of the answer before this one */
    const int32_t *context; /* prompt and answer so far, for the repetition penalty */
    int32_t context_size;
    const int32_t *largest; /* NULL, or what eng_sampler_largest says of these logits */
} eng_draw;

/* The first of the largest logits; -1 where none is a number.  Several threads may ask, each about its own. */
int32_t eng_sampler_largest(const float *logits, int32_t count);

/* `logits` [vocab_size] is overwritten.  Returns the token, or -1 where no logit is a number. */
int32_t eng_sampler_pick(eng_sampler *sampler, const eng_sampling *sampling, const eng_draw *draw, float *logits);

#endif
