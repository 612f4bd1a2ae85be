/* One layer on the CPU: all threads take work items until none is left, then merge the rows'
 * partial states. */
#include <math.h>
#include <omp.h>
#include <stdatomic.h>

#include "convert.h"
#include "device_cuda.h"
#include "prompt.h"
#include "run_internal.h"

/* Below this a second thread costs more than it brings. */
#define PARALLEL_FROM_NS 20000.0f

/* Two queues of items (shared first in plan->items, then the requests').  Threads of odd number
 * begin with the requests' items: they are bound by memory, the shared ones by arithmetic, and so
 * the two overlap. */
typedef struct queue {
    _Alignas(RELAYI_ALIGNMENT) atomic_int next;
    int32_t end;
} queue;

typedef struct runner {
    const relay_plan *plan;
    const relay_run_args *args;
    relayi_workspace map;
    char *workspace;
    float *acc, *max, *sum;
    queue *queues;
    int64_t states; /* states of one part: num_rows * num_heads */
} runner;

/* One thread's scratch. */
typedef struct worker {
    float *query;
    relayi_range *range;
    float *slope;
    void *kernel;
} worker;

relay_run_args relay_run_args_defaults(void) {
    return (relay_run_args){.struct_size = sizeof(relay_run_args)};
}

static const void *element(const relay_tensor *tensor, int64_t offset) {
    return (const char *)tensor->data + offset * (int64_t)relay_dtype_size(tensor->dtype);
}

/* ---- items ---------------------------------------------------------------- */

static void gather_queries(const runner *run, const relayi_item *item, int32_t kv_head, float *to) {
    const relay_plan *plan = run->plan;
    const relay_tensor *query = &run->args->query;
    int32_t dim = plan->attention.head_dim;
    for (int32_t row = item->row_begin; row < item->row_end; row++, to += dim) {
        int32_t head = kv_head * plan->group + row % plan->group;
        int64_t source = plan->rows[row / plan->group].source;
        relayi_load_f32(&plan->device->kernels, query, source * query->stride[0] + head * query->stride[1], to, dim);
    }
}

static void gather_slopes(const runner *run, const relayi_item *item, int32_t kv_head, float *to) {
    int32_t group = run->plan->group;
    for (int32_t row = item->row_begin; row < item->row_end; row++)
        *to++ = run->args->alibi_slopes[kv_head * group + row % group];
}

/* What a query at global position `position` sees of a span that starts at `start`. */
static relayi_range range_of(const relay_attention *a, int32_t position, int32_t start) {
    relayi_range range = {.hi = position + 1 - start, .distance = position - start};
    if (range.hi < 0) range.hi = 0;
    if (a->sliding_window > 0) {
        int64_t lo = (int64_t)position - a->sliding_window + 1 - start;
        range.lo = lo > 0 ? (int32_t)lo : 0;
    }
    if (a->sliding_window > 0 && a->num_sink_tokens > start) {
        range.sinks = a->num_sink_tokens - start;
        if (range.sinks > range.hi) range.sinks = range.hi;
    }
    return range;
}

/* Fills the rows' ranges; returns whether every row sees all of the piece. */
static int32_t fill_ranges(const runner *run, const relayi_item *item, const relayi_piece *piece, relayi_range *to) {
    const relay_plan *plan = run->plan;
    int32_t all = 1;
    for (int32_t row = item->row_begin; row < item->row_end; row++, to++) {
        *to = range_of(&plan->attention, plan->rows[row / plan->group].position, piece->start);
        all &= to->lo <= piece->begin && to->hi >= piece->end;
    }
    return all;
}

static relayi_kv find_kv(const runner *run, const relay_kv_span *span, int32_t kv_head) {
    const relay_run_args *args = run->args;
    relayi_kv kv = {0};
    if (span->layout == RELAY_KV_PACKED) {
        kv.packed = 1;
        relayi_prompt_head(span->prompt, args->layer, kv_head, &kv.key, &kv.value);
    } else if (span->layout == RELAY_KV_PAGED) {
        const relay_tensor *key = &args->key_pool, *value = &args->value_pool;
        kv = (relayi_kv){.key = element(key, kv_head * key->stride[2]),
                         .value = element(value, kv_head * value->stride[2]),
                         .block_table = span->block_table, .block_size = (int32_t)key->shape[1],
                         .key_block_stride = key->stride[0], .key_token_stride = key->stride[1],
                         .value_block_stride = value->stride[0], .value_token_stride = value->stride[1]};
    } else {
        const relay_kv_tensors *at = &args->contiguous[span->tensor_index];
        kv = (relayi_kv){.key = element(&at->key, kv_head * at->key.stride[1]),
                         .value = element(&at->value, kv_head * at->value.stride[1]),
                         .block_size = span->length, .key_token_stride = at->key.stride[0],
                         .value_token_stride = at->value.stride[0]};
    }
    return kv;
}

/* A kernel call for one kv head of an item, but for the tokens. */
static relayi_attend_args begin_call(const runner *run, const worker *w, const relayi_item *item, int32_t kv_head) {
    const relay_plan *plan = run->plan;
    int32_t rows = item->row_end - item->row_begin, dim = plan->attention.head_dim;
    int64_t state = (int64_t)item->part * run->states +
                    (int64_t)kv_head * plan->num_rows * plan->group + item->row_begin;
    relayi_attend_args call = {.rows = rows, .head_dim = dim, .query = w->query, .range = w->range,
                               .scale = plan->attention.softmax_scale,
                               .soft_cap = plan->attention.logit_soft_cap, .acc = run->acc + state * dim,
                               .max = run->max + state, .sum = run->sum + state, .scratch = w->kernel};
    gather_queries(run, item, kv_head, w->query);
    if (plan->attention.use_alibi) {
        gather_slopes(run, item, kv_head, w->slope);
        call.slope = w->slope;
    }
    return call;
}

static void clear_state(const relayi_attend_args *call) {
    memset(call->acc, 0, (size_t)call->rows * (size_t)call->head_dim * sizeof(float));
    for (int32_t i = 0; i < call->rows; i++) call->max[i] = -INFINITY;
    memset(call->sum, 0, (size_t)call->rows * sizeof(float));
}

static void attend_head(const runner *run, const worker *w, const relayi_item *item, int32_t kv_head) {
    relayi_attend_args call = begin_call(run, w, item, kv_head);
    clear_state(&call);
    for (int32_t i = 0; i < item->num_pieces; i++) {
        const relayi_piece *piece = &run->plan->pieces[item->first_piece + i];
        call.all_visible = fill_ranges(run, item, piece, w->range);
        call.kv = find_kv(run, piece->span, kv_head);
        call.begin = piece->begin;
        call.end = piece->end;
        run->plan->kernel.attend(&call);
    }
}

/* Tokens [begin, end) of a piece, whose ranges are filled, for all kv heads of the item. */
static void attend_tokens(const runner *run, const worker *w, const relayi_item *item, const relayi_piece *piece,
                          int32_t all_visible, int32_t begin, int32_t end) {
    const relayi_attend_kernel *kernel = &run->plan->kernel;
    for (int32_t kv = item->kv_begin; kv < item->kv_end; kv++) {
        relayi_attend_args call = begin_call(run, w, item, kv);
        call.all_visible = all_visible;
        call.kv = find_kv(run, piece->span, kv);
        call.begin = begin;
        call.end = end;
        (call.kv.packed ? kernel->attend : kernel->few)(&call);
    }
}

/* Few rows: reading decides.  A token's kv heads are neighbours in pages, so they are read together,
 * some tokens at a time. */
static void attend_few_rows(const runner *run, const worker *w, const relayi_item *item) {
    for (int32_t kv = item->kv_begin; kv < item->kv_end; kv++) {
        relayi_attend_args call = begin_call(run, w, item, kv);
        clear_state(&call);
    }
    for (int32_t i = 0; i < item->num_pieces; i++) {
        const relayi_piece *piece = &run->plan->pieces[item->first_piece + i];
        int32_t all = fill_ranges(run, item, piece, w->range);
        int32_t step = piece->span->layout == RELAY_KV_PACKED ? piece->end - piece->begin : RELAYI_TILE;
        for (int32_t begin = piece->begin; begin < piece->end; begin += step) {
            int32_t end = piece->end - begin < step ? piece->end : begin + step;
            attend_tokens(run, w, item, piece, all, begin, end);
        }
    }
}

static void attend_item(const runner *run, const worker *w, const relayi_item *item) {
    const relay_plan *plan = run->plan;
    /* Whether rows are few depends on their company, which a repeatable plan must not see. */
    if (!plan->options.repeatable && item->row_end - item->row_begin <= plan->kernel.few_rows) {
        attend_few_rows(run, w, item);
        return;
    }
    for (int32_t kv = item->kv_begin; kv < item->kv_end; kv++) attend_head(run, w, item, kv);
}

static void drain(const runner *run, const worker *w, queue *from) {
    for (;;) {
        int32_t index = atomic_fetch_add_explicit(&from->next, 1, memory_order_relaxed);
        if (index >= from->end) return;
        attend_item(run, w, &run->plan->items[index]);
    }
}

/* ---- merging -------------------------------------------------------------- */

static void finish_row(const runner *run, int32_t row, int32_t head) {
    const relay_plan *plan = run->plan;
    const relay_run_args *args = run->args;
    int32_t dim = plan->attention.head_dim, kv_head = head / plan->group;
    int64_t state = ((int64_t)kv_head * plan->num_rows + row) * plan->group + head % plan->group;
    int64_t source = plan->rows[row].source;
    _Alignas(RELAYI_ALIGNMENT) float out[256];
    float lse;
    plan->device->kernels.finish(plan->rows[row].parts, dim, run->acc + state * dim, run->states * dim,
                                 run->max + state, run->sum + state, run->states,
                                 args->sinks ? args->sinks + head : NULL, out, &lse);
    relayi_store_f32(&plan->device->kernels, &args->output,
                     source * args->output.stride[0] + head * args->output.stride[1], out, dim);
    if (args->lse.data != NULL)
        ((float *)args->lse.data)[source * args->lse.stride[0] + head * args->lse.stride[1]] = lse;
}

/* ---- the run -------------------------------------------------------------- */

static worker find_worker(const runner *run, int32_t thread) {
    char *scratch = run->workspace + run->map.threads + run->map.per_thread * (size_t)thread;
    return (worker){.query = (float *)(void *)(scratch + run->map.query),
                    .range = (relayi_range *)(void *)(scratch + run->map.range),
                    .slope = (float *)(void *)(scratch + run->map.slope),
                    .kernel = scratch + run->map.kernel};
}

static runner make_runner(const relay_plan *plan, const relay_run_args *args) {
    runner run = {.plan = plan, .args = args, .map = relayi_plan_workspace(plan), .workspace = args->workspace,
                  .states = (int64_t)plan->num_rows * plan->attention.num_heads};
    run.acc = (float *)(void *)(run.workspace + run.map.acc);
    run.max = (float *)(void *)(run.workspace + run.map.max);
    run.sum = (float *)(void *)(run.workspace + run.map.sum);
    run.queues = (queue *)(void *)(run.workspace + run.map.cursors);
    atomic_init(&run.queues[0].next, 0);
    run.queues[0].end = plan->num_shared_items;
    atomic_init(&run.queues[1].next, plan->num_shared_items);
    run.queues[1].end = plan->num_items;
    return run;
}

relay_status relay_run(const relay_plan *plan, const relay_run_args *args) {
    if (plan == NULL || args == NULL) return RELAY_NULL_POINTER;
    relay_status status = relayi_check_run(plan, args);
    if (status != RELAY_OK || plan->num_rows == 0) return status;
    if (plan->cuda != NULL) return relayi_run_on_cuda(plan, args);
    runner run = make_runner(plan, args);
    int32_t threads = plan->cost < PARALLEL_FROM_NS ? 1 : plan->device->threads;
    int32_t heads = plan->attention.num_heads;
#pragma omp parallel num_threads(threads)
    {
        int32_t thread = omp_get_thread_num();
        worker w = find_worker(&run, thread);
        drain(&run, &w, &run.queues[thread % 2]);
        drain(&run, &w, &run.queues[(thread + 1) % 2]);
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t i = 0; i < run.states; i++) finish_row(&run, (int32_t)(i / heads), (int32_t)(i % heads));
    }
    return RELAY_OK;
}
