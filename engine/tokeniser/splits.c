#include "splits.h"

#include <stdlib.h>

static bool add(eng_splits *splits, eng_piece piece, eng_error *err) {
    eng_piece *pieces = eng_grow(splits->pieces, &splits->room, splits->count + 1, sizeof *pieces, err);
    if (pieces == NULL) return false;
    splits->pieces = pieces;
    pieces[splits->count++] = piece;
    return true;
}

size_t eng_splits_open(const eng_splits *splits) { return splits->text.size; }

bool eng_splits_close(eng_splits *splits, size_t begin, size_t front, eng_error *err) {
    size_t size = splits->text.size - begin;
    return size == 0 || add(splits, (eng_piece){begin, size, front, -1}, err);
}

bool eng_splits_add_text(eng_splits *splits, const char *text, size_t size, size_t front, eng_error *err) {
    size_t begin = eng_splits_open(splits);
    return eng_bytes_append(&splits->text, text, size, err) && eng_splits_close(splits, begin, front, err);
}

bool eng_splits_add_token(eng_splits *splits, int32_t token, eng_error *err) {
    return add(splits, (eng_piece){splits->text.size, 0, 0, token}, err);
}

void eng_splits_clear(eng_splits *splits) {
    splits->text.size = 0;
    splits->count = 0;
}

void eng_splits_swap(eng_splits *a, eng_splits *b) {
    eng_splits held = *a;
    *a = *b;
    *b = held;
}

void eng_splits_free(eng_splits *splits) {
    eng_bytes_free(&splits->text);
    free(splits->pieces);
    *splits = (eng_splits){0};
}

size_t eng_front_within(size_t front, size_t begin, size_t end) {
    if (front <= begin) return 0;
    return (front < end ? front : end) - begin;
}
