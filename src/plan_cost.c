/* The cost model: what a piece of work takes, and whether sharing pays. */
#include "plan_internal.h"

/* One thread's share of the memory bandwidth, and what a state costs to merge; rough is enough,
 * since only ratios decide. */
#define BYTES_PER_NS 10.0f
#define SCALAR_GFLOPS 2.0f

static float row_block(const relay_plan *plan) { return (float)plan->kernel.row_block; }

float relayi_cost(const relay_plan *plan, int64_t rows, int64_t tokens) {
    float dim = (float)plan->attention.head_dim;
    float bytes = 2.0f * dim * (float)relay_dtype_size(plan->attention.kv_dtype);
    float rate = plan->kernel.gflops > 0 ? (float)plan->kernel.gflops : SCALAR_GFLOPS;
    int64_t block = (int64_t)row_block(plan);
    float padded = (float)((rows + block - 1) / block * block);
    float read = bytes / BYTES_PER_NS, compute = 4.0f * dim * padded / rate;
    /* A kernel overlaps the two in part: the sum errs by a factor of two at most. */
    return (float)tokens * (read + compute);
}

/* Plain attention reads the segment for each request; the relay adds a state to each row, which
 * must be written and merged. */
bool relayi_relay_pays(const relay_plan *plan, const relayi_segment *segment, int64_t rows) {
    if (segment->count < 2 || rows == 0) return false;
    int64_t per_request = (rows + segment->count - 1) / segment->count;
    float plain = (float)segment->count * relayi_cost(plan, per_request * plan->group, segment->kv.length);
    float merge = (float)(rows * plan->group) * 2.0f * (float)plan->attention.head_dim * 4.0f / BYTES_PER_NS;
    return relayi_cost(plan, rows * plan->group, segment->kv.length) + merge < plain;
}
