/* Metaspace, which is a pre-tokeniser and a decoder: a visible character stands for the space. */
#ifndef RELAY_ENGINE_METASPACE_H
#define RELAY_ENGINE_METASPACE_H

#include <jansson.h>
#include <stdbool.h>

#include "splits.h"

typedef enum eng_prepend_scheme { ENG_PREPEND_ALWAYS, ENG_PREPEND_FIRST, ENG_PREPEND_NEVER } eng_prepend_scheme;

typedef struct eng_metaspace {
    char replacement[4];
    size_t size; /* of the replacement */
    eng_prepend_scheme scheme;
    bool split;
} eng_metaspace;

bool eng_metaspace_load(const json_t *json, const char *where, eng_metaspace *out, eng_error *err);

/* Adds the parts of a piece whose text is given. */
bool eng_metaspace_split(const eng_metaspace *metaspace, const char *text, const eng_piece *piece, eng_splits *out,
                         eng_error *err);

/* Appends a token's text with spaces; the first token loses them, unless none was prepended. */
bool eng_metaspace_decode(const eng_metaspace *metaspace, const char *text, size_t size, bool is_first,
                          eng_bytes *out, eng_error *err);

#endif
