#include "vocab.h"

#include <stdlib.h>
#include <string.h>

static uint64_t mix(uint64_t value) {
    value ^= value >> 32;
    value *= 0x9E3779B97F4A7C15u;
    return value ^ value >> 29;
}

uint64_t eng_hash(const char *text, size_t size) {
    uint64_t hash = mix(size + 0x243F6A8885A308D3u);
    for (; size >= 8; text += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, text, 8);
        hash = mix(hash ^ word) + hash;
    }
    uint64_t rest = 0;
    if (size > 0) memcpy(&rest, text, size);
    return mix(hash ^ rest) + hash;
}

static const eng_vocab_entry *find_entry(const eng_vocab *vocab, const char *text, size_t size, uint64_t hash) {
    if (vocab->slot_count == 0) return NULL;
    for (size_t slot = hash & (vocab->slot_count - 1);; slot = (slot + 1) & (vocab->slot_count - 1)) {
        uint32_t index = vocab->slots[slot];
        if (index == 0) return NULL;
        const eng_vocab_entry *entry = &vocab->entries[index - 1];
        if (entry->hash == hash && entry->size == size && memcmp(vocab->texts.data + entry->begin, text, size) == 0)
            return entry;
    }
}

static void take_slot(eng_vocab *vocab, uint64_t hash, uint32_t index) {
    size_t slot = hash & (vocab->slot_count - 1);
    while (vocab->slots[slot] != 0) slot = (slot + 1) & (vocab->slot_count - 1);
    vocab->slots[slot] = index + 1;
}

/* At most half of the slots are taken, so that a search soon meets a free one. */
static bool grow_slots(eng_vocab *vocab, eng_error *err) {
    if (vocab->count * 2 < vocab->slot_count) return true;
    size_t larger = vocab->slot_count ? vocab->slot_count * 2 : 1024;
    uint32_t *slots = calloc(larger, sizeof *slots);
    if (slots == NULL) return eng_fail(err, "out of memory for a vocabulary");
    free(vocab->slots);
    vocab->slots = slots;
    vocab->slot_count = larger;
    for (size_t i = 0; i < vocab->count; i++) take_slot(vocab, vocab->entries[i].hash, (uint32_t)i);
    return true;
}

static bool grow_ids(eng_vocab *vocab, int32_t id, eng_error *err) {
    size_t need = (size_t)id + 1;
    uint32_t *by_id = eng_grow(vocab->by_id, &vocab->id_room, need, sizeof *by_id, err);
    if (by_id == NULL) return false;
    vocab->by_id = by_id;
    if (need > vocab->id_count) {
        memset(by_id + vocab->id_count, 0, (need - vocab->id_count) * sizeof *by_id);
        vocab->id_count = need;
    }
    return true;
}

/* Enough of a token's text for a message. */
static int shown(size_t size) { return size > 60 ? 60 : (int)size; }

bool eng_vocab_add(eng_vocab *vocab, const char *text, size_t size, int32_t id, eng_error *err) {
    if (id < 0 || id > ENG_TOKEN_ID_MAX)
        return eng_fail(err, "\"%.*s\": expected an id from 0 to %d, got %d", shown(size), text, ENG_TOKEN_ID_MAX, id);
    uint64_t hash = eng_hash(text, size);
    if (find_entry(vocab, text, size, hash) != NULL)
        return eng_fail(err, "\"%.*s\": a second token of this text", shown(size), text);
    size_t other_size = 0;
    const char *other = eng_vocab_text(vocab, id, &other_size);
    if (other != NULL)
        return eng_fail(err, "\"%.*s\": id %d is taken by \"%.*s\"", shown(size), text, id, shown(other_size), other);
    eng_vocab_entry *entries = eng_grow(vocab->entries, &vocab->room, vocab->count + 1, sizeof *entries, err);
    if (entries == NULL) return false;
    vocab->entries = entries;
    if (!grow_slots(vocab, err) || !grow_ids(vocab, id, err)) return false;
    entries[vocab->count] = (eng_vocab_entry){vocab->texts.size, size, hash, id};
    if (!eng_bytes_append(&vocab->texts, text, size, err)) return false;
    take_slot(vocab, hash, (uint32_t)vocab->count);
    vocab->by_id[id] = (uint32_t)++vocab->count;
    return true;
}

int32_t eng_vocab_find(const eng_vocab *vocab, const char *text, size_t size) {
    const eng_vocab_entry *entry = find_entry(vocab, text, size, eng_hash(text, size));
    return entry ? entry->id : -1;
}

const char *eng_vocab_text(const eng_vocab *vocab, int32_t id, size_t *size) {
    if (id < 0 || (size_t)id >= vocab->id_count || vocab->by_id[id] == 0) return NULL;
    const eng_vocab_entry *entry = &vocab->entries[vocab->by_id[id] - 1];
    *size = entry->size;
    return vocab->texts.data + entry->begin;
}

void eng_vocab_free(eng_vocab *vocab) {
    eng_bytes_free(&vocab->texts);
    free(vocab->entries);
    free(vocab->slots);
    free(vocab->by_id);
    *vocab = (eng_vocab){0};
}
