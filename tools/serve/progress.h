/* A line on a terminal that says how far a run is; nothing into a pipe. */
#ifndef RELAY_PROGRESS_H
#define RELAY_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct progress {
    bool shown;      /* stderr is a terminal */
    int64_t total;   /* requests; -1: not known */
    double begun, drawn;
} progress;

progress progress_begin(int64_t total);

/* Draws anew, ten times a second at most.  `tokens` of answers so far; `note` for what goes on (may be ""). */
void progress_update(progress *p, int64_t done, int64_t tokens, const char *note);

/* Clears the line, so that messages may be printed. */
void progress_clear(progress *p);

#endif
