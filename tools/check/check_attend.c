/* Every attend kernel of the list against the scalar reference, and that against float64, by the
 * contract of src/kernel.h: any ranges, any cut into spans, states that go on from span to span. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "check_data.h"
#include "device_internal.h"
#include "kernel_list.h"

enum { MAX_ATTEND_SPANS = 3, MAX_SPAN_TOKENS = 520 };

typedef struct listed {
    relayi_attend_kernel kernel;
    int dt;
    uint32_t flags;
} listed;

static const listed kernels[] = {
#define LISTED(id, type, needs, does, bits16, multiple, rows, scratch)                                \
    {.kernel = {.name = "relayi_attend_" #id, .attend = relayi_attend_##id, .features = does,      \
                .needs_16bit_query = bits16, .head_dim_multiple = multiple, .row_block = rows,         \
                .scratch_bytes = scratch},                                                             \
     .dt = type, .flags = needs},
    RELAYI_ATTEND_LIST(LISTED)
#undef LISTED
};
enum { NUM_KERNELS = sizeof kernels / sizeof kernels[0] };

static const relay_dtype dtype_of[RELAYI_NUM_DT] = {[RELAYI_DT_F32] = RELAY_F32, [RELAYI_DT_F16] = RELAY_F16,
                                                    [RELAYI_DT_BF16] = RELAY_BF16};

typedef enum sight { SEES_ALL, SEES_CAUSAL, SEES_WINDOW, SEES_ANY, NUM_SIGHTS } sight;
static const char *const sight_names[] = {"all", "causal", "window", "any"};

typedef enum place { IN_PACKED, IN_PAGES, IN_ONE, NUM_PLACES } place;

typedef struct attend_case {
    uint64_t seed;
    chk_kind kind;
    sight sees;
    int32_t rows, dim, spans;
    int32_t begin[MAX_ATTEND_SPANS], end[MAX_ATTEND_SPANS], tokens[MAX_ATTEND_SPANS];
    place at[MAX_ATTEND_SPANS];
    int32_t block_size;
    bool cap, alibi, sinks;
    float scale, soft_cap;
} attend_case;

/* One span as the contract has it, and as plain numbers. */
typedef struct attend_span {
    chk_buffer key, value, blocks;
    double *key_plain, *value_plain; /* [tokens][dim], as stored */
    relayi_kv kv;
    relayi_range range[RELAYI_MAX_ROWS];
    int32_t all_visible;
} attend_span;

typedef struct attend_world {
    chk_buffer query;
    float slope[RELAYI_MAX_ROWS];
    attend_span spans[MAX_ATTEND_SPANS];
} attend_world;

/* acc, max and sum of all rows, each in a buffer of its own. */
typedef struct state {
    chk_buffer acc, max, sum;
} state;

/* ---- laying out ---------------------------------------------------------- */

static bool plain_span(const attend_case *k, int dt, int32_t index, attend_span *span) {
    chk_recipe recipe = {k->seed, k->kind, k->dim, k->scale, 0};
    size_t count = (size_t)k->tokens[index] * (size_t)k->dim;
    float stored;
    span->key_plain = malloc(count * sizeof(double));
    span->value_plain = malloc(count * sizeof(double));
    if (span->key_plain == NULL || span->value_plain == NULL) return false;
    for (int32_t n = 0; n < k->tokens[index]; n++) {
        chk_key(&recipe, (uint64_t)index, n, 0, span->key_plain + (int64_t)n * k->dim);
        chk_value(&recipe, (uint64_t)index, n, 0, span->value_plain + (int64_t)n * k->dim);
    }
    for (size_t i = 0; i < count; i++) {
        chk_store(&stored, dtype_of[dt], 0, span->key_plain[i]);
        span->key_plain[i] = chk_load(&stored, dtype_of[dt], 0);
        chk_store(&stored, dtype_of[dt], 0, span->value_plain[i]);
        span->value_plain[i] = chk_load(&stored, dtype_of[dt], 0);
    }
    return true;
}

/* Tokens outside [begin, end) are NaN here, where memory has them at all. */
static void put_token(const attend_case *k, int dt, const attend_span *span, int32_t index, int32_t n, int64_t key_at,
                      int64_t value_at) {
    bool inside = n >= k->begin[index] && n < k->end[index];
    for (int32_t d = 0; d < k->dim; d++) {
        double key = inside ? span->key_plain[(int64_t)n * k->dim + d] : NAN;
        double value = inside ? span->value_plain[(int64_t)n * k->dim + d] : NAN;
        chk_store(span->key.data, dtype_of[dt], key_at + d, key);
        chk_store(span->value.data, dtype_of[dt], value_at + d, value);
    }
}

static bool make_areas(attend_span *span, int dt, int64_t key_elements, int64_t value_elements, size_t align) {
    size_t size = relay_dtype_size(dtype_of[dt]);
    if (!chk_buffer_make(&span->key, (size_t)key_elements * size, align ? align : size)) return false;
    if (!chk_buffer_make(&span->value, (size_t)value_elements * size, align ? align : size)) return false;
    span->kv.key = span->key.data;
    span->kv.value = span->value.data;
    return true;
}

/* One tensor; rows of odd strides; the end of K and V is the end of memory. */
static bool place_one(const attend_case *k, int dt, int32_t index, attend_span *span) {
    int64_t tokens = k->end[index];
    span->kv.key_token_stride = k->dim + 5;
    span->kv.value_token_stride = 2 * k->dim + 1;
    span->kv.block_size = k->end[index];
    if (!make_areas(span, dt, (tokens - 1) * span->kv.key_token_stride + k->dim,
                    (tokens - 1) * span->kv.value_token_stride + k->dim, 0))
        return false;
    chk_poison(span->key.data, dtype_of[dt], (tokens - 1) * span->kv.key_token_stride + k->dim);
    chk_poison(span->value.data, dtype_of[dt], (tokens - 1) * span->kv.value_token_stride + k->dim);
    for (int32_t n = 0; n < tokens; n++)
        put_token(k, dt, span, index, n, n * span->kv.key_token_stride, n * span->kv.value_token_stride);
    return true;
}

/* Blocks in falling order; before `begin` and after `end` ids are wild, and the table ends where
 * memory ends. */
static bool place_pages(const attend_case *k, int dt, int32_t index, attend_span *span) {
    int32_t size = k->block_size, first = k->begin[index] / size, last = (k->end[index] - 1) / size;
    relayi_kv *kv = &span->kv;
    kv->block_size = size;
    kv->key_token_stride = k->dim;
    kv->value_token_stride = k->dim + 8;
    kv->key_block_stride = kv->key_token_stride * size + 16;
    kv->value_block_stride = kv->value_token_stride * size;
    int64_t keys = (last - first + 1) * kv->key_block_stride, values = (last - first + 1) * kv->value_block_stride;
    if (!make_areas(span, dt, keys, values, 0)) return false;
    if (!chk_buffer_make(&span->blocks, (size_t)(last + 1) * sizeof(int32_t), sizeof(int32_t))) return false;
    chk_poison(span->key.data, dtype_of[dt], keys);
    chk_poison(span->value.data, dtype_of[dt], values);
    int32_t *table = span->blocks.data;
    for (int32_t b = 0; b <= last; b++) table[b] = b < first ? INT32_MIN + b : last - b;
    for (int32_t n = k->begin[index]; n < k->end[index]; n++) {
        int64_t block = table[n / size], in_block = n % size;
        put_token(k, dt, span, index, n, block * kv->key_block_stride + in_block * kv->key_token_stride,
                  block * kv->value_block_stride + in_block * kv->value_token_stride);
    }
    kv->block_table = table;
    return true;
}

/* Whole tiles: zeros after the prompt's last token, real tokens (NaN here) after `end`. */
static bool place_packed(const attend_case *k, int dt, int32_t index, attend_span *span) {
    int64_t tiles = relayi_num_tiles(k->tokens[index]), elements = tiles * relayi_tile_elements(k->dim);
    int pairs = dt == RELAYI_DT_BF16;
    span->kv.packed = 1;
    if (!make_areas(span, dt, elements, elements, 64)) return false;
    chk_buffer_fill(&span->key, 0);
    chk_buffer_fill(&span->value, 0);
    for (int32_t n = 0; n < k->tokens[index]; n++) {
        int64_t tile = n / RELAYI_TILE * relayi_tile_elements(k->dim);
        bool inside = n >= k->begin[index] && n < k->end[index];
        for (int32_t d = 0; d < k->dim; d++) {
            int64_t plain = (int64_t)n * k->dim + d;
            chk_store(span->key.data, dtype_of[dt], tile + relayi_k_offset(pairs, n % RELAYI_TILE, d),
                      inside ? span->key_plain[plain] : NAN);
            chk_store(span->value.data, dtype_of[dt], tile + relayi_v_offset(pairs, k->dim, n % RELAYI_TILE, d),
                      inside ? span->value_plain[plain] : NAN);
        }
    }
    return true;
}

static void draw_range(const attend_case *k, int32_t index, int32_t row, chk_rng *rng, relayi_range *range) {
    int32_t begin = k->begin[index], end = k->end[index], length = end - begin;
    *range = (relayi_range){.lo = 0, .hi = end + chk_between(rng, 0, 2)};
    if (k->sees == SEES_CAUSAL) range->hi = begin + 1 + row * (length + 3) / k->rows;
    if (k->sees == SEES_WINDOW) {
        range->hi = begin + 1 + row * (length + 40) / k->rows;
        range->lo = range->hi - 40 > 0 ? range->hi - 40 : 0;
    }
    if (k->sees == SEES_ANY) {
        range->lo = chk_between(rng, begin, end);
        range->hi = chk_between(rng, begin, end + 5); /* below lo: nothing */
        if (row % 5 == 0) range->lo = range->hi = 0;
        if (row % 4 == 1) *range = (relayi_range){.lo = 0, .hi = end};
    }
    if (k->sinks) range->sinks = row % 3 == 0 ? 0 : chk_between(rng, 0, end);
    range->distance = end + row;
}

static bool sees_token(const attend_case *k, const attend_span *span, int32_t index, int32_t row, int32_t n) {
    const relayi_range *range = &span->range[row];
    return n >= k->begin[index] && n < k->end[index] && ((range->lo <= n && n < range->hi) || n < range->sinks);
}

static int32_t row_sees_all(const attend_case *k, const attend_span *span, int32_t index, int32_t row) {
    return span->range[row].lo <= k->begin[index] && span->range[row].hi >= k->end[index];
}

static bool make_span(const attend_case *k, int dt, int32_t index, attend_span *span) {
    chk_rng rng = chk_rng_at(k->seed, 50 + (uint64_t)index);
    if (!plain_span(k, dt, index, span)) return false;
    bool ok = k->at[index] == IN_PACKED  ? place_packed(k, dt, index, span)
              : k->at[index] == IN_PAGES ? place_pages(k, dt, index, span)
                                         : place_one(k, dt, index, span);
    chk_buffer_read_only(&span->key, true);
    chk_buffer_read_only(&span->value, true);
    chk_buffer_read_only(&span->blocks, true);
    span->all_visible = 1;
    for (int32_t row = 0; row < k->rows; row++) {
        draw_range(k, index, row, &rng, &span->range[row]);
        span->all_visible &= row_sees_all(k, span, index, row);
    }
    return ok;
}

static bool make_world(const attend_case *k, const listed *of, attend_world *w) {
    memset(w, 0, sizeof *w);
    chk_recipe recipe = {k->seed, k->kind, k->dim, k->scale, 0};
    chk_rng rng = chk_rng_at(k->seed, 60);
    if (!chk_buffer_make(&w->query, (size_t)k->rows * (size_t)k->dim * sizeof(float), 64)) return false;
    double vector[256];
    float *query = w->query.data;
    for (int32_t row = 0; row < k->rows; row++) {
        w->slope[row] = (float)chk_uniform(&rng, 0, k->kind == CHK_INF_VALUES ? 0.02 : 0.3);
        chk_query(&recipe, 9, row, 0, vector);
        for (int32_t d = 0; d < k->dim; d++, query++) {
            uint16_t half;
            chk_store(&half, RELAY_BF16, 0, vector[d]);
            *query = of->kernel.needs_16bit_query ? (float)chk_load(&half, RELAY_BF16, 0) : (float)vector[d];
        }
    }
    for (int32_t i = 0; i < k->spans; i++)
        if (!make_span(k, of->dt, i, &w->spans[i])) return false;
    return true;
}

static void free_world(attend_world *w) {
    chk_buffer_free(&w->query);
    for (int32_t i = 0; i < MAX_ATTEND_SPANS; i++) {
        attend_span *span = &w->spans[i];
        chk_buffer_free(&span->key);
        chk_buffer_free(&span->value);
        chk_buffer_free(&span->blocks);
        free(span->key_plain);
        free(span->value_plain);
    }
}

/* ---- calling ------------------------------------------------------------- */

static bool make_state(state *s, int32_t rows, int32_t dim) {
    memset(s, 0, sizeof *s);
    if (!chk_buffer_make(&s->acc, (size_t)rows * (size_t)dim * sizeof(float), 64)) return false;
    if (!chk_buffer_make(&s->max, (size_t)rows * sizeof(float), sizeof(float))) return false;
    if (!chk_buffer_make(&s->sum, (size_t)rows * sizeof(float), sizeof(float))) return false;
    chk_buffer_fill(&s->acc, 0);
    chk_buffer_fill(&s->sum, 0);
    for (int32_t row = 0; row < rows; row++) ((float *)s->max.data)[row] = -INFINITY;
    return true;
}

static void free_state(state *s) {
    chk_buffer_free(&s->acc);
    chk_buffer_free(&s->max);
    chk_buffer_free(&s->sum);
}

/* Rows [first, first + rows) of the case, over all its spans. */
static bool attend(chk *c, const attend_case *k, const attend_world *w, const relayi_attend_kernel *kernel,
                   int32_t first, int32_t rows, state *s) {
    chk_buffer scratch = {0}, query = {0};
    bool ok = make_state(s, rows, k->dim) && chk_buffer_make(&scratch, kernel->scratch_bytes, 64) &&
              chk_buffer_make(&query, (size_t)rows * (size_t)k->dim * sizeof(float), 64);
    if (ok) {
        chk_buffer_fill(&scratch, 0xFF); /* NaN */
        memcpy(query.data, (const float *)w->query.data + (size_t)first * (size_t)k->dim, query.bytes);
        chk_buffer_read_only(&query, true);
    }
    for (int32_t i = 0; ok && i < k->spans; i++) {
        const attend_span *span = &w->spans[i];
        relayi_attend_args args = {.rows = rows, .head_dim = k->dim, .query = query.data, .range = span->range + first,
                                   .all_visible = 1, .slope = k->alibi ? w->slope + first : NULL, .scale = k->scale,
                                   .soft_cap = k->soft_cap, .kv = span->kv, .begin = k->begin[i], .end = k->end[i],
                                   .acc = s->acc.data, .max = s->max.data, .sum = s->sum.data, .scratch = scratch.data};
        for (int32_t row = first; row < first + rows; row++) args.all_visible &= row_sees_all(k, span, i, row);
        kernel->attend(&args);
    }
    if (ok && !(chk_buffer_intact(&scratch) && chk_buffer_intact(&query) && chk_buffer_intact(&s->acc) &&
                chk_buffer_intact(&s->max) && chk_buffer_intact(&s->sum)))
        chk_fail(c, "something before or after a buffer was written");
    chk_buffer_free(&scratch);
    chk_buffer_free(&query);
    return ok;
}

/* (o, lse) in float64: the state's meaning. */
static void read_state(const state *s, chk_result *to) {
    const float *acc = s->acc.data, *max = s->max.data, *sum = s->sum.data;
    for (int64_t row = 0; row < to->rows; row++) {
        bool empty = max[row] == -INFINITY && sum[row] == 0;
        for (int32_t d = 0; d < to->dim; d++)
            to->out[row * to->dim + d] = empty ? acc[row * to->dim + d] : (double)acc[row * to->dim + d] / sum[row];
        to->lse[row] = empty ? -INFINITY : (double)max[row] + log((double)sum[row]);
    }
}

/* ---- float64 ------------------------------------------------------------- */

static double score_in_float64(const attend_case *k, const attend_world *w, const double *key, int32_t row,
                               const relayi_range *range, int32_t n, double *size) {
    const float *q = (const float *)w->query.data + (int64_t)row * k->dim;
    double dot = 0, all = 0;
    for (int32_t d = 0; d < k->dim; d++) {
        dot += q[d] * key[d];
        all += fabs(q[d] * key[d]);
    }
    double s = dot * (double)k->scale, bias = k->alibi ? (double)w->slope[row] * (n - range->distance) : 0;
    if (k->soft_cap > 0) s = k->soft_cap * tanh(s / (double)k->soft_cap);
    *size = (isfinite(all) ? all * (double)k->scale : 0) + fabs(bias); /* an infinite score is exact */
    return s + bias;
}

typedef struct seen {
    double score, size;
    const double *value;
} seen;

static int32_t look(const attend_case *k, const attend_world *w, int32_t row, seen *tokens) {
    int32_t count = 0;
    for (int32_t i = 0; i < k->spans; i++) {
        const attend_span *span = &w->spans[i];
        for (int32_t n = k->begin[i]; n < k->end[i]; n++) {
            if (!sees_token(k, span, i, row, n)) continue;
            seen *token = &tokens[count++];
            token->value = span->value_plain + (int64_t)n * k->dim;
            token->score = score_in_float64(k, w, span->key_plain + (int64_t)n * k->dim, row, &span->range[row], n,
                                            &token->size);
            if (token->score == -INFINITY) count--; /* as good as not seen */
        }
    }
    return count;
}

static void expect_row(const attend_case *k, const attend_world *w, int32_t row, chk_result *want) {
    static seen tokens[MAX_ATTEND_SPANS * MAX_SPAN_TOKENS];
    int32_t count = look(k, w, row, tokens);
    double top = -INFINITY, sum = 0, *out = want->out + (int64_t)row * k->dim, *spread = want->spread + (int64_t)row * k->dim;
    for (int32_t i = 0; i < count; i++)
        if (!(tokens[i].score <= top)) top = isnan(top) ? top : tokens[i].score;
    for (int32_t i = 0; i < count; i++) {
        double p = exp(tokens[i].score - top);
        sum += p;
        if (p > 1e-12) want->magnitude[row] = fmax(want->magnitude[row], tokens[i].size);
        for (int32_t d = 0; d < k->dim; d++) {
            out[d] += p * tokens[i].value[d];
            spread[d] += p * fabs(tokens[i].value[d]);
        }
    }
    for (int32_t d = 0; count > 0 && d < k->dim; d++) {
        out[d] /= sum;
        spread[d] /= sum;
    }
    want->lse[row] = count > 0 ? top + log(sum) : -INFINITY;
}

/* ---- one case ------------------------------------------------------------ */

static void against(chk *c, const attend_case *k, const attend_world *w, const listed *of, chk_result *want) {
    relayi_kernels reference;
    relayi_kernels_ref(&reference);
    bool is_reference = of->kernel.attend == reference.attend[of->dt].attend;
    chk_result ref = {0}, got = {0};
    state ref_state, got_state;
    chk_tolerance allowed = chk_tolerance_for(c, is_reference ? RELAY_F32 : dtype_of[of->dt], RELAY_F32);
    bool ok = chk_result_make(&ref, k->rows, 1, k->dim, false) && chk_result_make(&got, k->rows, 1, k->dim, false);
    ok = attend(c, k, w, &reference.attend[of->dt], 0, k->rows, &ref_state) && ok;
    ok = attend(c, k, w, &of->kernel, 0, k->rows, &got_state) && ok;
    if (ok) {
        read_state(&ref_state, &ref);
        read_state(&got_state, &got);
        if (!is_reference) {
            memcpy(want->out, ref.out, (size_t)k->rows * (size_t)k->dim * sizeof(double));
            memcpy(want->lse, ref.lse, (size_t)k->rows * sizeof(double));
        }
        chk_compare(c, want, &got, allowed);
    }
    free_state(&ref_state);
    free_state(&got_state);
    chk_result_free(&ref);
    chk_result_free(&got);
}

/* A row's state must not depend on the rows beside it: bit by bit. */
static void alone(chk *c, const attend_case *k, const attend_world *w, const listed *of) {
    if (of->kernel.features & RELAYI_BITS_BY_CALL) return;
    state all, one;
    chk_rng rng = chk_rng_at(k->seed, 70);
    int32_t rows = chk_between(&rng, 1, k->rows < 5 ? k->rows : 5), first = chk_between(&rng, 0, k->rows - rows);
    bool ok = attend(c, k, w, &of->kernel, 0, k->rows, &all);
    ok = attend(c, k, w, &of->kernel, first, rows, &one) && ok;
    if (ok) {
        chk_result a = {0}, b = {0};
        if (chk_result_make(&a, k->rows, 1, k->dim, false) && chk_result_make(&b, rows, 1, k->dim, false)) {
            read_state(&all, &a);
            read_state(&one, &b);
            chk_result part = a;
            part.rows = rows;
            part.out += (int64_t)first * k->dim;
            part.lse += first;
            chk_compare_bits(c, "beside other rows", &b, &part);
        }
        chk_result_free(&a);
        chk_result_free(&b);
    }
    free_state(&all);
    free_state(&one);
}

static void check_case(chk *c, const attend_case *k, const listed *of) {
    static attend_world world;
    chk_result want = {0};
    if (make_world(k, of, &world) && chk_result_make(&want, k->rows, 1, k->dim, true)) {
        for (int32_t row = 0; row < k->rows; row++) expect_row(k, &world, row, &want);
        against(c, k, &world, of, &want);
        alone(c, k, &world, of);
    } else {
        chk_fail(c, "no memory for the case");
    }
    free_world(&world);
    chk_result_free(&want);
}

/* ---- drawing cases ------------------------------------------------------- */

static int32_t draw_dim(chk_rng *rng, const listed *of) {
    static const int32_t dims[] = {8, 16, 24, 40, 48, 64, 80, 96, 112, 128, 192, 240, 256};
    for (;;) {
        int32_t dim = CHK_PICK(rng, dims);
        if (dim % of->kernel.head_dim_multiple == 0) return dim;
    }
}

static int32_t draw_rows(chk_rng *rng, int32_t block) {
    const int32_t rows[] = {1, 2, block - 1, block, block + 1, 2 * block + 1, 15, 16, 17, 33, 4 * block, 64, 96};
    int32_t drawn = chk_chance(rng, 4) ? RELAYI_MAX_ROWS - chk_between(rng, 0, 1) : CHK_PICK(rng, rows);
    return drawn < 1 ? 1 : drawn > RELAYI_MAX_ROWS ? RELAYI_MAX_ROWS : drawn;
}

static void draw_span(chk_rng *rng, attend_case *k, int32_t index) {
    static const int32_t lengths[] = {1, 2, 15, 16, 17, 31, 32, 33, 61, 63, 64, 65, 127, 128, 129, 191, 193, 255, 257, 300};
    static const int32_t begins[] = {0, 0, 0, 64, 128, 192};
    k->at[index] = (place)chk_between(rng, 0, NUM_PLACES - 1);
    k->begin[index] = CHK_PICK(rng, begins);
    int32_t length = CHK_PICK(rng, lengths);
    if (k->rows > 48 && length > 129) length /= 2;
    k->end[index] = k->begin[index] + length;
    k->tokens[index] = k->end[index] + (chk_chance(rng, 50) ? 0 : chk_between(rng, 1, 20));
}

static attend_case draw_case(const chk *c, const listed *of, int64_t index) {
    attend_case k = {.seed = chk_mix(chk_mix(c->seed, 7000 + (uint64_t)(of - kernels)), (uint64_t)index)};
    chk_rng rng = chk_rng_at(k.seed, 1);
    static const int32_t block_sizes[] = {1, 7, 16, 16, 32, 64, 100};
    k.kind = chk_chance(&rng, 40) ? CHK_UNIFORM : (chk_kind)chk_between(&rng, 0, CHK_NUM_KINDS - 1);
    k.sees = (sight)(index % NUM_SIGHTS);
    k.dim = draw_dim(&rng, of);
    k.rows = draw_rows(&rng, of->kernel.row_block);
    k.spans = chk_between(&rng, 1, MAX_ATTEND_SPANS);
    k.block_size = CHK_PICK(&rng, block_sizes);
    k.scale = 1 / sqrtf((float)k.dim);
    for (int32_t i = 0; i < k.spans; i++) draw_span(&rng, &k, i);
    k.cap = (of->kernel.features & RELAYI_DOES_SOFT_CAP) && chk_chance(&rng, 25);
    k.alibi = (of->kernel.features & RELAYI_DOES_ALIBI) && chk_chance(&rng, 25);
    k.sinks = (of->kernel.features & RELAYI_DOES_SINK_TOKENS) && chk_chance(&rng, 30);
    if (k.cap) k.soft_cap = (float)chk_uniform(&rng, 1, 50);
    return k;
}

static bool begin_case(chk *c, const listed *of, int64_t index, const attend_case *k) {
    static const char places[] = "kpo"; /* packed, pages, one tensor */
    char spans[128] = "";
    int at = 0;
    for (int32_t i = 0; i < k->spans; i++)
        at += snprintf(spans + at, sizeof spans - (size_t)at, " %c[%d,%d)", places[k->at[i]], k->begin[i], k->end[i]);
    return chk_begin(c, "%s %lld: %d rows x %d, spans%s, block %d, %s, sees %s%s%s%s", of->kernel.name,
                     (long long)index, k->rows, k->dim, spans, k->block_size, chk_kind_name(k->kind),
                     sight_names[k->sees], k->cap ? ", cap" : "", k->alibi ? ", alibi" : "", k->sinks ? ", sinks" : "");
}

void chk_kernels(chk *c) {
    uint32_t flags = c->device[1]->flags;
    for (int i = 0; i < NUM_KERNELS; i++) {
        const listed *of = &kernels[i];
        if ((flags & of->flags) != of->flags) {
            chk_skip(c, "%s: not on this processor, or above RELAY_CPU", of->kernel.name);
            continue;
        }
        for (int64_t index = 0; index < (c->quick ? 16 : 160); index++) {
            attend_case k = draw_case(c, of, index);
            if (!begin_case(c, of, index, &k)) continue;
            check_case(c, &k, of);
            chk_end(c);
        }
    }
}
