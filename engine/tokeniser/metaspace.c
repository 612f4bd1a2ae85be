#include "metaspace.h"

#include <string.h>

#include "common/json_read.h"
#include "common/utf8.h"

static bool load_replacement(const json_t *json, const char *where, eng_metaspace *out, eng_error *err) {
    const char *text;
    size_t size, length = 0;
    if (!eng_json_text(json, where, "replacement", &text, &size, err)) return false;
    if (size > 0) eng_utf8_decode(text, size, &length);
    if (size == 0 || length != size)
        return eng_json_unexpected(where, "replacement", "one character", json_object_get(json, "replacement"), err);
    memcpy(out->replacement, text, size);
    out->size = size;
    return true;
}

static bool load_scheme(const json_t *json, const char *where, eng_metaspace *out, eng_error *err) {
    static const char *const names[] = {"always", "first", "never"};
    const char *name;
    bool prefix;
    if (!eng_json_string_or(json, where, "prepend_scheme", "always", &name, err) ||
        !eng_json_bool_or(json, where, "add_prefix_space", true, &prefix, err))
        return false;
    size_t i = 0;
    while (i < 3 && strcmp(name, names[i]) != 0) i++;
    if (i == 3)
        return eng_fail(err, "%s: prepend_scheme: unknown \"%.60s\"; supported: always, first, never", where, name);
    out->scheme = (eng_prepend_scheme)i;
    /* The older field may only repeat what the newer one says, where that is there. */
    if (!prefix && out->scheme != ENG_PREPEND_NEVER)
        return eng_fail(err, "%s: add_prefix_space: false does not go with prepend_scheme \"%s\"", where, name);
    return true;
}

bool eng_metaspace_load(const json_t *json, const char *where, eng_metaspace *out, eng_error *err) {
    return load_replacement(json, where, out, err) && load_scheme(json, where, out, err) &&
           eng_json_bool_or(json, where, "split", true, &out->split, err);
}

static bool starts_with(const eng_metaspace *metaspace, const char *text, size_t size) {
    if (text[0] == ' ') return true; /* it becomes the replacement */
    return size >= metaspace->size && memcmp(text, metaspace->replacement, metaspace->size) == 0;
}

static bool prepends(const eng_metaspace *metaspace, const char *text, const eng_piece *piece) {
    if (metaspace->scheme == ENG_PREPEND_NEVER || starts_with(metaspace, text, piece->size)) return false;
    return metaspace->scheme == ENG_PREPEND_ALWAYS || piece->front > 0;
}

/* Each replacement begins a new part, that of a prepended one included. */
bool eng_metaspace_split(const eng_metaspace *metaspace, const char *text, const eng_piece *piece, eng_splits *out,
                         eng_error *err) {
    size_t begin = eng_splits_open(out), front = 0, length;
    if (prepends(metaspace, text, piece)) {
        if (!eng_bytes_append(&out->text, metaspace->replacement, metaspace->size, err)) return false;
        if (piece->front > 0) front = metaspace->size;
    }
    for (size_t at = 0; at < piece->size; at += length) {
        eng_utf8_decode(text + at, piece->size - at, &length);
        bool is_space = text[at] == ' ';
        bool is_mark = is_space || (length == metaspace->size && memcmp(text + at, metaspace->replacement, length) == 0);
        if (is_mark && metaspace->split) {
            if (!eng_splits_close(out, begin, front, err)) return false;
            begin = eng_splits_open(out);
            front = 0;
        }
        if (!eng_bytes_append(&out->text, is_space ? metaspace->replacement : text + at,
                              is_space ? metaspace->size : length, err))
            return false;
        if (at < piece->front) front = out->text.size - begin;
    }
    return eng_splits_close(out, begin, front, err);
}

bool eng_metaspace_decode(const eng_metaspace *metaspace, const char *text, size_t size, bool is_first,
                          eng_bytes *out, eng_error *err) {
    bool drops = is_first && metaspace->scheme != ENG_PREPEND_NEVER;
    for (size_t at = 0, length; at < size; at += length) {
        eng_utf8_decode(text + at, size - at, &length);
        bool is_mark = length == metaspace->size && memcmp(text + at, metaspace->replacement, length) == 0;
        if (is_mark && drops) continue;
        if (!eng_bytes_append(out, is_mark ? " " : text + at, is_mark ? 1 : length, err)) return false;
    }
    return true;
}
