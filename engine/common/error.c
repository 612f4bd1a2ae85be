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
    size_t room = sizeof err->text - 1, used = strlen(prefix), size = strlen(err->text);
    memcpy(callee, err->text, size);
    if (used > room - 2) used = room - 2;
    if (size > room - 2 - used) size = room - 2 - used;
    memcpy(err->text, prefix, used);
    memcpy(err->text + used, ": ", 2);
    memcpy(err->text + used + 2, callee, size);
    err->text[used + 2 + size] = '\0';
    return false;
}
