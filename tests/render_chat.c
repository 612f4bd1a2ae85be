/* Prints the tokens of a conversation, for test_template_equal.py:
 *     render_chat MODEL_DIR TEMPLATE|- [SYSTEM|- USER] ...
 * With `-` for the template it also says on stderr what the checkpoint's own leaves open. */
#include <stdio.h>
#include <string.h>

#include "serving/conversation.h"
#include "serving/template_detect.h"

static bool use_own(eng_talk *talk, const char *dir, eng_template_match *match, eng_error *err) {
    const eng_tokenizer_config *config = eng_tokenizer_get_config(talk->tokenizer);
    eng_error doubt;
    if (!eng_template_detect(dir, config->chat_template, match, err)) return false;
    talk->format = match->format;
    talk->default_system = match->default_system;
    talk->writes_bos = match->writes_bos;
    if (eng_template_match_doubt(dir, match, &doubt)) fprintf(stderr, "%s\n", doubt.text);
    return true;
}

static bool choose_format(eng_talk *talk, const char *dir, const char *name, eng_template_match *match, eng_error *err) {
    if (strcmp(name, "-") == 0) return use_own(talk, dir, match, err);
    talk->format = eng_template_find(name);
    return talk->format != NULL || eng_fail(err, "no template %s", name);
}

static bool same_tokens(const eng_tokens *a, const eng_tokens *b) {
    return a->count == b->count && (a->count == 0 || memcmp(a->ids, b->ids, a->count * sizeof *a->ids) == 0);
}

/* The conversation as one text, and on the stem of its system text. */
static bool begin_both_ways(const eng_talk *talk, const char *system, const char *user, eng_tokens *out, eng_error *err) {
    eng_talk_stem stem;
    eng_tokens on_stem = {0};
    if (!eng_talk_begin(talk, system, user, out, err) || !eng_talk_prepare(talk, system, &stem, err)) return false;
    bool ok = eng_talk_begin_on(talk, &stem, system, user, &on_stem, err);
    if (ok && !same_tokens(out, &on_stem)) ok = eng_fail(err, "other tokens on the stem of %zu bytes", stem.resume);
    eng_talk_stem_free(&stem);
    eng_tokens_free(&on_stem);
    return ok;
}

static bool print_tokens(const eng_talk *talk, const char *system, const char *user, eng_error *err) {
    eng_tokens tokens = {0};
    bool ok = begin_both_ways(talk, strcmp(system, "-") == 0 ? NULL : system, user, &tokens, err);
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
    eng_template_match match = {0};
    ok = ok && choose_format(&talk, argv[1], argv[2], &match, &err);
    for (int i = 3; ok && i < argc; i += 2) ok = print_tokens(&talk, argv[i], argv[i + 1], &err);
    if (!ok) fprintf(stderr, "%s\n", err.text);
    eng_template_match_free(&match);
    eng_tokenizer_free(tokenizer);
    return ok ? 0 : 1;
}
