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
    int32_t pairs;                    /* of its tiles, the first ones: units of both lie side by side */
    int32_t chunks, chunk_tokens;
    int64_t tokens;                   /* of all pieces, each rounded up to whole cuts */
    int64_t base;                     /* first state */
    int64_t first_pair, first_unit;   /* where units of its pairs begin, and its others: of the flat ones by themselves on Hopper */
    float cost;                       /* of one unit, for the order */
} relayi_cuda_cut;

/* What a request attends by itself, from step to step. */
typedef struct relayi_cuda_own {
    int32_t length, most;  /* its own tokens in the list, and how many its last unit may hold; -1: none */
    int32_t tensor;        /* of its own tokens; -1: pages */
    int32_t row, num_rows; /* plan rows */
    int32_t units, entry;  /* lie side by side in the list, from this entry on */
    int32_t last;          /* entry of the unit with its last tokens */
    bool alone;            /* its own tokens are all of it */
} relayi_cuda_own;

/* A segment that is read once. */
typedef struct relayi_cuda_relayed {
    int32_t segment, row_begin, row_end;
    int32_t entry, units; /* likewise */
} relayi_cuda_relayed;

/* What a batch looked like when its list was made, and where it lies: a step later most of it still holds. */
typedef struct relayi_cuda_step {
    bool known, any_contiguous;
    int32_t num_requests, num_segments, num_relayed, block_size;
    int32_t *query_start, *order, *leaf; /* as in the forest */
    relayi_segment *segments;
    relayi_cuda_own *own;         /* [num_requests] by position */
    relayi_cuda_relayed *relayed; /* [num_relayed] */
    relayi_growing memory;
} relayi_cuda_step;

/* How a batch was cut, by the builder. */
typedef struct relayi_cuda_cuts {
    const relayi_cuda_cut *cuts;
    const int32_t *row_start, *relayed, *own_cut;
} relayi_cuda_cuts;

typedef struct relayi_cuda_plan {
    bool bounded; /* sizes are those of the options' bounds, whatever the batch */
    relayi_cuda_kernel kernel;       /* that the list is made for */
    relayi_cuda_layout layout;       /* of HOPPER */
    bool laid_out;                   /* once, as `built` */
    bool built;                      /* once: a bounded plan keeps its kernel, since a graph does */
    int32_t work_slots;              /* blocks that the device runs at once */
    void *list;                      /* pinned */
    void *copied;                    /* an event: the last run has read the list */
    size_t list_room, list_bytes;
    relayi_cuda_sizes sizes;         /* that offsets and workspace are laid out for */
    relayi_cuda_sizes used;
    uint32_t units, pieces, rows, runs, ids; /* byte offsets in the list */
    relayi_growing scratch_memory;
    relayi_cuda_step step;
} relayi_cuda_plan;

/* Work of one kind for relayi_cuda_spread: `total` steps in `cuts` cuts of `shortest` to `longest`, all as long if
 * `alike`; a chunk more costs each cut `states` on average.  Of prompts: `distinct` steps, each counted once for all
 * tiles of rows that take it, and `low` ones, of tiles that have at most 64 rows. */
typedef struct relayi_cuda_load {
    double total, states, distinct, low;
    int64_t cuts, longest, shortest;
    bool alike;
} relayi_cuda_load;

/* Steps of a chunk that keep `slots` workers of the Hopper kernel busy for the shortest time; `tall`: prompt
 * tiles, else pages.  `time`: microseconds that other workers need beside these, and then what all need. */
int64_t relayi_cuda_spread(const relayi_cuda_load *load, bool tall, int64_t slots, double *time);

/* What the Hopper kernel's memory should go to, if `blocks` blocks have so much of both to do. */
relayi_cuda_layout relayi_cuda_choose_layout(const relayi_cuda_load *tall, const relayi_cuda_load *flat, int64_t blocks);

/* A plan on a CUDA device; fails with a sentence to the log.  OUT_OF_MEMORY, UNSUPPORTED. */
relay_status relayi_cuda_plan_create(relay_plan *plan);
void relayi_cuda_plan_destroy(relay_plan *plan);

/* Checked batch to list, and plan->info.  OUT_OF_MEMORY, OUT_OF_RANGE (a bound), UNSUPPORTED. */
relay_status relayi_cuda_plan_build(relay_plan *plan, const relayi_forest_content *content);

/* The same where requests have only grown by some tokens since the last build: their ends, positions and block ids are
 * changed in the list.  False: more is different, and nothing was done; `status` is set if true. */
bool relayi_cuda_plan_step(relay_plan *plan, const relayi_forest_content *content, relay_status *status);
/* Keeps what a later step needs; without memory for it there is no such step. */
void relayi_cuda_step_keep(relay_plan *plan, const relayi_forest_content *content, const relayi_cuda_cuts *made);
void relayi_cuda_step_forget(relayi_cuda_plan *cuda);

/* Waits until no queued run has still to read the list. */
relay_status relayi_cuda_await_runs(relay_plan *plan);
/* Byte offsets of the list's parts, for the sizes. */
void relayi_cuda_lay_out(relayi_cuda_plan *cuda);

/* Tokens of all segments under the request at `position` of the order. */
static inline int32_t relayi_path_end(const relayi_forest_content *content, int32_t position) {
    int32_t leaf = content->leaf[position];
    return leaf < 0 ? 0 : content->segments[leaf].start + content->segments[leaf].kv.length;
}
/* Ids are copied whole, in the forest's order of spans: where a span's begin. */
static inline int32_t relayi_ids_of(const relayi_forest_content *content, const relay_kv_span *span) {
    return span->block_table ? (int32_t)(span->block_table - content->ids) : 0;
}

/* The workspace: list, then partial outputs, then what lies beside each. */
typedef struct relayi_cuda_workspace {
    size_t acc, lse, bytes;
} relayi_cuda_workspace;
relayi_cuda_workspace relayi_cuda_plan_workspace(const relay_plan *plan);

/* What bounded plans are laid out for. */
relayi_cuda_sizes relayi_cuda_bounds(const relay_plan *plan);

#endif
