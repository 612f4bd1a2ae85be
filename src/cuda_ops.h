/* The border between the core and librelayattn_cuda: one versioned table of functions and the plain
 * data that they take.  C only: no CUDA header is needed to include it.
 *
 * The work list
 * -------------
 * A plan for a CUDA device is a block of memory (the list) that the host builds in pinned memory and
 * a run copies into the workspace.  Rows are numbered along the forest's order and stacked with the
 * query heads of one kv head: stacked row = plan row * group + head of the group.
 *
 *     header | units | pieces | rows | runs | ids
 *
 * A run (of parts) is what some rows attend in one go: a segment read once, or what a request attends
 * by itself.  It is cut along tokens into `chunks`, and each chunk gives one partial state (o, lse) to
 * each stacked row of each kv head.  State number of row r, head g of its group, kv head h, chunk c:
 *
 *     base + ((c * num_kv_heads + h) * rows + r - row_begin) * group + g
 *
 * A unit is one chunk of a run for one tile of stacked rows; every kv head computes every unit, so
 * there are num_units * num_kv_heads pieces of work, taken in the order of the list. */
#ifndef RELAY_CUDA_OPS_H
#define RELAY_CUDA_OPS_H

#include "relay/base.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RELAYI_CUDA_VERSION 5u /* counts up with every change of this file */
#define RELAYI_CUDA_OPS_SYMBOL "relay_cuda_ops"
#define RELAYI_CUDA_MAX_CONTIGUOUS 48 /* tensors of a run; they travel as kernel parameters */
#define RELAYI_CUDA_HOPPER_CONTIGUOUS 4 /* of them, for the Hopper kernel */
#define RELAYI_CUDA_HOPPER_TILE 96    /* tokens of its tiles of a prompt */
#define RELAYI_CUDA_HOPPER_ROWS 8     /* stacked rows of its FLAT units */
#define RELAYI_CUDA_HOPPER_USER_WARPS 4  /* of a block, for FLAT units */
#define RELAYI_CUDA_HOPPER_ALONE_WARPS 8 /* the same where there are no others */
#define RELAYI_CUDA_HOPPER_WIDE 128   /* of its WIDE ones */
#define RELAYI_CUDA_MAX_PARTS 48      /* of a fusion, likewise */
#define RELAYI_CUDA_PAGE 16           /* page sizes are multiples of it, and so are cuts */
#define RELAYI_CUDA_ALIGNMENT 16      /* bytes: of K/V bases and strides */
#define RELAYI_CUDA_STATE_STATS 8     /* bytes a state has room for beside its output */

/* How a unit's rows are laid over a block's four warps. */
typedef enum relayi_cuda_shape {
    RELAYI_CUDA_FLAT = 0,  /* up to 16 rows; the warps divide the tokens */
    RELAYI_CUDA_TALL = 1,  /* up to 64 rows, 16 a warp; all warps see all tokens */
    RELAYI_CUDA_WIDE = 2,  /* up to 128 rows, 32 a warp */
    RELAYI_CUDA_NUM_SHAPES
} relayi_cuda_shape;

/* Which kernel a list is made for.  HOPPER's lists are GENERAL's too: TALL and WIDE units have one piece each,
 * whose tokens all rows see; FLAT units have at most RELAYI_CUDA_HOPPER_ROWS rows, their plan rows' positions
 * follow each other unless all see everything, and they lie at the end of the room for units, in falling
 * order of place: unit num_tall + i is entry unit_room - 1 - i.  (GENERAL's own lists: all are `tall`.)
 * Units 2i and 2i + 1, i < num_pairs, are WIDE with more than 64 rows each and attend the same tokens: two blocks
 * that share what they read can take one each.  Who does takes pieces of work 2j and 2j + 1, j < num_pairs * kv heads, as
 * RELAYI_CUDA_PAIRED_UNIT and _HEAD have them; all others are units in order, the kv heads of each side by side. */
typedef enum relayi_cuda_kernel { RELAYI_CUDA_GENERAL = 0, RELAYI_CUDA_HOPPER = 1 } relayi_cuda_kernel;

/* What the Hopper kernel's shared memory is given to.  All but the last compute any list of HOPPER's. */
typedef enum relayi_cuda_layout {
    RELAYI_CUDA_FOR_PROMPTS = 0,
    RELAYI_CUDA_FOR_BOTH = 1,
    RELAYI_CUDA_FOR_USERS = 2,
    RELAYI_CUDA_FOR_PAIRS = 3,   /* as FOR_PROMPTS, and blocks share what pairs of units read */
    RELAYI_CUDA_USERS_ALONE = 4  /* twice the warps for FLAT units; there are no others */
} relayi_cuda_layout;

typedef struct relayi_cuda_header {
    int32_t num_units, num_rows;
    int32_t num_tall; /* units at the start of their room; the others lie at its end */
    uint32_t next; /* work handed out beyond the grid's first; back at 0 when a run is done */
    uint32_t next_flat; /* the same of FLAT units, if a kernel counts them by themselves */
    uint32_t arrived; /* blocks that have finished their units: its highest bit turns over with every run */
    int32_t num_pairs; /* of units, first of all */
    int32_t reserved[1];
} relayi_cuda_header;

/* Tokens [begin, end) of a span whose first token is at global position `start`; begin is a multiple
 * of RELAYI_CUDA_PAGE. */
typedef struct relayi_cuda_piece {
    int32_t tensor; /* index into `contiguous`, or -1: pages, from ids[ids] on */
    int32_t ids;
    int32_t start, begin, end;
} relayi_cuda_piece;

/* 64 bytes; its first piece travels with it, so that a kernel need not wait for one more load. */
typedef struct relayi_cuda_unit {
    int32_t row_begin, rows; /* stacked */
    int32_t min_position, max_position; /* of its rows */
    int64_t state;       /* of its first row in kv head 0 */
    int32_t head_states; /* states from one kv head to the next */
    int32_t shape;
    relayi_cuda_piece first; /* empty if there is none */
    int32_t num_pieces;      /* all, the first included */
    int32_t more_pieces;     /* where the others lie */
    int32_t source; /* of its first plan row; -1: the sources of its plan rows do not follow each other */
} relayi_cuda_unit;

/* Entry of unit number `unit`. */
#define RELAYI_CUDA_ENTRY(unit, tall, room) ((unit) < (tall) ? (unit) : (room) - 1 - ((unit) - (tall)))

/* Unit and kv head of a pair's piece of work. */
#define RELAYI_CUDA_PAIRED_UNIT(work, kv_heads) ((work) / 2 / (kv_heads) * 2 + (work) % 2)
#define RELAYI_CUDA_PAIRED_HEAD(work, kv_heads) ((work) / 2 % (kv_heads))

typedef struct relayi_cuda_row {
    int32_t source, position; /* row of the caller's tensors; global position */
    int32_t first_run, num_runs;
} relayi_cuda_row;

typedef struct relayi_cuda_run {
    int64_t base;
    int32_t chunks, row_begin, rows; /* plan rows */
    int32_t reserved;
} relayi_cuda_run;

/* K and V of one contiguous span; strides in elements. */
typedef struct relayi_cuda_kv {
    const void *key, *value;
    int64_t tokens;
    int64_t key_token, key_head, value_token, value_head;
} relayi_cuda_kv;

/* n / d for n < 2^31, where a division's 25 instructions would be waited for: (high half of n * multiplier, plus n)
 * shifted right (Granlund and Montgomery, 1994).  0, which nothing is divided by, counts as 1. */
typedef struct relayi_cuda_divisor {
    uint32_t multiplier, shift;
} relayi_cuda_divisor;

static inline relayi_cuda_divisor relayi_cuda_divide_by(uint32_t d) {
    relayi_cuda_divisor by = {1, 0};
    if (d <= 1) return by;
    while (((uint64_t)1 << by.shift) < d) by.shift++;
    by.multiplier = (uint32_t)(((((uint64_t)1 << by.shift) - d) << 32) / d + 1);
    return by;
}

/* What all of a run's kernels are given, by value: a graph keeps it. */
typedef struct relayi_cuda_params {
    void *list;                                /* in the workspace */
    uint32_t units, pieces, rows, runs, ids;   /* byte offsets from `list` */
    int32_t unit_room;                         /* units that the list has room for */
    int32_t heads, kv_heads, group, head_dim, block_size;
    relayi_cuda_divisor by_heads, by_kv_heads, by_group, by_block_size;
    float *acc, *lse;                          /* partial states: [states][head_dim], [states]; HOPPER keeps f16 in
                                                  the same room, kernels/cuda/hopper_state.cuh */
    const void *query;
    int64_t query_row, query_head;
    void *output;
    int64_t output_row, output_head;
    float *output_lse; /* or NULL */
    int64_t lse_row, lse_head;
    const void *key_pool, *value_pool;
    int64_t key_block, key_token, key_head, value_block, value_token, value_head;
    const float *slopes, *sinks; /* or NULL */
    float scale, soft_cap;
    int32_t window, sink_tokens;
    int32_t query_aligned, output_aligned; /* 16 bytes */
} relayi_cuda_params;

typedef struct relayi_cuda_attend {
    int32_t device;
    void *stream;
    relay_dtype dtype, output_dtype; /* of queries and K/V; of outputs */
    const void *host_list;           /* pinned */
    size_t list_bytes;               /* 0: the workspace holds the list already */
    int32_t max_rows;                /* rows that the merge is launched for */
    void *copied;                    /* an event: the list has been read; NULL: nobody asks */
    int32_t max_work;                /* units * kv heads, at most */
    int32_t split_merge;             /* 1: eight warps merge a (row, head) */
    relayi_cuda_kernel kernel;
    relayi_cuda_layout layout;       /* of HOPPER */
    int64_t num_blocks;              /* of the pools */
    int32_t num_contiguous;
    relayi_cuda_params params;
    relayi_cuda_kv contiguous[RELAYI_CUDA_MAX_CONTIGUOUS];
} relayi_cuda_attend;

typedef struct relayi_cuda_write {
    int32_t device;
    void *stream;
    relay_tensor key, value, key_pool, value_pool;
    const int64_t *slots;
    int64_t num_slots;
} relayi_cuda_write;

typedef struct relayi_cuda_fuse {
    int32_t device;
    void *stream;
    int32_t num_parts;
    const relay_tensor *outputs, *lses; /* [num_parts], host memory */
    relay_tensor output, lse;
} relayi_cuda_fuse;

typedef struct relayi_cuda_device {
    int32_t index, multiprocessors, major, minor;
    int64_t memory_bytes, l2_bytes;
    int32_t driver, runtime; /* as CUDA counts: 13000 */
    char name[128];
} relayi_cuda_device;

typedef struct relayi_cuda_rates {
    double read_gbps, copy_gbps, f32_gflops, bf16_gflops;
} relayi_cuda_rates;

/* CUDA's own words for what went wrong. */
typedef struct relayi_cuda_error {
    char text[256];
} relayi_cuda_error;

typedef enum relayi_cuda_copy { RELAYI_CUDA_TO_DEVICE = 1, RELAYI_CUDA_TO_HOST = 2 } relayi_cuda_copy;

/* Every function may be called by any thread, and leaves the thread's current device as it was.
 * Where one fails it returns NO_DEVICE, OUT_OF_MEMORY or DEVICE_ERROR and fills `error`. */
typedef struct relayi_cuda_ops {
    uint32_t version, size; /* RELAYI_CUDA_VERSION, sizeof of this struct */
    relay_status (*open)(int32_t index, relayi_cuda_device *device, relayi_cuda_error *error);
    relay_status (*pin)(int32_t device, size_t bytes, void **memory, relayi_cuda_error *error);
    void (*unpin)(void *memory);
    /* 1 if a kernel of `device` can read the address. */
    int32_t (*reachable)(int32_t device, const void *address);
    /* Asynchronous on the stream, no allocation, no synchronisation. */
    relay_status (*attend)(const relayi_cuda_attend *call, relayi_cuda_error *error);
    relay_status (*write)(const relayi_cuda_write *call, relayi_cuda_error *error);
    relay_status (*fuse)(const relayi_cuda_fuse *call, relayi_cuda_error *error);
    relay_status (*calibrate)(int32_t device, relayi_cuda_rates *rates, relayi_cuda_error *error);
    const char *(*kernel_name)(relayi_cuda_kernel kernel, relay_dtype query, relay_dtype kv); /* NULL: not computed */

    /* An event that `attend` records behind its copy of the list, at every replay of a graph too. */
    relay_status (*event_create)(int32_t device, void **event, relayi_cuda_error *error);
    relay_status (*event_wait)(int32_t device, void *event, relayi_cuda_error *error);
    void (*event_destroy)(int32_t device, void *event);

    /* For the checker and the benchmarks alone: memory, streams, graphs, time. */
    relay_status (*alloc)(int32_t device, size_t bytes, void **memory, relayi_cuda_error *error);
    void (*release)(int32_t device, void *memory);
    relay_status (*copy)(int32_t device, void *to, const void *from, size_t bytes, relayi_cuda_copy kind,
                         relayi_cuda_error *error); /* synchronous, and so is fill */
    relay_status (*fill)(int32_t device, void *memory, int32_t byte, size_t bytes, relayi_cuda_error *error);
    relay_status (*stream_create)(int32_t device, void **stream, relayi_cuda_error *error);
    relay_status (*stream_wait)(int32_t device, void *stream, relayi_cuda_error *error);
    void (*stream_destroy)(int32_t device, void *stream);
    relay_status (*capture_begin)(int32_t device, void *stream, relayi_cuda_error *error);
    relay_status (*capture_end)(int32_t device, void *stream, void **graph, relayi_cuda_error *error);
    relay_status (*graph_launch)(int32_t device, void *graph, void *stream, relayi_cuda_error *error);
    void (*graph_destroy)(int32_t device, void *graph);
    /* Reads `bytes` of `memory` on the stream, so that caches hold nothing else. */
    relay_status (*flush)(int32_t device, const void *memory, size_t bytes, void *stream, relayi_cuda_error *error);
    /* Seconds on the device's clock from before to after one launch of a graph, a flush before it
     * (`flush` NULL: none) not counted. */
    relay_status (*time_graph)(int32_t device, void *graph, const void *flush, size_t flush_bytes, void *stream,
                               double *seconds, relayi_cuda_error *error);
} relayi_cuda_ops;

typedef const relayi_cuda_ops *relayi_cuda_ops_fn(void);

#ifdef __cplusplus
}
#endif
#endif
