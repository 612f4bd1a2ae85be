/* relay/device.h - the first concept: where attention is computed.
 *
 * A device is the CPU with a number of threads, or one CUDA device.  It is
 * opened once, carries the kernels chosen for it and the log callback, and may
 * be shared by any number of threads, caches, forests and plans.
 */
#ifndef RELAY_DEVICE_H
#define RELAY_DEVICE_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct relay_device relay_device;

typedef enum relay_device_kind {
    RELAY_DEVICE_CPU = 1,
    RELAY_DEVICE_CUDA = 2 /* needs librelayattn_cuda, opened at run time */
} relay_device_kind;

typedef struct relay_device_options {
    uint32_t struct_size;
    relay_device_kind kind; /* default RELAY_DEVICE_CPU */
    int32_t index;          /* CUDA ordinal; 0 for the CPU */
    int32_t threads;        /* CPU threads of a run, the caller's included; 0 = OpenMP's own
                               number: OMP_NUM_THREADS, else one per processor that this
                               process may use */
    const char *cpu_level;  /* highest kernel family to use: "scalar", "avx2", "avx512",
                               "avx512bf16" or "amx"; NULL = the best that this CPU has.
                               The environment variable RELAY_CPU lowers it further. */
    relay_log_fn log;       /* NULL = silent */
    void *log_user;         /* handed to log */
} relay_device_options;

RELAY_API relay_device_options relay_device_options_defaults(void);

/* Opens a device.  On success the caller must close it, after everything that
 * was created on it.  Thread-safe.
 * Errors: NULL_POINTER, BAD_STRUCT_SIZE, INVALID_ARGUMENT (kind, index, threads,
 * cpu_level), NO_DEVICE, OUT_OF_MEMORY, DEVICE_ERROR.
 *
 * A CUDA device needs librelayattn_cuda: the file that the environment variable
 * RELAY_CUDA_LIBRARY names, else one beside librelayattn, else one on the loader's path.
 * NO_DEVICE says in the log which of these it is: no library, one of another version, no
 * driver or too old a one, no such GPU, a compute capability below 8.0.  `threads` and
 * `cpu_level` mean nothing to it. */
RELAY_API relay_status relay_device_open(const relay_device_options *options,
                                         relay_device **device);

/* Accepts NULL. */
RELAY_API void relay_device_close(relay_device *device);

typedef struct relay_device_info {
    uint32_t struct_size;
    relay_device_kind kind;
    int32_t threads;
    const char *name;      /* processor or GPU name; lives as long as the device */
    const char *features;  /* instruction sets found, separated by spaces; likewise.  CPU: "amx-palette-hidden" says
                              that CPUID does not describe the tiles, on which other libraries' AMX code may die */
    const char *cpu_level; /* the family in use: "scalar", ..., "amx" */
} relay_device_info;

/* `info->struct_size` must be set.  Errors: NULL_POINTER, BAD_STRUCT_SIZE. */
RELAY_API relay_status relay_device_get_info(const relay_device *device, relay_device_info *info);

/* The kernel that attention over K/V of `kv_dtype` with queries of `query_dtype`
 * runs on: for packed prompts and for pages or contiguous memory.  "none" for
 * dtypes that are not computed.  Static storage. */
RELAY_API const char *relay_device_kernel_name(const relay_device *device, relay_dtype query_dtype,
                                               relay_dtype kv_dtype);

/* Machine limits, measured now with all threads of the device: takes about half
 * a second (CUDA: and 2 GiB of its memory), and is not remembered.  The "limit" that the benchmarks quote is
 * max(unique K/V bytes / read_gbps, FLOPs / peak). */
typedef struct relay_calibration {
    uint32_t struct_size;
    double read_gbps;         /* DRAM read, 1e9 bytes/s */
    double f32_gflops;        /* f32 multiply-add, a multiply-add counts as 2 */
    double bf16_gflops;       /* best rate of any bf16 x bf16 -> f32 path in use here */
    double peak_gflops;       /* the largest of the above */
} relay_calibration;

/* Errors: NULL_POINTER, BAD_STRUCT_SIZE, OUT_OF_MEMORY, DEVICE_ERROR. */
RELAY_API relay_status relay_device_calibrate(relay_device *device, relay_calibration *result);

#ifdef __cplusplus
}
#endif
#endif
