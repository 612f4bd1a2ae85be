/* A librelayattn_cuda of a version that the core does not know. */
#include "cuda_ops.h"

const relayi_cuda_ops *relay_cuda_ops(void);

__attribute__((visibility("default"))) const relayi_cuda_ops *relay_cuda_ops(void) {
    static const relayi_cuda_ops ops = {.version = RELAYI_CUDA_VERSION + 1, .size = sizeof ops};
    return &ops;
}
