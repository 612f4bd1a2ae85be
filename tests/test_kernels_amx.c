/* The AMX kernels against a float64 oracle. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernel_list.h"
#include "test.h"
#include "x86/amx_permission.h"
#include "x86/x86.h"

typedef enum layout { PACKED, PAGED, CONTIGUOUS, NUM_LAYOUTS } layout;
typedef enum masking { ALL, CAUSAL, WINDOW, SINKS, RAGGED, NUM_MASKINGS } masking;

typedef struct shape {
    layout layout;
    masking masking;
    int32_t rows, dim, begin, end;
    int32_t block_size, kv_heads;
    float scale, soft_cap;
    bool alibi;
    float query_size; /* standard deviation of the queries */
} shape;

typedef struct kernel_case {
    const char *name;
    relayi_attend_fn *attend;
    bool split;
    double tolerance; /* relative Frobenius */
    double lse_tolerance;
} kernel_case;

static const kernel_case KERNELS[] = {
    {"bf16_amx", relayi_attend_bf16_amx, false, 4e-3, 2e-5},
    {"bf16_few_amx", relayi_attend_bf16_few_amx, false, 4e-3, 2e-5},
    {"bf16_split_amx", relayi_attend_bf16_split_amx, true, 1e-5, 1e-5},
};
enum { NUM_KERNELS = sizeof KERNELS / sizeof *KERNELS };

/* ---- numbers */

static uint64_t seed = 1;

static double uniform(void) {
    seed += 0x9e3779b97f4a7c15u;
    uint64_t z = seed;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static double normal(void) {
    return sqrt(-2.0 * log(1.0 - uniform())) * cos(6.283185307179586 * uniform());
}

static uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float from_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static const uint16_t NOT_A_NUMBER = 0x7fc0;

/* ---- memory that faults right behind its last byte */

typedef struct guarded {
    char *map;
    size_t bytes;
    void *at;
} guarded;

static guarded guarded_alloc(size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (bytes + page - 1) / page * page;
    guarded g = {.bytes = body + page};
    g.map = mmap(NULL, g.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.map == MAP_FAILED || mprotect(g.map + body, page, PROT_NONE) != 0) {
        perror("mmap");
        exit(1);
    }
    g.at = g.map + body - bytes;
    return g;
}

static void guarded_free(guarded *g) { munmap(g->map, g->bytes); }

/* ---- a problem: K and V as float64-exact bf16 [tokens][dim], and laid out for the kernel */

typedef struct problem {
    shape shape;
    uint16_t *key, *value; /* [end][dim] */
    float *query;          /* [rows][dim] */
    relayi_range *range;
    float *slope;
    guarded key_memory, value_memory, table_memory;
    relayi_kv kv;
} problem;

static void *allocate(size_t bytes) {
    void *area = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (!area) exit(1);
    return area;
}

static relayi_range make_range(const shape *s, int32_t row) {
    relayi_range range = {0, s->end, 0, s->end + row};
    int32_t diagonal = s->begin + (int32_t)((int64_t)(s->end - s->begin) * (row + 1) / s->rows);
    switch (s->masking) {
    case CAUSAL: range.hi = diagonal; break;
    case WINDOW:
        range.hi = diagonal;
        range.lo = diagonal > 40 ? diagonal - 40 : 0;
        break;
    case SINKS:
        range.hi = diagonal;
        range.lo = diagonal > 70 ? diagonal - 70 : 0;
        range.sinks = s->begin + row % 7;
        break;
    case RAGGED:
        range.lo = (int32_t)(uniform() * s->end);
        range.hi = (int32_t)(uniform() * 1.2 * s->end);
        range.sinks = row % 3 == 0 ? (int32_t)(uniform() * s->end) : 0;
        break;
    default: break;
    }
    return range;
}

static bool sees(const problem *p, int32_t row, int32_t token) {
    const relayi_range *r = &p->range[row];
    if (token < p->shape.begin || token >= p->shape.end) return false;
    return p->shape.masking == ALL || (r->lo <= token && token < r->hi) || token < r->sinks;
}

static int32_t padded_tokens(const shape *s) { return (s->end + RELAYI_TILE - 1) / RELAYI_TILE * RELAYI_TILE; }

static void lay_out_packed(problem *p) {
    const shape *s = &p->shape;
    size_t bytes = (size_t)padded_tokens(s) * (size_t)s->dim * 2;
    p->key_memory = guarded_alloc(bytes);
    p->value_memory = guarded_alloc(bytes);
    p->table_memory = guarded_alloc(64);
    uint16_t *key = p->key_memory.at, *value = p->value_memory.at;
    for (int32_t n = 0; n < s->end; n++) {
        int64_t tile = n / RELAYI_TILE * relayi_tile_elements(s->dim);
        for (int32_t d = 0; d < s->dim; d++) {
            key[tile + relayi_k_offset(1, n % RELAYI_TILE, d)] = p->key[n * s->dim + d];
            value[tile + relayi_v_offset(1, s->dim, n % RELAYI_TILE, d)] = p->value[n * s->dim + d];
        }
    }
    p->kv = (relayi_kv){.packed = 1, .key = key, .value = value};
}

/* Pages of [block][token][kv head][dim], the last head's: NaN wherever the kernel has no business,
 * wild block numbers behind the table's last entry that it may use, and before its first. */
static void lay_out_pages(problem *p) {
    const shape *s = &p->shape;
    int32_t size = s->layout == PAGED ? s->block_size : s->end;
    int32_t blocks = (s->end + size - 1) / size;
    int64_t token = (int64_t)s->kv_heads * s->dim, block = size * token;
    size_t bytes = (size_t)(blocks * block) * 2;
    p->key_memory = guarded_alloc(bytes);
    p->value_memory = guarded_alloc(bytes);
    p->table_memory = guarded_alloc(sizeof(int32_t) * (size_t)blocks);
    uint16_t *key = p->key_memory.at, *value = p->value_memory.at;
    int32_t *table = p->table_memory.at;
    for (int64_t i = 0; i < blocks * block; i++) key[i] = value[i] = NOT_A_NUMBER;
    for (int32_t b = 0; b < blocks; b++) table[b] = blocks - 1 - b;
    int64_t head = (s->kv_heads - 1) * s->dim;
    for (int32_t n = s->begin; n < s->end; n++) {
        int64_t at = head + table[n / size] * block + n % size * token;
        memcpy(key + at, p->key + n * s->dim, (size_t)s->dim * 2);
        memcpy(value + at, p->value + n * s->dim, (size_t)s->dim * 2);
    }
    for (int32_t b = 0; b < s->begin / size; b++) table[b] = INT32_MAX - b;
    p->kv = (relayi_kv){.key = key + head, .value = value + head, .block_size = size,
                        .block_table = s->layout == PAGED ? table : NULL,
                        .key_block_stride = block, .key_token_stride = token,
                        .value_block_stride = block, .value_token_stride = token};
}

static void lay_out(problem *p) {
    if (p->shape.layout == PACKED) lay_out_packed(p);
    else lay_out_pages(p);
}

static void take_down(problem *p) {
    guarded_free(&p->key_memory);
    guarded_free(&p->value_memory);
    guarded_free(&p->table_memory);
}

static problem make_problem(const shape *s, bool exact_queries) {
    problem p = {.shape = *s};
    size_t tokens = (size_t)(s->end * s->dim);
    p.key = allocate(tokens * 2);
    p.value = allocate(tokens * 2);
    p.query = allocate((size_t)(s->rows * s->dim) * 4);
    p.range = allocate((size_t)s->rows * sizeof *p.range);
    p.slope = allocate((size_t)s->rows * 4);
    for (size_t i = 0; i < tokens; i++) {
        p.key[i] = to_bf16((float)normal());
        p.value[i] = to_bf16((float)normal());
    }
    for (int32_t i = 0; i < s->rows * s->dim; i++) {
        float q = (float)normal() * s->query_size;
        p.query[i] = exact_queries ? q : from_bf16(to_bf16(q));
    }
    for (int32_t r = 0; r < s->rows; r++) {
        p.range[r] = make_range(s, r);
        p.slope[r] = 0.01f * (float)(r + 1) / (float)s->rows;
    }
    lay_out(&p);
    return p;
}

static void free_problem(problem *p) {
    take_down(p);
    free(p->key);
    free(p->value);
    free(p->query);
    free(p->range);
    free(p->slope);
}

/* ---- oracle */

static double oracle_score(const problem *p, int32_t row, int32_t token) {
    const shape *s = &p->shape;
    double dot = 0.0;
    for (int32_t d = 0; d < s->dim; d++)
        dot += (double)p->query[row * s->dim + d] * (double)from_bf16(p->key[token * s->dim + d]);
    double score = dot * (double)s->scale;
    if (s->soft_cap > 0.0f) score = (double)s->soft_cap * tanh(score / (double)s->soft_cap);
    if (s->alibi) score += (double)p->slope[row] * (token - p->range[row].distance);
    return score;
}

/* out[dim]; returns the lse. */
static double oracle_row(const problem *p, int32_t row, double *out) {
    int32_t dim = p->shape.dim;
    double max = -INFINITY, sum = 0.0;
    for (int32_t d = 0; d < dim; d++) out[d] = 0.0;
    for (int32_t n = p->shape.begin; n < p->shape.end; n++) {
        if (!sees(p, row, n)) continue;
        double score = oracle_score(p, row, n), old = max;
        if (score > max) max = score;
        double shrink = old == max ? 1.0 : exp(old - max), weight = exp(score - max);
        sum = sum * shrink + weight;
        for (int32_t d = 0; d < dim; d++)
            out[d] = out[d] * shrink + weight * (double)from_bf16(p->value[n * dim + d]);
    }
    if (sum == 0.0) return -INFINITY;
    for (int32_t d = 0; d < dim; d++) out[d] /= sum;
    return max + log(sum);
}

/* ---- running a kernel */

typedef struct state {
    float *acc, *max, *sum;
} state;

static state new_state(const problem *p) {
    int32_t rows = p->shape.rows, dim = p->shape.dim;
    state st = {allocate((size_t)(rows * dim) * 4), allocate((size_t)rows * 4), allocate((size_t)rows * 4)};
    memset(st.acc, 0, (size_t)(rows * dim) * 4);
    for (int32_t r = 0; r < rows; r++) {
        st.max[r] = -INFINITY;
        st.sum[r] = 0.0f;
    }
    return st;
}

static void free_state(state *st) {
    free(st->acc);
    free(st->max);
    free(st->sum);
}

static void *scratch;

/* Rows [first, first + rows), tokens [begin, end). */
static void run(const kernel_case *k, const problem *p, state *st, int32_t first, int32_t rows, int32_t begin,
                int32_t end) {
    const shape *s = &p->shape;
    float *query = allocate((size_t)(rows * s->dim) * 4), *acc = allocate((size_t)(rows * s->dim) * 4);
    memcpy(query, p->query + first * s->dim, (size_t)(rows * s->dim) * 4);
    memcpy(acc, st->acc + first * s->dim, (size_t)(rows * s->dim) * 4);
    acc[rows * s->dim] = 77.0f; /* allocate() adds a cache line */
    relayi_attend_args args = {.rows = rows, .head_dim = s->dim, .query = query, .range = p->range + first,
                               .all_visible = s->masking == ALL, .slope = s->alibi ? p->slope + first : NULL,
                               .scale = s->scale, .soft_cap = s->soft_cap, .kv = p->kv, .begin = begin, .end = end,
                               .acc = acc, .max = st->max + first, .sum = st->sum + first, .scratch = scratch};
    k->attend(&args);
    CHECK(acc[rows * s->dim] == 77.0f);
    memcpy(st->acc + first * s->dim, acc, (size_t)(rows * s->dim) * 4);
    free(query);
    free(acc);
}

static void describe(char *text, size_t size, const kernel_case *k, const shape *s) {
    snprintf(text, size, "%s layout %d mask %d rows %d dim %d tokens %d..%d block %d scale %g cap %g alibi %d",
             k->name, s->layout, s->masking, s->rows, s->dim, s->begin, s->end, s->block_size, (double)s->scale,
             (double)s->soft_cap, s->alibi);
}

/* ---- checks */

static double worst_error[NUM_KERNELS], worst_lse[NUM_KERNELS];

static void compare(const kernel_case *k, const problem *p, const state *st, double loosen) {
    const shape *s = &p->shape;
    double *out = allocate(sizeof *out * (size_t)s->dim), difference = 0.0, norm = 0.0, lse_error = 0.0;
    int32_t wrong_masks = 0;
    for (int32_t r = 0; r < s->rows; r++) {
        double lse = oracle_row(p, r, out), sum = (double)st->sum[r];
        double got_lse = sum == 0.0 ? -INFINITY : (double)st->max[r] + log(sum);
        if (isnan(lse) != isnan(got_lse) || isinf(lse) != isinf(got_lse)) wrong_masks++;
        else if (isfinite(lse)) lse_error = fmax(lse_error, fabs(lse - got_lse) / fmax(1.0, fabs(lse)));
        for (int32_t d = 0; d < s->dim; d++) {
            double got = sum == 0.0 ? (double)st->acc[r * s->dim + d] : (double)st->acc[r * s->dim + d] / sum;
            if (isfinite(got) != isfinite(out[d]) || isnan(got) != isnan(out[d])) wrong_masks++;
            if (!isfinite(out[d])) continue;
            difference += (got - out[d]) * (got - out[d]);
            norm += out[d] * out[d];
        }
    }
    double error = norm > 0.0 ? sqrt(difference / norm) : sqrt(difference);
    char text[256];
    describe(text, sizeof text, k, s);
    CHECK_MSG(wrong_masks == 0, "%s: %d wrong NaN or Inf", text, wrong_masks);
    CHECK_MSG(error <= k->tolerance * loosen, "%s: error %g", text, error);
    CHECK_MSG(lse_error <= k->lse_tolerance * loosen, "%s: lse error %g", text, lse_error);
    worst_error[k - KERNELS] = fmax(worst_error[k - KERNELS], error / loosen);
    worst_lse[k - KERNELS] = fmax(worst_lse[k - KERNELS], lse_error / loosen);
    free(out);
}

static shape plain_shape(layout where, int32_t rows, int32_t dim, int32_t end) {
    return (shape){.layout = where, .rows = rows, .dim = dim, .end = end, .block_size = 16, .kv_heads = 2,
                   .scale = 1.0f / sqrtf((float)dim), .query_size = 1.0f};
}

static void check_shape_loosened(const shape *s, double loosen) {
    for (int i = 0; i < NUM_KERNELS; i++) {
        problem p = make_problem(s, KERNELS[i].split);
        state st = new_state(&p);
        run(&KERNELS[i], &p, &st, 0, s->rows, s->begin, s->end);
        compare(&KERNELS[i], &p, &st, loosen);
        free_state(&st);
        free_problem(&p);
    }
}

static void check_shape(const shape *s) { check_shape_loosened(s, 1.0); }

static const int32_t DIMS[] = {64, 80, 96, 112, 128, 192, 256, 16, 48, 32};
static const int32_t LENGTHS[] = {1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 251, 257, 509, 577};
enum { NUM_DIMS = sizeof DIMS / sizeof *DIMS, NUM_LENGTHS = sizeof LENGTHS / sizeof *LENGTHS };

static void test_lengths(void) {
    for (layout where = 0; where < NUM_LAYOUTS; where++)
        for (int i = 0; i < NUM_LENGTHS; i++)
            for (masking m = 0; m < NUM_MASKINGS; m++) {
                shape s = plain_shape(where, 5 + 13 * (int)m, 64, LENGTHS[i]);
                s.masking = m;
                check_shape(&s);
            }
}

static void test_dims(void) {
    for (layout where = 0; where < NUM_LAYOUTS; where++)
        for (int i = 0; i < NUM_DIMS; i++)
            for (int32_t rows = 3; rows <= 67; rows += 16) {
                shape s = plain_shape(where, rows, DIMS[i], 197);
                s.masking = (masking)((rows / 16) % NUM_MASKINGS);
                check_shape(&s);
            }
}

static void test_rows(void) {
    for (layout where = 0; where < NUM_LAYOUTS; where++) {
        for (int32_t rows = 1; rows <= 33; rows++) {
            shape s = plain_shape(where, rows, 96, 83);
            check_shape(&s);
        }
        const int32_t many[] = {48, 64, 79, 128, 255, 256};
        for (int i = 0; i < 6; i++) {
            shape s = plain_shape(where, many[i], 128, 333);
            s.masking = i % 2 ? CAUSAL : ALL;
            check_shape(&s);
        }
    }
}

static void test_features(void) {
    for (layout where = 0; where < NUM_LAYOUTS; where++)
        for (masking m = 0; m < NUM_MASKINGS; m++)
            for (int bits = 0; bits < 8; bits++) {
                shape s = plain_shape(where, 21, 64, 150);
                s.masking = m;
                s.soft_cap = bits & 1 ? 2.5f : 0.0f;
                s.alibi = bits & 2;
                if (bits & 4) s.scale = -s.scale;
                check_shape(&s);
            }
}

static void test_blocks_and_begin(void) {
    const int32_t sizes[] = {16, 20, 32, 48, 64, 128};
    for (int i = 0; i < 6; i++)
        for (int32_t begin = 0; begin <= 320; begin += 64)
            for (int32_t rows = 4; rows <= 36; rows += 32) {
                shape s = plain_shape(PAGED, rows, 64, 411);
                s.block_size = sizes[i];
                s.begin = begin;
                s.masking = (masking)(begin / 64 % NUM_MASKINGS);
                check_shape(&s);
            }
}

/* Score gaps of about 100, and equal scores. */
static void test_extremes(void) {
    for (layout where = 0; where < NUM_LAYOUTS; where++) {
        shape s = plain_shape(where, 19, 128, 700);
        s.query_size = 0.0f;
        check_shape(&s);
        s.query_size = 30.0f;
        check_shape_loosened(&s, 4.0);
    }
}

/* A span in pieces is the span. */
static void test_pieces(void) {
    for (layout where = 0; where < NUM_LAYOUTS; where++)
        for (int i = 0; i < NUM_KERNELS; i++) {
            shape s = plain_shape(where, 37, 112, 390);
            s.masking = CAUSAL;
            problem p = make_problem(&s, KERNELS[i].split);
            state st = new_state(&p);
            const int32_t cut[] = {0, 64, 192, 320, 390};
            for (int c = 0; c < 4; c++) run(&KERNELS[i], &p, &st, 0, s.rows, cut[c], cut[c + 1]);
            compare(&KERNELS[i], &p, &st, 1.0);
            free_state(&st);
            free_problem(&p);
        }
}

/* ---- laws */

/* Any rows, in any place of the block and in any company, bit for bit. */
static void test_row_invariance(void) {
    for (layout where = 0; where < NUM_LAYOUTS; where++)
        for (masking m = 0; m < NUM_MASKINGS; m++)
            for (int i = 0; i < NUM_KERNELS; i++) {
                shape s = plain_shape(where, 150, 80, 601);
                s.masking = m;
                s.query_size = 4.0f;
                problem p = make_problem(&s, KERNELS[i].split);
                state all = new_state(&p), parts = new_state(&p);
                run(&KERNELS[i], &p, &all, 0, s.rows, 0, s.end);
                for (int32_t first = 0, rows = 1; first < s.rows; first += rows, rows = rows % 23 + 3) {
                    if (rows > s.rows - first) rows = s.rows - first;
                    run(&KERNELS[i], &p, &parts, first, rows, 0, s.end);
                }
                char text[256];
                describe(text, sizeof text, &KERNELS[i], &s);
                CHECK_MSG(memcmp(all.acc, parts.acc, (size_t)(s.rows * s.dim) * 4) == 0, "%s", text);
                CHECK_MSG(memcmp(all.max, parts.max, (size_t)s.rows * 4) == 0, "%s", text);
                CHECK_MSG(memcmp(all.sum, parts.sum, (size_t)s.rows * 4) == 0, "%s", text);
                free_state(&all);
                free_state(&parts);
                free_problem(&p);
            }
}

/* NaN and Inf reach the rows that see their token, and no other. */
static void test_poison(void) {
    for (layout where = 0; where < NUM_LAYOUTS; where++)
        for (masking m = 0; m < NUM_MASKINGS; m++)
            for (int what = 0; what < 4; what++)
                for (int i = 0; i < NUM_KERNELS; i++) {
                    shape s = plain_shape(where, 70, 96, 333);
                    s.masking = m;
                    problem p = make_problem(&s, KERNELS[i].split);
                    take_down(&p);
                    int32_t at = 200 * s.dim + 17;
                    if (what == 0) p.key[at] = NOT_A_NUMBER;
                    if (what == 1) p.value[at] = NOT_A_NUMBER;
                    if (what == 2) p.value[at] = 0x7f80;
                    if (what == 3) p.query[44 * s.dim + 3] = NAN;
                    lay_out(&p);
                    state st = new_state(&p);
                    run(&KERNELS[i], &p, &st, 0, s.rows, 0, s.end);
                    compare(&KERNELS[i], &p, &st, 1.0);
                    free_state(&st);
                    free_problem(&p);
                }
}

/* What stands behind `end` in a packed tile, or is seen by no row, does not matter. */
static void test_hidden_poison(void) {
    for (layout where = 0; where < NUM_LAYOUTS; where++)
        for (int i = 0; i < NUM_KERNELS; i++) {
            shape s = plain_shape(where, 20, 64, 320);
            s.masking = CAUSAL;
            problem p = make_problem(&s, KERNELS[i].split);
            for (int32_t r = 0; r < s.rows; r++) {
                p.range[r].lo = 70;
                p.range[r].hi = 220 + r;
            }
            take_down(&p);
            for (int32_t n = 0; n < s.end; n++)
                if (n < 70 || n >= 220 + s.rows - 1) p.key[n * s.dim + n % 64] = p.value[n * s.dim + n % 64] = NOT_A_NUMBER;
            lay_out(&p);
            state st = new_state(&p);
            p.shape.end = 230;
            run(&KERNELS[i], &p, &st, 0, s.rows, 0, 230);
            compare(&KERNELS[i], &p, &st, 1.0);
            free_state(&st);
            p.shape.end = s.end;
            free_problem(&p);
        }
}

/* ---- few rows */

static const kernel_case *kernel_named(const char *name) {
    for (int i = 0; i < NUM_KERNELS; i++)
        if (strcmp(KERNELS[i].name, name) == 0) return &KERNELS[i];
    CHECK_MSG(false, "no kernel %s", name);
    exit(1);
}

static void poison(problem *p, int what, int32_t token) {
    const shape *s = &p->shape;
    take_down(p);
    if (what == 1) p->key[token * s->dim + 17] = NOT_A_NUMBER;
    if (what == 2) p->value[token * s->dim + 17] = NOT_A_NUMBER;
    if (what == 3) p->value[token * s->dim + 17] = 0x7f80;
    if (what == 4) p->query[3] = NAN;
    lay_out(p);
}

/* Rows, head dims and lengths that the kernel takes itself; what = 0: nothing is poisoned. */
static void test_few_rows(void) {
    static const int32_t rows[] = {1, 2, 4, 5, 8, 13, 16}, dims[] = {32, 64, 96, 128, 256}, ends[] = {1, 16, 47, 128, 129, 301};
    const kernel_case *k = kernel_named("bf16_few_amx");
    for (layout where = PAGED; where < NUM_LAYOUTS; where++)
        for (int r = 0; r < 7; r++)
            for (int d = 0; d < 5; d++)
                for (int e = 0; e < 6; e++)
                    for (int what = 0; what < 5; what++) {
                        shape s = plain_shape(where, rows[r], dims[d], ends[e]);
                        s.query_size = e % 2 ? 1.0f : 12.0f;
                        problem p = make_problem(&s, false);
                        poison(&p, what, ends[e] / 2);
                        state st = new_state(&p);
                        run(k, &p, &st, 0, s.rows, 0, s.end);
                        compare(k, &p, &st, 1.0);
                        free_state(&st);
                        free_problem(&p);
                    }
}

static relayi_attend_args head_call(const problem *p, state *st, float *query) {
    const shape *s = &p->shape;
    memcpy(query, p->query, (size_t)(s->rows * s->dim) * 4);
    return (relayi_attend_args){.rows = s->rows, .head_dim = s->dim, .query = query, .range = p->range,
                                .all_visible = 1, .scale = s->scale, .kv = p->kv, .end = s->end, .acc = st->acc,
                                .max = st->max, .sum = st->sum, .scratch = scratch};
}

/* More heads than go through a phase together, one of them not finite: what each gives by itself. */
static void test_several_heads(void) {
    enum { HEADS = 11 };
    const kernel_case *k = kernel_named("bf16_few_amx");
    shape s = plain_shape(PAGED, 5, 64, 301);
    problem p[HEADS];
    state together[HEADS], alone[HEADS];
    relayi_attend_args calls[HEADS];
    float *query = allocate(sizeof *query * (size_t)(HEADS * s.rows * s.dim + HEADS * 16));
    relayi_soon soon[] = {{(const char *)query, 1, 3, 1000}, {(const char *)query, 0, 1, 64}};
    for (int h = 0; h < HEADS; h++) {
        p[h] = make_problem(&s, false);
        if (h == 4) poison(&p[h], 2, 150);
        together[h] = new_state(&p[h]);
        alone[h] = new_state(&p[h]);
        calls[h] = head_call(&p[h], &together[h], query + h * (s.rows * s.dim + 16));
        run(k, &p[h], &alone[h], 0, s.rows, 0, s.end);
    }
    calls[0].soon = soon;
    calls[0].num_soon = 2;
    relayi_attend_heads_bf16_few_amx(calls, HEADS);
    for (int h = 0; h < HEADS; h++) {
        CHECK_MSG(memcmp(together[h].acc, alone[h].acc, (size_t)(s.rows * s.dim) * 4) == 0, "head %d", h);
        CHECK_MSG(memcmp(together[h].sum, alone[h].sum, (size_t)s.rows * 4) == 0, "head %d", h);
        compare(k, &p[h], &together[h], 1.0);
        free_state(&together[h]);
        free_state(&alone[h]);
        free_problem(&p[h]);
    }
    free(query);
}

static bool cpu_has_amx(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512bw")) return false;
    unsigned a = 7, b = 0, c = 0, d = 0;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return (d >> 24 & 1) && (d >> 22 & 1) && relayi_amx_request();
}

int main(void) {
    if (!cpu_has_amx()) {
        printf("3 kernels skipped: this CPU or system has no AMX bf16\n");
        return 0;
    }
    scratch = allocate(RELAYI_SCRATCH_AMX);
    memset(scratch, 0xff, RELAYI_SCRATCH_AMX);
    test_lengths();
    test_dims();
    test_rows();
    test_features();
    test_blocks_and_begin();
    test_extremes();
    test_pieces();
    test_row_invariance();
    test_poison();
    test_few_rows();
    test_several_heads();
    test_hidden_poison();
    for (int i = 0; i < NUM_KERNELS; i++)
        printf("%s: largest relative error %.2e, largest lse error %.2e\n", KERNELS[i].name, worst_error[i],
               worst_lse[i]);
    free(scratch);
    return test_result();
}
