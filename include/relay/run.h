/* relay/run.h - the fifth concept: computing one layer's attention by a plan,
 * and writing new K/V into the pages that it reads.
 */
#ifndef RELAY_RUN_H
#define RELAY_RUN_H

#include "plan.h"

#ifdef __cplusplus
extern "C" {
#endif

/* K and V of one contiguous span. */
typedef struct relay_kv_tensors {
    relay_tensor key;   /* [n >= span length, Hkv, D], dtype kv_dtype, last stride 1 */
    relay_tensor value; /* the same shape; strides of its own */
} relay_kv_tensors;

typedef struct relay_run_args {
    uint32_t struct_size;
    relay_tensor query; /* [T, Hq, D], query_dtype, any strides with the last 1;
                           T >= the plan's rows */
    /* Pages; needed if a span of the forest is PAGED.  [num_blocks, block_size, Hkv, D],
     * kv_dtype, last stride 1.  The new tokens' K/V are already in place. */
    relay_tensor key_pool;
    relay_tensor value_pool;
    const relay_kv_tensors *contiguous; /* [num_contiguous]; for CONTIGUOUS spans */
    int32_t num_contiguous;
    int32_t layer;             /* which layer of PACKED prompts */
    const float *alibi_slopes; /* [Hq] if use_alibi, else NULL */
    const float *sinks;        /* [Hq] if use_sinks, else NULL */

    relay_tensor output; /* [T, Hq, D], output_dtype, last stride 1; rows beyond the plan's
                            are not touched */
    relay_tensor lse;    /* [T, Hq] f32, natural log, any strides (so [Hq, T] memory too);
                            data NULL = not wanted.  A row that sees no token: output 0,
                            lse -INFINITY */
    void *workspace;     /* relay_plan_workspace_bytes(), 64-byte aligned */
    size_t workspace_bytes;
    void *stream; /* CUDA: a cudaStream_t, the run is asynchronous on it.  CPU: NULL, the run
                     is done when the call returns */
    int32_t plan_in_workspace; /* default 0.  CUDA: 1 = an earlier run of this plan, as built now,
                                  on this stream has left it in this workspace, so it is not
                                  copied again (a model's second and later layers) */
} relay_run_args;

RELAY_API relay_run_args relay_run_args_defaults(void);

/* Computes one layer.  Allocates nothing and, on CUDA, synchronises nothing.
 * On the CPU a plan of little work, by the cost model's estimate, runs on the calling thread
 * alone, any other on all of the device's threads; the plan was cut with that in mind.
 * NaN in an input reaches the rows that see it.  So do infinities, as IEEE arithmetic has it: a
 * score of -INFINITY takes its token out of the row, one of +INFINITY makes the row NaN, a value
 * comes out as it is.
 * output and lse must not overlap any input or each other.  Two runs may go on at once with
 * different plans or different workspaces, outputs and the same plan.
 * Bitwise repeatable: always for the same plan on the same device with the same inputs;
 * across batches and thread counts with relay_plan_options.repeatable.
 * Source of the formula: arXiv 2402.14808, section 3; the merge of any number of parts
 * follows from softmax's denominator being a sum.
 * Errors, before anything is written: NULL_POINTER, BAD_STRUCT_SIZE, STALE_PLAN,
 * BAD_DTYPE, BAD_SHAPE, BAD_STRIDE, OUT_OF_RANGE (layer, tensor_index, pool smaller than
 * the forest's), OVERLAP, WORKSPACE_TOO_SMALL, MISALIGNED.
 *
 * CUDA: every pointer is to memory of the plan's device (WRONG_DEVICE if not); bases of K/V
 * are aligned to 16 bytes and their strides are multiples of 8 elements (MISALIGNED,
 * BAD_STRIDE); queries and outputs are as free as on the CPU.  A stream that is being captured
 * records a copy of the plan from the plan's own pinned memory, and two kernels; a replay reads
 * that memory again, so a plan with bounds (relay_plan_options.max_requests) may be built anew
 * between replays.  DEVICE_ERROR: CUDA's own words are in the log, and say whether the error
 * came from before the call. */
RELAY_API relay_status relay_run(const relay_plan *plan, const relay_run_args *args);

typedef struct relay_cache_write_args {
    uint32_t struct_size;
    relay_tensor key;            /* [T, Hkv, D], f32, f16 or bf16, last stride 1 */
    relay_tensor value;          /* [T, Hkv, D], likewise */
    relay_tensor key_pool;       /* [num_blocks, block_size, Hkv, D], f32, f16 or bf16 */
    relay_tensor value_pool;     /* likewise */
    const int64_t *slot_mapping; /* [num_slots <= T]: block_id * block_size + offset; a
                                    negative slot skips its token */
    int64_t num_slots;
    void *stream;
} relay_cache_write_args;

RELAY_API relay_cache_write_args relay_cache_write_args_defaults(void);

/* Puts new K/V into pages, rounding to the pool's dtype (to nearest, ties to even).
 * All slots are checked first; on CUDA, where slot_mapping is device memory, a slot beyond the
 * pool is skipped instead.  Errors: NULL_POINTER, BAD_STRUCT_SIZE, BAD_DTYPE,
 * BAD_SHAPE, BAD_STRIDE, OUT_OF_RANGE, OVERLAP. */
RELAY_API relay_status relay_cache_write(relay_device *device, const relay_cache_write_args *args);

#ifdef __cplusplus
}
#endif
#endif
