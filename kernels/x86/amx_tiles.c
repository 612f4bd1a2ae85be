/* What runs on tile registers.  Tiles 0-3 accumulate, 4-7 hold operands. */
#include <immintrin.h>

#include "amx_attend.h"
#include "amx_vector.h"
#include "x86.h"

void relayi_amx_begin(int32_t rows) {
    tile_config config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.rows[t] = (uint8_t)(t < 5 ? rows : AMX_ROWS); /* of one row block: COLUMNS_4, ROWS_1 */
        config.row_bytes[t] = 2 * AMX_DEPTH;
    }
    load_config(&config);
}

void relayi_amx_end(void) { _tile_release(); }

/* How the four accumulators are laid out: row blocks by column tiles. */
typedef enum shape { ROWS_1, ROWS_2, SQUARE, COLUMNS_4 } shape;

INLINE int shape_rows(shape s) { return s == ROWS_2 || s == SQUARE ? 2 : 1; }
INLINE int shape_columns(shape s) { return s == COLUMNS_4 ? 4 : s == SQUARE ? 2 : 1; }
INLINE int shape_tiles(shape s) { return shape_rows(s) * shape_columns(s); }

INLINE void zero(int tiles) {
    _tile_zero(0);
    if (tiles > 1) _tile_zero(1);
    if (tiles > 2) _tile_zero(2);
    if (tiles > 3) _tile_zero(3);
}

INLINE void load(int tiles, float *const *at, int64_t stride) {
    _tile_loadd(0, at[0], stride);
    if (tiles > 1) _tile_loadd(1, at[1], stride);
    if (tiles > 2) _tile_loadd(2, at[2], stride);
    if (tiles > 3) _tile_loadd(3, at[3], stride);
}

INLINE void store(int tiles, float *const *at, int64_t stride) {
    _tile_stored(0, at[0], stride);
    if (tiles > 1) _tile_stored(1, at[1], stride);
    if (tiles > 2) _tile_stored(2, at[2], stride);
    if (tiles > 3) _tile_stored(3, at[3], stride);
}

INLINE void step_one(const char *a, const char *b, int64_t b_stride) {
    _tile_loadd(4, a, 64);
    _tile_loadd(5, b, b_stride);
    _tile_dpbf16ps(0, 4, 5);
}

INLINE void step_two(const char *a, int64_t a_block, const char *b, int64_t b_stride) {
    _tile_loadd(4, b, b_stride);
    _tile_loadd(5, a, 64);
    _tile_dpbf16ps(0, 5, 4);
    _tile_loadd(6, a + a_block, 64);
    _tile_dpbf16ps(1, 6, 4);
}

/* Loads first: from the second-level cache they take as long as two products. */
INLINE void step_square(const char *a, int64_t a_block, const char *b, int64_t b_stride) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, b_stride);
    _tile_loadd(5, a + a_block, 64);
    _tile_loadd(7, b + 64, b_stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
}

INLINE void step_columns(const char *a, const char *b, int64_t b_stride) {
    _tile_loadd(4, a, 64);
    _tile_loadd(5, b, b_stride);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, b + 64, b_stride);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(7, b + 128, b_stride);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(5, b + 192, b_stride);
    _tile_dpbf16ps(3, 4, 5);
}

/* accumulators += A B over `steps` k-steps.  A: tiles of 1024 bytes in a row, row blocks
 * `a_block` bytes apart.  B: rows `b_stride` bytes apart, so a step takes 16 of them. */
INLINE void multiply(shape s, int32_t steps, const void *a_tiles, int64_t a_block, const void *b_rows,
                     int64_t b_stride, amx_ahead *ahead) {
    const char *a = a_tiles, *b = b_rows;
    for (int32_t k = 0; k < steps; k++, a += AMX_TILE_BYTES, b += AMX_ROWS * b_stride) {
        look_ahead(ahead, ahead->a_step);
        if (s == SQUARE) step_square(a, a_block, b, b_stride);
        else if (s == COLUMNS_4) step_columns(a, b, b_stride);
        else if (s == ROWS_1) step_one(a, b, b_stride);
        else step_two(a, a_block, b, b_stride);
    }
}

/* ---- S = Q K^T, packed K */

INLINE void scores_columns(shape s, amx_work *work, int32_t block, const uint16_t *key, int32_t column,
                           int32_t tile_column) {
    enum { STRIDE = 4 * RELAYI_TILE };
    float *out[4];
    for (int i = 0; i < shape_tiles(s); i++)
        out[i] = amx_score_tile(work, i / shape_columns(s), column + i % shape_columns(s));
    int32_t whole = work->dim / AMX_DEPTH;
    int64_t a_block = (int64_t)work->query_terms * work->steps * AMX_TILE_BYTES;
    zero(shape_tiles(s));
    for (int32_t term = 0; term < work->query_terms; term++) {
        const uint16_t *query = amx_query_tile(work, block, term);
        multiply(s, whole, query, a_block, key + tile_column * 32, STRIDE, &work->ahead);
        if (whole < work->steps)
            multiply(s, 1, query + whole * AMX_TILE, a_block, work->key + tile_column * 32, STRIDE,
                     &work->ahead);
    }
    store(shape_tiles(s), out, 64);
}

INLINE void scores_blocks(shape s, amx_work *work, const amx_group *group, const uint16_t *key,
                          int32_t column) {
    for (int32_t c = 0; c < RELAYI_TILE / 16; c += shape_columns(s))
        scores_columns(s, work, group->first, key, column + c, c);
}

int32_t relayi_amx_columns(int32_t blocks) { return blocks == 1 ? 4 : 2; }

void relayi_amx_scores(amx_work *work, const amx_group *group, const uint16_t *key, int32_t column) {
    order_memory();
    if (group->blocks == 1) scores_blocks(COLUMNS_4, work, group, key, column);
    else scores_blocks(SQUARE, work, group, key, column);
    order_memory();
}

/* ---- S^T = K Q^T, rows of K */

INLINE void step_transposed(const uint16_t *const key[4], int64_t stride, int64_t d, const uint16_t *query) {
    _tile_loadd(4, query, 64);
    _tile_loadd(5, key[0] + d, stride);
    _tile_dpbf16ps(0, 5, 4);
    _tile_loadd(6, key[1] + d, stride);
    _tile_dpbf16ps(1, 6, 4);
    _tile_loadd(7, key[2] + d, stride);
    _tile_dpbf16ps(2, 7, 4);
    _tile_loadd(5, key[3] + d, stride);
    _tile_dpbf16ps(3, 5, 4);
}

void relayi_amx_scores_t(amx_work *work, const amx_group *group, const uint16_t *const key[4],
                         int64_t stride, int32_t column) {
    order_memory();
    for (int32_t b = 0; b < group->blocks; b++) {
        float *out[4];
        for (int i = 0; i < 4; i++) out[i] = amx_score_tile(work, b, column + i);
        zero(4);
        for (int32_t term = 0; term < work->query_terms; term++) {
            const uint16_t *query = amx_query_tile(work, group->first + b, term);
            for (int32_t k = 0; k < work->steps; k++) {
                if (b == 0 && term == 0) look_ahead(&work->ahead, 2 * AMX_DEPTH / work->steps);
                step_transposed(key, stride, k * AMX_DEPTH, query + k * AMX_TILE);
            }
        }
        store(4, out, 64);
    }
    order_memory();
}

/* ---- O += P V */

INLINE void values_columns(shape s, amx_work *work, const amx_group *group, const uint16_t *const *value,
                           int32_t tiles, int32_t d, int64_t v_offset, int64_t v_stride) {
    float *acc[4];
    for (int i = 0; i < shape_tiles(s); i++)
        acc[i] = amx_acc(work, group->first + i / shape_columns(s)) + d + i % shape_columns(s) * 16;
    int64_t a_block = (int64_t)work->prob_terms * AMX_PROB_STEPS * AMX_TILE_BYTES;
    load(shape_tiles(s), acc, 4 * (int64_t)work->dim);
    for (int32_t t = 0; t < tiles; t++)
        for (int32_t term = 0; term < work->prob_terms; term++)
            multiply(s, 2, amx_prob_tile(work, 0, term, 2 * t), a_block, value[t] + v_offset, v_stride,
                     &work->ahead);
    store(shape_tiles(s), acc, 4 * (int64_t)work->dim);
}

/* `rest` takes the columns that are left when `s` no longer fits in the V block. */
INLINE void values_blocks(shape s, shape rest, amx_work *work, const amx_group *group,
                          const uint16_t *const *value, int32_t tiles) {
    for (int32_t first = 0; first < work->dim; first += RELAYI_V_BLOCK) {
        int32_t width = work->dim - first < RELAYI_V_BLOCK ? work->dim - first : RELAYI_V_BLOCK;
        int64_t offset = (int64_t)first * RELAYI_TILE;
        int32_t in = 0;
        for (; in + 16 * shape_columns(s) <= width; in += 16 * shape_columns(s))
            values_columns(s, work, group, value, tiles, first + in, offset + 2 * in, 4 * width);
        for (; in < width; in += 16)
            values_columns(rest, work, group, value, tiles, first + in, offset + 2 * in, 4 * width);
    }
}

void relayi_amx_values(amx_work *work, const amx_group *group, const uint16_t *const *value, int32_t tiles) {
    order_memory();
    if (group->blocks == 1) values_blocks(COLUMNS_4, ROWS_1, work, group, value, tiles);
    else values_blocks(SQUARE, ROWS_2, work, group, value, tiles);
    order_memory();
}
