/* Names of files that are to be written, looked at before there is anything to write. */
#ifndef RELAY_OUTPUT_PATH_H
#define RELAY_OUTPUT_PATH_H

#include <stdbool.h>

/* Why no file can be made or replaced there; NULL: nothing stands in the way.  Nothing is touched. */
const char *output_problem(const char *path);

/* Whether both name one regular file, there or not yet. */
bool output_same_file(const char *one, const char *other);

#endif
