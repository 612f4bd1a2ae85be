#include "interrupts.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

static volatile sig_atomic_t seen;
static int ends[2] = {-1, -1}; /* of a pipe that holds a byte while a signal is noted */

static void note(int number) {
    int error = errno;
    if (seen != 0) _exit(128 + number);
    seen = number;
    if (write(ends[1], "!", 1) < 0) seen = number; /* a full pipe wakes as well as one byte more would */
    errno = error;
}

static void open_pipe(void) {
    if (ends[0] >= 0 || pipe(ends) != 0) return;
    for (int i = 0; i < 2; i++) {
        fcntl(ends[i], F_SETFL, O_NONBLOCK);
        fcntl(ends[i], F_SETFD, FD_CLOEXEC);
    }
}

int interrupts_fd(void) {
    return ends[0];
}

void interrupts_watch(void) {
    open_pipe();
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
    char drained[16];
    while (read(ends[0], drained, sizeof drained) > 0) continue;
    seen = 0;
}
