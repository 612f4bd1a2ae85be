/* The small kernels: packing and conversions bit by bit, finishing within float32. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "check_data.h"
#include "device_internal.h"
#include "kernel_list.h"

static bool lacks(chk *c, uint32_t needed, const char *name) {
    if ((c->device[1]->flags & needed) == needed) return false;
    chk_skip(c, "%s: not on this processor, or above RELAY_CPU", name);
    return true;
}

/* ---- packing ------------------------------------------------------------- */

static const relay_dtype dtype_of[RELAYI_NUM_DT] = {[RELAYI_DT_F32] = RELAY_F32, [RELAYI_DT_F16] = RELAY_F16,
                                                    [RELAYI_DT_BF16] = RELAY_BF16};

typedef struct pack_case {
    int32_t dim, begin, count, block_size; /* block_size 0: one tensor */
} pack_case;

typedef struct pack_source {
    chk_buffer key, value;
    int32_t blocks[256];
    relayi_kv kv;
} pack_source;

static bool make_source(const pack_case *k, size_t size, chk_rng *rng, pack_source *s) {
    int32_t tokens = k->begin + k->count, per_block = k->block_size ? k->block_size : tokens;
    int32_t num_blocks = (tokens + per_block - 1) / per_block;
    s->kv = (relayi_kv){.block_size = per_block, .key_token_stride = k->dim + 3, .value_token_stride = k->dim + 16,
                        .block_table = k->block_size ? s->blocks : NULL};
    s->kv.key_block_stride = s->kv.key_token_stride * per_block;
    s->kv.value_block_stride = s->kv.value_token_stride * per_block;
    for (int32_t b = 0; b < num_blocks; b++) s->blocks[b] = num_blocks - 1 - b;
    /* the last token in memory ends at the guard page */
    size_t key = (size_t)((num_blocks * (int64_t)per_block - 1) * s->kv.key_token_stride + k->dim) * size;
    size_t value = (size_t)((num_blocks * (int64_t)per_block - 1) * s->kv.value_token_stride + k->dim) * size;
    if (!chk_buffer_make(&s->key, key, size) || !chk_buffer_make(&s->value, value, size)) return false;
    for (size_t i = 0; i < key; i++) ((unsigned char *)s->key.data)[i] = (unsigned char)chk_next(rng);
    for (size_t i = 0; i < value; i++) ((unsigned char *)s->value.data)[i] = (unsigned char)chk_next(rng);
    s->kv.key = s->key.data;
    s->kv.value = s->value.data;
    return true;
}

/* The layout as packed.h draws it, spelt out: [D][64] or [D/2][64][2] for K; blocks of up to 64
 * elements, [64][w] or [32][w][2], for V. */
static int64_t key_place(bool pairs, int32_t n, int32_t d) {
    return pairs ? (d / 2) * 128 + n * 2 + (d & 1) : d * 64 + n;
}

static int64_t value_place(bool pairs, int32_t dim, int32_t n, int32_t d) {
    int32_t block = d / 64, w = dim - 64 * block > 64 ? 64 : dim - 64 * block, in = d - 64 * block;
    return block * 64 * 64 + (pairs ? (n / 2) * w * 2 + in * 2 + (n & 1) : n * w + in);
}

static void pack_plainly(const pack_case *k, const pack_source *s, size_t size, bool pairs, char *key, char *value) {
    const relayi_kv *kv = &s->kv;
    memset(key, 0, (size_t)(64 * k->dim) * size);
    memset(value, 0, (size_t)(64 * k->dim) * size);
    for (int32_t n = 0; n < k->count; n++) {
        int32_t token = k->begin + n;
        int64_t block = kv->block_table ? s->blocks[token / kv->block_size] : 0;
        int64_t in = kv->block_table ? token % kv->block_size : token;
        const char *from_key = (const char *)kv->key + (block * kv->key_block_stride + in * kv->key_token_stride) * (int64_t)size;
        const char *from_value =
            (const char *)kv->value + (block * kv->value_block_stride + in * kv->value_token_stride) * (int64_t)size;
        for (int32_t d = 0; d < k->dim; d++) {
            memcpy(key + key_place(pairs, n, d) * (int64_t)size, from_key + d * (int64_t)size, size);
            memcpy(value + value_place(pairs, k->dim, n, d) * (int64_t)size, from_value + d * (int64_t)size, size);
        }
    }
}

static void check_pack_case(chk *c, relayi_pack_fn *pack, int dt, const pack_case *k, chk_rng *rng) {
    size_t size = relay_dtype_size(dtype_of[dt]), bytes = (size_t)(64 * k->dim) * size;
    static pack_source source;
    chk_buffer key = {0}, value = {0};
    char *want_key = malloc(bytes), *want_value = malloc(bytes);
    memset(&source, 0, sizeof source);
    if (want_key != NULL && want_value != NULL && make_source(k, size, rng, &source) && chk_buffer_make(&key, bytes, 64) &&
        chk_buffer_make(&value, bytes, 64)) {
        pack_plainly(k, &source, size, dt == RELAYI_DT_BF16, want_key, want_value);
        pack(&source.kv, k->dim, k->begin, k->count, key.data, value.data);
        if (memcmp(want_key, key.data, bytes) != 0) chk_fail(c, "packed keys differ");
        if (memcmp(want_value, value.data, bytes) != 0) chk_fail(c, "packed values differ");
        if (!chk_buffer_intact(&key) || !chk_buffer_intact(&value)) chk_fail(c, "something beside a tile was written");
    } else {
        chk_fail(c, "no memory for the case");
    }
    chk_buffer_free(&source.key);
    chk_buffer_free(&source.value);
    chk_buffer_free(&key);
    chk_buffer_free(&value);
    free(want_key);
    free(want_value);
}

static void check_pack(chk *c, const char *name, relayi_pack_fn *pack, int dt, uint32_t flags) {
    static const int32_t dims[] = {8, 16, 40, 64, 80, 96, 112, 128, 192, 256}, counts[] = {1, 2, 15, 31, 32, 33, 63, 64};
    static const int32_t block_sizes[] = {0, 1, 7, 16, 32};
    if (lacks(c, flags, name)) return;
    chk_rng rng = chk_rng_at(c->seed, 800);
    for (int i = 0; i < 80; i++) {
        pack_case k = {.dim = dims[i % 10], .count = counts[i / 10], .begin = 64 * (i % 3), .block_size = block_sizes[i % 5]};
        if (i / 10 % 2) k.block_size = block_sizes[(i + 2) % 5];
        if (!chk_begin(c, "%s: %d tokens from %d x %d, block %d", name, k.count, k.begin, k.dim, k.block_size)) continue;
        check_pack_case(c, pack, dt, &k, &rng);
        chk_end(c);
    }
}

/* ---- finishing ----------------------------------------------------------- */

enum { MAX_PARTS = 7 };

typedef struct finish_case {
    int32_t parts, dim, kind; /* kind 0: near, 1: far apart, 2: some empty, 3: all empty, 4: NaN,
                                 5: infinite values, 6: what an infinite score leaves */
    int64_t acc_stride, stat_stride;
    bool sink, wants_lse;
} finish_case;

typedef struct finish_data {
    chk_buffer acc, max, sum;
    float sink;
} finish_data;

static bool make_finish(const finish_case *k, chk_rng *rng, finish_data *f) {
    int64_t accs = (k->parts - 1) * k->acc_stride + k->dim, stats = (k->parts - 1) * k->stat_stride + 1;
    if (!chk_buffer_make(&f->acc, (size_t)accs * 4, 64) || !chk_buffer_make(&f->max, (size_t)stats * 4, 4) ||
        !chk_buffer_make(&f->sum, (size_t)stats * 4, 4))
        return false;
    chk_poison(f->acc.data, RELAY_F32, accs);
    chk_poison(f->max.data, RELAY_F32, stats);
    chk_poison(f->sum.data, RELAY_F32, stats);
    f->sink = (float)chk_uniform(rng, -4, 4);
    for (int32_t i = 0; i < k->parts; i++) {
        bool empty = k->kind == 3 || (k->kind == 2 && chk_chance(rng, 50));
        float *acc = (float *)f->acc.data + i * k->acc_stride;
        double max = chk_uniform(rng, -5, 5) - (k->kind == 1 && i % 2 ? (i % 4 == 1 ? 100 : 1e4) : 0);
        ((float *)f->max.data)[i * k->stat_stride] = empty ? -INFINITY : (float)max;
        ((float *)f->sum.data)[i * k->stat_stride] = empty ? 0.0f : (float)chk_uniform(rng, 1, 200);
        for (int32_t d = 0; d < k->dim; d++) acc[d] = empty ? 0.0f : (float)chk_uniform(rng, -50, 50);
        if (k->kind == 4 && i == k->parts / 2) {
            for (int32_t d = 0; d < k->dim; d++) acc[d] = NAN;
            if (chk_chance(rng, 50)) ((float *)f->sum.data)[i * k->stat_stride] = NAN;
        }
        for (int32_t d = 0; k->kind == 5 && d < k->dim; d++)
            if (chk_chance(rng, 10)) acc[d] = chk_chance(rng, 50) ? INFINITY : -INFINITY;
        if (k->kind == 6 && i == k->parts / 2) {
            ((float *)f->max.data)[i * k->stat_stride] = INFINITY;
            ((float *)f->sum.data)[i * k->stat_stride] = NAN;
        }
    }
    return true;
}

static void expect_finish(const finish_case *k, const finish_data *f, chk_result *want) {
    const float *acc = f->acc.data, *max = f->max.data, *sum = f->sum.data;
    double top = k->sink ? (double)f->sink : -INFINITY, denominator = 0;
    for (int32_t i = 0; i < k->parts; i++) top = fmax(top, max[i * k->stat_stride]);
    want->lse[0] = top;
    if (top == -INFINITY) return;
    if (k->sink) denominator = exp((double)f->sink - top);
    for (int32_t i = 0; i < k->parts; i++) {
        double weight = exp(max[i * k->stat_stride] - top);
        denominator += weight * sum[i * k->stat_stride];
        for (int32_t d = 0; d < k->dim; d++) {
            want->out[d] += weight * acc[i * k->acc_stride + d];
            want->spread[d] += weight * fabs(acc[i * k->acc_stride + d]);
        }
    }
    for (int32_t d = 0; d < k->dim; d++) {
        want->out[d] /= denominator;
        want->spread[d] /= denominator;
    }
    want->lse[0] = top + log(denominator);
}

static void check_finish_case(chk *c, relayi_finish_fn *finish, const finish_case *k, chk_rng *rng) {
    finish_data f = {.sink = 0};
    chk_buffer out = {0};
    chk_result want = {0}, got = {0};
    float lse = -7;
    if (make_finish(k, rng, &f) && chk_buffer_make(&out, (size_t)k->dim * 4, 64) &&
        chk_result_make(&want, 1, 1, k->dim, true) && chk_result_make(&got, 1, 1, k->dim, false)) {
        expect_finish(k, &f, &want);
        finish(k->parts, k->dim, f.acc.data, k->acc_stride, f.max.data, f.sum.data, k->stat_stride,
               k->sink ? &f.sink : NULL, out.data, k->wants_lse ? &lse : NULL);
        for (int32_t d = 0; d < k->dim; d++) got.out[d] = ((const float *)out.data)[d];
        got.lse[0] = k->wants_lse ? (double)lse : want.lse[0];
        chk_compare(c, &want, &got, chk_tolerance_for(c, RELAY_F32, RELAY_F32));
        if (!chk_buffer_intact(&out)) chk_fail(c, "something beside the output was written");
    } else {
        chk_fail(c, "no memory for the case");
    }
    chk_buffer_free(&f.acc);
    chk_buffer_free(&f.max);
    chk_buffer_free(&f.sum);
    chk_buffer_free(&out);
    chk_result_free(&want);
    chk_result_free(&got);
}

static void check_finish(chk *c, const char *isa, relayi_finish_fn *finish) {
    static const int32_t dims[] = {8, 16, 40, 64, 72, 80, 96, 112, 128, 192, 256};
    chk_rng rng = chk_rng_at(c->seed, 801);
    for (int32_t i = 0; i < 154; i++) {
        finish_case k = {.parts = 1 + i % MAX_PARTS, .dim = dims[i % 11], .kind = i / 7 % 7, .sink = chk_chance(&rng, 40),
                         .wants_lse = chk_chance(&rng, 80), .stat_stride = chk_between(&rng, 1, 9)};
        k.acc_stride = k.dim * chk_between(&rng, 1, 3);
        if (!chk_begin(c, "relayi_finish_%s %d: %d parts x %d, kind %d%s%s", isa, i, k.parts, k.dim, k.kind,
                       k.sink ? ", sink" : "", k.wants_lse ? "" : ", no lse"))
            continue;
        check_finish_case(c, finish, &k, &rng);
        chk_end(c);
    }
}

/* ---- conversions --------------------------------------------------------- */

/* All 65536 numbers, in runs of every length up to 70, ending at a guard page. */
static void check_widen(chk *c, const char *isa, const char *name, relay_dtype from, relayi_widen_fn *widen) {
    if (!chk_begin(c, "relayi_%s_%s: every number", name, isa)) return;
    for (int32_t first = 0, n = 0; first < 65536 && !c->bad; first += n, n = (n + 1) % 71) {
        chk_buffer in, out;
        int32_t count = n < 65536 - first ? n : 65536 - first;
        if (!chk_buffer_make(&in, (size_t)count * 2, 2) || !chk_buffer_make(&out, (size_t)count * 4, 4)) break;
        for (int32_t i = 0; i < count; i++) ((uint16_t *)in.data)[i] = (uint16_t)(first + i);
        widen(in.data, out.data, count);
        for (int32_t i = 0; i < count && !c->bad; i++) {
            float want = (float)chk_load(in.data, from, i), got = ((const float *)out.data)[i];
            if (memcmp(&want, &got, sizeof want) != 0 && !(isnan(want) && isnan(got)))
                chk_fail(c, "0x%04x: expected %.9g, got %.9g", (unsigned)(first + i), (double)want, (double)got);
        }
        if (!chk_buffer_intact(&out)) chk_fail(c, "something beside the output was written");
        chk_buffer_free(&in);
        chk_buffer_free(&out);
    }
    chk_end(c);
}

/* Random bits, and what lies at and beside the middle between two 16-bit numbers. */
static float draw_float(chk_rng *rng, relay_dtype to) {
    uint32_t bits = (uint32_t)chk_next(rng);
    uint16_t half = (uint16_t)chk_next(rng);
    float value;
    if (chk_chance(rng, 50)) {
        float below = (float)chk_load(&half, to, 0);
        half++;
        value = (float)((below + chk_load(&half, to, 0)) / 2);
        memcpy(&bits, &value, sizeof bits);
        bits += (uint32_t)chk_between(rng, -1, 1);
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void check_narrow(chk *c, const char *isa, const char *name, relay_dtype to, relayi_narrow_fn *narrow) {
    if (!chk_begin(c, "relayi_%s_%s: random numbers and ties", name, isa)) return;
    chk_rng rng = chk_rng_at(c->seed, 802 + (uint64_t)to);
    for (int32_t round = 0; round < (c->quick ? 300 : 3000) && !c->bad; round++) {
        chk_buffer in, out;
        int32_t count = round % 71;
        if (!chk_buffer_make(&in, (size_t)count * 4, 4) || !chk_buffer_make(&out, (size_t)count * 2, 2)) break;
        for (int32_t i = 0; i < count; i++) ((float *)in.data)[i] = draw_float(&rng, to);
        narrow(in.data, out.data, count);
        for (int32_t i = 0; i < count && !c->bad; i++) {
            float value = ((const float *)in.data)[i];
            uint16_t want, got = ((const uint16_t *)out.data)[i];
            chk_store(&want, to, 0, value);
            if (want != got && !(isnan(value) && isnan(chk_load(&got, to, 0))))
                chk_fail(c, "%a: expected 0x%04x, got 0x%04x", (double)value, want, got);
        }
        if (!chk_buffer_intact(&out)) chk_fail(c, "something beside the output was written");
        chk_buffer_free(&in);
        chk_buffer_free(&out);
    }
    chk_end(c);
}

void chk_states(chk *c) {
#define CHECK_PACK(name, dt, flags) check_pack(c, "relayi_pack_" #name, relayi_pack_##name, dt, flags);
#define CHECK_STATE(isa, flags)                                                           \
    if (!lacks(c, flags, "finish and conversions, " #isa)) {                              \
        check_widen(c, #isa, "bf16_to_f32", RELAY_BF16, relayi_bf16_to_f32_##isa);        \
        check_widen(c, #isa, "f16_to_f32", RELAY_F16, relayi_f16_to_f32_##isa);           \
        check_narrow(c, #isa, "f32_to_bf16", RELAY_BF16, relayi_f32_to_bf16_##isa);       \
        check_narrow(c, #isa, "f32_to_f16", RELAY_F16, relayi_f32_to_f16_##isa);          \
        check_finish(c, #isa, relayi_finish_##isa);                                       \
    }
    RELAYI_PACK_LIST(CHECK_PACK)
    RELAYI_STATE_LIST(CHECK_STATE)
#undef CHECK_PACK
#undef CHECK_STATE
}
