/* relay check --device cuda: cache write, fusion, refusals, and graphs that are replayed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check_cuda.h"
#include "check_oracle.h"

static const relay_dtype dtypes[] = {RELAY_F32, RELAY_F16, RELAY_BF16};

/* ---- cache write ------------------------------------------------------------ */

typedef struct write_case {
    chk_tensor from[2], pool[2];
    void *device_from[2], *device_pool[2], *device_slots;
    int64_t slots[24];
    int32_t tokens, heads, dim, blocks, block_size;
} write_case;

static bool make_write(cuda_lab *lab, int64_t index, write_case *k) {
    chk_rng rng = chk_rng_at((uint64_t)index, 9);
    *k = (write_case){.tokens = chk_between(&rng, 1, 24), .heads = chk_between(&rng, 1, 5), .blocks = 5, .block_size = 16,
                      .dim = 8 * chk_between(&rng, 1, 20)};
    int64_t from[3] = {k->tokens, k->heads, k->dim}, pool[4] = {k->blocks, k->block_size, k->heads, k->dim};
    int32_t order[80];
    for (int32_t i = 0; i < 80; i++) order[i] = i;
    chk_shuffle(&rng, order, 80);
    for (int32_t i = 0; i < k->tokens; i++) k->slots[i] = i % 7 == 3 ? -1 : i % 11 == 5 ? 80 + i : order[i];
    for (int i = 0; i < 2; i++) {
        if (!chk_tensor_make(&k->from[i], dtypes[index % 3], (chk_form)(index / 9 % 3), 3, from) ||
            !chk_tensor_make(&k->pool[i], dtypes[index / 3 % 3], (chk_form)(index / 27 % 3), 4, pool))
            return false;
        for (int64_t e = 0; e < k->from[i].elements; e++)
            chk_store(k->from[i].view.data, k->from[i].view.dtype, e, chk_uniform(&rng, -2, 2));
        memset(k->pool[i].buffer.data, 0x5A, k->pool[i].buffer.bytes);
        k->device_from[i] = cuda_lab_copy_in(lab, k->from[i].buffer.data, k->from[i].buffer.bytes);
        k->device_pool[i] = cuda_lab_copy_in(lab, k->pool[i].buffer.data, k->pool[i].buffer.bytes);
    }
    k->device_slots = cuda_lab_copy_in(lab, k->slots, sizeof k->slots);
    return k->device_from[0] && k->device_from[1] && k->device_pool[0] && k->device_pool[1] && k->device_slots;
}

/* What the pool must hold afterwards, written into the host's. */
static void expect_write(write_case *k) {
    for (int32_t t = 0; t < k->tokens; t++) {
        int64_t slot = k->slots[t];
        if (slot < 0 || slot >= (int64_t)k->blocks * k->block_size) continue;
        for (int i = 0; i < 2; i++)
            for (int32_t h = 0; h < k->heads; h++)
                for (int32_t d = 0; d < k->dim; d++)
                    chk_store(k->pool[i].view.data, k->pool[i].view.dtype,
                              chk_tensor_at(&k->pool[i].view, slot / k->block_size, slot % k->block_size, h, d),
                              chk_load(k->from[i].view.data, k->from[i].view.dtype,
                                       chk_tensor_at(&k->from[i].view, t, h, d, 0)));
    }
}

static void run_write(chk *c, cuda_lab *lab, write_case *k) {
    relay_cache_write_args args = relay_cache_write_args_defaults();
    relay_tensor *views[] = {&args.key, &args.value, &args.key_pool, &args.value_pool};
    for (int i = 0; i < 2; i++) {
        *views[i] = k->from[i].view;
        views[i]->data = k->device_from[i];
        *views[2 + i] = k->pool[i].view;
        views[2 + i]->data = k->device_pool[i];
    }
    args.slot_mapping = k->device_slots;
    args.num_slots = k->tokens;
    if (!chk_ok(c, "relay_cache_write", relay_cache_write(lab->device, &args))) return;
    expect_write(k);
    for (int i = 0; i < 2; i++) {
        char *got = malloc(k->pool[i].buffer.bytes);
        if (got == NULL || !cuda_lab_copy_out(lab, got, k->device_pool[i], k->pool[i].buffer.bytes))
            chk_fail(c, "copying back: %s", lab->error.text);
        else if (memcmp(got, k->pool[i].buffer.data, k->pool[i].buffer.bytes) != 0)
            chk_fail(c, "the %s pool is not what was to be written", i ? "value" : "key");
        free(got);
    }
}

static void check_writes(chk *c, cuda_lab *lab) {
    for (int64_t index = 0; index < (c->quick ? 9 : 81); index++) {
        static write_case k;
        if (!chk_begin(c, "cache write %d: %s into %s", (int)index, relay_dtype_name(dtypes[index % 3]),
                       relay_dtype_name(dtypes[index / 3 % 3])))
            continue;
        if (make_write(lab, index, &k)) run_write(c, lab, &k);
        else chk_fail(c, "no memory for the case: %s", lab->error.text);
        for (int i = 0; i < 2; i++) {
            chk_tensor_free(&k.from[i]);
            chk_tensor_free(&k.pool[i]);
            lab->ops->release(lab->index, k.device_from[i]);
            lab->ops->release(lab->index, k.device_pool[i]);
        }
        lab->ops->release(lab->index, k.device_slots);
        chk_end(c);
    }
}

/* ---- fusion ----------------------------------------------------------------- */

enum { MAX_PARTS = 6 };

typedef struct fuse_case {
    int32_t parts, rows, heads, dim;
    chk_tensor outputs[MAX_PARTS], lses[MAX_PARTS], output, lse;
    void *device[2 * MAX_PARTS + 2];
} fuse_case;

static bool make_fuse(cuda_lab *lab, int64_t index, fuse_case *k) {
    chk_rng rng = chk_rng_at((uint64_t)index, 10);
    *k = (fuse_case){.parts = 1 + (int32_t)(index % MAX_PARTS), .rows = chk_between(&rng, 1, 9),
                     .heads = chk_between(&rng, 1, 7), .dim = chk_between(&rng, 1, 300)};
    int64_t shape[3] = {k->rows, k->heads, k->dim};
    bool ok = chk_tensor_make(&k->output, dtypes[index % 3], (chk_form)(index / 3 % 3), 3, shape) &&
              chk_tensor_make(&k->lse, RELAY_F32, (chk_form)(index / 9 % 3), 2, shape);
    for (int32_t i = 0; ok && i < k->parts; i++) {
        ok = chk_tensor_make(&k->outputs[i], dtypes[(index + i) % 3], (chk_form)((index + i) / 3 % 3), 3, shape) &&
             chk_tensor_make(&k->lses[i], RELAY_F32, (chk_form)(index % 3), 2, shape);
        for (int64_t e = 0; ok && e < k->outputs[i].elements; e++)
            chk_store(k->outputs[i].view.data, k->outputs[i].view.dtype, e, chk_uniform(&rng, -2, 2));
        for (int64_t e = 0; ok && e < k->lses[i].elements; e++)
            chk_store(k->lses[i].view.data, RELAY_F32, e,
                      chk_chance(&rng, 15) ? -INFINITY : chk_chance(&rng, 5) ? INFINITY : chk_uniform(&rng, -9, 9));
        k->device[2 * i] = cuda_lab_copy_in(lab, k->outputs[i].buffer.data, k->outputs[i].buffer.bytes);
        k->device[2 * i + 1] = cuda_lab_copy_in(lab, k->lses[i].buffer.data, k->lses[i].buffer.bytes);
        ok = ok && k->device[2 * i] && k->device[2 * i + 1];
    }
    k->device[2 * MAX_PARTS] = cuda_lab_copy_in(lab, k->output.buffer.data, k->output.buffer.bytes);
    k->device[2 * MAX_PARTS + 1] = cuda_lab_copy_in(lab, k->lse.buffer.data, k->lse.buffer.bytes);
    return ok && k->device[2 * MAX_PARTS] && k->device[2 * MAX_PARTS + 1];
}

static void compare_fuse_row(chk *c, const fuse_case *k, int32_t row, int32_t head) {
    static double outs[MAX_PARTS][300], fused[300], spread[300];
    const double *out[MAX_PARTS];
    double lse[MAX_PARTS], fused_lse;
    for (int32_t i = 0; i < k->parts; i++) {
        lse[i] = chk_load(k->lses[i].view.data, RELAY_F32, chk_tensor_at(&k->lses[i].view, row, head, 0, 0));
        for (int32_t d = 0; d < k->dim; d++)
            outs[i][d] = chk_load(k->outputs[i].view.data, k->outputs[i].view.dtype,
                                  chk_tensor_at(&k->outputs[i].view, row, head, d, 0));
        out[i] = outs[i];
    }
    oracle_fuse(k->parts, k->dim, out, lse, fused, &fused_lse, spread);
    double unit = k->output.view.dtype == RELAY_F32 ? 0 : k->output.view.dtype == RELAY_F16 ? 0x1p-11 : 0x1p-8;
    for (int32_t d = 0; d < k->dim && !c->bad; d++) {
        double got = chk_load(k->output.view.data, k->output.view.dtype, chk_tensor_at(&k->output.view, row, head, d, 0));
        if (!(fabs(got - fused[d]) <= 1e-7 + 2e-6 * spread[d] + unit * fabs(fused[d])))
            chk_fail(c, "row %d, head %d, element %d: expected %.9g, got %.9g", row, head, d, fused[d], got);
    }
    double got = chk_load(k->lse.view.data, RELAY_F32, chk_tensor_at(&k->lse.view, row, head, 0, 0));
    if (!(got == fused_lse || fabs(got - fused_lse) <= 1e-6 * (1 + fabs(fused_lse))))
        chk_fail(c, "row %d, head %d: expected lse %.9g, got %.9g", row, head, fused_lse, got);
}

static void run_fuse(chk *c, cuda_lab *lab, fuse_case *k) {
    relay_tensor outputs[MAX_PARTS], lses[MAX_PARTS];
    for (int32_t i = 0; i < k->parts; i++) {
        outputs[i] = k->outputs[i].view;
        outputs[i].data = k->device[2 * i];
        lses[i] = k->lses[i].view;
        lses[i].data = k->device[2 * i + 1];
    }
    relay_fuse_args args = relay_fuse_args_defaults();
    args.num_parts = k->parts;
    args.outputs = outputs;
    args.lses = lses;
    args.output = k->output.view;
    args.output.data = k->device[2 * MAX_PARTS];
    args.lse = k->lse.view;
    args.lse.data = k->device[2 * MAX_PARTS + 1];
    if (!chk_ok(c, "relay_fuse", relay_fuse(lab->device, &args))) return;
    if (!cuda_lab_copy_out(lab, k->output.buffer.data, args.output.data, k->output.buffer.bytes) ||
        !cuda_lab_copy_out(lab, k->lse.buffer.data, args.lse.data, k->lse.buffer.bytes))
        chk_fail(c, "copying back: %s", lab->error.text);
    for (int32_t row = 0; row < k->rows && !c->bad; row++)
        for (int32_t head = 0; head < k->heads && !c->bad; head++) compare_fuse_row(c, k, row, head);
}

static void check_fusions(chk *c, cuda_lab *lab) {
    for (int64_t index = 0; index < (c->quick ? 12 : 108); index++) {
        static fuse_case k;
        if (!chk_begin(c, "fuse %d", (int)index)) continue;
        if (make_fuse(lab, index, &k)) run_fuse(c, lab, &k);
        else chk_fail(c, "no memory for the case: %s", lab->error.text);
        for (int i = 0; i < MAX_PARTS; i++) {
            chk_tensor_free(&k.outputs[i]);
            chk_tensor_free(&k.lses[i]);
        }
        chk_tensor_free(&k.output);
        chk_tensor_free(&k.lse);
        for (int i = 0; i < 2 * MAX_PARTS + 2; i++)
            if (k.device[i] != NULL) lab->ops->release(lab->index, k.device[i]);
        chk_end(c);
    }
}

void cuda_check_operations(chk *c, cuda_lab *lab) {
    check_writes(c, lab);
    check_fusions(c, lab);
}

/* ---- refusals --------------------------------------------------------------- */

static chk_case small_case(const chk *c, uint64_t index, int32_t requests) {
    chk_case k = chk_case_defaults(chk_mix(c->seed, 5000 + index));
    k.attention.num_heads = 8;
    k.attention.head_dim = 128;
    k.attention.query_dtype = k.attention.kv_dtype = k.attention.output_dtype = RELAY_BF16;
    if (requests > 1) chk_add_segment(&k, -1, 0, requests - 1, RELAY_KV_PAGED, 500);
    for (int32_t r = 0; r < requests; r++) chk_add_request(&k, 1, RELAY_KV_PAGED, 20 + 31 * r);
    return k;
}

static void expect_status(chk *c, const char *what, relay_status want, relay_status got) {
    if (got != want || (want != RELAY_OK && c->log[0] == '\0'))
        chk_fail(c, "%s: expected %s, got %s (%s)", what, relay_status_name(want), relay_status_name(got), c->log);
    c->log[0] = '\0';
}

static void refuse_runs(chk *c, cuda_world *w, const relay_plan *plan) {
    relay_run_args good;
    if (!cuda_world_args(c, w, plan, &good)) return;
    relay_run_args args = good;
    args.query.data = w->host->query.view.data;
    expect_status(c, "queries in host memory", RELAY_WRONG_DEVICE, relay_run(plan, &args));
    args = good;
    args.key_pool.data = w->host->pool[0].view.data;
    if ((uintptr_t)args.key_pool.data % 16 == 0)
        expect_status(c, "pages in host memory", RELAY_WRONG_DEVICE, relay_run(plan, &args));
    args = good;
    args.value_pool.data = (char *)args.key_pool.data + 2;
    expect_status(c, "misaligned pages", RELAY_MISALIGNED, relay_run(plan, &args));
    args = good;
    args.key_pool.stride[1] += 1;
    args.key_pool.stride[0] += 16;
    expect_status(c, "odd strides of pages", RELAY_BAD_STRIDE, relay_run(plan, &args));
    args = good;
    args.output.data = args.query.data;
    expect_status(c, "output over queries", RELAY_OVERLAP, relay_run(plan, &args));
    args = good;
    args.workspace_bytes -= 1;
    expect_status(c, "a small workspace", RELAY_WORKSPACE_TOO_SMALL, relay_run(plan, &args));
    expect_status(c, "good arguments after that", RELAY_OK, relay_run(plan, &good));
}

static void refuse_plans(chk *c, cuda_lab *lab) {
    relay_plan *plan = NULL;
    relay_attention a = relay_attention_defaults();
    a.num_heads = a.num_kv_heads = 1;
    a.head_dim = 128;
    a.output_dtype = RELAY_F32;
    expect_status(c, "f32 outputs", RELAY_UNSUPPORTED, relay_plan_create(lab->device, &a, NULL, &plan));
    a.output_dtype = RELAY_BF16;
    a.kv_dtype = RELAY_F32;
    expect_status(c, "f32 keys", RELAY_UNSUPPORTED, relay_plan_create(lab->device, &a, NULL, &plan));
    a.kv_dtype = RELAY_F16;
    expect_status(c, "bf16 queries with f16 keys", RELAY_UNSUPPORTED, relay_plan_create(lab->device, &a, NULL, &plan));
    relay_prompt_cache_options options = relay_prompt_cache_options_defaults();
    options.num_layers = options.num_kv_heads = 1;
    options.head_dim = 128;
    relay_prompt_cache *cache = NULL;
    expect_status(c, "a prompt cache", RELAY_UNSUPPORTED, relay_prompt_cache_create(lab->device, &options, &cache));
}

static void refuse_block_size(chk *c, cuda_lab *lab) {
    static chk_world host;
    chk_case k = small_case(c, 1, 3);
    k.block_size = 24;
    relay_forest *forest = NULL;
    relay_plan *plan = NULL;
    if (chk_world_make(c, &k, &host) && chk_world_forest(c, &host, &forest) &&
        chk_ok(c, "relay_plan_create", relay_plan_create(lab->device, &k.attention, NULL, &plan)))
        expect_status(c, "blocks of 24 tokens", RELAY_UNSUPPORTED, relay_plan_build(plan, forest));
    relay_plan_destroy(plan);
    relay_forest_destroy(forest);
    chk_world_free(&host);
}

void cuda_check_errors(chk *c, cuda_lab *lab) {
    static chk_world host;
    static cuda_world world;
    chk_case k = small_case(c, 0, 3);
    relay_forest *forest = NULL;
    relay_plan *plan = NULL;
    if (!chk_begin(c, "what is refused")) return;
    world = (cuda_world){0};
    refuse_plans(c, lab);
    refuse_block_size(c, lab);
    if (chk_world_make(c, &k, &host) && cuda_world_make(c, lab, &host, &world) && chk_world_forest(c, &host, &forest) &&
        chk_ok(c, "relay_plan_create", relay_plan_create(lab->device, &k.attention, NULL, &plan)) &&
        chk_ok(c, "relay_plan_build", relay_plan_build(plan, forest)))
        refuse_runs(c, &world, plan);
    relay_device_options options = relay_device_options_defaults();
    relay_device *none = NULL;
    options.kind = RELAY_DEVICE_CUDA;
    options.index = 77;
    expect_status(c, "device 77", RELAY_OK, relay_device_open(&options, &none) == RELAY_NO_DEVICE ? RELAY_OK : RELAY_DEVICE_ERROR);
    relay_plan_destroy(plan);
    relay_forest_destroy(forest);
    cuda_world_free(&world);
    chk_world_free(&host);
    chk_end(c);
}
