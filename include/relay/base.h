/* relay/base.h - what every other header of librelayattn stands on: version,
 * visibility, errors, data types, tensors, logging.
 *
 * Conventions of the whole interface
 *   - Every function that can fail returns a relay_status; RELAY_OK is 0.  What
 *     exactly was wrong (which field, which value, which file) goes to the log
 *     callback of the device, at RELAY_LOG_ERROR, on the calling thread and
 *     before the function returns.  The library never prints, exits or aborts.
 *   - On failure nothing has been written: outputs are as they were, and a
 *     failed create leaves NULL in *out.
 *   - Option structs begin with struct_size.  Fill them by their _defaults()
 *     function; a size from a future version is refused (RELAY_BAD_STRUCT_SIZE).
 *   - The caller owns tensors and workspaces, the library borrows them for the
 *     duration of a call unless a function says otherwise.
 *   - Strides are counted in elements, sizes in bytes say so in their name.
 *   - There is no global mutable state but the CPU flags.
 */
#ifndef RELAY_BASE_H
#define RELAY_BASE_H

#include <stddef.h>
#include <stdint.h>

#define RELAY_VERSION_MAJOR 0
#define RELAY_VERSION_MINOR 1
#define RELAY_VERSION_PATCH 0

#if defined(_WIN32)
#define RELAY_API
#elif defined(__GNUC__)
#define RELAY_API __attribute__((visibility("default")))
#else
#define RELAY_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The version of the library at run time, "major.minor.patch". Static storage. */
RELAY_API const char *relay_version(void);

/* ---- errors ------------------------------------------------------------- */

/* X(value, name, text).  Numbers are pinned: they never change their meaning. */
#define RELAY_STATUS_LIST(X)                                                            \
    X(0, OK, "success")                                                                 \
    X(1, NULL_POINTER, "a required pointer is NULL")                                    \
    X(2, INVALID_ARGUMENT, "an argument is outside its range")                          \
    X(3, BAD_STRUCT_SIZE, "struct_size belongs to no version that this library knows")  \
    X(4, BAD_DTYPE, "a tensor or option has a data type that is not accepted there")    \
    X(5, BAD_SHAPE, "a tensor has another shape than the call needs")                   \
    X(6, BAD_STRIDE, "a tensor has strides that the call cannot honour")                \
    X(7, MISALIGNED, "a pointer is not aligned as the call needs")                      \
    X(8, OVERLAP, "an output overlaps another tensor of the call")                      \
    X(9, OUT_OF_RANGE, "an index points outside what it indexes")                       \
    X(10, UNSUPPORTED, "valid, but not computed by this build or this device")          \
    X(11, OUT_OF_MEMORY, "memory could not be had")                                     \
    X(12, NOT_FOUND, "there is no entry of that key")                                   \
    X(13, ALREADY_EXISTS, "an entry of that key exists or is being built")              \
    X(14, CACHE_FULL, "no room: every entry that could go is in use")                   \
    X(15, IO_ERROR, "the operating system refused a file operation")                    \
    X(16, CORRUPT_FILE, "a file is damaged, foreign, or of another version")            \
    X(17, WORKSPACE_TOO_SMALL, "the workspace is smaller than the plan needs")          \
    X(18, WRONG_DEVICE, "an object belongs to another device")                          \
    X(19, STALE_PLAN, "the plan was not built, or its forest has changed since")        \
    X(20, NO_DEVICE, "there is no such device, or its driver cannot be used")           \
    X(21, DEVICE_ERROR, "the device reported an error of its own")

typedef enum relay_status {
#define RELAY_STATUS_ENUM(value, name, text) RELAY_##name = value,
    RELAY_STATUS_LIST(RELAY_STATUS_ENUM)
#undef RELAY_STATUS_ENUM
    RELAY_STATUS_MAX = 0x7fffffff /* fixes the width of the enum */
} relay_status;

/* "INVALID_ARGUMENT" and its one-line text; "UNKNOWN" for a foreign number.
 * Static storage; thread-safe. */
RELAY_API const char *relay_status_name(relay_status status);
RELAY_API const char *relay_status_text(relay_status status);

/* ---- logging ------------------------------------------------------------ */

typedef enum relay_log_level {
    RELAY_LOG_ERROR = 1, /* why the call in progress fails */
    RELAY_LOG_WARN = 2,  /* handled, but worth knowing: a damaged cache file, a fallback */
    RELAY_LOG_INFO = 3,  /* once per object: kernels chosen */
    RELAY_LOG_DEBUG = 4  /* once per step: what the plan decided */
} relay_log_level;

/* `message` is one line without a newline and lives until the callback returns.
 * May be called from background threads (prefetch), so it must be thread-safe. */
typedef void (*relay_log_fn)(void *user, relay_log_level level, const char *message);

/* ---- data types and tensors --------------------------------------------- */

typedef enum relay_dtype {
    RELAY_F32 = 1,
    RELAY_F16 = 2,  /* IEEE binary16 */
    RELAY_BF16 = 3  /* the upper half of binary32 */
} relay_dtype;

/* Bytes of one element; 0 for a value that is no dtype. */
RELAY_API size_t relay_dtype_size(relay_dtype dtype);
/* "f32", "f16", "bf16"; "unknown" otherwise. */
RELAY_API const char *relay_dtype_name(relay_dtype dtype);

#define RELAY_MAX_DIMS 4

/* A borrowed, strided view.  shape and stride have `ndim` entries; strides are
 * in elements, may be padded or permuted, and must be positive where the extent
 * is above 1.  The last dimension must be contiguous (stride 1) wherever it is
 * the head dimension.  data == NULL means "absent" where a call allows that. */
typedef struct relay_tensor {
    void *data;
    relay_dtype dtype;
    int32_t ndim;
    int64_t shape[RELAY_MAX_DIMS];
    int64_t stride[RELAY_MAX_DIMS];
} relay_tensor;

/* Views of dense row-major memory. */
RELAY_API relay_tensor relay_tensor_2d(void *data, relay_dtype dtype, int64_t d0, int64_t d1);
RELAY_API relay_tensor relay_tensor_3d(void *data, relay_dtype dtype, int64_t d0, int64_t d1,
                                       int64_t d2);
RELAY_API relay_tensor relay_tensor_4d(void *data, relay_dtype dtype, int64_t d0, int64_t d1,
                                       int64_t d2, int64_t d3);

#ifdef __cplusplus
}
#endif
#endif
