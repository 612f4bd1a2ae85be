/* What `relay generate` counts, and the file that tells it. */
#ifndef RELAY_RUN_STATS_H
#define RELAY_RUN_STATS_H

#include <stdbool.h>
#include <stdint.h>

#include "engine.h"

typedef struct run_counts {
    int64_t answered, failed, refused; /* lines with an answer, with an error, without an id */
    int64_t resumed;                   /* that were there already */
    int64_t expected, matched;         /* with --resume those that were there count, too */
    int64_t prompt_tokens, shared_tokens, completion_tokens;
    double seconds;                    /* from the first request to the last answer */
    double load_seconds;
} run_counts;

/* Replaces the file as a whole; "-" is stdout.  Messages go to stderr. */
bool run_stats_write(const char *path, const run_counts *counts, const eng_engine *engine);

#endif
