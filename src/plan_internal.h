#ifndef RELAY_PLAN_INTERNAL_H
#define RELAY_PLAN_INTERNAL_H

#include "device_internal.h"
#include "forest_internal.h"
#include "relay/plan.h"

/* Rows of a plan are numbered along the forest's order, so that the rows of every segment lie side
 * by side: plan row i is row `source[i]` of the caller's tensors.  With the query heads of one kv
 * head (the group, G of them) the rows of a kernel call are (plan row, head of the group). */
typedef struct relayi_row {
    int32_t source;   /* row in the caller's tensors */
    int32_t position; /* global position of the query */
    int32_t path;     /* position in the forest's order */
    int32_t parts;    /* partial states that this row will have */
} relayi_row;

/* A run of tokens of one span that an item attends: tokens [begin, end) of the span whose first
 * token has global position `start`. */
typedef struct relayi_piece {
    const relay_kv_span *span;
    int32_t start, begin, end;
} relayi_piece;

/* One unit of work: for each kv head of [kv_begin, kv_end), the stacked rows
 * [row_begin, row_end) (plan row * G + head of the group) attend the pieces one after the other,
 * which gives partial state number `part` of these rows. */
typedef struct relayi_item {
    int32_t kv_begin, kv_end;
    int32_t row_begin, row_end;
    int32_t first_piece, num_pieces;
    int32_t part;
    float cost;
} relayi_item;

struct relay_plan {
    relay_device *device;
    relay_attention attention;
    relay_plan_options options;
    relayi_attend_kernel kernel; /* a copy: the one that this attention runs on */
    int32_t group;               /* query heads per kv head */

    const relay_forest *forest; /* as built */
    uint64_t generation;

    relayi_growing row_memory, item_memory, piece_memory, mark_memory;
    relayi_row *rows;
    relayi_item *items;   /* shared items first, each kind by falling cost */
    relayi_piece *pieces;
    int32_t num_rows, num_items, num_shared_items, num_pieces;
    int32_t max_parts;      /* over all rows */
    float cost;             /* of the step: roughly ns of one thread */
    int32_t threads;        /* that a run takes: one, or all of the device's */
    int32_t max_contiguous; /* 1 + largest tensor_index in use */
    bool uses_pages;
    int32_t packed_layers;  /* fewest layers of the packed prompts in use, INT32_MAX if none */
    relay_plan_info info;
    struct relayi_cuda_plan *cuda; /* on a CUDA device, else NULL */
};

/* The workspace's map: byte offsets from its start. */
typedef struct relayi_workspace {
    size_t acc, max, sum;       /* [max_parts][num_kv_heads][num_rows * group] rows */
    size_t cursors;             /* two work queues */
    size_t threads, per_thread; /* each thread's scratch */
    size_t query, range, slope, kernel; /* inside it */
    size_t bytes;
} relayi_workspace;

relayi_workspace relayi_plan_workspace(const relay_plan *plan);

relay_status relayi_check_attention(const relay_device *device, relay_attention *attention);
relay_status relayi_check_plan_options(const relay_device *device, const relay_plan_options *options);

/* The checks of a forest against a plan's attention; also fills what the run has to check. */
relay_status relayi_check_plan_forest(relay_plan *plan, const relay_forest *forest);

/* Estimated time, in arbitrary units, of `rows` stacked rows over `tokens` of one kv head; and
 * whether a segment is worth reading once. */
float relayi_cost(const relay_plan *plan, int64_t rows, int64_t tokens);
bool relayi_relay_pays(const relay_plan *plan, const relayi_segment *segment, int64_t rows);

#endif
