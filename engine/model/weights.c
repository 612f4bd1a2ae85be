#include "weights.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/big_memory.h"
#include "math/layer_math.h"

enum { NAME_BYTES = 160 };

/* What every step of loading needs. */
typedef struct loader {
    const eng_safetensors *from;
    const eng_model_config *config;
    eng_compute compute;
    const char *prefix; /* of every name but the head's */
    eng_error *err;
} loader;

static void describe_shape(int32_t dims, const int64_t *shape, char *text, size_t size) {
    size_t used = 0;
    text[0] = '\0';
    for (int32_t i = 0; i < dims && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, i ? ", %lld" : "%lld", (long long)shape[i]);
}

/* columns 0: a vector of `rows`. */
static bool check_shape(const loader *l, const char *name, const eng_tensor *tensor, int64_t rows, int64_t columns) {
    const int64_t expected[2] = {rows, columns};
    const int32_t dims = columns ? 2 : 1;
    if (tensor->dims == dims && memcmp(tensor->shape, expected, (size_t)dims * sizeof *expected) == 0) return true;
    char want[64], got[192];
    describe_shape(dims, expected, want, sizeof want);
    describe_shape(tensor->dims, tensor->shape, got, sizeof got);
    return eng_fail(l->err, "%s: tensor \"%s\": its shape is [%s], but config.json makes it [%s]", tensor->file, name, got,
                    want);
}

/* layer < 0: a tensor of the whole model. */
static bool find_tensor(const loader *l, int32_t layer, const char *suffix, int64_t rows, int64_t columns,
                        eng_tensor *out) {
    char name[NAME_BYTES];
    if (layer < 0) snprintf(name, sizeof name, "%s%s", l->prefix, suffix);
    else snprintf(name, sizeof name, "%slayers.%d.%s", l->prefix, (int)layer, suffix);
    return eng_safetensors_get(l->from, name, out, l->err) && check_shape(l, name, out, rows, columns);
}

static bool allocate_vector(int64_t n, float **out, eng_error *err) {
    *out = malloc((size_t)n * sizeof **out);
    return *out != NULL || eng_fail(err, "out of memory for a vector of %lld weights", (long long)n);
}

static bool load_vector(const loader *l, int32_t layer, const char *suffix, int32_t n, float plus, float **out) {
    eng_tensor tensor;
    if (!find_tensor(l, layer, suffix, n, 0, &tensor) || !allocate_vector(n, out, l->err)) return false;
    for (int32_t i = 0; i < n; i++) (*out)[i] = eng_f32_at(tensor.data, tensor.dtype, i) + plus;
    return true;
}

static bool load_norm(const loader *l, int32_t layer, const char *suffix, int32_t n, float **out) {
    return load_vector(l, layer, suffix, n, l->config->norm_plus_one ? 1.0f : 0.0f, out);
}

typedef struct named_part {
    const char *suffix;
    int32_t rows;
} named_part;

static bool find_part(const loader *l, int32_t layer, named_part name, int32_t in, eng_linear_part *out) {
    eng_tensor tensor;
    if (!find_tensor(l, layer, name.suffix, name.rows, in, &tensor)) return false;
    *out = (eng_linear_part){tensor.data, tensor.dtype, name.rows};
    return true;
}

static bool load_linear(const loader *l, int32_t layer, const named_part *names, int32_t count, int32_t in,
                        eng_linear *out) {
    eng_linear_part parts[3];
    for (int32_t i = 0; i < count; i++)
        if (!find_part(l, layer, names[i], in, &parts[i])) return false;
    return eng_linear_pack(parts, count, in, l->compute, NULL, out, l->err);
}

static bool load_gate_up(const loader *l, int32_t layer, eng_linear *out) {
    const eng_model_config *c = l->config;
    const named_part gate_name = {"mlp.gate_proj.weight", c->intermediate}, up_name = {"mlp.up_proj.weight", c->intermediate};
    eng_linear_part gate, up;
    return find_part(l, layer, gate_name, c->hidden, &gate) && find_part(l, layer, up_name, c->hidden, &up) &&
           eng_linear_pack_gated(&gate, &up, eng_gate_of(c->activation), c->hidden, l->compute, NULL, out, l->err);
}

static bool load_qkv_bias(const loader *l, int32_t layer, eng_layer_weights *w) {
    const eng_model_config *c = l->config;
    const int32_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    float *part = NULL;
    bool ok = allocate_vector(q + 2 * (int64_t)kv, &w->qkv_bias, l->err);
    const named_part parts[] = {{"self_attn.q_proj.bias", q}, {"self_attn.k_proj.bias", kv}, {"self_attn.v_proj.bias", kv}};
    float *to = w->qkv_bias;
    for (int i = 0; ok && i < 3; i++) {
        ok = load_vector(l, layer, parts[i].suffix, parts[i].rows, 0, &part);
        if (ok) memcpy(to, part, (size_t)parts[i].rows * sizeof *part);
        to += parts[i].rows;
        free(part);
        part = NULL;
    }
    return ok;
}

static bool load_norms(const loader *l, int32_t layer, eng_layer_weights *w) {
    const eng_model_config *c = l->config;
    const char *mlp_norm = c->sandwich_norms ? "pre_feedforward_layernorm.weight" : "post_attention_layernorm.weight";
    if (!load_norm(l, layer, "input_layernorm.weight", c->hidden, &w->attention_norm) ||
        !load_norm(l, layer, mlp_norm, c->hidden, &w->mlp_norm))
        return false;
    if (c->sandwich_norms &&
        (!load_norm(l, layer, "post_attention_layernorm.weight", c->hidden, &w->attention_post_norm) ||
         !load_norm(l, layer, "post_feedforward_layernorm.weight", c->hidden, &w->mlp_post_norm)))
        return false;
    return !c->qk_norm || (load_norm(l, layer, "self_attn.q_norm.weight", c->head_dim, &w->query_norm) &&
                           load_norm(l, layer, "self_attn.k_norm.weight", c->head_dim, &w->key_norm));
}

static bool load_layer(const loader *l, int32_t layer, eng_layer_weights *w) {
    const eng_model_config *c = l->config;
    const int32_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    const named_part qkv[] = {{"self_attn.q_proj.weight", q}, {"self_attn.k_proj.weight", kv},
                              {"self_attn.v_proj.weight", kv}};
    const named_part output[] = {{"self_attn.o_proj.weight", c->hidden}};
    const named_part down[] = {{"mlp.down_proj.weight", c->hidden}};
    return load_norms(l, layer, w) && (!c->qkv_bias || load_qkv_bias(l, layer, w)) &&
           load_linear(l, layer, qkv, 3, c->hidden, &w->qkv) && load_linear(l, layer, output, 1, q, &w->output) &&
           load_gate_up(l, layer, &w->gate_up) && load_linear(l, layer, down, 1, c->intermediate, &w->down);
}

/* A tied checkpoint may hold lm_head too; what config.json says decides. */
static bool load_head(const loader *l, const eng_tensor *embedding, eng_weights *w) {
    eng_tensor head = *embedding;
    char name[NAME_BYTES] = "lm_head.weight";
    if (!l->config->tie_embeddings) {
        if (!eng_safetensors_has(l->from, name)) snprintf(name, sizeof name, "language_model.lm_head.weight");
        if (!eng_safetensors_has(l->from, name)) snprintf(name, sizeof name, "lm_head.weight");
        if (!eng_safetensors_get(l->from, name, &head, l->err) ||
            !check_shape(l, name, &head, l->config->vocab, l->config->hidden))
            return false;
    }
    const eng_linear_part part = {head.data, head.dtype, l->config->vocab};
    return eng_linear_pack(&part, 1, l->config->hidden, l->compute, NULL, &w->head, l->err);
}

static const char *find_prefix(const eng_safetensors *from) {
    static const char *const prefixes[] = {"model.", "language_model.model.", "model.language_model."};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        char name[NAME_BYTES];
        snprintf(name, sizeof name, "%sembed_tokens.weight", prefixes[i]);
        if (eng_safetensors_has(from, name)) return prefixes[i];
    }
    return prefixes[0];
}

static bool load_all(const loader *l, eng_weights *w) {
    eng_tensor embedding;
    if (!find_tensor(l, -1, "embed_tokens.weight", l->config->vocab, l->config->hidden, &embedding)) return false;
    w->embedding = embedding.data;
    w->embedding_dtype = embedding.dtype;
    for (int32_t i = 0; i < l->config->layers; i++)
        if (!load_layer(l, i, &w->layers[i])) return false;
    return load_norm(l, -1, "norm.weight", l->config->hidden, &w->final_norm) && load_head(l, &embedding, w);
}

static bool allocate_layers(const eng_model_config *config, eng_weights *out, eng_error *err) {
    memset(out, 0, sizeof *out);
    out->layers = calloc((size_t)config->layers, sizeof *out->layers);
    if (out->layers == NULL) return eng_fail(err, "out of memory for %d layers", config->layers);
    out->num_layers = config->layers;
    return true;
}

bool eng_weights_load(const char *dir, const eng_model_config *config, eng_compute compute, eng_weights *out,
                      eng_error *err) {
    if (!allocate_layers(config, out, err)) return false;
    bool ok = eng_safetensors_open(dir, &out->checkpoint, err);
    if (ok) {
        const loader l = {out->checkpoint, config, compute, find_prefix(out->checkpoint), err};
        ok = load_all(&l, out);
    }
    if (!ok) eng_weights_free(out);
    return ok;
}

static bool ones(int32_t n, float **out, eng_error *err) {
    if (!allocate_vector(n, out, err)) return false;
    for (int32_t i = 0; i < n; i++) (*out)[i] = 1.0f;
    return true;
}

static bool zeros(int32_t n, float **out, eng_error *err) {
    if (!allocate_vector(n, out, err)) return false;
    memset(*out, 0, (size_t)n * sizeof **out);
    return true;
}

static bool random_vectors(const eng_model_config *c, eng_layer_weights *w, eng_error *err) {
    const int32_t qkv = (c->heads + 2 * c->kv_heads) * c->head_dim;
    return ones(c->hidden, &w->attention_norm, err) && ones(c->hidden, &w->mlp_norm, err) &&
           (!c->sandwich_norms ||
            (ones(c->hidden, &w->attention_post_norm, err) && ones(c->hidden, &w->mlp_post_norm, err))) &&
           (!c->qk_norm || (ones(c->head_dim, &w->query_norm, err) && ones(c->head_dim, &w->key_norm, err))) &&
           (!c->qkv_bias || zeros(qkv, &w->qkv_bias, err));
}

/* A power of two near 1/sqrt(in), so that activations keep their size. */
static float scale_for(int32_t in) {
    float scale = 1.0f;
    while (scale * scale * (float)in > 1) scale /= 2;
    return scale;
}

static bool random_linear(int32_t rows, int32_t in, uint64_t *seed, eng_compute compute, eng_linear *out,
                          eng_error *err) {
    return eng_linear_random(rows, in, scale_for(in), ++*seed, compute, out, err);
}

static bool random_layer(const eng_model_config *c, uint64_t *seed, eng_compute compute, eng_layer_weights *w,
                         eng_error *err) {
    const int32_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    return random_vectors(c, w, err) && random_linear(q + 2 * kv, c->hidden, seed, compute, &w->qkv, err) &&
           random_linear(c->hidden, q, seed, compute, &w->output, err) &&
           eng_linear_random_gated(c->intermediate, c->hidden, scale_for(c->hidden), eng_gate_of(c->activation),
                                   ++*seed, compute, &w->gate_up, err) &&
           random_linear(c->hidden, c->intermediate, seed, compute, &w->down, err);
}

/* Timing needs rows of the right size at the right distance, not good ones: +-(0.5 to 1). */
static bool random_embedding(const eng_model_config *c, eng_weights *w, eng_error *err) {
    const int64_t count = (int64_t)c->vocab * c->hidden;
    uint16_t *table = eng_big_alloc((size_t)count * sizeof *table);
    if (table == NULL) return eng_fail(err, "out of memory for an embedding of %d by %d", c->vocab, c->hidden);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) table[i] = (uint16_t)(((uint32_t)i * 2654435761u >> 16 & 0x807F) | 0x3F00);
    w->own_embedding = table;
    w->embedding = table;
    w->embedding_dtype = ENG_DTYPE_BF16;
    return true;
}

static bool random_all(const eng_model_config *c, uint64_t seed, eng_compute compute, eng_weights *w, eng_error *err) {
    for (int32_t i = 0; i < c->layers; i++)
        if (!random_layer(c, &seed, compute, &w->layers[i], err)) return false;
    return random_embedding(c, w, err) && ones(c->hidden, &w->final_norm, err) &&
           random_linear(c->vocab, c->hidden, &seed, compute, &w->head, err);
}

bool eng_weights_random(const eng_model_config *config, uint64_t seed, eng_compute compute, eng_weights *out,
                        eng_error *err) {
    if (!allocate_layers(config, out, err)) return false;
    bool ok = random_all(config, seed, compute, out, err);
    if (!ok) eng_weights_free(out);
    return ok;
}

static void free_layer(eng_layer_weights *w) {
    float *const vectors[] = {w->attention_norm, w->mlp_norm, w->attention_post_norm, w->mlp_post_norm,
                              w->query_norm,     w->key_norm, w->qkv_bias};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) free(vectors[i]);
    eng_linear_free(&w->qkv);
    eng_linear_free(&w->output);
    eng_linear_free(&w->gate_up);
    eng_linear_free(&w->down);
}

void eng_weights_free(eng_weights *weights) {
    for (int32_t i = 0; i < weights->num_layers; i++) free_layer(&weights->layers[i]);
    free(weights->layers);
    free(weights->final_norm);
    free(weights->own_embedding);
    eng_linear_free(&weights->head);
    eng_safetensors_close(weights->checkpoint);
    memset(weights, 0, sizeof *weights);
}

size_t eng_weights_bytes(const eng_weights *weights) {
    size_t bytes = weights->head.bytes;
    for (int32_t i = 0; i < weights->num_layers; i++) {
        const eng_layer_weights *w = &weights->layers[i];
        bytes += w->qkv.bytes + w->output.bytes + w->gate_up.bytes + w->down.bytes;
    }
    return bytes;
}
