/* How the Hopper kernel's workers share a batch: an estimate in microseconds, its constants read off
 * bench/results/h200. */
#include "plan_cuda.h"

/* A worker's tile or page, and what a unit takes besides. */
typedef struct spread_costs {
    double step, unit;
} spread_costs;

static const spread_costs flat_costs = {1.0, 4.0}, tall_costs = {1.2, 2.5};
#define STATE_COST 0.0003 /* of writing and merging one more state, all workers together */
#define MOST_ROUNDS 3
/* How much more than an even share a unit may take, in eighths: a little, so that rounds come out even; beside others that
 * may take longer anyway, also much. */
static const int32_t widths[] = {8, 9, 10, 11, 12, 13, 16, 24, 32};
#define LITTLE_WIDTHS 6

/* `beside`: time that others need anyway. */
static double estimate(const relayi_cuda_load *load, const spread_costs *costs, int64_t steps, int64_t slots, double beside) {
    double chunks = load->alike ? (double)((load->longest + steps - 1) / steps)
                                : load->total / (double)(load->cuts * steps) + 0.5;
    if (chunks < 1.0) chunks = 1.0;
    double units = chunks * (double)load->cuts, cost = (double)steps * costs->step + costs->unit;
    double workers = (load->total * costs->step + units * costs->unit) / (double)slots + 0.5 * cost;
    if (load->alike) workers = (double)(((int64_t)units + slots - 1) / slots) * cost;
    return (workers > beside ? workers : beside) + STATE_COST * load->states * chunks;
}

/* A chunk a little shorter than the shortest cut would leave a rest of each of those. */
static int64_t whole_shortest(const relayi_cuda_load *load, int64_t steps) {
    return steps < load->shortest && load->shortest <= steps + steps / 3 ? load->shortest : steps;
}

int64_t relayi_cuda_spread(const relayi_cuda_load *load, bool tall, int64_t slots, double *time) {
    const spread_costs *costs = tall ? &tall_costs : &flat_costs;
    int64_t best = load->longest > 0 ? load->longest : 1, fewest = tall ? 1 : 2;
    const double beside = *time;
    if (load->cuts == 0) return best;
    double least = load->cuts >= slots || load->alike ? estimate(load, costs, best, slots, beside) : 1e30;
    for (int rounds = 1; rounds <= MOST_ROUNDS; rounds++) {
        int64_t fair = (int64_t)(load->total / (double)(slots * rounds)) + 1;
        for (size_t i = 0; i < (beside > 0.0 ? sizeof widths / sizeof *widths : LITTLE_WIDTHS); i++) {
            int64_t steps = fair * widths[i] / 8;
            if (steps < fewest) steps = fewest;
            if (steps > load->longest) steps = load->longest;
            double took = estimate(load, costs, steps, slots, beside);
            if (took >= least) continue;
            least = took;
            best = steps;
        }
    }
    best = whole_shortest(load, best);
    *time = estimate(load, costs, best, slots, beside);
    return best;
}

/* Read off the same shapes with each layout.  Users gain by deep rings where they take longer than prompts, unless the
 * prompt's tiles come from memory, one after the other, and have to be asked for early. */
relayi_cuda_layout relayi_cuda_choose_layout(const relayi_cuda_load *tall, const relayi_cuda_load *flat, int64_t blocks) {
    double pages = flat->total / (double)(blocks * RELAYI_CUDA_HOPPER_USER_WARPS);
    double tiles = tall->total / (double)blocks, distinct = tall->distinct / (double)blocks;
    bool low = tall->low > 0.5 * tall->total;
    if (!low && tiles <= 0.35 * pages && distinct <= 0.2 * pages) return RELAYI_CUDA_FOR_USERS;
    bool both = (pages >= 40.0 && tiles <= 0.5 * pages) || (low && pages >= 12.0);
    return both ? RELAYI_CUDA_FOR_BOTH : RELAYI_CUDA_FOR_PROMPTS;
}
