/* The option parser: what it takes, what it refuses and in which words. */
#include "../tools/options.h"

#include <stdlib.h>
#include <unistd.h>

#include "test.h"

typedef struct values {
    bool json;
    const char *model;
    opt_strings systems;
    int32_t batch;
    int64_t seed;
    opt_ints sizes;
    double heat;
    uint64_t memory;
    int mode;
    uint32_t modes;
} values;

static const char *const words[] = {"auto", "relay", "plain", NULL};

static values presets(void) {
    return (values){.batch = 32, .seed = 1, .sizes = {{1, 7}, 2}, .heat = 0.5, .memory = 4u << 20, .modes = 5};
}

static char said[4096]; /* stdout and stderr of the last parse */

/* Parses a command line given as one string, split at spaces. */
static int parse(values *v, const char *line) {
    const opt_spec specs[] = {
        {OPT_FLAG("json", &v->json, "machine output")},
        {OPT_STRING("model", "DIR", &v->model, "the checkpoint"), .required = true},
        {OPT_STRINGS("system", "FILE", &v->systems, "a prompt")},
        {OPT_INT("batch", "N", &v->batch, 1, 1024, "requests at once")},
        {OPT_INT64("seed", "N", &v->seed, 0, INT64_MAX, "of the draws")},
        {OPT_INTS("sizes", "N,N", &v->sizes, 0, 100, "sizes")},
        {OPT_FLOAT("heat", "X", &v->heat, 0, 2, "temperature")},
        {OPT_BYTES("memory", "BYTES", &v->memory, 1024, 1LL << 40, "of the pool")},
        {OPT_CHOICE("mode", "WORD", &v->mode, words, "how")},
        {OPT_CHOICES("modes", "WORDS", &v->modes, words, "which")},
    };
    const opt_command command = {.name = "relay test", .usage = "--model DIR [options]", .summary = "Tests.",
                                 .specs = specs, .num_specs = OPT_COUNT(specs), .examples = "  relay test --model m\n"};
    static char copy[1024];
    static char name[] = "test";
    char *argv[32] = {name};
    int argc = 1;
    snprintf(copy, sizeof copy, "%s", line);
    for (char *at = strtok(copy, " "); at != NULL; at = strtok(NULL, " ")) argv[argc++] = at;

    FILE *file = tmpfile();
    if (file == NULL) return -2;
    fflush(stdout);
    fflush(stderr);
    int out = dup(1), err = dup(2);
    dup2(fileno(file), 1);
    dup2(fileno(file), 2);
    int code = opt_parse(&command, argc, argv);
    fflush(stdout);
    fflush(stderr);
    dup2(out, 1);
    dup2(err, 2);
    close(out);
    close(err);
    rewind(file);
    said[fread(said, 1, sizeof said - 1, file)] = '\0';
    fclose(file);
    return code;
}

static void test_accepts(void) {
    values v = presets();
    CHECK(parse(&v, "--model m --json --system a --system=b=c --batch=1024 --seed 9223372036854775807 "
                    "--sizes 3,100,0 --heat 2 --memory 3G --mode plain --modes plain,relay") == -1);
    CHECK(strcmp(v.model, "m") == 0 && v.json && v.batch == 1024 && v.seed == INT64_MAX);
    CHECK(v.systems.count == 2 && strcmp(v.systems.items[1], "b=c") == 0);
    CHECK(v.sizes.count == 3 && v.sizes.items[0] == 3 && v.sizes.items[1] == 100 && v.sizes.items[2] == 0);
    CHECK(v.heat == 2 && v.memory == 3ull << 30 && v.mode == 2 && v.modes == 6);
    opt_strings_free(&v.systems);
    CHECK(v.systems.items == NULL);
}

static void test_keeps_defaults(void) {
    values v = presets();
    CHECK(parse(&v, "--model=") == -1);
    CHECK(v.model[0] == '\0' && v.batch == 32 && v.sizes.count == 2 && v.modes == 5 && !v.json);
}

static void test_refuses(void) {
    static const struct {
        const char *line, *says;
    } cases[] = {
        {"--json", "--model DIR is required"},
        {"--model m --batch 0", "--batch: expected a whole number: 1 to 1024; got \"0\""},
        {"--model m --batch 1025", "got \"1025\""},
        {"--model m --batch 12x", "got \"12x\""},
        {"--model m --batch=", "got \"\""},
        {"--model m --batch 99999999999999999999", "1 to 1024"},
        {"--model m --seed -1", "0 or more"},
        {"--model m --sizes 1,,2", "whole numbers with commas"},
        {"--model m --sizes 1,", "got \"1,\""},
        {"--model m --heat nan", "a number from 0 to 2"},
        {"--model m --heat 2.5", "a number from 0 to 2"},
        {"--model m --memory 1X", "K, M, G or T"},
        {"--model m --memory 1KB", "got \"1KB\""},
        {"--model m --memory 9223372036854775807T", "1K to 1T"},
        {"--model m --memory 1", "1K to 1T"},
        {"--model m --mode fast", "one of auto, relay, plain"},
        {"--model m --modes relay,", "out of auto, relay, plain"},
        {"--model m --json=1", "--json: expected no value"},
        {"--model m --nothing 1", "unknown option --nothing"},
        {"--model m --seed 99999999999999999999", "--seed: 99999999999999999999 is too large; at most 9223372036854775807"},
        {"--model m -batch 3", "unexpected argument \"-batch\": options begin with two hyphens"},
        {"--model m stray", "unexpected argument \"stray\""},
        {"--model m -- x", "unexpected argument \"--\""},
        {"--model m --batch", "--batch needs a value"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        values v = presets();
        int code = parse(&v, cases[i].line);
        CHECK_MSG(code == 2, "%s: code %d", cases[i].line, code);
        CHECK_CONTAINS(said, cases[i].says);
        CHECK_CONTAINS(said, "Try 'relay test --help'");
    }
}

static void test_help(void) {
    values v = presets();
    CHECK(parse(&v, "--batch 5 --help") == 0);
    CHECK(v.batch == 32);
    CHECK_CONTAINS(said, "Usage: relay test --model DIR [options]");
    CHECK_CONTAINS(said, "requests at once (default 32)");
    CHECK_CONTAINS(said, "(default 4M)");
    CHECK_CONTAINS(said, "how: auto, relay, plain (default auto)");
    CHECK_CONTAINS(said, "(default auto,plain)");
    CHECK_CONTAINS(said, "(default 1,7)");
    CHECK_CONTAINS(said, "the checkpoint (required)");
    CHECK_CONTAINS(said, "of an option given twice, the later one counts");
    CHECK_CONTAINS(said, "  relay test --model m\n");
}

int main(void) {
    test_accepts();
    test_keeps_defaults();
    test_refuses();
    test_help();
    return test_result();
}
