/* relay/forest.h - the third concept: what a batch shares.
 *
 * A batch has requests 0..R-1.  Each brings some new query rows and attends, in
 * order: the shared segments on its path (none, one, or several nested ones),
 * then its own tokens.  A shared segment is a run of K/V tokens that a
 * contiguous range of requests attends; a child lies inside its parent's range.
 *
 *      requests      0   1   2   3   4   5   6
 *      root      [ system prompt A ] [   B   ]          depth is per request:
 *      child     [ tools 1 ] [ 2 ]                      0-2 have two, 3 has two,
 *      own         .   .   .   .   .   .   .            4-5 one, 6 none
 *
 * Global positions run along the path: a root starts at 0, a child where its
 * parent ends, a request's own tokens after its last segment.  The last query
 * row of a request is its last own token.  Attention is causal in global
 * positions.
 *
 * Where requests of one group do not lie side by side in the batch, `order`
 * lines them up; tensors stay in batch order.
 */
#ifndef RELAY_FOREST_H
#define RELAY_FOREST_H

#include "prompt_cache.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct relay_forest relay_forest;

typedef enum relay_kv_layout {
    RELAY_KV_PAGED = 1,      /* blocks of the pool given to relay_run, through a block table */
    RELAY_KV_CONTIGUOUS = 2, /* one tensor of relay_run_args.contiguous */
    RELAY_KV_PACKED = 3      /* a prompt of the prompt cache */
} relay_kv_layout;

/* Where a run of `length` tokens lies. */
typedef struct relay_kv_span {
    relay_kv_layout layout;
    int32_t length;             /* tokens, >= 0 */
    const int32_t *block_table; /* PAGED: ceil(length / block_size) ids; what follows them
                                   is never read.  Copied. */
    int32_t tensor_index;       /* CONTIGUOUS: index into relay_run_args.contiguous */
    const relay_prompt *prompt; /* PACKED: must stay pinned while plans use the forest;
                                   its first `length` tokens are attended */
} relay_kv_span;

typedef struct relay_segment {
    int32_t parent;        /* index of the segment that this one stands on, or -1; parents
                              come before their children */
    int32_t first_request; /* a position in `order` */
    int32_t num_requests;  /* >= 1 */
    relay_kv_span kv;
} relay_segment;

typedef struct relay_forest_desc {
    uint32_t struct_size;
    int32_t num_requests;           /* >= 0 */
    const int32_t *query_start_loc; /* [num_requests + 1]: rows of request r are
                                       query_start_loc[r] .. query_start_loc[r+1]-1; from 0,
                                       never falling; a request may have no rows */
    const relay_kv_span *own;       /* [num_requests] in batch order: each request's own
                                       tokens, new ones included */
    const int32_t *order;           /* [num_requests] permutation, or NULL = batch order */
    int32_t num_segments;           /* >= 0 */
    const relay_segment *segments;  /* [num_segments] */
    int32_t block_size;             /* tokens a block, for PAGED spans; >= 1; default 16 */
    int32_t num_blocks;             /* blocks of the pool: ids are checked against it */
} relay_forest_desc;

RELAY_API relay_forest_desc relay_forest_desc_defaults(void);

/* An empty forest.  Errors: NULL_POINTER, OUT_OF_MEMORY. */
RELAY_API relay_status relay_forest_create(relay_device *device, relay_forest **forest);
RELAY_API void relay_forest_destroy(relay_forest *forest); /* accepts NULL */

/* Replaces the forest's content by a copy of `desc` (memory is reused).  Plans built
 * from the old content become stale.  On failure the forest is as it was.
 * Errors: NULL_POINTER, BAD_STRUCT_SIZE, INVALID_ARGUMENT, OUT_OF_RANGE (block id),
 * OUT_OF_MEMORY. */
RELAY_API relay_status relay_forest_set(relay_forest *forest, const relay_forest_desc *desc);

/* What a scheduler with prefix caching has at hand: whole sequences as block
 * tables, in which equal leading ids mean shared tokens. */
typedef struct relay_block_tables {
    uint32_t struct_size;
    int32_t num_requests;
    const int32_t *query_start_loc; /* [num_requests + 1] */
    const int32_t *seq_lens;        /* [num_requests]: all tokens of each, new ones included */
    const int32_t *block_table;     /* [num_requests, >= ceil(seq_len / block_size)] */
    int64_t block_table_stride;     /* ids from one request to the next */
    int32_t block_size;
    int32_t num_blocks;
    int32_t min_shared_tokens; /* shorter common runs are left to the requests; default 32 */
    int32_t max_depth;         /* nested segments on a path; default 4; 0 = find nothing */
} relay_block_tables;

RELAY_API relay_block_tables relay_block_tables_defaults(void);

/* Replaces the forest's content by the segments found in block tables: any subset of
 * the requests, several groups, nested.  Only whole blocks that lie before every new
 * query row of a request are shared.
 * Errors: as relay_forest_set. */
RELAY_API relay_status relay_forest_find(relay_forest *forest, const relay_block_tables *tables);

/* Says that a segment's tokens are to be read elsewhere: in a packed copy of the pages in
 * which relay_forest_find found them, say.  `kv` is PACKED or CONTIGUOUS, of the segment's
 * length, and holds the same K/V, which is the caller's responsibility.  Plans built before
 * become stale.  On failure the forest is as it was.
 * Errors: NULL_POINTER, OUT_OF_RANGE (index, a prompt that is shorter), INVALID_ARGUMENT
 * (another length, PAGED). */
RELAY_API relay_status relay_forest_move_segment(relay_forest *forest, int32_t index,
                                                 const relay_kv_span *kv);

/* Reading a forest.  Pointers inside *segment live until the next set or find. */
RELAY_API int32_t relay_forest_num_requests(const relay_forest *forest);
RELAY_API int32_t relay_forest_num_segments(const relay_forest *forest);
RELAY_API const int32_t *relay_forest_order(const relay_forest *forest); /* [num_requests] */
/* Errors: NULL_POINTER, OUT_OF_RANGE. */
RELAY_API relay_status relay_forest_get_segment(const relay_forest *forest, int32_t index,
                                                relay_segment *segment);
RELAY_API relay_status relay_forest_get_own(const relay_forest *forest, int32_t request,
                                            relay_kv_span *own);

#ifdef __cplusplus
}
#endif
#endif
