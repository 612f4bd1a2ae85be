#include <string.h>

#include "alloc.h"
#include "checksum.h"
#include "log.h"
#include "prompt_internal.h"

uint64_t relayi_key_hash(const char *key) { return relayi_checksum_of(key, strlen(key), 0); }

static relay_prompt **bucket_of(const relay_prompt_cache *cache, uint64_t hash) {
    return &cache->buckets[hash & (cache->num_buckets - 1)];
}

relay_prompt *relayi_table_find(relay_prompt_cache *cache, const char *key, uint64_t hash) {
    relay_prompt *prompt = *bucket_of(cache, hash);
    while (prompt != NULL && (prompt->hash != hash || strcmp(prompt->key, key) != 0))
        prompt = prompt->next;
    return prompt;
}

void relayi_table_insert(relay_prompt *prompt) {
    relay_prompt **bucket = bucket_of(prompt->cache, prompt->hash);
    prompt->next = *bucket;
    prompt->listed = true;
    *bucket = prompt;
}

void relayi_table_remove(relay_prompt *prompt) {
    if (!prompt->listed) return;
    relay_prompt **link = bucket_of(prompt->cache, prompt->hash);
    while (*link != prompt) link = &(*link)->next;
    *link = prompt->next;
    prompt->next = NULL;
    prompt->listed = false;
}

void relayi_order_leave(relay_prompt *prompt) {
    relay_prompt_cache *cache = prompt->cache;
    if (!prompt->idle) return;
    *(prompt->newer != NULL ? &prompt->newer->older : &cache->newest) = prompt->older;
    *(prompt->older != NULL ? &prompt->older->newer : &cache->oldest) = prompt->newer;
    prompt->newer = prompt->older = NULL;
    prompt->idle = false;
}

void relayi_order_touch(relay_prompt *prompt) {
    relay_prompt_cache *cache = prompt->cache;
    relayi_order_leave(prompt);
    prompt->older = cache->newest;
    *(cache->newest != NULL ? &cache->newest->newer : &cache->oldest) = prompt;
    cache->newest = prompt;
    prompt->idle = true;
}

static bool may_go(const relay_prompt *prompt, uint64_t announcement) {
    return announcement == 0 || prompt->announcement < announcement;
}

static bool fits(const relay_prompt_cache *cache, int32_t prompts, uint64_t bytes) {
    uint64_t max_bytes = cache->options.max_bytes;
    return prompts <= cache->options.max_cached_system_prompts &&
           (max_bytes == 0 || bytes <= max_bytes);
}

/* How many of the idle prompts that may go have to, oldest first; -1 if all are not enough. */
static int32_t count_to_drop(const relay_prompt_cache *cache, size_t added, uint64_t announcement) {
    int32_t prompts = cache->stats.prompts + 1, drops = 0;
    uint64_t bytes = cache->stats.bytes + added;
    const relay_prompt *prompt = cache->oldest;
    while (!fits(cache, prompts, bytes)) {
        while (prompt != NULL && !may_go(prompt, announcement)) prompt = prompt->newer;
        if (prompt == NULL) return -1;
        bytes -= prompt->size.total;
        prompts--;
        drops++;
        prompt = prompt->newer;
    }
    return drops;
}

static void drop_oldest(relay_prompt_cache *cache, uint64_t announcement, relay_prompt **dropped) {
    relay_prompt *prompt = cache->oldest;
    while (!may_go(prompt, announcement)) prompt = prompt->newer;
    relayi_order_leave(prompt);
    relayi_table_remove(prompt);
    relayi_unreserve(prompt);
    cache->stats.evictions++;
    prompt->next = *dropped;
    *dropped = prompt;
}

bool relayi_reserve(relay_prompt *prompt, uint64_t announcement, relay_prompt **dropped) {
    relay_prompt_cache *cache = prompt->cache;
    int32_t drops = count_to_drop(cache, prompt->size.total, announcement);
    if (drops < 0) return false;
    for (; drops > 0; drops--) drop_oldest(cache, announcement, dropped);
    prompt->counted = true;
    cache->stats.prompts++;
    cache->stats.bytes += prompt->size.total;
    if (cache->stats.bytes > cache->stats.peak_bytes) cache->stats.peak_bytes = cache->stats.bytes;
    return true;
}

void relayi_unreserve(relay_prompt *prompt) {
    if (!prompt->counted) return;
    prompt->counted = false;
    prompt->cache->stats.prompts--;
    prompt->cache->stats.bytes -= prompt->size.total;
}

relay_prompt *relayi_prompt_new(relay_prompt_cache *cache, const char *key, uint64_t hash) {
    relay_prompt *prompt = relayi_alloc_array(1, sizeof *prompt);
    if (prompt == NULL) return NULL;
    prompt->cache = cache;
    prompt->hash = hash;
    memcpy(prompt->key, key, strlen(key) + 1);
    return prompt;
}

void relayi_prompt_free(relay_prompt *prompt) {
    if (prompt == NULL) return;
    relayi_unmap(prompt->data, prompt->size.total);
    relayi_free(prompt->written);
    relayi_free(prompt);
}

void relayi_prompts_free(relay_prompt *chain) {
    while (chain != NULL) {
        relay_prompt *next = chain->next;
        relayi_prompt_free(chain);
        chain = next;
    }
}

static void become_ready(relay_prompt *prompt, int32_t pins) {
    prompt->state = RELAYI_PROMPT_READY;
    prompt->pins = pins + prompt->waiters;
    prompt->waiters = 0;
    if (prompt->pins == 0)
        relayi_order_touch(prompt);
    else
        prompt->cache->stats.pinned++;
}

/* Whether the prompt is to be freed at once. */
static bool become_failed(relay_prompt *prompt, relay_status status) {
    relayi_table_remove(prompt);
    relayi_unreserve(prompt);
    prompt->state = RELAYI_PROMPT_FAILED;
    prompt->result = status;
    return prompt->waiters == 0;
}

void relayi_end_pending(relay_prompt *prompt, relay_status status, int32_t pins) {
    relay_prompt_cache *cache = prompt->cache;
    bool unwanted = false;
    pthread_mutex_lock(&cache->lock);
    if (status == RELAY_OK)
        become_ready(prompt, pins);
    else
        unwanted = become_failed(prompt, status);
    pthread_cond_broadcast(&cache->changed);
    pthread_mutex_unlock(&cache->lock);
    if (unwanted) relayi_prompt_free(prompt);
}

relay_status relayi_fail_full(const relay_prompt *prompt) {
    const relay_prompt_cache_options *options = &prompt->cache->options;
    return relayi_fail(prompt->cache->device, RELAY_CACHE_FULL,
                       "prompt cache: no room for '%s' (%zu bytes): max_cached_system_prompts is %d, "
                       "max_bytes is %llu, and what could go is in use",
                       prompt->key, prompt->size.total, options->max_cached_system_prompts,
                       (unsigned long long)options->max_bytes);
}
