#include "bpe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/json_read.h"
#include "common/utf8.h"

/* A run of the word's bytes that has a token.  `previous` and `next` link the runs left; a run that became part of
 * its left neighbour has id -1. */
typedef struct symbol {
    int32_t id, previous, next;
} symbol;

/* A pair that may be merged: the run at `place` and the one after it. */
typedef struct candidate {
    uint32_t rank;
    int32_t place, merged;
} candidate;

static size_t pair_slot(int32_t left, int32_t right, size_t slots) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    key ^= key >> 31;
    key *= 0x9E3779B97F4A7C15u;
    return (size_t)(key ^ key >> 32) & (slots - 1);
}

static const eng_merge *find_merge(const eng_bpe *bpe, int32_t left, int32_t right) {
    for (size_t slot = pair_slot(left, right, bpe->merge_slots);; slot = (slot + 1) & (bpe->merge_slots - 1)) {
        const eng_merge *merge = &bpe->merges[slot];
        if (merge->left < 0) return NULL;
        if (merge->left == left && merge->right == right) return merge;
    }
}

/* Of two merges of one pair the later one holds, as in the package. */
static void put_merge(eng_bpe *bpe, eng_merge merge) {
    size_t slot = pair_slot(merge.left, merge.right, bpe->merge_slots);
    while (bpe->merges[slot].left >= 0 &&
           !(bpe->merges[slot].left == merge.left && bpe->merges[slot].right == merge.right))
        slot = (slot + 1) & (bpe->merge_slots - 1);
    bpe->merges[slot] = merge;
}

static bool make_slots(eng_bpe *bpe, size_t merges, eng_error *err) {
    bpe->merge_slots = 16;
    while (bpe->merge_slots < merges * 2) bpe->merge_slots *= 2;
    bpe->merges = malloc(bpe->merge_slots * sizeof *bpe->merges);
    if (bpe->merges == NULL) return eng_fail(err, "out of memory for %zu merges", merges);
    for (size_t i = 0; i < bpe->merge_slots; i++) bpe->merges[i] = (eng_merge){-1, -1, -1, 0};
    return true;
}

/* The two halves of one entry: ["a", "b"], or the older "a b". */
typedef struct merge_text {
    const char *left, *right;
    size_t left_size, right_size;
} merge_text;

static bool split_merge(const json_t *entry, merge_text *out) {
    if (json_is_array(entry)) {
        const json_t *left = json_array_get(entry, 0), *right = json_array_get(entry, 1);
        if (json_array_size(entry) != 2 || !json_is_string(left) || !json_is_string(right)) return false;
        *out = (merge_text){json_string_value(left), json_string_value(right), json_string_length(left),
                            json_string_length(right)};
        return true;
    }
    if (!json_is_string(entry)) return false;
    const char *text = json_string_value(entry), *end = text + json_string_length(entry);
    const char *space = memchr(text, ' ', (size_t)(end - text));
    if (space == NULL || memchr(space + 1, ' ', (size_t)(end - space - 1)) != NULL) return false;
    *out = (merge_text){text, space + 1, (size_t)(space - text), (size_t)(end - space - 1)};
    return true;
}

static bool fail_token(size_t index, const char *text, size_t size, eng_error *err) {
    return eng_fail(err, "model: merges[%zu]: \"%.*s\" is not in the vocabulary", index, size > 60 ? 60 : (int)size,
                    text);
}

static bool add_merge(eng_bpe *bpe, const eng_vocab *vocab, const json_t *entry, size_t index, uint32_t rank,
                      eng_bytes *joined, eng_error *err) {
    merge_text text;
    if (!split_merge(entry, &text)) {
        char where[48];
        snprintf(where, sizeof where, "model: merges[%zu]", index);
        return eng_json_unexpected(where, "", "two tokens, [\"a\", \"b\"] or \"a b\"", entry, err);
    }
    eng_merge merge = {eng_vocab_find(vocab, text.left, text.left_size),
                       eng_vocab_find(vocab, text.right, text.right_size), -1, rank};
    if (merge.left < 0) return fail_token(index, text.left, text.left_size, err);
    if (merge.right < 0) return fail_token(index, text.right, text.right_size, err);
    joined->size = 0;
    if (!eng_bytes_append(joined, text.left, text.left_size, err) ||
        !eng_bytes_append(joined, text.right, text.right_size, err))
        return false;
    merge.merged = eng_vocab_find(vocab, joined->data, joined->size);
    if (merge.merged < 0) return fail_token(index, joined->data, joined->size, err);
    put_merge(bpe, merge);
    return true;
}

static bool is_version_line(const json_t *entry) {
    return json_is_string(entry) && strncmp(json_string_value(entry), "#version", 8) == 0;
}

static bool load_merges(eng_bpe *bpe, const json_t *model, const eng_vocab *vocab, eng_error *err) {
    const json_t *merges;
    eng_bytes joined = {0};
    if (!eng_json_array(model, "model", "merges", &merges, err)) return false;
    size_t count = json_array_size(merges);
    bool ok = count < UINT32_MAX ? make_slots(bpe, count, err) : eng_fail(err, "model: merges: too many");
    uint32_t rank = 0;
    for (size_t i = 0; ok && i < count; i++) {
        const json_t *entry = json_array_get(merges, i);
        if (!is_version_line(entry)) ok = add_merge(bpe, vocab, entry, i, rank++, &joined, err);
    }
    eng_bytes_free(&joined);
    return ok;
}

/* Options that the package has and that change what comes out. */
static bool refuse_unsupported(const json_t *model, eng_error *err) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    double dropout;
    if (!eng_json_double_or(model, "model", "dropout", 0, &dropout, err)) return false;
    if (dropout != 0) return eng_fail(err, "model: dropout: %g is not supported; expected null or 0", dropout);
    for (size_t i = 0; i < 2; i++) {
        const char *affix;
        if (!eng_json_string_or(model, "model", affixes[i], "", &affix, err)) return false;
        if (affix[0] != '\0')
            return eng_fail(err, "model: %s: \"%.60s\" is not supported; expected null or \"\"", affixes[i], affix);
    }
    return true;
}

static bool load_unk(eng_bpe *bpe, const json_t *model, const eng_vocab *vocab, eng_error *err) {
    const char *unk;
    bpe->unk_id = -1;
    if (!eng_json_string_or(model, "model", "unk_token", NULL, &unk, err)) return false;
    if (unk == NULL) return true;
    bpe->unk_token = malloc(strlen(unk) + 1);
    if (bpe->unk_token == NULL) return eng_fail(err, "out of memory");
    strcpy(bpe->unk_token, unk);
    bpe->unk_id = eng_vocab_find(vocab, unk, strlen(unk));
    return true;
}

static void find_byte_tokens(eng_bpe *bpe, const eng_vocab *vocab) {
    for (unsigned byte = 0; byte < 256; byte++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", byte);
        bpe->byte_ids[byte] = eng_vocab_find(vocab, name, 6);
    }
}

bool eng_bpe_load(const json_t *model, const eng_vocab *vocab, eng_bpe *out, eng_error *err) {
    *out = (eng_bpe){0};
    find_byte_tokens(out, vocab);
    bool ok = refuse_unsupported(model, err) && load_unk(out, model, vocab, err) &&
              eng_json_bool_or(model, "model", "fuse_unk", false, &out->fuse_unk, err) &&
              eng_json_bool_or(model, "model", "byte_fallback", false, &out->byte_fallback, err) &&
              eng_json_bool_or(model, "model", "ignore_merges", false, &out->ignore_merges, err) &&
              load_merges(out, model, vocab, err);
    if (!ok) eng_bpe_free(out);
    return ok;
}

void eng_bpe_free(eng_bpe *bpe) {
    free(bpe->merges);
    free(bpe->unk_token);
    *bpe = (eng_bpe){0};
}

static void add_symbol(eng_bpe_space *space, int32_t id) {
    int32_t place = (int32_t)space->symbol_count++;
    space->symbols[place] = (symbol){id, place - 1, place + 1};
}

/* The tokens of one character's bytes, if all have one. */
static bool add_bytes(const eng_bpe *bpe, const char *text, size_t size, eng_bpe_space *space) {
    for (size_t i = 0; i < size; i++)
        if (bpe->byte_ids[(unsigned char)text[i]] < 0) return false;
    for (size_t i = 0; i < size; i++) add_symbol(space, bpe->byte_ids[(unsigned char)text[i]]);
    return true;
}

/* An unknown character's token is put down when the next known or unknown one is seen, but not at byte tokens;
 * so the package does, and the order of its tokens follows. */
static bool add_characters(const eng_bpe *bpe, const eng_vocab *vocab, const char *word, size_t size,
                           eng_bpe_space *space, eng_error *err) {
    bool has_unk = false;
    for (size_t at = 0, length; at < size; at += length) {
        eng_utf8_decode(word + at, size - at, &length);
        int32_t id = eng_vocab_find(vocab, word + at, length);
        if (id < 0 && bpe->byte_fallback && add_bytes(bpe, word + at, length, space)) continue;
        if (id < 0 && bpe->unk_token == NULL) continue;
        if (has_unk && (id >= 0 || !bpe->fuse_unk)) add_symbol(space, bpe->unk_id);
        has_unk = id < 0;
        if (id >= 0) {
            add_symbol(space, id);
        } else if (bpe->unk_id < 0) {
            return eng_fail(err, "the text holds \"%.*s\", which has no token, and unk_token \"%.60s\" is not in "
                            "the vocabulary", (int)length, word + at, bpe->unk_token);
        }
    }
    if (has_unk) add_symbol(space, bpe->unk_id);
    if (space->symbol_count > 0) space->symbols[space->symbol_count - 1].next = -1;
    return true;
}

static bool comes_before(candidate a, candidate b) {
    return a.rank != b.rank ? a.rank < b.rank : a.place < b.place;
}

static void sift_down(candidate *heap, size_t count, size_t at) {
    candidate moved = heap[at];
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && comes_before(heap[child + 1], heap[child])) child++;
        if (!comes_before(heap[child], moved)) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

static void push(eng_bpe_space *space, candidate added) {
    size_t at = space->heap_count++;
    for (size_t parent; at > 0 && comes_before(added, space->heap[parent = (at - 1) / 2]); at = parent)
        space->heap[at] = space->heap[parent];
    space->heap[at] = added;
}

static candidate pop(eng_bpe_space *space) {
    candidate top = space->heap[0];
    space->heap[0] = space->heap[--space->heap_count];
    if (space->heap_count > 0) sift_down(space->heap, space->heap_count, 0);
    return top;
}

static const eng_merge *merge_at(const eng_bpe *bpe, const symbol *symbols, int32_t place) {
    int32_t next = symbols[place].next;
    return next < 0 ? NULL : find_merge(bpe, symbols[place].id, symbols[next].id);
}

static void collect_candidates(const eng_bpe *bpe, eng_bpe_space *space) {
    space->heap_count = 0;
    for (size_t i = 0; i < space->symbol_count; i++) {
        const eng_merge *merge = merge_at(bpe, space->symbols, (int32_t)i);
        if (merge != NULL) space->heap[space->heap_count++] = (candidate){merge->rank, (int32_t)i, merge->merged};
    }
    for (size_t i = space->heap_count / 2; i-- > 0;) sift_down(space->heap, space->heap_count, i);
}

static void push_merge(const eng_bpe *bpe, eng_bpe_space *space, int32_t place) {
    const eng_merge *merge = place < 0 ? NULL : merge_at(bpe, space->symbols, place);
    if (merge != NULL) push(space, (candidate){merge->rank, place, merge->merged});
}

/* Candidates whose pair has changed meanwhile are passed over: each merge removes one run and adds two candidates
 * at most, so the heap holds at most three times the runs. */
static void merge_all(const eng_bpe *bpe, eng_bpe_space *space) {
    symbol *symbols = space->symbols;
    collect_candidates(bpe, space);
    while (space->heap_count > 0) {
        candidate top = pop(space);
        symbol *left = &symbols[top.place];
        if (left->id < 0) continue;
        const eng_merge *merge = merge_at(bpe, symbols, top.place);
        if (merge == NULL || merge->merged != top.merged) continue;
        symbol *right = &symbols[left->next];
        left->id = top.merged;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) symbols[left->next].previous = top.place;
        push_merge(bpe, space, left->previous);
        push_merge(bpe, space, top.place);
    }
}

static bool reserve(eng_bpe_space *space, size_t size, eng_error *err) {
    if (size > INT32_MAX / 4) return eng_fail(err, "a text of %zu bytes is too long", size);
    symbol *symbols = eng_grow(space->symbols, &space->symbol_room, size, sizeof *symbols, err);
    if (symbols == NULL) return false;
    space->symbols = symbols;
    candidate *heap = eng_grow(space->heap, &space->heap_room, 3 * size, sizeof *heap, err);
    if (heap == NULL) return false;
    space->heap = heap;
    return true;
}

bool eng_bpe_encode(const eng_bpe *bpe, const eng_vocab *vocab, const char *word, size_t size, eng_bpe_space *space,
                    eng_tokens *out, eng_error *err) {
    int32_t whole = bpe->ignore_merges ? eng_vocab_find(vocab, word, size) : -1;
    if (whole >= 0) return eng_tokens_add(out, whole, err);
    space->symbol_count = 0;
    if (!reserve(space, size, err) || !add_characters(bpe, vocab, word, size, space, err)) return false;
    merge_all(bpe, space);
    if (!eng_tokens_reserve(out, space->symbol_count, err)) return false;
    for (size_t i = 0; i < space->symbol_count; i++)
        if (space->symbols[i].id >= 0) out->ids[out->count++] = space->symbols[i].id;
    return true;
}

void eng_bpe_space_free(eng_bpe_space *space) {
    free(space->symbols);
    free(space->heap);
    *space = (eng_bpe_space){0};
}
