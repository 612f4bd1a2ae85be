#include "line_reader.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { READ_BYTES = 1 << 16 };

line_reader line_reader_on(int fd) {
    return (line_reader){.fd = fd, .wake_fd = -1};
}

void line_reader_free(line_reader *reader) {
    free(reader->data);
    *reader = line_reader_on(-1);
}

/* Room for READ_BYTES and a 0 byte behind what is unread. */
static bool make_room(line_reader *r) {
    if (r->begin > 0) {
        memmove(r->data, r->data + r->begin, r->size - r->begin);
        r->size -= r->begin;
        r->begin = 0;
    }
    if (r->size > LINE_MAX_BYTES) {
        errno = E2BIG;
        return false;
    }
    if (r->room - r->size > READ_BYTES) return true;
    size_t room = 2 * r->room + READ_BYTES + 1;
    char *data = realloc(r->data, room);
    if (data == NULL) return false;
    r->data = data;
    r->room = room;
    return true;
}

static bool readable(const line_reader *r, bool wait) {
    struct pollfd fds[] = {{.fd = r->fd, .events = POLLIN}, {.fd = r->wake_fd, .events = POLLIN}};
    return poll(fds, 2, wait ? -1 : 0) > 0 && fds[0].revents != 0;
}

static line_status read_more(line_reader *r, bool wait) {
    if (!readable(r, wait)) return LINE_LATER;
    if (!make_room(r)) return LINE_FAILED;
    ssize_t count = read(r->fd, r->data + r->size, READ_BYTES);
    if (count < 0) return errno == EINTR || errno == EAGAIN ? LINE_LATER : LINE_FAILED;
    if (count == 0) r->ended = true;
    r->size += (size_t)count;
    return LINE_READY;
}

static line_status give_out(line_reader *r, size_t length, char **line, size_t *size) {
    *line = r->data + r->begin;
    *size = length;
    (*line)[length] = '\0';
    r->begin += length + 1;
    if (r->begin > r->size) r->begin = r->size;
    r->number++;
    return LINE_READY;
}

line_status line_reader_next(line_reader *r, bool wait, char **line, size_t *size, bool *torn) {
    size_t searched = r->begin;
    *torn = false;
    for (;;) {
        char *end = r->size > searched ? memchr(r->data + searched, '\n', r->size - searched) : NULL;
        if (end != NULL) return give_out(r, (size_t)(end - (r->data + r->begin)), line, size);
        if (r->ended && r->begin == r->size) return LINE_END;
        if (r->ended) {
            *torn = true;
            return give_out(r, r->size - r->begin, line, size);
        }
        size_t unread = r->size - r->begin;
        line_status status = read_more(r, wait);
        if (status != LINE_READY) return status;
        searched = r->begin + unread;
    }
}
