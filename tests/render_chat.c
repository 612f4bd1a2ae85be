/* Prints the tokens of a conversation, for test_template_equal.py:
 *     render_chat MODEL_DIR TEMPLATE|- [SYSTEM|- USER] ... */
#include <stdio.h>
#include <string.h>

#include "serving/conversation.h"

static bool choose_format(eng_talk *talk, const char *dir, const char *name, eng_error *err) {
    const eng_tokenizer_config *config = eng_tokenizer_get_config(talk->tokenizer);
    if (strcmp(name, "-") == 0) return eng_template_detect(dir, config->chat_template, &talk->format, err);
    talk->format = eng_template_find(name);
    return talk->format != NULL || eng_fail(err, "no template %s", name);
}

static bool print_tokens(const eng_talk *talk, const char *system, const char *user, eng_error *err) {
    eng_tokens tokens = {0};
    bool ok = eng_talk_begin(talk, strcmp(system, "-") == 0 ? NULL : system, user, &tokens, err);
    printf("%s", talk->format->name);
    for (size_t i = 0; ok && i < tokens.count; i++) printf(" %d", (int)tokens.ids[i]);
    putchar('\n');
    eng_tokens_free(&tokens);
    return ok;
}

int main(int argc, char **argv) {
    eng_tokenizer *tokenizer = NULL;
    eng_error err = {"usage: render_chat MODEL_DIR TEMPLATE|- [SYSTEM|- USER] ..."};
    bool ok = argc >= 3 && argc % 2 == 1 && eng_tokenizer_load(argv[1], &tokenizer, &err);
    eng_talk talk = {.tokenizer = tokenizer};
    ok = ok && choose_format(&talk, argv[1], argv[2], &err);
    for (int i = 3; ok && i < argc; i += 2) ok = print_tokens(&talk, argv[i], argv[i + 1], &err);
    if (!ok) fprintf(stderr, "%s\n", err.text);
    eng_tokenizer_free(tokenizer);
    return ok ? 0 : 1;
}
