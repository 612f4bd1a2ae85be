#include "utf8.h"

#include <string.h>

static size_t continuation_count(unsigned char lead) {
    if (lead >= 0xC2 && lead <= 0xDF) return 1;
    if (lead >= 0xE0 && lead <= 0xEF) return 2;
    if (lead >= 0xF0 && lead <= 0xF4) return 3;
    return 0;
}

/* The second byte's range is narrower after four lead bytes: no overlong forms, no surrogates, no
 * code point past U+10FFFF. */
static bool continues(unsigned char lead, size_t place, unsigned char byte) {
    unsigned char low = 0x80, high = 0xBF;
    if (place == 1) {
        if (lead == 0xE0) low = 0xA0;
        if (lead == 0xED) high = 0x9F;
        if (lead == 0xF0) low = 0x90;
        if (lead == 0xF4) high = 0x8F;
    }
    return byte >= low && byte <= high;
}

eng_utf8_kind eng_utf8_next(const char *text, size_t size, size_t *length, uint32_t *code) {
    const unsigned char *bytes = (const unsigned char *)text;
    unsigned char lead = bytes[0];
    *length = 1;
    *code = lead;
    if (lead < 0x80) return ENG_UTF8_VALID;
    size_t more = continuation_count(lead);
    uint32_t value = lead & (0x3Fu >> more);
    *code = 0xFFFD;
    if (more == 0) return ENG_UTF8_INVALID;
    for (size_t place = 1; place <= more; place++) {
        *length = place;
        if (place == size) return ENG_UTF8_INCOMPLETE;
        if (!continues(lead, place, bytes[place])) return ENG_UTF8_INVALID;
        value = value << 6 | (bytes[place] & 0x3F);
    }
    *length = more + 1;
    *code = value;
    return ENG_UTF8_VALID;
}

uint32_t eng_utf8_decode(const char *text, size_t size, size_t *length) {
    uint32_t code;
    eng_utf8_next(text, size, length, &code);
    return code;
}

size_t eng_utf8_encode(uint32_t code, char out[4]) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    size_t size = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = size - 1; i > 0; i--, code >>= 6) out[i] = (char)(0x80 | (code & 0x3F));
    out[0] = (char)((0xF00u >> size & 0xF0u) | code);
    return size;
}

bool eng_utf8_is_valid(const char *text, size_t size) {
    for (size_t at = 0, length; at < size; at += length) {
        uint32_t code;
        if (eng_utf8_next(text + at, size - at, &length, &code) != ENG_UTF8_VALID) return false;
    }
    return true;
}

bool eng_utf8_append_repaired(eng_bytes *out, const char *text, size_t size, eng_error *err) {
    size_t copied = 0;
    for (size_t at = 0, length; at < size; at += length) {
        uint32_t code;
        if (eng_utf8_next(text + at, size - at, &length, &code) == ENG_UTF8_VALID) continue;
        if (!eng_bytes_append(out, text + copied, at - copied, err)) return false;
        if (!eng_bytes_append_code(out, 0xFFFD, err)) return false;
        copied = at + length;
    }
    return eng_bytes_append(out, text + copied, size - copied, err);
}
