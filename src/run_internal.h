#ifndef RELAY_RUN_INTERNAL_H
#define RELAY_RUN_INTERNAL_H

#include "plan_internal.h"
#include "relay/run.h"

/* Everything that relay_run refuses; nothing has been written when it returns. */
relay_status relayi_check_run(const relay_plan *plan, const relay_run_args *args);

/* Kv heads of which a step of few rows attends the same tokens. */
#define RELAYI_FEW_HEADS 8

/* One run, as all its threads see it. */
typedef struct relayi_runner {
    const relay_plan *plan;
    const relay_run_args *args;
    float *acc, *max, *sum;
    int64_t states; /* states of one part: num_rows * num_heads */
} relayi_runner;

/* One thread's scratch, and whose queries are in it. */
typedef struct relayi_worker {
    float *query;
    relayi_range *range;
    float *slope;
    void *kernel;
    const relayi_item *item;
    int32_t kv_begin, kv_end;
} relayi_worker;

/* Computes the item's partial states.  `next`, if not NULL, is what this thread does then. */
void relayi_attend_item(const relayi_runner *run, relayi_worker *w, const relayi_item *item, const relayi_item *next);

#endif
