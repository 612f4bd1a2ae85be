/* Laying a problem out in memory, and computing it by the library. */
#include "check_world.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORLD_LAYER = 1, WORLD_LAYERS = 2, SPARE_BLOCKS = 5 };

/* ---- the description ----------------------------------------------------- */

chk_case chk_case_defaults(uint64_t seed) {
    chk_case k = {.seed = seed, .strategy = RELAY_STRATEGY_AUTO, .threads = 1, .block_size = 16, .lse = CHK_LSE_TH};
    k.attention = relay_attention_defaults();
    k.attention.num_heads = 4;
    k.attention.num_kv_heads = 2;
    k.attention.head_dim = 64;
    k.attention.query_dtype = k.attention.kv_dtype = k.attention.output_dtype = RELAY_F32;
    return k;
}

int32_t chk_add_segment(chk_case *k, int32_t parent, int32_t first, int32_t count, relay_kv_layout layout,
                        int32_t length) {
    int32_t index = k->num_segments++;
    k->segments[index] = (chk_segment){.parent = parent, .first = first, .count = count,
                                       .kv = {.layout = layout, .length = length,
                                              .content = 1000 + (uint64_t)index}};
    return index;
}

int32_t chk_add_request(chk_case *k, int32_t rows, relay_kv_layout layout, int32_t length) {
    int32_t index = k->num_requests++;
    k->requests[index] = (chk_request){.rows = rows, .query = (uint64_t)index,
                                       .own = {.layout = layout, .length = length, .content = (uint64_t)index}};
    k->order[index] = index;
    return index;
}

int32_t chk_request_at(const chk_case *k, int32_t position) {
    return k->ordered ? k->order[position] : position;
}

static int32_t position_of(const chk_case *k, int32_t request) {
    int32_t position = 0;
    while (chk_request_at(k, position) != request) position++;
    return position;
}

static bool on_path(const chk_segment *segment, int32_t position) {
    return position >= segment->first && position < segment->first + segment->count;
}

int64_t chk_shared_tokens(const chk_case *k, int32_t request) {
    int32_t position = position_of(k, request);
    int64_t tokens = 0;
    for (int32_t s = 0; s < k->num_segments; s++)
        if (on_path(&k->segments[s], position)) tokens += k->segments[s].kv.length;
    return tokens;
}

int64_t chk_total_rows(const chk_case *k) {
    int64_t rows = 0;
    for (int32_t r = 0; r < k->num_requests; r++) rows += k->requests[r].rows;
    return rows;
}

static const chk_span *span_at(const chk_case *k, int32_t index) {
    return index < k->num_segments ? &k->segments[index].kv : &k->requests[index - k->num_segments].own;
}

static int32_t num_spans(const chk_case *k) {
    return k->num_segments + k->num_requests;
}

static chk_recipe recipe_of(const chk_case *k) {
    double scale = k->attention.softmax_scale;
    if (scale == 0) scale = 1 / sqrt(k->attention.head_dim);
    return (chk_recipe){k->seed, k->kind, k->attention.head_dim, scale, k->value_size};
}

const char *chk_case_text(const chk_case *k, char *text, size_t size) {
    static const char *const strategies[] = {"auto", "relay", "plain"};
    static const char *const forms[] = {"dense", "padded", "heads-first"};
    const relay_attention *a = &k->attention;
    int at = snprintf(text, size, "%d/%dx%d q %s kv %s o %s, %s, %d segments, %d requests, %lld rows, block %d, %s",
                      a->num_heads, a->num_kv_heads, a->head_dim, relay_dtype_name(a->query_dtype),
                      relay_dtype_name(a->kv_dtype), relay_dtype_name(a->output_dtype), chk_kind_name(k->kind),
                      k->num_segments, k->num_requests, (long long)chk_total_rows(k), k->block_size,
                      strategies[k->strategy]);
    char *to = text + at;
    size -= (size_t)at;
    at = snprintf(to, size, ", q/k/v/o %s/%s/%s/%s, lse %d, threads %d%s%s", forms[k->query_form],
                  forms[k->key_form], forms[k->value_form], forms[k->output_form], (int)k->lse, k->threads, k->repeatable ? ", repeatable" : "",
                  k->ordered ? ", reordered" : "");
    to += at;
    size -= (size_t)at;
    at = snprintf(to, size, ", cap %g, window %d, sink tokens %d%s%s", (double)a->logit_soft_cap, a->sliding_window,
                  a->num_sink_tokens, a->use_alibi ? ", alibi" : "", a->use_sinks ? ", sinks" : "");
    if (k->value_size > 0) snprintf(to + at, size - (size_t)at, ", values of %g", k->value_size);
    return text;
}

/* ---- placing spans ------------------------------------------------------- */

/* The tokens as stored, dense. */
static bool fill_span(const chk_case *k, const chk_span *span, chk_placed *placed) {
    const relay_attention *a = &k->attention;
    chk_recipe recipe = recipe_of(k);
    size_t bytes = ((size_t)span->length * (size_t)a->num_kv_heads * (size_t)a->head_dim + 1) * 4;
    double vector[256];
    placed->key = malloc(bytes);
    placed->value = malloc(bytes);
    if (placed->key == NULL || placed->value == NULL) return false;
    for (int32_t n = 0; n < span->length; n++) {
        for (int32_t h = 0; h < a->num_kv_heads; h++) {
            int64_t at = ((int64_t)n * a->num_kv_heads + h) * a->head_dim;
            chk_key(&recipe, span->content, span->first + n, h, vector);
            for (int32_t d = 0; d < a->head_dim; d++) chk_store(placed->key, a->kv_dtype, at + d, vector[d]);
            chk_value(&recipe, span->content, span->first + n, h, vector);
            for (int32_t d = 0; d < a->head_dim; d++) chk_store(placed->value, a->kv_dtype, at + d, vector[d]);
        }
    }
    return true;
}

/* Copies token n, head h of a dense span to an element of a tensor of the same dtype. */
static void put_vector(const relay_attention *a, const void *dense, int64_t token, int32_t head,
                       relay_tensor *to, int64_t offset) {
    size_t size = relay_dtype_size(a->kv_dtype);
    const char *from = (const char *)dense + (size_t)((token * a->num_kv_heads + head) * a->head_dim) * size;
    memcpy((char *)to->data + (size_t)offset * size, from, (size_t)a->head_dim * size);
}

static int32_t blocks_of(const chk_case *k, const chk_span *span) {
    return span->layout == RELAY_KV_PAGED ? (span->length + k->block_size - 1) / k->block_size : 0;
}

static bool make_pool(const chk_case *k, chk_world *w) {
    const relay_attention *a = &k->attention;
    w->num_blocks = SPARE_BLOCKS;
    for (int32_t s = 0; s < num_spans(k); s++) w->num_blocks += blocks_of(k, span_at(k, s));
    int64_t shape[4] = {w->num_blocks, k->block_size, a->num_kv_heads, a->head_dim};
    return chk_tensor_make(&w->pool[0], a->kv_dtype, k->key_form, 4, shape) &&
           chk_tensor_make(&w->pool[1], a->kv_dtype, k->value_form, 4, shape);
}

/* `ids` are the pool's blocks in random order; what follows the last id is either the guard page
 * or ids that no pool has. */
static bool place_pages(const chk_case *k, chk_world *w, const chk_span *span, chk_placed *placed,
                        const int32_t *ids) {
    int32_t count = blocks_of(k, span), wild = span->content % 2 ? 3 : 0;
    if (!chk_buffer_make(&placed->blocks, (size_t)(count + wild) * sizeof(int32_t), sizeof(int32_t))) return false;
    int32_t *table = placed->blocks.data;
    for (int32_t i = 0; i < count; i++) table[i] = ids[i];
    for (int32_t i = count; i < count + wild; i++) table[i] = i % 2 ? INT32_MAX : INT32_MIN;
    for (int32_t n = 0; n < span->length; n++) {
        for (int32_t h = 0; h < k->attention.num_kv_heads; h++) {
            int32_t block = table[n / k->block_size], in_block = n % k->block_size;
            for (int i = 0; i < 2; i++)
                put_vector(&k->attention, i ? placed->value : placed->key, n, h, &w->pool[i].view,
                           chk_tensor_at(&w->pool[i].view, block, in_block, h, 0));
        }
    }
    return true;
}

static bool place_contiguous(const chk_case *k, const chk_span *span, chk_placed *placed) {
    int64_t shape[3] = {span->length + span->extra, k->attention.num_kv_heads, k->attention.head_dim};
    for (int i = 0; i < 2; i++) {
        chk_tensor *tensor = &placed->contiguous[i];
        chk_form form = i ? k->value_form : k->key_form;
        if (!chk_tensor_make(tensor, k->attention.kv_dtype, form, 3, shape)) return false;
        for (int32_t n = 0; n < span->length; n++)
            for (int32_t h = 0; h < k->attention.num_kv_heads; h++)
                put_vector(&k->attention, i ? placed->value : placed->key, n, h, &tensor->view,
                           chk_tensor_at(&tensor->view, n, h, 0, 0));
    }
    return true;
}

/* A prompt is written in two pieces, after a layer and with a tail that are NaN. */
static bool write_prompt(chk *c, const chk_case *k, const chk_span *span, chk_placed *placed, int32_t tokens) {
    const relay_attention *a = &k->attention;
    size_t row = (size_t)a->num_kv_heads * (size_t)a->head_dim * relay_dtype_size(a->kv_dtype);
    char *memory = malloc(2 * (size_t)tokens * row);
    if (memory == NULL) return false;
    bool ok = true;
    for (int32_t layer = 0; ok && layer < WORLD_LAYERS; layer++) {
        chk_poison(memory, a->kv_dtype, 2 * (int64_t)tokens * a->num_kv_heads * a->head_dim);
        if (layer == WORLD_LAYER) {
            memcpy(memory, placed->key, (size_t)span->length * row);
            memcpy(memory + (size_t)tokens * row, placed->value, (size_t)span->length * row);
        }
        int32_t cut = tokens / 3;
        for (int32_t first = 0; ok && first < tokens; first = first < cut ? cut : tokens) {
            int32_t count = first < cut ? cut : tokens - first;
            char *key = memory + (size_t)first * row, *value = memory + (size_t)(tokens + first) * row;
            relay_tensor tensors[2] = {relay_tensor_3d(key, a->kv_dtype, count, a->num_kv_heads, a->head_dim),
                                       relay_tensor_3d(value, a->kv_dtype, count, a->num_kv_heads, a->head_dim)};
            ok = chk_ok(c, "relay_prompt_write",
                        relay_prompt_write(placed->prompt, layer, first, &tensors[0], &tensors[1]));
        }
    }
    free(memory);
    return ok;
}

static bool make_cache(chk *c, const chk_case *k, chk_world *w) {
    relay_prompt_cache_options options = relay_prompt_cache_options_defaults();
    options.num_layers = WORLD_LAYERS;
    options.num_kv_heads = k->attention.num_kv_heads;
    options.head_dim = k->attention.head_dim;
    options.kv_dtype = k->attention.kv_dtype;
    options.enable_prefetch = 0;
    return w->cache != NULL ||
           chk_ok(c, "relay_prompt_cache_create", relay_prompt_cache_create(w->device, &options, &w->cache));
}

static bool place_packed(chk *c, const chk_case *k, chk_world *w, const chk_span *span, chk_placed *placed,
                         int32_t index) {
    char key[32];
    int32_t tokens = span->length + span->extra;
    if (tokens == 0) tokens = 1; /* a prompt has at least one */
    snprintf(key, sizeof key, "span-%d", index);
    return make_cache(c, k, w) &&
           chk_ok(c, "relay_prompt_cache_begin",
                  relay_prompt_cache_begin(w->cache, key, tokens, &placed->prompt)) &&
           write_prompt(c, k, span, placed, tokens) &&
           chk_ok(c, "relay_prompt_commit", relay_prompt_commit(placed->prompt));
}

static bool place_spans(chk *c, const chk_case *k, chk_world *w) {
    int32_t *ids = malloc((size_t)w->num_blocks * sizeof *ids), used = 0;
    if (ids == NULL) return false;
    chk_rng rng = chk_rng_at(k->seed, 77);
    for (int32_t i = 0; i < w->num_blocks; i++) ids[i] = i;
    chk_shuffle(&rng, ids, w->num_blocks);
    bool ok = true;
    for (int32_t s = 0; ok && s < num_spans(k); s++) {
        const chk_span *span = span_at(k, s);
        chk_placed *placed = &w->spans[s];
        ok = fill_span(k, span, placed);
        if (!ok) break;
        if (span->layout == RELAY_KV_PAGED) ok = place_pages(k, w, span, placed, ids + used);
        else if (span->layout == RELAY_KV_CONTIGUOUS) ok = place_contiguous(k, span, placed);
        else ok = place_packed(c, k, w, span, placed, s);
        used += blocks_of(k, span);
        w->contiguous[s] = (relay_kv_tensors){placed->contiguous[0].view, placed->contiguous[1].view};
    }
    free(ids);
    return ok;
}

/* ---- queries, outputs, per-head numbers ---------------------------------- */

static void fill_queries(const chk_case *k, chk_world *w) {
    chk_recipe recipe = recipe_of(k);
    double vector[256];
    for (int32_t r = 0; r < k->num_requests; r++) {
        const chk_request *request = &k->requests[r];
        int64_t first = chk_shared_tokens(k, r) + request->own.length - request->rows;
        for (int32_t i = 0; i < request->rows; i++) {
            for (int32_t h = 0; h < k->attention.num_heads; h++) {
                int64_t at = chk_tensor_at(&w->query.view, w->query_start[r] + i, h, 0, 0);
                chk_query(&recipe, request->query, first + i, h, vector);
                for (int32_t d = 0; d < recipe.head_dim; d++)
                    chk_store(w->query.view.data, k->attention.query_dtype, at + d, vector[d]);
            }
        }
    }
}

static bool make_lse(const chk_case *k, chk_world *w, int64_t rows) {
    if (k->lse == CHK_LSE_NONE) return true;
    chk_form form = k->lse == CHK_LSE_HT ? CHK_HEADS_FIRST : k->lse == CHK_LSE_PADDED ? CHK_PADDED : CHK_DENSE;
    int64_t shape[2] = {rows, k->attention.num_heads};
    return chk_tensor_make(&w->lse, RELAY_F32, form, 2, shape);
}

/* Slopes and sinks of any sign and size that the formulas allow; but no weight of an infinite value
 * may vanish in float32, where 0 * INFINITY is NaN. */
static bool make_per_head(const chk_case *k, chk_world *w) {
    size_t bytes = (size_t)k->attention.num_heads * sizeof(float);
    if (!chk_buffer_make(&w->slopes, bytes, sizeof(float)) || !chk_buffer_make(&w->sinks, bytes, sizeof(float)))
        return false;
    chk_rng rng = chk_rng_at(k->seed, 78);
    double steepest = k->kind == CHK_INF_VALUES ? 0.02 : 0.5;
    for (int32_t h = 0; h < k->attention.num_heads; h++) {
        ((float *)w->slopes.data)[h] = (float)chk_uniform(&rng, 0, steepest);
        ((float *)w->sinks.data)[h] = (float)chk_uniform(&rng, -3, 6);
    }
    return true;
}

bool chk_world_make(chk *c, const chk_case *k, chk_world *w) {
    memset(w, 0, sizeof *w);
    w->plain = k;
    w->device = c->device[k->threads];
    for (int32_t r = 0; r < k->num_requests; r++) w->query_start[r + 1] = w->query_start[r] + k->requests[r].rows;
    int64_t rows = chk_total_rows(k) + k->spare_rows;
    int64_t shape[3] = {rows, k->attention.num_heads, k->attention.head_dim};
    bool ok = make_pool(k, w) && place_spans(c, k, w) && make_per_head(k, w) && make_lse(k, w, rows) &&
              chk_tensor_make(&w->query, k->attention.query_dtype, k->query_form, 3, shape) &&
              chk_tensor_make(&w->output, k->attention.output_dtype, k->output_form, 3, shape);
    if (ok) fill_queries(k, w);
    else if (!c->bad) chk_fail(c, "no memory for the case");
    return ok;
}

static void free_placed(chk_placed *placed) {
    free(placed->key);
    free(placed->value);
    chk_buffer_free(&placed->blocks);
    for (int i = 0; i < 2; i++) chk_tensor_free(&placed->contiguous[i]);
    relay_prompt_release(placed->prompt);
}

void chk_world_free(chk_world *w) {
    for (int32_t s = 0; s < CHK_MAX_SPANS; s++) free_placed(&w->spans[s]);
    relay_prompt_cache_destroy(w->cache);
    for (int i = 0; i < 2; i++) chk_tensor_free(&w->pool[i]);
    chk_tensor_free(&w->query);
    chk_tensor_free(&w->output);
    chk_tensor_free(&w->lse);
    chk_buffer_free(&w->slopes);
    chk_buffer_free(&w->sinks);
}

/* ---- computing it -------------------------------------------------------- */

static relay_kv_span span_for_forest(const chk_world *w, int32_t index) {
    const chk_span *span = span_at(w->plain, index);
    const chk_placed *placed = &w->spans[index];
    relay_kv_span out = {.layout = span->layout, .length = span->length, .prompt = placed->prompt};
    if (span->layout == RELAY_KV_PAGED) out.block_table = span->length > 0 ? placed->blocks.data : NULL;
    if (span->layout == RELAY_KV_CONTIGUOUS) out.tensor_index = index;
    return out;
}

bool chk_world_forest(chk *c, const chk_world *w, relay_forest **forest) {
    const chk_case *k = w->plain;
    relay_kv_span own[CHK_MAX_REQUESTS];
    relay_segment segments[CHK_MAX_SEGMENTS];
    for (int32_t s = 0; s < k->num_segments; s++)
        segments[s] = (relay_segment){.parent = k->segments[s].parent, .first_request = k->segments[s].first,
                                      .num_requests = k->segments[s].count, .kv = span_for_forest(w, s)};
    for (int32_t r = 0; r < k->num_requests; r++) own[r] = span_for_forest(w, k->num_segments + r);
    relay_forest_desc desc = relay_forest_desc_defaults();
    desc.num_requests = k->num_requests;
    desc.query_start_loc = w->query_start;
    desc.own = own;
    desc.order = k->ordered ? k->order : NULL;
    desc.num_segments = k->num_segments;
    desc.segments = segments;
    desc.block_size = k->block_size;
    desc.num_blocks = w->num_blocks;
    return chk_ok(c, "relay_forest_create", relay_forest_create(w->device, forest)) &&
           chk_ok(c, "relay_forest_set", relay_forest_set(*forest, &desc));
}

static relay_run_args run_args(chk_world *w, chk_buffer *workspace) {
    const chk_case *k = w->plain;
    relay_run_args args = relay_run_args_defaults();
    args.query = w->query.view;
    /* without a span in pages the pool may be absent */
    bool pool = w->num_blocks > SPARE_BLOCKS || k->seed % 2 == 0;
    if (pool) args.key_pool = w->pool[0].view;
    if (pool) args.value_pool = w->pool[1].view;
    args.contiguous = w->contiguous;
    args.num_contiguous = num_spans(k);
    args.layer = WORLD_LAYER;
    args.alibi_slopes = k->attention.use_alibi ? w->slopes.data : NULL;
    args.sinks = k->attention.use_sinks ? w->sinks.data : NULL;
    args.output = w->output.view;
    args.lse = w->lse.view;
    args.workspace = workspace->data;
    args.workspace_bytes = workspace->bytes;
    return args;
}

/* A write to an input faults; a write beside an output shows in collect(). */
static void protect_inputs(chk_world *w, bool read_only) {
    chk_buffer_read_only(&w->pool[0].buffer, read_only);
    chk_buffer_read_only(&w->pool[1].buffer, read_only);
    chk_buffer_read_only(&w->query.buffer, read_only);
    chk_buffer_read_only(&w->slopes, read_only);
    chk_buffer_read_only(&w->sinks, read_only);
    for (int32_t s = 0; s < num_spans(w->plain); s++) {
        chk_buffer_read_only(&w->spans[s].blocks, read_only);
        for (int i = 0; i < 2; i++) chk_buffer_read_only(&w->spans[s].contiguous[i].buffer, read_only);
    }
}

enum { UNTOUCHED = 0xA5 };

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
    return chk_buffer_intact(buffer);
}

static bool collect(chk *c, chk_world *w, chk_result *got) {
    const relay_attention *a = &w->plain->attention;
    for (int64_t row = 0; row < got->rows; row++) {
        for (int32_t h = 0; h < a->num_heads; h++) {
            int64_t place = row * a->num_heads + h, at = chk_tensor_at(&w->output.view, row, h, 0, 0);
            for (int32_t d = 0; d < a->head_dim; d++)
                got->out[place * a->head_dim + d] = take(&w->output.view, at + d);
            if (w->lse.view.data != NULL)
                got->lse[place] = take(&w->lse.view, chk_tensor_at(&w->lse.view, row, h, 0, 0));
        }
    }
    if (!untouched(&w->output.buffer)) chk_fail(c, "something beside the output's rows was written");
    if (!untouched(&w->lse.buffer)) chk_fail(c, "something beside the lse's rows was written");
    return !c->bad;
}

static bool intact(const chk_world *w) {
    bool ok = chk_buffer_intact(&w->query.buffer) && chk_buffer_intact(&w->slopes) && chk_buffer_intact(&w->sinks);
    for (int i = 0; i < 2; i++) ok = ok && chk_buffer_intact(&w->pool[i].buffer);
    return ok;
}

static bool run_plan(chk *c, chk_world *w, const relay_plan *plan, chk_result *got) {
    chk_buffer workspace;
    size_t bytes = relay_plan_workspace_bytes(plan);
    if (!chk_buffer_make(&workspace, bytes, 64)) return false;
    chk_buffer_fill(&workspace, 0xFF); /* NaN as floats */
    chk_buffer_fill(&w->output.buffer, UNTOUCHED);
    if (w->lse.view.data != NULL) chk_buffer_fill(&w->lse.buffer, UNTOUCHED);
    relay_run_args args = run_args(w, &workspace);
    protect_inputs(w, true);
    relay_status status = relay_run(plan, &args);
    protect_inputs(w, false);
    bool ok = chk_ok(c, "relay_run", status);
    if (ok && (!chk_buffer_intact(&workspace) || !intact(w))) chk_fail(c, "something before or after a buffer was written");
    chk_buffer_free(&workspace);
    return ok && collect(c, w, got);
}

/* Builds a plan from a forest and runs it, a second time if `second` is not NULL. */
static bool run_forest(chk *c, chk_world *w, const relay_forest *forest, chk_result *got, chk_result *second) {
    const chk_case *k = w->plain;
    relay_plan_options options = relay_plan_options_defaults();
    options.strategy = k->strategy;
    options.repeatable = k->repeatable;
    relay_plan *plan = NULL;
    bool ok = chk_ok(c, "relay_plan_create", relay_plan_create(w->device, &k->attention, &options, &plan)) &&
              chk_ok(c, "relay_plan_build", relay_plan_build(plan, forest)) && run_plan(c, w, plan, got) &&
              (second == NULL || run_plan(c, w, plan, second));
    relay_plan_destroy(plan);
    return ok;
}

static bool make_result(const chk_world *w, chk_result *got) {
    const relay_attention *a = &w->plain->attention;
    if (!chk_result_make(got, chk_total_rows(w->plain), a->num_heads, a->head_dim, false)) return false;
    if (w->lse.view.data == NULL) {
        free(got->lse);
        got->lse = NULL;
    }
    return true;
}

bool chk_world_run(chk *c, chk_world *w, const relay_forest *forest, chk_result *got) {
    if (!make_result(w, got)) return false;
    if (forest != NULL) return run_forest(c, w, forest, got, NULL);
    relay_forest *made = NULL;
    bool ok = chk_world_forest(c, w, &made) && run_forest(c, w, made, got, NULL);
    relay_forest_destroy(made);
    return ok;
}

bool chk_world_run_twice(chk *c, chk_world *w, chk_result *first, chk_result *second) {
    relay_forest *made = NULL;
    bool ok = make_result(w, first) && make_result(w, second) && chk_world_forest(c, w, &made) &&
              run_forest(c, w, made, first, second);
    relay_forest_destroy(made);
    return ok;
}
