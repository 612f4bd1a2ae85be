/* UTF-8, well formed and not. */
#ifndef RELAY_ENGINE_UTF8_H
#define RELAY_ENGINE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bytes.h"

typedef enum eng_utf8_kind {
    ENG_UTF8_VALID,      /* one code point */
    ENG_UTF8_INVALID,    /* bytes that no further byte can repair */
    ENG_UTF8_INCOMPLETE, /* the end came too early */
} eng_utf8_kind;

/* Looks at the front of `text` (size > 0).  *length is the code point's length, or that of the maximal
 * subpart which one U+FFFD stands for; *code is the code point, or U+FFFD. */
eng_utf8_kind eng_utf8_next(const char *text, size_t size, size_t *length, uint32_t *code);

/* The code point at the front of well-formed text, and its length. */
uint32_t eng_utf8_decode(const char *text, size_t size, size_t *length);

/* Writes 1 to 4 bytes and returns how many. */
size_t eng_utf8_encode(uint32_t code, char out[4]);

bool eng_utf8_is_valid(const char *text, size_t size);

/* Appends `text` with U+FFFD for every maximal subpart that is not UTF-8, which is what Python's
 * bytes.decode(errors="replace") gives. */
bool eng_utf8_append_repaired(eng_bytes *out, const char *text, size_t size, eng_error *err);

#endif
