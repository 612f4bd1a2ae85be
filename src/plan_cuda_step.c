/* A plan for the next decoding step: requests have grown by a token or a few, and nothing else is new.  The cuts stay
 * as they were; a request's last unit takes what is new, up to a bound that keeps the cuts as balanced as they were. */
#include <string.h>

#include "plan_cuda.h"

/* Tokens that a cut's last chunk may have beyond the others, and part of a chunk. */
#define SLACK_TOKENS 64
#define SLACK_PART 4

void relayi_cuda_step_forget(relayi_cuda_plan *cuda) {
    relayi_shrink(&cuda->step.memory);
    cuda->step.known = false;
}

static void *place(char **at, const void *from, size_t bytes) {
    void *here = *at;
    if (bytes > 0) memcpy(here, from, bytes);
    *at += (bytes + 15) / 16 * 16;
    return here;
}

static int32_t tensor_of(const relay_kv_span *span) { return span->layout == RELAY_KV_PAGED ? -1 : span->tensor_index; }

void relayi_cuda_step_keep(relay_plan *plan, const relayi_forest_content *content) {
    relayi_cuda_step *step = &plan->cuda->step;
    size_t requests = (size_t)content->num_requests, segments = (size_t)content->num_segments;
    size_t bytes = (5 * requests + 1) * sizeof(int32_t) + segments * sizeof *step->segments + 6 * 16;
    step->known = relayi_grow(&step->memory, bytes, 1);
    if (!step->known) return;
    char *at = step->memory.data;
    step->num_requests = content->num_requests;
    step->num_segments = content->num_segments;
    step->block_size = content->block_size;
    step->any_contiguous = plan->max_contiguous > 0;
    step->query_start = place(&at, content->query_start, (requests + 1) * sizeof(int32_t));
    step->order = place(&at, content->order, requests * sizeof(int32_t));
    step->leaf = place(&at, content->leaf, requests * sizeof(int32_t));
    step->segments = place(&at, content->segments, segments * sizeof *step->segments);
    step->length = place(&at, content->order, requests * sizeof(int32_t));
    step->tensor = place(&at, content->order, requests * sizeof(int32_t));
    for (size_t r = 0; r < requests; r++) {
        step->length[r] = content->own[r].length;
        step->tensor[r] = tensor_of(&content->own[r]);
    }
}

/* ---- may it be taken --------------------------------------------------------- */

static bool same_segments(const relayi_cuda_step *step, const relayi_forest_content *content) {
    for (int32_t s = 0; s < content->num_segments; s++) {
        const relayi_segment *a = &step->segments[s], *b = &content->segments[s];
        if (a->parent != b->parent || a->first != b->first || a->count != b->count || a->start != b->start ||
            a->kv.layout != b->kv.layout || a->kv.length != b->kv.length || a->kv.tensor_index != b->kv.tensor_index)
            return false;
    }
    return true;
}

static bool same_requests(const relayi_cuda_step *step, const relayi_forest_content *content) {
    size_t bytes = (size_t)content->num_requests * sizeof(int32_t);
    return memcmp(step->query_start, content->query_start, bytes + sizeof(int32_t)) == 0 &&
           memcmp(step->order, content->order, bytes) == 0 && memcmp(step->leaf, content->leaf, bytes) == 0;
}

static int64_t whole(const relay_plan *plan, int32_t tokens) {
    bool hopper = plan->cuda->kernel == RELAYI_CUDA_HOPPER; /* constants: a division by either is a shift */
    return hopper ? ((int64_t)tokens + RELAYI_CUDA_PAGE - 1) / RELAYI_CUDA_PAGE * RELAYI_CUDA_PAGE
                  : ((int64_t)tokens + RELAYI_CUDA_CUT - 1) / RELAYI_CUDA_CUT * RELAYI_CUDA_CUT;
}

/* The cut's tokens when its request has grown; -1: its last chunk would be too long, or it is cut in another way. */
static int64_t grown_tokens(const relay_plan *plan, const relayi_cuda_cut *cut, int32_t before, int32_t now) {
    if (cut->tiles != 1) return -1;
    int64_t tokens = cut->tokens + whole(plan, now) - whole(plan, before);
    int64_t last = tokens - (int64_t)(cut->chunks - 1) * cut->chunk_tokens, slack = cut->chunk_tokens / SLACK_PART;
    return last <= cut->chunk_tokens + (slack > SLACK_TOKENS ? slack : SLACK_TOKENS) ? tokens : -1;
}

static bool grows(const relay_plan *plan, const relayi_forest_content *content, int32_t position) {
    const relayi_cuda_step *step = &plan->cuda->step;
    int32_t request = content->order[position], cut = step->own_cut[position];
    const relay_kv_span *now = &content->own[request];
    int32_t before = step->length[request];
    if (now->length < before || (plan->max_contiguous > 0 && tensor_of(now) != step->tensor[request])) return false;
    if (step->row_start[position] == step->row_start[position + 1]) return true; /* attends nothing */
    if (cut < 0 || before == 0) return false;
    if (plan->options.max_tokens > 0 && relayi_path_end(content, position) + now->length > plan->options.max_tokens) return false;
    return grown_tokens(plan, &step->cuts[cut], before, now->length) >= 0;
}

static bool may_step(relay_plan *plan, const relayi_forest_content *content) {
    relayi_cuda_plan *cuda = plan->cuda;
    const relayi_cuda_step *step = &cuda->step;
    if (!step->known || step->any_contiguous != (plan->max_contiguous > 0) || plan->options.repeatable || plan->attention.sliding_window > 0) return false;
    if (step->num_requests != content->num_requests || step->num_segments != content->num_segments ||
        step->block_size != content->block_size || !same_requests(step, content) || !same_segments(step, content))
        return false;
    for (int32_t p = 0; p < content->num_requests; p++)
        if (!grows(plan, content, p)) return false;
    if (plan->max_contiguous > RELAYI_CUDA_HOPPER_CONTIGUOUS && cuda->kernel == RELAYI_CUDA_HOPPER) return false;
    if (cuda->bounded) return content->num_ids <= cuda->sizes.ids;
    size_t bytes = cuda->ids + ((size_t)content->num_ids * sizeof(int32_t) + 15) / 16 * 16;
    return bytes <= cuda->list_room;
}

/* ---- the list ---------------------------------------------------------------- */

static bool from_end(const relayi_cuda_plan *cuda, const relayi_cuda_cut *cut) {
    return cuda->kernel == RELAYI_CUDA_HOPPER && cut->shape == RELAYI_CUDA_FLAT;
}

static relayi_cuda_unit *unit_of(const relayi_cuda_plan *cuda, const relayi_cuda_cut *cut, int64_t number) {
    relayi_cuda_unit *units = (void *)((char *)cuda->list + cuda->units);
    int64_t paired = 2 * (int64_t)cut->pairs * cut->chunks;
    number += number < paired ? cut->first_pair : cut->first_unit - paired;
    return &units[from_end(cuda, cut) ? cuda->sizes.units - 1 - number : number];
}

static relayi_cuda_piece *piece_of(const relayi_cuda_plan *cuda, relayi_cuda_unit *unit, int32_t number) {
    relayi_cuda_piece *more = (void *)((char *)cuda->list + cuda->pieces);
    return number == 0 ? &unit->first : &more[unit->more_pieces + number - 1];
}

/* Where the ids of a segment lie that a request reads by itself. */
static int32_t segment_ids(const relayi_forest_content *content, int32_t position, int32_t start) {
    for (int32_t s = content->leaf[position]; s >= 0; s = content->segments[s].parent)
        if (content->segments[s].start == start && content->segments[s].kv.length > 0)
            return relayi_ids_of(content, &content->segments[s].kv);
    return 0;
}

static void step_unit(const relayi_cuda_plan *cuda, const relayi_forest_content *content, int32_t position, int32_t start,
                      int32_t ids, int32_t more, relayi_cuda_unit *unit) {
    unit->min_position += more;
    unit->max_position += more;
    for (int32_t i = 0; i < unit->num_pieces; i++) {
        relayi_cuda_piece *piece = piece_of(cuda, unit, i);
        if (piece->tensor < 0) piece->ids = piece->start == start ? ids : segment_ids(content, position, piece->start);
    }
}

/* Tokens that a request has more, and how often its rows see them. */
typedef struct growth {
    int64_t tokens, seen;
} growth;

static void step_request(const relay_plan *plan, const relayi_forest_content *content, int32_t position, growth *all) {
    const relayi_cuda_plan *cuda = plan->cuda;
    const relayi_cuda_step *step = &cuda->step;
    int32_t first = step->row_start[position], end = step->row_start[position + 1], request = content->order[position];
    if (first == end) return;
    const relay_kv_span *own = &content->own[request];
    int32_t before = step->length[request], start = relayi_path_end(content, position), ids = relayi_ids_of(content, own);
    relayi_cuda_cut *cut = &step->cuts[step->own_cut[position]];
    relayi_cuda_unit *unit = unit_of(cuda, cut, 0);
    int32_t to_next = from_end(cuda, cut) ? -1 : 1, more = own->length - before;
    for (int32_t c = 0; c < cut->chunks; c++, unit += c < cut->chunks ? to_next : 0)
        step_unit(cuda, content, position, start, ids, more, unit);
    piece_of(cuda, unit, unit->num_pieces - 1)->end = own->length;
    cut->tokens += whole(plan, own->length) - whole(plan, before);
    relayi_cuda_row *rows = (void *)((char *)cuda->list + cuda->rows);
    for (int32_t i = first; i < end; i++) rows[i].position += more;
    all->tokens += more;
    all->seen += (int64_t)more * (end - first);
}

/* The batch's size and work, as a whole build counts them. */
static void step_info(relay_plan *plan, const growth *all) {
    const relay_attention *a = &plan->attention;
    plan->info.flops += 4.0 * a->head_dim * a->num_heads * (double)all->seen;
    plan->info.unique_kv_bytes += 2.0 * a->num_kv_heads * a->head_dim * (double)relay_dtype_size(a->kv_dtype) * (double)all->tokens;
}

/* What all units of a prompt share; their tiles' positions are given as wide as the prompt's. */
static void step_segment(relayi_cuda_plan *cuda, const relayi_forest_content *content, int32_t segment) {
    const relay_kv_span *kv = &content->segments[segment].kv;
    if (cuda->step.relayed[segment] < 0) return;
    const relayi_cuda_cut *cut = &cuda->step.cuts[cuda->step.relayed[segment]];
    const relayi_cuda_row *rows = (const void *)((char *)cuda->list + cuda->rows);
    int32_t low = rows[cut->row_begin].position, high = low;
    for (int32_t i = cut->row_begin + 1; i < cut->row_end; i++) {
        low = rows[i].position < low ? rows[i].position : low;
        high = rows[i].position > high ? rows[i].position : high;
    }
    int64_t units = (int64_t)cut->chunks * cut->tiles;
    for (int64_t u = 0; u < units; u++) {
        relayi_cuda_unit *unit = unit_of(cuda, cut, u);
        unit->min_position = low;
        unit->max_position = high;
        if (kv->layout == RELAY_KV_PAGED) unit->first.ids = relayi_ids_of(content, kv);
    }
}

bool relayi_cuda_plan_step(relay_plan *plan, const relayi_forest_content *content, relay_status *status) {
    relayi_cuda_plan *cuda = plan->cuda;
    if (!may_step(plan, content)) return false;
    *status = relayi_cuda_await_runs(plan);
    if (*status != RELAY_OK) {
        cuda->step.known = false;
        return true;
    }
    growth all = {0, 0};
    for (int32_t p = 0; p < content->num_requests; p++) step_request(plan, content, p, &all);
    for (int32_t s = 0; s < content->num_segments; s++) step_segment(cuda, content, s);
    step_info(plan, &all);
    cuda->used.ids = content->num_ids;
    if (!cuda->bounded) cuda->sizes.ids = content->num_ids;
    relayi_cuda_lay_out(cuda);
    if (content->num_ids > 0)
        memcpy((char *)cuda->list + cuda->ids, content->ids, (size_t)content->num_ids * sizeof(int32_t));
    for (int32_t r = 0; r < content->num_requests; r++) cuda->step.length[r] = content->own[r].length;
    return true;
}
