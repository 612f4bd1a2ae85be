/* The subcommands of `relay`: each is `int cmd_<name>(int argc, char **argv)` in <name>.c, with
 * argv[0] the subcommand's name, and returns the exit code. */
#ifndef RELAY_COMMANDS_H
#define RELAY_COMMANDS_H

/* X(name, what it does), in the order of `relay --help`. */
#define RELAY_COMMANDS(X)                                                                      \
    X(generate, "answers a file of requests that share system prompts")                       \
    X(chat, "a conversation in the terminal, under a system prompt that is computed once")     \
    X(bench, "times attention, and whole steps, beside the limits of this machine")            \
    X(check, "checks this build on this processor: kernels, whole problems, laws")             \
    X(info, "what this processor has, which kernels are chosen, how fast they can be")

#define RELAY_COMMAND_DECLARE(name, summary) int cmd_##name(int argc, char **argv);
RELAY_COMMANDS(RELAY_COMMAND_DECLARE)
#undef RELAY_COMMAND_DECLARE

#endif
