/* Device memory for the tools: the library itself allocates none. */
#ifndef RELAY_CUDA_MEMORY_H
#define RELAY_CUDA_MEMORY_H

#include <stdbool.h>

#include "cuda_ops.h"
#include "relay/device.h"

/* A CUDA device as tools use it. */
typedef struct cuda_lab {
    relay_device *device;
    const relayi_cuda_ops *ops;
    int32_t index;
    relayi_cuda_error error; /* CUDA's words for the last failure */
} cuda_lab;

bool cuda_lab_open(cuda_lab *lab, int32_t index, relay_log_fn log, void *log_user);
void cuda_lab_close(cuda_lab *lab);

/* Device memory that holds a copy of `bytes` of `from` (NULL: bytes of 0xFF, NaN in every dtype);
 * released by ops->release.  NULL on failure. */
void *cuda_lab_copy_in(cuda_lab *lab, const void *from, size_t bytes);
bool cuda_lab_copy_out(cuda_lab *lab, void *to, const void *from, size_t bytes);

#endif
