#include "model_config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/json_read.h"
#include "rope_config.h"

enum { MAX_EXTENT = 1 << 20, MAX_VOCAB = 1 << 24, MAX_POSITIONS = 1 << 28, PATH_BYTES = 4096 };

/* What transformers takes where config.json is silent; 0: the field is required. */
typedef struct family_info {
    const char *architecture, *model_type;
    eng_family family;
    int32_t heads, kv_heads, head_dim, vocab, max_positions; /* kv_heads 0: as many as heads */
    int32_t sliding_window;
    double theta;
    bool tie;
} family_info;

static const family_info families[] = {
    {"LlamaForCausalLM", "llama", ENG_FAMILY_LLAMA, 0, 0, 0, 0, 2048, 0, 1e4, false},
    {"MistralForCausalLM", "mistral", ENG_FAMILY_MISTRAL, 0, 8, 0, 0, 131072, 4096, 1e4, false},
    {"Qwen2ForCausalLM", "qwen2", ENG_FAMILY_QWEN2, 0, 32, 0, 0, 32768, 4096, 1e4, false},
    {"Qwen3ForCausalLM", "qwen3", ENG_FAMILY_QWEN3, 0, 32, 128, 0, 32768, 4096, 1e4, false},
    {"Gemma3ForCausalLM", "gemma3_text", ENG_FAMILY_GEMMA3, 8, 4, 256, 262208, 131072, 4096, 1e6, true},
    {"Gemma3ForConditionalGeneration", "gemma3", ENG_FAMILY_GEMMA3, 8, 4, 256, 262208, 131072, 4096, 1e6, true},
};

enum { NUM_FAMILIES = (int)(sizeof families / sizeof *families) };

/* The object that is read, what messages start with, and where they go. */
typedef struct reader {
    const json_t *json;
    const char *where;
    eng_error *err;
} reader;

const char *eng_family_name(eng_family family) {
    static const char *const names[] = {"Llama", "Mistral", "Qwen2", "Qwen3", "Gemma 3"};
    return names[family];
}

static bool read_int(const reader *r, const char *field, int64_t low, int64_t high, int32_t fallback, int32_t *out) {
    int64_t value;
    bool ok = fallback == 0 && low > 0 ? eng_json_int(r->json, r->where, field, low, high, &value, r->err)
                                       : eng_json_int_or(r->json, r->where, field, low, high, fallback, &value, r->err);
    if (ok) *out = (int32_t)value;
    return ok;
}

/* A number in [low, high]. */
static bool read_number(const reader *r, const char *field, double low, double high, double fallback, double *out) {
    if (!eng_json_double_or(r->json, r->where, field, fallback, out, r->err)) return false;
    if (*out >= low && *out <= high) return true;
    return eng_fail(r->err, "%s: %s: expected a number in [%g, %g], got %g", r->where, field, low, high, *out);
}

static bool find_family(const reader *r, const family_info **out) {
    const json_t *architectures;
    if (!eng_json_array_or_null(r->json, r->where, "architectures", &architectures, r->err)) return false;
    const char *architecture = json_string_value(json_array_get(architectures, 0)), *type;
    if (!eng_json_string_or(r->json, r->where, "model_type", NULL, &type, r->err)) return false;
    for (int i = 0; i < NUM_FAMILIES; i++) {
        const char *name = architecture ? families[i].architecture : families[i].model_type;
        const char *said = architecture ? architecture : type;
        if (said == NULL || strcmp(name, said) != 0) continue;
        *out = &families[i];
        return true;
    }
    return eng_fail(r->err, "%s: %s: \"%.60s\" is not supported; supported are LlamaForCausalLM, MistralForCausalLM, "
                    "Qwen2ForCausalLM, Qwen3ForCausalLM, Gemma3ForCausalLM and the text part of "
                    "Gemma3ForConditionalGeneration", r->where, architecture ? "architectures" : "model_type",
                    architecture ? architecture : type ? type : "(none)");
}

static bool read_head_dim(const reader *r, const family_info *info, eng_model_config *c) {
    bool given = eng_json_find(r->json, "head_dim") != NULL;
    int32_t fallback = info->head_dim ? info->head_dim : c->hidden / c->heads;
    if (!given && !info->head_dim && c->hidden % c->heads != 0)
        return eng_fail(r->err, "%s: hidden_size: %d is no multiple of num_attention_heads %d", r->where, c->hidden,
                        c->heads);
    if (!given && (fallback < 8 || fallback > 256))
        return eng_fail(r->err, "%s: head_dim: hidden_size / num_attention_heads is %d; supported are 8 to 256", r->where,
                        fallback);
    if (!read_int(r, "head_dim", 8, 256, fallback, &c->head_dim)) return false;
    if (c->head_dim % 8 == 0) return true;
    return eng_fail(r->err, "%s: head_dim: %d is not supported; it must be a multiple of 8", r->where, c->head_dim);
}

static bool read_sizes(const reader *r, const family_info *info, eng_model_config *c) {
    if (!read_int(r, "hidden_size", 1, MAX_EXTENT, 0, &c->hidden) ||
        !read_int(r, "num_hidden_layers", 1, ENG_MAX_LAYERS, 0, &c->layers) ||
        !read_int(r, "num_attention_heads", 1, 4096, info->heads, &c->heads) ||
        !read_int(r, "num_key_value_heads", 1, 4096, info->kv_heads ? info->kv_heads : c->heads, &c->kv_heads) ||
        !read_int(r, "intermediate_size", 1, MAX_EXTENT, 0, &c->intermediate) ||
        !read_int(r, "vocab_size", 1, MAX_VOCAB, info->vocab, &c->vocab) ||
        !read_int(r, "max_position_embeddings", 1, MAX_POSITIONS, info->max_positions, &c->max_positions) ||
        !read_head_dim(r, info, c))
        return false;
    if (c->heads % c->kv_heads != 0)
        return eng_fail(r->err, "%s: num_key_value_heads: %d does not divide num_attention_heads %d", r->where,
                        c->kv_heads, c->heads);
    return true;
}

static bool read_activation(const reader *r, eng_model_config *c) {
    bool gemma = c->family == ENG_FAMILY_GEMMA3;
    const char *field = gemma && eng_json_find(r->json, "hidden_activation") ? "hidden_activation" : "hidden_act", *name;
    if (!eng_json_string_or(r->json, r->where, field, gemma ? "gelu_pytorch_tanh" : "silu", &name, r->err)) return false;
    bool silu = strcmp(name, "silu") == 0 || strcmp(name, "swish") == 0;
    c->activation = silu ? ENG_ACTIVATION_SILU : ENG_ACTIVATION_GELU_TANH;
    if (silu || strcmp(name, "gelu_pytorch_tanh") == 0) return true;
    return eng_fail(r->err, "%s: %s: \"%.40s\" is not supported; supported are silu and gelu_pytorch_tanh", r->where,
                    field, name);
}

/* Fields that change the arithmetic in ways that are not computed. */
static bool refuse_unsupported(const reader *r) {
    static const char *const flags[] = {"attention_bias", "mlp_bias", "use_bidirectional_attention"};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        bool set;
        if (!eng_json_bool_or(r->json, r->where, flags[i], false, &set, r->err)) return false;
        if (set) return eng_fail(r->err, "%s: %s: true is not supported", r->where, flags[i]);
    }
    if (eng_json_find(r->json, "quantization_config") != NULL)
        return eng_fail(r->err, "%s: quantization_config: quantized checkpoints are not supported", r->where);
    return true;
}

static bool read_scales(const reader *r, eng_model_config *c) {
    double scalar = c->head_dim, attention_cap = 0, logit_cap = 0, eps;
    if (!read_number(r, "rms_norm_eps", 0, 1, 1e-6, &eps)) return false;
    if (c->family == ENG_FAMILY_GEMMA3 &&
        (!read_number(r, "query_pre_attn_scalar", 1e-6, 1e9, 256, &scalar) ||
         !read_number(r, "attn_logit_softcapping", 0, 1e9, 0, &attention_cap) ||
         !read_number(r, "final_logit_softcapping", 0, 1e9, 0, &logit_cap)))
        return false;
    c->rms_eps = (float)eps;
    c->attention_scale = (float)(1.0 / sqrt(scalar));
    c->embedding_scale = c->family == ENG_FAMILY_GEMMA3 ? (float)sqrt(c->hidden) : 1.0f;
    c->attention_soft_cap = (float)attention_cap;
    c->logit_soft_cap = (float)logit_cap;
    return true;
}

/* The list that newer configs carry. */
static bool read_layer_types(const reader *r, const json_t *types, eng_model_config *c) {
    if (json_array_size(types) != (size_t)c->layers)
        return eng_fail(r->err, "%s: layer_types: has %zu entries for %d layers", r->where, json_array_size(types),
                        c->layers);
    for (int32_t i = 0; i < c->layers; i++) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        bool slides = type != NULL && strcmp(type, "sliding_attention") == 0;
        if (!slides && (type == NULL || strcmp(type, "full_attention") != 0))
            return eng_fail(r->err, "%s: layer_types[%d]: \"%.40s\" is not supported; supported are full_attention and "
                            "sliding_attention", r->where, i, type ? type : "(no string)");
        c->layer_slides[i] = slides;
    }
    return true;
}

/* The rules that held before there was a list. */
static bool derive_layer_types(const reader *r, bool qwen_slides, eng_model_config *c) {
    int32_t pattern = 6, full_layers = 0;
    bool qwen = c->family == ENG_FAMILY_QWEN2 || c->family == ENG_FAMILY_QWEN3;
    if (c->family == ENG_FAMILY_GEMMA3 && !read_int(r, "sliding_window_pattern", 1, ENG_MAX_LAYERS, 6, &pattern))
        return false;
    if (qwen && !read_int(r, "max_window_layers", 0, MAX_EXTENT, 28, &full_layers)) return false;
    for (int32_t i = 0; i < c->layers; i++) {
        if (c->family == ENG_FAMILY_MISTRAL) c->layer_slides[i] = true;
        if (c->family == ENG_FAMILY_GEMMA3) c->layer_slides[i] = (i + 1) % pattern != 0;
        if (qwen) c->layer_slides[i] = qwen_slides && i >= full_layers;
    }
    return true;
}

static bool has_null(const json_t *object, const char *field) {
    return json_is_null(json_object_get(object, field));
}

static bool read_windows(const reader *r, const family_info *info, eng_model_config *c) {
    bool qwen = c->family == ENG_FAMILY_QWEN2 || c->family == ENG_FAMILY_QWEN3, qwen_slides = false;
    if (c->family == ENG_FAMILY_LLAMA) return true;
    if (qwen && !eng_json_bool_or(r->json, r->where, "use_sliding_window", false, &qwen_slides, r->err)) return false;
    bool none = has_null(r->json, "sliding_window") || (qwen && !qwen_slides);
    int32_t window;
    if (!read_int(r, "sliding_window", none ? 0 : 1, MAX_POSITIONS, info->sliding_window, &window)) return false;
    const json_t *types;
    if (!eng_json_array_or_null(r->json, r->where, "layer_types", &types, r->err)) return false;
    bool ok = types && c->family != ENG_FAMILY_MISTRAL ? read_layer_types(r, types, c)
                                                       : derive_layer_types(r, qwen_slides, c);
    if (!ok) return false;
    c->sliding_window = none ? 0 : window;
    for (int32_t i = 0; i < c->layers && none; i++) {
        if (c->layer_slides[i] && types)
            return eng_fail(r->err, "%s: sliding_window: none, but layer_types names sliding layers", r->where);
        c->layer_slides[i] = false;
    }
    return true;
}

static bool read_dtype_name(const reader *r, eng_model_config *c) {
    const char *name;
    if (!eng_json_string_or(r->json, r->where, eng_json_find(r->json, "dtype") ? "dtype" : "torch_dtype", "", &name,
                            r->err))
        return false;
    snprintf(c->dtype_name, sizeof c->dtype_name, "%.15s", name);
    return true;
}

static void set_family_traits(const family_info *info, eng_model_config *c) {
    bool gemma = info->family == ENG_FAMILY_GEMMA3;
    c->family = info->family;
    c->qkv_bias = info->family == ENG_FAMILY_QWEN2;
    c->qk_norm = gemma || info->family == ENG_FAMILY_QWEN3;
    c->norm_plus_one = c->sandwich_norms = gemma;
}

static bool read_model(const reader *r, const family_info *info, eng_model_config *c) {
    set_family_traits(info, c);
    return refuse_unsupported(r) && read_sizes(r, info, c) && read_activation(r, c) && read_scales(r, c) &&
           eng_json_bool_or(r->json, r->where, "tie_word_embeddings", info->tie, &c->tie_embeddings, r->err) &&
           read_windows(r, info, c) && eng_rope_config_read(r->json, r->where, info->theta, c, r->err) &&
           read_dtype_name(r, c);
}

static bool eos_id_at(const reader *r, const json_t *value, const eng_model_config *c, int32_t *id) {
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) >= c->vocab)
        return eng_json_unexpected(r->where, "eos_token_id", "token ids below vocab_size", value, r->err);
    *id = (int32_t)json_integer_value(value);
    return true;
}

/* One id or a list; a list that says nothing leaves what was there. */
static bool read_eos(const reader *r, eng_model_config *c) {
    const json_t *eos = eng_json_find(r->json, "eos_token_id");
    if (eos == NULL) return true;
    c->num_eos_ids = 1;
    if (!json_is_array(eos)) return eos_id_at(r, eos, c, &c->eos_ids[0]);
    if (json_array_size(eos) > ENG_MAX_EOS_IDS)
        return eng_fail(r->err, "%s: eos_token_id: more than %d ids", r->where, ENG_MAX_EOS_IDS);
    c->num_eos_ids = (int32_t)json_array_size(eos);
    for (int32_t i = 0; i < c->num_eos_ids; i++)
        if (!eos_id_at(r, json_array_get(eos, (size_t)i), c, &c->eos_ids[i])) return false;
    return true;
}

static bool read_bos(const reader *r, eng_model_config *c) {
    const json_t *bos = eng_json_find(r->json, "bos_token_id");
    if (bos == NULL) return true;
    if (!json_is_integer(bos) || json_integer_value(bos) < 0 || json_integer_value(bos) >= c->vocab)
        return eng_json_unexpected(r->where, "bos_token_id", "a token id below vocab_size", bos, r->err);
    c->bos_id = (int32_t)json_integer_value(bos);
    return true;
}

static bool read_generation(const reader *r, eng_model_config *c) {
    eng_generation_defaults *g = &c->generation;
    return read_eos(r, c) && read_bos(r, c) &&
           eng_json_bool_or(r->json, r->where, "do_sample", g->do_sample, &g->do_sample, r->err) &&
           read_number(r, "temperature", 0, 1e6, g->temperature, &g->temperature) &&
           read_number(r, "top_p", 0, 1, g->top_p, &g->top_p) && read_number(r, "min_p", 0, 1, g->min_p, &g->min_p) &&
           read_number(r, "repetition_penalty", 1e-6, 1e6, g->repetition_penalty, &g->repetition_penalty) &&
           read_int(r, "top_k", 0, INT32_MAX, g->top_k, &g->top_k);
}

static bool read_root(const json_t *json, const char *path, eng_model_config *c, eng_error *err) {
    if (!json_is_object(json)) return eng_json_unexpected(path, "", "an object", json, err);
    const reader root = {json, path, err};
    reader model = root;
    const family_info *info = NULL;
    char where[PATH_BYTES + 16];
    if (!find_family(&root, &info)) return false;
    if (strcmp(info->model_type, "gemma3") == 0) {
        snprintf(where, sizeof where, "%s: text_config", path);
        model.where = where;
        if (!eng_json_object(json, path, "text_config", &model.json, err)) return false;
    }
    return read_model(&model, info, c) && read_eos(&model, c) && read_bos(&model, c) && read_eos(&root, c) &&
           read_bos(&root, c);
}

static bool read_file(const char *dir, const char *name, bool required, eng_model_config *c, eng_error *err) {
    char path[PATH_BYTES];
    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
        return eng_fail(err, "%.100s...: the path is too long", dir);
    if (!required && access(path, F_OK) != 0) return true;
    json_t *json;
    if (!eng_json_load_file(path, &json, err)) return false;
    const reader r = {json, path, err};
    bool ok = required              ? read_root(json, path, c, err)
              : json_is_object(json) ? read_generation(&r, c)
                                     : eng_json_unexpected(path, "", "an object", json, err);
    json_decref(json);
    return ok;
}

bool eng_model_config_load(const char *dir, eng_model_config *out, eng_error *err) {
    memset(out, 0, sizeof *out);
    out->bos_id = -1;
    out->generation = (eng_generation_defaults){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
    return read_file(dir, "config.json", true, out, err) && read_file(dir, "generation_config.json", false, out, err);
}

int32_t eng_layer_window(const eng_model_config *config, int32_t layer) {
    return config->layer_slides[layer] ? config->sliding_window : 0;
}

const eng_rope_config *eng_layer_rope(const eng_model_config *config, int32_t layer) {
    bool own = config->family == ENG_FAMILY_GEMMA3 && config->layer_slides[layer];
    return own ? &config->sliding_rope : &config->rope;
}
