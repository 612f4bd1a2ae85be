/* One layer on the CPU: all threads take work items until none is left, then merge the rows'
 * partial states. */
#include <omp.h>
#include <stdatomic.h>

#include "convert.h"
#include "device_cuda.h"
#include "run_internal.h"

/* Two queues of items (shared first in plan->items, then the requests').  Threads of odd number
 * begin with the requests' items: they are bound by memory, the shared ones by arithmetic, and so
 * the two overlap. */
typedef struct queue {
    _Alignas(RELAYI_ALIGNMENT) atomic_int next;
    int32_t end;
} queue;

relay_run_args relay_run_args_defaults(void) {
    return (relay_run_args){.struct_size = sizeof(relay_run_args)};
}

/* ---- items ---------------------------------------------------------------- */

static const relayi_item *take_item(const relay_plan *plan, queue *from) {
    int32_t index = atomic_fetch_add_explicit(&from->next, 1, memory_order_relaxed);
    return index < from->end ? &plan->items[index] : NULL;
}

/* An item is taken while the one before is worked on, so that it can be asked for; but not the last
 * ones, which another thread may be free to begin. */
static const relayi_item *take_early(const relay_plan *plan, queue *from) {
    int32_t left = from->end - atomic_load_explicit(&from->next, memory_order_relaxed);
    return left > plan->threads ? take_item(plan, from) : NULL;
}

static void drain(const relayi_runner *run, relayi_worker *w, queue *from) {
    const relayi_item *item = take_item(run->plan, from);
    while (item != NULL) {
        const relayi_item *next = take_early(run->plan, from);
        relayi_attend_item(run, w, item, next);
        item = next ? next : take_item(run->plan, from);
    }
}

/* ---- merging -------------------------------------------------------------- */

static void finish_row(const relayi_runner *run, int32_t row, int32_t head) {
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

static relayi_worker find_worker(const relayi_workspace *map, char *workspace, int32_t thread) {
    char *scratch = workspace + map->threads + map->per_thread * (size_t)thread;
    return (relayi_worker){.query = (float *)(void *)(scratch + map->query),
                           .range = (relayi_range *)(void *)(scratch + map->range),
                           .slope = (float *)(void *)(scratch + map->slope),
                           .kernel = scratch + map->kernel};
}

static relayi_runner make_runner(const relay_plan *plan, const relay_run_args *args, const relayi_workspace *map) {
    char *workspace = args->workspace;
    return (relayi_runner){.plan = plan, .args = args, .states = (int64_t)plan->num_rows * plan->attention.num_heads,
                           .acc = (float *)(void *)(workspace + map->acc),
                           .max = (float *)(void *)(workspace + map->max),
                           .sum = (float *)(void *)(workspace + map->sum)};
}

static queue *make_queues(const relay_plan *plan, void *memory) {
    queue *queues = memory;
    atomic_init(&queues[0].next, 0);
    queues[0].end = plan->num_shared_items;
    atomic_init(&queues[1].next, plan->num_shared_items);
    queues[1].end = plan->num_items;
    return queues;
}

/* What each thread of the team does. */
static void work(const relayi_runner *run, const relayi_workspace *map, queue *queues) {
    int32_t thread = omp_get_thread_num(), heads = run->plan->attention.num_heads;
    relayi_worker w = find_worker(map, run->args->workspace, thread);
    drain(run, &w, &queues[thread % 2]);
    drain(run, &w, &queues[(thread + 1) % 2]);
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t i = 0; i < run->states; i++) finish_row(run, (int32_t)(i / heads), (int32_t)(i % heads));
}

relay_status relay_run(const relay_plan *plan, const relay_run_args *args) {
    if (plan == NULL || args == NULL) return RELAY_NULL_POINTER;
    relay_status status = relayi_check_run(plan, args);
    if (status != RELAY_OK || plan->num_rows == 0) return status;
    if (plan->cuda != NULL) return relayi_run_on_cuda(plan, args);
    relayi_workspace map = relayi_plan_workspace(plan);
    relayi_runner run = make_runner(plan, args, &map);
    queue *queues = make_queues(plan, (char *)args->workspace + map.cursors);
#pragma omp parallel num_threads(plan->threads)
    work(&run, &map, queues);
    return RELAY_OK;
}
