/* The work list of a CUDA device, made on the host without any CUDA: cuda_ops.h draws it. */
#ifndef RELAY_PLAN_CUDA_H
#define RELAY_PLAN_CUDA_H

#include "cuda_ops.h"
#include "plan_internal.h"

/* Cuts along tokens are multiples of it; the fixed cut of repeatable plans. */
#define RELAYI_CUDA_CUT 64
#define RELAYI_CUDA_REPEATABLE_CUT 1024

/* How much of each a list holds, or has room for. */
typedef struct relayi_cuda_sizes {
    int64_t units, pieces, rows, runs, ids; /* entries */
    int64_t states;                         /* in the workspace */
} relayi_cuda_sizes;

/* One run before it is written out. */
typedef struct relayi_cuda_cut {
    int32_t row_begin, row_end;       /* plan rows */
    int32_t first_piece, num_pieces;  /* of the builder's pieces */
    int32_t shape, tile_rows, tiles;  /* tile_rows: stacked */
    int32_t chunks, chunk_tokens;
    int64_t tokens;                   /* of all pieces, each rounded up to whole cuts */
    int64_t base;                     /* first state */
    float cost;                       /* of one unit, for the order */
} relayi_cuda_cut;

typedef struct relayi_cuda_plan {
    bool bounded; /* sizes are those of the options' bounds, whatever the batch */
    relayi_cuda_kernel kernel;       /* that the list is made for */
    bool built;                      /* once: a bounded plan keeps its kernel, since a graph does */
    int32_t work_slots;              /* blocks that the device runs at once */
    void *list;                      /* pinned */
    void *copied;                    /* an event: the last run has read the list */
    size_t list_room, list_bytes;
    relayi_cuda_sizes sizes;         /* that offsets and workspace are laid out for */
    relayi_cuda_sizes used;
    uint32_t units, pieces, rows, runs, ids; /* byte offsets in the list */
    relayi_growing scratch_memory;
} relayi_cuda_plan;

/* Work of one kind for relayi_cuda_spread: `total` steps in `cuts` cuts of up to `longest`, all as long if
 * `alike`; a chunk more costs each cut `states` on average. */
typedef struct relayi_cuda_load {
    double total, states;
    int64_t cuts, longest;
    bool alike;
} relayi_cuda_load;

/* Steps of a chunk that keep `slots` workers of the Hopper kernel busy for the shortest time; `tall`: prompt
 * tiles, else pages. */
int64_t relayi_cuda_spread(const relayi_cuda_load *load, bool tall, int64_t slots);

/* A plan on a CUDA device; fails with a sentence to the log.  OUT_OF_MEMORY, UNSUPPORTED. */
relay_status relayi_cuda_plan_create(relay_plan *plan);
void relayi_cuda_plan_destroy(relay_plan *plan);

/* Checked batch to list, and plan->info.  OUT_OF_MEMORY, OUT_OF_RANGE (a bound), UNSUPPORTED. */
relay_status relayi_cuda_plan_build(relay_plan *plan, const relayi_forest_content *content);

/* The workspace: list, then partial outputs, then their lse. */
typedef struct relayi_cuda_workspace {
    size_t acc, lse, bytes;
} relayi_cuda_workspace;
relayi_cuda_workspace relayi_cuda_plan_workspace(const relay_plan *plan);

/* What bounded plans are laid out for. */
relayi_cuda_sizes relayi_cuda_bounds(const relay_plan *plan);

#endif
