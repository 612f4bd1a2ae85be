/* An input on its way from text to tokens: pieces in order, each a token already or text still to be cut. */
#ifndef RELAY_ENGINE_SPLITS_H
#define RELAY_ENGINE_SPLITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bytes.h"

typedef struct eng_piece {
    size_t begin, size; /* in `text` */
    size_t front;       /* bytes at its front that stem from the input's very first character */
    int32_t token;      /* -1: text */
} eng_piece;

/* All zero is an empty one.  The pieces' texts follow each other in `text`. */
typedef struct eng_splits {
    eng_bytes text;
    eng_piece *pieces;
    size_t count, room;
} eng_splits;

/* Adds a copy of the text; nothing where it is empty. */
bool eng_splits_add_text(eng_splits *splits, const char *text, size_t size, size_t front, eng_error *err);
bool eng_splits_add_token(eng_splits *splits, int32_t token, eng_error *err);

/* Opens a piece of text whose bytes the caller then appends to splits->text, and closes it. */
size_t eng_splits_open(const eng_splits *splits);
bool eng_splits_close(eng_splits *splits, size_t begin, size_t front, eng_error *err);

void eng_splits_clear(eng_splits *splits);
void eng_splits_swap(eng_splits *a, eng_splits *b);
void eng_splits_free(eng_splits *splits);

/* How many of `front` leading bytes lie in [begin, end). */
size_t eng_front_within(size_t front, size_t begin, size_t end);

#endif
