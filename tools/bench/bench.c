/* relay bench: what is measured. */
#include "bench.h"

#include <stdio.h>
#include <string.h>

#include "commands.h"

static const struct {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
} benches[] = {
    {"attention", "one layer's attention: relay, plain, private copies, and the machine's limit", bench_attention},
    {"generate", "a model's decode steps under one system prompt: the same three ways", bench_generate},
};
enum { NUM_BENCHES = sizeof benches / sizeof benches[0] };

static void print_help(FILE *out) {
    fputs("Usage: relay bench WHAT [options]\n\nMeasures, beside the limits of this machine read in the same run.\n\n"
          "What:\n", out);
    for (int i = 0; i < NUM_BENCHES; i++) fprintf(out, "  %-10s %s\n", benches[i].name, benches[i].summary);
    fputs("\n'relay bench WHAT --help' says more.\n", out);
}

int cmd_bench(int argc, char **argv) {
    if (argc < 2) {
        print_help(stderr);
        return 2;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_help(stdout);
        return fflush(stdout) == 0 ? 0 : 1;
    }
    for (int i = 0; i < NUM_BENCHES; i++)
        if (strcmp(argv[1], benches[i].name) == 0) return benches[i].run(argc - 1, argv + 1);
    fprintf(stderr, "relay bench: unknown bench \"%s\"\nTry 'relay bench --help'.\n", argv[1]);
    return 2;
}
