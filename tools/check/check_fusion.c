/* The laws of fusion, and fusion against float64. */
#include <math.h>
#include <string.h>

#include "check_data.h"
#include "check_oracle.h"

#include "check.h"

enum { MAX_PARTS = 5 };

typedef enum lse_kind {
    LSE_NEAR,    /* within a few units of each other */
    LSE_EQUAL,
    LSE_GAP100,
    LSE_GAP1E4,
    LSE_EMPTY,   /* half of them -INFINITY, in some rows all */
    LSE_ENDLESS, /* half of them +INFINITY, in some rows all */
    LSE_NAN,     /* some NaN, in outputs and in LSEs */
    LSE_INFINITE_OUT, /* near; some outputs are infinite */
    NUM_LSE_KINDS
} lse_kind;

static const char *const lse_names[] = {"near", "equal", "gap-100", "gap-1e4", "empty", "endless", "nan", "infinite outputs"};
static const relay_dtype dtypes[] = {RELAY_F32, RELAY_F16, RELAY_BF16};

typedef struct fuse_case {
    uint64_t seed;
    int64_t rows;
    int32_t heads, dim, parts, threads;
    relay_dtype part_dtype, output_dtype;
    chk_form form, lse_form;
    lse_kind kind;
    bool wants_lse;
} fuse_case;

typedef struct fuse_parts {
    chk_tensor out[MAX_PARTS], lse[MAX_PARTS];
} fuse_parts;

/* ---- data ---------------------------------------------------------------- */

static double draw_lse(chk_rng *rng, lse_kind kind, int64_t row) {
    double lse = chk_uniform(rng, -3, 3);
    bool half = chk_chance(rng, 50) || row % 5 == 3;
    switch (kind) {
    case LSE_EQUAL: return 1.5;
    case LSE_GAP100: return half ? lse - 100 : lse;
    case LSE_GAP1E4: return half ? lse - 1e4 : lse;
    case LSE_EMPTY: return half ? -INFINITY : lse;
    case LSE_ENDLESS: return half ? INFINITY : lse;
    case LSE_NAN: return row % 7 == 2 && half ? NAN : lse;
    default: return lse;
    }
}

/* What an empty part has for an output is never read: NaN.  A negative zero must come through. */
static double draw_element(chk_rng *rng, double lse, lse_kind kind) {
    double value = chk_uniform(rng, -1, 1);
    if (isinf(lse) || (kind == LSE_NAN && chk_chance(rng, 1))) return NAN;
    if (kind == LSE_INFINITE_OUT && chk_chance(rng, 8)) return chk_chance(rng, 50) ? INFINITY : -INFINITY;
    return chk_chance(rng, 3) ? -0.0 : value;
}

static bool make_parts(const fuse_case *k, fuse_parts *parts) {
    chk_rng rng = chk_rng_at(k->seed, 3);
    int64_t shape[3] = {k->rows, k->heads, k->dim};
    memset(parts, 0, sizeof *parts);
    for (int32_t i = 0; i < k->parts; i++) {
        chk_tensor *out = &parts->out[i], *lse = &parts->lse[i];
        if (!chk_tensor_make(out, k->part_dtype, k->form, 3, shape)) return false;
        if (!chk_tensor_make(lse, RELAY_F32, k->lse_form, 2, shape)) return false;
        for (int64_t row = 0; row < k->rows; row++) {
            for (int32_t h = 0; h < k->heads; h++) {
                double l = draw_lse(&rng, k->kind, row);
                chk_store(lse->view.data, RELAY_F32, chk_tensor_at(&lse->view, row, h, 0, 0), l);
                for (int32_t d = 0; d < k->dim; d++)
                    chk_store(out->view.data, k->part_dtype, chk_tensor_at(&out->view, row, h, d, 0),
                              draw_element(&rng, l, k->kind));
            }
        }
    }
    return true;
}

static void free_parts(fuse_parts *parts) {
    for (int32_t i = 0; i < MAX_PARTS; i++) {
        chk_tensor_free(&parts->out[i]);
        chk_tensor_free(&parts->lse[i]);
    }
}

/* ---- both answers -------------------------------------------------------- */

static bool read_result(chk_result *to, const relay_tensor *out, const relay_tensor *lse, int32_t heads, int32_t dim) {
    if (!chk_result_make(to, out->shape[0], heads, dim, false)) return false;
    for (int64_t i = 0; i < to->rows * heads; i++) {
        for (int32_t d = 0; d < dim; d++)
            to->out[i * dim + d] = chk_load(out->data, out->dtype, chk_tensor_at(out, i / heads, i % heads, d, 0));
        to->lse[i] = chk_load(lse->data, RELAY_F32, chk_tensor_at(lse, i / heads, i % heads, 0, 0));
    }
    return true;
}

/* A write to a part then faults. */
static void protect_parts(const fuse_parts *parts, const int32_t *order, int32_t count, bool read_only) {
    for (int32_t i = 0; i < count; i++) {
        chk_buffer_read_only(&parts->out[order[i]].buffer, read_only);
        chk_buffer_read_only(&parts->lse[order[i]].buffer, read_only);
    }
}

/* Fuses parts[order[0]], parts[order[1]], ... into fresh tensors. */
static bool fuse(chk *c, const fuse_case *k, const fuse_parts *parts, const int32_t *order, int32_t count,
                 chk_tensor *out, chk_tensor *lse) {
    relay_tensor outs[MAX_PARTS], lses[MAX_PARTS];
    int64_t shape[3] = {k->rows, k->heads, k->dim};
    for (int32_t i = 0; i < count; i++) {
        outs[i] = parts->out[order[i]].view;
        lses[i] = parts->lse[order[i]].view;
    }
    if (!chk_tensor_make(out, k->output_dtype, k->form, 3, shape)) return false;
    if (!chk_tensor_make(lse, RELAY_F32, k->lse_form, 2, shape)) return false;
    relay_fuse_args args = relay_fuse_args_defaults();
    args.num_parts = count;
    args.outputs = outs;
    args.lses = lses;
    args.output = out->view;
    if (k->wants_lse) args.lse = lse->view;
    protect_parts(parts, order, count, true);
    bool ok = chk_ok(c, "relay_fuse", relay_fuse(c->device[k->threads], &args));
    protect_parts(parts, order, count, false);
    if (ok && (!chk_buffer_intact(&out->buffer) || !chk_buffer_intact(&lse->buffer)))
        chk_fail(c, "something before or after an output was written");
    return ok;
}

static bool fuse_result(chk *c, const fuse_case *k, const fuse_parts *parts, const int32_t *order, int32_t count,
                        chk_result *got) {
    chk_tensor out = {0}, lse = {0};
    bool ok = fuse(c, k, parts, order, count, &out, &lse) && read_result(got, &out.view, &lse.view, k->heads, k->dim);
    if (ok && !k->wants_lse) {
        for (int64_t i = 0; i < lse.elements; i++)
            if (!isnan(chk_load(lse.view.data, RELAY_F32, i))) chk_fail(c, "an lse was written that was not asked for");
    }
    chk_tensor_free(&out);
    chk_tensor_free(&lse);
    return ok;
}

static bool expect(const fuse_case *k, const fuse_parts *parts, chk_result *want) {
    static double values[MAX_PARTS][512];
    const double *out[MAX_PARTS];
    double lse[MAX_PARTS];
    if (!chk_result_make(want, k->rows, k->heads, k->dim, true)) return false;
    for (int64_t at = 0; at < k->rows * k->heads; at++) {
        int64_t row = at / k->heads, h = at % k->heads;
        for (int32_t i = 0; i < k->parts; i++) {
            const relay_tensor *view = &parts->out[i].view;
            lse[i] = chk_load(parts->lse[i].view.data, RELAY_F32, chk_tensor_at(&parts->lse[i].view, row, h, 0, 0));
            for (int32_t d = 0; d < k->dim; d++)
                values[i][d] = chk_load(view->data, view->dtype, chk_tensor_at(view, row, h, d, 0));
            out[i] = values[i];
        }
        oracle_fuse(k->parts, k->dim, out, lse, want->out + at * k->dim, &want->lse[at], want->spread + at * k->dim);
        want->magnitude[at] = fabs(want->lse[at]) < INFINITY ? fabs(want->lse[at]) : 0;
    }
    return true;
}

/* ---- laws ---------------------------------------------------------------- */

static const int32_t in_order[MAX_PARTS] = {0, 1, 2, 3, 4};

static void against_oracle(chk *c, const fuse_case *k, const fuse_parts *parts, chk_result *want) {
    chk_result got = {0};
    if (fuse_result(c, k, parts, in_order, k->parts, &got)) {
        double *lse = got.lse;
        if (!k->wants_lse) got.lse = NULL;
        chk_compare(c, want, &got, chk_tolerance_for(c, k->part_dtype == RELAY_F32 ? RELAY_F32 : RELAY_F16, k->output_dtype));
        got.lse = lse;
    }
    chk_result_free(&got);
}

/* Any order of the parts, within what rounding does. */
static void commutes(chk *c, const fuse_case *k, const fuse_parts *parts, chk_result *want) {
    static const int32_t backwards[MAX_PARTS] = {4, 3, 2, 1, 0};
    chk_result got = {0};
    if (fuse_result(c, k, parts, backwards + MAX_PARTS - k->parts, k->parts, &got)) {
        double *lse = got.lse;
        if (!k->wants_lse) got.lse = NULL;
        chk_compare(c, want, &got, chk_tolerance_for(c, RELAY_F32, k->output_dtype));
        got.lse = lse;
    }
    chk_result_free(&got);
}

/* (first with second) with the rest, and first with (second with the rest). */
static void associates(chk *c, const fuse_case *k, fuse_parts *parts, chk_result *want) {
    for (int left = 0; left < 2; left++) {
        fuse_parts pair;
        memset(&pair, 0, sizeof pair);
        chk_result got = {0};
        bool ok = fuse(c, k, parts, in_order + (left ? 0 : 1), k->parts - 1, &pair.out[0], &pair.lse[0]);
        pair.out[1] = parts->out[left ? k->parts - 1 : 0];
        pair.lse[1] = parts->lse[left ? k->parts - 1 : 0];
        if (ok && fuse_result(c, k, &pair, in_order, 2, &got))
            chk_compare(c, want, &got, chk_tolerance_for(c, RELAY_F32, RELAY_F32));
        chk_tensor_free(&pair.out[0]);
        chk_tensor_free(&pair.lse[0]);
        chk_result_free(&got);
    }
}

/* Into the first part's own memory. */
static void in_place(chk *c, const fuse_case *k, fuse_parts *parts, chk_result *want) {
    relay_tensor outs[MAX_PARTS], lses[MAX_PARTS];
    for (int32_t i = 0; i < k->parts; i++) {
        outs[i] = parts->out[i].view;
        lses[i] = parts->lse[i].view;
    }
    relay_fuse_args args = relay_fuse_args_defaults();
    args.num_parts = k->parts;
    args.outputs = outs;
    args.lses = lses;
    args.output = outs[0];
    args.lse = lses[0];
    chk_result got = {0};
    if (chk_ok(c, "relay_fuse in place", relay_fuse(c->device[k->threads], &args)) &&
        read_result(&got, &outs[0], &lses[0], k->heads, k->dim))
        chk_compare(c, want, &got, chk_tolerance_for(c, RELAY_F32, k->part_dtype));
    chk_result_free(&got);
}

/* Part 1 becomes the empty set: NaN for outputs, an infinity for LSEs. */
static void make_empty(const fuse_case *k, fuse_parts *parts, double lse) {
    chk_poison(parts->out[1].view.data, k->part_dtype, parts->out[1].elements);
    for (int64_t i = 0; i < parts->lse[1].elements; i++) chk_store(parts->lse[1].view.data, RELAY_F32, i, lse);
}

static void identity(chk *c, const fuse_case *k, fuse_parts *parts) {
    static const int32_t orders[][3] = {{0, 1, 1}, {1, 0, 1}, {1, 1, 0}};
    chk_result want = {0};
    if (!read_result(&want, &parts->out[0].view, &parts->lse[0].view, k->heads, k->dim)) return;
    /* an empty row is (0, -INFINITY) whatever stands in its output */
    for (int64_t i = 0; i < want.rows * want.heads; i++) {
        if (!isinf(want.lse[i])) continue;
        want.lse[i] = -INFINITY;
        memset(want.out + i * k->dim, 0, (size_t)k->dim * sizeof(double));
    }
    for (int empty = 0; empty < 2; empty++) {
        make_empty(k, parts, empty ? INFINITY : -INFINITY);
        for (int32_t count = 1; count <= 3; count++) {
            for (int i = 0; i < count; i++) {
                chk_result got = {0};
                if (fuse_result(c, k, parts, orders[i], count, &got))
                    chk_compare_bits(c, "fused with the empty set", &want, &got);
                chk_result_free(&got);
            }
        }
    }
    chk_result_free(&want);
}

/* ---- cases --------------------------------------------------------------- */

static fuse_case draw_case(const chk *c, int64_t index) {
    static const int32_t dims[] = {1, 8, 31, 64, 80, 128, 256, 257, 300};
    static const int32_t rows[] = {0, 1, 3, 7, 16, 29};
    fuse_case k = {.seed = chk_mix(c->seed, 9000 + (uint64_t)index), .kind = (lse_kind)(index % NUM_LSE_KINDS)};
    chk_rng rng = chk_rng_at(k.seed, 1);
    k.rows = CHK_PICK(&rng, rows);
    if (index % 29 == 28) k.rows = 300; /* enough for threads */
    k.heads = chk_between(&rng, 1, 9);
    k.dim = CHK_PICK(&rng, dims);
    k.parts = chk_between(&rng, 1, MAX_PARTS);
    k.threads = chk_between(&rng, 1, CHK_MAX_THREADS);
    k.part_dtype = CHK_PICK(&rng, dtypes);
    k.output_dtype = CHK_PICK(&rng, dtypes);
    k.form = (chk_form)chk_between(&rng, 0, CHK_NUM_FORMS - 1);
    k.lse_form = (chk_form)chk_between(&rng, 0, CHK_NUM_FORMS - 1);
    k.wants_lse = chk_chance(&rng, 80);
    return k;
}

static bool begin(chk *c, const char *law, int64_t index, const fuse_case *k) {
    return chk_begin(c, "fusion %s %lld: %d parts [%lld, %d, %d] %s to %s, lse %s, forms %d/%d%s, threads %d", law,
                     (long long)index, k->parts, (long long)k->rows, k->heads, k->dim,
                     relay_dtype_name(k->part_dtype), relay_dtype_name(k->output_dtype), lse_names[k->kind],
                     (int)k->form, (int)k->lse_form, k->wants_lse ? "" : ", no lse", k->threads);
}

typedef enum law { LAW_ORACLE, LAW_COMMUTES, LAW_ASSOCIATES, LAW_IN_PLACE, LAW_IDENTITY, NUM_LAWS } law;
static const char *const law_names[] = {"against float64", "commutes", "associates", "in place", "identity"};

/* A law may need more than the draw gave it. */
static void suit(law which, fuse_case *k) {
    if (which == LAW_ASSOCIATES && k->parts < 3) k->parts = 3;
    if (which == LAW_ASSOCIATES) k->output_dtype = RELAY_F32;
    if (which == LAW_ASSOCIATES || which == LAW_IN_PLACE || which == LAW_IDENTITY) k->wants_lse = true;
    if (which == LAW_IDENTITY) {
        k->parts = 2;
        k->output_dtype = k->part_dtype;
        if (k->kind == LSE_NAN) k->kind = LSE_NEAR;
    }
}

static void check_law(chk *c, law which, int64_t index) {
    fuse_case k = draw_case(c, index);
    suit(which, &k);
    if (!begin(c, law_names[which], index, &k)) return;
    fuse_parts parts;
    chk_result want = {0};
    if (!make_parts(&k, &parts) || !expect(&k, &parts, &want)) chk_fail(c, "no memory for the case");
    else if (which == LAW_ORACLE) against_oracle(c, &k, &parts, &want);
    else if (which == LAW_COMMUTES) commutes(c, &k, &parts, &want);
    else if (which == LAW_ASSOCIATES) associates(c, &k, &parts, &want);
    else if (which == LAW_IN_PLACE) in_place(c, &k, &parts, &want);
    else identity(c, &k, &parts);
    free_parts(&parts);
    chk_result_free(&want);
    chk_end(c);
}

void chk_fusion(chk *c) {
    for (int64_t index = 0; index < (c->quick ? 14 : 84); index++)
        for (int which = 0; which < NUM_LAWS; which++) check_law(c, (law)which, index);
}
