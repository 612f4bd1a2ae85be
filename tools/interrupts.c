#include "interrupts.h"

#include <signal.h>
#include <stddef.h>
#include <unistd.h>

static volatile sig_atomic_t seen;

static void note(int number) {
    if (seen != 0) _exit(128 + number);
    seen = number;
}

void interrupts_watch(void) {
    struct sigaction action = {.sa_handler = note}; /* no SA_RESTART: a read that waits has to return */
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    /* a reader of our output that has gone is a failed write, with a message */
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigemptyset(&ignore.sa_mask);
    sigaction(SIGPIPE, &ignore, NULL);
}

int interrupts_seen(void) {
    return seen;
}

void interrupts_clear(void) {
    seen = 0;
}
