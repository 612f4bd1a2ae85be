/* The scalar reference: computes everything that a run can ask for, one token at a time. */
#include <math.h>
#include <stdbool.h>

#include "half.h"
#include "kernel.h"
#include "ref.h"

static float load(const void *base, int dt, int64_t offset) {
    if (dt == RELAYI_DT_F32) return ((const float *)base)[offset];
    uint16_t half = ((const uint16_t *)base)[offset];
    return dt == RELAYI_DT_BF16 ? relayi_from_bf16(half) : relayi_from_f16(half);
}

/* Where the elements of one token's K (or V) are; element d is at base + offset(d). */
typedef struct token_vector {
    const void *base;
    int64_t origin;     /* strided: element 0 */
    int32_t packed, dt, head_dim, in_tile;
} token_vector;

static token_vector find_token(const void *base, const relayi_kv *kv, int dt, int32_t head_dim,
                               int32_t token, int64_t block_stride, int64_t token_stride) {
    token_vector vector = {.base = base, .packed = kv->packed, .dt = dt, .head_dim = head_dim};
    if (kv->packed) {
        vector.origin = token / RELAYI_TILE * relayi_tile_elements(head_dim);
        vector.in_tile = token % RELAYI_TILE;
    } else {
        int64_t block = kv->block_table ? kv->block_table[token / kv->block_size] : 0;
        int64_t in_block = kv->block_table ? token % kv->block_size : token;
        vector.origin = block * block_stride + in_block * token_stride;
    }
    return vector;
}

static float key_element(const token_vector *key, int32_t d) {
    int64_t offset = key->packed ? relayi_k_offset(key->dt == RELAYI_DT_BF16, key->in_tile, d) : d;
    return load(key->base, key->dt, key->origin + offset);
}

static float value_element(const token_vector *value, int32_t d) {
    int64_t offset = value->packed ? relayi_v_offset(value->dt == RELAYI_DT_BF16, value->head_dim,
                                                     value->in_tile, d)
                                   : d;
    return load(value->base, value->dt, value->origin + offset);
}

static float score(const relayi_attend_args *a, int32_t row, int32_t token, const token_vector *key) {
    const float *query = a->query + (int64_t)row * a->head_dim;
    float dot = 0.0f;
    for (int32_t d = 0; d < a->head_dim; d++) dot += query[d] * key_element(key, d);
    float s = dot * a->scale;
    if (a->soft_cap > 0.0f) s = a->soft_cap * tanhf(s / a->soft_cap);
    if (a->slope) s += a->slope[row] * (float)(token - a->range[row].distance);
    return s;
}

static void add_token(const relayi_attend_args *a, int32_t row, float s, const token_vector *value) {
    if (s == -INFINITY) return;
    float *acc = a->acc + (int64_t)row * a->head_dim;
    if (s > a->max[row]) {
        float shrink = expf(a->max[row] - s); /* 0 for the first token */
        for (int32_t d = 0; d < a->head_dim; d++) acc[d] *= shrink;
        a->sum[row] *= shrink;
        a->max[row] = s;
    }
    float p = expf(s - a->max[row]);
    a->sum[row] += p;
    for (int32_t d = 0; d < a->head_dim; d++) acc[d] += p * value_element(value, d);
}

static void attend(const relayi_attend_args *a, int dt) {
    for (int32_t row = 0; row < a->rows; row++) {
        const relayi_range *range = &a->range[row];
        for (int32_t token = a->begin; token < a->end; token++) {
            bool visible = (range->lo <= token && token < range->hi) || token < range->sinks;
            if (!visible) continue;
            token_vector key = find_token(a->kv.key, &a->kv, dt, a->head_dim, token,
                                          a->kv.key_block_stride, a->kv.key_token_stride);
            token_vector value = find_token(a->kv.value, &a->kv, dt, a->head_dim, token,
                                            a->kv.value_block_stride, a->kv.value_token_stride);
            add_token(a, row, score(a, row, token, &key), &value);
        }
    }
}

void relayi_attend_f32_ref(const relayi_attend_args *args) { attend(args, RELAYI_DT_F32); }
void relayi_attend_f16_ref(const relayi_attend_args *args) { attend(args, RELAYI_DT_F16); }
void relayi_attend_bf16_ref(const relayi_attend_args *args) { attend(args, RELAYI_DT_BF16); }
