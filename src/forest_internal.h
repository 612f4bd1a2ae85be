#ifndef RELAY_FOREST_INTERNAL_H
#define RELAY_FOREST_INTERNAL_H

#include "growing.h"
#include "relay/forest.h"

typedef struct relayi_segment {
    int32_t parent;
    int32_t first, count; /* positions in order */
    int32_t start;        /* global position of its first token */
    relay_kv_span kv;     /* block_table points into the content's ids */
} relayi_segment;

/* One whole description of a batch.  The forest has two and fills the one not in use, so that a
 * failure leaves the other untouched. */
typedef struct relayi_forest_content {
    relayi_growing query_start_memory, order_memory, own_memory, leaf_memory, segment_memory, id_memory;
    int32_t num_requests, num_segments, block_size, num_blocks;
    int32_t *query_start;     /* [num_requests + 1] */
    int32_t *order;           /* [num_requests] position -> request */
    relay_kv_span *own;       /* [num_requests] by request */
    int32_t *leaf;            /* [num_requests] position -> deepest segment, or -1 */
    relayi_segment *segments; /* [num_segments], parents first */
    int32_t *ids;             /* block ids of all paged spans */
    int64_t num_ids;
} relayi_forest_content;

struct relay_forest {
    const relay_device *device;
    uint64_t generation; /* changes with the content; 0 = empty */
    int32_t current;     /* which content is in use */
    relayi_growing scratch; /* of relay_forest_find */
    relayi_forest_content content[2];
};

static inline const relayi_forest_content *relayi_forest_now(const relay_forest *forest) {
    return &forest->content[forest->current];
}

/* The content to fill next, and the switch to it. */
static inline relayi_forest_content *relayi_forest_next(relay_forest *forest) {
    return &forest->content[!forest->current];
}

void relayi_forest_switch(relay_forest *forest);

/* Room for a batch: the arrays above, sized; false = no memory. */
bool relayi_forest_reserve(relayi_forest_content *content, int32_t num_requests, int32_t num_segments,
                           int64_t num_ids);

/* Tokens that a batch may hold in all, so that positions and sums fit int32. */
#define RELAYI_MAX_TOKENS (1 << 30)
#define RELAYI_MAX_REQUESTS (1 << 20)

/* query_start_loc: from 0, never falling. */
relay_status relayi_check_query_start(const relay_device *device, const char *what, int32_t num_requests,
                                      const int32_t *query_start);

/* Block ids of one span are inside the pool. */
relay_status relayi_check_blocks(const relay_device *device, const char *what, int32_t index,
                                 const int32_t *ids, int32_t count, int32_t num_blocks);

static inline int32_t relayi_blocks_of(int32_t tokens, int32_t block_size) {
    if (block_size == 16) return tokens / 16 + (tokens % 16 != 0); /* the usual one: no division */
    return tokens / block_size + (tokens % block_size != 0);
}

#endif
