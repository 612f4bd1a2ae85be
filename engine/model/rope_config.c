#include "rope_config.h"

#include <stdio.h>
#include <string.h>

#include "common/json_read.h"

enum { FIELD_BYTES = 96 };

/* Where one rope's parameters lie: fields are named "PREFIX.name". */
typedef struct source {
    const json_t *json;
    const char *where, *prefix;
    eng_error *err;
} source;

static const json_t *find(const source *s, const char *name, char *field) {
    snprintf(field, FIELD_BYTES, "%s.%s", s->prefix, name);
    return eng_json_find(s->json, field);
}

/* A number in [low, 1e12]; required where fallback is 0. */
static bool read_positive(const source *s, const char *name, double low, double fallback, double *out) {
    char field[FIELD_BYTES];
    bool ok = find(s, name, field) == NULL && fallback > 0
                  ? (*out = fallback, true)
                  : eng_json_double(s->json, s->where, field, out, s->err);
    if (!ok) return false;
    if (*out >= low && *out <= 1e12) return true;
    return eng_fail(s->err, "%s: %s: expected a number in [%g, 1e12], got %g", s->where, field, low, *out);
}

static bool read_llama3(const source *s, double max_positions, eng_rope_config *out) {
    if (!read_positive(s, "low_freq_factor", 1e-6, 0, &out->low_freq_factor) ||
        !read_positive(s, "high_freq_factor", 1e-6, 0, &out->high_freq_factor) ||
        !read_positive(s, "original_max_position_embeddings", 1, max_positions, &out->original_max_positions))
        return false;
    if (out->high_freq_factor > out->low_freq_factor) return true;
    return eng_fail(s->err, "%s: %s.high_freq_factor: expected more than low_freq_factor %g, got %g", s->where, s->prefix,
                    out->low_freq_factor, out->high_freq_factor);
}

static bool read_scaling(const source *s, double max_positions, eng_rope_config *out) {
    char field[FIELD_BYTES];
    const char *type;
    if (find(s, "rope_type", field) == NULL) find(s, "type", field);
    if (!eng_json_string_or(s->json, s->where, field, "default", &type, s->err)) return false;
    out->factor = 1;
    if (strcmp(type, "default") == 0) return true;
    out->scaling = strcmp(type, "linear") == 0 ? ENG_ROPE_LINEAR : ENG_ROPE_LLAMA3;
    if (out->scaling == ENG_ROPE_LLAMA3 && strcmp(type, "llama3") != 0)
        return eng_fail(s->err, "%s: %s: \"%.40s\" is not supported; supported are default, linear and llama3", s->where,
                        field, type);
    if (!read_positive(s, "factor", 1e-6, 0, &out->factor)) return false;
    return out->scaling == ENG_ROPE_LINEAR || read_llama3(s, max_positions, out);
}

/* An object of rope parameters that may carry its theta. */
static bool read_parameters(const source *s, double theta, double max_positions, eng_rope_config *out) {
    const json_t *object;
    if (!eng_json_object_or_null(s->json, s->where, s->prefix, &object, s->err)) return false;
    out->theta = theta;
    out->factor = 1;
    if (object == NULL) return true;
    char field[FIELD_BYTES];
    const json_t *partial = find(s, "partial_rotary_factor", field);
    if (partial != NULL && json_number_value(partial) != 1)
        return eng_json_unexpected(s->where, field, "1, all that is supported", partial, s->err);
    return read_positive(s, "rope_theta", 1, theta, &out->theta) && read_scaling(s, max_positions, out);
}

static bool read_theta(const json_t *json, const char *where, const char *field, double fallback, double *out,
                       eng_error *err) {
    if (!eng_json_double_or(json, where, field, fallback, out, err)) return false;
    if (*out >= 1 && *out <= 1e12) return true;
    return eng_fail(err, "%s: %s: expected a number in [1, 1e12], got %g", where, field, *out);
}

bool eng_rope_config_read(const json_t *json, const char *where, double default_theta, eng_model_config *out,
                          eng_error *err) {
    double theta, local_theta, partial;
    if (!read_theta(json, where, "rope_theta", default_theta, &theta, err) ||
        !read_theta(json, where, "rope_local_base_freq", 1e4, &local_theta, err) ||
        !eng_json_double_or(json, where, "partial_rotary_factor", 1, &partial, err))
        return false;
    if (partial != 1) return eng_fail(err, "%s: partial_rotary_factor: %g is not supported, only 1 is", where, partial);
    const double positions = out->max_positions;
    bool newer = eng_json_find(json, "rope_parameters") != NULL;
    bool per_kind = newer && eng_json_find(json, "rope_parameters.full_attention") != NULL;
    source full = {json, where, newer ? "rope_parameters" : "rope_scaling", err};
    source sliding = {json, where, "rope_parameters.sliding_attention", err};
    out->sliding_rope = (eng_rope_config){.theta = local_theta, .factor = 1};
    if (per_kind) full.prefix = "rope_parameters.full_attention";
    if (per_kind && !read_parameters(&sliding, local_theta, positions, &out->sliding_rope)) return false;
    return read_parameters(&full, theta, positions, &out->rope);
}
