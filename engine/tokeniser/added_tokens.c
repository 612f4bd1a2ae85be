#include "added_tokens.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/json_read.h"
#include "unicode.h"
#include "common/utf8.h"

#define CONTENT_MAX 4096

/* Children of a node are a list; 0 ends it. */
typedef struct tree_node {
    uint32_t child, sibling;
    int32_t token; /* index + 1 of the token that ends here, or 0 */
    unsigned char byte;
} tree_node;

static uint32_t find_child(const eng_token_tree *tree, uint32_t parent, unsigned char byte) {
    if (parent == 0) return tree->first[byte];
    uint32_t node = tree->nodes[parent].child;
    while (node != 0 && tree->nodes[node].byte != byte) node = tree->nodes[node].sibling;
    return node;
}

static bool add_child(eng_token_tree *tree, uint32_t parent, unsigned char byte, uint32_t *out, eng_error *err) {
    size_t need = tree->count == 0 ? 2 : tree->count + 1; /* the first one brings the root along */
    tree_node *nodes = eng_grow(tree->nodes, &tree->room, need, sizeof *nodes, err);
    if (nodes == NULL) return false;
    tree->nodes = nodes;
    if (tree->count == 0) nodes[0] = (tree_node){0};
    uint32_t added = (uint32_t)(need - 1);
    tree->count = need;
    nodes[added] = (tree_node){.byte = byte};
    if (parent == 0) {
        tree->first[byte] = added;
    } else {
        nodes[added].sibling = nodes[parent].child;
        nodes[parent].child = added;
    }
    *out = added;
    return true;
}

static bool add_to_tree(eng_token_tree *tree, const char *text, size_t size, size_t index, eng_error *err) {
    uint32_t node = 0;
    for (size_t i = 0; i < size; i++) {
        unsigned char byte = (unsigned char)text[i];
        uint32_t child = find_child(tree, node, byte);
        if (child == 0 && !add_child(tree, node, byte, &child, err)) return false;
        node = child;
    }
    tree->nodes[node].token = (int32_t)index + 1;
    return true;
}

/* The longest token at the front of `text`; its index, or -1. */
static int32_t longest_match(const eng_token_tree *tree, const char *text, size_t size, size_t *length) {
    int32_t best = 0;
    uint32_t node = 0;
    for (size_t i = 0; i < size; i++) {
        node = find_child(tree, node, (unsigned char)text[i]);
        if (node == 0) break;
        if (tree->nodes[node].token == 0) continue;
        best = tree->nodes[node].token;
        *length = i + 1;
    }
    return best - 1;
}

static const char *content(const eng_added_tokens *added, const eng_added_token *token) {
    return added->texts.data + token->content_begin;
}

static bool load_flags(const json_t *json, const char *where, eng_added_token *out, eng_error *err) {
    return eng_json_bool(json, where, "single_word", &out->single_word, err) &&
           eng_json_bool(json, where, "lstrip", &out->lstrip, err) &&
           eng_json_bool(json, where, "rstrip", &out->rstrip, err) &&
           eng_json_bool(json, where, "normalized", &out->normalized, err) &&
           eng_json_bool(json, where, "special", &out->special, err);
}

static bool normalise_content(eng_added_tokens *added, const eng_normalizer *normalizer, eng_added_token *token,
                              const char *where, eng_error *err) {
    eng_bytes text = {0};
    eng_spans spans = {0};
    size_t front = token->content_size;
    bool ok = eng_bytes_append(&text, content(added, token), token->content_size, err) &&
              eng_normalizer_apply(normalizer, &text, &front, &spans, err);
    token->normal_begin = added->texts.size;
    token->normal_size = text.size;
    ok = ok && eng_bytes_append(&added->texts, text.data, text.size, err);
    if (ok && text.size == 0) ok = eng_fail(err, "%s: content: the normalizer leaves nothing of it", where);
    eng_spans_free(&spans);
    eng_bytes_free(&text);
    return ok;
}

/* The package takes a token's id from the vocabulary, and counts on from there for the others; a file that says
 * otherwise would give ids that its model does not know. */
static bool check_id(int32_t id, const char *text, size_t size, const eng_vocab *vocab, int32_t *next,
                     const char *where, eng_error *err) {
    int32_t known = eng_vocab_find(vocab, text, size);
    int32_t expected = known >= 0 ? known : *next;
    if (id != expected)
        return eng_fail(err, "%s: id: expected %d (%s), got %d", where, expected,
                        known >= 0 ? "the vocabulary's id of this text" : "the next free one", id);
    if (known < 0) ++*next;
    return true;
}

/* A second entry of the same content takes the place of the first, and stays special if that was. */
static bool keep_token(eng_added_tokens *added, eng_added_token token, bool is_again, const char *text, size_t size,
                       eng_error *err) {
    if (is_again) {
        eng_added_token *first = &added->list[added->contents.by_id[token.id] - 1];
        token.special |= first->special;
        *first = token;
        return true;
    }
    eng_added_token *list = eng_grow(added->list, &added->room, added->count + 1, sizeof *list, err);
    if (list == NULL) return false;
    added->list = list;
    if (!eng_vocab_add(&added->contents, text, size, token.id, err)) return false;
    list[added->count++] = token;
    return true;
}

static bool load_token(eng_added_tokens *added, const json_t *json, const char *where, const eng_vocab *vocab,
                       const eng_normalizer *normalizer, int32_t *next, eng_error *err) {
    eng_added_token token = {0};
    const char *text;
    size_t size;
    int64_t id;
    if (!json_is_object(json)) return eng_json_unexpected(where, "", "an object", json, err);
    if (!eng_json_text(json, where, "content", &text, &size, err)) return false;
    if (!eng_json_int(json, where, "id", 0, ENG_TOKEN_ID_MAX, &id, err) || !load_flags(json, where, &token, err))
        return false;
    if (size == 0) return true; /* ignored, as in the package */
    if (size > CONTENT_MAX)
        return eng_fail(err, "%s: content: expected at most %d bytes, got %zu", where, CONTENT_MAX, size);
    int32_t again = eng_added_tokens_find(added, text, size);
    if (again >= 0 && again != id) return eng_fail(err, "%s: id: expected %d as before, got %d", where, again, (int)id);
    if (again < 0 && !check_id((int32_t)id, text, size, vocab, next, where, err)) return false;
    token.id = (int32_t)id;
    token.content_begin = token.normal_begin = added->texts.size;
    token.content_size = token.normal_size = size;
    if (!eng_bytes_append(&added->texts, text, size, err)) return false;
    if (token.normalized && !normalise_content(added, normalizer, &token, where, err)) return false;
    return keep_token(added, token, again >= 0, text, size, err) || eng_fail_in(err, where);
}

/* The first free id, as the package counts: after the vocabulary, by its number of tokens. */
static bool load_list(eng_added_tokens *added, const json_t *json, const eng_vocab *vocab,
                      const eng_normalizer *normalizer, eng_error *err) {
    int32_t next = (int32_t)vocab->count;
    for (size_t i = 0; i < json_array_size(json); i++) {
        char where[48];
        snprintf(where, sizeof where, "added_tokens[%zu]", i);
        if (!load_token(added, json_array_get(json, i), where, vocab, normalizer, &next, err)) return false;
    }
    return true;
}

static int by_id(const void *a, const void *b) {
    int32_t left = ((const eng_added_token *)a)->id, right = ((const eng_added_token *)b)->id;
    return (left > right) - (left < right);
}

static bool build_trees(eng_added_tokens *added, eng_error *err) {
    for (size_t i = 0; i < added->count; i++) {
        const eng_added_token *token = &added->list[i];
        if (!add_to_tree(token->normalized ? &added->normalized : &added->plain,
                         added->texts.data + token->normal_begin, token->normal_size, i, err))
            return false;
    }
    return true;
}

bool eng_added_tokens_load(const json_t *json, const eng_vocab *vocab, const eng_normalizer *normalizer,
                           eng_added_tokens *out, eng_error *err) {
    *out = (eng_added_tokens){0};
    if (!load_list(out, json, vocab, normalizer, err)) {
        eng_added_tokens_free(out);
        return false;
    }
    if (out->count > 0) qsort(out->list, out->count, sizeof *out->list, by_id);
    if (build_trees(out, err)) return true;
    eng_added_tokens_free(out);
    return false;
}

void eng_added_tokens_free(eng_added_tokens *added) {
    eng_bytes_free(&added->texts);
    eng_vocab_free(&added->contents);
    free(added->list);
    free(added->plain.nodes);
    free(added->normalized.nodes);
    *added = (eng_added_tokens){0};
}

const eng_added_token *eng_added_tokens_by_id(const eng_added_tokens *added, int32_t id) {
    size_t low = 0, high = added->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (added->list[middle].id == id) return &added->list[middle];
        if (added->list[middle].id < id) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

int32_t eng_added_tokens_find(const eng_added_tokens *added, const char *text, size_t size) {
    return eng_vocab_find(&added->contents, text, size);
}

/* The character that ends at `end` (> 0), and where it begins. */
static uint32_t code_before(const char *text, size_t end, size_t *begin) {
    size_t length;
    *begin = end - 1;
    while (*begin > 0 && ((unsigned char)text[*begin] & 0xC0) == 0x80) --*begin;
    return eng_utf8_decode(text + *begin, end - *begin, &length);
}

static bool stands_alone(const char *text, size_t size, size_t begin, size_t end) {
    size_t before, length;
    if (begin > 0 && eng_unicode_is_word(code_before(text, begin, &before))) return false;
    return end == size || !eng_unicode_is_word(eng_utf8_decode(text + end, size - end, &length));
}

static size_t spaces_before(const char *text, size_t begin, size_t limit) {
    for (size_t before; begin > limit && eng_unicode_is_space(code_before(text, begin, &before));) begin = before;
    return begin;
}

static size_t spaces_after(const char *text, size_t size, size_t end) {
    for (size_t length; end < size; end += length)
        if (!eng_unicode_is_space(eng_utf8_decode(text + end, size - end, &length))) break;
    return end;
}

static bool add_gap(const char *text, const eng_piece *piece, size_t begin, size_t end, eng_splits *out,
                    eng_error *err) {
    if (begin >= end) return true;
    return eng_splits_add_text(out, text + begin, end - begin, eng_front_within(piece->front, begin, end), err);
}

/* The token at `at`, or NULL; *length is how far the search goes on either way. */
static const eng_added_token *match_at(const eng_added_tokens *added, const eng_token_tree *tree, const char *text,
                                       size_t size, size_t at, size_t *length) {
    *length = 1;
    if (tree->first[(unsigned char)text[at]] == 0) return NULL;
    int32_t index = longest_match(tree, text + at, size - at, length);
    const eng_added_token *token = index < 0 ? NULL : &added->list[index];
    if (token != NULL && token->single_word && !stands_alone(text, size, at, at + *length)) return NULL;
    return token;
}

/* The search goes on after the token itself, whatever space it takes along: as in the package, a token found in
 * such space counts too. */
static bool split_piece(const eng_added_tokens *added, const eng_token_tree *tree, const char *text,
                        const eng_piece *piece, eng_splits *out, eng_error *err) {
    size_t covered = 0, length = 0;
    for (size_t at = 0; at < piece->size; at += length) {
        const eng_added_token *token = match_at(added, tree, text, piece->size, at, &length);
        if (token == NULL) continue;
        size_t begin = at, end = at + length;
        if (token->lstrip) begin = spaces_before(text, begin, covered);
        if (token->rstrip) end = spaces_after(text, piece->size, end);
        if (!add_gap(text, piece, covered, begin, out, err) || !eng_splits_add_token(out, token->id, err)) return false;
        covered = end;
    }
    return add_gap(text, piece, covered, piece->size, out, err);
}

bool eng_added_tokens_split(const eng_added_tokens *added, bool normalized, const eng_splits *in, eng_splits *out,
                            eng_error *err) {
    const eng_token_tree *tree = normalized ? &added->normalized : &added->plain;
    for (size_t i = 0; i < in->count; i++) {
        const eng_piece *piece = &in->pieces[i];
        bool ok = piece->token >= 0
                      ? eng_splits_add_token(out, piece->token, err)
                      : split_piece(added, tree, in->text.data + piece->begin, piece, out, err);
        if (!ok) return false;
    }
    return true;
}

/* Whether all of the text begins a token that is longer. */
static bool may_go_on(const eng_token_tree *tree, const char *text, size_t size) {
    uint32_t node = 0;
    for (size_t i = 0; i < size; i++)
        if ((node = find_child(tree, node, (unsigned char)text[i])) == 0) return false;
    return tree->nodes[node].child != 0;
}

/* A token that takes no space along, nor looks at what stands beside it, nor is looked at by its left neighbour. */
static bool cuts_cleanly(const eng_added_token *token, const char *text, size_t size) {
    size_t length;
    return !token->lstrip && !token->rstrip && !token->single_word && !eng_unicode_is_word(eng_utf8_decode(text, size, &length));
}

eng_added_settled eng_added_tokens_settled(const eng_added_tokens *added, const char *text, size_t size) {
    eng_added_settled settled = {0};
    size_t at = 0, length;
    for (; at < size && !may_go_on(&added->plain, text + at, size - at); at += length) {
        const eng_added_token *token = match_at(added, &added->plain, text, size, at, &length);
        if (token == NULL) continue;
        if (cuts_cleanly(token, text + at, size - at)) settled.cut = at;
        settled.open = at + length;
    }
    settled.sure = at;
    return settled;
}

bool eng_added_tokens_hold_space(const eng_added_tokens *added) {
    size_t length;
    for (size_t at = 0; at < added->texts.size; at += length)
        if (eng_unicode_is_space(eng_utf8_decode(added->texts.data + at, added->texts.size - at, &length))) return true;
    return false;
}
