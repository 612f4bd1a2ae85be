/* What a thread does with a work item: one kernel call after the other, each with a hint of what
 * the next one will read. */
#include <math.h>

#include "convert.h"
#include "prompt.h"
#include "run_internal.h"

/* Few rows: a token's kv heads are neighbours in pages, so they are read together, some tokens at a
 * time: as many as leave room for the next ones in a second-level cache. */
#define CHUNK_BYTES ((int64_t)256 * 1024)
/* The first tokens of a packed prompt that a kernel asks for before it is called. */
#define PACKED_AHEAD 256
#define MAX_SOON 64

static const void *element(const relay_tensor *tensor, int64_t offset) {
    return (const char *)tensor->data + offset * (int64_t)relay_dtype_size(tensor->dtype);
}

static void gather_queries(const relayi_runner *run, const relayi_item *item, int32_t kv_head, float *to) {
    const relay_plan *plan = run->plan;
    const relay_tensor *query = &run->args->query;
    int32_t dim = plan->attention.head_dim;
    for (int32_t row = item->row_begin; row < item->row_end; row++, to += dim) {
        int32_t head = kv_head * plan->group + row % plan->group;
        int64_t source = plan->rows[row / plan->group].source;
        relayi_load_f32(&plan->device->kernels, query, source * query->stride[0] + head * query->stride[1], to, dim);
    }
}

static void gather_slopes(const relayi_runner *run, const relayi_item *item, int32_t kv_head, float *to) {
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
static int32_t fill_ranges(const relayi_runner *run, const relayi_item *item, const relayi_piece *piece, relayi_range *to) {
    const relay_plan *plan = run->plan;
    int32_t all = 1;
    for (int32_t row = item->row_begin; row < item->row_end; row++, to++) {
        *to = range_of(&plan->attention, plan->rows[row / plan->group].position, piece->start);
        all &= to->lo <= piece->begin && to->hi >= piece->end;
    }
    return all;
}

static relayi_kv find_kv(const relayi_runner *run, const relay_kv_span *span, int32_t kv_head) {
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

/* ---- steps: what one kernel call, or one for several kv heads, attends ------------------------ */

typedef struct step {
    const relayi_item *item;
    bool few; /* several kv heads at once */
    int32_t kv_begin, kv_end;
    int32_t piece; /* of the item */
    int32_t begin, end;
} step;

static const relayi_piece *piece_of(const relayi_runner *run, const step *s) {
    return &run->plan->pieces[s->item->first_piece + s->piece];
}

/* Whether rows are few depends on their company, which a repeatable plan must not see. */
static bool is_few(const relayi_runner *run, const relayi_item *item) {
    return !run->plan->options.repeatable && item->row_end - item->row_begin <= run->plan->kernel.few_rows;
}

static int32_t chunk_tokens(const relayi_runner *run, const step *s) {
    const relay_attention *a = &run->plan->attention;
    int64_t token = 2 * (int64_t)(s->item->kv_end - s->item->kv_begin) * a->head_dim *
                    (int64_t)relay_dtype_size(a->kv_dtype);
    return CHUNK_BYTES / token >= 2 * RELAYI_TILE ? 2 * RELAYI_TILE : RELAYI_TILE;
}

static void begin_heads(const relayi_runner *run, step *s, int32_t kv_begin) {
    s->kv_begin = kv_begin;
    s->kv_end = kv_begin + 1;
    if (s->few && piece_of(run, s)->span->layout != RELAY_KV_PACKED) s->kv_end = kv_begin + RELAYI_FEW_HEADS;
    if (s->kv_end > s->item->kv_end) s->kv_end = s->item->kv_end;
}

static void begin_tokens(const relayi_runner *run, step *s, int32_t begin) {
    const relayi_piece *piece = piece_of(run, s);
    s->begin = begin;
    s->end = piece->end;
    if (!s->few || piece->span->layout == RELAY_KV_PACKED) return;
    int32_t chunk = chunk_tokens(run, s);
    if (s->end - begin > chunk) s->end = begin + chunk;
}

static step first_step(const relayi_runner *run, const relayi_item *item) {
    step s = {.item = item, .few = is_few(run, item)};
    begin_tokens(run, &s, piece_of(run, &s)->begin);
    begin_heads(run, &s, item->kv_begin);
    return s;
}

/* The item's next tokens; false if there are none. */
static bool next_tokens(const relayi_runner *run, step *s) {
    if (s->end < piece_of(run, s)->end) {
        begin_tokens(run, s, s->end);
        return true;
    }
    if (s->piece + 1 == s->item->num_pieces) return false;
    s->piece++;
    begin_tokens(run, s, piece_of(run, s)->begin);
    return true;
}

/* Few rows take all heads of some tokens, then more tokens; many rows all tokens of one head. */
static bool next_step(const relayi_runner *run, step *s) {
    if (s->few) {
        if (s->kv_end < s->item->kv_end) {
            begin_heads(run, s, s->kv_end);
            return true;
        }
        if (!next_tokens(run, s)) return false;
        begin_heads(run, s, s->item->kv_begin);
        return true;
    }
    if (next_tokens(run, s)) return true;
    if (s->kv_end == s->item->kv_end) return false;
    s->piece = 0;
    begin_tokens(run, s, piece_of(run, s)->begin);
    begin_heads(run, s, s->kv_end);
    return true;
}

/* ---- what the next step will read ------------------------------------------------------------- */

typedef struct soon_list {
    relayi_soon soon[MAX_SOON];
    int32_t count;
} soon_list;

static void add_soon(soon_list *list, const void *at, int64_t stride, int32_t rows, int64_t bytes) {
    if (list->count < MAX_SOON)
        list->soon[list->count++] = (relayi_soon){at, stride, rows, (int32_t)bytes};
}

/* `count` tokens that lie side by side, from `key` and `value` on, of `heads` neighbouring heads. */
static void add_tokens(soon_list *list, const relayi_kv *kv, int64_t key_at, int64_t value_at, int32_t count,
                       int64_t head_bytes, int64_t element_bytes) {
    int64_t key_stride = kv->key_token_stride * element_bytes, value_stride = kv->value_token_stride * element_bytes;
    const char *key = (const char *)kv->key + key_at * element_bytes;
    const char *value = (const char *)kv->value + value_at * element_bytes;
    if (key_stride == head_bytes) add_soon(list, key, 0, 1, head_bytes * count);
    else add_soon(list, key, key_stride, count, head_bytes);
    if (value_stride == head_bytes) add_soon(list, value, 0, 1, head_bytes * count);
    else add_soon(list, value, value_stride, count, head_bytes);
}

static void add_pages(const relayi_runner *run, const step *s, const relayi_kv *kv, int32_t heads, soon_list *list) {
    int64_t element_bytes = (int64_t)relay_dtype_size(run->plan->attention.kv_dtype);
    int64_t head_bytes = heads * run->plan->attention.head_dim * element_bytes;
    for (int32_t n = s->begin; n < s->end;) {
        int32_t in = kv->block_table ? n % kv->block_size : n;
        int32_t stop = kv->block_table && s->end - n > kv->block_size - in ? n + kv->block_size - in : s->end;
        int64_t block = kv->block_table ? kv->block_table[n / kv->block_size] : 0;
        add_tokens(list, kv, block * kv->key_block_stride + in * kv->key_token_stride,
                   block * kv->value_block_stride + in * kv->value_token_stride, stop - n, head_bytes, element_bytes);
        n = stop;
    }
}

static void add_packed(const relayi_runner *run, const step *s, const relayi_kv *kv, soon_list *list) {
    int64_t token = run->plan->attention.head_dim * (int64_t)relay_dtype_size(run->plan->attention.kv_dtype);
    int64_t tokens = s->end - s->begin < PACKED_AHEAD ? relayi_num_tiles(s->end - s->begin) * RELAYI_TILE : PACKED_AHEAD;
    add_soon(list, (const char *)kv->key + s->begin * token, 0, 1, tokens * token);
    add_soon(list, (const char *)kv->value + s->begin * token, 0, 1, tokens * token);
}

static void list_soon(const relayi_runner *run, const step *s, soon_list *list) {
    const relay_kv_span *span = piece_of(run, s)->span;
    int64_t dim = run->plan->attention.head_dim;
    relayi_kv kv = find_kv(run, span, s->kv_begin);
    if (kv.packed) add_packed(run, s, &kv, list);
    else if (span->layout == RELAY_KV_PAGED && run->args->key_pool.stride[2] == dim &&
             run->args->value_pool.stride[2] == dim)
        add_pages(run, s, &kv, s->kv_end - s->kv_begin, list);
    else
        for (int32_t head = s->kv_begin; head < s->kv_end; head++) {
            kv = find_kv(run, span, head);
            add_pages(run, s, &kv, 1, list);
        }
}

/* ---- calls ------------------------------------------------------------------------------------ */

static relayi_attend_args begin_call(const relayi_runner *run, relayi_worker *w, const step *s, int32_t kv_head) {
    const relay_plan *plan = run->plan;
    const relayi_item *item = s->item;
    int32_t rows = item->row_end - item->row_begin, dim = plan->attention.head_dim, index = kv_head - s->kv_begin;
    int64_t state = (int64_t)item->part * run->states +
                    (int64_t)kv_head * plan->num_rows * plan->group + item->row_begin;
    return (relayi_attend_args){.rows = rows, .head_dim = dim, .query = w->query + (int64_t)index * rows * dim,
                                .range = w->range, .slope = plan->attention.use_alibi ? w->slope + index * rows : NULL,
                                .scale = plan->attention.softmax_scale, .soft_cap = plan->attention.logit_soft_cap,
                                .kv = find_kv(run, piece_of(run, s)->span, kv_head), .begin = s->begin, .end = s->end,
                                .acc = run->acc + state * dim, .max = run->max + state, .sum = run->sum + state,
                                .scratch = w->kernel};
}

static void clear_state(const relayi_attend_args *call) {
    memset(call->acc, 0, (size_t)call->rows * (size_t)call->head_dim * sizeof(float));
    for (int32_t i = 0; i < call->rows; i++) call->max[i] = -INFINITY;
    memset(call->sum, 0, (size_t)call->rows * sizeof(float));
}

/* The queries and slopes of the step's heads, unless they are still there from the last step. */
static void load_queries(const relayi_runner *run, relayi_worker *w, const step *s) {
    if (w->item == s->item && w->kv_begin == s->kv_begin && w->kv_end == s->kv_end) return;
    int32_t rows = s->item->row_end - s->item->row_begin;
    for (int32_t kv = s->kv_begin; kv < s->kv_end; kv++) {
        int64_t row = (int64_t)(kv - s->kv_begin) * rows;
        gather_queries(run, s->item, kv, w->query + row * run->plan->attention.head_dim);
        if (run->plan->attention.use_alibi) gather_slopes(run, s->item, kv, w->slope + row);
    }
    w->item = s->item;
    w->kv_begin = s->kv_begin;
    w->kv_end = s->kv_end;
}

static void attend_step(const relayi_runner *run, relayi_worker *w, const step *s, const soon_list *list) {
    const relayi_piece *piece = piece_of(run, s);
    const relayi_attend_kernel *kernel = &run->plan->kernel;
    relayi_attend_args calls[RELAYI_FEW_HEADS];
    int32_t heads = s->kv_end - s->kv_begin;
    load_queries(run, w, s);
    int32_t all_visible = fill_ranges(run, s->item, piece, w->range);
    for (int32_t i = 0; i < heads; i++) {
        calls[i] = begin_call(run, w, s, s->kv_begin + i);
        calls[i].all_visible = all_visible;
        if (s->piece == 0 && s->begin == piece->begin) clear_state(&calls[i]);
    }
    calls[0].soon = list->soon;
    calls[0].num_soon = list->count;
    if (s->few && !calls[0].kv.packed) kernel->few(calls, heads);
    else kernel->attend(&calls[0]);
}

void relayi_attend_item(const relayi_runner *run, relayi_worker *w, const relayi_item *item, const relayi_item *next) {
    step now = first_step(run, item);
    w->item = NULL;
    for (bool more = true; more;) {
        step then = now;
        soon_list list = {.count = 0};
        more = next_step(run, &then);
        if (!more && next) then = first_step(run, next);
        if (more || next) list_soon(run, &then, &list);
        attend_step(run, w, &now, &list);
        now = then;
    }
}
