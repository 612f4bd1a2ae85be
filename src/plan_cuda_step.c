/* A plan for the next decoding step: requests have grown by a token or a few, and nothing else is new.  The cuts stay
 * as they were; a request's last unit takes what is new, up to a bound that keeps the cuts as balanced as they were.
 *
 * It runs before every step's first kernel, so that what it reads lies side by side, and what can be worked out
 * beforehand is: 256 requests are some microseconds. */
#include <limits.h>
#include <string.h>

#include "plan_cuda.h"

/* Tokens that a cut's last chunk may have beyond the others, and part of a chunk. */
#define SLACK_TOKENS 64
#define SLACK_PART 4

void relayi_cuda_step_forget(relayi_cuda_plan *cuda) {
    relayi_shrink(&cuda->step.memory);
    cuda->step.known = false;
}

/* ---- what is kept -------------------------------------------------------------- */

static void *place(char **at, size_t bytes) {
    void *here = *at;
    *at += (bytes + 15) / 16 * 16;
    return here;
}

static void *copy(char **at, const void *from, size_t bytes) {
    void *here = place(at, bytes);
    if (bytes > 0) memcpy(here, from, bytes);
    return here;
}

static bool reserve(relayi_cuda_step *step, const relayi_forest_content *content) {
    size_t requests = (size_t)content->num_requests, segments = (size_t)content->num_segments;
    size_t bytes = (3 * requests + 1) * sizeof(int32_t) + segments * (sizeof *step->segments + 2 * sizeof *step->relayed) +
                   requests * sizeof *step->own + 6 * 16;
    if (!relayi_grow(&step->memory, bytes, 1)) return false;
    char *at = step->memory.data;
    step->own = place(&at, requests * sizeof *step->own);
    step->relayed = place(&at, 2 * segments * sizeof *step->relayed);
    step->query_start = copy(&at, content->query_start, (requests + 1) * sizeof(int32_t));
    step->order = copy(&at, content->order, requests * sizeof(int32_t));
    step->leaf = copy(&at, content->leaf, requests * sizeof(int32_t));
    step->segments = copy(&at, content->segments, segments * sizeof *step->segments);
    return true;
}

static int32_t tensor_of(const relay_kv_span *span) { return span->layout == RELAY_KV_PAGED ? -1 : span->tensor_index; }

/* The next multiple of what cuts are multiples of, or the last: constants, so that a shift divides. */
static int64_t whole_up(const relayi_cuda_plan *cuda, int64_t tokens) {
    bool hopper = cuda->kernel == RELAYI_CUDA_HOPPER;
    return hopper ? (tokens + RELAYI_CUDA_PAGE - 1) / RELAYI_CUDA_PAGE * RELAYI_CUDA_PAGE
                  : (tokens + RELAYI_CUDA_CUT - 1) / RELAYI_CUDA_CUT * RELAYI_CUDA_CUT;
}
static int64_t whole_down(const relayi_cuda_plan *cuda, int64_t tokens) {
    bool hopper = cuda->kernel == RELAYI_CUDA_HOPPER;
    return hopper ? tokens / RELAYI_CUDA_PAGE * RELAYI_CUDA_PAGE : tokens / RELAYI_CUDA_CUT * RELAYI_CUDA_CUT;
}

/* The lowest entry of a cut's units. */
static int32_t entry_of(const relayi_cuda_plan *cuda, const relayi_cuda_cut *cut) {
    bool from_end = cuda->kernel == RELAYI_CUDA_HOPPER && cut->shape == RELAYI_CUDA_FLAT;
    int64_t units = (int64_t)cut->chunks * cut->tiles;
    return (int32_t)(from_end ? cuda->sizes.units - cut->first_unit - units : cut->first_unit);
}

/* Tokens that a request may have before its last chunk is too long beside the others. */
static int64_t most_tokens(const relay_plan *plan, const relayi_cuda_cut *cut, int32_t length, int32_t start) {
    int64_t others = cut->tokens - whole_up(plan->cuda, length), slack = cut->chunk_tokens / SLACK_PART;
    int64_t room = (int64_t)cut->chunks * cut->chunk_tokens + (slack > SLACK_TOKENS ? slack : SLACK_TOKENS);
    int64_t most = whole_down(plan->cuda, room - others);
    int64_t bound = (plan->options.max_tokens > 0 ? plan->options.max_tokens : INT32_MAX) - (int64_t)start;
    return most < bound ? most : bound;
}

static relayi_cuda_own own_at(const relay_plan *plan, const relayi_forest_content *content, const relayi_cuda_cuts *made,
                              int32_t position) {
    const relay_kv_span *span = &content->own[content->order[position]];
    int32_t row = made->row_start[position], rows = made->row_start[position + 1] - row;
    relayi_cuda_own own = {.length = span->length, .most = INT32_MAX, .tensor = tensor_of(span), .row = row, .num_rows = rows};
    if (rows == 0) return own; /* attends nothing */
    own.most = -1;
    if (made->own_cut[position] < 0 || span->length == 0) return own;
    const relayi_cuda_cut *cut = &made->cuts[made->own_cut[position]];
    if (cut->tiles != 1) return own;
    own.most = (int32_t)most_tokens(plan, cut, span->length, relayi_path_end(content, position));
    own.units = cut->chunks;
    own.entry = entry_of(plan->cuda, cut);
    own.last = plan->cuda->kernel == RELAYI_CUDA_HOPPER ? own.entry : own.entry + own.units - 1;
    own.alone = cut->num_pieces == 1;
    return own;
}

void relayi_cuda_step_keep(relay_plan *plan, const relayi_forest_content *content, const relayi_cuda_cuts *made) {
    relayi_cuda_step *step = &plan->cuda->step;
    step->known = reserve(step, content);
    if (!step->known) return;
    step->num_requests = content->num_requests;
    step->num_segments = content->num_segments;
    step->block_size = content->block_size;
    step->any_contiguous = plan->max_contiguous > 0;
    for (int32_t p = 0; p < content->num_requests; p++) step->own[p] = own_at(plan, content, made, p);
    step->num_relayed = 0;
    for (int32_t s = 0; s < content->num_segments; s++) {
        if (made->relayed[s] < 0) continue;
        const relayi_cuda_cut *cut = &made->cuts[made->relayed[s]];
        const int32_t paired = 2 * cut->pairs * cut->chunks, others = cut->chunks * cut->tiles - paired;
        relayi_cuda_relayed relayed = {.segment = s, .row_begin = cut->row_begin, .row_end = cut->row_end};
        relayed.entry = (int32_t)cut->first_pair, relayed.units = paired;
        if (paired > 0) step->relayed[step->num_relayed++] = relayed;
        relayed.entry = (int32_t)entry_of(plan->cuda, cut), relayed.units = others;
        if (others > 0) step->relayed[step->num_relayed++] = relayed;
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

static bool same_tensors(const relayi_cuda_step *step, const relayi_forest_content *content) {
    for (int32_t p = 0; p < content->num_requests; p++)
        if (step->own[p].tensor != tensor_of(&content->own[content->order[p]])) return false;
    return true;
}

static bool all_fit(const relayi_cuda_step *step, const relayi_forest_content *content) {
    int32_t wrong = 0;
    for (int32_t p = 0; p < content->num_requests; p++) {
        int32_t length = content->own[content->order[p]].length;
        wrong |= (length < step->own[p].length) | (length > step->own[p].most);
    }
    return wrong == 0;
}

static bool may_step(relay_plan *plan, const relayi_forest_content *content) {
    relayi_cuda_plan *cuda = plan->cuda;
    const relayi_cuda_step *step = &cuda->step;
    if (!step->known || step->any_contiguous != (plan->max_contiguous > 0) || plan->options.repeatable || plan->attention.sliding_window > 0) return false;
    if (step->num_requests != content->num_requests || step->num_segments != content->num_segments ||
        step->block_size != content->block_size || !same_requests(step, content) || !same_segments(step, content))
        return false;
    if ((step->any_contiguous && !same_tensors(step, content)) || !all_fit(step, content)) return false;
    if (plan->max_contiguous > RELAYI_CUDA_HOPPER_CONTIGUOUS && cuda->kernel == RELAYI_CUDA_HOPPER) return false;
    if (cuda->bounded) return content->num_ids <= cuda->sizes.ids;
    size_t bytes = cuda->ids + ((size_t)content->num_ids * sizeof(int32_t) + 15) / 16 * 16;
    return bytes <= cuda->list_room;
}

/* ---- the list ---------------------------------------------------------------- */

/* The parts of a list that a step changes. */
typedef struct parts {
    relayi_cuda_unit *units;
    relayi_cuda_piece *pieces;
    relayi_cuda_row *rows;
} parts;

static parts parts_of(const relayi_cuda_plan *cuda) {
    char *list = cuda->list;
    return (parts){(void *)(list + cuda->units), (void *)(list + cuda->pieces), (void *)(list + cuda->rows)};
}

static relayi_cuda_piece *piece_of(const parts *list, relayi_cuda_unit *unit, int32_t number) {
    return number == 0 ? &unit->first : &list->pieces[unit->more_pieces + number - 1];
}

/* Where the ids of a segment lie that a request reads by itself. */
static int32_t segment_ids(const relayi_forest_content *content, int32_t position, int32_t start) {
    for (int32_t s = content->leaf[position]; s >= 0; s = content->segments[s].parent)
        if (content->segments[s].start == start && content->segments[s].kv.length > 0)
            return relayi_ids_of(content, &content->segments[s].kv);
    return 0;
}

/* A request that attends segments by itself, besides its own tokens: their ids, and its new end. */
static void step_path(const parts *list, const relayi_forest_content *content, int32_t position, const relayi_cuda_own *own) {
    const relay_kv_span *now = &content->own[content->order[position]];
    int32_t start = relayi_path_end(content, position), ids = relayi_ids_of(content, now);
    for (int32_t u = own->entry; u < own->entry + own->units; u++) {
        for (int32_t i = 0; i < list->units[u].num_pieces; i++) {
            relayi_cuda_piece *piece = piece_of(list, &list->units[u], i);
            if (piece->tensor < 0) piece->ids = piece->start == start ? ids : segment_ids(content, position, piece->start);
        }
    }
    relayi_cuda_unit *last = &list->units[own->last];
    piece_of(list, last, last->num_pieces - 1)->end = now->length;
}

/* Positions of a request's units and rows; `more`: tokens that it has grown by. */
static void step_positions(const parts *list, const relayi_cuda_own *own, int32_t more) {
    relayi_cuda_unit *unit = &list->units[own->entry];
    for (int32_t i = own->units; i > 0; i--, unit++) {
        unit->min_position += more;
        unit->max_position += more;
    }
    relayi_cuda_row *row = &list->rows[own->row];
    for (int32_t i = own->num_rows; i > 0; i--, row++) row->position += more;
}

static void step_alone(const parts *list, const relayi_cuda_own *own, int32_t length, int32_t ids) {
    relayi_cuda_unit *unit = &list->units[own->entry];
    for (int32_t i = own->units; i > 0; i--, unit++) unit->first.ids = ids;
    list->units[own->last].first.end = length;
}

/* Tokens that requests have more, and how often their rows see them. */
typedef struct growth {
    int64_t tokens, seen;
} growth;

static growth step_requests(relayi_cuda_plan *cuda, const relayi_forest_content *content) {
    growth all = {0, 0};
    const parts list = parts_of(cuda);
    const relay_kv_span *spans = content->own; /* local: what is stored below cannot change it */
    const int32_t *order = content->order;
    int32_t num_requests = content->num_requests;
    relayi_cuda_own *own = cuda->step.own;
    for (int32_t p = 0; p < num_requests; p++, own++) {
        const relay_kv_span *now = &spans[order[p]];
        int32_t more = now->length - own->length;
        own->length = now->length;
        if (own->num_rows == 0) continue;
        step_positions(&list, own, more);
        if (own->alone) step_alone(&list, own, now->length, relayi_ids_of(content, now));
        else step_path(&list, content, p, own);
        all.tokens += more;
        all.seen += (int64_t)more * own->num_rows;
    }
    return all;
}

/* The batch's size and work, as a whole build counts them. */
static void step_info(relay_plan *plan, const growth *all) {
    const relay_attention *a = &plan->attention;
    plan->info.flops += 4.0 * a->head_dim * a->num_heads * (double)all->seen;
    plan->info.unique_kv_bytes += 2.0 * a->num_kv_heads * a->head_dim * (double)relay_dtype_size(a->kv_dtype) * (double)all->tokens;
}

/* What all units of a prompt share; their tiles' positions are given as wide as the prompt's. */
static void step_relayed(const parts *list, const relayi_forest_content *content, const relayi_cuda_relayed *relayed) {
    const relay_kv_span *kv = &content->segments[relayed->segment].kv;
    int32_t low = list->rows[relayed->row_begin].position, high = low, ids = relayi_ids_of(content, kv);
    for (int32_t i = relayed->row_begin + 1; i < relayed->row_end; i++) {
        int32_t position = list->rows[i].position;
        low = position < low ? position : low;
        high = position > high ? position : high;
    }
    for (relayi_cuda_unit *unit = &list->units[relayed->entry]; unit < &list->units[relayed->entry + relayed->units]; unit++) {
        unit->min_position = low;
        unit->max_position = high;
        if (kv->layout == RELAY_KV_PAGED) unit->first.ids = ids;
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
    const growth all = step_requests(cuda, content);
    const parts list = parts_of(cuda);
    for (int32_t i = 0; i < cuda->step.num_relayed; i++) step_relayed(&list, content, &cuda->step.relayed[i]);
    step_info(plan, &all);
    cuda->used.ids = content->num_ids;
    if (!cuda->bounded) cuda->sizes.ids = content->num_ids;
    relayi_cuda_lay_out(cuda);
    if (content->num_ids > 0)
        memcpy((char *)cuda->list + cuda->ids, content->ids, (size_t)content->num_ids * sizeof(int32_t));
    return true;
}
