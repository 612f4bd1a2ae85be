#include "relay/prompt_cache.h"

#include <string.h>

#include "alloc.h"
#include "device_internal.h"
#include "log.h"
#include "prompt_internal.h"

#define MAX_BUCKETS ((size_t)1 << 16)
#define MAX_LAYERS 4096
#define MAX_KV_HEADS 4096
#define MAX_MODEL_ID_BYTES 255

relay_prompt_cache_options relay_prompt_cache_options_defaults(void) {
    return (relay_prompt_cache_options){.struct_size = sizeof(relay_prompt_cache_options),
                                        .kv_dtype = RELAY_BF16,
                                        .model_id = "",
                                        .enabled = 1,
                                        .max_cached_system_prompts = 100,
                                        .enable_prefetch = 1,
                                        .prefetch_batch_size = 4};
}

/* ---- checks ---- */

static relay_status check_range(const relay_device *device, const char *field, int64_t value,
                                int64_t least, int64_t most) {
    if (value >= least && value <= most) return RELAY_OK;
    return relayi_fail(device, RELAY_INVALID_ARGUMENT,
                       "relay_prompt_cache_options.%s: %lld is not in %lld..%lld", field,
                       (long long)value, (long long)least, (long long)most);
}

static relay_status check_shape(const relay_device *device, const relay_prompt_cache_options *options) {
    relay_status status = check_range(device, "num_layers", options->num_layers, 1, MAX_LAYERS);
    if (status == RELAY_OK)
        status = check_range(device, "num_kv_heads", options->num_kv_heads, 1, MAX_KV_HEADS);
    if (status == RELAY_OK) status = check_range(device, "head_dim", options->head_dim, 8, 256);
    if (status != RELAY_OK) return status;
    if (options->head_dim % 8 != 0)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT,
                           "relay_prompt_cache_options.head_dim: %d is no multiple of 8", options->head_dim);
    if (relay_dtype_size(options->kv_dtype) == 0)
        return relayi_fail(device, RELAY_BAD_DTYPE, "relay_prompt_cache_options.kv_dtype: %d is no dtype",
                           (int)options->kv_dtype);
    return RELAY_OK;
}

static relay_status check_texts(const relay_device *device, const relay_prompt_cache_options *options) {
    if (options->model_id == NULL)
        return relayi_fail(device, RELAY_NULL_POINTER, "relay_prompt_cache_options.model_id is NULL");
    if (strnlen(options->model_id, MAX_MODEL_ID_BYTES + 1) > MAX_MODEL_ID_BYTES)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT,
                           "relay_prompt_cache_options.model_id: longer than %d bytes", MAX_MODEL_ID_BYTES);
    if (options->directory != NULL && options->directory[0] == '\0')
        return relayi_fail(device, RELAY_INVALID_ARGUMENT,
                           "relay_prompt_cache_options.directory: empty (NULL means memory only)");
    return RELAY_OK;
}

/* Prompts are packed and rounded by the device's kernels. */
static relay_status check_kernels(const relay_device *device, const relay_prompt_cache_options *options) {
    const relayi_kernels *kernels = &device->kernels;
    if (kernels->pack[relayi_dt(options->kv_dtype)] != NULL && kernels->f32_to_bf16 != NULL &&
        kernels->f32_to_f16 != NULL && kernels->bf16_to_f32 != NULL && kernels->f16_to_f32 != NULL)
        return RELAY_OK;
    return relayi_fail(device, RELAY_UNSUPPORTED,
                       "relay_prompt_cache_create: the device has no kernels that pack %s prompts",
                       relay_dtype_name(options->kv_dtype));
}

static relay_status check_options(const relay_device *device, const relay_prompt_cache_options *options) {
    relay_status status = relayi_check_size(device, "relay_prompt_cache_options", options->struct_size,
                                            sizeof *options);
    if (status == RELAY_OK) status = check_shape(device, options);
    if (status == RELAY_OK) status = check_texts(device, options);
    if (status == RELAY_OK) status = check_range(device, "enabled", options->enabled, 0, 1);
    if (status == RELAY_OK)
        status = check_range(device, "max_cached_system_prompts", options->max_cached_system_prompts, 1,
                             INT32_MAX - 1);
    if (status == RELAY_OK) status = check_range(device, "enable_prefetch", options->enable_prefetch, 0, 1);
    if (status == RELAY_OK)
        status = check_range(device, "prefetch_batch_size", options->prefetch_batch_size, 1, INT32_MAX);
    if (status == RELAY_OK) status = check_kernels(device, options);
    return status;
}

relay_status relayi_check_key(const relay_prompt_cache *cache, const char *what, const char *key) {
    if (key == NULL) return relayi_fail(cache->device, RELAY_NULL_POINTER, "%s is NULL", what);
    size_t length = strnlen(key, RELAY_MAX_KEY_BYTES + 1);
    if (length >= 1 && length <= RELAY_MAX_KEY_BYTES) return RELAY_OK;
    return relayi_fail(cache->device, RELAY_INVALID_ARGUMENT, "%s: %s, expected 1..%d bytes", what,
                       length == 0 ? "empty" : "too long", RELAY_MAX_KEY_BYTES);
}

/* ---- create and destroy ---- */

static bool copy_options(relay_prompt_cache *cache, const relay_prompt_cache_options *options) {
    cache->options = *options;
    cache->options.model_id = relayi_copy_string(options->model_id);
    cache->options.directory = NULL;
    if (options->directory != NULL) cache->options.directory = relayi_copy_string(options->directory);
    return cache->options.model_id != NULL &&
           (options->directory == NULL || cache->options.directory != NULL);
}

static bool make_buckets(relay_prompt_cache *cache) {
    size_t wanted = (size_t)cache->options.max_cached_system_prompts;
    cache->num_buckets = 1;
    while (cache->num_buckets < wanted && cache->num_buckets < MAX_BUCKETS) cache->num_buckets *= 2;
    cache->buckets = relayi_alloc_array(cache->num_buckets, sizeof(relay_prompt *));
    return cache->buckets != NULL;
}

static bool make_locks(relay_prompt_cache *cache) {
    if (pthread_mutex_init(&cache->lock, NULL) != 0) return false;
    if (pthread_cond_init(&cache->changed, NULL) != 0) goto no_changed;
    if (pthread_cond_init(&cache->wanted, NULL) != 0) goto no_wanted;
    if (pthread_cond_init(&cache->done, NULL) == 0) return true;
    pthread_cond_destroy(&cache->wanted);
no_wanted:
    pthread_cond_destroy(&cache->changed);
no_changed:
    pthread_mutex_destroy(&cache->lock);
    return false;
}

static void free_locks(relay_prompt_cache *cache) {
    pthread_cond_destroy(&cache->done);
    pthread_cond_destroy(&cache->wanted);
    pthread_cond_destroy(&cache->changed);
    pthread_mutex_destroy(&cache->lock);
}

static void free_memory(relay_prompt_cache *cache) {
    relayi_free((char *)cache->options.model_id);
    relayi_free((char *)cache->options.directory);
    relayi_free(cache->buckets);
    relayi_free(cache);
}

/* A cache without its directory. */
static relay_prompt_cache *new_cache(relay_device *device, const relay_prompt_cache_options *options) {
    relay_prompt_cache *cache = relayi_alloc_array(1, sizeof *cache);
    if (cache == NULL) return NULL;
    cache->device = device;
    cache->directory = -1;
    if (copy_options(cache, options) && make_buckets(cache) && make_locks(cache)) return cache;
    free_memory(cache);
    return NULL;
}

relay_status relay_prompt_cache_create(relay_device *device, const relay_prompt_cache_options *options,
                                       relay_prompt_cache **cache) {
    if (cache != NULL) *cache = NULL;
    if (device == NULL || options == NULL || cache == NULL)
        return relayi_fail(device, RELAY_NULL_POINTER, "relay_prompt_cache_create: %s is NULL",
                           device == NULL ? "device" : options == NULL ? "options" : "cache");
    relay_status status = check_options(device, options);
    if (status != RELAY_OK) return status;
    relay_prompt_cache *created = new_cache(device, options);
    if (created == NULL)
        return relayi_fail(device, RELAY_OUT_OF_MEMORY, "relay_prompt_cache_create: no memory");
    if (options->enabled && options->directory != NULL) status = relayi_directory_open(created);
    if (status != RELAY_OK) {
        relay_prompt_cache_destroy(created);
        return status;
    }
    *cache = created;
    return RELAY_OK;
}

static void free_idle_prompts(relay_prompt_cache *cache) {
    while (cache->oldest != NULL) {
        relay_prompt *prompt = cache->oldest;
        relayi_order_leave(prompt);
        relayi_table_remove(prompt);
        relayi_unreserve(prompt);
        relayi_prompt_free(prompt);
    }
}

void relay_prompt_cache_destroy(relay_prompt_cache *cache) {
    if (cache == NULL) return;
    relayi_prefetch_stop(cache);
    pthread_mutex_lock(&cache->lock);
    free_idle_prompts(cache);
    int32_t pinned = cache->stats.prompts;
    pthread_mutex_unlock(&cache->lock);
    relayi_directory_close(cache);
    if (pinned > 0) {
        /* Better memory that is lost than a release that writes into somebody else's. */
        relayi_log(cache->device, RELAY_LOG_ERROR,
                   "relay_prompt_cache_destroy: %d prompts were not released; the cache's memory is lost",
                   pinned);
        return;
    }
    free_locks(cache);
    free_memory(cache);
}

/* ---- acquire ---- */

static void pin(relay_prompt *prompt) {
    relayi_order_leave(prompt);
    if (prompt->pins++ == 0) prompt->cache->stats.pinned++;
}

/* Waits until a PENDING prompt is READY, then pinned for the caller, or FAILED.  Called with the
 * lock, returns without it. */
static relay_status wait_for_other(relay_prompt *prompt) {
    relay_prompt_cache *cache = prompt->cache;
    bool last = false;
    prompt->waiters++;
    while (prompt->state == RELAYI_PROMPT_PENDING) pthread_cond_wait(&cache->changed, &cache->lock);
    relay_status status = prompt->state == RELAYI_PROMPT_READY ? RELAY_OK : prompt->result;
    if (status == RELAY_OK)
        cache->stats.memory_hits++;
    else
        last = --prompt->waiters == 0;
    if (status == RELAY_NOT_FOUND) cache->stats.misses++;
    pthread_mutex_unlock(&cache->lock);
    if (last) relayi_prompt_free(prompt);
    return status;
}

/* Reads a prompt from its file.  Called with the lock, returns without it. */
static relay_status acquire_file(relay_prompt_cache *cache, const char *key, uint64_t hash,
                                 relay_prompt **found) {
    relay_prompt *prompt = relayi_prompt_new(cache, key, hash);
    if (prompt != NULL) relayi_table_insert(prompt);
    pthread_mutex_unlock(&cache->lock);
    relay_status status = RELAY_OUT_OF_MEMORY;
    if (prompt != NULL) status = relayi_prompt_load(prompt, 0);
    if (status == RELAY_CACHE_FULL) relayi_fail_full(prompt);
    if (status == RELAY_OUT_OF_MEMORY)
        relayi_fail(cache->device, status, "relay_prompt_cache_acquire: no memory for '%s'", key);
    pthread_mutex_lock(&cache->lock);
    if (status == RELAY_OK) cache->stats.file_hits++;
    if (status == RELAY_NOT_FOUND) cache->stats.misses++;
    pthread_mutex_unlock(&cache->lock);
    if (prompt != NULL) relayi_end_pending(prompt, status, 1);
    *found = prompt;
    return status;
}

/* Called with the lock, returns without it. */
static relay_status acquire_locked(relay_prompt_cache *cache, const char *key, uint64_t hash,
                                   relay_prompt **found) {
    *found = relayi_table_find(cache, key, hash);
    if (*found != NULL && (*found)->state == RELAYI_PROMPT_PENDING) return wait_for_other(*found);
    if (*found == NULL && cache->directory >= 0) return acquire_file(cache, key, hash, found);
    bool ready = *found != NULL && (*found)->state == RELAYI_PROMPT_READY;
    if (ready) pin(*found);
    *(ready ? &cache->stats.memory_hits : &cache->stats.misses) += 1;
    pthread_mutex_unlock(&cache->lock);
    return ready ? RELAY_OK : RELAY_NOT_FOUND;
}

static relay_status check_call(const relay_prompt_cache *cache, const char *what, const char *key,
                               relay_prompt **prompt) {
    if (prompt != NULL) *prompt = NULL;
    if (cache == NULL) return RELAY_NULL_POINTER;
    if (prompt == NULL) return relayi_fail(cache->device, RELAY_NULL_POINTER, "%s: prompt is NULL", what);
    return relayi_check_key(cache, what, key);
}

relay_status relay_prompt_cache_acquire(relay_prompt_cache *cache, const char *key,
                                        relay_prompt **prompt) {
    relay_prompt *found;
    relay_status status = check_call(cache, "relay_prompt_cache_acquire: key", key, prompt);
    if (status != RELAY_OK) return status;
    uint64_t hash = relayi_key_hash(key);
    pthread_mutex_lock(&cache->lock);
    status = acquire_locked(cache, key, hash, &found);
    if (status == RELAY_OK) *prompt = found;
    return status;
}

/* ---- begin, commit, release ---- */

/* Takes a prompt out of the cache that nobody may find any more, and frees it. */
static void discard(relay_prompt *prompt) {
    relay_prompt_cache *cache = prompt->cache;
    pthread_mutex_lock(&cache->lock);
    if (prompt->pins > 0) cache->stats.pinned--;
    relayi_table_remove(prompt);
    relayi_unreserve(prompt);
    pthread_mutex_unlock(&cache->lock);
    relayi_prompt_free(prompt);
}

/* Gives a new prompt its place in the table and among the bytes. */
static relay_status enter(relay_prompt *prompt) {
    relay_prompt_cache *cache = prompt->cache;
    relay_prompt *dropped = NULL;
    relay_status status = RELAY_OK;
    pthread_mutex_lock(&cache->lock);
    if (relayi_table_find(cache, prompt->key, prompt->hash) != NULL) {
        status = RELAY_ALREADY_EXISTS;
    } else if (!relayi_reserve(prompt, 0, &dropped)) {
        status = RELAY_CACHE_FULL;
    } else {
        relayi_table_insert(prompt);
        prompt->state = RELAYI_PROMPT_BUILDING;
        pin(prompt);
    }
    pthread_mutex_unlock(&cache->lock);
    relayi_prompts_free(dropped);
    return status;
}

static bool allocate_for_writing(relay_prompt *prompt) {
    size_t words;
    if (!relayi_multiply((size_t)relayi_num_tiles(prompt->num_tokens),
                         (size_t)prompt->cache->options.num_layers, &words))
        return false;
    prompt->written = relayi_alloc_array(words, sizeof *prompt->written);
    return prompt->written != NULL && relayi_prompt_allocate(prompt);
}

static relay_status fail_memory(const relay_prompt_cache *cache, const char *key, int32_t num_tokens) {
    return relayi_fail(cache->device, RELAY_OUT_OF_MEMORY,
                       "relay_prompt_cache_begin: no memory for '%s' with %d tokens", key, num_tokens);
}

static relay_status begin(relay_prompt_cache *cache, const char *key, int32_t num_tokens,
                          relay_prompt **begun) {
    relay_prompt *prompt = relayi_prompt_new(cache, key, relayi_key_hash(key));
    if (prompt == NULL) return fail_memory(cache, key, num_tokens);
    prompt->num_tokens = num_tokens;
    if (!relayi_prompt_sizes(&cache->options, num_tokens, &prompt->size)) {
        relayi_prompt_free(prompt);
        return fail_memory(cache, key, num_tokens);
    }
    relay_status status = enter(prompt);
    if (status == RELAY_CACHE_FULL) relayi_fail_full(prompt);
    if (status != RELAY_OK) {
        relayi_prompt_free(prompt);
        return status;
    }
    if (!allocate_for_writing(prompt)) {
        discard(prompt);
        return fail_memory(cache, key, num_tokens);
    }
    *begun = prompt;
    return RELAY_OK;
}

relay_status relay_prompt_cache_begin(relay_prompt_cache *cache, const char *key, int32_t num_tokens,
                                      relay_prompt **prompt) {
    relay_status status = check_call(cache, "relay_prompt_cache_begin: key", key, prompt);
    if (status != RELAY_OK) return status;
    if (num_tokens < 1)
        return relayi_fail(cache->device, RELAY_INVALID_ARGUMENT,
                           "relay_prompt_cache_begin: num_tokens is %d, expected at least 1", num_tokens);
    return begin(cache, key, num_tokens, prompt);
}

static relay_status check_commit(const relay_prompt *prompt) {
    const relay_device *device = prompt->cache->device;
    int32_t layer, token;
    if (prompt->state != RELAYI_PROMPT_BUILDING)
        return relayi_fail(device, RELAY_INVALID_ARGUMENT, "relay_prompt_commit: '%s' is already committed",
                           prompt->key);
    if (relayi_prompt_complete(prompt, &layer, &token)) return RELAY_OK;
    return relayi_fail(device, RELAY_INVALID_ARGUMENT,
                       "relay_prompt_commit: '%s': token %d of layer %d was not written", prompt->key,
                       token, layer);
}

static relay_status write_file(relay_prompt *prompt) {
    relay_prompt_cache *cache = prompt->cache;
    relay_status status = relayi_prompt_store(prompt);
    pthread_mutex_lock(&cache->lock);
    prompt->writing = false;
    if (status == RELAY_OK) cache->stats.files_written++;
    pthread_cond_broadcast(&cache->changed);
    pthread_mutex_unlock(&cache->lock);
    return status;
}

relay_status relay_prompt_commit(relay_prompt *prompt) {
    if (prompt == NULL) return RELAY_NULL_POINTER;
    relay_status status = check_commit(prompt);
    if (status != RELAY_OK) return status;
    relay_prompt_cache *cache = prompt->cache;
    relayi_free(prompt->written);
    prompt->written = NULL;
    pthread_mutex_lock(&cache->lock);
    prompt->state = RELAYI_PROMPT_READY;
    bool writes = prompt->writing = prompt->listed && cache->directory >= 0; /* not if forgotten */
    pthread_mutex_unlock(&cache->lock);
    return writes ? write_file(prompt) : RELAY_OK;
}

/* Called with the lock.  Whether the prompt stays in memory when its last pin is gone. */
static bool stays(const relay_prompt *prompt) {
    return prompt->state == RELAYI_PROMPT_READY && prompt->listed && prompt->cache->options.enabled;
}

void relay_prompt_release(relay_prompt *prompt) {
    if (prompt == NULL) return;
    relay_prompt_cache *cache = prompt->cache;
    bool gone = false;
    pthread_mutex_lock(&cache->lock);
    if (--prompt->pins == 0) {
        cache->stats.pinned--;
        gone = !stays(prompt);
        if (gone) {
            relayi_table_remove(prompt);
            relayi_unreserve(prompt);
        } else {
            relayi_order_touch(prompt);
        }
    }
    pthread_mutex_unlock(&cache->lock);
    if (gone) relayi_prompt_free(prompt);
}

/* ---- forget ---- */

/* Takes a key out of memory and leaves a PENDING prompt in its place, so that nobody reads the
 * file that is about to go.  Called with the lock; waits while the file is read or written.
 * NULL without memory, with nothing changed. */
static relay_prompt *replace(relay_prompt_cache *cache, const char *key, uint64_t hash,
                             relay_prompt **old) {
    *old = relayi_table_find(cache, key, hash);
    while (*old != NULL && ((*old)->state == RELAYI_PROMPT_PENDING || (*old)->writing)) {
        pthread_cond_wait(&cache->changed, &cache->lock);
        *old = relayi_table_find(cache, key, hash);
    }
    relay_prompt *barrier = relayi_prompt_new(cache, key, hash);
    if (barrier == NULL) return NULL;
    if (*old != NULL) relayi_table_remove(*old);
    relayi_table_insert(barrier);
    return barrier;
}

/* Called with the lock: whether a prompt out of the table is to be freed now. */
static bool leaves_now(relay_prompt *prompt) {
    if (prompt->pins > 0) return false;
    relayi_order_leave(prompt);
    relayi_unreserve(prompt);
    return true;
}

static relay_status forget(relay_prompt_cache *cache, const char *key) {
    relay_prompt *old;
    pthread_mutex_lock(&cache->lock);
    relay_prompt *barrier = replace(cache, key, relayi_key_hash(key), &old);
    bool known = old != NULL;
    bool free_old = barrier != NULL && known && leaves_now(old);
    pthread_mutex_unlock(&cache->lock);
    if (barrier == NULL)
        return relayi_fail(cache->device, RELAY_OUT_OF_MEMORY, "relay_prompt_cache_forget: no memory");
    if (free_old) relayi_prompt_free(old);
    relay_status status = cache->directory >= 0 ? relayi_prompt_delete(barrier) : RELAY_NOT_FOUND;
    relayi_end_pending(barrier, RELAY_NOT_FOUND, 0);
    return known && status == RELAY_NOT_FOUND ? RELAY_OK : status;
}

relay_status relay_prompt_cache_forget(relay_prompt_cache *cache, const char *key) {
    if (cache == NULL) return RELAY_NULL_POINTER;
    relay_status status = relayi_check_key(cache, "relay_prompt_cache_forget: key", key);
    return status == RELAY_OK ? forget(cache, key) : status;
}

/* ---- stats ---- */

relay_status relay_prompt_cache_get_stats(relay_prompt_cache *cache, relay_prompt_cache_stats *stats) {
    if (cache == NULL) return RELAY_NULL_POINTER;
    if (stats == NULL)
        return relayi_fail(cache->device, RELAY_NULL_POINTER, "relay_prompt_cache_get_stats: stats is NULL");
    relay_status status = relayi_check_size(cache->device, "relay_prompt_cache_stats", stats->struct_size,
                                            sizeof *stats);
    if (status != RELAY_OK) return status;
    uint32_t size = stats->struct_size;
    pthread_mutex_lock(&cache->lock);
    *stats = cache->stats;
    pthread_mutex_unlock(&cache->lock);
    stats->struct_size = size;
    return RELAY_OK;
}
