/* librelayattn_cuda for machines without a GPU: device 0 has the processor's memory, streams are numbers, and
 * kernels are loops over the same work list.  tests/pretended.py builds it and makes torch play along. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "cuda_ops.h"
#include "half.h"

#define EXPORT __attribute__((visibility("default")))

/* What the last calls were given, for the tests. */
typedef struct pretended_record {
    int64_t attends, copies, writes, fusions, builds_waited;
    void *stream;
} pretended_record;
EXPORT pretended_record pretended_calls;
EXPORT relay_status pretended_failure; /* of the next attend; then back to RELAY_OK */
const relayi_cuda_ops *relay_cuda_ops(void);

static float load(const void *data, relay_dtype dtype, int64_t at) {
    if (dtype == RELAY_F32) return ((const float *)data)[at];
    uint16_t half = ((const uint16_t *)data)[at];
    return dtype == RELAY_F16 ? relayi_from_f16(half) : relayi_from_bf16(half);
}

static void store(void *data, relay_dtype dtype, int64_t at, float value) {
    if (dtype == RELAY_F32) ((float *)data)[at] = value;
    else ((uint16_t *)data)[at] = dtype == RELAY_F16 ? relayi_to_f16(value) : relayi_to_bf16(value);
}

/* ---- the device ------------------------------------------------------------- */

static relay_status open_device(int32_t index, relayi_cuda_device *device, relayi_cuda_error *error) {
    if (index != 0) {
        snprintf(error->text, sizeof error->text, "device %d of 1", index);
        return RELAY_NO_DEVICE;
    }
    *device = (relayi_cuda_device){.multiprocessors = 132, .major = 9, .memory_bytes = (int64_t)1 << 30,
                                   .l2_bytes = 1 << 20, .driver = 13000, .runtime = 13000, .name = "a pretended GPU"};
    return RELAY_OK;
}

static relay_status pin(int32_t device, size_t bytes, void **memory, relayi_cuda_error *error) {
    (void)device, (void)error;
    *memory = malloc(bytes);
    return *memory ? RELAY_OK : RELAY_OUT_OF_MEMORY;
}

static int32_t reachable(int32_t device, const void *address) {
    (void)device;
    return address != NULL;
}

static const char *kernel_name(relayi_cuda_kernel kernel, relay_dtype query, relay_dtype kv) {
    if (query != kv || query == RELAY_F32) return NULL;
    return kernel == RELAYI_CUDA_HOPPER ? "pretended hopper" : "pretended";
}

static relay_status event_create(int32_t device, void **event, relayi_cuda_error *error) {
    return pin(device, 1, event, error);
}

static relay_status event_wait(int32_t device, void *event, relayi_cuda_error *error) {
    (void)device, (void)event, (void)error;
    pretended_calls.builds_waited++;
    return RELAY_OK;
}

static void event_destroy(int32_t device, void *event) {
    (void)device;
    free(event);
}

/* ---- attention --------------------------------------------------------------- */

typedef struct task {
    const relayi_cuda_attend *call;
    const relayi_cuda_params *p;
    const relayi_cuda_header *header;
    const relayi_cuda_unit *units;
    const relayi_cuda_piece *pieces;
    const relayi_cuda_row *rows;
    const relayi_cuda_run *runs;
    const int32_t *ids;
} task;

/* Where token n of a piece's span lies, in elements, in K and V of a head; and in which memory. */
typedef struct place {
    const void *keys, *values;
    int64_t key, value;
} place;

static place find_token(const task *t, const relayi_cuda_piece *piece, int32_t n, int32_t kv_head) {
    const relayi_cuda_params *p = t->p;
    if (piece->tensor >= 0) {
        const relayi_cuda_kv *kv = &t->call->contiguous[piece->tensor];
        return (place){kv->key, kv->value, n * kv->key_token + kv_head * kv->key_head,
                       n * kv->value_token + kv_head * kv->value_head};
    }
    int64_t block = t->ids[piece->ids + n / p->block_size], in_block = n % p->block_size;
    return (place){p->key_pool, p->value_pool,
                   block * p->key_block + in_block * p->key_token + kv_head * p->key_head,
                   block * p->value_block + in_block * p->value_token + kv_head * p->value_head};
}

static int sees(const relayi_cuda_params *p, int32_t position, int32_t token) {
    if (token > position) return 0;
    return p->window == 0 || token > position - p->window || token < p->sink_tokens;
}

static double score_of(const task *t, const relayi_cuda_row *row, int32_t head, const place *at, int32_t position) {
    const relayi_cuda_params *p = t->p;
    double dot = 0.0;
    int64_t query = row->source * p->query_row + head * p->query_head;
    for (int32_t d = 0; d < p->head_dim; d++)
        dot += (double)load(p->query, t->call->dtype, query + d) * load(at->keys, t->call->dtype, at->key + d);
    dot *= p->scale;
    if (p->soft_cap > 0.0f) dot = p->soft_cap * tanh(dot / p->soft_cap);
    if (p->slopes != NULL) dot += p->slopes[head] * (double)(position - row->position);
    return dot;
}

/* One stacked row of a unit in one kv head: its state. */
static void attend_row(const task *t, const relayi_cuda_unit *unit, int32_t i, int32_t kv_head) {
    const relayi_cuda_params *p = t->p;
    int32_t stacked = unit->row_begin + i, head = kv_head * p->group + stacked % p->group;
    const relayi_cuda_row *row = &t->rows[stacked / p->group];
    int64_t state = unit->state + (int64_t)kv_head * unit->head_states + i;
    double sum = 0.0, top = -INFINITY, merged[256] = {0};
    for (int32_t k = 0; k < unit->num_pieces; k++) {
        const relayi_cuda_piece *piece = k == 0 ? &unit->first : &t->pieces[unit->more_pieces + k - 1];
        for (int32_t n = piece->begin; n < piece->end; n++) {
            if (!sees(p, row->position, piece->start + n)) continue;
            place at = find_token(t, piece, n, kv_head);
            double score = score_of(t, row, head, &at, piece->start + n), new_top = score > top ? score : top;
            double keep = top == -INFINITY ? 0.0 : exp(top - new_top), weight = exp(score - new_top);
            sum = sum * keep + weight;
            for (int32_t d = 0; d < p->head_dim; d++)
                merged[d] = merged[d] * keep + weight * load(at.values, t->call->dtype, at.value + d);
            top = new_top;
        }
    }
    p->lse[state] = sum > 0.0 ? (float)(top + log(sum)) : -INFINITY;
    for (int32_t d = 0; d < p->head_dim; d++)
        p->acc[state * p->head_dim + d] = sum > 0.0 ? (float)(merged[d] / sum) : 0.0f;
}

static void merge_row(const task *t, int32_t row, int32_t head) {
    const relayi_cuda_params *p = t->p;
    const relayi_cuda_row *of = &t->rows[row];
    double sum = p->sinks ? exp((double)p->sinks[head]) : 0.0, merged[256] = {0};
    for (int32_t i = 0; i < of->num_runs; i++) {
        const relayi_cuda_run *run = &t->runs[of->first_run + i];
        int64_t rows = (int64_t)run->rows * p->group;
        for (int32_t c = 0; c < run->chunks; c++) {
            int64_t state = run->base + c * rows * p->kv_heads + head / p->group * rows +
                            (int64_t)(row - run->row_begin) * p->group + head % p->group;
            double weight = exp((double)p->lse[state]);
            sum += weight;
            for (int32_t d = 0; d < p->head_dim; d++) merged[d] += weight * p->acc[state * p->head_dim + d];
        }
    }
    for (int32_t d = 0; d < p->head_dim; d++)
        store(p->output, t->call->output_dtype, of->source * p->output_row + head * p->output_head + d,
              sum > 0.0 ? (float)(merged[d] / sum) : 0.0f);
    if (p->output_lse)
        p->output_lse[of->source * p->lse_row + head * p->lse_head] = sum > 0.0 ? (float)log(sum) : -INFINITY;
}

static relay_status attend(const relayi_cuda_attend *call, relayi_cuda_error *error) {
    relay_status failure = pretended_failure;
    pretended_failure = RELAY_OK;
    if (failure != RELAY_OK) {
        snprintf(error->text, sizeof error->text, "as the test wanted");
        return failure;
    }
    const relayi_cuda_params *p = &call->params;
    pretended_calls.attends++;
    pretended_calls.stream = call->stream;
    if (call->list_bytes > 0) {
        pretended_calls.copies++;
        memcpy(p->list, call->host_list, call->list_bytes);
    }
    const char *list = p->list;
    task t = {.call = call, .p = p, .header = (const void *)list, .units = (const void *)(list + p->units),
              .pieces = (const void *)(list + p->pieces), .rows = (const void *)(list + p->rows),
              .runs = (const void *)(list + p->runs), .ids = (const void *)(list + p->ids)};
    for (int32_t u = 0; u < t.header->num_units; u++) {
        const relayi_cuda_unit *unit = &t.units[RELAYI_CUDA_ENTRY(u, t.header->num_tall, p->unit_room)];
        for (int32_t i = 0; i < unit->rows * p->kv_heads; i++) attend_row(&t, unit, i % unit->rows, i / unit->rows);
    }
    for (int32_t i = 0; i < t.header->num_rows * p->heads; i++) merge_row(&t, i / p->heads, i % p->heads);
    return RELAY_OK;
}

/* ---- cache write and fusion ---------------------------------------------------- */

static void write_token(const relay_tensor *from, int64_t token, const relay_tensor *pool, int64_t slot) {
    int64_t block = slot / pool->shape[1], offset = slot % pool->shape[1];
    if (slot < 0 || block >= pool->shape[0]) return;
    for (int64_t h = 0; h < from->shape[1]; h++)
        for (int64_t d = 0; d < from->shape[2]; d++)
            store(pool->data, pool->dtype, block * pool->stride[0] + offset * pool->stride[1] + h * pool->stride[2] + d,
                  load(from->data, from->dtype, token * from->stride[0] + h * from->stride[1] + d));
}

static relay_status write_pages(const relayi_cuda_write *call, relayi_cuda_error *error) {
    (void)error;
    pretended_calls.writes++;
    pretended_calls.stream = call->stream;
    for (int64_t i = 0; i < call->num_slots; i++) {
        write_token(&call->key, i, &call->key_pool, call->slots[i]);
        write_token(&call->value, i, &call->value_pool, call->slots[i]);
    }
    return RELAY_OK;
}

static float lse_of(const relay_tensor *lse, int64_t t, int64_t h) {
    float value = ((const float *)lse->data)[t * lse->stride[0] + h * lse->stride[1]];
    return value == INFINITY ? -INFINITY : value;
}

static void fuse_row(const relayi_cuda_fuse *call, int64_t t, int64_t h) {
    const relay_tensor *out = &call->output;
    double top = -INFINITY, sum = 0.0;
    for (int32_t i = 0; i < call->num_parts; i++)
        if (lse_of(&call->lses[i], t, h) > top) top = lse_of(&call->lses[i], t, h);
    for (int32_t i = 0; i < call->num_parts && top != -INFINITY; i++) sum += exp(lse_of(&call->lses[i], t, h) - top);
    for (int64_t d = 0; d < out->shape[2]; d++) {
        double merged = 0.0;
        for (int32_t i = 0; i < call->num_parts; i++) {
            const relay_tensor *part = &call->outputs[i];
            float lse = lse_of(&call->lses[i], t, h);
            if (lse == -INFINITY) continue;
            int64_t at = t * part->stride[0] + h * part->stride[1] + d;
            merged += exp(lse - top) / sum * load(part->data, part->dtype, at);
        }
        store(out->data, out->dtype, t * out->stride[0] + h * out->stride[1] + d, (float)merged);
    }
    if (call->lse.data == NULL) return;
    int64_t at = t * call->lse.stride[0] + h * call->lse.stride[1];
    ((float *)call->lse.data)[at] = (float)(top + log(sum > 0.0 ? sum : 1.0));
}

static relay_status fuse(const relayi_cuda_fuse *call, relayi_cuda_error *error) {
    (void)error;
    pretended_calls.fusions++;
    pretended_calls.stream = call->stream;
    for (int64_t i = 0; i < call->output.shape[0] * call->output.shape[1]; i++)
        fuse_row(call, i / call->output.shape[1], i % call->output.shape[1]);
    return RELAY_OK;
}

EXPORT const relayi_cuda_ops *relay_cuda_ops(void) {
    static const relayi_cuda_ops ops = {.version = RELAYI_CUDA_VERSION, .size = sizeof ops, .open = open_device,
                                        .pin = pin, .unpin = free, .reachable = reachable, .attend = attend,
                                        .write = write_pages, .fuse = fuse, .kernel_name = kernel_name,
                                        .event_create = event_create, .event_wait = event_wait,
                                        .event_destroy = event_destroy};
    return &ops;
}
