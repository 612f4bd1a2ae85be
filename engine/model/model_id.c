#include "model_id.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file_map.h"

enum { SAMPLES = 256, SAMPLE_BYTES = 4096 };

static bool has_weights_name(const char *name) {
    static const char ending[] = ".safetensors";
    size_t length = strlen(name), tail = sizeof ending - 1;
    return strcmp(name, "config.json") == 0 || (length > tail && strcmp(name + length - tail, ending) == 0);
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void free_names(char **names, size_t count) {
    for (size_t i = 0; i < count; i++) free(names[i]);
    free(names);
}

/* The names in one order, whatever order the directory has. */
static bool list_names(const char *dir, char ***names, size_t *count, eng_error *err) {
    *names = NULL;
    *count = 0;
    DIR *open = opendir(dir);
    if (open == NULL) return eng_fail(err, "%s: %s", dir, strerror(errno));
    bool ok = true;
    for (struct dirent *entry = readdir(open); ok && entry != NULL; entry = readdir(open)) {
        if (!has_weights_name(entry->d_name)) continue;
        char **grown = realloc(*names, (*count + 1) * sizeof *grown);
        if (grown != NULL) *names = grown;
        ok = grown != NULL && (grown[*count] = strdup(entry->d_name)) != NULL;
        if (ok) ++*count;
    }
    closedir(open);
    if (ok && *count > 0) qsort(*names, *count, sizeof **names, compare_names);
    if (!ok) free_names(*names, *count);
    return ok || eng_fail(err, "%s: out of memory for its file names", dir);
}

static void add_number(eng_sha256 *hash, uint64_t value) {
    unsigned char bytes[8];
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)(value >> (8 * i));
    eng_sha256_add(hash, bytes, sizeof bytes);
}

/* Small files whole; of large ones the front, which holds a safetensors header, and places all over. */
static void add_samples(eng_sha256 *hash, const eng_file_map *map) {
    const char *data = map->data;
    size_t whole = (size_t)SAMPLES * SAMPLE_BYTES;
    if (map->size <= whole) {
        eng_sha256_add(hash, data, map->size);
        return;
    }
    for (size_t i = 0; i < SAMPLES; i++)
        eng_sha256_add(hash, data + (map->size - SAMPLE_BYTES) / (SAMPLES - 1) * i, SAMPLE_BYTES);
}

static bool add_file(eng_sha256 *hash, const char *dir, const char *name, eng_error *err) {
    char path[4096];
    if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, name) >= sizeof path)
        return eng_fail(err, "%s: path too long", dir);
    struct stat info;
    eng_file_map map;
    if (stat(path, &info) != 0) return eng_fail(err, "%s: %s", path, strerror(errno));
    if (!eng_file_map_open(path, &map, err)) return false;
    eng_sha256_add(hash, name, strlen(name) + 1);
    add_number(hash, map.size);
    add_number(hash, (uint64_t)info.st_mtim.tv_sec);
    add_number(hash, (uint64_t)info.st_mtim.tv_nsec);
    add_samples(hash, &map);
    eng_file_map_close(&map);
    return true;
}

bool eng_model_id(const char *dir, const char *how, char id[ENG_SHA256_HEX], eng_error *err) {
    char **names = NULL;
    size_t count = 0;
    if (!list_names(dir, &names, &count, err)) return false;
    eng_sha256 hash;
    eng_sha256_begin(&hash);
    eng_sha256_add(&hash, how, strlen(how) + 1);
    bool ok = true;
    for (size_t i = 0; ok && i < count; i++) ok = add_file(&hash, dir, names[i], err);
    free_names(names, count);
    if (ok) eng_sha256_end_hex(&hash, id);
    return ok;
}
