/* One prompt's memory: tokens packed into tiles, and read back.
 *
 * A write may start and end inside a tile, as the chunks of a prefill do.  Tiles that it covers
 * go through the device's pack kernel, the others element by element; both leave the padding of
 * the last tile zero. */
#include <string.h>

#include "alloc.h"
#include "device_internal.h"
#include "log.h"
#include "prompt_internal.h"
#include "tensor.h"

#define MAX_HEAD_DIM 256
#define PARALLEL_BYTES ((int64_t)1 << 20) /* below this a second thread costs more than it gives */

bool relayi_prompt_sizes(const relay_prompt_cache_options *options, int32_t num_tokens,
                         relayi_prompt_size *size) {
    size_t tile = (size_t)relayi_tile_elements(options->head_dim) * relay_dtype_size(options->kv_dtype);
    return relayi_multiply(tile, (size_t)relayi_num_tiles(num_tokens), &size->area) &&
           relayi_multiply(size->area, 2 * (size_t)options->num_kv_heads, &size->layer) &&
           relayi_multiply(size->layer, (size_t)options->num_layers, &size->total) &&
           size->total <= PTRDIFF_MAX;
}

bool relayi_prompt_allocate(relay_prompt *prompt) {
    prompt->data = relayi_map(prompt->size.total);
    return prompt->data != NULL;
}

static const relay_prompt_cache_options *options_of(const relay_prompt *prompt) {
    return &prompt->cache->options;
}

/* The tokens of tile `tile` that exist, as bits. */
static uint64_t tile_mask(const relay_prompt *prompt, int64_t tile) {
    int64_t count = prompt->num_tokens - tile * RELAYI_TILE;
    return count >= RELAYI_TILE ? UINT64_MAX : (UINT64_C(1) << count) - 1;
}

bool relayi_prompt_complete(const relay_prompt *prompt, int32_t *layer, int32_t *token) {
    int64_t tiles = relayi_num_tiles(prompt->num_tokens);
    for (int64_t i = 0; i < tiles * options_of(prompt)->num_layers; i++) {
        uint64_t missing = tile_mask(prompt, i % tiles) & ~prompt->written[i];
        if (missing == 0) continue;
        int32_t bit = 0;
        while ((missing >> bit & 1) == 0) bit++;
        *layer = (int32_t)(i / tiles);
        *token = (int32_t)(i % tiles * RELAYI_TILE) + bit;
        return false;
    }
    return true;
}

relayi_prompt_shape relayi_prompt_get_shape(const relay_prompt *prompt) {
    const relay_prompt_cache_options *options = options_of(prompt);
    return (relayi_prompt_shape){prompt->num_tokens, options->num_layers, options->num_kv_heads,
                                 options->head_dim, options->kv_dtype};
}

static char *key_area(const relay_prompt *prompt, int32_t layer, int32_t kv_head) {
    return prompt->data + (size_t)layer * prompt->size.layer + (size_t)kv_head * 2 * prompt->size.area;
}

void relayi_prompt_head(const relay_prompt *prompt, int32_t layer, int32_t kv_head,
                        const void **key, const void **value) {
    const char *area = key_area(prompt, layer, kv_head);
    *key = area;
    *value = area + prompt->size.area;
}

/* ---- where tokens come from ---- */

/* The caller's tensors as kernels see them, for kv head 0, and how to get to the others. */
typedef struct source {
    relayi_kv kv;
    relay_dtype dtype;
    int64_t key_head_stride, value_head_stride;
} source;

/* A piece of a write that lies in one tile of one head. */
typedef struct piece {
    relayi_kv kv;
    relay_dtype dtype;
    int32_t begin, count; /* tokens of kv */
    int32_t first;        /* their place in the tile */
    char *key_tile, *value_tile;
} piece;

static relayi_kv source_head(const source *from, int32_t kv_head) {
    size_t size = relay_dtype_size(from->dtype);
    relayi_kv kv = from->kv;
    kv.key = (const char *)kv.key + (size_t)(kv_head * from->key_head_stride) * size;
    kv.value = (const char *)kv.value + (size_t)(kv_head * from->value_head_stride) * size;
    return kv;
}

static const char *row_at(const void *base, size_t size, const relayi_kv *kv, int64_t block_stride,
                          int64_t token_stride, int32_t token) {
    int64_t block = kv->block_table != NULL ? kv->block_table[token / kv->block_size] : 0;
    int64_t in = kv->block_table != NULL ? token % kv->block_size : token;
    return (const char *)base + (size_t)(block * block_stride + in * token_stride) * size;
}

static const char *key_row(const piece *p, int32_t token) {
    return row_at(p->kv.key, relay_dtype_size(p->dtype), &p->kv, p->kv.key_block_stride,
                  p->kv.key_token_stride, token);
}

static const char *value_row(const piece *p, int32_t token) {
    return row_at(p->kv.value, relay_dtype_size(p->dtype), &p->kv, p->kv.value_block_stride,
                  p->kv.value_token_stride, token);
}

/* ---- packing ---- */

static void round_row(const relay_prompt *prompt, const char *from, uint16_t *to) {
    const relayi_kernels *kernels = &prompt->cache->device->kernels;
    int32_t head_dim = options_of(prompt)->head_dim;
    if (options_of(prompt)->kv_dtype == RELAY_BF16)
        kernels->f32_to_bf16((const float *)from, to, head_dim);
    else
        kernels->f32_to_f16((const float *)from, to, head_dim);
}

static bool must_round(const relay_prompt *prompt, const piece *p) {
    return p->dtype != options_of(prompt)->kv_dtype;
}

static void pack_rounded(const relay_prompt *prompt, const piece *p) {
    _Alignas(RELAYI_ALIGNMENT) uint16_t key[RELAYI_TILE * MAX_HEAD_DIM], value[RELAYI_TILE * MAX_HEAD_DIM];
    int32_t head_dim = options_of(prompt)->head_dim;
    for (int32_t i = 0; i < p->count; i++) {
        round_row(prompt, key_row(p, p->begin + i), key + (size_t)i * (size_t)head_dim);
        round_row(prompt, value_row(p, p->begin + i), value + (size_t)i * (size_t)head_dim);
    }
    relayi_kv rounded = {.key = key, .value = value, .block_size = p->count,
                         .key_token_stride = head_dim, .value_token_stride = head_dim};
    prompt->cache->device->kernels.pack[relayi_dt(options_of(prompt)->kv_dtype)](
        &rounded, head_dim, 0, p->count, p->key_tile, p->value_tile);
}

static void pack_tile(const relay_prompt *prompt, const piece *p) {
    const relay_prompt_cache_options *options = options_of(prompt);
    if (must_round(prompt, p))
        pack_rounded(prompt, p);
    else
        prompt->cache->device->kernels.pack[relayi_dt(options->kv_dtype)](
            &p->kv, options->head_dim, p->begin, p->count, p->key_tile, p->value_tile);
}

static void scatter_key(const relay_prompt *prompt, const char *row, char *tile, int32_t n) {
    const relay_prompt_cache_options *options = options_of(prompt);
    size_t size = relay_dtype_size(options->kv_dtype);
    for (int32_t d = 0; d < options->head_dim; d++)
        memcpy(tile + (size_t)relayi_k_offset(options->kv_dtype == RELAY_BF16, n, d) * size,
               row + (size_t)d * size, size);
}

static void scatter_value(const relay_prompt *prompt, const char *row, char *tile, int32_t n) {
    const relay_prompt_cache_options *options = options_of(prompt);
    size_t size = relay_dtype_size(options->kv_dtype);
    for (int32_t d = 0; d < options->head_dim; d++)
        memcpy(tile + (size_t)relayi_v_offset(options->kv_dtype == RELAY_BF16, options->head_dim, n, d) * size,
               row + (size_t)d * size, size);
}

static void pack_token(const relay_prompt *prompt, const piece *p, int32_t i) {
    const char *key = key_row(p, p->begin + i), *value = value_row(p, p->begin + i);
    uint16_t key_rounded[MAX_HEAD_DIM], value_rounded[MAX_HEAD_DIM];
    if (must_round(prompt, p)) {
        round_row(prompt, key, key_rounded);
        round_row(prompt, value, value_rounded);
        key = (const char *)key_rounded;
        value = (const char *)value_rounded;
    }
    scatter_key(prompt, key, p->key_tile, p->first + i);
    scatter_value(prompt, value, p->value_tile, p->first + i);
}

static void pack_piece(const relay_prompt *prompt, const piece *p, bool whole) {
    if (whole) {
        pack_tile(prompt, p);
        return;
    }
    for (int32_t i = 0; i < p->count; i++) pack_token(prompt, p, i);
}

/* Tokens [first, first + n) of the prompt, cut to tile `tile`, of one head. */
static void pack_part(const relay_prompt *prompt, const source *from, int32_t layer, int32_t first,
                      int32_t n, int32_t kv_head, int64_t tile) {
    int64_t start = tile * RELAYI_TILE, stop = start + RELAYI_TILE;
    if (stop > prompt->num_tokens) stop = prompt->num_tokens;
    int64_t lo = first > start ? first : start;
    int64_t hi = (int64_t)first + n < stop ? (int64_t)first + n : stop;
    size_t tile_bytes = (size_t)relayi_tile_elements(options_of(prompt)->head_dim) *
                        relay_dtype_size(options_of(prompt)->kv_dtype);
    char *area = key_area(prompt, layer, kv_head);
    piece p = {.kv = source_head(from, kv_head), .dtype = from->dtype,
               .begin = (int32_t)(lo - first), .count = (int32_t)(hi - lo), .first = (int32_t)(lo - start),
               .key_tile = area + (size_t)tile * tile_bytes,
               .value_tile = area + prompt->size.area + (size_t)tile * tile_bytes};
    pack_piece(prompt, &p, lo == start && hi == stop);
}

static void mark_written(relay_prompt *prompt, int32_t layer, int32_t first, int32_t n) {
    uint64_t *words = prompt->written + (int64_t)layer * relayi_num_tiles(prompt->num_tokens);
    for (int64_t token = first; token < (int64_t)first + n; token++)
        words[token / RELAYI_TILE] |= UINT64_C(1) << token % RELAYI_TILE;
}

static void pack_tokens(relay_prompt *prompt, const source *from, int32_t layer, int32_t first,
                        int32_t n) {
    if (n == 0) return;
    int32_t heads = options_of(prompt)->num_kv_heads;
    int64_t first_tile = first / RELAYI_TILE;
    int64_t tiles = ((int64_t)first + n - 1) / RELAYI_TILE - first_tile + 1;
    int64_t parts = tiles * heads;
    int threads = prompt->cache->device->threads;
    bool parallel = threads > 1 && (int64_t)n * heads * options_of(prompt)->head_dim * 4 >= PARALLEL_BYTES;
#pragma omp parallel for schedule(static) num_threads(threads) if (parallel)
    for (int64_t i = 0; i < parts; i++)
        pack_part(prompt, from, layer, first, n, (int32_t)(i / tiles), first_tile + i % tiles);
    mark_written(prompt, layer, first, n);
}

/* ---- checks ---- */

static relay_status check_layer(const relay_prompt *prompt, const char *call, int32_t layer) {
    int32_t layers = options_of(prompt)->num_layers;
    if (layer >= 0 && layer < layers) return RELAY_OK;
    return relayi_fail(prompt->cache->device, RELAY_OUT_OF_RANGE, "%s: layer is %d, the cache has %d",
                       call, layer, layers);
}

static relay_status check_tokens(const relay_prompt *prompt, const char *call, int32_t first,
                                 int64_t n) {
    if (first >= 0 && n <= (int64_t)prompt->num_tokens - first) return RELAY_OK;
    return relayi_fail(prompt->cache->device, RELAY_OUT_OF_RANGE,
                       "%s: first_token %d and %lld tokens, the prompt has %d", call, first,
                       (long long)n, prompt->num_tokens);
}

static relay_status check_writable(const relay_prompt *prompt, const char *call, int32_t layer,
                                   const relay_tensor *key, const relay_tensor *value) {
    const relay_device *device = prompt->cache->device;
    if (key == NULL || value == NULL)
        return relayi_fail(device, RELAY_NULL_POINTER, "%s: %s is NULL", call,
                           key == NULL ? "key" : "value");
    if (prompt->state != RELAYI_PROMPT_BUILDING)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT, "%s: prompt '%s' is already committed", call,
                           prompt->key);
    return check_layer(prompt, call, layer);
}

static relay_status check_dtypes(const relay_prompt *prompt, const char *call,
                                 const relay_tensor *key, const relay_tensor *value) {
    const relay_device *device = prompt->cache->device;
    relay_dtype kv_dtype = options_of(prompt)->kv_dtype;
    if (key->dtype != kv_dtype && key->dtype != RELAY_F32)
        return relayi_fail(device, RELAY_BAD_DTYPE, "%s: key is %s, expected %s or f32", call,
                           relay_dtype_name(key->dtype), relay_dtype_name(kv_dtype));
    if (value->dtype != key->dtype)
        return relayi_fail(device, RELAY_BAD_DTYPE, "%s: value is %s, but key is %s", call,
                           relay_dtype_name(value->dtype), relay_dtype_name(key->dtype));
    return RELAY_OK;
}

static relay_status check_pair(const relay_prompt *prompt, const char *call, int32_t ndim,
                               const relay_tensor *key, const relay_tensor *value) {
    const relay_prompt_cache_options *options = options_of(prompt);
    relayi_expect expect = {.name = "relay_prompt_write.key", .ndim = ndim, .dense_last = true};
    bool pages = ndim == 4;
    if (pages) expect.name = "relay_prompt_write_pages.key_pool";
    expect.shape[0] = expect.shape[1] = -1;
    expect.shape[ndim - 2] = options->num_kv_heads;
    expect.shape[ndim - 1] = options->head_dim;
    relay_status status = check_dtypes(prompt, call, key, value);
    if (status == RELAY_OK) status = relayi_check_tensor(prompt->cache->device, key, &expect);
    if (status != RELAY_OK) return status;
    expect.name = pages ? "relay_prompt_write_pages.value_pool" : "relay_prompt_write.value";
    expect.shape[0] = key->shape[0];
    expect.shape[1] = key->shape[1];
    return relayi_check_tensor(prompt->cache->device, value, &expect);
}

static relay_status check_block_table(const relay_prompt *prompt, const relay_tensor *pool,
                                      const int32_t *block_table) {
    const relay_device *device = prompt->cache->device;
    int64_t block_size = pool->shape[1];
    if (block_table == NULL)
        return relayi_fail(device, RELAY_NULL_POINTER, "relay_prompt_write_pages: block_table is NULL");
    if (block_size < 1 || block_size > INT32_MAX)
        return relayi_fail(device, RELAY_BAD_SHAPE, "relay_prompt_write_pages.key_pool: block_size is %lld",
                           (long long)block_size);
    int64_t blocks = (prompt->num_tokens + block_size - 1) / block_size;
    for (int64_t i = 0; i < blocks; i++)
        if (block_table[i] < 0 || block_table[i] >= pool->shape[0])
            return relayi_fail(device, RELAY_OUT_OF_RANGE,
                               "relay_prompt_write_pages: block_table[%lld] is %d, the pool has %lld blocks",
                               (long long)i, block_table[i], (long long)pool->shape[0]);
    return RELAY_OK;
}

/* ---- the public functions ---- */

relay_status relay_prompt_write(relay_prompt *prompt, int32_t layer, int32_t first_token,
                                const relay_tensor *key, const relay_tensor *value) {
    static const char call[] = "relay_prompt_write";
    if (prompt == NULL) return RELAY_NULL_POINTER;
    relay_status status = check_writable(prompt, call, layer, key, value);
    if (status == RELAY_OK) status = check_pair(prompt, call, 3, key, value);
    if (status == RELAY_OK) status = check_tokens(prompt, call, first_token, key->shape[0]);
    if (status != RELAY_OK) return status;
    int32_t n = (int32_t)key->shape[0];
    source from = {.dtype = key->dtype, .key_head_stride = key->stride[1],
                   .value_head_stride = value->stride[1],
                   .kv = {.key = key->data, .value = value->data, .block_size = n > 0 ? n : 1,
                          .key_token_stride = key->stride[0], .value_token_stride = value->stride[0]}};
    pack_tokens(prompt, &from, layer, first_token, n);
    return RELAY_OK;
}

relay_status relay_prompt_write_pages(relay_prompt *prompt, int32_t layer,
                                      const relay_tensor *key_pool, const relay_tensor *value_pool,
                                      const int32_t *block_table) {
    static const char call[] = "relay_prompt_write_pages";
    if (prompt == NULL) return RELAY_NULL_POINTER;
    relay_status status = check_writable(prompt, call, layer, key_pool, value_pool);
    if (status == RELAY_OK) status = check_pair(prompt, call, 4, key_pool, value_pool);
    if (status == RELAY_OK) status = check_block_table(prompt, key_pool, block_table);
    if (status != RELAY_OK) return status;
    source from = {.dtype = key_pool->dtype, .key_head_stride = key_pool->stride[2],
                   .value_head_stride = value_pool->stride[2],
                   .kv = {.key = key_pool->data, .value = value_pool->data, .block_table = block_table,
                          .block_size = (int32_t)key_pool->shape[1],
                          .key_block_stride = key_pool->stride[0], .key_token_stride = key_pool->stride[1],
                          .value_block_stride = value_pool->stride[0],
                          .value_token_stride = value_pool->stride[1]}};
    pack_tokens(prompt, &from, layer, 0, prompt->num_tokens);
    return RELAY_OK;
}

int32_t relay_prompt_num_tokens(const relay_prompt *prompt) {
    return prompt != NULL ? prompt->num_tokens : 0;
}

uint64_t relay_prompt_num_bytes(const relay_prompt *prompt) {
    return prompt != NULL ? prompt->size.total : 0;
}

const char *relay_prompt_key(const relay_prompt *prompt) {
    return prompt != NULL ? prompt->key : NULL;
}
