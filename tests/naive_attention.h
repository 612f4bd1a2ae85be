/* Attention in plain C over f32 caches, for tests of the model without the library: one sequence. */
#ifndef RELAY_NAIVE_ATTENTION_H
#define RELAY_NAIVE_ATTENTION_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"

typedef struct naive_cache {
    const eng_model_config *config;
    int32_t capacity;
    float *keys, *values; /* [layers][capacity][kv_heads][head_dim] */
    double *scores;       /* [capacity] */
} naive_cache;

static bool naive_cache_init(naive_cache *cache, const eng_model_config *config, int32_t capacity) {
    size_t count = (size_t)config->layers * (size_t)capacity * (size_t)config->kv_heads * (size_t)config->head_dim;
    cache->config = config;
    cache->capacity = capacity;
    cache->keys = calloc(count, sizeof(float));
    cache->values = calloc(count, sizeof(float));
    cache->scores = malloc((size_t)capacity * sizeof(double));
    return cache->keys && cache->values && cache->scores;
}

static void naive_cache_free(naive_cache *cache) {
    free(cache->keys);
    free(cache->values);
    free(cache->scores);
}

static double naive_score(const eng_model_config *c, const float *q, const float *k) {
    double dot = 0;
    for (int32_t d = 0; d < c->head_dim; d++) dot += (double)q[d] * k[d];
    dot *= c->attention_scale;
    return c->attention_soft_cap > 0 ? c->attention_soft_cap * tanh(dot / c->attention_soft_cap) : dot;
}

/* One query head at `position` over the keys of its kv head, `stride` numbers apart. */
static void naive_head(const naive_cache *cache, int32_t first, int32_t position, int64_t stride, const float *q,
                       const float *keys, const float *values, float *out) {
    const eng_model_config *c = cache->config;
    double top = -INFINITY, sum = 0, acc[256] = {0};
    for (int32_t t = first; t <= position; t++) {
        cache->scores[t] = naive_score(c, q, keys + t * stride);
        top = cache->scores[t] > top ? cache->scores[t] : top;
    }
    for (int32_t t = first; t <= position; t++) {
        double weight = exp(cache->scores[t] - top);
        sum += weight;
        for (int32_t d = 0; d < c->head_dim; d++) acc[d] += weight * values[t * stride + d];
    }
    for (int32_t d = 0; d < c->head_dim; d++) out[d] = (float)(acc[d] / sum);
}

static bool naive_attend(void *user, int32_t layer, const eng_attend_io *io, eng_error *err) {
    naive_cache *cache = user;
    const eng_model_config *c = cache->config;
    const int64_t stride = (int64_t)c->kv_heads * c->head_dim, base = (int64_t)layer * cache->capacity * stride;
    for (int32_t r = 0; r < io->rows; r++) {
        if (io->positions[r] >= cache->capacity) return eng_fail(err, "naive attention: the cache is full");
        memcpy(cache->keys + base + io->positions[r] * stride, io->k + r * stride, (size_t)stride * sizeof(float));
        memcpy(cache->values + base + io->positions[r] * stride, io->v + r * stride, (size_t)stride * sizeof(float));
    }
    const int32_t window = eng_layer_window(c, layer), group = c->heads / c->kv_heads;
    for (int32_t r = 0; r < io->rows; r++)
        for (int32_t h = 0; h < c->heads; h++) {
            int32_t position = io->positions[r];
            int32_t first = window > 0 && position >= window ? position - window + 1 : 0;
            int64_t kv = base + (int64_t)(h / group) * c->head_dim, at = ((int64_t)r * c->heads + h) * c->head_dim;
            naive_head(cache, first, position, stride, io->q + at, cache->keys + kv, cache->values + kv, io->out + at);
        }
    return true;
}

#endif
