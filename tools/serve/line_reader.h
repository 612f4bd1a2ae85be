/* Lines of a file or a pipe, without waiting where there is other work. */
#ifndef RELAY_LINE_READER_H
#define RELAY_LINE_READER_H

#include <stdbool.h>
#include <stddef.h>

/* What one line may take: beyond it, a file is no file of requests. */
enum { LINE_MAX_BYTES = 64 << 20 };

typedef enum line_status {
    LINE_READY,
    LINE_LATER, /* nothing there yet */
    LINE_END,
    LINE_FAILED /* errno says why; E2BIG: a line longer than LINE_MAX_BYTES */
} line_status;

typedef struct line_reader {
    int fd, wake_fd;          /* wake_fd: ends waiting when it becomes readable; -1: none */
    char *data;
    size_t begin, size, room; /* unread: [begin, size) */
    long number;              /* of the line given out last, from 1 */
    bool ended;
} line_reader;

line_reader line_reader_on(int fd);
void line_reader_free(line_reader *reader);

/* *line is 0-terminated in place of its newline and lives until the next call; *torn: the last line of
 * a file that does not end in a newline.  wake_fd and signals end waiting with LINE_LATER. */
line_status line_reader_next(line_reader *reader, bool wait, char **line, size_t *size, bool *torn);

#endif
