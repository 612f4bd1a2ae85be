#include "engine.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/sha256.h"
#include "model/model_id.h"
#include "serving/conversation.h"
#include "serving/prompt_copy.h"
#include "serving/template_detect.h"

struct eng_engine {
    eng_engine_options options; /* its strings are not used after open */
    relay_device *device;
    eng_model *model;
    eng_tokenizer *tokenizer; /* NULL with a random model */
    eng_template_match match; /* what the checkpoint's own template was taken for */
    eng_talk talk;
    eng_kv_shape kv;
    relay_prompt_cache *cache;
    eng_prompt_set *prompts;
    int32_t num_prompts;
    char **systems;           /* [num_prompts] texts; NULL where the prompt was given as tokens */
    eng_talk_stem *stems;     /* [num_prompts] what their conversations begin with */
    size_t system_room, stem_room;
    int32_t *nodes;           /* [num_prompts] its index in the set, or -1: too short to share */
    size_t node_room;
    int32_t num_shared;
    eng_kv_pool *pool;
    eng_attention *attention;
    eng_scheduler *scheduler; /* NULL until started */
    eng_answer *answers;      /* those that are not polled */
    int32_t eos[ENG_MAX_EOS_IDS + 2];
    int32_t num_eos;
};

eng_engine_options eng_engine_options_defaults(void) {
    return (eng_engine_options){.kv_bytes = UINT64_C(1) << 30, .max_batch = 32, .step_rows = 512};
}

uint64_t eng_stream_of(const char *id) {
    return eng_sha256_head(id, strlen(id));
}

/* ---- opening ------------------------------------------------------------ */

static bool open_device(eng_engine *e, eng_error *err) {
    relay_device_options options = relay_device_options_defaults();
    options.threads = e->options.threads;
    options.log = e->options.log;
    options.log_user = e->options.log_user;
    relay_status status = relay_device_open(&options, &e->device);
    if (status != RELAY_OK) return eng_fail(err, "opening the CPU: %s", relay_status_text(status));
    relay_device_info info = {.struct_size = sizeof info};
    relay_device_get_info(e->device, &info);
    omp_set_num_threads(info.threads);
    return true;
}

static bool load_model(eng_engine *e, eng_error *err) {
    const eng_model_options options = {.compute = e->options.compute};
    if (e->options.random_shape != NULL) return eng_model_random(e->options.random_shape, &options, &e->model, err);
    return eng_tokenizer_load(e->options.model_dir, &e->tokenizer, err) &&
           eng_model_load(e->options.model_dir, &options, &e->model, err);
}

static bool choose_template(eng_engine *e, eng_error *err) {
    const char *name = e->options.template_name;
    e->talk.tokenizer = e->tokenizer;
    if (name != NULL) {
        e->talk.format = eng_template_find(name);
        return e->talk.format != NULL ||
               eng_fail(err, "unknown template \"%.60s\"; known are %s", name, eng_template_names());
    }
    const eng_tokenizer_config *config = eng_tokenizer_get_config(e->tokenizer);
    if (!eng_template_detect(e->options.model_dir, config->chat_template, &e->match, err)) return false;
    e->talk.format = e->match.format;
    e->talk.default_system = e->match.default_system;
    e->talk.writes_bos = e->match.writes_bos;
    eng_error doubt;
    if (e->options.log != NULL && eng_template_match_doubt(e->options.model_dir, &e->match, &doubt))
        e->options.log(e->options.log_user, RELAY_LOG_WARN, doubt.text);
    return true;
}

static relay_dtype file_dtype(const eng_model_config *config) {
    if (strcmp(config->dtype_name, "bfloat16") == 0) return RELAY_BF16;
    return strcmp(config->dtype_name, "float16") == 0 ? RELAY_F16 : RELAY_F32;
}

static void choose_numbers(eng_engine *e) {
    const eng_model_config *config = eng_model_config_of(e->model);
    relay_dtype dtype = e->options.random_shape != NULL ? RELAY_BF16 : file_dtype(config);
    if (e->options.compute == ENG_COMPUTE_F32) dtype = RELAY_F32;
    if (e->options.kv_dtype != 0) dtype = e->options.kv_dtype;
    e->kv = (eng_kv_shape){config->layers, config->kv_heads, config->head_dim, dtype};
}

static void add_eos(eng_engine *e, int32_t id) {
    int32_t room = (int32_t)(sizeof e->eos / sizeof *e->eos);
    if (id >= 0 && e->num_eos < room) e->eos[e->num_eos++] = id;
}

/* The model's own, the tokeniser's, and what ends a turn of the template. */
static void collect_eos(eng_engine *e) {
    const eng_model_config *config = eng_model_config_of(e->model);
    for (int32_t i = 0; i < config->num_eos_ids; i++) add_eos(e, config->eos_ids[i]);
    if (e->tokenizer == NULL) return;
    add_eos(e, eng_tokenizer_eos(e->tokenizer));
    size_t size;
    char end[64];
    const char *text = eng_template_turn_end(e->talk.format, &size);
    if (size == 0 || size >= sizeof end) return;
    memcpy(end, text, size);
    end[size] = '\0';
    add_eos(e, eng_tokenizer_token_id(e->tokenizer, end));
}

static bool open_cache(eng_engine *e, eng_error *err) {
    char id[ENG_SHA256_HEX] = "random", how[64];
    snprintf(how, sizeof how, "queries %s, K/V %s", relay_dtype_name(eng_model_query_dtype(e->model)),
             relay_dtype_name(e->kv.dtype));
    if (e->options.random_shape == NULL && !eng_model_id(e->options.model_dir, how, id, err)) return false;
    relay_prompt_cache_options options = relay_prompt_cache_options_defaults();
    options.num_layers = e->kv.layers;
    options.num_kv_heads = e->kv.kv_heads;
    options.head_dim = e->kv.head_dim;
    options.kv_dtype = e->kv.dtype;
    options.model_id = id;
    options.max_bytes = e->options.prompt_bytes;
    options.directory = e->options.cache_dir;
    relay_status status = relay_prompt_cache_create(e->device, &options, &e->cache);
    if (status != RELAY_OK)
        return eng_fail(err, "prompt cache%s%s: %s", options.directory ? " in " : "",
                        options.directory ? options.directory : "", relay_status_text(status));
    return eng_prompt_set_create(e->cache, id, &e->prompts, err);
}

static bool open_all(eng_engine *e, eng_error *err) {
    if (!open_device(e, err) || !load_model(e, err)) return false;
    if (e->tokenizer != NULL && !choose_template(e, err)) return false;
    choose_numbers(e);
    collect_eos(e);
    return open_cache(e, err) && eng_kv_pool_create(&e->kv, e->options.kv_bytes, &e->pool, err);
}

bool eng_engine_open(const eng_engine_options *options, eng_engine **out, eng_error *err) {
    *out = NULL;
    eng_engine *e = calloc(1, sizeof *e);
    if (e == NULL) return eng_fail(err, "out of memory");
    e->options = *options;
    if (!open_all(e, err)) {
        eng_engine_close(e);
        return false;
    }
    *out = e;
    return true;
}

void eng_engine_close(eng_engine *e) {
    if (e == NULL) return;
    eng_scheduler_destroy(e->scheduler);
    for (eng_answer *a = e->answers, *next; a != NULL; a = next) {
        next = a->next;
        eng_answer_free(a);
    }
    eng_attention_destroy(e->attention);
    eng_kv_pool_destroy(e->pool);
    eng_prompt_set_destroy(e->prompts);
    relay_prompt_cache_destroy(e->cache);
    for (int32_t i = 0; i < e->num_prompts; i++) {
        free(e->systems[i]);
        eng_talk_stem_free(&e->stems[i]);
    }
    free(e->systems);
    free(e->stems);
    free(e->nodes);
    eng_template_match_free(&e->match);
    eng_tokenizer_free(e->tokenizer);
    eng_model_free(e->model);
    relay_device_close(e->device);
    free(e);
}

/* ---- prompts ------------------------------------------------------------ */

static bool check_prompt_size(const eng_engine *e, int32_t count, eng_error *err) {
    int32_t most = eng_model_config_of(e->model)->max_positions;
    return count < most || eng_fail(err, "%d tokens; the model takes %d, answers included", (int)count, (int)most);
}

static bool reserve_prompt(eng_engine *e, eng_error *err) {
    size_t need = (size_t)e->num_prompts + 1;
    char **systems = eng_grow(e->systems, &e->system_room, need, sizeof *systems, err);
    if (systems == NULL) return false;
    e->systems = systems;
    eng_talk_stem *stems = eng_grow(e->stems, &e->stem_room, need, sizeof *stems, err);
    if (stems == NULL) return false;
    e->stems = stems;
    int32_t *nodes = eng_grow(e->nodes, &e->node_room, need, sizeof *nodes, err);
    if (nodes == NULL) return false;
    e->nodes = nodes;
    return true;
}

/* `text` and *stem become the engine's, or are freed. */
static bool add_prompt(eng_engine *e, char *text, eng_talk_stem *stem, const int32_t *tokens, int32_t count,
                       eng_error *err) {
    if (!reserve_prompt(e, err) || !check_prompt_size(e, count, err) ||
        (count > 0 && !eng_prompt_set_add(e->prompts, tokens, count, err))) {
        free(text);
        eng_talk_stem_free(stem);
        return false;
    }
    e->nodes[e->num_prompts] = count > 0 ? e->num_shared++ : -1;
    e->stems[e->num_prompts] = *stem;
    e->systems[e->num_prompts++] = text;
    return true;
}

bool eng_engine_add_prompt(eng_engine *e, const char *name, const char *text, eng_error *err) {
    char *copy = strdup(text);
    if (copy == NULL) return eng_fail(err, "%s: out of memory", name);
    eng_tokens tokens = {0};
    eng_talk_stem stem;
    bool ok = eng_talk_prepare(&e->talk, copy, &stem, err);
    if (ok && !eng_talk_shared(&e->talk, copy, &tokens, err)) {
        eng_talk_stem_free(&stem);
        ok = false;
    }
    if (ok) ok = add_prompt(e, copy, &stem, tokens.ids, (int32_t)tokens.count, err);
    else free(copy);
    eng_tokens_free(&tokens);
    return ok || eng_fail_in(err, name);
}

bool eng_engine_add_prompt_tokens(eng_engine *e, const int32_t *tokens, int32_t count, eng_error *err) {
    return add_prompt(e, NULL, &(eng_talk_stem){0}, tokens, count, err);
}

/* ---- requests ----------------------------------------------------------- */

static bool is_eos(const eng_engine *e, int32_t token) {
    for (int32_t i = 0; i < e->num_eos; i++)
        if (e->eos[i] == token) return true;
    return false;
}

static eng_finish take_token(void *user, eng_request *request, int32_t token) {
    const eng_engine *e = user;
    bool stopped;
    if (!e->options.ignore_eos && is_eos(e, token)) return ENG_FINISH_STOP;
    if (!eng_answer_add(request->user, token, &stopped, &request->error)) return ENG_FINISH_ERROR;
    return stopped ? ENG_FINISH_STOP : ENG_FINISH_NONE;
}

bool eng_engine_start(eng_engine *e, eng_error *err) {
    if (!eng_prompt_set_build(e->prompts, err)) return false;
    eng_prompt_set_prefetch(e->prompts);
    const eng_attention_options attention = {
        .device = e->device, .config = eng_model_config_of(e->model), .pool = e->pool, .prompts = e->prompts,
        .query_dtype = eng_model_query_dtype(e->model), .strategy = e->options.strategy,
        .repeatable = e->options.repeatable};
    if (!eng_attention_create(&attention, &e->attention, err)) return false;
    const eng_scheduler_options scheduler = {
        .model = e->model, .pool = e->pool, .prompts = e->prompts, .attention = e->attention,
        .max_batch = e->options.max_batch, .step_rows = e->options.step_rows, .on_token = take_token, .user = e};
    return eng_scheduler_create(&scheduler, &e->scheduler, err);
}

bool eng_engine_prepare(eng_engine *e, int32_t prompt, eng_error *err) {
    if (e->nodes[prompt] < 0) return true;
    eng_path path = eng_prompt_set_path(e->prompts, e->nodes[prompt]);
    for (;;) {
        int32_t node;
        bool full;
        eng_prompt_state state = eng_prompt_set_pin(e->prompts, &path, &node, err);
        if (state == ENG_PROMPT_READY) eng_prompt_set_unpin(e->prompts, &path);
        if (state != ENG_PROMPT_MISSING) return state == ENG_PROMPT_READY;
        if (eng_prompt_set_filling(e->prompts) == NULL && !eng_prompt_set_begin(e->prompts, node, false, &full, err))
            return false;
        while (eng_prompt_set_filling(e->prompts) != NULL)
            if (!eng_scheduler_step(e->scheduler, err)) return false;
    }
}

bool eng_engine_copy_prompt(eng_engine *e, int32_t from, int32_t to, eng_error *err) {
    if (e->nodes[from] < 0 || e->nodes[to] < 0) return eng_fail(err, "copying a prompt: too short to be shared");
    return eng_prompt_copy(e->prompts, &e->kv, e->nodes[from], e->nodes[to], err);
}

bool eng_engine_set_strategy(eng_engine *e, relay_strategy strategy, eng_error *err) {
    e->options.strategy = strategy;
    return eng_attention_set_strategy(e->attention, strategy, err);
}

static void link_answer(eng_engine *e, eng_answer *a) {
    a->previous = NULL;
    a->next = e->answers;
    if (a->next != NULL) a->next->previous = a;
    e->answers = a;
}

static void unlink_answer(eng_engine *e, eng_answer *a) {
    if (a->previous != NULL) a->previous->next = a->next;
    else e->answers = a->next;
    if (a->next != NULL) a->next->previous = a->previous;
}

static void limit_answer(const eng_engine *e, eng_request *r, int32_t max_tokens, bool shorten) {
    int32_t room = eng_model_config_of(e->model)->max_positions - (int32_t)r->tokens.count;
    r->prompt_tokens = (int32_t)r->tokens.count;
    r->max_tokens = shorten && room >= 1 && room < max_tokens ? room : max_tokens;
}

static bool fill_answer(eng_engine *e, const eng_submission *s, eng_answer *a, eng_error *err) {
    eng_request *r = &a->request;
    const char *system = s->prompt >= 0 ? e->systems[s->prompt] : NULL;
    const eng_talk_stem none = {0}, *stem = s->prompt >= 0 ? &e->stems[s->prompt] : &none;
    bool ok = s->text != NULL ? eng_talk_begin_on(&e->talk, stem, system, s->text, &r->tokens, err)
                              : eng_tokens_append(&r->tokens, s->tokens, (size_t)s->num_tokens, err);
    if (!ok || (e->tokenizer != NULL && !eng_decoder_start(e->tokenizer, true, &a->decoder, err))) return false;
    limit_answer(e, r, s->max_tokens, s->shorten);
    int32_t shared = s->prompt >= 0 ? e->nodes[s->prompt] : -1;
    if (shared >= 0) r->path = eng_prompt_set_match(e->prompts, shared, r->tokens.ids, r->prompt_tokens);
    r->sampling = s->sampling;
    r->stream = s->stream;
    r->keep_pages = s->keep;
    r->user = a;
    a->stops = s->stops;
    a->user = s->user;
    return true;
}

bool eng_engine_submit(eng_engine *e, const eng_submission *submission, eng_answer **out, eng_error *err) {
    eng_answer *a = calloc(1, sizeof *a);
    *out = a;
    if (a == NULL) return eng_fail(err, "out of memory for a request");
    if (!fill_answer(e, submission, a, err)) {
        eng_answer_free(a);
        *out = NULL;
        return false;
    }
    link_answer(e, a);
    eng_scheduler_add(e->scheduler, &a->request);
    return true;
}

bool eng_engine_continue(eng_engine *e, eng_answer *a, const char *text, int32_t max_tokens, bool shorten,
                         eng_error *err) {
    a->text.size = a->searched = 0;
    if (!eng_talk_go_on(&e->talk, text, &a->request.tokens, err)) return false;
    if (!eng_decoder_start(e->tokenizer, true, &a->decoder, err)) return false;
    limit_answer(e, &a->request, max_tokens, shorten);
    link_answer(e, a);
    eng_scheduler_add_again(e->scheduler, &a->request);
    return true;
}

void eng_engine_cancel(eng_engine *e, eng_answer *answer) {
    eng_scheduler_cancel(e->scheduler, &answer->request);
}

void eng_engine_drop(eng_engine *e, bool all) {
    eng_scheduler_drop(e->scheduler, all);
}

bool eng_engine_busy(const eng_engine *e) {
    return eng_scheduler_busy(e->scheduler);
}

bool eng_engine_step(eng_engine *e, eng_error *err) {
    return eng_scheduler_step(e->scheduler, err);
}

eng_answer *eng_engine_poll(eng_engine *e) {
    eng_request *r = eng_scheduler_poll(e->scheduler);
    if (r == NULL) return NULL;
    eng_answer *a = r->user;
    bool stopped;
    unlink_answer(e, a);
    if (!eng_answer_end(a, &stopped, &r->error)) r->finish = ENG_FINISH_ERROR;
    else if (stopped) r->finish = ENG_FINISH_STOP;
    return a;
}

void eng_engine_free_answer(eng_engine *e, eng_answer *answer) {
    eng_scheduler_release(e->scheduler, &answer->request);
    eng_answer_free(answer);
}

/* ---- reading ------------------------------------------------------------ */

const eng_model *eng_engine_model(const eng_engine *e) {
    return e->model;
}

const eng_scheduler *eng_engine_scheduler(const eng_engine *e) {
    return e->scheduler;
}

const eng_prompt_set *eng_engine_prompts(const eng_engine *e) {
    return e->prompts;
}

int32_t eng_engine_shared_index(const eng_engine *e, int32_t prompt) {
    return e->nodes[prompt];
}

const char *eng_engine_template_name(const eng_engine *e) {
    return e->talk.format == NULL ? "none" : e->talk.format->name;
}

relay_dtype eng_engine_kv_dtype(const eng_engine *e) {
    return e->kv.dtype;
}

eng_engine_stats eng_engine_get_stats(const eng_engine *e) {
    eng_engine_stats stats = {.cache.struct_size = sizeof stats.cache};
    if (e->scheduler != NULL) stats.scheduler = eng_scheduler_get_stats(e->scheduler);
    if (e->attention != NULL) stats.attention = eng_attention_get_stats(e->attention);
    stats.prompts = eng_prompt_set_get_stats(e->prompts);
    relay_prompt_cache_get_stats(e->cache, &stats.cache);
    stats.peak_pool_bytes = eng_kv_pool_peak_bytes(e->pool);
    return stats;
}
