#include "model.h"

#include <math.h>
#include <stdlib.h>

#include "common/big_memory.h"
#include "common/clock.h"
#include "math/layer_math.h"
#include "weights.h"

/* Below this many numbers the start of a team of threads costs more than it saves. */
enum { WORTH_THREADS = 1 << 15 };

/* Activations of one step; they grow to the largest step seen. */
typedef struct activations {
    int32_t rows; /* that there is room for */
    float *x;     /* [rows][hidden] the residual stream */
    float *h;     /* [rows][hidden] what a block reads, then what it adds */
    float *qkv;   /* [rows][(heads + 2 kv_heads) head_dim] */
    float *q, *k, *v, *attended;
    float *gated;        /* [rows][intermediate] */
    float *full_rope;    /* [rows][head_dim] */
    float *sliding_rope; /* the same for Gemma's sliding layers */
    void *block;         /* all of them */
} activations;

struct eng_model {
    eng_model_config config;
    eng_weights weights;
    activations act;
    eng_linear_scratch scratch;
    float full_inverse[128], sliding_inverse[128]; /* head_dim <= 256 */
    double linear_seconds;
};

static int32_t query_width(const eng_model_config *c) {
    return c->heads * c->head_dim;
}

static int32_t kv_width(const eng_model_config *c) {
    return c->kv_heads * c->head_dim;
}

static bool make_activations(activations *a, const eng_model_config *c, int32_t rows, eng_error *err) {
    if (rows <= a->rows) return true;
    const int64_t q = query_width(c), kv = kv_width(c);
    const int64_t widths[] = {c->hidden, c->hidden, q + 2 * kv, q, kv, kv, q, c->intermediate, c->head_dim, c->head_dim};
    float **const fields[] = {&a->x, &a->h, &a->qkv, &a->q, &a->k, &a->v, &a->attended, &a->gated, &a->full_rope,
                              &a->sliding_rope};
    const size_t count = sizeof widths / sizeof *widths;
    int64_t total = 0;
    for (size_t i = 0; i < count; i++) total += (widths[i] * rows + 15) / 16 * 16;
    free(a->block);
    a->rows = 0;
    a->block = eng_big_alloc((size_t)total * sizeof(float));
    if (a->block == NULL) return eng_fail(err, "out of memory for the activations of %d rows", rows);
    float *at = a->block;
    for (size_t i = 0; i < count; i++) {
        *fields[i] = at;
        at += (widths[i] * rows + 15) / 16 * 16;
    }
    a->rows = rows;
    return true;
}

static bool check_each(const char *what, const int32_t *values, int32_t count, int32_t end, eng_error *err) {
    for (int32_t i = 0; i < count; i++)
        if (values[i] < 0 || values[i] >= end)
            return eng_fail(err, "model: %s[%d]: %d is not in [0, %d)", what, i, values[i], end);
    return true;
}

static bool check_step(const eng_model *m, const eng_step *s, eng_attend_fn attend, eng_error *err) {
    if (s->rows < 1 || s->num_logit_rows < 0 || s->num_logit_rows > s->rows)
        return eng_fail(err, "model: a step of %d rows with logits of %d", s->rows, s->num_logit_rows);
    if (s->tokens == NULL || s->positions == NULL || attend == NULL ||
        (s->num_logit_rows > 0 && (s->logit_rows == NULL || s->logits == NULL)))
        return eng_fail(err, "model: a step with a NULL array");
    return check_each("tokens", s->tokens, s->rows, m->config.vocab, err) &&
           check_each("positions", s->positions, s->rows, m->config.max_positions, err) &&
           check_each("logit_rows", s->logit_rows, s->num_logit_rows, s->rows, err);
}

static bool multiply(eng_model *m, const eng_linear *linear, int32_t rows, const float *x, float *y, eng_error *err) {
    double begun = eng_seconds();
    bool ok = eng_linear_apply(linear, &m->scratch, rows, x, linear->in, y, linear->out, err);
    m->linear_seconds += eng_seconds() - begun;
    return ok;
}

static void add_bias(int32_t n, float *x, const float *bias) {
    for (int32_t i = 0; i < n; i++) x[i] += bias[i];
}

/* Bias and norms of one row's heads, in place. */
static void finish_heads(const eng_model_config *c, const eng_layer_weights *w, float *row) {
    const int32_t d = c->head_dim;
    if (w->qkv_bias) add_bias(query_width(c) + 2 * kv_width(c), row, w->qkv_bias);
    if (w->query_norm) eng_rms_norm(c->heads, d, row, d, w->query_norm, c->rms_eps, row, d);
    if (w->key_norm)
        eng_rms_norm(c->kv_heads, d, row + query_width(c), d, w->key_norm, c->rms_eps, row + query_width(c), d);
}

static void split_heads(eng_model *m, int32_t layer, int32_t rows) {
    const eng_model_config *c = &m->config;
    const activations *a = &m->act;
    const int64_t q = query_width(c), kv = kv_width(c), width = q + 2 * kv;
    const float *table = eng_layer_rope(c, layer) == &c->rope ? a->full_rope : a->sliding_rope;
#pragma omp parallel for schedule(static) if (rows * width > WORTH_THREADS)
    for (int32_t r = 0; r < rows; r++) finish_heads(c, &m->weights.layers[layer], a->qkv + r * width);
    eng_rotate(rows, c->heads, c->head_dim, a->qkv, width, table, a->q);
    eng_rotate(rows, c->kv_heads, c->head_dim, a->qkv + q, width, table, a->k);
    for (int32_t r = 0; r < rows; r++) memcpy(a->v + r * kv, a->qkv + r * width + q + kv, (size_t)kv * sizeof(float));
}

static void norm_rows(const eng_model *m, int32_t rows, const float *x, const float *weight, float *out) {
    const int32_t n = m->config.hidden;
    eng_rms_norm(rows, n, x, n, weight, m->config.rms_eps, out, n);
}

static bool attention_block(eng_model *m, const eng_step *s, int32_t layer, eng_attend_fn attend, void *user,
                            eng_error *err) {
    const eng_layer_weights *w = &m->weights.layers[layer];
    const activations *a = &m->act;
    const eng_attend_io io = {s->rows, s->positions, a->q, a->k, a->v, a->attended};
    norm_rows(m, s->rows, a->x, w->attention_norm, a->h);
    if (!multiply(m, &w->qkv, s->rows, a->h, a->qkv, err)) return false;
    split_heads(m, layer, s->rows);
    if (!attend(user, layer, &io, err)) return false;
    if (!multiply(m, &w->output, s->rows, a->attended, a->h, err)) return false;
    if (w->attention_post_norm) norm_rows(m, s->rows, a->h, w->attention_post_norm, a->h);
    eng_add_rows(s->rows, m->config.hidden, a->x, a->h);
    return true;
}

static bool mlp_block(eng_model *m, int32_t rows, int32_t layer, eng_error *err) {
    const eng_layer_weights *w = &m->weights.layers[layer];
    const activations *a = &m->act;
    norm_rows(m, rows, a->x, w->mlp_norm, a->h);
    if (!multiply(m, &w->gate_up, rows, a->h, a->gated, err)) return false;
    if (!multiply(m, &w->down, rows, a->gated, a->h, err)) return false;
    if (w->mlp_post_norm) norm_rows(m, rows, a->h, w->mlp_post_norm, a->h);
    eng_add_rows(rows, m->config.hidden, a->x, a->h);
    return true;
}

static bool compute_logits(eng_model *m, const eng_step *s, eng_error *err) {
    const int32_t n = m->config.hidden;
    const activations *a = &m->act;
    for (int32_t i = 0; i < s->num_logit_rows; i++)
        norm_rows(m, 1, a->x + (int64_t)s->logit_rows[i] * n, m->weights.final_norm, a->h + (int64_t)i * n);
    if (!multiply(m, &m->weights.head, s->num_logit_rows, a->h, s->logits, err)) return false;
    if (m->config.logit_soft_cap > 0)
        eng_soft_cap((int64_t)s->num_logit_rows * m->config.vocab, m->config.logit_soft_cap, s->logits);
    return true;
}

static void begin_step(eng_model *m, const eng_step *s) {
    const eng_model_config *c = &m->config;
    const activations *a = &m->act;
    eng_gather_rows(s->rows, c->hidden, m->weights.embedding, m->weights.embedding_dtype, s->tokens, c->embedding_scale,
                    a->x);
    eng_rope_table(s->rows, c->head_dim, m->full_inverse, s->positions, a->full_rope);
    if (c->family == ENG_FAMILY_GEMMA3)
        eng_rope_table(s->rows, c->head_dim, m->sliding_inverse, s->positions, a->sliding_rope);
}

bool eng_model_forward(eng_model *m, const eng_step *step, eng_attend_fn attend, void *user, eng_error *err) {
    if (!check_step(m, step, attend, err) || !make_activations(&m->act, &m->config, step->rows, err)) return false;
    begin_step(m, step);
    for (int32_t layer = 0; layer < m->config.layers; layer++)
        if (!attention_block(m, step, layer, attend, user, err) || !mlp_block(m, step->rows, layer, err)) return false;
    return compute_logits(m, step, err);
}

static eng_model *new_model(eng_error *err) {
    eng_model *m = calloc(1, sizeof *m);
    if (m == NULL) eng_fail(err, "out of memory for a model");
    return m;
}

static void finish_model(eng_model *m) {
    eng_rope_frequencies(&m->config.rope, m->config.head_dim, m->full_inverse);
    eng_rope_frequencies(&m->config.sliding_rope, m->config.head_dim, m->sliding_inverse);
}

static eng_compute wanted_compute(const eng_model_options *options) {
    return options ? options->compute : ENG_COMPUTE_AUTO;
}

/* Keeps the model where ok, frees it where not. */
static bool deliver(eng_model *m, bool ok, eng_model **out) {
    if (ok) finish_model(m);
    else eng_model_free(m);
    *out = ok ? m : NULL;
    return ok;
}

bool eng_model_load(const char *dir, const eng_model_options *options, eng_model **out, eng_error *err) {
    *out = NULL;
    eng_model *m = new_model(err);
    if (m == NULL) return false;
    bool ok = eng_model_config_load(dir, &m->config, err) &&
              eng_weights_load(dir, &m->config, wanted_compute(options), &m->weights, err);
    return deliver(m, ok, out);
}

typedef struct named_shape {
    const char *name;
    int32_t layers, hidden, heads, kv_heads, head_dim, intermediate, vocab;
} named_shape;

static const named_shape shapes[] = {
    {"llama-1b", 16, 2048, 32, 8, 64, 8192, 128256},
    {"tiny", 2, 256, 4, 2, 64, 512, 1024},
};

static void set_shape(const named_shape *s, eng_model_config *c) {
    const eng_rope_config rope = {.theta = 5e5, .factor = 1};
    *c = (eng_model_config){.family = ENG_FAMILY_LLAMA, .hidden = s->hidden, .layers = s->layers, .heads = s->heads,
                            .kv_heads = s->kv_heads, .head_dim = s->head_dim, .intermediate = s->intermediate,
                            .vocab = s->vocab, .max_positions = 131072, .rms_eps = 1e-5f, .embedding_scale = 1,
                            .rope = rope, .sliding_rope = rope, .bos_id = -1,
                            .generation = {.temperature = 1, .top_p = 1, .repetition_penalty = 1}};
    c->attention_scale = 1 / sqrtf((float)s->head_dim);
}

static const named_shape *find_shape(const char *name, eng_error *err) {
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (strcmp(shapes[i].name, name) == 0) return &shapes[i];
    eng_fail(err, "model: unknown shape \"%.40s\"; known are llama-1b and tiny", name);
    return NULL;
}

bool eng_model_random(const char *shape, const eng_model_options *options, eng_model **out, eng_error *err) {
    *out = NULL;
    const named_shape *s = find_shape(shape, err);
    eng_model *m = s ? new_model(err) : NULL;
    if (m == NULL) return false;
    set_shape(s, &m->config);
    return deliver(m, eng_weights_random(&m->config, 1, wanted_compute(options), &m->weights, err), out);
}

void eng_model_free(eng_model *model) {
    if (model == NULL) return;
    eng_weights_free(&model->weights);
    eng_linear_scratch_free(&model->scratch);
    free(model->act.block);
    free(model);
}

const eng_model_config *eng_model_config_of(const eng_model *model) {
    return &model->config;
}

size_t eng_model_weight_bytes(const eng_model *model) {
    return eng_weights_bytes(&model->weights);
}

size_t eng_model_step_bytes(const eng_model *model, int32_t num_logit_rows) {
    return eng_model_weight_bytes(model) - (num_logit_rows > 0 ? 0 : model->weights.head.bytes);
}

double eng_model_linear_seconds(const eng_model *model) {
    return model->linear_seconds;
}

const char *eng_model_kernel_name(const eng_model *model) {
    return model->weights.head.kernel->name;
}

relay_dtype eng_model_query_dtype(const eng_model *model) {
    return model->weights.layers[0].qkv.round_x ? RELAY_BF16 : RELAY_F32;
}

double eng_model_linear_flops(const eng_model *model, int32_t rows, int32_t num_logit_rows) {
    const eng_model_config *c = &model->config;
    double q = query_width(c), kv = kv_width(c), hidden = c->hidden;
    double layer = hidden * (2 * q + 2 * kv) + 3 * hidden * c->intermediate;
    return 2 * (rows * layer * c->layers + num_logit_rows * hidden * c->vocab);
}
