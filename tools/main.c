/* relay: one command, several subcommands. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "commands.h"
#include "relay/base.h"

typedef struct command_entry {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
} command_entry;

static const command_entry commands[] = {
#define COMMAND_ENTRY(name, summary) {#name, summary, cmd_##name},
    RELAY_COMMANDS(COMMAND_ENTRY)
#undef COMMAND_ENTRY
};
enum { NUM_COMMANDS = sizeof commands / sizeof commands[0] };

static void print_help(FILE *out) {
    fputs("Usage: relay COMMAND [options]\n\n"
          "Exact attention over shared system prompts: a prompt's K/V is computed once and read\n"
          "once per batch, whatever the number of requests that stand on it.\n\nCommands:\n", out);
    for (int i = 0; i < NUM_COMMANDS; i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].summary);
    fputs("\n'relay COMMAND --help' says more; 'relay --version' prints the version.\n", out);
}

/* What has been asked for has been printed only if it has reached stdout. */
static int printed(void) {
    return fflush(stdout) == 0 && !ferror(stdout) ? 0 : 1;
}

/* OpenMP threads that wait by spinning take the processor from those that work, wherever processors
 * are shared or rationed: ten times slower was seen.  GNU's runtime reads how long to spin before main
 * begins, so the command starts itself again, once, with little. */
static void spin_little(char **argv) {
    char self[4096];
    if (getenv("OMP_WAIT_POLICY") != NULL || getenv("GOMP_SPINCOUNT") != NULL) return;
    ssize_t size = readlink("/proc/self/exe", self, sizeof self - 1);
    if (size <= 0 || setenv("GOMP_SPINCOUNT", "2000", 0) != 0) return;
    self[size] = '\0';
    execv(self, argv); /* where that fails, it goes on as it is */
}

int main(int argc, char **argv) {
    spin_little(argv);
    if (argc < 2) {
        print_help(stderr);
        return 2;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_help(stdout);
        return printed();
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("relay %s\n", relay_version());
        return printed();
    }
    for (int i = 0; i < NUM_COMMANDS; i++)
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
    fprintf(stderr, "relay: unknown command \"%s\"\nTry 'relay --help'.\n", argv[1]);
    return 2;
}
