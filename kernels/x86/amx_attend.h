/* What the files of the AMX family share.  docs/kernels/amx.md explains the blocking.
 *
 * Two orientations, so that K and V are read as they lie:
 *   packed K/V   S   = Q K^T    Q tiles as A, packed K as B    scores [16 rows][16 tokens]
 *   pages        S^T = K Q^T    rows of K as A, Q^T as B       scores [16 tokens][16 rows]
 * In both, probabilities end as A tiles [16 rows][32 tokens] and O += P V takes V in the packed
 * layout (pages: paired into scratch).
 *
 * Tokens advance in super-tiles, rows in groups of blocks of 16; a group's scores and
 * probabilities of one super-tile stay in the near caches. */
#ifndef RELAY_AMX_ATTEND_H
#define RELAY_AMX_ATTEND_H

#include <stdbool.h>

#include "kernel.h"

enum {
    AMX_ROWS = 16,         /* rows of a tile register */
    AMX_DEPTH = 32,        /* bf16 elements of an A tile's row: one k-step */
    AMX_TILE = 512,        /* bf16 elements of a tile register */
    AMX_TILE_BYTES = 1024,
    AMX_GROUP = 2,         /* row blocks, at most, that pass over a super-tile together */
    AMX_SUPER = 4,         /* 64-token tiles of a super-tile */
    AMX_COLUMNS = AMX_SUPER * (RELAYI_TILE / 16),        /* score tiles a row block */
    AMX_PROB_STEPS = AMX_SUPER * (RELAYI_TILE / AMX_DEPTH), /* probability tiles a row block */
    AMX_MAX_DIM = 256,
    AMX_MAX_STEPS = AMX_MAX_DIM / AMX_DEPTH,
    AMX_MAX_BLOCKS = RELAYI_MAX_ROWS / AMX_ROWS,
    AMX_MAX_TERMS = 3,
    AMX_PIECE = 256,       /* bytes of packed K/V asked for at once */
    AMX_MAX_PIECES = 2 * AMX_SUPER * RELAYI_TILE * AMX_MAX_DIM * 2 / AMX_PIECE
};

/* Memory that will be wanted soon: pieces of `lines` cache lines in the order of their use, of
 * which each step of the computation asks for some. */
typedef struct amx_ahead {
    const char **next, **end;
    int32_t lines;
    int32_t a_step; /* pieces that a step on packed K/V asks for; 0: the caller asks by itself */
} amx_ahead;

/* One call. */
typedef struct amx_work {
    const relayi_attend_args *args;
    int32_t dim, steps; /* k-steps of the head dim; the last is half a step if dim % 32 */
    int32_t blocks;     /* row blocks */
    /* A float32 as a sum of bf16 terms: 1 rounds it, 2 keep 16 bits, 3 all of them. */
    int32_t query_terms, prob_terms;
    bool transform;     /* scores are put into natural units before the softmax */
    float natural;      /* the softmax's input times this is in natural units */
    uint16_t *query;    /* [blocks][terms][steps] tiles: A (packed K) or B (pages) */
    float *scores;      /* [group blocks][AMX_COLUMNS] tiles */
    uint16_t *prob;     /* [group blocks][terms][AMX_PROB_STEPS] tiles */
    uint16_t *key;      /* packed: the last half k-step; pages: gathered rows */
    uint16_t *value;    /* pages: V in pairs, [AMX_SUPER] packed tiles */
    uint16_t *clean;    /* V tiles without their non-finite elements */
    float *tail;        /* acc of the last row block where it is not full */
    amx_ahead ahead;
} amx_work;

/* Rows that pass over a super-tile together. */
typedef struct amx_group {
    int32_t first, blocks; /* row blocks */
    int32_t row, rows;     /* args' rows */
    int32_t min_lo, max_lo, min_hi, max_hi, min_sinks, max_sinks;
} amx_group;

/* The next `bytes` of scratch. */
static inline void *amx_carve(char **scratch, int64_t bytes) {
    void *area = *scratch;
    *scratch += bytes;
    return area;
}

static inline uint16_t *amx_query_tile(const amx_work *work, int32_t block, int32_t term) {
    return work->query + ((int64_t)block * work->query_terms + term) * work->steps * AMX_TILE;
}

static inline float *amx_score_tile(const amx_work *work, int32_t in_group, int32_t column) {
    return work->scores + ((int64_t)in_group * AMX_COLUMNS + column) * AMX_ROWS * AMX_ROWS;
}

static inline uint16_t *amx_prob_tile(const amx_work *work, int32_t in_group, int32_t term, int32_t step) {
    return work->prob + (((int64_t)in_group * work->prob_terms + term) * AMX_PROB_STEPS + step) * AMX_TILE;
}

/* acc of a row block: the caller's, unless the block is padded. */
static inline float *amx_acc(const amx_work *work, int32_t block) {
    if ((block + 1) * AMX_ROWS > work->args->rows) return work->tail;
    return work->args->acc + (int64_t)block * AMX_ROWS * work->dim;
}

/* Real rows of a row block. */
static inline int32_t amx_rows(const amx_work *work, int32_t block) {
    int32_t rows = work->args->rows - block * AMX_ROWS;
    return rows < AMX_ROWS ? rows : AMX_ROWS;
}

/* ---- amx_tiles.c: what runs on tile registers */

/* Configures the tiles.  Products of fewer rows are faster: `rows` is how many a row block has, 16
 * but for packed K/V and one block. */
void relayi_amx_begin(int32_t rows);
void relayi_amx_end(void);
/* Columns of 16 that a step takes where `blocks` row blocks are left. */
int32_t relayi_amx_columns(int32_t blocks);
/* Scores of one packed K tile, to the group's score columns from `column` on. */
void relayi_amx_scores(amx_work *work, const amx_group *group, const uint16_t *key, int32_t column);
/* Transposed scores of 64 tokens: key[i] is the first of 16 rows of K, `stride` bytes apart. */
void relayi_amx_scores_t(amx_work *work, const amx_group *group, const uint16_t *const key[4],
                         int64_t stride, int32_t column);
/* acc += P V over `tiles` V tiles. */
void relayi_amx_values(amx_work *work, const amx_group *group, const uint16_t *const *value, int32_t tiles);

/* ---- amx_softmax.c: between the products, scores of `tiles` * 64 tokens; _t: transposed scores.
 * Updates max, sum and the scale of acc, and writes the probabilities. */

void relayi_amx_softmax(amx_work *work, const amx_group *group, int32_t tiles);
void relayi_amx_softmax_t(amx_work *work, const amx_group *group, int32_t tiles);

/* ---- amx_mask.c: on the scores of the 64 tokens from `start` on, in columns from `column` on */

/* Scale, soft cap and ALiBi: where work->transform. */
void relayi_amx_transform(const amx_work *work, const amx_group *group, int32_t start, int32_t column);
void relayi_amx_transform_t(const amx_work *work, const amx_group *group, int32_t start, int32_t column);
/* -INFINITY where a row does not see a token. */
void relayi_amx_mask(const amx_work *work, const amx_group *group, int32_t start, int32_t column);
void relayi_amx_mask_t(const amx_work *work, const amx_group *group, int32_t start, int32_t column);

/* ---- amx_gather.c: into the layouts that tiles want */

void relayi_amx_pack_query(const amx_work *work, bool transposed);
/* Copies the last half k-step of a packed K tile to work->key, the other half zero. */
void relayi_amx_key_tail(const amx_work *work, const uint16_t *key);
/* `count` <= 64 tokens of pages, given by where their K or V begin: rows of K, steps * 32 elements
 * apart, and V as a packed tile; both padded with zeros to 64 tokens. */
void relayi_amx_gather_key(amx_work *work, const uint16_t *const *from, int32_t count, uint16_t *key);
void relayi_amx_gather_value(amx_work *work, const uint16_t *const *from, int32_t count, uint16_t *value);

/* ---- amx_clean.c: what is not finite, where 0 or a lesser term may meet it */

/* A tile of K: packed, or 4 times 16 rows, `stride` bytes apart. */
typedef struct amx_keys {
    const uint16_t *packed, *const *rows;
    int64_t stride;
} amx_keys;

/* Scores of 64 tokens that are NaN as sums of several terms' products become what float32 makes of
 * them; where there is one term there is nothing to do. */
void relayi_amx_repair_scores(const amx_work *work, const amx_group *group, const amx_keys *keys, int32_t column);

/* If the V tile has non-finite elements, writes it to `clean` with zeros in their place. */
bool relayi_amx_clean_value(const uint16_t *value, int32_t head_dim, uint16_t *clean);
/* Adds to the rows that see them what was cleaned away.  The tile's tokens start at `start`, its
 * probability tiles at `step`. */
void relayi_amx_add_unclean(const amx_work *work, const amx_group *group, const uint16_t *value,
                            int32_t start, int32_t step);

static inline bool amx_sees(const relayi_attend_args *args, int32_t row, int32_t token) {
    const relayi_range *range = &args->range[row];
    if (token >= args->end) return false;
    return args->all_visible || (range->lo <= token && token < range->hi) || token < range->sinks;
}

#endif
