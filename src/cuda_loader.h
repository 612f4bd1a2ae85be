/* Finding librelayattn_cuda at run time: the core is never linked against it. */
#ifndef RELAY_CUDA_LOADER_H
#define RELAY_CUDA_LOADER_H

#include "cuda_ops.h"
#include "device_internal.h"

/* The table of the library that RELAY_CUDA_LIBRARY names; without that, of the one beside
 * librelayattn, and then of the one that the loader's path has.  Once loaded, a library stays.
 * Errors, said to `log`: NO_DEVICE (there is none, it cannot be loaded, or is of another version). */
relay_status relayi_cuda_load(const relay_device *log, const relayi_cuda_ops **ops);

#endif
