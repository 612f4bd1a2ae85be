/* How long a system prompt took to compute, kept beside its K/V in the cache directory so that a run
 * that finds it there can say what that saved.  Losing a note costs that sentence, nothing else. */
#ifndef RELAY_PROMPT_TIMES_H
#define RELAY_PROMPT_TIMES_H

void prompt_time_note(const char *directory, const char *key, double seconds);

/* Seconds, or a negative number where there is no note. */
double prompt_time_find(const char *directory, const char *key);

#endif
