/* Every attend, pack and state kernel of the x86 families that this CPU can run against float64:
 * head dims, sizes around tiles, row counts, masks, poisoned memory, guard words, and the promise
 * that a row's bits depend neither on its neighbours nor on how K/V lie in memory. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "cpu.h"
#include "half.h"
#include "kernel_list.h"
#include "test.h"

enum { GUARD = 64, HEADS = 2, BLOCK = 16, MAX_TOKENS = 700 };
static const float guard_word = 123.5f;

typedef struct kernel_row {
    const char *name;
    relayi_attend_fn *attend;
    int dt;
    uint32_t flags;
    int32_t needs_16bit;
    size_t scratch_bytes;
} kernel_row;

#define KERNEL_ROW(name, dt, flags, features, needs, multiple, block, scratch) \
    {#name, relayi_attend_##name, dt, flags, needs, scratch},
static const kernel_row kernels[] = {RELAYI_ATTEND_LIST_X86(KERNEL_ROW){NULL, NULL, 0, 0, 0, 0}};

typedef enum mask { ALL, CAUSAL, WINDOW, SINKS, NOTHING, RAGGED, NUM_MASKS } mask;
typedef enum layout { PACKED, PAGED, CONTIGUOUS, NUM_LAYOUTS } kv_layout;

typedef struct setup {
    int32_t rows, head_dim, tokens, begin;
    mask mask;
    bool soft_cap, alibi;
    float query_size; /* spread of the scores */
    bool poison;      /* tokens that no row sees are NaN */
} setup;

/* One problem, its memory in every layout. */
typedef struct problem {
    setup s;
    int dt;
    float scale, soft_cap;
    float *query, *slope;
    relayi_range *range;
    float *key, *value; /* [tokens][head_dim], already rounded to dt */
    char *pool_key, *pool_value, *flat_key, *flat_value, *packed_key, *packed_value;
    int32_t table[MAX_TOKENS / BLOCK + 9];
} problem;

static uint64_t state = 1;
static uint32_t draw(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}
static float uniform(void) { return (float)(draw() % 65536) / 32768.0f - 1.0f; }

static size_t size_of(int dt) { return dt == RELAYI_DT_F32 ? 4 : 2; }

static float rounded(int dt, float x) {
    if (dt == RELAYI_DT_BF16) return relayi_from_bf16(relayi_to_bf16(x));
    if (dt == RELAYI_DT_F16) return relayi_from_f16(relayi_to_f16(x));
    return x;
}

static void put(int dt, char *base, int64_t index, float x) {
    if (dt == RELAYI_DT_F32) {
        memcpy(base + index * 4, &x, 4);
        return;
    }
    uint16_t half = dt == RELAYI_DT_BF16 ? relayi_to_bf16(x) : relayi_to_f16(x);
    memcpy(base + index * 2, &half, 2);
}

static void *allocate(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (memory == NULL) exit(2);
    return memory;
}

static relayi_range range_of(const setup *s, int32_t row) {
    int32_t position = s->tokens - 1 - (s->rows - 1 - row) / 2; /* two rows a position */
    relayi_range r = {.lo = 0, .hi = s->tokens, .sinks = 0, .distance = position};
    switch (s->mask) {
    case CAUSAL: r.hi = position + 1; break;
    case WINDOW: r.lo = position - 37; r.hi = position + 1; break;
    case SINKS: r.lo = position - 70; r.hi = position + 1; r.sinks = 5; break;
    case NOTHING: r.hi = row % 3 == 1 ? 0 : s->tokens; break;
    case RAGGED: /* what is visible differs wildly from row to row */
        r.lo = (int32_t)(draw() % (uint32_t)s->tokens);
        r.hi = r.lo + (int32_t)(draw() % (uint32_t)s->tokens);
        r.sinks = (int32_t)(draw() % 3) * 3;
        break;
    default: break;
    }
    return r;
}

static bool visible(const problem *p, int32_t row, int32_t n) {
    const relayi_range *r = &p->range[row];
    return p->s.mask == ALL || (r->lo <= n && n < r->hi) || n < r->sinks;
}

static bool anyone_sees(const problem *p, int32_t n) {
    for (int32_t row = 0; row < p->s.rows; row++)
        if (visible(p, row, n)) return true;
    return false;
}

static void fill_nan(int dt, char *base, int64_t elements) {
    for (int64_t i = 0; i < elements; i++) put(dt, base, i, NAN);
}

/* K and V in pages (two heads, ours is the second; ids out of order, wild past the end), in a
 * contiguous block with odd strides, and packed. */
static void lay_out(problem *p) {
    const int32_t dim = p->s.head_dim, tokens = p->s.tokens, pages = (tokens + BLOCK - 1) / BLOCK;
    const int64_t page = (int64_t)BLOCK * HEADS * dim, flat = dim + 8;
    const int64_t tiles = relayi_num_tiles(tokens) * relayi_tile_elements(dim);
    const size_t size = size_of(p->dt);
    fill_nan(p->dt, p->pool_key = allocate((size_t)(page * (pages + 3)) * size), page * (pages + 3));
    fill_nan(p->dt, p->pool_value = allocate((size_t)(page * (pages + 3)) * size), page * (pages + 3));
    fill_nan(p->dt, p->flat_key = allocate((size_t)(flat * tokens) * size), flat * tokens);
    fill_nan(p->dt, p->flat_value = allocate((size_t)(flat * tokens) * size), flat * tokens);
    memset(p->packed_key = allocate((size_t)tiles * size), 0, (size_t)tiles * size);
    memset(p->packed_value = allocate((size_t)tiles * size), 0, (size_t)tiles * size);
    for (int32_t i = 0; i < pages; i++) p->table[i] = (i * 7 + 3) % (pages + 3);
    for (int32_t i = 1; i < pages; i++) /* where 7 divides the pool, ids repeat: take plain ones */
        if (p->table[i] == p->table[0])
            for (int32_t k = 0; k < pages; k++) p->table[k] = pages + 2 - k;
    for (int32_t i = pages; i < pages + 8; i++) p->table[i] = i % 2 ? INT32_MAX : INT32_MIN;
    int pairs = p->dt == RELAYI_DT_BF16;
    for (int32_t n = 0; n < tokens; n++) {
        bool nan = p->s.poison && !anyone_sees(p, n);
        for (int32_t d = 0; d < dim; d++) {
            float k = nan ? NAN : p->key[(int64_t)n * dim + d], v = nan ? NAN : p->value[(int64_t)n * dim + d];
            int64_t paged = p->table[n / BLOCK] * page + ((int64_t)(n % BLOCK) * HEADS + 1) * dim + d;
            int64_t packed = n / RELAYI_TILE * relayi_tile_elements(dim);
            put(p->dt, p->pool_key, paged, k);
            put(p->dt, p->pool_value, paged, v);
            put(p->dt, p->flat_key, n * flat + d, k);
            put(p->dt, p->flat_value, n * flat + d, v);
            put(p->dt, p->packed_key, packed + relayi_k_offset(pairs, n % RELAYI_TILE, d), k);
            put(p->dt, p->packed_value, packed + relayi_v_offset(pairs, dim, n % RELAYI_TILE, d), v);
        }
    }
}

static problem make_problem(const setup *s, int dt, bool round_query) {
    problem p = {.s = *s, .dt = dt, .scale = 1.0f / sqrtf((float)s->head_dim), .soft_cap = s->soft_cap ? 5.0f : 0.0f};
    p.query = allocate((size_t)s->rows * (size_t)s->head_dim * 4);
    p.slope = allocate((size_t)s->rows * 4);
    p.range = allocate((size_t)s->rows * sizeof *p.range);
    p.key = allocate((size_t)s->tokens * (size_t)s->head_dim * 4);
    p.value = allocate((size_t)s->tokens * (size_t)s->head_dim * 4);
    for (int32_t i = 0; i < s->rows * s->head_dim; i++)
        p.query[i] = rounded(round_query ? RELAYI_DT_BF16 : RELAYI_DT_F32, uniform() * s->query_size);
    for (int32_t i = 0; i < s->tokens * s->head_dim; i++) {
        p.key[i] = rounded(dt, uniform());
        p.value[i] = rounded(dt, uniform());
    }
    for (int32_t r = 0; r < s->rows; r++) {
        p.slope[r] = 0.01f * (float)(r % 5 + 1);
        p.range[r] = range_of(s, r);
    }
    lay_out(&p);
    return p;
}

static void free_problem(problem *p) {
    free(p->query), free(p->slope), free(p->range), free(p->key), free(p->value);
    free(p->pool_key), free(p->pool_value), free(p->flat_key), free(p->flat_value);
    free(p->packed_key), free(p->packed_value);
}

static relayi_kv kv_of(const problem *p, kv_layout layout) {
    const int64_t dim = p->s.head_dim, size = (int64_t)size_of(p->dt);
    if (layout == PACKED) return (relayi_kv){.packed = 1, .key = p->packed_key, .value = p->packed_value};
    if (layout == CONTIGUOUS)
        return (relayi_kv){.key = p->flat_key, .value = p->flat_value, .block_size = p->s.tokens,
                           .key_token_stride = dim + 8, .value_token_stride = dim + 8};
    return (relayi_kv){.key = p->pool_key + dim * size, .value = p->pool_value + dim * size,
                       .block_table = p->table, .block_size = BLOCK,
                       .key_block_stride = BLOCK * HEADS * dim, .value_block_stride = BLOCK * HEADS * dim,
                       .key_token_stride = HEADS * dim, .value_token_stride = HEADS * dim};
}

/* Running states with guard words around. */
typedef struct result {
    float *memory[3], *acc, *max, *sum;
    int64_t length[3];
} result;

static result make_result(int32_t rows, int32_t dim) {
    result r = {.length = {(int64_t)rows * dim, rows, rows}};
    for (int i = 0; i < 3; i++) {
        r.memory[i] = allocate((size_t)(r.length[i] + 2 * GUARD) * 4);
        for (int64_t k = 0; k < r.length[i] + 2 * GUARD; k++) r.memory[i][k] = guard_word;
        for (int64_t k = 0; k < r.length[i]; k++) r.memory[i][GUARD + k] = i == 1 ? -INFINITY : 0.0f;
    }
    r.acc = r.memory[0] + GUARD;
    r.max = r.memory[1] + GUARD;
    r.sum = r.memory[2] + GUARD;
    return r;
}

static bool guards_hold(const result *r) {
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < GUARD; k++)
            if (r->memory[i][k] != guard_word || r->memory[i][GUARD + r->length[i] + k] != guard_word) return false;
    return true;
}

static void free_result(result *r) {
    for (int i = 0; i < 3; i++) free(r->memory[i]);
}

/* Attends rows [first, first + rows) in two spans, cut at s.begin. */
static result attend(const kernel_row *kernel, const problem *p, kv_layout layout, int32_t first, int32_t rows) {
    const int32_t dim = p->s.head_dim;
    result r = make_result(rows, dim);
    char *scratch = allocate(kernel->scratch_bytes + GUARD);
    memset(scratch, 0xa5, kernel->scratch_bytes + GUARD);
    float *query = allocate((size_t)rows * (size_t)dim * 4);
    memcpy(query, p->query + (int64_t)first * dim, (size_t)rows * (size_t)dim * 4);
    relayi_attend_args args = {.rows = rows, .head_dim = dim, .query = query, .range = p->range + first,
                               .all_visible = p->s.mask == ALL, .slope = p->s.alibi ? p->slope + first : NULL,
                               .scale = p->scale, .soft_cap = p->soft_cap, .kv = kv_of(p, layout),
                               .acc = r.acc, .max = r.max, .sum = r.sum, .scratch = scratch};
    args.end = p->s.begin;
    if (args.end > 0) kernel->attend(&args);
    args.begin = p->s.begin;
    args.end = p->s.tokens;
    kernel->attend(&args);
    bool intact = true;
    for (int i = 0; i < GUARD; i++) intact = intact && scratch[kernel->scratch_bytes + (size_t)i] == (char)0xa5;
    CHECK_MSG(intact, "%s wrote behind its scratch", kernel->name);
    CHECK_MSG(guards_hold(&r), "%s wrote outside its outputs", kernel->name);
    free(scratch);
    free(query);
    return r;
}

static double score_of(const problem *p, int32_t row, int32_t n) {
    const int32_t dim = p->s.head_dim;
    double s = 0.0;
    for (int32_t d = 0; d < dim; d++) s += (double)p->query[row * dim + d] * (double)p->key[(int64_t)n * dim + d];
    s *= (double)p->scale;
    if (p->soft_cap > 0.0f) s = (double)p->soft_cap * tanh(s / (double)p->soft_cap);
    if (p->s.alibi) s += (double)p->slope[row] * (n - p->range[row].distance);
    return s;
}

/* out[dim] and the lse of one row; false when it sees nothing. */
static bool oracle(const problem *p, int32_t row, double *out, double *lse) {
    static double score[MAX_TOKENS];
    double top = -INFINITY, sum = 0.0;
    for (int32_t n = 0; n < p->s.tokens; n++) {
        score[n] = visible(p, row, n) ? score_of(p, row, n) : -INFINITY;
        top = fmax(top, score[n]);
    }
    for (int32_t d = 0; d < p->s.head_dim; d++) out[d] = 0.0;
    if (top == -INFINITY) return false;
    for (int32_t n = 0; n < p->s.tokens; n++) {
        double weight = exp(score[n] - top);
        sum += weight;
        for (int32_t d = 0; d < p->s.head_dim; d++) out[d] += weight * (double)p->value[(int64_t)n * p->s.head_dim + d];
    }
    for (int32_t d = 0; d < p->s.head_dim; d++) out[d] /= sum;
    *lse = top + log(sum);
    return true;
}

static void describe(char *text, size_t size, const kernel_row *kernel, const problem *p, kv_layout layout) {
    snprintf(text, size, "%s dim %d rows %d tokens %d begin %d mask %d layout %d cap %d alibi %d spread %g",
             kernel->name, p->s.head_dim, p->s.rows, p->s.tokens, p->s.begin, (int)p->s.mask, (int)layout,
             (int)p->s.soft_cap, (int)p->s.alibi, (double)p->s.query_size);
}

static void compare(const kernel_row *kernel, const problem *p, kv_layout layout, const result *r) {
    const double limit = strstr(kernel->name, "dot") || strstr(kernel->name, "amx") ? 4e-3 : 1e-5;
    const int32_t dim = p->s.head_dim;
    double wrong = 0.0, norm = 0.0, worst_lse = 0.0, out[256], lse = 0.0;
    char text[256];
    bool empty_right = true;
    describe(text, sizeof text, kernel, p, layout);
    for (int32_t row = 0; row < p->s.rows; row++) {
        bool any = oracle(p, row, out, &lse);
        if (!any) {
            empty_right = empty_right && r->sum[row] == 0.0f && r->max[row] == -INFINITY;
            for (int32_t d = 0; d < dim; d++) empty_right = empty_right && r->acc[row * dim + d] == 0.0f;
            continue;
        }
        for (int32_t d = 0; d < dim; d++) {
            double got = (double)r->acc[row * dim + d] / (double)r->sum[row];
            wrong += (got - out[d]) * (got - out[d]);
            norm += out[d] * out[d];
        }
        double off = fabs((double)r->max[row] + log((double)r->sum[row]) - lse) / fmax(1.0, fabs(lse));
        worst_lse = off <= worst_lse ? worst_lse : off;
    }
    CHECK_MSG(empty_right, "%s: a row that sees nothing has a state", text);
    CHECK_MSG(sqrt(wrong) <= limit * sqrt(norm), "%s: relative error %g", text, sqrt(wrong / norm));
    CHECK_MSG(worst_lse <= limit, "%s: lse off by %g", text, worst_lse);
}

static bool same_row(const result *a, int32_t row_a, const result *b, int32_t row_b, int32_t dim) {
    return memcmp(a->acc + (int64_t)row_a * dim, b->acc + (int64_t)row_b * dim, (size_t)dim * 4) == 0 &&
           memcmp(a->max + row_a, b->max + row_b, 4) == 0 && memcmp(a->sum + row_a, b->sum + row_b, 4) == 0;
}

/* Alone, and in the company of some, a row has the bits that it has among all. */
static void check_alone(const kernel_row *kernel, const problem *p, kv_layout layout, const result *all) {
    char text[256];
    describe(text, sizeof text, kernel, p, layout);
    for (int32_t row = 0; row < p->s.rows; row += 1 + p->s.rows / 7) {
        result alone = attend(kernel, p, layout, row, 1);
        CHECK_MSG(same_row(all, row, &alone, 0, p->s.head_dim), "%s: row %d has other bits alone", text, row);
        free_result(&alone);
        int32_t rows = 1 + (int32_t)(draw() % (uint32_t)(p->s.rows - row));
        result some = attend(kernel, p, layout, row, rows);
        CHECK_MSG(same_row(all, row, &some, 0, p->s.head_dim), "%s: row %d has other bits among %d", text, row, rows);
        free_result(&some);
    }
}

static void check_setup(const kernel_row *kernel, const setup *s) {
    problem p = make_problem(s, kernel->dt, kernel->needs_16bit);
    result packed = attend(kernel, &p, PACKED, 0, s->rows);
    compare(kernel, &p, PACKED, &packed);
    check_alone(kernel, &p, PACKED, &packed);
    for (kv_layout l = PAGED; l < NUM_LAYOUTS; l++) {
        char text[256];
        describe(text, sizeof text, kernel, &p, l);
        result other = attend(kernel, &p, l, 0, s->rows);
        int32_t row = 0;
        while (row < s->rows && same_row(&packed, row, &other, row, s->head_dim)) row++;
        CHECK_MSG(row == s->rows, "%s: row %d has other bits than packed", text, row);
        check_alone(kernel, &p, l, &other);
        free_result(&other);
    }
    free_result(&packed);
    free_problem(&p);
}

static const int32_t dims[] = {64, 80, 96, 112, 128, 192, 256};
static const int32_t sizes[] = {1, 2, 3, 17, 63, 64, 65, 127, 128, 131, 191, 255, 256, 257, 331, 509, 577};
enum { NUM_DIMS = sizeof dims / sizeof *dims, NUM_SIZES = sizeof sizes / sizeof *sizes };

static void check_kernel(const kernel_row *kernel) {
    setup s = {.rows = 5, .query_size = 2.0f};
    for (int i = 0; i < NUM_DIMS; i++)
        for (int k = 0; k < NUM_SIZES; k++) {
            s.head_dim = dims[i];
            s.tokens = sizes[k];
            s.mask = (mask)((i + k) % NUM_MASKS);
            s.poison = k % 2 == 1;
            check_setup(kernel, &s);
        }
    for (int32_t rows = 1; rows <= 34; rows++) {
        int32_t i = rows * 3;
        s = (setup){.rows = rows == 34 ? 256 : rows, .head_dim = dims[i % NUM_DIMS], .tokens = 100 + i,
                    .mask = (mask)(rows % NUM_MASKS), .soft_cap = rows % 4 == 1, .alibi = rows % 4 >= 2,
                    .query_size = rows % 5 == 0 ? 60.0f : 2.0f, .poison = rows % 2 == 0,
                    .begin = rows % 3 == 0 ? 64 : 0};
        check_setup(kernel, &s);
    }
    for (mask m = ALL; m < NUM_MASKS; m++)
        for (int32_t rows = 7; rows < 80; rows += 23) {
            s = (setup){.rows = rows, .head_dim = 96, .tokens = 600 + rows, .mask = m, .query_size = 150.0f,
                        .poison = true, .begin = 256, .alibi = rows == 7, .soft_cap = rows == 30};
            check_setup(kernel, &s);
        }
}

/* ---- NaN and infinity ---------------------------------------------------- */

/* Sets one element in every layout. */
static void poke(problem *p, bool key, int32_t n, int32_t d, float x) {
    (key ? p->key : p->value)[(int64_t)n * p->s.head_dim + d] = x;
    free(p->pool_key), free(p->pool_value), free(p->flat_key), free(p->flat_value);
    free(p->packed_key), free(p->packed_value);
    lay_out(p);
}

/* A NaN that some rows see makes these NaN and leaves the others as they are, bit for bit. */
static void check_nan(const kernel_row *kernel, bool key) {
    setup s = {.rows = 30, .head_dim = 64, .tokens = 90, .mask = CAUSAL, .query_size = 2.0f};
    for (int32_t n = 74; n < 84; n++)
        for (kv_layout l = PACKED; l < NUM_LAYOUTS; l++) {
            problem p = make_problem(&s, kernel->dt, kernel->needs_16bit);
            result before = attend(kernel, &p, l, 0, s.rows);
            poke(&p, key, n, 7, NAN);
            result after = attend(kernel, &p, l, 0, s.rows);
            for (int32_t row = 0; row < s.rows; row++) {
                bool right = visible(&p, row, n) ? isnan(after.acc[row * s.head_dim + 7]) : same_row(&before, row, &after, row, s.head_dim);
                CHECK_MSG(right, "%s: row %d, NaN in %s of token %d, layout %d", kernel->name, row, key ? "key" : "value", n, (int)l);
            }
            free_result(&before);
            free_result(&after);
            free_problem(&p);
        }
}

/* A row that only meets scores of -infinity stays empty. */
static void check_minus_infinity(const kernel_row *kernel) {
    setup s = {.rows = 3, .head_dim = 64, .tokens = 70, .query_size = 2.0f};
    problem p = make_problem(&s, kernel->dt, kernel->needs_16bit);
    for (int32_t d = 0; d < s.head_dim; d++) p.query[d] = d == 0 ? -1.0f : 0.0f;
    for (int32_t n = 0; n < s.tokens; n++) p.key[n * s.head_dim] = INFINITY;
    poke(&p, false, 0, 0, 1.0f);
    result r = attend(kernel, &p, PACKED, 0, 1);
    CHECK_MSG(r.sum[0] == 0.0f && r.acc[0] == 0.0f && r.max[0] == -INFINITY, "%s: sum %g", kernel->name, (double)r.sum[0]);
    free_result(&r);
    free_problem(&p);
}

/* ---- pack, finish, conversions ------------------------------------------- */

static void check_pack(const char *name, relayi_pack_fn *fast, int dt) {
    static relayi_pack_fn *const reference[RELAYI_NUM_DT] = {relayi_pack_f32_ref, relayi_pack_f16_ref, relayi_pack_bf16_ref};
    static const int32_t counts[] = {1, 2, 15, 16, 31, 63, 64}, more_dims[] = {8, 16, 40, 64, 72, 80, 96, 112, 128, 192, 256};
    for (size_t i = 0; i < sizeof more_dims / sizeof *more_dims; i++)
        for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
            setup s = {.rows = 1, .head_dim = more_dims[i], .tokens = 64 + counts[k], .query_size = 1.0f};
            problem p = make_problem(&s, dt, false);
            relayi_kv kv = kv_of(&p, k % 2 ? PAGED : CONTIGUOUS);
            size_t bytes = (size_t)relayi_tile_elements(s.head_dim) * size_of(dt);
            char *want = allocate(2 * bytes + GUARD), *got = allocate(2 * bytes + GUARD);
            memset(want, 0x5a, 2 * bytes + GUARD);
            memset(got, 0x5a, 2 * bytes + GUARD);
            reference[dt](&kv, s.head_dim, 64, counts[k], want, want + bytes);
            fast(&kv, s.head_dim, 64, counts[k], got, got + bytes);
            CHECK_MSG(memcmp(want, got, 2 * bytes + GUARD) == 0, "%s dim %d count %d", name, s.head_dim, counts[k]);
            free(want);
            free(got);
            free_problem(&p);
        }
}

static bool close_to(float a, float b) { return (isnan(a) && isnan(b)) || a == b || fabsf(a - b) <= 2e-6f * fmaxf(1.0f, fabsf(b)); }

static void check_finish(const char *name, relayi_finish_fn *finish) {
    enum { PARTS = 5, DIM = 72 };
    static const float maxima[] = {1.0f, -INFINITY, 3.0f, -90.0f, 2.5f};
    for (int parts = 0; parts <= PARTS; parts++)
        for (int variant = 0; variant < 5; variant++) {
            float acc[PARTS * DIM], max[PARTS], sum[PARTS], sink = 1.5f, want[DIM + 1], got[DIM + 1], lse_want, lse_got;
            for (int i = 0; i < PARTS * DIM; i++) acc[i] = maxima[i / DIM] == -INFINITY ? 0.0f : uniform();
            for (int i = 0; i < PARTS; i++) {
                max[i] = variant == 3 ? -INFINITY : maxima[i];
                sum[i] = max[i] == -INFINITY ? 0.0f : 1.0f + (float)i;
            }
            if (variant == 2) max[2] = acc[DIM * 2] = NAN;
            if (variant == 4) max[0] = -INFINITY, sum[0] = NAN;
            want[DIM] = got[DIM] = guard_word;
            relayi_finish_ref(parts, DIM, acc, DIM, max, sum, 1, variant == 1 ? &sink : NULL, want, &lse_want);
            finish(parts, DIM, acc, DIM, max, sum, 1, variant == 1 ? &sink : NULL, got, &lse_got);
            bool same = close_to(lse_got, lse_want) && got[DIM] == guard_word;
            for (int d = 0; d < DIM; d++) same = same && close_to(got[d], want[d]);
            CHECK_MSG(same, "%s: %d parts, variant %d", name, parts, variant);
            finish(parts, DIM, acc, DIM, max, sum, 1, NULL, got, NULL); /* without lse */
        }
}

static void check_narrow(const char *name, relayi_narrow_fn *fast, relayi_narrow_fn *reference) {
    enum { N = 100003 };
    float *from = allocate(N * 4);
    uint16_t *want = allocate(N * 2), *got = allocate(N * 2 + 2);
    static const uint32_t special[] = {0, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001, 0xffffffff, 0x7f7fffff,
                                       1, 0x80000001, 0x477fe000, 0x477fefff, 0x477ff000, 0x33000000, 0x33000001, 0x387fffff,
                                       0x3f808000, 0x3f818000, 0x3f808001};
    for (uint32_t i = 0; i < N; i++) {
        uint32_t bits = draw() << 8 ^ draw();
        if (i % 3 == 0) bits = (bits & 0x807fffffu) | (100u + bits % 50u) << 23;
        from[i] = relayi_bits_float(i < sizeof special / 4 ? special[i] : bits);
    }
    got[N] = 0x1234;
    reference(from, want, N);
    fast(from, got, N);
    int32_t i = 0;
    while (i < N && want[i] == got[i]) i++;
    CHECK_MSG(i == N && got[N] == 0x1234, "%s: %08x gives %04x, not %04x", name, relayi_float_bits(from[i < N ? i : 0]), got[i < N ? i : 0], want[i < N ? i : 0]);
    free(from), free(want), free(got);
}

static void check_widen(const char *name, relayi_widen_fn *fast, relayi_widen_fn *reference) {
    enum { N = 65536 };
    static uint16_t from[N];
    static uint32_t want[N], got[N];
    for (int i = 0; i < N; i++) from[i] = (uint16_t)i;
    reference(from, (float *)(void *)want, N);
    fast(from, (float *)(void *)got, N - 5);
    int i = 0;
    while (i < N - 5 && want[i] == got[i]) i++;
    CHECK_MSG(i == N - 5 && got[N - 5] == 0, "%s: %04x", name, (unsigned)i);
}

int main(void) {
    uint32_t have = relayi_cpu_flags(), capable = ~(uint32_t)RELAYI_CPU_FAST_BF16_DOT;
    int skipped = 0;
    for (const kernel_row *k = kernels; k->name; k++) {
        if (strstr(k->name, "amx")) continue; /* has a test of its own */
        if ((k->flags & capable) & ~have) {
            skipped++;
            continue;
        }
        state = 1;
        check_kernel(k);
        check_nan(k, false);
        check_nan(k, true);
        check_minus_infinity(k);
    }
#define PACK_ROW(name, dt, flags) \
    if (((flags) & ~have) == 0) check_pack("pack_" #name, relayi_pack_##name, dt);
    RELAYI_PACK_LIST_X86(PACK_ROW)
#define STATE_ROW(isa, flags)                                                                     \
    if (((flags) & ~have) == 0) {                                                                 \
        check_finish("finish_" #isa, relayi_finish_##isa);                                        \
        check_narrow("f32_to_bf16_" #isa, relayi_f32_to_bf16_##isa, relayi_f32_to_bf16_ref);      \
        check_narrow("f32_to_f16_" #isa, relayi_f32_to_f16_##isa, relayi_f32_to_f16_ref);         \
        check_widen("bf16_to_f32_" #isa, relayi_bf16_to_f32_##isa, relayi_bf16_to_f32_ref);       \
        check_widen("f16_to_f32_" #isa, relayi_f16_to_f32_##isa, relayi_f16_to_f32_ref);          \
    }
    RELAYI_STATE_LIST_X86(STATE_ROW)
    printf("%d kernels skipped: the CPU lacks what they need\n", skipped);
    if (have & RELAYI_CPU_AVX2) return test_result();
    return 0;
}
