/* Ctrl-C and SIGTERM: the first one is a wish, the second ends the process. */
#ifndef RELAY_INTERRUPTS_H
#define RELAY_INTERRUPTS_H

void interrupts_watch(void);

/* Becomes readable with a signal, also with one that came just before somebody waits for it. */
int interrupts_fd(void);

/* The signal that came, or 0. */
int interrupts_seen(void);

/* Forgets it: the next one is a first one again. */
void interrupts_clear(void);

#endif
