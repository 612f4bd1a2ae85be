/* relay: one command, several subcommands. */
#include <stdio.h>
#include <string.h>

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

int main(int argc, char **argv) {
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
