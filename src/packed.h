/* The packed K/V layout: how a prompt of the prompt cache lies in memory and in its file.
 *
 * One kv head of one layer is a K area followed by a V area.  Tokens come in tiles of
 * 64; the last tile is padded with zeros (so a padded key scores 0 and is masked, and a
 * padded value adds 0 * 0).  Within tile t:
 *
 *   f32, f16   K [D][64]                 a key element's 64 tokens are one row of lanes
 *              V [D/64 blocks][64][w]    a token's w <= 64 elements are one row of lanes
 *   bf16       K [D/2][64][2]            the same in pairs along D (what a dot-product or
 *              V [D/64 blocks][32][w][2] tile instruction eats), V in pairs along tokens
 *
 * w is 64 but for the last block of a head dim that is no multiple of 64.  D is even.
 * An element is never rounded twice: packing keeps the dtype.
 */
#ifndef RELAY_PACKED_H
#define RELAY_PACKED_H

#include <stddef.h>
#include <stdint.h>

#define RELAYI_TILE 64      /* tokens a tile */
#define RELAYI_V_BLOCK 64   /* head-dim elements a V block */
#define RELAYI_PACKED_VERSION 1

static inline int64_t relayi_num_tiles(int64_t tokens) {
    return (tokens + RELAYI_TILE - 1) / RELAYI_TILE;
}

/* Elements of one tile's K (or V) of one head. */
static inline int64_t relayi_tile_elements(int32_t head_dim) {
    return (int64_t)RELAYI_TILE * head_dim;
}

/* Offset of element d of token n (0..63) in a tile's K. */
static inline int64_t relayi_k_offset(int32_t pairs, int32_t n, int32_t d) {
    if (pairs) return ((int64_t)(d / 2) * RELAYI_TILE + n) * 2 + d % 2;
    return (int64_t)d * RELAYI_TILE + n;
}

/* Offset of element d of token n (0..63) in a tile's V. */
static inline int64_t relayi_v_offset(int32_t pairs, int32_t head_dim, int32_t n, int32_t d) {
    int32_t block = d / RELAYI_V_BLOCK, in = d % RELAYI_V_BLOCK;
    int32_t width = head_dim - block * RELAYI_V_BLOCK;
    if (width > RELAYI_V_BLOCK) width = RELAYI_V_BLOCK;
    int64_t base = (int64_t)block * RELAYI_V_BLOCK * RELAYI_TILE;
    if (pairs) return base + ((int64_t)(n / 2) * width + in) * 2 + n % 2;
    return base + (int64_t)n * width + in;
}

#endif
