#include "file_map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static bool map_descriptor(int fd, const char *path, eng_file_map *out, eng_error *err) {
    struct stat info;
    if (fstat(fd, &info) != 0) return eng_fail(err, "%s: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return eng_fail(err, "%s: not a regular file", path);
    if ((uintmax_t)info.st_size > SIZE_MAX) return eng_fail(err, "%s: too large for this machine", path);
    if (info.st_size == 0) return true;
    void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) return eng_fail(err, "%s: cannot map: %s", path, strerror(errno));
    out->data = data;
    out->size = (size_t)info.st_size;
    return true;
}

bool eng_file_map_open(const char *path, eng_file_map *out, eng_error *err) {
    memset(out, 0, sizeof *out);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return eng_fail(err, "%s: %s", path, strerror(errno));
    bool ok = map_descriptor(fd, path, out, err);
    close(fd);
    return ok;
}

void eng_file_map_close(eng_file_map *map) {
    if (map->data != NULL) munmap((void *)(uintptr_t)map->data, map->size);
    memset(map, 0, sizeof *map);
}
