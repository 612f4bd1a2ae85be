/* The paged K/V pool: one set of pages for all requests, a block id standing for the same page in
 * every layer.  Memory is taken from the system as pages are first written. */
#ifndef RELAY_ENGINE_KV_POOL_H
#define RELAY_ENGINE_KV_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "relay/base.h"

enum { ENG_PAGE_TOKENS = 16 };

typedef struct eng_kv_shape {
    int32_t layers, kv_heads, head_dim;
    relay_dtype dtype;
} eng_kv_shape;

/* Bytes of one token, K and V of all layers. */
uint64_t eng_kv_token_bytes(const eng_kv_shape *shape);

typedef struct eng_kv_pool eng_kv_pool;

/* As many pages as `bytes` holds; fails where that is not one. */
bool eng_kv_pool_create(const eng_kv_shape *shape, uint64_t bytes, eng_kv_pool **out, eng_error *err);
void eng_kv_pool_destroy(eng_kv_pool *pool);

const eng_kv_shape *eng_kv_pool_shape(const eng_kv_pool *pool);
int32_t eng_kv_pool_pages(const eng_kv_pool *pool);
int32_t eng_kv_pool_free_pages(const eng_kv_pool *pool);
uint64_t eng_kv_pool_peak_bytes(const eng_kv_pool *pool); /* of pages in use at once */

/* A page's id, or -1 when all are in use. */
int32_t eng_kv_pool_take(eng_kv_pool *pool);
void eng_kv_pool_give(eng_kv_pool *pool, int32_t page);

/* [pages, ENG_PAGE_TOKENS, kv_heads, head_dim] of one layer. */
relay_tensor eng_kv_pool_keys(const eng_kv_pool *pool, int32_t layer);
relay_tensor eng_kv_pool_values(const eng_kv_pool *pool, int32_t layer);

#endif
