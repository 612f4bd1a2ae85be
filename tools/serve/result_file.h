/* The file of answers: whole lines only, whatever happens. */
#ifndef RELAY_RESULT_FILE_H
#define RELAY_RESULT_FILE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "id_table.h"

typedef enum result_mode {
    RESULTS_NEW,    /* refuses a file that holds anything */
    RESULTS_RESUME, /* goes on behind the lines that are there */
    RESULTS_FORCE   /* replaces what is there */
} result_mode;

typedef struct result_file {
    const char *path;
    int fd;
    bool is_file;    /* a regular one: what a failed write left is cut off again */
    off_t size;      /* of whole lines */
} result_file;

/* Whether results_open would take the path, without touching it.  With RESULTS_RESUME, `done` gets the
 * ids that are there, each with the hash of its text.  "-" is stdout.  Messages go to stderr. */
bool results_check(const char *path, result_mode mode, id_table *done);

bool results_open(const char *path, result_mode mode, result_file *out);

/* Writes a line, newline included, whole or not at all. */
bool results_write(result_file *file, const char *line, size_t size);

/* False where the system could not keep what was written. */
bool results_close(result_file *file);

#endif
