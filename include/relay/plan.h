/* relay/plan.h - the fourth concept: how a step's attention is cut and balanced.
 *
 * A plan is made once per step from a forest and used by every layer with the
 * same attention.  It decides for each shared segment whether its tokens are read
 * once for all its requests (relay) or by each request (plain), cuts the work into
 * equal pieces, and says how much workspace a run needs.
 *
 * A plan and its forest belong to one thread at a time.
 */
#ifndef RELAY_PLAN_H
#define RELAY_PLAN_H

#include "forest.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct relay_plan relay_plan;

/* The attention that a layer computes.  Scores of a query at global position p and a
 * key at global position t <= p:
 *     s = softmax_scale * <q, k>
 *     s = logit_soft_cap * tanh(s / logit_soft_cap)     if logit_soft_cap > 0
 *     s = s + alibi_slope[head] * (t - p)               if use_alibi
 * visible when t > p - sliding_window, or t < num_sink_tokens, or no window is set.
 * With use_sinks the softmax denominator has one more term exp(sink[head]), which
 * carries no value; the LSE includes it. */
typedef struct relay_attention {
    uint32_t struct_size;
    int32_t num_heads;        /* query heads Hq, multiple of num_kv_heads */
    int32_t num_kv_heads;     /* Hkv */
    int32_t head_dim;         /* D, multiple of 8, 8..256 */
    relay_dtype query_dtype;  /* default RELAY_BF16 */
    relay_dtype kv_dtype;     /* default RELAY_BF16 */
    relay_dtype output_dtype; /* default RELAY_BF16 */
    float softmax_scale;      /* default 0 = 1 / sqrt(head_dim) */
    float logit_soft_cap;     /* default 0 = none (Gemma 2) */
    int32_t sliding_window;   /* default 0 = none; w: a query sees itself and the w-1 before */
    int32_t num_sink_tokens;  /* default 0; leading tokens that a window never hides
                                 (StreamingLLM, arXiv 2309.17453) */
    int32_t use_alibi;        /* default 0; 1: relay_run_args.alibi_slopes (arXiv 2108.12409) */
    int32_t use_sinks;        /* default 0; 1: relay_run_args.sinks, a learned logit per head */
} relay_attention;

RELAY_API relay_attention relay_attention_defaults(void);

typedef enum relay_strategy {
    RELAY_STRATEGY_AUTO = 0,  /* per segment, whichever the cost model finds faster */
    RELAY_STRATEGY_RELAY = 1, /* every shared segment once for all its requests */
    RELAY_STRATEGY_PLAIN = 2  /* every request by itself; shared memory, no shared work */
} relay_strategy;

typedef struct relay_plan_options {
    uint32_t struct_size;
    relay_strategy strategy; /* default AUTO */
    int32_t repeatable;      /* default 0.  1: the result of a request is bitwise the same
                                whatever else is in the batch and however many threads run, as
                                long as its own path has the same segments: every span is cut
                                alike, shared or not, and no cost model is asked.  (Segments
                                that relay_forest_find finds depend on the batch; give the
                                forest yourself where every bit counts.) */

    /* For CUDA graphs; nothing to the CPU.  With max_requests above 0 the plan takes any batch
     * within these bounds by the same launches, copies and workspace: a relay_run captured once
     * serves every later relay_plan_build.  A batch beyond a bound is refused (OUT_OF_RANGE). */
    int32_t max_requests; /* default 0 = no bounds, and none of the others given */
    int32_t max_rows;     /* query rows of a batch, >= max_requests is usual; a run's tensors have as
                             many, whatever the batch */
    int32_t max_depth;    /* shared segments on a request's path */
    int32_t max_tokens;   /* tokens of a request, its path and its own */
    int32_t max_blocks;   /* block ids of all spans of a batch together */
} relay_plan_options;

RELAY_API relay_plan_options relay_plan_options_defaults(void);

/* Errors: NULL_POINTER, BAD_STRUCT_SIZE, INVALID_ARGUMENT (which field: see the log),
 * BAD_DTYPE, UNSUPPORTED, OUT_OF_MEMORY. */
RELAY_API relay_status relay_plan_create(relay_device *device, const relay_attention *attention,
                                         const relay_plan_options *options, relay_plan **plan);
RELAY_API void relay_plan_destroy(relay_plan *plan); /* accepts NULL */

/* Plans a step.  The forest is borrowed: it must live and stay unchanged while the plan
 * is run (a change is noticed: STALE_PLAN).  On failure the plan is not built, whatever it
 * was before.  Allocates only when a batch is larger than any before.  Errors: NULL_POINTER, WRONG_DEVICE, INVALID_ARGUMENT (a request has more
 * query rows than tokens of its own; a packed prompt of another shape or dtype),
 * OUT_OF_RANGE (a bound of the options), OUT_OF_MEMORY.
 * CUDA: where the requests of the last build have only grown, the same cuts are kept and their ends
 * moved, which takes a sixth of the time.
 * CUDA: UNSUPPORTED for packed prompts and for a block_size that is no multiple of 16.  Runs copy
 * the plan when their turn comes on their stream: building waits for those queued, on whichever
 * streams.  (Graphs of one plan that are launched on several streams are the caller's to order;
 * two plans in turn wait for nothing.) */
RELAY_API relay_status relay_plan_build(relay_plan *plan, const relay_forest *forest);

/* Bytes that relay_run needs for the plan as built; 0 when there is nothing to do. */
RELAY_API size_t relay_plan_workspace_bytes(const relay_plan *plan);

typedef struct relay_plan_info {
    uint32_t struct_size;
    int32_t num_requests;
    int32_t num_rows;            /* query rows T */
    int32_t relay_segments;      /* shared segments read once */
    int32_t plain_segments;      /* shared segments read per request */
    int64_t shared_tokens_saved; /* K/V tokens that plain attention would have read again */
    int32_t num_work_items;
    double unique_kv_bytes;      /* each K/V byte of one layer once */
    double flops;                /* of one layer: 4 * D for each visible (row, head, token) */
    const char *kernel;          /* name; static storage */
} relay_plan_info;

/* Errors: NULL_POINTER, BAD_STRUCT_SIZE, STALE_PLAN (not built). */
RELAY_API relay_status relay_plan_get_info(const relay_plan *plan, relay_plan_info *info);

#ifdef __cplusplus
}
#endif
#endif
