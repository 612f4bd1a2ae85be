/* The generate bench, set up in memory: an engine with random weights, one system prompt, a copy of the
 * prompt for each request, and batches of requests that decode under the one or under the copies. */
#ifndef RELAY_GENERATE_CASE_H
#define RELAY_GENERATE_CASE_H

#include <stdbool.h>

#include "bench.h"
#include "engine.h"

typedef struct generate_shape {
    const char *model; /* eng_model_random's */
    int32_t batch, system, user, max_tokens, step_rows, threads;
    eng_compute compute;
    relay_dtype kv_dtype; /* 0: the engine's choice */
} generate_shape;

typedef enum generate_method { GENERATE_RELAY, GENERATE_PLAIN, GENERATE_PRIVATE, NUM_GENERATE_METHODS } generate_method;

/* Where a step's time went. */
typedef enum generate_part { PART_STEP, PART_ATTENTION, PART_LINEAR, PART_OTHER, NUM_PARTS } generate_part;

/* Readings of the steps in which every request decoded one token and nothing else was done. */
typedef struct generate_times {
    bench_times parts[NUM_PARTS];
    double own_tokens; /* of one request, the mean over those steps */
    int64_t relay_steps;
} generate_times;

/* How the system prompt was computed. */
typedef struct generate_prefill {
    double seconds, attention_seconds, linear_seconds;
    int32_t steps;
} generate_prefill;

typedef struct generate_case {
    generate_shape shape;
    eng_engine *engine;
    int32_t *tokens; /* [system + user], a request's */
    int32_t copies;  /* prompts 1..copies are copies of prompt 0 */
} generate_case;

/* Makes the weights.  `copies`: of the prompt, that there will be; made by generate_case_copy.  On failure says why on stderr. */
bool generate_case_open(generate_case *c, const generate_shape *shape, int32_t copies);
void generate_case_close(generate_case *c);

bool generate_case_prefill(generate_case *c, generate_prefill *prefill);
bool generate_case_copy(generate_case *c);

/* Answers one batch, and adds its readings. */
bool generate_case_run(generate_case *c, generate_method method, generate_times *times);
void generate_times_free(generate_times *times);

#endif
