/* Packing into tiles: every element at the place that packed.h gives it, bit by bit, however the
 * tokens came; and what the write and read functions refuse. */
#include <math.h>

#include "prompt_fixture.h"

static relay_device *device;
static relay_prompt_cache *cache; /* of the shape under test */

#define LAYERS 2
#define POISON 0x5a

static void use_shape(int32_t heads, int32_t head_dim, relay_dtype dtype) {
    relay_prompt_cache_options options = small_options();
    options.num_layers = LAYERS;
    options.num_kv_heads = heads;
    options.head_dim = head_dim;
    options.kv_dtype = dtype;
    relay_prompt_cache_destroy(cache);
    cache = make_cache(device, &options);
}

/* ---- raw elements: any bit pattern, NaN included, has to survive ---- */

static uint32_t bits_for(int64_t token, int32_t head, int32_t d, bool is_value) {
    int64_t place[4] = {token, head, d, is_value};
    return (uint32_t)relayi_checksum_of(place, sizeof place, 5);
}

static void put(void *data, size_t size, int64_t index, uint32_t bits) {
    memcpy((char *)data + (size_t)index * size, &bits, size); /* little endian: the low bits */
}

/* Memory of a tensor with these strides, filled by bits_for. */
static void *make_raw(relay_tensor *tensor, bool is_value, int64_t first_token) {
    size_t size = relay_dtype_size(tensor->dtype);
    int64_t reach = 1;
    for (int i = 0; i < 3; i++) reach += (tensor->shape[i] - 1) * tensor->stride[i];
    char *memory = malloc((size_t)reach * size);
    memset(memory, POISON, (size_t)reach * size);
    for (int64_t n = 0; n < tensor->shape[0]; n++)
        for (int32_t h = 0; h < tensor->shape[1]; h++)
            for (int32_t d = 0; d < tensor->shape[2]; d++)
                put(memory, size, n * tensor->stride[0] + h * tensor->stride[1] + d,
                    bits_for(first_token + n, h, d, is_value));
    tensor->data = memory;
    return memory;
}

/* Writes tokens [first, first + n) of a layer: dense, padded, or heads outermost. */
static relay_status write_raw(relay_prompt *prompt, int32_t layer, int32_t first, int32_t n, int form) {
    relayi_prompt_shape shape = relayi_prompt_get_shape(prompt);
    relay_tensor key = relay_tensor_3d(NULL, shape.kv_dtype, n, shape.num_kv_heads, shape.head_dim);
    if (form == 1) {
        key.stride[1] += 3;
        key.stride[0] = key.stride[1] * shape.num_kv_heads + 5;
    } else if (form == 2) {
        key.stride[0] = shape.head_dim;
        key.stride[1] = (int64_t)shape.head_dim * n + 1;
    }
    relay_tensor value = key;
    if (form == 1) value.stride[0] += 2; /* K and V need not be strided alike */
    make_raw(&key, false, first);
    make_raw(&value, true, first);
    relay_status status = relay_prompt_write(prompt, layer, first, &key, &value);
    free(key.data);
    free(value.data);
    return status;
}

static bool element_is(const void *area, int64_t offset, size_t size, uint32_t bits) {
    return memcmp((const char *)area + (size_t)offset * size, &bits, size) == 0;
}

/* Every element of one head where packed.h says, zeros behind the last token. */
static bool head_is_right(const relay_prompt *prompt, int32_t layer, int32_t head) {
    relayi_prompt_shape shape = relayi_prompt_get_shape(prompt);
    int32_t pairs = shape.kv_dtype == RELAY_BF16;
    size_t size = relay_dtype_size(shape.kv_dtype);
    const void *key, *value;
    bool right = true;
    relayi_prompt_head(prompt, layer, head, &key, &value);
    if ((uintptr_t)key % 64 != 0 || (uintptr_t)value % 64 != 0) return false;
    for (int64_t n = 0; n < relayi_num_tiles(shape.num_tokens) * RELAYI_TILE; n++)
        for (int32_t d = 0; d < shape.head_dim; d++) {
            int64_t tile = n / RELAYI_TILE * relayi_tile_elements(shape.head_dim);
            int32_t in = (int32_t)(n % RELAYI_TILE);
            bool there = n < shape.num_tokens;
            right = right &&
                    element_is(key, tile + relayi_k_offset(pairs, in, d), size,
                               there ? bits_for(n, head, d, false) : 0) &&
                    element_is(value, tile + relayi_v_offset(pairs, shape.head_dim, in, d), size,
                               there ? bits_for(n, head, d, true) : 0);
        }
    return right;
}

static void check_packed(const relay_prompt *prompt, const char *how) {
    relayi_prompt_shape shape = relayi_prompt_get_shape(prompt);
    for (int32_t layer = 0; layer < shape.num_layers; layer++)
        for (int32_t head = 0; head < shape.num_kv_heads; head++)
            CHECK_MSG(head_is_right(prompt, layer, head), "%s: %s, %d tokens, head dim %d, layer %d, head %d",
                      how, relay_dtype_name(shape.kv_dtype), shape.num_tokens, shape.head_dim, layer, head);
}

static relay_prompt *begin(int32_t tokens) {
    relay_prompt *prompt = NULL;
    CHECK_STATUS(relay_prompt_cache_begin(cache, "p", tokens, &prompt), RELAY_OK);
    return prompt;
}

static void check_whole(int32_t tokens, int form) {
    relay_prompt *prompt = begin(tokens);
    for (int32_t layer = 0; layer < LAYERS; layer++)
        CHECK_STATUS(write_raw(prompt, layer, 0, tokens, form), RELAY_OK);
    CHECK_STATUS(relay_prompt_commit(prompt), RELAY_OK);
    check_packed(prompt, form == 0 ? "whole" : form == 1 ? "padded" : "heads first");
    relay_prompt_release(prompt);
    CHECK_STATUS(relay_prompt_cache_forget(cache, "p"), RELAY_OK);
}

/* Chunks of `step` tokens, from the last to the first for layer 1. */
static void check_chunks(int32_t tokens, int32_t step) {
    relay_prompt *prompt = begin(tokens);
    for (int32_t first = 0; first < tokens; first += step)
        CHECK_STATUS(write_raw(prompt, 0, first, tokens - first < step ? tokens - first : step, 1), RELAY_OK);
    for (int32_t first = (tokens - 1) / step * step; first >= 0; first -= step)
        CHECK_STATUS(write_raw(prompt, 1, first, tokens - first < step ? tokens - first : step, 0), RELAY_OK);
    CHECK_STATUS(relay_prompt_commit(prompt), RELAY_OK);
    check_packed(prompt, "chunks");
    relay_prompt_release(prompt);
    CHECK_STATUS(relay_prompt_cache_forget(cache, "p"), RELAY_OK);
}

/* The tokens in pages of `block_size`, in scattered order, unused pages and rows poisoned. */
static void check_pages(int32_t tokens, int32_t block_size) {
    relay_prompt *prompt = begin(tokens);
    relayi_prompt_shape shape = relayi_prompt_get_shape(prompt);
    int32_t needed = (tokens + block_size - 1) / block_size, blocks = needed * 2 + 1;
    int32_t *table = malloc((size_t)needed * sizeof *table);
    relay_tensor key = relay_tensor_4d(NULL, shape.kv_dtype, blocks, block_size, shape.num_kv_heads,
                                       shape.head_dim);
    key.stride[0] += 8; /* pages may be padded */
    relay_tensor value = key;
    size_t size = relay_dtype_size(shape.kv_dtype), bytes = (size_t)(blocks * key.stride[0]) * size;
    key.data = memset(malloc(bytes), POISON, bytes);
    value.data = memset(malloc(bytes), POISON, bytes);
    for (int32_t i = 0; i < needed; i++) table[i] = 2 * (needed - 1 - i) + 1;
    for (int32_t n = 0; n < tokens; n++)
        for (int32_t h = 0; h < shape.num_kv_heads; h++)
            for (int32_t d = 0; d < shape.head_dim; d++) {
                int64_t at = table[n / block_size] * key.stride[0] + n % block_size * key.stride[1] +
                             h * key.stride[2] + d;
                put(key.data, size, at, bits_for(n, h, d, false));
                put(value.data, size, at, bits_for(n, h, d, true));
            }
    for (int32_t layer = 0; layer < LAYERS; layer++)
        CHECK_STATUS(relay_prompt_write_pages(prompt, layer, &key, &value, table), RELAY_OK);
    CHECK_STATUS(relay_prompt_commit(prompt), RELAY_OK);
    check_packed(prompt, "pages");
    free(key.data);
    free(value.data);
    free(table);
    relay_prompt_release(prompt);
    CHECK_STATUS(relay_prompt_cache_forget(cache, "p"), RELAY_OK);
}

static void test_packing(void) {
    static const int32_t dims[] = {8, 64, 72, 80, 128, 256}, lengths[] = {1, 63, 64, 65, 131};
    static const relay_dtype dtypes[] = {RELAY_F32, RELAY_F16, RELAY_BF16};
    for (size_t t = 0; t < 3; t++)
        for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
            use_shape(i % 2 == 0 ? 3 : 1, dims[i], dtypes[t]);
            for (size_t j = 0; j < sizeof lengths / sizeof *lengths; j++) {
                for (int form = 0; form < 3; form++) check_whole(lengths[j], form);
                check_chunks(lengths[j], 1);
                check_chunks(lengths[j], 17);
                check_chunks(lengths[j], 100);
                check_pages(lengths[j], 16);
                check_pages(lengths[j], 7);
            }
        }
}

#if defined(__SANITIZE_THREAD__)
#define HAS_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define HAS_TSAN 1
#endif
#endif

/* Large enough for several threads. */
static void test_parallel(void) {
#ifdef HAS_TSAN
    printf("skipped: packing by several threads (ThreadSanitizer does not see OpenMP's barriers)\n");
    return;
#endif
    relay_device *one = device;
    device = open_device(3);
    relay_prompt_cache *before = cache;
    cache = NULL;
    use_shape(5, 128, RELAY_BF16);
    check_whole(1000, 0);
    check_chunks(1000, 700);
    relay_prompt_cache_destroy(cache);
    relay_device_close(device);
    cache = before;
    device = one;
}

/* ---- rounding ---- */

/* float32 and what it is in the narrow types: to nearest, ties to even. */
static const struct {
    float number;
    uint16_t bf16, f16;
} roundings[] = {
    {1.0f, 0x3f80, 0x3c00},
    {-2.5f, 0xc020, 0xc100},
    {1.00390625f, 0x3f80, 0x3c04},       /* 1 + 2^-8: a tie in bf16, down to even */
    {1.01171875f, 0x3f82, 0x3c0c},       /* 1 + 3 * 2^-8: a tie, up to even */
    {1.00390637f, 0x3f81, 0x3c04},       /* just above the tie */
    {1.00048828125f, 0x3f80, 0x3c00},    /* 1 + 2^-11: a tie in f16, down */
    {1.00146484375f, 0x3f80, 0x3c02},    /* 1 + 3 * 2^-11: up */
    {65504.0f, 0x4780, 0x7bff},
    {65520.0f, 0x4780, 0x7c00},          /* beyond f16 */
    {5.9604644775390625e-8f, 0x3380, 0x0001}, /* smallest of f16 */
    {-0.0f, 0x8000, 0x8000},
    {INFINITY, 0x7f80, 0x7c00},
};
#define ROUNDINGS ((int32_t)(sizeof roundings / sizeof *roundings))

static bool rounded_right(const relay_prompt *prompt, int32_t first) {
    relayi_prompt_shape shape = relayi_prompt_get_shape(prompt);
    int32_t pairs = shape.kv_dtype == RELAY_BF16;
    const void *key, *value;
    bool right = true;
    relayi_prompt_head(prompt, 0, 0, &key, &value);
    for (int32_t n = first; n < shape.num_tokens; n++)
        for (int32_t d = 0; d < shape.head_dim; d++) {
            uint16_t k = pairs ? roundings[(n + d) % ROUNDINGS].bf16 : roundings[(n + d) % ROUNDINGS].f16;
            uint16_t v = pairs ? roundings[(n * d) % ROUNDINGS].bf16 : roundings[(n * d) % ROUNDINGS].f16;
            int64_t tile = n / RELAYI_TILE * relayi_tile_elements(shape.head_dim);
            int32_t in = n % RELAYI_TILE;
            right = right && ((const uint16_t *)key)[tile + relayi_k_offset(pairs, in, d)] == k &&
                    ((const uint16_t *)value)[tile + relayi_v_offset(pairs, shape.head_dim, in, d)] == v;
        }
    return right;
}

static void check_rounding(relay_dtype dtype) {
    enum { TOKENS = 70, DIM = 72 };
    static float key[TOKENS][DIM], value[TOKENS][DIM];
    use_shape(1, DIM, dtype);
    for (int32_t n = 0; n < TOKENS; n++)
        for (int32_t d = 0; d < DIM; d++) {
            key[n][d] = roundings[(n + d) % ROUNDINGS].number;
            value[n][d] = roundings[(n * d) % ROUNDINGS].number;
        }
    relay_prompt *prompt = begin(TOKENS);
    relay_tensor k = relay_tensor_3d(key, RELAY_F32, TOKENS, 1, DIM);
    relay_tensor v = relay_tensor_3d(value, RELAY_F32, TOKENS, 1, DIM);
    CHECK_STATUS(relay_prompt_write(prompt, 0, 0, &k, &v), RELAY_OK); /* whole tiles */
    CHECK(rounded_right(prompt, 0));
    relay_prompt_release(prompt);

    prompt = begin(TOKENS);
    k = relay_tensor_3d(key[1], RELAY_F32, TOKENS - 1, 1, DIM);
    v = relay_tensor_3d(value[1], RELAY_F32, TOKENS - 1, 1, DIM);
    CHECK_STATUS(relay_prompt_write(prompt, 0, 1, &k, &v), RELAY_OK); /* and a part of one */
    CHECK(rounded_right(prompt, 1));
    relay_prompt_release(prompt);

    prompt = begin(TOKENS);
    k = relay_tensor_4d(key, RELAY_F32, TOKENS / 10, 10, 1, DIM);
    v = relay_tensor_4d(value, RELAY_F32, TOKENS / 10, 10, 1, DIM);
    CHECK_STATUS(relay_prompt_write_pages(prompt, 0, &k, &v, (const int32_t[]){0, 1, 2, 3, 4, 5, 6}), RELAY_OK);
    CHECK(rounded_right(prompt, 0));
    relay_prompt_release(prompt);
}

static void test_rounding(void) {
    check_rounding(RELAY_BF16);
    check_rounding(RELAY_F16);
}

/* ---- reading back ---- */

static void test_read(void) {
    static const relay_dtype dtypes[] = {RELAY_F32, RELAY_F16, RELAY_BF16};
    static float key[40][2][100], value[2][40][80];
    for (size_t t = 0; t < 3; t++) {
        use_shape(2, 80, dtypes[t]);
        relay_prompt *prompt = begin(100);
        CHECK_STATUS(write_all_layers(prompt), RELAY_OK);
        CHECK(holds_its_numbers(prompt));
        relay_tensor k = relay_tensor_3d(key, RELAY_F32, 40, 2, 80);
        k.stride[0] = 200, k.stride[1] = 100;
        relay_tensor v = relay_tensor_3d(value, RELAY_F32, 40, 2, 80);
        v.stride[0] = 80, v.stride[1] = 40 * 80;
        memset(key, POISON, sizeof key);
        CHECK_STATUS(relay_prompt_read(prompt, 1, 50, &k, &v), RELAY_OK);
        bool same = true;
        for (int32_t n = 0; n < 40; n++)
            for (int32_t h = 0; h < 2; h++)
                for (int32_t d = 0; d < 80; d++) {
                    int64_t element = ((50 + n) * 2 + h) * 80 + d;
                    same = same && key[n][h][d] == number_for("p", 1, false, element) &&
                           value[h][n][d] == number_for("p", 1, true, element);
                }
        CHECK(same);
        uint32_t poison;
        memcpy(&poison, &key[3][1][80], sizeof poison);
        CHECK(poison == 0x5a5a5a5a); /* what lies between rows is not touched */
        CHECK_STATUS(relay_prompt_read(prompt, 0, 0, NULL, NULL), RELAY_OK);
        relay_prompt_release(prompt);
    }
}

/* ---- what is refused ---- */

static void test_bad_writes(void) {
    static float data[4 * 3 * 8 * 2];
    use_shape(3, 8, RELAY_BF16);
    relay_prompt *prompt = begin(10);
    relay_tensor good = relay_tensor_3d(data, RELAY_F32, 4, 3, 8), bad;
#define REFUSE(change, expected, word)                                             \
    do {                                                                           \
        bad = good;                                                                \
        change;                                                                    \
        CHECK_STATUS(relay_prompt_write(prompt, 0, 0, &good, &bad), expected);     \
        CHECK_CONTAINS(logged.last, word);                                         \
        CHECK_CONTAINS(logged.last, "value");                                      \
    } while (0)
    REFUSE(bad.dtype = RELAY_BF16, RELAY_BAD_DTYPE, "bf16");
    REFUSE(bad.ndim = 2, RELAY_BAD_SHAPE, "dimensions");
    REFUSE(bad.shape[0] = 3, RELAY_BAD_SHAPE, "shape[0]");
    REFUSE(bad.shape[1] = 2, RELAY_BAD_SHAPE, "shape[1]");
    REFUSE(bad.shape[2] = 16, RELAY_BAD_SHAPE, "shape[2]");
    REFUSE(bad.stride[2] = 2, RELAY_BAD_STRIDE, "stride[2]");
    REFUSE(bad.stride[0] = -24, RELAY_BAD_STRIDE, "stride[0]");
    REFUSE(bad.data = NULL, RELAY_NULL_POINTER, "data");
    REFUSE(bad.data = (char *)data + 1, RELAY_MISALIGNED, "aligned");
#undef REFUSE
    CHECK_STATUS(relay_prompt_write(NULL, 0, 0, &good, &good), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_write(prompt, 0, 0, NULL, &good), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_write(prompt, 0, 0, &good, NULL), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_write(prompt, -1, 0, &good, &good), RELAY_OUT_OF_RANGE);
    CHECK_STATUS(relay_prompt_write(prompt, LAYERS, 0, &good, &good), RELAY_OUT_OF_RANGE);
    CHECK_CONTAINS(logged.last, "layer");
    CHECK_STATUS(relay_prompt_write(prompt, 0, -1, &good, &good), RELAY_OUT_OF_RANGE);
    CHECK_STATUS(relay_prompt_write(prompt, 0, 7, &good, &good), RELAY_OUT_OF_RANGE);
    CHECK_CONTAINS(logged.last, "first_token");
    CHECK_STATUS(relay_prompt_write(prompt, 0, INT32_MAX, &good, &good), RELAY_OUT_OF_RANGE);
    good.dtype = RELAY_F16;
    CHECK_STATUS(relay_prompt_write(prompt, 0, 0, &good, &good), RELAY_BAD_DTYPE);
    good.dtype = RELAY_F32;
    good.shape[0] = 0;
    good.data = NULL;
    CHECK_STATUS(relay_prompt_write(prompt, 0, 0, &good, &good), RELAY_OK); /* nothing to do */
    CHECK_STATUS(relay_prompt_commit(prompt), RELAY_INVALID_ARGUMENT); /* and nothing was done */
    CHECK_CONTAINS(logged.last, "token 0 of layer 0");
    relay_prompt_release(prompt);
}

/* A single missing token, wherever it is, is found and named. */
static void test_missing_token(void) {
    enum { TOKENS = 130 };
    use_shape(1, 8, RELAY_BF16);
    for (int32_t missing = 0; missing < TOKENS; missing++) {
        char text[64];
        relay_prompt *prompt = begin(TOKENS);
        CHECK_STATUS(write_raw(prompt, 0, 0, TOKENS, 0), RELAY_OK);
        if (missing > 0) CHECK_STATUS(write_raw(prompt, 1, 0, missing, 0), RELAY_OK);
        if (missing + 1 < TOKENS)
            CHECK_STATUS(write_raw(prompt, 1, missing + 1, TOKENS - missing - 1, 0), RELAY_OK);
        CHECK_STATUS(relay_prompt_commit(prompt), RELAY_INVALID_ARGUMENT);
        snprintf(text, sizeof text, "token %d of layer 1", missing);
        CHECK_CONTAINS(logged.last, text);
        CHECK_STATUS(write_raw(prompt, 1, missing, 1, 0), RELAY_OK);
        CHECK_STATUS(relay_prompt_commit(prompt), RELAY_OK);
        relay_prompt_release(prompt);
        CHECK_STATUS(relay_prompt_cache_forget(cache, "p"), RELAY_OK);
    }
}

static void test_bad_pages(void) {
    static float data[6 * 4 * 3 * 8];
    static const int32_t table[] = {5, 0, 2}, low[] = {0, -1, 2}, high[] = {0, 1, 6};
    use_shape(3, 8, RELAY_F32);
    relay_prompt *prompt = begin(10);
    relay_tensor pool = relay_tensor_4d(data, RELAY_F32, 6, 4, 3, 8), bad = pool;
    CHECK_STATUS(relay_prompt_write_pages(prompt, 0, &pool, &pool, NULL), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_write_pages(prompt, 0, &pool, NULL, table), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_write_pages(NULL, 0, &pool, &pool, table), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_write_pages(prompt, 0, &pool, &pool, low), RELAY_OUT_OF_RANGE);
    CHECK_CONTAINS(logged.last, "block_table[1] is -1");
    CHECK_STATUS(relay_prompt_write_pages(prompt, 0, &pool, &pool, high), RELAY_OUT_OF_RANGE);
    CHECK_CONTAINS(logged.last, "block_table[2] is 6");
    bad.shape[0] = 5;
    CHECK_STATUS(relay_prompt_write_pages(prompt, 0, &pool, &bad, table), RELAY_BAD_SHAPE);
    CHECK_CONTAINS(logged.last, "value_pool");
    bad = pool;
    bad.shape[1] = 0;
    CHECK_STATUS(relay_prompt_write_pages(prompt, 0, &bad, &bad, table), RELAY_BAD_SHAPE);
    CHECK_CONTAINS(logged.last, "block_size");
    bad = pool;
    bad.dtype = RELAY_BF16;
    CHECK_STATUS(relay_prompt_write_pages(prompt, 0, &bad, &bad, table), RELAY_BAD_DTYPE);
    CHECK_STATUS(relay_prompt_write_pages(prompt, 2, &pool, &pool, table), RELAY_OUT_OF_RANGE);
    CHECK_STATUS(relay_prompt_write_pages(prompt, 0, &pool, &pool, table), RELAY_OK);
    relay_prompt_release(prompt);
}

static void test_bad_reads(void) {
    static float data[2 * 4 * 3 * 8];
    use_shape(3, 8, RELAY_BF16);
    relay_prompt *prompt = begin(10);
    relay_tensor key = relay_tensor_3d(data, RELAY_F32, 4, 3, 8), value = key;
    value.data = data + 4 * 3 * 8;
    CHECK_STATUS(relay_prompt_read(NULL, 0, 0, &key, &value), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_read(prompt, 2, 0, &key, &value), RELAY_OUT_OF_RANGE);
    CHECK_STATUS(relay_prompt_read(prompt, -1, 0, NULL, NULL), RELAY_OUT_OF_RANGE);
    CHECK_STATUS(relay_prompt_read(prompt, 0, 7, &key, &value), RELAY_OUT_OF_RANGE);
    CHECK_STATUS(relay_prompt_read(prompt, 0, -1, &key, NULL), RELAY_OUT_OF_RANGE);
    CHECK_STATUS(relay_prompt_read(prompt, 0, 0, &key, &key), RELAY_OVERLAP);
    key.dtype = RELAY_BF16;
    CHECK_STATUS(relay_prompt_read(prompt, 0, 0, &key, &value), RELAY_BAD_DTYPE);
    key.dtype = RELAY_F32;
    key.stride[0] = 8; /* rows of one head over those of another */
    CHECK_STATUS(relay_prompt_read(prompt, 0, 0, &key, &value), RELAY_BAD_STRIDE);
    key.stride[0] = 24;
    key.stride[1] = 7;
    CHECK_STATUS(relay_prompt_read(prompt, 0, 0, &key, &value), RELAY_BAD_STRIDE);
    key.stride[1] = 8;
    CHECK_STATUS(relay_prompt_read(prompt, 0, 6, &key, &value), RELAY_OK);
    relay_prompt_release(prompt);
}

int main(void) {
    device = open_device(1);
    test_packing();
    test_parallel();
    test_rounding();
    test_read();
    test_bad_writes();
    test_missing_token();
    test_bad_pages();
    test_bad_reads();
    relay_prompt_cache_destroy(cache);
    relay_device_close(device);
    return test_result();
}
