#include "hopper_cuda.cuh"

RELAY_CUDA_HOPPER(64)
