#include "output_path.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Of the directory that a new file would be made in. */
static const char *parent_problem(const char *path) {
    char parent[PATH_MAX] = ".";
    const char *slash = strrchr(path, '/');
    size_t length = slash == NULL ? 1 : slash == path ? 1 : (size_t)(slash - path);
    if (length >= sizeof parent) return strerror(ENAMETOOLONG);
    if (slash != NULL) memcpy(parent, path, length);
    parent[length] = '\0';
    return access(parent, W_OK | X_OK) == 0 ? NULL : strerror(errno);
}

const char *output_problem(const char *path) {
    struct stat info;
    if (path[0] == '\0') return "the name of the file is empty";
    if (stat(path, &info) != 0) return errno == ENOENT ? parent_problem(path) : strerror(errno);
    if (S_ISDIR(info.st_mode)) return "is a directory";
    return access(path, W_OK) == 0 ? NULL : strerror(errno);
}

bool output_same_file(const char *one, const char *other) {
    struct stat a, b;
    bool there = stat(one, &a) == 0;
    if (there != (stat(other, &b) == 0)) return false;
    if (!there) return strcmp(one, other) == 0;
    return S_ISREG(a.st_mode) && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}
