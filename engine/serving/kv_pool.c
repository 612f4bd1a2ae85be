#define _DEFAULT_SOURCE /* MAP_ANONYMOUS, MAP_NORESERVE */
#include "kv_pool.h"

#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>

struct eng_kv_pool {
    eng_kv_shape shape;
    int32_t pages, num_free, fewest_free;
    int32_t *free_pages; /* [pages]; the first num_free are free, the next to take is the last of them */
    char *memory;
    size_t bytes, plane_bytes; /* plane: K, or V, of one layer */
};

uint64_t eng_kv_token_bytes(const eng_kv_shape *shape) {
    return 2 * (uint64_t)shape->layers * (uint64_t)shape->kv_heads * (uint64_t)shape->head_dim *
           relay_dtype_size(shape->dtype);
}

static bool map_memory(eng_kv_pool *pool, eng_error *err) {
    void *memory = mmap(NULL, pool->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return eng_fail(err, "K/V pool: no memory for %zu bytes", pool->bytes);
    madvise(memory, pool->bytes, MADV_HUGEPAGE); /* a hint: a refusal costs speed only */
    pool->memory = memory;
    return true;
}

static bool fill_free_list(eng_kv_pool *pool, eng_error *err) {
    pool->free_pages = malloc((size_t)pool->pages * sizeof *pool->free_pages);
    if (pool->free_pages == NULL) return eng_fail(err, "K/V pool: no memory for the list of pages");
    for (int32_t i = 0; i < pool->pages; i++) pool->free_pages[i] = pool->pages - 1 - i;
    pool->num_free = pool->fewest_free = pool->pages;
    return true;
}

bool eng_kv_pool_create(const eng_kv_shape *shape, uint64_t bytes, eng_kv_pool **out, eng_error *err) {
    *out = NULL;
    uint64_t page_bytes = ENG_PAGE_TOKENS * eng_kv_token_bytes(shape);
    uint64_t pages = bytes / page_bytes;
    if (pages < 1)
        return eng_fail(err, "K/V pool: %" PRIu64 " bytes do not hold one page of %d tokens, which takes %" PRIu64,
                        bytes, ENG_PAGE_TOKENS, page_bytes);
    /* slots are counted in 64 bits, pages in 32 */
    if (pages > INT32_MAX || pages > SIZE_MAX / page_bytes) return eng_fail(err, "K/V pool: %" PRIu64 " bytes: too many", bytes);
    eng_kv_pool *pool = calloc(1, sizeof *pool);
    if (pool == NULL) return eng_fail(err, "K/V pool: out of memory");
    pool->shape = *shape;
    pool->pages = (int32_t)pages;
    pool->bytes = (size_t)(pages * page_bytes);
    pool->plane_bytes = pool->bytes / 2 / (size_t)shape->layers;
    if (!map_memory(pool, err) || !fill_free_list(pool, err)) {
        eng_kv_pool_destroy(pool);
        return false;
    }
    *out = pool;
    return true;
}

void eng_kv_pool_destroy(eng_kv_pool *pool) {
    if (pool == NULL) return;
    if (pool->memory != NULL) munmap(pool->memory, pool->bytes);
    free(pool->free_pages);
    free(pool);
}

const eng_kv_shape *eng_kv_pool_shape(const eng_kv_pool *pool) {
    return &pool->shape;
}

int32_t eng_kv_pool_pages(const eng_kv_pool *pool) {
    return pool->pages;
}

int32_t eng_kv_pool_free_pages(const eng_kv_pool *pool) {
    return pool->num_free;
}

uint64_t eng_kv_pool_peak_bytes(const eng_kv_pool *pool) {
    return (uint64_t)(pool->pages - pool->fewest_free) * ENG_PAGE_TOKENS * eng_kv_token_bytes(&pool->shape);
}

int32_t eng_kv_pool_take(eng_kv_pool *pool) {
    if (pool->num_free == 0) return -1;
    pool->num_free--;
    if (pool->num_free < pool->fewest_free) pool->fewest_free = pool->num_free;
    return pool->free_pages[pool->num_free];
}

void eng_kv_pool_give(eng_kv_pool *pool, int32_t page) {
    pool->free_pages[pool->num_free++] = page;
}

static relay_tensor plane(const eng_kv_pool *pool, int32_t index) {
    char *data = pool->memory + (size_t)index * pool->plane_bytes;
    return relay_tensor_4d(data, pool->shape.dtype, pool->pages, ENG_PAGE_TOKENS, pool->shape.kv_heads,
                           pool->shape.head_dim);
}

relay_tensor eng_kv_pool_keys(const eng_kv_pool *pool, int32_t layer) {
    return plane(pool, 2 * layer);
}

relay_tensor eng_kv_pool_values(const eng_kv_pool *pool, int32_t layer) {
    return plane(pool, 2 * layer + 1);
}
