#include <string.h>

#include "ref.h"

static int64_t origin(const relayi_kv *kv, int32_t token, int64_t block_stride, int64_t token_stride) {
    if (kv->block_table == NULL) return token * token_stride;
    return kv->block_table[token / kv->block_size] * block_stride +
           token % kv->block_size * token_stride;
}

static void copy_token(const relayi_kv *kv, int32_t head_dim, int32_t token, int32_t in_tile,
                       size_t size, int pairs, char *key_tile, char *value_tile) {
    const char *key = kv->key, *value = kv->value;
    key += origin(kv, token, kv->key_block_stride, kv->key_token_stride) * (int64_t)size;
    value += origin(kv, token, kv->value_block_stride, kv->value_token_stride) * (int64_t)size;
    for (int32_t d = 0; d < head_dim; d++) {
        memcpy(key_tile + relayi_k_offset(pairs, in_tile, d) * (int64_t)size, key + d * (int64_t)size,
               size);
        memcpy(value_tile + relayi_v_offset(pairs, head_dim, in_tile, d) * (int64_t)size,
               value + d * (int64_t)size, size);
    }
}

static void pack(const relayi_kv *kv, int32_t head_dim, int32_t begin, int32_t count, size_t size,
                 int pairs, void *key_tile, void *value_tile) {
    size_t tile_bytes = (size_t)relayi_tile_elements(head_dim) * size;
    memset(key_tile, 0, tile_bytes);
    memset(value_tile, 0, tile_bytes);
    for (int32_t n = 0; n < count; n++)
        copy_token(kv, head_dim, begin + n, n, size, pairs, key_tile, value_tile);
}

void relayi_pack_f32_ref(const relayi_kv *kv, int32_t head_dim, int32_t begin, int32_t count,
                         void *key_tile, void *value_tile) {
    pack(kv, head_dim, begin, count, 4, 0, key_tile, value_tile);
}

void relayi_pack_f16_ref(const relayi_kv *kv, int32_t head_dim, int32_t begin, int32_t count,
                         void *key_tile, void *value_tile) {
    pack(kv, head_dim, begin, count, 2, 0, key_tile, value_tile);
}

void relayi_pack_bf16_ref(const relayi_kv *kv, int32_t head_dim, int32_t begin, int32_t count,
                          void *key_tile, void *value_tile) {
    pack(kv, head_dim, begin, count, 2, 1, key_tile, value_tile);
}
