/* The tokeniser without memory: loading, encoding, decoding, streaming, with each call that asks for some
 * refused, those of PCRE2 and utf8proc included. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <utf8proc.h>

#include "failing_memory.h"
#include "small_tokenizer.h"
#include "test.h"
#include "tokeniser/tokenizer.h"

static char directory[] = "/tmp/relay-tokenizer-memory-XXXXXX";

#define WRAP(result, name, parameters) \
    result __real_##name parameters;   \
    result __wrap_##name parameters;   \
    result __wrap_##name parameters

WRAP(pcre2_compile_context *, pcre2_compile_context_create_8, (pcre2_general_context * general)) {
    return failing_memory_now() ? NULL : __real_pcre2_compile_context_create_8(general);
}

WRAP(pcre2_code *, pcre2_compile_8, (PCRE2_SPTR text, PCRE2_SIZE size, uint32_t options, int *code, PCRE2_SIZE *at,
                                     pcre2_compile_context *context)) {
    if (!failing_memory_now()) return __real_pcre2_compile_8(text, size, options, code, at, context);
    *code = PCRE2_ERROR_HEAP_FAILED;
    return NULL;
}

WRAP(pcre2_match_data *, pcre2_match_data_create_8, (uint32_t pairs, pcre2_general_context *general)) {
    return failing_memory_now() ? NULL : __real_pcre2_match_data_create_8(pairs, general);
}

WRAP(int, pcre2_match_8, (const pcre2_code *code, PCRE2_SPTR text, PCRE2_SIZE size, PCRE2_SIZE from, uint32_t options,
                          pcre2_match_data *data, pcre2_match_context *context)) {
    if (failing_memory_now()) return PCRE2_ERROR_NOMEMORY;
    return __real_pcre2_match_8(code, text, size, from, options, data, context);
}

WRAP(utf8proc_ssize_t, utf8proc_map, (const utf8proc_uint8_t *text, utf8proc_ssize_t size, utf8proc_uint8_t **to,
                                      utf8proc_option_t options)) {
    return failing_memory_now() ? UTF8PROC_ERROR_NOMEM : __real_utf8proc_map(text, size, to, options);
}

/* ---- a life -------------------------------------------------------------- */

typedef struct life {
    long which; /* call that fails */
    eng_tokens tokens[SMALL_TEXTS];
    eng_bytes texts[SMALL_TEXTS], streamed[SMALL_TEXTS];
    bool done[SMALL_TEXTS][3];
} life;

static bool worked(const life *l, const char *what, bool ok, const eng_error *err) {
    bool said = strstr(err->text, "memory") != NULL || strstr(err->text, "Memory") != NULL;
    CHECK_MSG(ok || said, "call %ld fails: %s says \"%s\"", l->which, what, err->text);
    return ok;
}

static bool stream(const eng_tokenizer *tokenizer, const eng_tokens *tokens, eng_bytes *out, eng_error *err) {
    eng_decoder *decoder;
    const char *part = NULL;
    size_t size = 0;
    if (!eng_decoder_start(tokenizer, false, &decoder, err)) return false;
    bool ok = true;
    for (size_t i = 0; ok && i < tokens->count; i++)
        ok = eng_decoder_push(decoder, tokens->ids[i], &part, &size, err) && eng_bytes_append(out, part, size, err);
    ok = ok && eng_decoder_finish(decoder, &part, &size, err) && eng_bytes_append(out, part, size, err);
    eng_decoder_free(decoder);
    return ok;
}

/* What failed has left its output as it was, and does not stand in the way of what follows. */
static void use(life *l, const eng_tokenizer *tokenizer, int i) {
    eng_error err = {""};
    eng_tokens *tokens = &l->tokens[i];
    eng_tokens_add(tokens, 77, NULL);
    size_t before = tokens->count;
    l->done[i][0] = worked(l, "encode", eng_tokenizer_encode(tokenizer, small_texts[i], strlen(small_texts[i]), true, tokens, &err), &err);
    CHECK_MSG(l->done[i][0] || tokens->count == before, "call %ld fails: encode left %zu tokens", l->which, tokens->count);
    CHECK(before == 0 || tokens->ids[0] == 77);
    if (!l->done[i][0]) return;
    err = (eng_error){""};
    l->done[i][1] = worked(l, "decode", eng_tokenizer_decode(tokenizer, tokens->ids, tokens->count, false, &l->texts[i], &err), &err);
    err = (eng_error){""};
    l->done[i][2] = worked(l, "a decoder", stream(tokenizer, tokens, &l->streamed[i], &err), &err);
}

static void live(life *l) {
    eng_error err = {""};
    eng_tokenizer *tokenizer = (eng_tokenizer *)(void *)&err;
    bool ok = worked(l, "load", eng_tokenizer_load(directory, &tokenizer, &err), &err);
    CHECK(ok == (tokenizer != NULL));
    CHECK_MSG(ok || strstr(err.text, directory) != NULL || strcmp(err.text, "out of memory") == 0 ||
              strncmp(err.text, "out of memory for", 17) == 0, "call %ld fails: load says \"%s\"", l->which, err.text);
    for (int i = 0; ok && i < SMALL_TEXTS; i++) use(l, tokenizer, i);
    eng_tokenizer_free(tokenizer);
}

static void end(life *l) {
    for (int i = 0; i < SMALL_TEXTS; i++) {
        eng_tokens_free(&l->tokens[i]);
        eng_bytes_free(&l->texts[i]);
        eng_bytes_free(&l->streamed[i]);
    }
}

static bool same_bytes(const eng_bytes *a, const eng_bytes *b) {
    return a->size == b->size && (a->size == 0 || memcmp(a->data, b->data, a->size) == 0);
}

static void compare(const life *right, const life *l) {
    for (int i = 0; i < SMALL_TEXTS; i++) {
        const eng_tokens *a = &right->tokens[i], *b = &l->tokens[i];
        bool marked = b->count > 0 && b->ids[0] == 77; /* the mark may itself have had no memory */
        size_t skip = marked ? 0 : 1;
        if (l->done[i][0])
            CHECK_MSG(a->count == b->count + skip && memcmp(a->ids + skip, b->ids, b->count * sizeof *b->ids) == 0,
                      "call %ld fails: text %d has other tokens", l->which, i);
        if (l->done[i][1] && marked) CHECK_MSG(same_bytes(&right->texts[i], &l->texts[i]), "call %ld fails: text %d decodes differently", l->which, i);
        if (l->done[i][2] && marked) CHECK_MSG(same_bytes(&right->streamed[i], &l->streamed[i]), "call %ld fails: text %d streams differently", l->which, i);
    }
}

static void sweep(const life *right, long step, bool for_good) {
    bool happened = true;
    long which = 0;
    for (; happened && test_failed < 40; which += step) {
        life l = {.which = which};
        failing_memory_begin(which, for_good);
        live(&l);
        happened = failing_memory_end();
        compare(right, &l);
        end(&l);
    }
    CHECK_MSG(which > 500, "only %ld calls were seen", which);
}

int main(void) {
    char path[128];
    CHECK(mkdtemp(directory) != NULL);
    snprintf(path, sizeof path, "%s/tokenizer.json", directory);
    eng_bytes json = small_tokenizer();
    FILE *file = fopen(path, "w");
    CHECK(file != NULL && fputs(json.data, file) >= 0 && fclose(file) == 0);
    life right = {.which = -1};
    live(&right);
    for (int i = 0; i < SMALL_TEXTS; i++) CHECK(right.done[i][0] && right.done[i][1] && right.done[i][2]);
    sweep(&right, 1, false);
    sweep(&right, 13, true);
    end(&right);
    eng_bytes_free(&json);
    remove(path);
    rmdir(directory);
    return test_result();
}
