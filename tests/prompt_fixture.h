/* What the tests of the prompt cache share: a device that remembers its log, caches of small
 * shapes, prompts whose numbers follow from their key, scratch directories. */
#ifndef RELAY_PROMPT_FIXTURE_H
#define RELAY_PROMPT_FIXTURE_H

#include <dirent.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checksum.h"
#include "device_internal.h"
#include "packed.h"
#include "prompt.h"
#include "relay/prompt_cache.h"
#include "test.h"

#define CHECK_STATUS(call, expected)                                                   \
    do {                                                                               \
        relay_status status_ = (call);                                                 \
        CHECK_MSG(status_ == (expected), "%s, expected %s", relay_status_name(status_), \
                  relay_status_name(expected));                                        \
    } while (0)

/* ---- the log ---- */

typedef struct kept_log {
    pthread_mutex_t lock;
    char last[1024]; /* the last line, its level before it */
    int lines[5];    /* by level */
} kept_log;

static kept_log logged = {.lock = PTHREAD_MUTEX_INITIALIZER};

static inline void keep_line(void *user, relay_log_level level, const char *message) {
    kept_log *log = user;
    static const char *const names[] = {"", "ERROR", "WARN", "INFO", "DEBUG"};
    pthread_mutex_lock(&log->lock);
    snprintf(log->last, sizeof log->last, "%s %s", names[level], message);
    log->lines[level]++;
    pthread_mutex_unlock(&log->lock);
}

static inline void forget_log(void) {
    logged.last[0] = '\0';
    memset(logged.lines, 0, sizeof logged.lines);
}

static inline relay_device *open_device(int32_t threads) {
    relay_device_options options = relay_device_options_defaults();
    relay_device *device = NULL;
    options.threads = threads;
    options.log = keep_line;
    options.log_user = &logged;
    if (relay_device_open(&options, &device) != RELAY_OK) {
        fprintf(stderr, "relay_device_open: %s\n", logged.last);
        exit(1);
    }
    return device;
}

/* ---- caches ---- */

static inline relay_prompt_cache_options small_options(void) {
    relay_prompt_cache_options options = relay_prompt_cache_options_defaults();
    options.num_layers = 2;
    options.num_kv_heads = 1;
    options.head_dim = 8;
    options.model_id = "model";
    return options;
}

static inline relay_prompt_cache *make_cache(relay_device *device,
                                             const relay_prompt_cache_options *options) {
    relay_prompt_cache *cache = NULL;
    relay_status status = relay_prompt_cache_create(device, options, &cache);
    if (status != RELAY_OK) {
        fprintf(stderr, "relay_prompt_cache_create: %s: %s\n", relay_status_name(status), logged.last);
        exit(1);
    }
    return cache;
}

static inline relay_prompt_cache_stats stats_of(relay_prompt_cache *cache) {
    relay_prompt_cache_stats stats = {.struct_size = sizeof stats};
    CHECK(relay_prompt_cache_get_stats(cache, &stats) == RELAY_OK);
    return stats;
}

/* ---- prompts ---- */

/* A number in (-1, 1) with few bits, exact in every dtype, for each element of each prompt. */
static inline float number_for(const char *key, int32_t layer, bool is_value, int64_t element) {
    struct {
        uint64_t layer, is_value, element;
    } place = {(uint64_t)layer, is_value, (uint64_t)element};
    uint64_t mixed = relayi_checksum_of(&place, sizeof place,
                                        relayi_checksum_of(key, strlen(key), 77));
    return (float)((int64_t)(mixed % 255) - 127) / 128.0f;
}

/* Fills one layer's [tokens, heads, dim] as float32. */
static inline float *numbers_for(const char *key, int32_t layer, bool is_value, int64_t count) {
    float *numbers = malloc((size_t)count * sizeof *numbers);
    for (int64_t i = 0; numbers != NULL && i < count; i++)
        numbers[i] = number_for(key, layer, is_value, i);
    return numbers;
}

static inline relay_status write_layer(relay_prompt *prompt, int32_t layer) {
    relayi_prompt_shape shape = relayi_prompt_get_shape(prompt);
    int64_t count = (int64_t)shape.num_tokens * shape.num_kv_heads * shape.head_dim;
    float *key = numbers_for(relay_prompt_key(prompt), layer, false, count);
    float *value = numbers_for(relay_prompt_key(prompt), layer, true, count);
    relay_tensor k = relay_tensor_3d(key, RELAY_F32, shape.num_tokens, shape.num_kv_heads, shape.head_dim);
    relay_tensor v = relay_tensor_3d(value, RELAY_F32, shape.num_tokens, shape.num_kv_heads, shape.head_dim);
    relay_status status = relay_prompt_write(prompt, layer, 0, &k, &v);
    free(key);
    free(value);
    return status;
}

static inline relay_status write_all_layers(relay_prompt *prompt) {
    relay_status status = RELAY_OK;
    for (int32_t layer = 0; layer < relayi_prompt_get_shape(prompt).num_layers && status == RELAY_OK; layer++)
        status = write_layer(prompt, layer);
    return status;
}

/* Begins, fills, commits, and leaves the prompt pinned in *prompt. */
static inline relay_status build_pinned(relay_prompt_cache *cache, const char *key, int32_t tokens,
                                        relay_prompt **prompt) {
    relay_status status = relay_prompt_cache_begin(cache, key, tokens, prompt);
    if (status == RELAY_OK) status = write_all_layers(*prompt);
    if (status == RELAY_OK) status = relay_prompt_commit(*prompt);
    return status;
}

static inline relay_status build(relay_prompt_cache *cache, const char *key, int32_t tokens) {
    relay_prompt *prompt = NULL;
    relay_status status = build_pinned(cache, key, tokens, &prompt);
    relay_prompt_release(prompt);
    return status;
}

/* Whether a pinned prompt holds exactly what write_all_layers has put there. */
static inline bool holds_its_numbers(const relay_prompt *prompt) {
    relayi_prompt_shape shape = relayi_prompt_get_shape(prompt);
    int64_t count = (int64_t)shape.num_tokens * shape.num_kv_heads * shape.head_dim;
    float *key = malloc((size_t)count * sizeof *key), *value = malloc((size_t)count * sizeof *value);
    relay_tensor k = relay_tensor_3d(key, RELAY_F32, shape.num_tokens, shape.num_kv_heads, shape.head_dim);
    relay_tensor v = relay_tensor_3d(value, RELAY_F32, shape.num_tokens, shape.num_kv_heads, shape.head_dim);
    bool same = true;
    for (int32_t layer = 0; layer < shape.num_layers && same; layer++) {
        same = relay_prompt_read(prompt, layer, 0, &k, &v) == RELAY_OK;
        for (int64_t i = 0; i < count && same; i++)
            same = key[i] == number_for(relay_prompt_key(prompt), layer, false, i) &&
                   value[i] == number_for(relay_prompt_key(prompt), layer, true, i);
    }
    free(key);
    free(value);
    return same;
}

/* Acquires, verifies and releases. */
static inline relay_status look_up(relay_prompt_cache *cache, const char *key) {
    relay_prompt *prompt = NULL;
    relay_status status = relay_prompt_cache_acquire(cache, key, &prompt);
    CHECK((status == RELAY_OK) == (prompt != NULL));
    if (prompt != NULL) {
        CHECK(strcmp(relay_prompt_key(prompt), key) == 0);
        CHECK_MSG(holds_its_numbers(prompt), "prompt '%s'", key);
    }
    relay_prompt_release(prompt);
    return status;
}

/* ---- directories ---- */

static inline void remove_tree(const char *directory) {
    char path[900];
    DIR *open = opendir(directory);
    if (open == NULL) return;
    for (struct dirent *entry = readdir(open); entry != NULL; entry = readdir(open)) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (snprintf(path, sizeof path, "%s/%s", directory, entry->d_name) >= (int)sizeof path) continue;
        if (unlink(path) != 0) remove_tree(path);
    }
    closedir(open);
    rmdir(directory);
}

/* A fresh directory under $TMPDIR or /tmp. */
static inline void make_scratch(char path[256]) {
    const char *parent = getenv("TMPDIR");
    snprintf(path, 256, "%s/relay-prompts-XXXXXX", parent != NULL && strlen(parent) < 200 ? parent : "/tmp");
    if (mkdtemp(path) == NULL) {
        perror(path);
        exit(1);
    }
}

/* Number of entries whose name ends in `suffix`; the last one's path goes to `path` if not NULL. */
static inline int count_files(const char *directory, const char *suffix, char path[600]) {
    int count = 0;
    DIR *open = opendir(directory);
    for (struct dirent *entry = open != NULL ? readdir(open) : NULL; entry != NULL; entry = readdir(open)) {
        size_t length = strlen(entry->d_name), tail = strlen(suffix);
        if (length < tail || strcmp(entry->d_name + length - tail, suffix) != 0) continue;
        count++;
        if (path != NULL) snprintf(path, 600, "%s/%s", directory, entry->d_name);
    }
    if (open != NULL) closedir(open);
    return count;
}

#endif
