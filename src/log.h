/* How the library says what went wrong: a status and a sentence to the device's log. */
#ifndef RELAY_LOG_H
#define RELAY_LOG_H

#include "relay/device.h"

#if defined(__GNUC__)
#define RELAYI_PRINTF(at, first) __attribute__((format(printf, at, first)))
#else
#define RELAYI_PRINTF(at, first)
#endif

/* Logs one line (cut at 1023 bytes).  `device` may be NULL: then it is lost. */
void relayi_log(const relay_device *device, relay_log_level level, const char *format, ...)
    RELAYI_PRINTF(3, 4);

/* Logs at ERROR and returns `status`, so that a check can end in `return relayi_fail(...)`. */
relay_status relayi_fail(const relay_device *device, relay_status status, const char *format, ...)
    RELAYI_PRINTF(3, 4);

/* Checks a caller's struct_size against this version's: 0, or BAD_STRUCT_SIZE with a sentence
 * that names `what`.  Smaller known sizes will be accepted once there are several. */
relay_status relayi_check_size(const relay_device *device, const char *what, uint32_t size,
                               size_t expected);

#endif
