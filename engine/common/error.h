/* How the engine reports what went wrong: a bool and one sentence. */
#ifndef RELAY_ENGINE_ERROR_H
#define RELAY_ENGINE_ERROR_H

#include <stdbool.h>

/* `text` names the file and the field, and is empty while nothing failed. */
typedef struct eng_error {
    char text[1024];
} eng_error;

/* Writes the message (longer ones are cut) and returns false, so that a failing
 * function can end in `return eng_fail(err, ...)`.  `err` may be NULL. */
bool eng_fail(eng_error *err, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;

/* Puts "prefix: " before the message that a callee left; returns false. */
bool eng_fail_in(eng_error *err, const char *prefix);

#endif
