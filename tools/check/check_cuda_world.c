/* A problem of the checker in device memory. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check_cuda.h"

enum { UNTOUCHED = 0xA5 };

static bool mirror(chk *c, cuda_lab *lab, const chk_buffer *buffer, void **to) {
    if (buffer->map == NULL) return true;
    *to = cuda_lab_copy_in(lab, buffer->data, buffer->bytes);
    if (*to == NULL) chk_fail(c, "device memory: %s", lab->error.text);
    return *to != NULL;
}

/* The same view over the device's copy. */
static relay_tensor view_of(const chk_tensor *tensor, void *data) {
    relay_tensor view = tensor->view;
    if (view.data != NULL) view.data = data;
    return view;
}

bool cuda_world_make(chk *c, cuda_lab *lab, chk_world *host, cuda_world *w) {
    *w = (cuda_world){.lab = lab, .host = host};
    bool ok = mirror(c, lab, &host->query.buffer, &w->query) && mirror(c, lab, &host->output.buffer, &w->output) &&
              mirror(c, lab, &host->lse.buffer, &w->lse) && mirror(c, lab, &host->slopes, &w->slopes) &&
              mirror(c, lab, &host->sinks, &w->sinks);
    for (int i = 0; ok && i < 2; i++) ok = mirror(c, lab, &host->pool[i].buffer, &w->pool[i]);
    int32_t spans = host->plain->num_segments + host->plain->num_requests;
    for (int32_t s = 0; ok && s < spans; s++) {
        for (int i = 0; ok && i < 2; i++) ok = mirror(c, lab, &host->spans[s].contiguous[i].buffer, &w->contiguous[s][i]);
        w->views[s].key = view_of(&host->spans[s].contiguous[0], w->contiguous[s][0]);
        w->views[s].value = view_of(&host->spans[s].contiguous[1], w->contiguous[s][1]);
    }
    return ok;
}

void cuda_world_free(cuda_world *w) {
    if (w->lab == NULL) return;
    void *areas[] = {w->pool[0], w->pool[1], w->query, w->output, w->lse, w->slopes, w->sinks, w->workspace};
    for (size_t i = 0; i < sizeof areas / sizeof *areas; i++)
        if (areas[i] != NULL) w->lab->ops->release(w->lab->index, areas[i]);
    for (int32_t s = 0; s < CHK_MAX_SPANS; s++)
        for (int i = 0; i < 2; i++)
            if (w->contiguous[s][i] != NULL) w->lab->ops->release(w->lab->index, w->contiguous[s][i]);
    *w = (cuda_world){0};
}

static bool make_workspace(chk *c, cuda_world *w, size_t bytes) {
    if (w->workspace != NULL) w->lab->ops->release(w->lab->index, w->workspace);
    w->workspace = cuda_lab_copy_in(w->lab, NULL, bytes); /* NaN */
    w->workspace_bytes = bytes;
    if (w->workspace == NULL) chk_fail(c, "device memory: %s", w->lab->error.text);
    return w->workspace != NULL;
}

bool cuda_world_args(chk *c, cuda_world *w, const relay_plan *plan, relay_run_args *args) {
    const relay_attention *a = &w->host->plain->attention;
    const chk_case *k = w->host->plain;
    if (!make_workspace(c, w, relay_plan_workspace_bytes(plan))) return false;
    *args = relay_run_args_defaults();
    args->query = view_of(&w->host->query, w->query);
    args->key_pool = view_of(&w->host->pool[0], w->pool[0]);
    args->value_pool = view_of(&w->host->pool[1], w->pool[1]);
    args->contiguous = w->views;
    args->num_contiguous = k->num_segments + k->num_requests;
    args->alibi_slopes = a->use_alibi ? w->slopes : NULL;
    args->sinks = a->use_sinks ? w->sinks : NULL;
    args->output = view_of(&w->host->output, w->output);
    args->lse = view_of(&w->host->lse, w->lse);
    args->workspace = w->workspace;
    args->workspace_bytes = w->workspace_bytes;
    return true;
}

bool cuda_world_reset(chk *c, cuda_world *w) {
    relay_status status = w->lab->ops->fill(w->lab->index, w->output, UNTOUCHED, w->host->output.buffer.bytes, &w->lab->error);
    if (status == RELAY_OK && w->lse != NULL)
        status = w->lab->ops->fill(w->lab->index, w->lse, UNTOUCHED, w->host->lse.buffer.bytes, &w->lab->error);
    if (status != RELAY_OK) chk_fail(c, "cudaMemset: %s", w->lab->error.text);
    return status == RELAY_OK;
}

/* Takes an element out of a tensor and marks its place as untouched. */
static double take(relay_tensor *view, int64_t offset) {
    double value = chk_load(view->data, view->dtype, offset);
    size_t size = relay_dtype_size(view->dtype);
    memset((char *)view->data + (size_t)offset * size, UNTOUCHED, size);
    return value;
}

static bool untouched(const chk_buffer *buffer) {
    const unsigned char *bytes = buffer->data;
    for (size_t i = 0; i < buffer->bytes; i++)
        if (bytes[i] != UNTOUCHED) return false;
    return true;
}

bool cuda_world_collect(chk *c, cuda_world *w, chk_result *got) {
    chk_world *host = w->host;
    if (!cuda_lab_copy_out(w->lab, host->output.buffer.data, w->output, host->output.buffer.bytes) ||
        (w->lse != NULL && !cuda_lab_copy_out(w->lab, host->lse.buffer.data, w->lse, host->lse.buffer.bytes))) {
        chk_fail(c, "the run: %s", w->lab->error.text);
        return false;
    }
    for (int64_t row = 0; row < got->rows; row++) {
        for (int32_t h = 0; h < got->heads; h++) {
            int64_t pair = row * got->heads + h, at = chk_tensor_at(&host->output.view, row, h, 0, 0);
            for (int32_t d = 0; d < got->dim; d++) got->out[pair * got->dim + d] = take(&host->output.view, at + d);
            if (w->lse != NULL) got->lse[pair] = take(&host->lse.view, chk_tensor_at(&host->lse.view, row, h, 0, 0));
        }
    }
    if (!untouched(&host->output.buffer)) chk_fail(c, "something beside the output's rows was written");
    if (w->lse != NULL && !untouched(&host->lse.buffer)) chk_fail(c, "something beside the lse's rows was written");
    if (w->lse == NULL) {
        free(got->lse);
        got->lse = NULL;
    }
    return !c->bad;
}

bool cuda_world_run(chk *c, cuda_world *w, const relay_plan *plan, bool reuse, chk_result *got) {
    const relay_attention *a = &w->host->plain->attention;
    static relay_run_args args; /* of the run before, if its plan is used again */
    if (!reuse && !cuda_world_args(c, w, plan, &args)) return false;
    args.plan_in_workspace = reuse;
    if (!cuda_world_reset(c, w) || !chk_ok(c, "relay_run", relay_run(plan, &args))) return false;
    return chk_result_make(got, chk_total_rows(w->host->plain), a->num_heads, a->head_dim, false) &&
           cuda_world_collect(c, w, got);
}

/* bf16: as on the CPU, check_compare.c.  f16: weights are rounded to f16 too, by up to 2^-11 each. */
chk_tolerance cuda_tolerance(relay_dtype kv, relay_dtype output) {
    double unit = kv == RELAY_BF16 ? 0x1p-8 : 0x1p-11;
    chk_tolerance t = {.relative = kv == RELAY_BF16 ? 4e-3 : 1e-3, .element = 1.5 * unit};
    t.rounding = output == RELAY_BF16 ? 0x1p-8 : 0x1p-11;
    if (output == RELAY_BF16) t.relative = 4e-3;
    return t;
}
