#include "attention.h"

#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/clock.h"
#include "math/layer_math.h"
#include "relay/run.h"

enum { KIND_FULL, KIND_SLIDING, NUM_KINDS };

typedef struct array { /* grows by eng_grow */
    void *data;
    size_t room;
} array;

struct eng_attention {
    eng_attention_options options;
    relay_forest *forest;
    relay_plan *plans[NUM_KINDS]; /* NULL: no layer is of that kind */
    int32_t fill_first, fill_rows; /* the rows of the prompt being filled; 0 rows: none */
    int32_t fill_at;               /* where in its node they go */
    int32_t rows;
    array order, start, own, segments, slots, fill_slots;
    array query, fill_keys, fill_values;
    void *workspace;
    size_t workspace_bytes;
    eng_attention_stats stats;
};

static bool fail_status(const char *what, relay_status status, eng_error *err) {
    return eng_fail(err, "%s: %s", what, relay_status_text(status));
}

static bool grow(array *a, int64_t count, size_t item_size, eng_error *err) {
    void *data = eng_grow(a->data, &a->room, (size_t)count + 1, item_size, err);
    if (data == NULL) return false;
    a->data = data;
    return true;
}

/* ---- life --------------------------------------------------------------- */

static bool make_plan(eng_attention *a, int kind, eng_error *err) {
    const eng_attention_options *o = &a->options;
    relay_attention attention = relay_attention_defaults();
    attention.num_heads = o->config->heads;
    attention.num_kv_heads = o->config->kv_heads;
    attention.head_dim = o->config->head_dim;
    attention.query_dtype = o->query_dtype;
    attention.kv_dtype = eng_kv_pool_shape(o->pool)->dtype;
    attention.output_dtype = RELAY_F32;
    attention.softmax_scale = o->config->attention_scale;
    attention.logit_soft_cap = o->config->attention_soft_cap;
    attention.sliding_window = kind == KIND_SLIDING ? o->config->sliding_window : 0;
    relay_plan_options plan = relay_plan_options_defaults();
    plan.strategy = o->strategy;
    plan.repeatable = o->repeatable;
    relay_status status = relay_plan_create(o->device, &attention, &plan, &a->plans[kind]);
    return status == RELAY_OK || fail_status("attention plan", status, err);
}

static int kind_of(const eng_model_config *config, int32_t layer) {
    return eng_layer_window(config, layer) > 0 ? KIND_SLIDING : KIND_FULL;
}

static bool make_plans(eng_attention *a, eng_error *err) {
    const eng_model_config *config = a->options.config;
    for (int32_t layer = 0; layer < config->layers; layer++) {
        int kind = kind_of(config, layer);
        if (a->plans[kind] == NULL && !make_plan(a, kind, err)) return false;
    }
    return true;
}

static bool make_forest(eng_attention *a, eng_error *err) {
    relay_status status = relay_forest_create(a->options.device, &a->forest);
    return status == RELAY_OK || fail_status("attention forest", status, err);
}

static void destroy_plans(eng_attention *a) {
    for (int kind = 0; kind < NUM_KINDS; kind++) {
        relay_plan_destroy(a->plans[kind]);
        a->plans[kind] = NULL;
    }
}

bool eng_attention_set_strategy(eng_attention *a, relay_strategy strategy, eng_error *err) {
    a->options.strategy = strategy;
    destroy_plans(a);
    return make_plans(a, err);
}

bool eng_attention_create(const eng_attention_options *options, eng_attention **out, eng_error *err) {
    *out = NULL;
    eng_attention *a = calloc(1, sizeof *a);
    if (a == NULL) return eng_fail(err, "out of memory for attention");
    a->options = *options;
    if (!make_plans(a, err) || !make_forest(a, err)) {
        eng_attention_destroy(a);
        return false;
    }
    *out = a;
    return true;
}

void eng_attention_destroy(eng_attention *a) {
    if (a == NULL) return;
    destroy_plans(a);
    relay_forest_destroy(a->forest);
    array *const arrays[] = {&a->order, &a->start, &a->own, &a->segments, &a->slots,
                             &a->fill_slots, &a->query, &a->fill_keys, &a->fill_values};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]->data);
    free(a->workspace);
    free(a);
}

/* ---- the forest --------------------------------------------------------- */

static bool same_step(const eng_path *a, const eng_path *b, int32_t depth) {
    return a->steps[depth].node == b->steps[depth].node && a->steps[depth].length == b->steps[depth].length;
}

static int32_t common_steps(const eng_path *a, const eng_path *b) {
    int32_t n = 0;
    while (n < a->count && n < b->count && same_step(a, b, n)) n++;
    return n;
}

static int compare_paths(const eng_path *a, const eng_path *b) {
    int32_t n = common_steps(a, b);
    if (n == a->count || n == b->count) return (a->count > b->count) - (a->count < b->count);
    const eng_path_step *x = &a->steps[n], *y = &b->steps[n];
    if (x->node != y->node) return x->node < y->node ? -1 : 1;
    return x->length < y->length ? -1 : 1;
}

/* Stable insertion: a step's sequences come nearly in order, as requests of one prompt do. */
static void sort_by_path(const eng_sequence *sequences, int32_t count, int32_t *order) {
    for (int32_t i = 0; i < count; i++) {
        int32_t at = i;
        for (; at > 0 && compare_paths(&sequences[order[at - 1]].path, &sequences[i].path) > 0; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
}

static relay_segment segment_of(const eng_attention *a, const eng_path_step *step, int32_t parent, int32_t position) {
    relay_segment segment = {.parent = parent, .first_request = position};
    segment.kv.layout = RELAY_KV_PACKED;
    segment.kv.length = step->length;
    segment.kv.prompt = eng_prompt_set_handle(a->options.prompts, step->node);
    return segment;
}

/* Sequences in order of their paths: each opens what it does not have in common with the one before. */
static int32_t list_segments(eng_attention *a, const eng_sequence *sequences, int32_t count) {
    const int32_t *order = a->order.data;
    relay_segment *segments = a->segments.data;
    int32_t open[ENG_MAX_PATH], num_segments = 0;
    for (int32_t position = 0; position < count; position++) {
        const eng_path *path = &sequences[order[position]].path;
        int32_t common = position == 0 ? 0 : common_steps(path, &sequences[order[position - 1]].path);
        for (int32_t depth = common; depth < path->count; depth++) {
            segments[num_segments] = segment_of(a, &path->steps[depth], depth > 0 ? open[depth - 1] : -1, position);
            open[depth] = num_segments++;
        }
        for (int32_t depth = 0; depth < path->count; depth++) segments[open[depth]].num_requests++;
    }
    return num_segments;
}

static relay_kv_span own_span(const eng_sequence *sequence) {
    relay_kv_span span = {.layout = RELAY_KV_PAGED, .length = sequence->own_tokens, .block_table = sequence->pages};
    if (sequence->pages == NULL) span.layout = RELAY_KV_CONTIGUOUS;
    return span;
}

static bool set_forest(eng_attention *a, const eng_sequence *sequences, int32_t count, eng_error *err) {
    relay_kv_span *own = a->own.data;
    int32_t *start = a->start.data;
    start[0] = 0;
    for (int32_t i = 0; i < count; i++) {
        start[i + 1] = start[i] + sequences[i].rows;
        own[i] = own_span(&sequences[i]);
    }
    a->rows = start[count];
    sort_by_path(sequences, count, a->order.data);
    relay_forest_desc desc = relay_forest_desc_defaults();
    desc.num_requests = count;
    desc.query_start_loc = start;
    desc.own = own;
    desc.order = a->order.data;
    desc.num_segments = list_segments(a, sequences, count);
    desc.segments = a->segments.data;
    desc.block_size = ENG_PAGE_TOKENS;
    desc.num_blocks = eng_kv_pool_pages(a->options.pool);
    relay_status status = relay_forest_set(a->forest, &desc);
    return status == RELAY_OK || fail_status("attention forest", status, err);
}

/* ---- slots -------------------------------------------------------------- */

static void page_slots(const eng_sequence *sequence, int64_t *slots) {
    int32_t first = sequence->own_tokens - sequence->rows;
    for (int32_t i = 0; i < sequence->rows; i++) {
        int32_t token = first + i;
        slots[i] = (int64_t)sequence->pages[token / ENG_PAGE_TOKENS] * ENG_PAGE_TOKENS + token % ENG_PAGE_TOKENS;
    }
}

static void note_filling(eng_attention *a, const eng_sequence *sequence, int32_t first_row) {
    const eng_path *path = &sequence->path;
    const relay_prompt *prompt = eng_prompt_set_filling(a->options.prompts);
    const eng_path_step *last = path->count > 0 ? &path->steps[path->count - 1] : NULL;
    bool begun = last != NULL && eng_prompt_set_handle(a->options.prompts, last->node) == prompt;
    a->fill_first = first_row;
    a->fill_rows = sequence->rows;
    a->fill_at = begun ? last->length : 0;
}

static bool list_slots(eng_attention *a, const eng_sequence *sequences, int32_t count, eng_error *err) {
    if (!grow(&a->slots, a->rows, sizeof(int64_t), err)) return false;
    int64_t *slots = a->slots.data;
    int32_t row = 0;
    a->fill_rows = 0;
    for (int32_t i = 0; i < count; i++) {
        if (sequences[i].pages != NULL) page_slots(&sequences[i], slots + row);
        else note_filling(a, &sequences[i], row);
        for (int32_t r = 0; sequences[i].pages == NULL && r < sequences[i].rows; r++) slots[row + r] = -1;
        row += sequences[i].rows;
    }
    return true;
}

static bool make_fill_room(eng_attention *a, eng_error *err) {
    const eng_kv_shape *shape = eng_kv_pool_shape(a->options.pool);
    size_t token_bytes = (size_t)shape->kv_heads * (size_t)shape->head_dim * relay_dtype_size(shape->dtype);
    if (!grow(&a->fill_slots, a->fill_rows, sizeof(int64_t), err) ||
        !grow(&a->fill_keys, a->fill_rows, token_bytes, err) || !grow(&a->fill_values, a->fill_rows, token_bytes, err))
        return false;
    for (int32_t i = 0; i < a->fill_rows; i++) ((int64_t *)a->fill_slots.data)[i] = i;
    return true;
}

/* ---- planning ----------------------------------------------------------- */

static bool grow_workspace(eng_attention *a, eng_error *err) {
    size_t need = 0;
    for (int kind = 0; kind < NUM_KINDS; kind++) {
        size_t bytes = a->plans[kind] == NULL ? 0 : relay_plan_workspace_bytes(a->plans[kind]);
        if (bytes > need) need = bytes;
    }
    if (need <= a->workspace_bytes) return true;
    need = (need + need / 4 + 63) / 64 * 64;
    free(a->workspace);
    a->workspace_bytes = 0;
    a->workspace = aligned_alloc(64, need);
    if (a->workspace == NULL) return eng_fail(err, "out of memory for an attention workspace of %zu bytes", need);
    a->workspace_bytes = need;
    return true;
}

static bool build_plans(eng_attention *a, eng_error *err) {
    relay_plan_info info = {.struct_size = sizeof info};
    bool shared = false;
    for (int kind = 0; kind < NUM_KINDS; kind++) {
        if (a->plans[kind] == NULL) continue;
        relay_status status = relay_plan_build(a->plans[kind], a->forest);
        if (status == RELAY_OK) status = relay_plan_get_info(a->plans[kind], &info);
        if (status != RELAY_OK) return fail_status("attention plan", status, err);
        if (info.shared_tokens_saved > 0) shared = true;
    }
    if (shared) a->stats.relay_steps++;
    else a->stats.plain_steps++;
    a->stats.shared_tokens_saved += info.shared_tokens_saved;
    return true;
}

bool eng_attention_begin(eng_attention *a, const eng_sequence *sequences, int32_t count, eng_error *err) {
    double begun = eng_seconds();
    const eng_model_config *config = a->options.config;
    bool ok = grow(&a->order, count, sizeof(int32_t), err) && grow(&a->start, count, sizeof(int32_t), err) &&
              grow(&a->own, count, sizeof(relay_kv_span), err) &&
              grow(&a->segments, (int64_t)count * ENG_MAX_PATH, sizeof(relay_segment), err) &&
              set_forest(a, sequences, count, err) && list_slots(a, sequences, count, err) && make_fill_room(a, err) &&
              grow(&a->query, (int64_t)a->rows * config->heads * config->head_dim, sizeof(uint16_t), err) &&
              build_plans(a, err) && grow_workspace(a, err);
    a->stats.seconds += eng_seconds() - begun;
    return ok;
}

/* ---- one layer ---------------------------------------------------------- */

static relay_tensor rows_of(const float *data, int32_t first, int32_t rows, int32_t heads, int32_t head_dim) {
    /* the library's tensors carry no const; keys, values and queries are only read */
    float *at = (float *)(uintptr_t)data + (int64_t)first * heads * head_dim;
    return relay_tensor_3d(at, RELAY_F32, rows, heads, head_dim);
}

static bool write_pages(eng_attention *a, int32_t layer, const eng_attend_io *io, eng_error *err) {
    const eng_model_config *c = a->options.config;
    relay_cache_write_args args = relay_cache_write_args_defaults();
    args.key = rows_of(io->k, 0, io->rows, c->kv_heads, c->head_dim);
    args.value = rows_of(io->v, 0, io->rows, c->kv_heads, c->head_dim);
    args.key_pool = eng_kv_pool_keys(a->options.pool, layer);
    args.value_pool = eng_kv_pool_values(a->options.pool, layer);
    args.slot_mapping = a->slots.data;
    args.num_slots = io->rows;
    relay_status status = relay_cache_write(a->options.device, &args);
    return status == RELAY_OK || fail_status("writing K/V", status, err);
}

/* The new tokens of the prompt being filled: once as they will be attended in this step, rounded to
 * the cache's dtype, and once packed behind what is there. */
static bool write_prompt(eng_attention *a, int32_t layer, const eng_attend_io *io, relay_kv_tensors *kv,
                         eng_error *err) {
    const eng_model_config *c = a->options.config;
    relay_dtype dtype = eng_kv_pool_shape(a->options.pool)->dtype;
    int32_t n = a->fill_rows;
    relay_cache_write_args args = relay_cache_write_args_defaults();
    args.key = rows_of(io->k, a->fill_first, n, c->kv_heads, c->head_dim);
    args.value = rows_of(io->v, a->fill_first, n, c->kv_heads, c->head_dim);
    args.key_pool = relay_tensor_4d(a->fill_keys.data, dtype, n, 1, c->kv_heads, c->head_dim);
    args.value_pool = relay_tensor_4d(a->fill_values.data, dtype, n, 1, c->kv_heads, c->head_dim);
    args.slot_mapping = a->fill_slots.data;
    args.num_slots = n;
    relay_status status = relay_cache_write(a->options.device, &args);
    kv->key = relay_tensor_3d(a->fill_keys.data, dtype, n, c->kv_heads, c->head_dim);
    kv->value = relay_tensor_3d(a->fill_values.data, dtype, n, c->kv_heads, c->head_dim);
    if (status == RELAY_OK)
        status = relay_prompt_write(eng_prompt_set_filling(a->options.prompts), layer, a->fill_at, &kv->key, &kv->value);
    return status == RELAY_OK || fail_status("writing a system prompt's K/V", status, err);
}

static relay_tensor query_tensor(eng_attention *a, const eng_attend_io *io) {
    const eng_model_config *c = a->options.config;
    if (a->options.query_dtype == RELAY_F32) return rows_of(io->q, 0, io->rows, c->heads, c->head_dim);
    eng_round_rows(io->rows, c->heads * c->head_dim, io->q, a->query.data);
    return relay_tensor_3d(a->query.data, RELAY_BF16, io->rows, c->heads, c->head_dim);
}

static bool run_layer(eng_attention *a, int32_t layer, const eng_attend_io *io, const relay_kv_tensors *fill,
                      eng_error *err) {
    const eng_model_config *c = a->options.config;
    relay_run_args args = relay_run_args_defaults();
    args.query = query_tensor(a, io);
    args.key_pool = eng_kv_pool_keys(a->options.pool, layer);
    args.value_pool = eng_kv_pool_values(a->options.pool, layer);
    args.contiguous = fill;
    args.num_contiguous = a->fill_rows > 0;
    args.layer = layer;
    args.output = relay_tensor_3d(io->out, RELAY_F32, io->rows, c->heads, c->head_dim);
    args.workspace = a->workspace;
    args.workspace_bytes = a->workspace_bytes;
    relay_status status = relay_run(a->plans[kind_of(c, layer)], &args);
    return status == RELAY_OK || fail_status("attention", status, err);
}

bool eng_attention_run(void *user, int32_t layer, const eng_attend_io *io, eng_error *err) {
    eng_attention *a = user;
    if (io->rows != a->rows) return eng_fail(err, "attention: %d rows, planned were %d", (int)io->rows, (int)a->rows);
    double begun = eng_seconds();
    relay_kv_tensors fill;
    bool ok = write_pages(a, layer, io, err) && (a->fill_rows == 0 || write_prompt(a, layer, io, &fill, err)) &&
              run_layer(a, layer, io, a->fill_rows > 0 ? &fill : NULL, err);
    a->stats.seconds += eng_seconds() - begun;
    return ok;
}

eng_attention_stats eng_attention_get_stats(const eng_attention *a) {
    return a->stats;
}
