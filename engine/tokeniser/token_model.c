#include "token_model.h"

#include <stdlib.h>
#include <string.h>

#include "common/json_read.h"

/* Words seen before in the same text, by hash: their tokens stand in the output already.  A newer word takes the
 * place of an older one. */
typedef struct seen_word {
    const char *text;
    size_t size, first, count;
} seen_word;

#define SEEN_WORDS 4096
#define SEEN_WORD_SIZE 64 /* longer words seldom come again */

static bool load_vocab(const json_t *model, eng_vocab *out, eng_error *err) {
    const json_t *vocab;
    if (!eng_json_object(model, "model", "vocab", &vocab, err)) return false;
    for (void *at = json_object_iter((json_t *)vocab); at; at = json_object_iter_next((json_t *)vocab, at)) {
        const char *text = json_object_iter_key(at);
        const json_t *id = json_object_iter_value(at);
        json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value > ENG_TOKEN_ID_MAX) {
            eng_json_unexpected("model: vocab", text, "an id from 0 to 16777215", id, err);
            return false;
        }
        if (!eng_vocab_add(out, text, json_object_iter_key_len(at), (int32_t)value, err))
            return eng_fail_in(err, "model: vocab");
    }
    return true;
}

static bool load_word_level(const json_t *model, eng_token_model *out, eng_error *err) {
    const char *unk;
    if (!eng_json_string(model, "model", "unk_token", &unk, err)) return false;
    out->unk_token = malloc(strlen(unk) + 1);
    if (out->unk_token == NULL) return eng_fail(err, "out of memory");
    strcpy(out->unk_token, unk);
    out->unk_id = eng_vocab_find(&out->vocab, unk, strlen(unk));
    return true;
}

bool eng_token_model_load(const json_t *model, eng_token_model *out, eng_error *err) {
    const char *type;
    *out = (eng_token_model){0};
    /* Files older than the field are BPE where they have merges. */
    const char *fallback = eng_json_find(model, "merges") ? "BPE" : NULL;
    if (!eng_json_string_or(model, "model", "type", fallback, &type, err)) return false;
    if (type == NULL) return eng_fail(err, "model: type: missing; supported: BPE, WordLevel");
    out->is_bpe = strcmp(type, "BPE") == 0;
    if (!out->is_bpe && strcmp(type, "WordLevel") != 0)
        return eng_fail(err, "model: unknown type \"%.60s\"; supported: BPE, WordLevel", type);
    bool ok = load_vocab(model, &out->vocab, err) &&
              (out->is_bpe ? eng_bpe_load(model, &out->vocab, &out->bpe, err) : load_word_level(model, out, err));
    if (!ok) eng_token_model_free(out);
    return ok;
}

void eng_token_model_free(eng_token_model *model) {
    eng_vocab_free(&model->vocab);
    eng_bpe_free(&model->bpe);
    free(model->unk_token);
    *model = (eng_token_model){0};
}

static bool encode_word(const eng_token_model *model, const char *word, size_t size, eng_bpe_space *space,
                        eng_tokens *out, eng_error *err) {
    if (model->is_bpe) return eng_bpe_encode(&model->bpe, &model->vocab, word, size, space, out, err);
    int32_t id = eng_vocab_find(&model->vocab, word, size);
    if (id < 0) id = model->unk_id;
    if (id < 0)
        return eng_fail(err, "the text holds \"%.*s\", which has no token, and unk_token \"%.60s\" is not in the "
                        "vocabulary", size > 60 ? 60 : (int)size, word, model->unk_token);
    return eng_tokens_add(out, id, err);
}

static bool encode_or_repeat(const eng_token_model *model, const char *word, size_t size, seen_word *seen,
                             eng_bpe_space *space, eng_tokens *out, eng_error *err) {
    seen_word *slot = &seen[eng_hash(word, size) % SEEN_WORDS];
    if (slot->text != NULL && slot->size == size && memcmp(slot->text, word, size) == 0)
        return eng_tokens_reserve(out, slot->count, err) &&
               eng_tokens_append(out, out->ids + slot->first, slot->count, err);
    size_t first = out->count;
    if (!encode_word(model, word, size, space, out, err)) return false;
    *slot = (seen_word){word, size, first, out->count - first};
    return true;
}

bool eng_token_model_encode(const eng_token_model *model, const eng_splits *splits, eng_tokens *out, eng_error *err) {
    eng_bpe_space space = {0};
    /* Not worth its set-up for a few words; where memory is out, it can be done without. */
    seen_word *seen = splits->count > 256 ? calloc(SEEN_WORDS, sizeof *seen) : NULL;
    bool ok = true;
    for (size_t i = 0; ok && i < splits->count; i++) {
        const eng_piece *piece = &splits->pieces[i];
        const char *word = splits->text.data + piece->begin;
        if (piece->token >= 0) {
            ok = eng_tokens_add(out, piece->token, err);
        } else if (seen != NULL && piece->size <= SEEN_WORD_SIZE) {
            ok = encode_or_repeat(model, word, piece->size, seen, &space, out, err);
        } else {
            ok = encode_word(model, word, piece->size, &space, out, err);
        }
    }
    free(seen);
    eng_bpe_space_free(&space);
    return ok;
}

static bool holds(const char *text, size_t size, const char *part, size_t part_size) {
    for (size_t at = 0; at + part_size <= size; at++)
        if (memcmp(text + at, part, part_size) == 0) return true;
    return false;
}

/* Whatever is merged is in the vocabulary.  The left character has to be there itself: an unknown one's token may be
 * put down later. */
bool eng_token_model_never_joins(const eng_token_model *model, const char *left, size_t left_size, const char *right,
                                 size_t right_size) {
    char both[8];
    if (!model->is_bpe || model->bpe.ignore_merges || left_size + right_size > sizeof both ||
        eng_vocab_find(&model->vocab, left, left_size) < 0)
        return false;
    memcpy(both, left, left_size);
    memcpy(both + left_size, right, right_size);
    for (size_t i = 0; i < model->vocab.count; i++) {
        const eng_vocab_entry *entry = &model->vocab.entries[i];
        if (holds(model->vocab.texts.data + entry->begin, entry->size, both, left_size + right_size)) return false;
    }
    return true;
}
