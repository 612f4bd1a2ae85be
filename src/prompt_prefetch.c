/* Prefetch: one thread that reads announced prompts from the directory before they are wanted.
 *
 * Keys of an announcement are served in order, in groups of up to prefetch_batch_size prompts
 * that are not in memory.  A newer announcement knows better what is wanted next, so it goes
 * first as soon as the group at hand is done; a key that it repeats is taken from the older one,
 * and the list is never longer than the number of distinct keys announced. */
#include <signal.h>
#include <string.h>

#include "alloc.h"
#include "log.h"
#include "prompt_internal.h"

static void free_wishes(relayi_wish *wish) {
    while (wish != NULL) {
        relayi_wish *next = wish->next;
        relayi_free(wish);
        wish = next;
    }
}

/* ---- the thread ---- */

/* Called with the lock.  A prompt in memory counts as wanted: it is what this announcement would
 * have brought in. */
static bool in_memory(relay_prompt_cache *cache, const relayi_wish *wish) {
    relay_prompt *prompt = relayi_table_find(cache, wish->key, wish->hash);
    if (prompt == NULL) return false;
    prompt->announcement = wish->announcement;
    if (prompt->idle) relayi_order_touch(prompt);
    return true;
}

/* Called with the lock: takes the next group of one announcement off the list. */
static relayi_wish *take_group(relay_prompt_cache *cache) {
    relayi_wish *group = NULL, **end = &group;
    uint64_t announcement = cache->wishes->announcement;
    int32_t taken = 0;
    while (cache->wishes != NULL && cache->wishes->announcement == announcement &&
           taken < cache->options.prefetch_batch_size) {
        relayi_wish *wish = cache->wishes;
        cache->wishes = wish->next;
        wish->next = NULL;
        if (in_memory(cache, wish)) {
            relayi_free(wish);
            continue;
        }
        *end = wish;
        end = &wish->next;
        taken++;
    }
    return group;
}

static void log_failure(const relay_prompt_cache *cache, const relayi_wish *wish, relay_status status) {
    if (status == RELAY_OUT_OF_MEMORY)
        relayi_log(cache->device, RELAY_LOG_WARN, "prompt cache: no memory to prefetch '%s'", wish->key);
    if (status == RELAY_CACHE_FULL)
        relayi_log(cache->device, RELAY_LOG_DEBUG, "prompt cache: no room to prefetch '%s'", wish->key);
}

/* Called with the lock: an entry to read into, or NULL if there is nothing to read. */
static relay_prompt *start_reading(relay_prompt_cache *cache, const relayi_wish *wish) {
    if (cache->stopping || in_memory(cache, wish)) return NULL;
    relay_prompt *prompt = relayi_prompt_new(cache, wish->key, wish->hash);
    if (prompt == NULL) return NULL;
    prompt->announcement = wish->announcement;
    relayi_table_insert(prompt);
    return prompt;
}

/* Called without the lock.  Whether a prompt was read. */
static bool serve(relay_prompt_cache *cache, const relayi_wish *wish) {
    pthread_mutex_lock(&cache->lock);
    relay_prompt *prompt = start_reading(cache, wish);
    pthread_mutex_unlock(&cache->lock);
    if (prompt == NULL) return false;
    relay_status status = relayi_prompt_load(prompt, wish->announcement);
    log_failure(cache, wish, status);
    if (status == RELAY_OK) {
        pthread_mutex_lock(&cache->lock);
        cache->stats.prefetched++;
        pthread_mutex_unlock(&cache->lock);
    }
    relayi_end_pending(prompt, status, 0);
    return status == RELAY_OK;
}

/* Called with the lock, which is given up meanwhile. */
static void serve_group(relay_prompt_cache *cache) {
    relayi_wish *group = take_group(cache);
    bool any = false;
    pthread_mutex_unlock(&cache->lock);
    for (const relayi_wish *wish = group; wish != NULL; wish = wish->next)
        if (serve(cache, wish)) any = true;
    free_wishes(group);
    pthread_mutex_lock(&cache->lock);
    if (any) cache->stats.prefetch_groups++;
}

static void *prefetch_thread(void *argument) {
    relay_prompt_cache *cache = argument;
    pthread_mutex_lock(&cache->lock);
    while (!cache->stopping) {
        cache->busy = cache->wishes != NULL;
        if (cache->busy) {
            serve_group(cache);
        } else {
            pthread_cond_broadcast(&cache->done);
            pthread_cond_wait(&cache->wanted, &cache->lock);
        }
    }
    pthread_mutex_unlock(&cache->lock);
    return NULL;
}

/* Called with the lock.  The host's signals are not for our thread. */
static bool start_thread(relay_prompt_cache *cache) {
    sigset_t all, before;
    if (cache->started) return true;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    cache->started = pthread_create(&cache->thread, NULL, prefetch_thread, cache) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return cache->started;
}

void relayi_prefetch_stop(relay_prompt_cache *cache) {
    pthread_mutex_lock(&cache->lock);
    cache->stopping = true;
    bool started = cache->started;
    pthread_cond_broadcast(&cache->wanted);
    pthread_mutex_unlock(&cache->lock);
    if (started) pthread_join(cache->thread, NULL);
    free_wishes(cache->wishes);
    cache->wishes = NULL;
}

/* ---- announcing ---- */

static bool make_wishes(const char *const *keys, int32_t num_keys, relayi_wish **wishes) {
    relayi_wish **end = wishes;
    for (int32_t i = 0; i < num_keys; i++) {
        relayi_wish *wish = relayi_alloc_array(1, sizeof *wish);
        if (wish == NULL) return false;
        wish->hash = relayi_key_hash(keys[i]);
        memcpy(wish->key, keys[i], strlen(keys[i]) + 1);
        *end = wish;
        end = &wish->next;
    }
    return true;
}

static bool is_among(const relayi_wish *wishes, const relayi_wish *wish) {
    for (; wishes != NULL; wishes = wishes->next)
        if (wishes->hash == wish->hash && strcmp(wishes->key, wish->key) == 0) return true;
    return false;
}

/* Called with the lock: puts `wishes` in front of the list, less what they repeat of it. */
static void announce(relay_prompt_cache *cache, relayi_wish *wishes) {
    relayi_wish **link = &cache->wishes;
    while (*link != NULL) {
        relayi_wish *old = *link;
        if (!is_among(wishes, old)) {
            link = &old->next;
            continue;
        }
        *link = old->next;
        relayi_free(old);
    }
    relayi_wish *rest = cache->wishes;
    cache->wishes = wishes;
    cache->last_announcement++;
    for (relayi_wish *wish = wishes; wish != NULL; wish = wish->next) {
        wish->announcement = cache->last_announcement;
        if (wish->next != NULL) continue;
        wish->next = rest;
        break;
    }
    pthread_cond_signal(&cache->wanted);
}

static relay_status check_keys(const relay_prompt_cache *cache, const char *const *keys,
                               int32_t num_keys) {
    static const char what[] = "relay_prompt_cache_prefetch: an element of keys";
    if (num_keys < 0)
        return relayi_fail(cache->device, RELAY_INVALID_ARGUMENT,
                           "relay_prompt_cache_prefetch: num_keys is %d", num_keys);
    if (keys == NULL && num_keys > 0)
        return relayi_fail(cache->device, RELAY_NULL_POINTER, "relay_prompt_cache_prefetch: keys is NULL");
    relay_status status = RELAY_OK;
    for (int32_t i = 0; i < num_keys && status == RELAY_OK; i++)
        status = relayi_check_key(cache, what, keys[i]);
    return status;
}

relay_status relay_prompt_cache_prefetch(relay_prompt_cache *cache, const char *const *keys,
                                         int32_t num_keys) {
    if (cache == NULL) return RELAY_NULL_POINTER;
    relay_status status = check_keys(cache, keys, num_keys);
    if (status != RELAY_OK || num_keys == 0) return status;
    if (cache->directory < 0 || !cache->options.enable_prefetch) return RELAY_OK;
    relayi_wish *wishes = NULL;
    bool ready = make_wishes(keys, num_keys, &wishes);
    if (ready) {
        pthread_mutex_lock(&cache->lock);
        ready = start_thread(cache);
        if (ready) announce(cache, wishes);
        pthread_mutex_unlock(&cache->lock);
    }
    if (ready) return RELAY_OK;
    free_wishes(wishes);
    return relayi_fail(cache->device, RELAY_OUT_OF_MEMORY,
                       "relay_prompt_cache_prefetch: no memory for %d keys or their thread", num_keys);
}

relay_status relay_prompt_cache_wait(relay_prompt_cache *cache) {
    if (cache == NULL) return RELAY_NULL_POINTER;
    pthread_mutex_lock(&cache->lock);
    while (cache->wishes != NULL || cache->busy) pthread_cond_wait(&cache->done, &cache->lock);
    pthread_mutex_unlock(&cache->lock);
    return RELAY_OK;
}
