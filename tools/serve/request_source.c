#include "request_source.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool complain(const char *path, const char *what) {
    fprintf(stderr, "relay generate: %s: %s\n", path, what);
    return false;
}

static bool complain_reading(const char *path) {
    return complain(path, errno == E2BIG ? "a line of more than 64 MiB" : strerror(errno));
}

static bool is_blank(const char *line) {
    return line[strspn(line, " \t\r")] == '\0';
}

/* What some editors put before the first line is no part of it. */
static void skip_byte_order_mark(const request_source *s, char **line, size_t *size) {
    static const char mark[] = "\xEF\xBB\xBF";
    if (s->reader.number != 1 || strncmp(*line, mark, 3) != 0) return;
    *line += 3;
    *size -= 3;
}

static bool is_utf_16(const request_source *s, const char *line, size_t size) {
    return s->reader.number == 1 && size >= 2 && (memcmp(line, "\xFF\xFE", 2) == 0 || memcmp(line, "\xFE\xFF", 2) == 0);
}

/* Notes an id; false where it is known, or memory is out. */
static bool note_id(request_source *s, const char *id) {
    const id_entry *known = id_table_find(&s->ids, id);
    if (known == NULL) return id_table_add(&s->ids, id, (uint64_t)s->reader.number) || complain(s->path, "out of memory for its ids");
    fprintf(stderr, "relay generate: %s: line %ld: id %s is that of line %llu, too\n", s->path, s->reader.number, id,
            (unsigned long long)known->value);
    return false;
}

static bool see_through(request_source *s) {
    char *line;
    size_t size;
    bool torn, ok = true;
    line_status status;
    while ((status = line_reader_next(&s->reader, true, &line, &size, &torn)) == LINE_READY) {
        skip_byte_order_mark(s, &line, &size);
        if (is_blank(line)) continue;
        request_line request;
        /* what is no request is named when its turn comes */
        if (request_line_parse(line, size, &request)) {
            s->total++;
            if (!note_id(s, request.id)) ok = false;
        }
        request_line_free(&request);
    }
    if (status == LINE_FAILED) return complain_reading(s->path);
    id_table_free(&s->ids);
    line_reader_free(&s->reader);
    s->reader = line_reader_on(s->fd);
    s->seen_through = true;
    return ok && (lseek(s->fd, 0, SEEK_SET) == 0 || complain(s->path, strerror(errno)));
}

bool request_source_open(const char *path, request_source *out) {
    struct stat info;
    bool standard = strcmp(path, "-") == 0;
    *out = (request_source){.path = standard ? "stdin" : path, .total = -1};
    out->fd = standard ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (out->fd < 0 || fstat(out->fd, &info) != 0) return complain(out->path, strerror(errno));
    out->reader = line_reader_on(out->fd);
    if (S_ISDIR(info.st_mode)) {
        request_source_close(out);
        return complain(path, "is a directory");
    }
    if (!S_ISREG(info.st_mode) || lseek(out->fd, 0, SEEK_CUR) != 0) return true;
    out->total = 0;
    if (see_through(out)) return true;
    request_source_close(out);
    return false;
}

void request_source_close(request_source *source) {
    line_reader_free(&source->reader);
    id_table_free(&source->ids);
    if (source->fd > STDIN_FILENO) close(source->fd);
    source->fd = -1;
}

line_status request_source_next(request_source *s, bool wait, request_line *out) {
    char *line;
    size_t size;
    bool torn;
    for (;;) {
        line_status status = line_reader_next(&s->reader, wait, &line, &size, &torn);
        if (status == LINE_FAILED) s->failed = !complain_reading(s->path);
        if (status != LINE_READY) return status;
        skip_byte_order_mark(s, &line, &size);
        if (is_blank(line)) continue;
        if (is_utf_16(s, line, size)) {
            s->failed = !complain(s->path, "is UTF-16: requests are read as UTF-8");
            return LINE_FAILED;
        }
        bool good = request_line_parse(line, size, out);
        if (!good) fprintf(stderr, "relay generate: %s: line %ld: %s\n", s->path, s->reader.number, out->problem);
        else if (!s->seen_through) good = note_id(s, out->id);
        if (good) return LINE_READY;
        s->refused++;
        request_line_free(out);
    }
}
