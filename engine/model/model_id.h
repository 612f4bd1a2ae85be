/* A name for a model's weights, so that K/V of another model is never taken for its own. */
#ifndef RELAY_ENGINE_MODEL_ID_H
#define RELAY_ENGINE_MODEL_ID_H

#include <stdbool.h>

#include "common/error.h"
#include "common/sha256.h"

/* A hash of DIR's config.json, of name, size and time of change of its *.safetensors, of samples of
 * their bytes, and of `how`: whatever else decides the K/V. */
bool eng_model_id(const char *dir, const char *how, char id[ENG_SHA256_HEX], eng_error *err);

#endif
