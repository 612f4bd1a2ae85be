#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool eng_fail(eng_error *err, const char *format, ...) {
    if (err == NULL) return false;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    return false;
}

bool eng_fail_in(eng_error *err, const char *prefix) {
    if (err == NULL) return false;
    char callee[sizeof err->text];
    memcpy(callee, err->text, sizeof callee);
    size_t used = strlen(prefix);
    if (used > sizeof err->text - 3) used = sizeof err->text - 3;
    memcpy(err->text, prefix, used);
    snprintf(err->text + used, sizeof err->text - used, ": %.*s", (int)(sizeof callee - 1), callee);
    return false;
}
