#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "added_tokens.h"
#include "common/json_read.h"
#include "normalizer.h"
#include "post_processor.h"
#include "pretokenizer.h"
#include "token_decoder.h"
#include "token_model.h"
#include "common/utf8.h"
#include "unicode.h"

struct eng_tokenizer {
    eng_token_model model;
    eng_normalizer *normalizer;
    eng_pretokenizer *pretokenizer;
    eng_post_processor *post_processor;
    eng_token_decoder *decoder;
    eng_added_tokens added;
    eng_tokenizer_config config;
};

struct eng_decoder {
    const eng_tokenizer *tokenizer;
    bool skip_special;
    eng_decoding *decoding;
    eng_bytes text;
};

static bool load_parts(eng_tokenizer *t, const json_t *json, eng_error *err) {
    const json_t *model, *added;
    const char *version;
    if (!json_is_object(json)) return eng_json_unexpected("the file", "", "an object", json, err);
    if (!eng_json_string_or(json, "version", "version", "1.0", &version, err)) return false;
    if (strcmp(version, "1.0") != 0) return eng_fail(err, "version: expected \"1.0\", got \"%.60s\"", version);
    if (eng_json_find(json, "model") == NULL) return eng_fail(err, "model: missing; expected an object");
    return eng_json_object(json, "model", "model", &model, err) && eng_token_model_load(model, &t->model, err) &&
           eng_normalizer_load(json_object_get(json, "normalizer"), &t->normalizer, err) &&
           eng_pretokenizer_load(json_object_get(json, "pre_tokenizer"), &t->pretokenizer, err) &&
           eng_post_processor_load(json_object_get(json, "post_processor"), &t->post_processor, err) &&
           eng_token_decoder_load(json_object_get(json, "decoder"), &t->decoder, err) &&
           eng_json_array_or_null(json, "added_tokens", "added_tokens", &added, err) &&
           eng_added_tokens_load(added, &t->model.vocab, t->normalizer, &t->added, err);
}

static bool load_files(eng_tokenizer *t, const char *model_dir, eng_error *err) {
    eng_bytes path = {0};
    json_t *json = NULL;
    bool ok = eng_bytes_append_string(&path, model_dir, err) && eng_bytes_append(&path, "/tokenizer.json", 16, err) &&
              eng_json_load_file(path.data, &json, err);
    if (ok && !load_parts(t, json, err)) ok = eng_fail_in(err, path.data);
    json_decref(json);
    eng_bytes_free(&path);
    return ok && eng_tokenizer_config_load(model_dir, &t->config, err);
}

bool eng_tokenizer_load(const char *model_dir, eng_tokenizer **out, eng_error *err) {
    *out = calloc(1, sizeof **out);
    if (*out == NULL) return eng_fail(err, "out of memory");
    if (load_files(*out, model_dir, err)) return true;
    eng_tokenizer_free(*out);
    *out = NULL;
    return false;
}

void eng_tokenizer_free(eng_tokenizer *t) {
    if (t == NULL) return;
    eng_token_model_free(&t->model);
    eng_normalizer_free(t->normalizer);
    eng_pretokenizer_free(t->pretokenizer);
    eng_post_processor_free(t->post_processor);
    eng_token_decoder_free(t->decoder);
    eng_added_tokens_free(&t->added);
    eng_tokenizer_config_free(&t->config);
    free(t);
}

/* Working storage of one encoding. */
typedef struct encoding {
    eng_bytes text;
    eng_splits splits, spare;
    eng_spans spans;
    eng_tokens tokens;
} encoding;

static void free_encoding(encoding *e) {
    eng_bytes_free(&e->text);
    eng_splits_free(&e->splits);
    eng_splits_free(&e->spare);
    eng_spans_free(&e->spans);
    eng_tokens_free(&e->tokens);
}

/* Normalises the pieces that are text still. */
static bool normalise(const eng_tokenizer *t, encoding *e, eng_error *err) {
    eng_splits_clear(&e->spare);
    for (size_t i = 0; i < e->splits.count; i++) {
        const eng_piece *piece = &e->splits.pieces[i];
        size_t front = piece->front;
        e->text.size = 0;
        bool ok = piece->token >= 0
                      ? eng_splits_add_token(&e->spare, piece->token, err)
                      : eng_bytes_append(&e->text, e->splits.text.data + piece->begin, piece->size, err) &&
                            eng_normalizer_apply(t->normalizer, &e->text, &front, &e->spans, err) &&
                            eng_splits_add_text(&e->spare, e->text.data, e->text.size, front, err);
        if (!ok) return false;
    }
    eng_splits_swap(&e->splits, &e->spare);
    return true;
}

static bool cut_added(const eng_tokenizer *t, bool normalized, encoding *e, eng_error *err) {
    eng_splits_clear(&e->spare);
    if (!eng_added_tokens_split(&t->added, normalized, &e->splits, &e->spare, err)) return false;
    eng_splits_swap(&e->splits, &e->spare);
    return true;
}

static bool start_encoding(const char *text, size_t size, encoding *e, eng_error *err) {
    size_t length = 0;
    if (!eng_utf8_append_repaired(&e->text, text, size, err)) return false;
    if (e->text.size > 0) eng_utf8_decode(e->text.data, e->text.size, &length);
    return eng_splits_add_text(&e->splits, e->text.data, e->text.size, length, err);
}

bool eng_tokenizer_encode(const eng_tokenizer *t, const char *text, size_t size, bool add_special, eng_tokens *out,
                          eng_error *err) {
    encoding e = {0};
    bool ok = start_encoding(text, size, &e, err) && cut_added(t, false, &e, err) && normalise(t, &e, err) &&
              cut_added(t, true, &e, err) &&
              eng_pretokenizer_apply(t->pretokenizer, &e.splits, &e.spare, &e.spans, err) &&
              eng_token_model_encode(&t->model, &e.splits, &e.tokens, err) &&
              eng_post_processor_apply(t->post_processor, add_special, &e.tokens, err) &&
              eng_tokens_append(out, e.tokens.ids, e.tokens.count, err);
    free_encoding(&e);
    return ok;
}

#define SPACE_MARK "\xE2\x96\x81" /* U+2581 */

enum { MOST_SPACES_TRIED = 8 };

static size_t last_space(const char *text, size_t size) {
    while (size > 0 && text[size - 1] != ' ' && text[size - 1] != '\n') size--;
    return size > 0 ? size - 1 : 0;
}

/* Words between white space, each tokenised alone. */
static bool parts_words(const eng_tokenizer *t) {
    return eng_normalizer_is_none(t->normalizer) && eng_pretokenizer_drops_space(t->pretokenizer) &&
           !eng_added_tokens_hold_space(&t->added);
}

/* Text in one word with marks for its spaces.  *prepends: a text gets a mark in front, even if it has one. */
static bool marks_spaces(const eng_tokenizer *t, bool *prepends) {
    *prepends = false;
    if (t->added.normalized.count > 0) return false;
    if (eng_normalizer_is_none(t->normalizer)) return eng_pretokenizer_marks_spaces(t->pretokenizer, SPACE_MARK);
    return eng_normalizer_marks_spaces(t->normalizer, SPACE_MARK, prepends) &&
           eng_pretokenizer_cuts_spaces_only(t->pretokenizer);
}

static size_t character_before(const char *text, size_t end) {
    size_t begin = end - 1;
    while (begin > 0 && ((unsigned char)text[begin] & 0xC0) == 0x80) begin--;
    return begin;
}

/* The last space between two characters that are none, in text that is sure to hold no added token, which no token of
 * the vocabulary joins to what is before it; 0: none among the last few. */
static size_t unjoined_space(const eng_tokenizer *t, const char *text, const eng_added_settled *added) {
    size_t tried = 0, length;
    for (size_t at = added->sure; at-- > added->open + 1 && tried < MOST_SPACES_TRIED;) {
        if (text[at] != ' ' || at + 1 >= added->sure) continue;
        size_t before = character_before(text, at);
        if (before < added->open || eng_unicode_is_space(eng_utf8_decode(text + before, at - before, &length)) ||
            eng_unicode_is_space(eng_utf8_decode(text + at + 1, added->sure - at - 1, &length)))
            continue;
        tried++;
        if (eng_token_model_never_joins(&t->model, text + before, at - before, SPACE_MARK, sizeof SPACE_MARK - 1)) return at;
    }
    return 0;
}

eng_settled eng_tokenizer_settled(const eng_tokenizer *t, const char *text, size_t size) {
    bool prepends;
    if (!eng_utf8_is_valid(text, size)) return (eng_settled){0};
    eng_added_settled added = eng_added_tokens_settled(&t->added, text, size);
    size_t space = parts_words(t) ? last_space(text, size) : 0;
    if (space > added.cut) return (eng_settled){space, space};
    space = marks_spaces(t, &prepends) ? unjoined_space(t, text, &added) : 0;
    if (space > added.cut) return (eng_settled){space, space + prepends};
    return (eng_settled){added.cut, added.cut};
}

/* The text that the decoder gets for an id; NULL where the id has no token. */
static const char *decoded_text(const eng_tokenizer *t, int32_t id, bool skip_special, size_t *size) {
    const eng_added_token *added = eng_added_tokens_by_id(&t->added, id);
    if (added == NULL) return eng_vocab_text(&t->model.vocab, id, size);
    if (skip_special && added->special) return NULL;
    *size = added->content_size;
    return t->added.texts.data + added->content_begin;
}

bool eng_tokenizer_decode(const eng_tokenizer *t, const int32_t *ids, size_t count, bool skip_special, eng_bytes *out,
                          eng_error *err) {
    eng_decoding *decoding;
    if (!eng_decoding_start(t->decoder, &decoding, err)) return false;
    bool ok = true;
    for (size_t i = 0; ok && i < count; i++) {
        size_t size;
        const char *text = decoded_text(t, ids[i], skip_special, &size);
        if (text != NULL) ok = eng_decoding_push(decoding, text, size, out, err);
    }
    ok = ok && eng_decoding_finish(decoding, out, err);
    eng_decoding_free(decoding);
    return ok;
}

size_t eng_tokenizer_vocab_size(const eng_tokenizer *t) {
    size_t count = t->model.vocab.count;
    for (size_t i = 0; i < t->added.count; i++) {
        const eng_added_token *token = &t->added.list[i];
        count += eng_vocab_find(&t->model.vocab, t->added.texts.data + token->content_begin, token->content_size) < 0;
    }
    return count;
}

int32_t eng_tokenizer_token_id(const eng_tokenizer *t, const char *text) {
    int32_t id = eng_added_tokens_find(&t->added, text, strlen(text));
    return id >= 0 ? id : eng_vocab_find(&t->model.vocab, text, strlen(text));
}

const char *eng_tokenizer_token_text(const eng_tokenizer *t, int32_t id, size_t *size) {
    const eng_added_token *added = eng_added_tokens_by_id(&t->added, id);
    if (added == NULL) return eng_vocab_text(&t->model.vocab, id, size);
    *size = added->content_size;
    return t->added.texts.data + added->content_begin;
}

bool eng_tokenizer_is_special(const eng_tokenizer *t, int32_t id) {
    const eng_added_token *added = eng_added_tokens_by_id(&t->added, id);
    return added != NULL && added->special;
}

static int32_t id_or_none(const eng_tokenizer *t, const char *text) {
    return text == NULL ? -1 : eng_tokenizer_token_id(t, text);
}

int32_t eng_tokenizer_bos(const eng_tokenizer *t) { return id_or_none(t, t->config.bos_token); }

int32_t eng_tokenizer_eos(const eng_tokenizer *t) { return id_or_none(t, t->config.eos_token); }

int32_t eng_tokenizer_pad(const eng_tokenizer *t) { return id_or_none(t, t->config.pad_token); }

const eng_tokenizer_config *eng_tokenizer_get_config(const eng_tokenizer *t) { return &t->config; }

bool eng_decoder_start(const eng_tokenizer *tokenizer, bool skip_special, eng_decoder **out, eng_error *err) {
    *out = calloc(1, sizeof **out);
    if (*out == NULL) return eng_fail(err, "out of memory");
    (*out)->tokenizer = tokenizer;
    (*out)->skip_special = skip_special;
    if (eng_decoding_start(tokenizer->decoder, &(*out)->decoding, err)) return true;
    eng_decoder_free(*out);
    *out = NULL;
    return false;
}

static void give_out(const eng_decoder *decoder, const char **text, size_t *size) {
    *text = decoder->text.data ? decoder->text.data : "";
    *size = decoder->text.size;
}

bool eng_decoder_push(eng_decoder *decoder, int32_t id, const char **text, size_t *size, eng_error *err) {
    size_t token_size;
    const char *token = decoded_text(decoder->tokenizer, id, decoder->skip_special, &token_size);
    decoder->text.size = 0;
    bool ok = token == NULL || eng_decoding_push(decoder->decoding, token, token_size, &decoder->text, err);
    give_out(decoder, text, size);
    return ok;
}

bool eng_decoder_finish(eng_decoder *decoder, const char **text, size_t *size, eng_error *err) {
    decoder->text.size = 0;
    bool ok = eng_decoding_finish(decoder->decoding, &decoder->text, err);
    give_out(decoder, text, size);
    return ok;
}

void eng_decoder_free(eng_decoder *decoder) {
    if (decoder == NULL) return;
    eng_decoding_free(decoder->decoding);
    eng_bytes_free(&decoder->text);
    free(decoder);
}
