/* relay_cache_write against what it says: every slot's token at its place, rounded once, and not one
 * other bit of the pools changed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "check_data.h"

typedef struct write_case {
    uint64_t seed;
    int32_t tokens, slots, heads, dim, blocks, block_size, threads;
    relay_dtype from[2], to; /* keys, values; the pools */
    chk_form form[2], pool_form[2];
} write_case;

typedef struct write_world {
    chk_tensor source[2], pool[2];
    void *want[2]; /* the pools' memory as it has to be afterwards */
    chk_buffer slots;
    relay_cache_write_args args;
} write_world;

static const relay_dtype dtypes[] = {RELAY_F32, RELAY_F16, RELAY_BF16};

/* ---- data ---------------------------------------------------------------- */

/* Random bits are numbers of every size, infinities and NaN; then numbers of ordinary size, and what
 * lies in the middle between two 16-bit ones. */
static void fill_source(chk_tensor *source, chk_rng *rng) {
    relay_dtype dtype = source->view.dtype;
    size_t size = relay_dtype_size(dtype);
    for (int64_t i = 0; i < source->elements; i++) {
        uint64_t bits = chk_next(rng);
        int32_t kind = chk_between(rng, 0, 9);
        if (kind < 4) memcpy((char *)source->view.data + (size_t)i * size, &bits, size);
        else if (kind < 7) chk_store(source->view.data, dtype, i, chk_uniform(rng, -4, 4));
        else if (kind < 9) chk_store(source->view.data, dtype, i, (2 * chk_between(rng, 0, 4000) + 1) * 0x1p-9);
        else chk_store(source->view.data, dtype, i, chk_chance(rng, 50) ? INFINITY : -INFINITY);
    }
}

static void fill_bytes(chk_buffer *buffer, chk_rng *rng) {
    for (size_t i = 0; i < buffer->bytes; i++) ((unsigned char *)buffer->data)[i] = (unsigned char)chk_next(rng);
}

/* Different places in random order; some tokens have none. */
static bool draw_slots(const write_case *k, chk_rng *rng, int64_t *slots) {
    int32_t places = k->blocks * k->block_size, *order = malloc((size_t)places * sizeof *order);
    if (order == NULL) return false;
    for (int32_t i = 0; i < places; i++) order[i] = i;
    chk_shuffle(rng, order, places);
    for (int32_t i = 0; i < k->slots; i++) {
        slots[i] = i < places ? order[i] : -1;
        if (chk_chance(rng, 15)) slots[i] = chk_chance(rng, 50) ? -1 : INT64_MIN + i;
    }
    free(order);
    return true;
}

static bool make_tensors(const write_case *k, write_world *w, chk_rng *rng) {
    const int64_t source[3] = {k->tokens, k->heads, k->dim}, pool[4] = {k->blocks, k->block_size, k->heads, k->dim};
    for (int i = 0; i < 2; i++) {
        if (!chk_tensor_make(&w->source[i], k->from[i], k->form[i], 3, source)) return false;
        if (!chk_tensor_make(&w->pool[i], k->to, k->pool_form[i], 4, pool)) return false;
        fill_source(&w->source[i], rng);
        fill_bytes(&w->pool[i].buffer, rng);
        w->want[i] = malloc(w->pool[i].buffer.bytes + 1);
        if (w->want[i] == NULL) return false;
        memcpy(w->want[i], w->pool[i].buffer.data, w->pool[i].buffer.bytes);
    }
    return true;
}

static bool make_world(const write_case *k, write_world *w) {
    chk_rng rng = chk_rng_at(k->seed, 2);
    memset(w, 0, sizeof *w);
    if (!make_tensors(k, w, &rng)) return false;
    if (!chk_buffer_make(&w->slots, (size_t)k->slots * sizeof(int64_t), sizeof(int64_t))) return false;
    if (!draw_slots(k, &rng, w->slots.data)) return false;
    w->args = relay_cache_write_args_defaults();
    w->args.key = w->source[0].view;
    w->args.value = w->source[1].view;
    w->args.key_pool = w->pool[0].view;
    w->args.value_pool = w->pool[1].view;
    w->args.slot_mapping = w->slots.data;
    w->args.num_slots = k->slots;
    return true;
}

static void free_world(write_world *w) {
    for (int i = 0; i < 2; i++) {
        chk_tensor_free(&w->source[i]);
        chk_tensor_free(&w->pool[i]);
        free(w->want[i]);
    }
    chk_buffer_free(&w->slots);
}

/* ---- expectation --------------------------------------------------------- */

static void expect_element(const chk_tensor *source, int64_t from, const chk_tensor *pool, int64_t to, void *want) {
    relay_dtype have = source->view.dtype, need = pool->view.dtype;
    size_t size = relay_dtype_size(need);
    if (have == need) memcpy((char *)want + (size_t)to * size, (const char *)source->view.data + (size_t)from * size, size);
    else chk_store(want, need, to, chk_load(source->view.data, have, from));
}

static void expect(const write_case *k, write_world *w) {
    const int64_t *slots = w->slots.data;
    for (int which = 0; which < 2; which++) {
        const chk_tensor *source = &w->source[which], *pool = &w->pool[which];
        for (int32_t n = 0; n < k->slots; n++)
            for (int32_t h = 0; slots[n] >= 0 && h < k->heads; h++)
                for (int32_t d = 0; d < k->dim; d++)
                    expect_element(source, chk_tensor_at(&source->view, n, h, d, 0), pool,
                                   chk_tensor_at(&pool->view, slots[n] / k->block_size, slots[n] % k->block_size, h, d),
                                   w->want[which]);
    }
}

/* Bit by bit; a NaN that was converted may be any. */
static void compare_pool(chk *c, const char *name, const chk_tensor *source, const chk_tensor *pool, const void *want) {
    relay_dtype dtype = pool->view.dtype;
    size_t size = relay_dtype_size(dtype);
    bool converted = source->view.dtype != dtype;
    for (int64_t i = 0; i < pool->elements; i++) {
        const char *have = (const char *)pool->view.data + (size_t)i * size, *need = (const char *)want + (size_t)i * size;
        if (memcmp(have, need, size) == 0) continue;
        double a = chk_load(want, dtype, i), b = chk_load(pool->view.data, dtype, i);
        if (converted && isnan(a) && isnan(b)) continue;
        chk_fail(c, "%s: element %lld of memory: expected %.9g, got %.9g", name, (long long)i, a, b);
        return;
    }
}

static void compare_pools(chk *c, const write_world *w) {
    for (int i = 0; i < 2; i++) {
        compare_pool(c, i ? "value_pool" : "key_pool", &w->source[i], &w->pool[i], w->want[i]);
        if (!chk_buffer_intact(&w->pool[i].buffer)) chk_fail(c, "something before or after a pool was written");
        if (!chk_buffer_intact(&w->source[i].buffer)) chk_fail(c, "something before or after a source was written");
    }
    if (!chk_buffer_intact(&w->slots)) chk_fail(c, "something before or after slot_mapping was written");
}

/* ---- calls --------------------------------------------------------------- */

static relay_status write_cache(chk *c, const write_case *k, write_world *w) {
    for (int i = 0; i < 2; i++) chk_buffer_read_only(&w->source[i].buffer, true);
    chk_buffer_read_only(&w->slots, true);
    relay_status status = relay_cache_write(c->device[k->threads], &w->args);
    for (int i = 0; i < 2; i++) chk_buffer_read_only(&w->source[i].buffer, false);
    chk_buffer_read_only(&w->slots, false);
    return status;
}

static void check_written(chk *c, const write_case *k, write_world *w) {
    expect(k, w);
    if (chk_ok(c, "relay_cache_write", write_cache(c, k, w))) compare_pools(c, w);
}

/* A refused call has a reason in the log and has written nothing, not even the slots before. */
static void check_refused(chk *c, const write_case *k, write_world *w, relay_status expected, const char *what) {
    c->log[0] = '\0';
    relay_status status = write_cache(c, k, w);
    if (status != expected)
        chk_fail(c, "%s: expected %s, got %s", what, relay_status_name(expected), relay_status_name(status));
    if (c->log[0] == '\0') chk_fail(c, "%s: refused without a reason", what);
    compare_pools(c, w);
}

static void check_wild_slots(chk *c, const write_case *k, write_world *w) {
    const int64_t places = (int64_t)k->blocks * k->block_size;
    const int64_t wild[] = {places, places + 1, places * 2, INT32_MAX, (int64_t)UINT32_MAX + 1, INT64_MAX};
    int64_t *slots = w->slots.data;
    for (size_t i = 0; i < sizeof wild / sizeof *wild; i++) {
        int64_t at = (int64_t)i % 2 ? k->slots - 1 : (int64_t)i * k->slots / 7, kept = slots[at];
        slots[at] = wild[i];
        check_refused(c, k, w, RELAY_OUT_OF_RANGE, "a slot outside the pool");
        slots[at] = kept;
    }
}

static void check_wrong_tensors(chk *c, const write_case *k, write_world *w) {
    const relay_cache_write_args right = w->args;
    w->args.value_pool.dtype = k->to == RELAY_F16 ? RELAY_BF16 : RELAY_F16;
    check_refused(c, k, w, RELAY_BAD_DTYPE, "pools of two dtypes");
    w->args = right;
    w->args.key.dtype = (relay_dtype)7;
    check_refused(c, k, w, RELAY_BAD_DTYPE, "keys of no dtype");
    w->args = right;
    w->args.value.shape[1]++;
    check_refused(c, k, w, RELAY_BAD_SHAPE, "values of more heads");
    w->args = right;
    w->args.key.shape[0] = k->slots - 1;
    check_refused(c, k, w, RELAY_BAD_SHAPE, "fewer tokens than slots");
    w->args = right;
    w->args.key_pool.stride[3] = 2;
    check_refused(c, k, w, RELAY_BAD_STRIDE, "a pool whose head dimension has gaps");
    w->args = right;
    w->args.value_pool.data = (char *)w->args.key.data + (uintptr_t)w->args.key.data % sizeof(float);
    check_refused(c, k, w, RELAY_OVERLAP, "a pool over the keys");
    w->args = right;
}

/* ---- cases --------------------------------------------------------------- */

static write_case draw_case(const chk *c, int64_t index) {
    static const int32_t dims[] = {1, 8, 31, 64, 80, 128, 255, 256, 257, 300}, sizes[] = {1, 7, 16, 17, 32, 64, 100};
    write_case k = {.seed = chk_mix(c->seed, 600 + (uint64_t)index)};
    chk_rng rng = chk_rng_at(k.seed, 1);
    k.heads = chk_between(&rng, 1, 5);
    k.dim = CHK_PICK(&rng, dims);
    k.block_size = CHK_PICK(&rng, sizes);
    k.blocks = chk_between(&rng, 1, 6);
    k.tokens = chk_between(&rng, 0, 40);
    if (index % 19 == 18) { /* enough for threads */
        k.dim = 256;
        k.heads = 4;
        k.block_size = 16;
        k.blocks = 9;
        k.tokens = 130;
    }
    k.slots = chk_chance(&rng, 50) ? k.tokens : chk_between(&rng, 0, k.tokens);
    k.threads = chk_between(&rng, 1, CHK_MAX_THREADS);
    k.to = dtypes[index % 3];
    k.from[0] = dtypes[index / 3 % 3];
    k.from[1] = chk_chance(&rng, 70) ? k.from[0] : CHK_PICK(&rng, dtypes);
    for (int i = 0; i < 2; i++) {
        k.form[i] = (chk_form)chk_between(&rng, 0, CHK_NUM_FORMS - 1);
        k.pool_form[i] = (chk_form)chk_between(&rng, 0, CHK_NUM_FORMS - 1);
    }
    return k;
}

static bool begin(chk *c, const char *what, int64_t index, const write_case *k) {
    return chk_begin(c, "%s %lld: %d slots of %d tokens x %d x %d, %s and %s to %s, %d blocks of %d, forms %d/%d to %d/%d, "
                     "threads %d", what, (long long)index, k->slots, k->tokens, k->heads, k->dim,
                     relay_dtype_name(k->from[0]), relay_dtype_name(k->from[1]), relay_dtype_name(k->to), k->blocks,
                     k->block_size, (int)k->form[0], (int)k->form[1], (int)k->pool_form[0], (int)k->pool_form[1],
                     k->threads);
}

static void check_case(chk *c, const char *what, int64_t index, write_case k, bool refusals) {
    write_world world;
    if (!begin(c, what, index, &k)) return;
    if (!make_world(&k, &world)) {
        chk_fail(c, "no memory for the case");
    } else if (refusals) {
        check_wild_slots(c, &k, &world);
        check_wrong_tensors(c, &k, &world);
        check_written(c, &k, &world);
    } else {
        check_written(c, &k, &world);
    }
    free_world(&world);
    chk_end(c);
}

void chk_writes(chk *c) {
    for (int64_t index = 0; index < (c->quick ? 40 : 240); index++)
        check_case(c, "cache write", index, draw_case(c, index), false);
    for (int64_t index = 0; index < (c->quick ? 6 : 36); index++) {
        write_case k = draw_case(c, 1000 + index);
        if (k.tokens < 3) k.tokens = 3;
        if (k.dim < 2) k.dim = 2;
        k.slots = k.tokens;
        check_case(c, "cache write refused", index, k, true);
    }
}
