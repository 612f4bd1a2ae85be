/* relay check --device cuda: the same problems, oracle and comparisons as on the CPU, with every
 * tensor copied into device memory. */
#ifndef RELAY_CHECK_CUDA_H
#define RELAY_CHECK_CUDA_H

#include "check_world.h"
#include "cuda_memory.h"

/* The world's tensors on the device; NULL where the world has none. */
typedef struct cuda_world {
    cuda_lab *lab;
    chk_world *host;
    void *pool[2], *query, *output, *lse, *slopes, *sinks, *workspace;
    size_t workspace_bytes;
    void *contiguous[CHK_MAX_SPANS][2];
    relay_kv_tensors views[CHK_MAX_SPANS];
} cuda_world;

bool cuda_world_make(chk *c, cuda_lab *lab, chk_world *host, cuda_world *world);
void cuda_world_free(cuda_world *world);

/* Runs a built plan on the default stream and fetches the result.  `reuse`: the workspace has the
 * plan already. */
bool cuda_world_run(chk *c, cuda_world *world, const relay_plan *plan, bool reuse, chk_result *got);
/* The arguments of such a run; the workspace is made for the plan. */
bool cuda_world_args(chk *c, cuda_world *world, const relay_plan *plan, relay_run_args *args);
/* What has been computed, as float64; marks outputs as untouched again on the device. */
bool cuda_world_collect(chk *c, cuda_world *world, chk_result *got);
bool cuda_world_reset(chk *c, cuda_world *world);

chk_tolerance cuda_tolerance(relay_dtype kv, relay_dtype output);

/* The parts; chk_cuda runs all of them. */
void cuda_check_runs(chk *c, cuda_lab *lab);
void cuda_check_laws(chk *c, cuda_lab *lab);
void cuda_check_operations(chk *c, cuda_lab *lab);
void cuda_check_errors(chk *c, cuda_lab *lab);
void cuda_check_replays(chk *c, cuda_lab *lab, int32_t replays);

/* `index`: CUDA ordinal.  False: no device (the reason has been printed). */
bool chk_cuda(chk *c, int32_t index, int32_t replays);

#endif
