/* The rotary position embedding's part of config.json, in its three spellings: rope_theta with
 * rope_scaling, rope_parameters, and rope_parameters per kind of layer. */
#ifndef RELAY_ENGINE_ROPE_CONFIG_H
#define RELAY_ENGINE_ROPE_CONFIG_H

#include <jansson.h>

#include "model_config.h"

/* Sets out->rope and out->sliding_rope; out->family and out->max_positions are known. */
bool eng_rope_config_read(const json_t *json, const char *where, double default_theta, eng_model_config *out,
                          eng_error *err);

#endif
