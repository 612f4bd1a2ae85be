/* What the files of the prompt cache share.
 *
 *   prompt_cache.c      the public functions: create, acquire, begin, commit, release, ...
 *   prompt_table.c      finding, least-recently-used order, bounds
 *   prompt_entry.c      one prompt's memory: packing into tiles and reading back
 *   prompt_file.c       one prompt's file
 *   prompt_directory.c  the directory: names, temporary files
 *   prompt_prefetch.c   the background thread
 *
 * A prompt's life: PENDING while somebody reads its file (others who want it wait), or BUILDING
 * while its creator fills it (for others it is absent); then READY until it is dropped.  A
 * PENDING prompt whose file gave nothing becomes FAILED: no longer in the table, freed by the
 * last who waited for it.
 *
 * The cache's mutex guards the table, the order, the counters, and of a prompt what is marked
 * [lock].  It is never held during file operations, packing, or calls of the log.  The rest of a
 * prompt belongs to its creator until it is READY and does not change afterwards.
 */
#ifndef RELAY_PROMPT_INTERNAL_H
#define RELAY_PROMPT_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "packed.h"
#include "prompt.h"

typedef enum relayi_prompt_state {
    RELAYI_PROMPT_PENDING,
    RELAYI_PROMPT_BUILDING,
    RELAYI_PROMPT_READY,
    RELAYI_PROMPT_FAILED
} relayi_prompt_state;

/* Bytes of a prompt: [layer][kv head][K tiles, V tiles]. */
typedef struct relayi_prompt_size {
    size_t area;  /* one head's K, or V */
    size_t layer;
    size_t total;
} relayi_prompt_size;

struct relay_prompt {
    relay_prompt_cache *cache;
    relayi_prompt_state state;   /* [lock] for all but its creator */
    int32_t num_tokens;
    relayi_prompt_size size;
    char *data;
    uint64_t *written;           /* [layer][tile], a bit per token; NULL once committed */

    relay_prompt *next;          /* [lock] in its bucket, or in a chain of dropped ones */
    relay_prompt *newer, *older; /* [lock] neighbours while idle */
    int32_t pins;                /* [lock] */
    int32_t waiters;             /* [lock] threads that wait for PENDING to end */
    relay_status result;         /* [lock] what FAILED means to them */
    bool listed;                 /* [lock] in the table */
    bool idle;                   /* [lock] in the order of use: nobody has it pinned */
    bool counted;                /* [lock] its bytes are in the cache's sum */
    bool writing;                /* [lock] its file is being written */
    uint64_t announcement;       /* [lock] the last that prefetch served with it; 0 = none */

    uint64_t hash;
    char key[RELAY_MAX_KEY_BYTES + 1];
};

/* One announced key. */
typedef struct relayi_wish {
    struct relayi_wish *next;
    uint64_t announcement;
    uint64_t hash;
    char key[RELAY_MAX_KEY_BYTES + 1];
} relayi_wish;

struct relay_prompt_cache {
    relay_device *device;
    relay_prompt_cache_options options; /* its strings are ours */
    int directory;                      /* open directory, or -1: memory only */
    uint64_t next_temporary;            /* [lock] */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* a prompt is no longer PENDING, or no longer being written */

    relay_prompt **buckets; /* [num_buckets], a power of two */
    size_t num_buckets;
    relay_prompt *newest, *oldest; /* idle prompts in order of use */
    relay_prompt_cache_stats stats;

    /* prefetch */
    pthread_t thread;
    pthread_cond_t wanted; /* there is work, or it is time to stop */
    pthread_cond_t done;   /* nothing is left to do */
    bool started, stopping, busy;
    uint64_t last_announcement;
    relayi_wish *wishes;   /* the newest announcement first, its keys in order */
};

/* ---- prompt_table.c: everything here is called with the lock held ---- */

uint64_t relayi_key_hash(const char *key);
relay_prompt *relayi_table_find(relay_prompt_cache *cache, const char *key, uint64_t hash);
void relayi_table_insert(relay_prompt *prompt);
void relayi_table_remove(relay_prompt *prompt); /* no-op for one that is not listed */

/* Makes a prompt nobody has pinned the most recently used one; and takes it out of the order. */
void relayi_order_touch(relay_prompt *prompt);
void relayi_order_leave(relay_prompt *prompt);

/* Counts `prompt` with prompt->size, making room first: the least recently used idle prompts
 * leave the table and are chained to *dropped, to be freed once the lock is gone.  False, with
 * nothing changed, if that is not enough.  For prefetch (announcement > 0), prompts that the
 * same or a newer announcement brought in stay. */
bool relayi_reserve(relay_prompt *prompt, uint64_t announcement, relay_prompt **dropped);
void relayi_unreserve(relay_prompt *prompt); /* no-op for one that is not counted */

/* ---- prompt_table.c: without the lock ---- */

/* A prompt that is in no table yet; NULL without memory. */
relay_prompt *relayi_prompt_new(relay_prompt_cache *cache, const char *key, uint64_t hash);
void relayi_prompt_free(relay_prompt *prompt); /* accepts NULL */
void relayi_prompts_free(relay_prompt *chain);

/* Ends PENDING: READY with `pins` pins and one for each waiter, or FAILED with `status`. The
 * prompt may be gone afterwards unless pins > 0 and status is RELAY_OK. */
void relayi_end_pending(relay_prompt *prompt, relay_status status, int32_t pins);

/* Says at ERROR why there is no room for `prompt`. */
relay_status relayi_fail_full(const relay_prompt *prompt);

/* ---- prompt_entry.c ---- */

/* Sizes for the cache's shape; false where they do not fit. */
bool relayi_prompt_sizes(const relay_prompt_cache_options *options, int32_t num_tokens,
                         relayi_prompt_size *size);

/* Memory for prompt->size, zeroed. */
bool relayi_prompt_allocate(relay_prompt *prompt);

/* Whether every token of every layer has been written; else the first that was not. */
bool relayi_prompt_complete(const relay_prompt *prompt, int32_t *layer, int32_t *token);

/* ---- prompt_file.c ---- */

/* Reads a PENDING prompt's file: reserves (for that announcement, or 0) and allocates.
 * NOT_FOUND, OUT_OF_MEMORY or CACHE_FULL; only the last two are not yet logged. */
relay_status relayi_prompt_load(relay_prompt *prompt, uint64_t announcement);

/* Writes the file of a READY prompt. */
relay_status relayi_prompt_store(const relay_prompt *prompt);

/* Deletes a key's file: NOT_FOUND if there is none. */
relay_status relayi_prompt_delete(const relay_prompt *prompt);

/* ---- prompt_directory.c ---- */

#define RELAYI_FILE_NAME_BYTES 96 /* of any file that the cache writes */

/* Makes and opens the directory, tries whether it can be written, and removes what writers that
 * have died left there. */
relay_status relayi_directory_open(relay_prompt_cache *cache);
void relayi_directory_close(relay_prompt_cache *cache);

/* The final name from 128 bits. */
void relayi_file_name(const uint64_t id[2], char name[RELAYI_FILE_NAME_BYTES]);

/* A new file for writing beside `name`, locked as long as it is open; -1 and errno. */
int relayi_temporary_open(relay_prompt_cache *cache, const char *name,
                          char temporary[RELAYI_FILE_NAME_BYTES]);

/* What errno means. */
#define RELAYI_ERROR_TEXT_BYTES 128
const char *relayi_error_text(int error, char text[RELAYI_ERROR_TEXT_BYTES]);

/* ---- prompt_prefetch.c ---- */

/* Stops and joins the thread and forgets what is still announced. */
void relayi_prefetch_stop(relay_prompt_cache *cache);

/* A key as every function demands it. */
relay_status relayi_check_key(const relay_prompt_cache *cache, const char *what, const char *key);

#endif
