/* relay bench attention --device cuda. */
#ifndef RELAY_BENCH_CUDA_H
#define RELAY_BENCH_CUDA_H

#include "attention_case.h"
#include "bench.h"
#include "cuda_memory.h"

/* How a time was read. */
typedef enum bench_cuda_method {
    BENCH_EV, /* cold caches, an event, a graph with the work, an event; median */
    BENCH_GD  /* a graph of flushes and works, less a graph of the flushes alone */
} bench_cuda_method;

/* A shape in device memory: prompts and users in shuffled pages of one pool. */
typedef struct cuda_case {
    cuda_lab *lab;
    attention_shape shape;
    char *numbers;         /* random elements; element i of a tensor is number (i + offset) % count */
    int64_t num_numbers;
    void *pool[2], *query, *output, *flush, *stream;
    bool ragged;           /* lengths about those of the shape: the same in sum */
    bool always;           /* relay even where the plan would not */
    int32_t *tables;       /* blocks of the prompts, then of the users */
    int32_t *table_at;     /* [groups + batch + 1]: where each one's begin */
    int32_t num_blocks;
    relay_forest *forest;
    relay_plan *plan[2];   /* relay (AUTO unless `always`), plain */
    void *workspace[2];
    size_t workspace_bytes[2];
} cuda_case;

bool cuda_case_open(cuda_case *k, cuda_lab *lab, const attention_shape *shape, bool ragged, bool always);
void cuda_case_close(cuda_case *k);

/* Captures `repeats` times (flush, then the work if `which` >= 0) into a graph; `flush`: whether. */
void *cuda_case_graph(cuda_case *k, int which, int32_t repeats, bool flush, bool plan_in_workspace);

/* Seconds of one run of plan `which`; NAN where it failed (said on stderr). */
double cuda_case_time(cuda_case *k, int which, bench_cuda_method method, bool plan_in_workspace, int32_t readings);

/* Seconds that the host takes to build a plan: whole, or when each request has grown by a token since; medians. */
double cuda_case_time_build(cuda_case *k, bool whole);

/* Runs plan `which` once and compares a sample of rows and heads with float64. */
double cuda_case_error(cuda_case *k, int which);

typedef struct bench_cuda_settings {
    const attention_shape *shapes;
    int32_t num_shapes, index, readings;
    uint32_t methods;     /* bit i: bench_cuda_method i */
    bool json, with_plan; /* with_plan: the copy of the work list is timed too */
    bool ragged, always;
    relay_log_fn log;
} bench_cuda_settings;

int bench_attention_cuda(const bench_cuda_settings *settings);

#endif
