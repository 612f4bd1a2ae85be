/* Memory that fails on demand.  An executable that links failing_memory.c with --wrap for the functions
 * it names (FAILING_MEMORY_OPTIONS in tests/CMakeLists.txt) has every call that its own objects make go
 * through here, and jansson's with those of the engine (json_memory.h). */
#ifndef RELAY_FAILING_MEMORY_H
#define RELAY_FAILING_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

/* Counts calls from 0 on; call number `which` fails, and with `for_good` all after it.  A negative
 * number: none does. */
void failing_memory_begin(long which, bool for_good);
/* Everything works again.  Whether a call has failed. */
bool failing_memory_end(void);
long failing_memory_calls(void); /* since begin */

/* Counts a call of another kind, and says whether it is to fail: for functions that a test wraps itself. */
bool failing_memory_now(void);

/* Remembers the way to each call until failing_memory_end; then the numbers of those that came a way
 * that none before them had come.  *count is how many; the array is the caller's to free. */
void failing_memory_remember(void);
long *failing_memory_first_of_each_way(size_t *count);

/* Bytes that are mapped, and file descriptors that are open. */
size_t failing_memory_mapped(void);
int failing_memory_open_files(void);

#endif
