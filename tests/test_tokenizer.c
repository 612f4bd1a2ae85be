/* The tokeniser on small files made here: what comes out, and what is said of files that are wrong.  Equality with
 * the package that it follows is test_tokenizer_equal.py's. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/json_read.h"
#include "test.h"
#include "tokeniser/tokenizer.h"
#include "common/utf8.h"

static char directory[] = "/tmp/relay-tokenizer-XXXXXX";

static void write_file(const char *name, const char *text, size_t size) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL);
    if (file == NULL) return;
    CHECK(fwrite(text, 1, size, file) == size);
    fclose(file);
}

static void remove_file(const char *name) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    remove(path);
}

static bool load_text(const char *json, size_t size, eng_tokenizer **out, eng_error *err) {
    write_file("tokenizer.json", json, size);
    *err = (eng_error){0};
    return eng_tokenizer_load(directory, out, err);
}

/* A tokeniser that must load. */
static eng_tokenizer *load(const char *json) {
    eng_tokenizer *tokenizer;
    eng_error err;
    bool ok = load_text(json, strlen(json), &tokenizer, &err);
    CHECK_MSG(ok, "%s", err.text);
    return tokenizer;
}

static void check_refused(const char *json, const char *message) {
    eng_tokenizer *tokenizer;
    eng_error err;
    CHECK_MSG(!load_text(json, strlen(json), &tokenizer, &err), "%s", json);
    CHECK(tokenizer == NULL);
    CHECK_CONTAINS(err.text, "/tokenizer.json: ");
    CHECK_CONTAINS(err.text, message);
    eng_tokenizer_free(tokenizer);
}

/* Ids as "1 2 3". */
static void check_ids(const eng_tokenizer *tokenizer, const char *text, size_t size, bool add_special,
                      const char *expected) {
    eng_tokens tokens = {0};
    eng_error err = {0};
    char seen[512] = "";
    CHECK_MSG(eng_tokenizer_encode(tokenizer, text, size, add_special, &tokens, &err), "%s", err.text);
    for (size_t i = 0; i < tokens.count; i++) {
        size_t used = strlen(seen);
        snprintf(seen + used, sizeof seen - used, "%s%d", i ? " " : "", (int)tokens.ids[i]);
    }
    CHECK_MSG(strcmp(seen, expected) == 0, "\"%s\": got %s, expected %s", text, seen, expected);
    eng_tokens_free(&tokens);
}

static void check_text(const eng_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip_special,
                       const char *expected) {
    eng_bytes text = {0};
    eng_error err = {0};
    CHECK(eng_tokenizer_decode(tokenizer, ids, count, skip_special, &text, &err));
    CHECK(eng_bytes_append(&text, "", 1, &err));
    CHECK_MSG(strcmp(text.data, expected) == 0, "got \"%s\", expected \"%s\"", text.data, expected);
    eng_bytes_free(&text);
}

#define ADDED(id, text, special) \
    "{\"id\":" #id ",\"content\":\"" text "\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false," \
    "\"normalized\":false,\"special\":" special "}"

static const char word_level[] =
    "{\"version\":\"1.0\",\"added_tokens\":[" ADDED(0, "<s>", "true") "," ADDED(4, "<new>", "false") "],"
    "\"pre_tokenizer\":{\"type\":\"WhitespaceSplit\"},"
    "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},"
    "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":"
    "{\"<s>\":{\"id\":\"<s>\",\"ids\":[0],\"tokens\":[\"<s>\"]}}},"
    "\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"<unk>\",\"vocab\":{\"<s>\":0,\"<unk>\":1,\"a\":2,\"b\":3}}}";

/* Byte fallback without merges but one; tokens 0-255 are the bytes. */
static char *byte_fallback_file(void) {
    eng_bytes json = {0};
    eng_bytes_append_string(&json,
        "{\"added_tokens\":[],\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\","
        "\"prepend\":\"\xE2\x96\x81\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":"
        "\"\xE2\x96\x81\"}]},\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":"
        "{\"String\":\"\xE2\x96\x81\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
        "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":1}]},\"model\":{\"type\":\"BPE\","
        "\"byte_fallback\":true,\"fuse_unk\":true,\"unk_token\":null,\"merges\":[\"h i\",\"\xE2\x96\x81 hi\"],"
        "\"vocab\":{", NULL);
    for (int byte = 0; byte < 256; byte++) {
        char entry[32];
        snprintf(entry, sizeof entry, "\"<0x%02X>\":%d,", byte, byte);
        eng_bytes_append_string(&json, entry, NULL);
    }
    eng_bytes_append_string(&json, "\"\xE2\x96\x81\":256,\"h\":257,\"i\":258,\"hi\":259,\"\xE2\x96\x81hi\":260}}}", NULL);
    eng_bytes_append(&json, "", 1, NULL);
    return json.data;
}

static void test_word_level(void) {
    eng_tokenizer *t = load(word_level);
    if (t == NULL) return;
    check_ids(t, "a  b\tz", 6, true, "0 2 3 1");
    check_ids(t, "a  b\tz", 6, false, "2 3 1");
    check_ids(t, "", 0, true, "0");
    check_ids(t, "a<new>b<s>", 10, false, "2 4 3 0");
    check_ids(t, "a\0b", 3, false, "1");
    int32_t ids[] = {0, 2, 99, -5, 3, 4};
    check_text(t, ids, 6, false, "<s> a b <new>");
    check_text(t, ids, 6, true, "a b <new>");
    check_text(t, ids, 0, true, "");
    size_t size;
    CHECK(eng_tokenizer_vocab_size(t) == 5);
    CHECK(eng_tokenizer_token_id(t, "<new>") == 4 && eng_tokenizer_token_id(t, "zz") == -1);
    const char *text = eng_tokenizer_token_text(t, 3, &size);
    CHECK(text != NULL && size == 1 && text[0] == 'b');
    CHECK(eng_tokenizer_token_text(t, 5, &size) == NULL && eng_tokenizer_token_text(t, -1, &size) == NULL);
    CHECK(eng_tokenizer_is_special(t, 0) && !eng_tokenizer_is_special(t, 4) && !eng_tokenizer_is_special(t, 77));
    CHECK(eng_tokenizer_bos(t) == -1 && eng_tokenizer_get_config(t)->chat_template == NULL);
    eng_tokenizer_free(t);
}

static void test_encode_appends(void) {
    eng_tokenizer *t = load(word_level);
    eng_tokens tokens = {0};
    eng_error err = {0};
    if (t == NULL) return;
    CHECK(eng_tokenizer_encode(t, "a", 1, false, &tokens, &err) && eng_tokenizer_encode(t, "b", 1, true, &tokens, &err));
    CHECK(tokens.count == 3 && tokens.ids[0] == 2 && tokens.ids[1] == 0 && tokens.ids[2] == 3);
    eng_tokens_free(&tokens);
    eng_tokenizer_free(t);
}

/* Byte tokens wait for the end of their run, the last space for the end of the text. */
static void test_streaming(void) {
    char *json = byte_fallback_file();
    eng_tokenizer *t = load(json);
    eng_decoder *decoder;
    eng_error err = {0};
    const char *text;
    size_t size;
    free(json);
    if (t == NULL || !eng_decoder_start(t, true, &decoder, &err)) return;
    static const struct { int32_t id; const char *settled; } steps[] = {
        {260, "hi"}, {0xE2, ""}, {0x82, ""}, {0xAC, ""}, {257, "\xE2\x82\xACh"}, {256, ""}, {258, " i"}, {0xFF, ""},
        {0x41, ""}, {9999, ""}, {259, "\xEF\xBF\xBD\xEF\xBF\xBDhi"}, {0xF0, ""}, {256, "\xEF\xBF\xBD"},
    };
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        CHECK(eng_decoder_push(decoder, steps[i].id, &text, &size, &err));
        CHECK_MSG(size == strlen(steps[i].settled) && memcmp(text, steps[i].settled, size) == 0,
                  "step %zu: got \"%.*s\", expected \"%s\"", i, (int)size, text, steps[i].settled);
    }
    CHECK(eng_decoder_finish(decoder, &text, &size, &err) && size == 0);
    eng_decoder_free(decoder);
    eng_tokenizer_free(t);
}

static void test_byte_fallback(void) {
    char *json = byte_fallback_file();
    eng_tokenizer *t = load(json);
    free(json);
    if (t == NULL) return;
    check_ids(t, "hi hi", 5, true, "260 260");
    check_ids(t, "\xE2\x82\xAC", 3, true, "256 226 130 172");
    check_ids(t, "h\xFF", 2, true, "256 257 239 191 189"); /* U+FFFD */
    eng_tokenizer_free(t);
}

static void test_repair(void) {
    static const struct { const char *broken, *repaired; } cases[] = {
        {"a\xC3", "a\xEF\xBF\xBD"}, {"\xE2\x82z", "\xEF\xBF\xBDz"}, {"\xF0\x9F\x98", "\xEF\xBF\xBD"},
        {"\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"}, {"\xC0\xAF", "\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\xF4\x90\x80\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"}, {"\xC3\xA9", "\xC3\xA9"},
        {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\x41"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        eng_bytes out = {0};
        CHECK(eng_utf8_append_repaired(&out, cases[i].broken, strlen(cases[i].broken), NULL));
        CHECK_MSG(out.size == strlen(cases[i].repaired) && memcmp(out.data, cases[i].repaired, out.size) == 0,
                  "case %zu", i);
        eng_bytes_free(&out);
    }
}

static void test_config(void) {
    static const char config[] = "{\"bos_token\":{\"content\":\"<s>\"},\"eos_token\":\"b\",\"pad_token\":null,"
                                 "\"add_bos_token\":true,\"add_eos_token\":false,\"chat_template\":"
                                 "[{\"name\":\"tool_use\",\"template\":\"x\"},{\"name\":\"default\",\"template\":\"y\"}]}";
    write_file("tokenizer_config.json", config, strlen(config));
    eng_tokenizer *t = load(word_level);
    if (t == NULL) return;
    const eng_tokenizer_config *c = eng_tokenizer_get_config(t);
    CHECK(eng_tokenizer_bos(t) == 0 && eng_tokenizer_eos(t) == 3 && eng_tokenizer_pad(t) == -1);
    CHECK(c->add_bos == ENG_YES && c->add_eos == ENG_NO);
    CHECK(c->chat_template != NULL && strcmp(c->chat_template, "y") == 0);
    eng_tokenizer_free(t);
    write_file("chat_template.jinja", "{{ x }}", 7);
    t = load(word_level);
    CHECK(t != NULL && strcmp(eng_tokenizer_get_config(t)->chat_template, "{{ x }}") == 0);
    eng_tokenizer_free(t);
    remove_file("chat_template.jinja");
    remove_file("tokenizer_config.json");
}

static void test_bad_config(void) {
    static const struct { const char *config, *message; } cases[] = {
        {"{\"bos_token\":3}", "bos_token: expected a string, got 3"},
        {"{\"eos_token\":{\"content\":[]}}", "eos_token.content: expected a string, got an array of 0"},
        {"{\"add_bos_token\":1}", "add_bos_token: expected true or false, got 1"},
        {"{\"chat_template\":7}", "chat_template: expected a string, got 7"},
        {"{\"chat_template\":[{\"name\":\"default\"}]}", "template: missing"},
        {"[]", "expected an object"}, {"{", "line 1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        eng_tokenizer *t;
        eng_error err;
        write_file("tokenizer_config.json", cases[i].config, strlen(cases[i].config));
        CHECK(!load_text(word_level, strlen(word_level), &t, &err) && t == NULL);
        CHECK_CONTAINS(err.text, "tokenizer_config.json: ");
        CHECK_CONTAINS(err.text, cases[i].message);
    }
    remove_file("tokenizer_config.json");
}

#define MODEL(vocab, rest) "{\"model\":{\"type\":\"BPE\",\"vocab\":{" vocab "}" rest "}}"
#define WITH(part) "{" part ",\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[]}}"
#define SPLIT(regex) \
    WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\"," \
         "\"invert\":false}")
#define NEST4(open) open open open open
#define NEST12(open) NEST4(open) NEST4(open) NEST4(open)

static void test_refused_models(void) {
    check_refused("", "line 1");
    check_refused("[1]", "expected an object, got an array of 1");
    check_refused("{}", "model: missing");
    check_refused("{\"model\":7}", "model: expected an object, got 7");
    check_refused("{\"version\":\"2.0\",\"model\":{}}", "version: expected \"1.0\", got \"2.0\"");
    check_refused("{\"model\":{}}", "model: type: missing");
    check_refused("{\"model\":{\"type\":\"Unigram\"}}", "model: unknown type \"Unigram\"; supported: BPE, WordLevel");
    check_refused("{\"model\":{\"type\":\"BPE\",\"merges\":[]}}", "model: vocab: missing");
    check_refused(MODEL("\"a\":0", ""), "model: merges: missing");
    check_refused(MODEL("\"a\":0,\"b\":0", ",\"merges\":[]"), "id 0 is taken by \"a\"");
    check_refused(MODEL("\"a\":-1", ",\"merges\":[]"), "model: vocab: a: expected an id from 0 to 16777215, got -1");
    check_refused(MODEL("\"a\":4294967296", ",\"merges\":[]"), "got 4294967296");
    check_refused(MODEL("\"a\":99999999999999999999", ",\"merges\":[]"), "too big integer");
    check_refused(MODEL("\"a\":1.5", ",\"merges\":[]"), "got 1.5");
    check_refused(MODEL("\"a\":1e999", ",\"merges\":[]"), "real number overflow");
    check_refused(MODEL("\"a\":0", ",\"merges\":[\"a b\"]"), "model: merges[0]: \"b\" is not in the vocabulary");
    check_refused(MODEL("\"a\":0,\"b\":1", ",\"merges\":[[\"a\",\"b\"]]"), "merges[0]: \"ab\" is not in the vocabulary");
    check_refused(MODEL("\"a\":0", ",\"merges\":[\"a\"]"), "merges[0]: expected two tokens");
    check_refused(MODEL("\"a\":0", ",\"merges\":[[\"a\"]]"), "merges[0]: expected two tokens");
    check_refused(MODEL("\"a\":0", ",\"merges\":[3]"), "merges[0]: expected two tokens");
    check_refused(MODEL("\"a\":0", ",\"merges\":[],\"dropout\":0.5"), "dropout: 0.5 is not supported");
    check_refused(MODEL("\"a\":0", ",\"merges\":[],\"end_of_word_suffix\":\"</w>\""), "end_of_word_suffix");
    check_refused(MODEL("\"a\":0", ",\"merges\":[],\"fuse_unk\":\"yes\""), "fuse_unk: expected true or false");
    check_refused(MODEL("\"a\":0", ",\"merges\":[],\"unk_token\":1"), "unk_token: expected a string, got 1");
}

static void test_refused_parts(void) {
    check_refused(WITH("\"normalizer\":{\"type\":\"Precompiled\"}"), "normalizer: unknown type \"Precompiled\"; supported:");
    check_refused(WITH("\"normalizer\":[]"), "normalizer: expected an object, got an array of 0");
    check_refused(WITH("\"normalizer\":{\"type\":\"Strip\"}"), "normalizer: strip_left: missing");
    check_refused(WITH("\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"X\"}]}"),
                  "normalizer[1]: unknown type \"X\"");
    check_refused(WITH("\"normalizer\":{\"type\":\"Replace\",\"content\":\"\",\"pattern\":{\"Glob\":\"*\"}}"),
                  "normalizer: pattern: expected one field, \"String\" or \"Regex\"");
    check_refused(WITH("\"pre_tokenizer\":{\"type\":\"Foo\"}"), "pre_tokenizer: unknown type \"Foo\"; supported: Sequence");
    check_refused(WITH("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"xy\"}"), "expected one character");
    check_refused(WITH("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"x\",\"prepend_scheme\":\"often\"}"),
                  "prepend_scheme: unknown \"often\"");
    check_refused(WITH("\"pre_tokenizer\":{\"type\":\"Punctuation\",\"behavior\":\"Eaten\"}"), "behavior: unknown \"Eaten\"");
    check_refused(WITH("\"post_processor\":{\"type\":\"BertProcessing\"}"), "post_processor: unknown type");
    check_refused(WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"B\"}}]}"),
                  "expected \"A\", got \"B\"");
    check_refused(WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"q\"}}]}"),
                  "\"q\" is not among the special_tokens");
    check_refused(WITH("\"decoder\":{\"type\":\"WordPiece\"}"), "decoder: unknown type \"WordPiece\"");
    check_refused(WITH("\"decoder\":{\"type\":\"Strip\",\"content\":\" \",\"start\":-1,\"stop\":0}"), "start: expected an integer");
    check_refused(WITH("\"added_tokens\":{}"), "added_tokens: expected an array");
    check_refused(WITH("\"added_tokens\":[5]"), "added_tokens[0]: expected an object, got 5");
    check_refused(WITH("\"added_tokens\":[" ADDED(1, "a", "true") "]"), "added_tokens[0]: id: expected 0");
    check_refused(WITH("\"added_tokens\":[" ADDED(3, "x", "true") "," ADDED(3, "y", "true") "]"),
                  "added_tokens[1]: id: expected 4 (the next free one), got 3");
    check_refused(WITH("\"added_tokens\":[" ADDED(3, "x", "true") "," ADDED(4, "x", "true") "]"),
                  "added_tokens[1]: id: expected 3 as before, got 4");
    check_refused(WITH("\"added_tokens\":[" ADDED(99999999999, "x", "true") "]"), "id: expected an integer from 0");
    check_refused(WITH("\"added_tokens\":[{\"id\":3,\"content\":\"x\"}]"), "single_word: missing");
    check_refused(WITH("\"pre_tokenizer\":" NEST12("{\"type\":\"Sequence\",\"pretokenizers\":[") "{\"type\":\"Digits\"}"
                       NEST12("]}")), "nested more than 8 deep");
}

static void test_refused_regex(void) {
    check_refused(SPLIT("(a"), "pre_tokenizer: regular expression \"(a\"");
    check_refused(SPLIT("[a"), "a set without its ]");
    check_refused(SPLIT("a{2,1}"), "regular expression");
    check_refused(SPLIT("[a[b]]"), "a set inside a set");
    check_refused(SPLIT("[a&&b]"), "&&");
    check_refused(SPLIT("\\\\bx"), "\\b at byte 0 is not supported");
    check_refused(SPLIT("(*ACCEPT)"), "(*");
    check_refused(SPLIT("(?s:a)"), "this kind of group");
    check_refused(SPLIT("a{2}+"), "+ after an interval");
    check_refused(SPLIT("\\\\p{Nothing}"), "regular expression");
    check_refused(SPLIT("\\\\xFF"), "a raw byte");
    check_refused(SPLIT("a\\\\"), "\\ at the end");
    check_refused(SPLIT("\\u0000"), "U+0000");
}

/* A regular expression that needs too many steps fails that text, and no more. */
static void test_slow_regex(void) {
    eng_tokenizer *t = load(SPLIT("(?:a|a|a|a)*c"));
    eng_tokens tokens = {0};
    eng_error err = {0};
    char text[64];
    if (t == NULL) return;
    memset(text, 'a', sizeof text - 2);
    memcpy(text + sizeof text - 2, "bc", 2);
    CHECK(!eng_tokenizer_encode(t, text, sizeof text, true, &tokens, &err));
    CHECK_CONTAINS(err.text, "match limit exceeded");
    CHECK(tokens.count == 0);
    check_ids(t, "ab", 2, true, "0 1");
    eng_tokens_free(&tokens);
    eng_tokenizer_free(t);
}

static void test_deep_json(void) {
    eng_bytes json = {0};
    eng_tokenizer *t;
    eng_error err;
    for (int i = 0; i < 100000; i++) eng_bytes_append_string(&json, "[", NULL);
    CHECK(!load_text(json.data, json.size, &t, &err));
    CHECK_CONTAINS(err.text, "maximum parsing depth");
    eng_bytes_free(&json);
}

static void test_missing_unk(void) {
    eng_tokenizer *t = load("{\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"<unk>\",\"vocab\":{\"a\":0}}}");
    eng_tokens tokens = {0};
    eng_error err = {0};
    if (t == NULL) return;
    CHECK(!eng_tokenizer_encode(t, "zz", 2, true, &tokens, &err));
    CHECK_CONTAINS(err.text, "unk_token \"<unk>\" is not in the vocabulary");
    eng_tokens_free(&tokens);
    eng_tokenizer_free(t);
}

static void test_missing_file(void) {
    eng_tokenizer *t;
    eng_error err = {0};
    CHECK(!eng_tokenizer_load("/nonexistent", &t, &err) && t == NULL);
    CHECK_CONTAINS(err.text, "/nonexistent/tokenizer.json: No such file");
    CHECK(!eng_tokenizer_load(directory, &t, NULL) || t != NULL);
    eng_tokenizer_free(t);
}

/* Loads what may be anything; where it loads, it must also encode and decode. */
static void try_file(const char *json, size_t size) {
    static const char text[] = "hi \xE2\x82\xAC <s>a  b\xFF 12";
    eng_tokenizer *t;
    eng_error err;
    if (!load_text(json, size, &t, &err)) {
        CHECK_CONTAINS(err.text, "/tokenizer.json: ");
        return;
    }
    eng_tokens tokens = {0};
    eng_bytes back = {0};
    bool ok = eng_tokenizer_encode(t, text, sizeof text - 1, true, &tokens, &err) &&
              eng_tokenizer_decode(t, tokens.ids, tokens.count, false, &back, &err);
    CHECK(ok || err.text[0] != '\0');
    CHECK(eng_utf8_is_valid(back.data, back.size));
    eng_bytes_free(&back);
    eng_tokens_free(&tokens);
    eng_tokenizer_free(t);
}

static uint32_t random_number(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static void mutate(char *bytes, size_t size, uint32_t seed) {
    static const char likely[] = "{}[]\",:0129-.eE\\u tfn\xFF\x00\x80";
    uint32_t state = seed;
    uint32_t count = 1 + random_number(&state) % 4;
    for (uint32_t i = 0; i < count; i++) {
        size_t at = random_number(&state) % size;
        uint32_t kind = random_number(&state) % 3;
        if (kind == 0) bytes[at] = (char)random_number(&state);
        if (kind == 1) bytes[at] = likely[random_number(&state) % (sizeof likely - 1)];
        if (kind == 2) bytes[at] = bytes[random_number(&state) % size];
    }
}

static void test_mutations(const char *json) {
    size_t size = strlen(json);
    char *copy = malloc(size);
    for (uint32_t seed = 1; copy != NULL && seed <= 400; seed++) {
        memcpy(copy, json, size);
        mutate(copy, size, seed);
        try_file(copy, size);
    }
    free(copy);
}

static void test_truncations(const char *json) {
    for (size_t size = 0; size < strlen(json); size++) {
        eng_tokenizer *t;
        eng_error err;
        CHECK_MSG(!load_text(json, size, &t, &err), "cut at %zu", size);
        CHECK_CONTAINS(err.text, "line ");
    }
}

static void test_json_getters(void) {
    json_error_t detail;
    json_t *json = json_loads("{\"a\":{\"b\":8.5,\"n\":null,\"s\":\"x\",\"i\":-3,\"o\":true},\"l\":[1]}", 0, &detail);
    eng_error err = {0};
    double d = 0;
    int64_t i = 0;
    bool o = false;
    const char *s = NULL;
    const json_t *list;
    CHECK(eng_json_double(json, "f", "a.b", &d, &err) && d == 8.5);
    CHECK(eng_json_int(json, "f", "a.i", INT64_MIN, INT64_MAX, &i, &err) && i == -3);
    CHECK(eng_json_string(json, "f", "a.s", &s, &err) && strcmp(s, "x") == 0);
    CHECK(eng_json_bool(json, "f", "a.o", &o, &err) && o);
    CHECK(eng_json_array(json, "f", "l", &list, &err) && json_array_size(list) == 1);
    CHECK(eng_json_int_or(json, "f", "a.n", 0, 9, 7, &i, &err) && i == 7);
    CHECK(eng_json_int_or(json, "f", "q.r.s", 0, 9, 6, &i, &err) && i == 6);
    CHECK(!eng_json_int(json, "f", "a.i", 1, INT32_MAX, &i, &err));
    CHECK(strcmp(err.text, "f: a.i: expected a positive integer, got -3") == 0);
    CHECK(!eng_json_int(json, "f", "a.b", 0, 5, &i, &err));
    CHECK(strcmp(err.text, "f: a.b: expected an integer from 0 to 5, got 8.5") == 0);
    CHECK(!eng_json_double(json, "f", "a.n", &d, &err));
    CHECK(strcmp(err.text, "f: a.n: missing; expected a number") == 0);
    CHECK(!eng_json_object(json, "f", "l", &list, &err));
    CHECK(strcmp(err.text, "f: l: expected an object, got an array of 1") == 0);
    json_decref(json);
}

int main(void) {
    if (mkdtemp(directory) == NULL) return 1;
    char *json = byte_fallback_file();
    test_word_level();
    test_encode_appends();
    test_byte_fallback();
    test_streaming();
    test_repair();
    test_config();
    test_bad_config();
    test_refused_models();
    test_refused_parts();
    test_refused_regex();
    test_slow_regex();
    test_deep_json();
    test_missing_unk();
    test_missing_file();
    test_truncations(word_level);
    test_mutations(word_level);
    test_mutations(json);
    test_mutations(SPLIT("(?i:'s|'t)|[^\\\\r\\\\n\\\\p{L}]?\\\\p{L}+|\\\\s+(?!\\\\S)"));
    test_json_getters();
    free(json);
    remove_file("tokenizer.json");
    rmdir(directory);
    return test_result();
}
