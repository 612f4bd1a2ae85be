/* Whole problems through the interface: one thing varied at a time, then drawn at random. */
#include <stdio.h>

#include "check_world.h"

static const relay_dtype dtypes[] = {RELAY_F32, RELAY_F16, RELAY_BF16};
static const relay_kv_layout layouts[] = {RELAY_KV_PAGED, RELAY_KV_CONTIGUOUS, RELAY_KV_PACKED};
enum { NUM_DTYPES = 3, NUM_LAYOUTS = 3 };

static uint64_t case_seed(const chk *c, const char *group, int64_t index) {
    uint64_t hash = c->seed;
    for (const char *at = group; *at != '\0'; at++) hash = chk_mix(hash, (uint64_t)*at);
    return chk_mix(hash, (uint64_t)index);
}

static void check_one(chk *c, const char *group, const chk_case *k) {
    char text[400];
    if (!chk_begin(c, "%s: %s", group, chk_case_text(k, text, sizeof text))) return;
    chk_case_check(c, k);
    chk_end(c);
}

/* Requests 0-1 stand on a prompt and a nested one, 2 on the outer, 3-4 on another prompt, 5 on
 * none; decode steps, chunks and a whole prefill. */
static chk_case standard(const chk *c, const char *group, int64_t index, relay_kv_layout prompt,
                         relay_kv_layout own) {
    chk_case k = chk_case_defaults(case_seed(c, group, index));
    int32_t a = chk_add_segment(&k, -1, 0, 3, prompt, 70);
    chk_add_segment(&k, a, 0, 2, prompt, 33);
    chk_add_segment(&k, -1, 3, 2, prompt, 65);
    chk_add_request(&k, 1, own, 1);
    chk_add_request(&k, 1, own, 40);
    chk_add_request(&k, 5, own, 9);
    chk_add_request(&k, 1, own, 64);
    chk_add_request(&k, 3, own, 66);
    chk_add_request(&k, 17, own, 17);
    k.spare_rows = (int32_t)(index % 2);
    k.threads = 1 + (int32_t)(index / 2 % 2);
    return k;
}

static void check_dims(chk *c) {
    static const int32_t dims[] = {8, 40, 64, 80, 96, 112, 128, 192, 256};
    int64_t index = 0;
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
        for (int dt = 0; dt < NUM_DTYPES; dt++) {
            for (int l = 0; l < NUM_LAYOUTS; l++, index++) {
                if (c->quick && index % 4 != 0) continue;
                chk_case k = standard(c, "head dim", index, layouts[l], layouts[(l + (int)i) % NUM_LAYOUTS]);
                k.attention.head_dim = dims[i];
                k.attention.kv_dtype = dtypes[dt];
                /* a bf16 query is what lets a kernel round queries */
                if (i % 2 == 0) k.attention.query_dtype = dtypes[dt];
                check_one(c, "head dim", &k);
            }
        }
    }
}

static void check_groups(chk *c) {
    static const int32_t heads[][2] = {{2, 2}, {4, 2}, {6, 2}, {8, 2}, {14, 2}, {16, 2}, {8, 1}, {5, 1}, {1, 1}, {12, 4}};
    int64_t index = 0;
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        for (int dt = 0; dt < NUM_DTYPES; dt++, index++) {
            if (c->quick && index % 3 != 0) continue;
            chk_case k = standard(c, "head group", index, layouts[index % 3], layouts[index / 3 % 3]);
            k.attention.num_heads = heads[i][0];
            k.attention.num_kv_heads = heads[i][1];
            k.attention.kv_dtype = k.attention.query_dtype = dtypes[dt];
            check_one(c, "head group", &k);
        }
    }
}

static void check_dtypes(chk *c) {
    for (int64_t index = 0; index < 27; index++) {
        if (c->quick && index % 3 != 0) continue;
        chk_case k = standard(c, "dtypes", index, layouts[index % 2 ? 2 : 0], RELAY_KV_PAGED);
        k.attention.query_dtype = dtypes[index % 3];
        k.attention.kv_dtype = dtypes[index / 3 % 3];
        k.attention.output_dtype = dtypes[index / 9];
        k.attention.head_dim = 128;
        check_one(c, "dtypes", &k);
    }
}

/* The five features, alone and together. */
static void set_features(relay_attention *a, int32_t which, int32_t window) {
    if (which & 1) a->logit_soft_cap = 3.0f;
    if (which & 2) a->sliding_window = window;
    if (which & 4) a->num_sink_tokens = 4;
    if (which & 8) a->use_alibi = 1;
    if (which & 16) a->use_sinks = 1;
}

static void check_features(chk *c) {
    /* one token, inside the own part, at and across the border of prompt and own part, all */
    static const int32_t windows[] = {1, 8, 64, 70, 103, 1000};
    int64_t index = 0;
    for (int32_t which = 0; which < 32; which++) {
        for (int dt = 0; dt < NUM_DTYPES; dt++, index++) {
            if (c->quick && index % 5 != 0) continue;
            chk_case k = standard(c, "features", index, layouts[index % 3], layouts[index / 3 % 3]);
            k.attention.kv_dtype = k.attention.query_dtype = dtypes[dt];
            set_features(&k.attention, which, windows[index % 6]);
            k.kind = index % 7 == 6 ? CHK_NAN : CHK_UNIFORM;
            check_one(c, "features", &k);
        }
    }
}

static void check_windows(chk *c) {
    static const int32_t windows[] = {1, 2, 7, 63, 64, 65, 100, 135, 136, 200};
    for (int64_t index = 0; index < 40; index++) {
        if (c->quick && index % 5 != 0) continue;
        chk_case k = standard(c, "window", index, layouts[index % 3], layouts[index / 3 % 3]);
        k.attention.sliding_window = windows[index % 10];
        k.attention.num_sink_tokens = index / 10 % 2 ? (int32_t)(index % 4) * 36 : 0;
        k.attention.kv_dtype = k.attention.query_dtype = index / 20 ? RELAY_BF16 : RELAY_F32;
        k.strategy = (relay_strategy)(1 + index % 2);
        check_one(c, "window", &k);
    }
}

static void check_kinds(chk *c) {
    int64_t index = 0;
    for (int kind = 0; kind < CHK_NUM_KINDS; kind++) {
        for (int dt = 0; dt < NUM_DTYPES; dt++) {
            for (int l = 0; l < NUM_LAYOUTS; l++, index++) {
                if (c->quick && index % 4 != 0) continue;
                chk_case k = standard(c, "data", index, layouts[l], layouts[(l + kind) % 3]);
                k.kind = (chk_kind)kind;
                k.attention.kv_dtype = dtypes[dt];
                if (kind % 2) k.attention.query_dtype = dtypes[dt];
                k.strategy = (relay_strategy)(index % 3);
                check_one(c, "data", &k);
            }
        }
    }
}

static void check_forms(chk *c) {
    for (int64_t index = 0; index < 27; index++) {
        if (c->quick && index % 3 != 0) continue;
        chk_case k = standard(c, "strides", index, layouts[index % 2], layouts[index / 2 % 2]);
        k.query_form = (chk_form)(index % 3);
        k.key_form = (chk_form)(index / 3 % 3);
        k.value_form = (chk_form)(index / 2 % 3);
        k.output_form = (chk_form)(index / 9);
        k.lse = (chk_lse)(index % CHK_NUM_LSE);
        k.block_size = (const int32_t[]){1, 7, 16, 32}[index / 4 % 4];
        k.attention.kv_dtype = k.attention.output_dtype = dtypes[index % 3];
        k.attention.query_dtype = dtypes[index / 2 % 3];
        check_one(c, "strides", &k);
    }
}

/* A prompt of every awkward length, read by rows of every awkward number. */
static void check_sizes(chk *c) {
    static const int32_t lengths[] = {0, 1, 2, 31, 63, 64, 65, 97, 127, 128, 129, 251, 320};
    static const int32_t rows[] = {1, 5, 6, 7, 11, 12, 13, 16, 17, 31, 64, 65, 1, 23};
    for (int64_t index = 0; index < 78; index++) {
        if (c->quick && index % 6 != 0) continue;
        chk_case k = chk_case_defaults(case_seed(c, "size", index));
        int32_t length = lengths[index % 13];
        chk_add_segment(&k, -1, 0, 2, layouts[index / 13 % 3], length);
        chk_add_request(&k, rows[index % 14], layouts[index / 2 % 3], rows[index % 14] + lengths[index / 2 % 13]);
        chk_add_request(&k, 1, RELAY_KV_PAGED, lengths[index / 3 % 13] + 1);
        k.attention.kv_dtype = k.attention.query_dtype = dtypes[index / 13 % 3];
        k.block_size = (const int32_t[]){1, 7, 16, 32}[index % 4];
        check_one(c, "size", &k);
    }
}

/* More rows than one kernel call takes, and prompts long enough to be cut among threads. */
static void check_large(chk *c) {
    for (int64_t index = 0; index < (c->quick ? 1 : 6); index++) {
        chk_case k = chk_case_defaults(case_seed(c, "large", index));
        chk_add_segment(&k, -1, 0, 20, index % 2 ? RELAY_KV_PACKED : RELAY_KV_PAGED, 1500 + (int32_t)index);
        for (int32_t r = 0; r < 20; r++)
            chk_add_request(&k, r == 7 ? 40 : 1, RELAY_KV_PAGED, r == 7 ? 40 : 1 + 13 * r);
        k.attention.num_heads = 16;
        k.threads = CHK_MAX_THREADS;
        k.attention.kv_dtype = k.attention.query_dtype = dtypes[index % 3];
        k.strategy = (relay_strategy)(index % 3);
        if (index >= 3) k.attention.sliding_window = 700;
        check_one(c, "large", &k);
    }
}

static void check_zero(chk *c, const char *what, chk_case k, int64_t index) {
    k.attention.kv_dtype = dtypes[index % 3];
    check_one(c, what, &k);
}

static void check_zeros(chk *c) {
    for (int64_t index = 0; index < 9; index++) {
        relay_kv_layout layout = layouts[index / 3];
        check_zero(c, "zero requests", chk_case_defaults(case_seed(c, "zero", index)), index);
        chk_case k = standard(c, "zero", index, layout, layout);
        for (int32_t s = 0; s < k.num_segments; s++) k.segments[s].kv.length = 0;
        check_zero(c, "zero-length prompts", k, index);
        k.segments[1].kv.length = 20;
        check_zero(c, "a prompt on a zero-length prompt", k, index);
        k = standard(c, "zero", index, layout, layout);
        for (int32_t r = 0; r < k.num_requests; r++) k.requests[r].rows = 0;
        check_zero(c, "zero query rows", k, index);
        for (int32_t r = 0; r < k.num_requests; r++) k.requests[r].own.length = 0;
        check_zero(c, "zero rows and zero own tokens", k, index);
        k.requests[1] = (chk_request){.rows = 2, .own = {.layout = layout, .length = 2, .content = 5}};
        check_zero(c, "zero rows but for one request", k, index);
    }
}

/* ---- at random ----------------------------------------------------------- */

static int32_t random_length(chk_rng *rng, int32_t most) {
    static const int32_t awkward[] = {0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 193};
    int32_t length = chk_chance(rng, 40) ? CHK_PICK(rng, awkward) : chk_between(rng, 0, most);
    return length < most ? length : most;
}

static chk_span random_span(chk_rng *rng, int32_t length, uint64_t content) {
    chk_span span = {.layout = CHK_PICK(rng, layouts), .length = length, .content = content};
    if (chk_chance(rng, 50)) span.extra = chk_between(rng, 0, 70);
    return span;
}

/* Segments within [first, last) of the order, standing on `parent`. */
static void random_segments(chk_rng *rng, chk_case *k, int32_t parent, int32_t first, int32_t last, int32_t depth) {
    while (first < last && k->num_segments < CHK_MAX_SEGMENTS) {
        int32_t count = chk_between(rng, 1, last - first);
        if (chk_chance(rng, depth == 0 ? 80 : 60)) {
            int32_t made = chk_add_segment(k, parent, first, count, RELAY_KV_PAGED, 0);
            k->segments[made].kv = random_span(rng, random_length(rng, depth == 0 ? 320 : 100), 1000 + (uint64_t)made);
            if (depth < 3) random_segments(rng, k, made, first, first + count, depth + 1);
        }
        first += count;
    }
}

static void random_requests(chk_rng *rng, chk_case *k) {
    int32_t count = chk_chance(rng, 4) ? 0 : chk_between(rng, 1, 9), most_rows = chk_chance(rng, 40) ? 1 : 24;
    for (int32_t r = 0; r < count; r++) {
        int32_t rows = chk_chance(rng, 5) ? 0 : chk_chance(rng, 50) ? 1 : chk_between(rng, 1, most_rows);
        int32_t made = chk_add_request(k, rows, RELAY_KV_PAGED, 0);
        k->requests[made].own = random_span(rng, rows + (chk_chance(rng, 25) ? 0 : random_length(rng, 150)), (uint64_t)r);
    }
    k->ordered = chk_chance(rng, 50);
    if (k->ordered) chk_shuffle(rng, k->order, count);
}

static void random_attention(chk_rng *rng, relay_attention *a) {
    static const int32_t dims[] = {64, 64, 80, 96, 112, 128, 128, 192, 256, 8, 40}, groups[] = {1, 2, 3, 4, 7, 8};
    a->head_dim = CHK_PICK(rng, dims);
    a->num_kv_heads = chk_between(rng, 1, 3);
    a->num_heads = a->num_kv_heads * CHK_PICK(rng, groups);
    a->query_dtype = CHK_PICK(rng, dtypes);
    a->kv_dtype = chk_chance(rng, 50) ? a->query_dtype : CHK_PICK(rng, dtypes);
    a->output_dtype = CHK_PICK(rng, dtypes);
    if (chk_chance(rng, 25)) a->softmax_scale = (float)chk_uniform(rng, 0.01, 0.3);
    set_features(a, chk_between(rng, 0, 31) & chk_between(rng, 0, 31), 1 + random_length(rng, 300));
    if (a->num_sink_tokens > 0) a->num_sink_tokens = 1 + random_length(rng, 90);
    if (a->logit_soft_cap > 0) a->logit_soft_cap = (float)chk_uniform(rng, 0.5, 50);
}

static chk_case random_case(const chk *c, int64_t index) {
    chk_case k = chk_case_defaults(case_seed(c, "run", index));
    chk_rng rng = chk_rng_at(k.seed, 1);
    static const int32_t block_sizes[] = {1, 7, 16, 16, 32};
    random_requests(&rng, &k);
    random_segments(&rng, &k, -1, 0, k.num_requests, 0);
    random_attention(&rng, &k.attention);
    k.kind = chk_chance(&rng, 50) ? CHK_UNIFORM : (chk_kind)chk_between(&rng, 0, CHK_NUM_KINDS - 1);
    k.strategy = (relay_strategy)chk_between(&rng, 0, 2);
    k.repeatable = chk_chance(&rng, 25);
    k.threads = chk_between(&rng, 1, CHK_MAX_THREADS);
    k.block_size = CHK_PICK(&rng, block_sizes);
    k.spare_rows = chk_between(&rng, 0, 2);
    k.query_form = (chk_form)chk_between(&rng, 0, CHK_NUM_FORMS - 1);
    k.key_form = (chk_form)chk_between(&rng, 0, CHK_NUM_FORMS - 1);
    k.value_form = (chk_form)chk_between(&rng, 0, CHK_NUM_FORMS - 1);
    k.output_form = (chk_form)chk_between(&rng, 0, CHK_NUM_FORMS - 1);
    k.lse = (chk_lse)chk_between(&rng, 0, CHK_NUM_LSE - 1);
    return k;
}

static void check_random(chk *c) {
    for (int32_t index = 0; index < c->random_cases; index++) {
        chk_case k = random_case(c, index);
        char group[32];
        snprintf(group, sizeof group, "run %d", index);
        check_one(c, group, &k);
    }
}

void chk_runs(chk *c) {
    check_dims(c);
    check_groups(c);
    check_dtypes(c);
    check_features(c);
    check_windows(c);
    check_kinds(c);
    check_forms(c);
    check_sizes(c);
    check_large(c);
    check_zeros(c);
    check_random(c);
}
