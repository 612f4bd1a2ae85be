/* One tokeniser, several threads at once: the same tokens and texts as for one alone. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "small_tokenizer.h"
#include "test.h"
#include "tokeniser/tokenizer.h"

enum { THREADS = 4, ROUNDS = 30 };

typedef struct known {
    char *text;
    size_t size;
    eng_tokens tokens;
    eng_bytes decoded;
} known;

typedef struct shared {
    const eng_tokenizer *tokenizer;
    known texts[SMALL_TEXTS + 1];
    int count;
} shared;

typedef struct worker {
    pthread_t thread;
    const shared *shared;
    int first, wrong;
} worker;

/* Repeated, so that a text has more than the few hundred words from which on words are remembered. */
static char *repeat(const char *text, int times) {
    eng_bytes out = {0};
    for (int i = 0; i < times; i++) eng_bytes_append_string(&out, text, NULL);
    eng_bytes_append(&out, "", 1, NULL);
    return out.data;
}

static bool same_bytes(const eng_bytes *a, const char *b, size_t size) {
    return a->size == size && (size == 0 || memcmp(a->data, b, size) == 0);
}

static bool agrees(const eng_tokenizer *tokenizer, const known *expected) {
    eng_tokens tokens = {0};
    eng_bytes text = {0};
    bool ok = eng_tokenizer_encode(tokenizer, expected->text, expected->size, true, &tokens, NULL) &&
              tokens.count == expected->tokens.count &&
              memcmp(tokens.ids, expected->tokens.ids, tokens.count * sizeof *tokens.ids) == 0 &&
              eng_tokenizer_decode(tokenizer, tokens.ids, tokens.count, true, &text, NULL) &&
              same_bytes(&text, expected->decoded.data, expected->decoded.size);
    eng_tokens_free(&tokens);
    eng_bytes_free(&text);
    return ok;
}

/* A decoder of the thread's own on the shared tokeniser. */
static bool streams(const eng_tokenizer *tokenizer, const known *expected) {
    eng_decoder *decoder;
    eng_bytes text = {0};
    const char *part = NULL;
    size_t size = 0;
    if (!eng_decoder_start(tokenizer, true, &decoder, NULL)) return false;
    bool ok = true;
    for (size_t i = 0; ok && i < expected->tokens.count; i++)
        ok = eng_decoder_push(decoder, expected->tokens.ids[i], &part, &size, NULL) && eng_bytes_append(&text, part, size, NULL);
    ok = ok && eng_decoder_finish(decoder, &part, &size, NULL) && eng_bytes_append(&text, part, size, NULL) &&
         same_bytes(&text, expected->decoded.data, expected->decoded.size);
    eng_bytes_free(&text);
    eng_decoder_free(decoder);
    return ok;
}

static bool looks_up(const eng_tokenizer *tokenizer) {
    size_t size;
    const char *text = eng_tokenizer_token_text(tokenizer, 1, &size);
    char name[64];
    if (text == NULL || size >= sizeof name) return false;
    memcpy(name, text, size);
    name[size] = '\0';
    return eng_tokenizer_token_id(tokenizer, name) == 1 && eng_tokenizer_vocab_size(tokenizer) > 1;
}

static void *work(void *argument) {
    worker *w = argument;
    const shared *s = w->shared;
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < s->count; i++) {
            const known *text = &s->texts[(w->first + i) % s->count];
            w->wrong += !agrees(s->tokenizer, text) + !streams(s->tokenizer, text) + !looks_up(s->tokenizer);
        }
    return NULL;
}

static void know(shared *s, char *text) {
    known *k = &s->texts[s->count++];
    *k = (known){.text = text, .size = strlen(text)};
    eng_error err = {""};
    bool ok = eng_tokenizer_encode(s->tokenizer, text, k->size, true, &k->tokens, &err) &&
              eng_tokenizer_decode(s->tokenizer, k->tokens.ids, k->tokens.count, true, &k->decoded, &err);
    CHECK_MSG(ok, "%s", err.text);
}

static void test_shared(const char *model_dir, const char *long_part) {
    shared s = {.count = 0};
    worker workers[THREADS];
    eng_tokenizer *tokenizer;
    eng_error err = {""};
    bool ok = eng_tokenizer_load(model_dir, &tokenizer, &err);
    CHECK_MSG(ok, "%s", err.text);
    if (!ok) return;
    s.tokenizer = tokenizer;
    for (int i = 0; i < SMALL_TEXTS; i++) know(&s, repeat(small_texts[i], 1));
    know(&s, repeat(long_part, 200));
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){.shared = &s, .first = i};
        CHECK(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        CHECK_MSG(workers[i].wrong == 0, "thread %d: %d results differ", i, workers[i].wrong);
    }
    for (int i = 0; i < s.count; i++) {
        free(s.texts[i].text);
        eng_tokens_free(&s.texts[i].tokens);
        eng_bytes_free(&s.texts[i].decoded);
    }
    eng_tokenizer_free(tokenizer);
}

/* Several are loaded at once, too: each thread its own. */
static void *load_one(void *argument) {
    eng_tokenizer *tokenizer;
    if (eng_tokenizer_load(argument, &tokenizer, NULL)) eng_tokenizer_free(tokenizer);
    else return argument;
    return NULL;
}

static void test_loading(char *model_dir) {
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, load_one, model_dir) == 0);
    for (int i = 0; i < THREADS; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        CHECK(failed == NULL);
    }
}

int main(void) {
    char directory[] = "/tmp/relay-tokenizer-threads-XXXXXX", path[128];
    CHECK(mkdtemp(directory) != NULL);
    snprintf(path, sizeof path, "%s/tokenizer.json", directory);
    eng_bytes json = small_tokenizer();
    FILE *file = fopen(path, "w");
    CHECK(file != NULL && fputs(json.data, file) >= 0 && fclose(file) == 0);
    test_loading(directory);
    test_shared(directory, "the cat 12 and\n");
    test_shared("models/lookup", "the code of kazaga : 029 ;\n");
    eng_bytes_free(&json);
    remove(path);
    rmdir(directory);
    return test_result();
}
