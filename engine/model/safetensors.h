/* Reading tensors from *.safetensors: one file, or shards named by model.safetensors.index.json.
 *
 * Files are memory-mapped; tensor data is borrowed from the mapping and lives until close.  The header of
 * a file is checked as a whole before any tensor is given out. */
#ifndef RELAY_ENGINE_SAFETENSORS_H
#define RELAY_ENGINE_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "math/number_format.h"

enum { ENG_TENSOR_MAX_DIMS = 8 };

typedef struct eng_tensor {
    const void *data; /* in any alignment */
    eng_dtype dtype;
    int32_t dims;
    int64_t shape[ENG_TENSOR_MAX_DIMS];
    int64_t count;    /* product of the shape */
    const char *file; /* path, for messages */
} eng_tensor;

typedef struct eng_safetensors eng_safetensors;

/* Opens DIR/model.safetensors or, where there is none, the shards of DIR/model.safetensors.index.json.
 * On failure *out is NULL. */
bool eng_safetensors_open(const char *dir, eng_safetensors **out, eng_error *err);

void eng_safetensors_close(eng_safetensors *tensors);

bool eng_safetensors_has(const eng_safetensors *tensors, const char *name);

/* Fails, naming the tensor, where it is missing or has a dtype the engine does not read. */
bool eng_safetensors_get(const eng_safetensors *tensors, const char *name, eng_tensor *out, eng_error *err);

#endif
