/* The requests of a run: lines read as they are needed, those answered before left out. */
#ifndef RELAY_REQUEST_SOURCE_H
#define RELAY_REQUEST_SOURCE_H

#include "id_table.h"
#include "line_reader.h"
#include "request_line.h"

typedef struct request_source {
    const char *path;
    int fd;
    line_reader reader;
    bool seen_through;   /* a file, whose ids were all looked at before the first answer */
    int64_t total;       /* its requests; -1: not known */
    id_table ids;        /* where they are looked at on the way: id and line */
    int64_t refused;     /* lines that were passed over with a message */
    bool failed;         /* reading ended in an error, which has been said */
} request_source;

/* Opens a file, or stdin for "-".  A file is read through once, and refused whole where an id occurs
 * twice.  Messages go to stderr. */
bool request_source_open(const char *path, request_source *out);
void request_source_close(request_source *source);

/* The next request to be answered: LINE_READY fills *out, to be freed.  Lines that cannot be answered are
 * named on stderr, counted and passed over. */
line_status request_source_next(request_source *source, bool wait, request_line *out);

#endif
