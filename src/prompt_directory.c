/* The directory of a prompt cache: names, and temporary files that are cleaned up after writers
 * that died.
 *
 *   <32 hex digits>.relay                        a prompt
 *   <32 hex digits>.relay.tmp-<pid>-<counter>    one that is being written
 *
 * A writer holds a lock (flock) on its temporary file, and the kernel drops the lock when the
 * writer dies.  Whoever can take it may therefore remove the file.  A process id would say less:
 * it may belong to another container, or be in use again. */
#define _DEFAULT_SOURCE /* flock */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "alloc.h"
#include "log.h"
#include "prompt_internal.h"

#define ID_DIGITS 32
#define SUFFIX ".relay"
#define TEMPORARY_SUFFIX ".tmp-"
#define MAX_TRIES 1000 /* names that other writers may have taken */

const char *relayi_error_text(int error, char text[RELAYI_ERROR_TEXT_BYTES]) {
    if (strerror_r(error, text, RELAYI_ERROR_TEXT_BYTES) != 0)
        snprintf(text, RELAYI_ERROR_TEXT_BYTES, "error %d", error);
    return text;
}

void relayi_file_name(const uint64_t id[2], char name[RELAYI_FILE_NAME_BYTES]) {
    snprintf(name, RELAYI_FILE_NAME_BYTES, "%016" PRIx64 "%016" PRIx64 SUFFIX, id[0], id[1]);
}

/* ---- temporary files ---- */

static uint64_t next_number(relay_prompt_cache *cache) {
    pthread_mutex_lock(&cache->lock);
    uint64_t number = cache->next_temporary++;
    pthread_mutex_unlock(&cache->lock);
    return number;
}

/* Locks the file.  False if a cleaner was faster and removed it. */
static bool lock_temporary(int file) {
    struct stat status;
    flock(file, LOCK_EX | LOCK_NB); /* without locks on this file system nothing is ever cleaned */
    return fstat(file, &status) != 0 || status.st_nlink > 0;
}

int relayi_temporary_open(relay_prompt_cache *cache, const char *name,
                          char temporary[RELAYI_FILE_NAME_BYTES]) {
    for (int tries = 0; tries < MAX_TRIES; tries++) {
        snprintf(temporary, RELAYI_FILE_NAME_BYTES, "%s" TEMPORARY_SUFFIX "%ld-%" PRIu64, name,
                 (long)getpid(), next_number(cache));
        int file = openat(cache->directory, temporary,
                          O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (file >= 0 && lock_temporary(file)) return file;
        if (file >= 0) close(file);
        if (file < 0 && errno != EEXIST && errno != EINTR) return -1;
    }
    errno = EEXIST;
    return -1;
}

static const char *skip(const char *text, const char *accepted) {
    size_t length = strspn(text, accepted);
    return length > 0 ? text + length : NULL;
}

/* Whether the name is one of ours; nothing else in the directory is touched. */
static bool is_temporary(const char *name) {
    static const char middle[] = SUFFIX TEMPORARY_SUFFIX;
    if (strspn(name, "0123456789abcdef") != ID_DIGITS) return false;
    name += ID_DIGITS;
    if (strncmp(name, middle, sizeof middle - 1) != 0) return false;
    name = skip(name + sizeof middle - 1, "0123456789");
    if (name == NULL || *name != '-') return false;
    name = skip(name + 1, "0123456789");
    return name != NULL && *name == '\0';
}

static void remove_if_abandoned(const relay_prompt_cache *cache, const char *name) {
    int file = openat(cache->directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (file < 0) return;
    if (flock(file, LOCK_EX | LOCK_NB) == 0 && unlinkat(cache->directory, name, 0) == 0)
        relayi_log(cache->device, RELAY_LOG_INFO, "prompt cache: removed unfinished file %s/%s",
                   cache->options.directory, name);
    close(file);
}

static void remove_abandoned(const relay_prompt_cache *cache) {
    int again = openat(cache->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = again >= 0 ? fdopendir(again) : NULL;
    if (directory == NULL) {
        if (again >= 0) close(again);
        return;
    }
    for (struct dirent *entry = readdir(directory); entry != NULL; entry = readdir(directory))
        if (is_temporary(entry->d_name)) remove_if_abandoned(cache, entry->d_name);
    closedir(directory);
}

/* ---- the directory ---- */

static relay_status fail_directory(const relay_prompt_cache *cache, const char *what, int error) {
    char text[RELAYI_ERROR_TEXT_BYTES];
    return relayi_fail(cache->device, RELAY_IO_ERROR,
                       "relay_prompt_cache_options.directory: %s: %s: %s", cache->options.directory, what,
                       relayi_error_text(error, text));
}

/* Makes the directory and those above it.  Whether that was enough shows when the directory is
 * opened; the last error is kept to say why not. */
static int make_directories(char *path) {
    int error = 0;
    for (char *at = path + 1; at[-1] != '\0'; at++) {
        if (*at != '/' && *at != '\0') continue;
        char saved = *at;
        *at = '\0';
        if (mkdir(path, 0777) != 0 && errno != EEXIST) error = errno;
        *at = saved;
    }
    return error;
}

static relay_status try_writing(relay_prompt_cache *cache) {
    char name[RELAYI_FILE_NAME_BYTES], temporary[RELAYI_FILE_NAME_BYTES];
    relayi_file_name((const uint64_t[2]){0, 0}, name);
    int file = relayi_temporary_open(cache, name, temporary);
    if (file < 0) return fail_directory(cache, "cannot be written", errno);
    unlinkat(cache->directory, temporary, 0);
    close(file);
    return RELAY_OK;
}

relay_status relayi_directory_open(relay_prompt_cache *cache) {
    char *path = relayi_copy_string(cache->options.directory);
    if (path == NULL)
        return relayi_fail(cache->device, RELAY_OUT_OF_MEMORY, "prompt cache: no memory for a path");
    int error = make_directories(path);
    cache->directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (cache->directory < 0) error = error != 0 ? error : errno;
    relayi_free(path);
    if (cache->directory < 0) return fail_directory(cache, "cannot be made or opened", error);
    relay_status status = try_writing(cache);
    if (status == RELAY_OK) remove_abandoned(cache);
    return status;
}

void relayi_directory_close(relay_prompt_cache *cache) {
    if (cache->directory >= 0) close(cache->directory);
    cache->directory = -1;
}
