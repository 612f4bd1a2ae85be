/* tokenize_lines MODEL_DIR: answers requests on stdin with what the engine's tokeniser makes of them, for
 * test_tokenizer_equal.py.  Numbers are little-endian uint32.  A request is
 *   'e' add_special skip_special size bytes   -> count ids, size text   (the ids, and their decoding)
 *   'd' skip_special count ids                -> size text
 *   's' size bytes size bytes                 -> how much of the first text is settled whatever follows it
 * For the last the program fails where both texts in one give other tokens than what is settled and the rest.
 * Every decoding is done at once and token by token; the program fails where the two differ. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokeniser/tokenizer.h"

static bool read_number(uint32_t *out) { return fread(out, sizeof *out, 1, stdin) == 1; }

static void write_number(uint32_t number) { fwrite(&number, sizeof number, 1, stdout); }

static bool fail(const char *what) {
    fprintf(stderr, "tokenize_lines: %s\n", what);
    return false;
}

static bool decode_by_token(const eng_tokenizer *tokenizer, const eng_tokens *tokens, bool skip_special,
                            eng_bytes *out, eng_error *err) {
    eng_decoder *decoder;
    const char *text;
    size_t size;
    if (!eng_decoder_start(tokenizer, skip_special, &decoder, err)) return false;
    bool ok = true;
    for (size_t i = 0; ok && i < tokens->count; i++)
        ok = eng_decoder_push(decoder, tokens->ids[i], &text, &size, err) && eng_bytes_append(out, text, size, err);
    ok = ok && eng_decoder_finish(decoder, &text, &size, err) && eng_bytes_append(out, text, size, err);
    eng_decoder_free(decoder);
    return ok;
}

static bool answer_text(const eng_tokenizer *tokenizer, const eng_tokens *tokens, bool skip_special) {
    eng_error err = {0};
    eng_bytes whole = {0}, parts = {0};
    bool ok = eng_tokenizer_decode(tokenizer, tokens->ids, tokens->count, skip_special, &whole, &err) &&
              decode_by_token(tokenizer, tokens, skip_special, &parts, &err);
    if (!ok) fail(err.text);
    if (ok && (whole.size != parts.size || (whole.size > 0 && memcmp(whole.data, parts.data, whole.size) != 0)))
        ok = fail("decoding token by token gives another text");
    if (ok) {
        write_number((uint32_t)whole.size);
        fwrite(whole.data ? whole.data : "", 1, whole.size, stdout);
    }
    eng_bytes_free(&whole);
    eng_bytes_free(&parts);
    return ok;
}

static bool answer_encode(const eng_tokenizer *tokenizer) {
    int add_special = getchar(), skip_special = getchar();
    uint32_t size;
    if (!read_number(&size)) return fail("truncated request");
    char *text = malloc(size + 1);
    eng_tokens tokens = {0};
    eng_error err = {0};
    bool ok = text != NULL && fread(text, 1, size, stdin) == size;
    if (!ok) fail("truncated request");
    if (ok && !eng_tokenizer_encode(tokenizer, text, size, add_special != 0, &tokens, &err)) ok = fail(err.text);
    if (ok) {
        write_number((uint32_t)tokens.count);
        fwrite(tokens.ids, sizeof *tokens.ids, tokens.count, stdout);
        ok = answer_text(tokenizer, &tokens, skip_special != 0);
    }
    eng_tokens_free(&tokens);
    free(text);
    return ok;
}

static bool answer_decode(const eng_tokenizer *tokenizer) {
    int skip_special = getchar();
    uint32_t count, id;
    eng_tokens tokens = {0};
    bool ok = read_number(&count);
    for (uint32_t i = 0; ok && i < count; i++) ok = read_number(&id) && eng_tokens_add(&tokens, (int32_t)id, NULL);
    if (!ok) fail("truncated request");
    ok = ok && answer_text(tokenizer, &tokens, skip_special != 0);
    eng_tokens_free(&tokens);
    return ok;
}

static char *read_text(uint32_t *size) {
    char *text = read_number(size) ? malloc(*size + 1) : NULL;
    if (text != NULL && fread(text, 1, *size, stdin) == *size) return text;
    free(text);
    return NULL;
}

static bool same_tokens(const eng_tokens *a, const eng_tokens *b) {
    return a->count == b->count && (a->count == 0 || memcmp(a->ids, b->ids, a->count * sizeof *a->ids) == 0);
}

static bool check_settled(const eng_tokenizer *tokenizer, const char *text, size_t size, eng_settled settled) {
    eng_tokens whole = {0}, parts = {0};
    eng_error err = {0};
    bool ok = eng_tokenizer_encode(tokenizer, text, size, false, &whole, &err) &&
              eng_tokenizer_encode(tokenizer, text, settled.end, false, &parts, &err) &&
              eng_tokenizer_encode(tokenizer, text + settled.resume, size - settled.resume, false, &parts, &err);
    if (!ok) fail(err.text);
    if (ok && !same_tokens(&whole, &parts)) {
        fprintf(stderr, "settled %zu of %zu: %.*s|%.*s\n", settled.end, size, (int)settled.end, text,
                (int)(size - settled.end), text + settled.end);
        ok = fail("what is settled and the rest give other tokens than the whole");
    }
    eng_tokens_free(&whole);
    eng_tokens_free(&parts);
    return ok;
}

static bool answer_settled(const eng_tokenizer *tokenizer) {
    uint32_t size, more;
    char *text = read_text(&size), *rest = text == NULL ? NULL : read_text(&more);
    char *both = rest == NULL ? NULL : realloc(text, (size_t)size + more + 1);
    if (both == NULL) {
        free(text);
        free(rest);
        return fail("truncated request");
    }
    eng_settled settled = eng_tokenizer_settled(tokenizer, both, size);
    memcpy(both + size, rest, more);
    write_number((uint32_t)settled.end);
    bool ok = settled.end <= settled.resume && settled.resume <= size && check_settled(tokenizer, both, size + more, settled);
    free(both);
    free(rest);
    return ok;
}

static bool answer(const eng_tokenizer *tokenizer, int kind) {
    if (kind == 'e') return answer_encode(tokenizer);
    if (kind == 'd') return answer_decode(tokenizer);
    return kind == 's' ? answer_settled(tokenizer) : fail("unknown request");
}

int main(int argc, char **argv) {
    eng_error err = {0};
    eng_tokenizer *tokenizer;
    if (argc != 2) return fail("usage: tokenize_lines MODEL_DIR") + 2;
    if (!eng_tokenizer_load(argv[1], &tokenizer, &err)) return fail(err.text) + 1;
    bool ok = true;
    for (int kind; ok && (kind = getchar()) != EOF;) ok = answer(tokenizer, kind);
    eng_tokenizer_free(tokenizer);
    return ok && fflush(stdout) == 0 ? 0 : 1;
}
