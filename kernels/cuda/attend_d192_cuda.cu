#include "launch_cuda.cuh"

RELAY_CUDA_ATTEND(192)
