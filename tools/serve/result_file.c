#include "result_file.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/json_memory.h"
#include "line_reader.h"
#include "output_path.h"
#include "request_line.h"

static bool complain(const char *path, const char *what) {
    fprintf(stderr, "relay generate: %s: %s\n", path, what);
    return false;
}

/* ---- what is there ------------------------------------------------------ */

static bool note_done(const char *path, const char *line, size_t size, long number, id_table *done) {
    json_error_t error;
    json_t *root = eng_json_parse(line, size, JSON_ALLOW_NUL, &error);
    char *id = request_id_text(json_object_get(root, "id"));
    const json_t *text = json_object_get(root, "text");
    bool ok = id != NULL && json_is_string(text);
    if (eng_json_starved())
        ok = complain(path, "out of memory for its lines");
    else if (!ok)
        fprintf(stderr, "relay generate: %s: line %ld is no answer: not a file to resume\n", path, number);
    else if (id_table_find(done, id) == NULL)
        ok = id_table_add(done, id, hash_text(json_string_value(text), json_string_length(text))) ||
             complain(path, "out of memory for its ids");
    free(id);
    json_decref(root);
    return ok;
}

/* A last line without its newline was being written when the run was killed: it does not count. */
static bool note_all_done(const char *path, int fd, id_table *done, off_t *whole) {
    line_reader reader = line_reader_on(fd);
    char *line;
    size_t size;
    bool torn, ok = true;
    line_status status;
    *whole = 0;
    while (ok && (status = line_reader_next(&reader, true, &line, &size, &torn)) == LINE_READY && !torn) {
        *whole += (off_t)size + 1;
        if (done != NULL) ok = note_done(path, line, size, reader.number, done);
    }
    if (ok && status == LINE_FAILED) ok = complain(path, strerror(errno));
    line_reader_free(&reader);
    return ok;
}

static bool check_resumable(const char *path, id_table *done) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    off_t whole;
    if (fd < 0) return errno == ENOENT || complain(path, strerror(errno));
    bool ok = note_all_done(path, fd, done, &whole);
    close(fd);
    return ok;
}

bool results_check(const char *path, result_mode mode, id_table *done) {
    struct stat info;
    if (strcmp(path, "-") == 0) return true;
    const char *problem = output_problem(path);
    if (problem != NULL) return complain(path, problem);
    if (mode == RESULTS_RESUME) return check_resumable(path, done);
    if (mode == RESULTS_NEW && stat(path, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0)
        return complain(path, "holds answers already; --resume goes on with it, --force replaces it");
    return true;
}

/* ---- writing ------------------------------------------------------------ */

/* Two runs must not write one file. */
static bool lock(const result_file *file) {
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (!file->is_file || fcntl(file->fd, F_SETLK, &whole) == 0) return true;
    return complain(file->path, errno == EACCES || errno == EAGAIN ? "another run is writing to it" : strerror(errno));
}

static bool prepare(result_file *file, result_mode mode) {
    struct stat info;
    if (fstat(file->fd, &info) != 0) return complain(file->path, strerror(errno));
    file->is_file = S_ISREG(info.st_mode);
    if (!file->is_file) return true;
    if (!lock(file)) return false;
    if (mode == RESULTS_NEW && info.st_size > 0) return complain(file->path, "another run has written to it");
    if (mode == RESULTS_RESUME && !note_all_done(file->path, file->fd, NULL, &file->size)) return false;
    if (ftruncate(file->fd, file->size) != 0 || lseek(file->fd, file->size, SEEK_SET) < 0)
        return complain(file->path, strerror(errno));
    return true;
}

bool results_open(const char *path, result_mode mode, result_file *out) {
    *out = (result_file){.path = path, .fd = STDOUT_FILENO};
    if (strcmp(path, "-") == 0) {
        out->path = "stdout";
        return true;
    }
    out->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (out->fd < 0 && errno == EACCES) out->fd = open(path, O_WRONLY | O_CLOEXEC); /* a pipe or device */
    if (out->fd < 0) return complain(path, strerror(errno));
    if (prepare(out, mode)) return true;
    close(out->fd);
    out->fd = -1;
    return false;
}

bool results_write(result_file *file, const char *line, size_t size) {
    size_t written = 0;
    while (written < size) {
        ssize_t count = write(file->fd, line + written, size - written);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) {
            int error = errno;
            if (file->is_file && ftruncate(file->fd, file->size) == 0) lseek(file->fd, file->size, SEEK_SET);
            return complain(file->path, strerror(error));
        }
        written += (size_t)count;
    }
    file->size += (off_t)size;
    return true;
}

bool results_close(result_file *file) {
    if (file->fd < 0) return true;
    bool ok = !file->is_file || fsync(file->fd) == 0 || complain(file->path, strerror(errno));
    if (file->fd != STDOUT_FILENO && close(file->fd) != 0) ok = complain(file->path, strerror(errno));
    file->fd = -1;
    return ok;
}
