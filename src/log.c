#include "log.h"

#include <stdarg.h>
#include <stdio.h>

#include "device_internal.h"

static void log_line(const relay_device *device, relay_log_level level, const char *format,
                     va_list args) {
    if (device == NULL || device->log == NULL) return;
    char line[1024];
    vsnprintf(line, sizeof line, format, args);
    device->log(device->log_user, level, line);
}

void relayi_log(const relay_device *device, relay_log_level level, const char *format, ...) {
    va_list args;
    va_start(args, format);
    log_line(device, level, format, args);
    va_end(args);
}

relay_status relayi_fail(const relay_device *device, relay_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    log_line(device, RELAY_LOG_ERROR, format, args);
    va_end(args);
    return status;
}

relay_status relayi_check_size(const relay_device *device, const char *what, uint32_t size,
                               size_t expected) {
    if (size == expected) return RELAY_OK;
    return relayi_fail(device, RELAY_BAD_STRUCT_SIZE,
                       "%s.struct_size: %u, but this library knows %zu (fill the struct by its "
                       "_defaults() function)",
                       what, size, expected);
}
