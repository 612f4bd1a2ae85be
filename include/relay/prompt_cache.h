/* relay/prompt_cache.h - the second concept: system prompts that are kept.
 *
 * A prompt holds the K/V of a run of tokens for all layers, in the layout that
 * the kernels like best ("packed").  The cache finds prompts by `system_key`,
 * drops the least recently used first, never touches one that is in use, and is
 * bounded by a count and by bytes.  With a directory, prompts that leave memory
 * stay there: in one file each, versioned, checksummed, and put in place by
 * rename, so that several processes may share it and a crash leaves no half
 * file.  Prefetch brings announced prompts back in the background.
 *
 * A prompt's keys are stored as they are given, that is, already rotated: a
 * prompt belongs to the position at which it starts.  A nested prompt (a tool
 * list under a system prompt, say) therefore has a key that also names what it
 * stands on.
 *
 * Thread-safety: every function may be called from any thread, except that one
 * prompt must be filled (relay_prompt_write*) by one thread at a time.  A cache is
 * not to be used in a child after fork().
 *
 * NOT_FOUND and ALREADY_EXISTS are ordinary answers and are not logged.
 */
#ifndef RELAY_PROMPT_CACHE_H
#define RELAY_PROMPT_CACHE_H

#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct relay_prompt_cache relay_prompt_cache;
typedef struct relay_prompt relay_prompt; /* one pinned prompt */

#define RELAY_MAX_KEY_BYTES 255

typedef struct relay_prompt_cache_options {
    uint32_t struct_size;
    int32_t num_layers;   /* required, 1..4096 */
    int32_t num_kv_heads; /* required, 1..4096 */
    int32_t head_dim;     /* required, multiple of 8, 8..256 */
    relay_dtype kv_dtype; /* default RELAY_BF16 */
    const char *model_id; /* names the model whose K/V this is, e.g. a hash of its weights;
                             files of another model are never used.  At most 255 bytes;
                             default "".  Copied. */

    int32_t enabled;                   /* default 1; 0: nothing is kept once it is unpinned,
                                          no file is read or written; the bounds hold */
    int32_t max_cached_system_prompts; /* default 100, >= 1 */
    uint64_t max_bytes;                /* default 0 = unbounded; packed bytes in memory */

    const char *directory;       /* default NULL = memory only; created if missing, with its
                                    parents.  Copied.  Whoever can write there decides what
                                    the model reads: checksums guard against accident only */
    int32_t enable_prefetch;     /* default 1 */
    int32_t prefetch_batch_size; /* default 4, >= 1: prompts read per group by the background
                                    thread before it looks for a newer announcement */
} relay_prompt_cache_options;

RELAY_API relay_prompt_cache_options relay_prompt_cache_options_defaults(void);

/* Errors: NULL_POINTER, BAD_STRUCT_SIZE, INVALID_ARGUMENT, BAD_DTYPE, UNSUPPORTED (the
 * device does not pack prompts), IO_ERROR (directory cannot be made or written),
 * OUT_OF_MEMORY. */
RELAY_API relay_status relay_prompt_cache_create(relay_device *device,
                                                 const relay_prompt_cache_options *options,
                                                 relay_prompt_cache **cache);

/* Waits for background work.  All prompts must have been released; if some were not, that
 * is logged at ERROR and their memory and the cache's is never freed.  Accepts NULL. */
RELAY_API void relay_prompt_cache_destroy(relay_prompt_cache *cache);

/* Looks a key up, in memory and then in the directory, and pins what it finds:
 * *prompt is readable until relay_prompt_release.  A file that is damaged or
 * foreign, or cannot be read, is logged (WARN, with its name and what is wrong),
 * counted, and treated as absent.  A prompt that another thread is reading from its
 * file is waited for; one that another thread is building is NOT_FOUND at once.
 * `key`: 1..255 bytes, NUL-terminated.
 * Errors: NULL_POINTER, INVALID_ARGUMENT, NOT_FOUND, OUT_OF_MEMORY, CACHE_FULL. */
RELAY_API relay_status relay_prompt_cache_acquire(relay_prompt_cache *cache, const char *key,
                                                  relay_prompt **prompt);

/* Starts a new prompt of `num_tokens` tokens under `key`, for this caller alone.
 * Fill every token of every layer with relay_prompt_write*, then commit, or
 * release to give up.  A prompt of that key in memory, being built or being read
 * from its file is ALREADY_EXISTS; the directory is not looked at (acquire does),
 * and what is there is replaced by commit.
 * Errors: NULL_POINTER, INVALID_ARGUMENT, ALREADY_EXISTS, CACHE_FULL, OUT_OF_MEMORY. */
RELAY_API relay_status relay_prompt_cache_begin(relay_prompt_cache *cache, const char *key,
                                                int32_t num_tokens, relay_prompt **prompt);

/* Packs tokens [first_token, first_token + n) of one layer.
 *   key, value: [n, num_kv_heads, head_dim], both of kv_dtype or both f32 (which is rounded
 *   to it, to nearest, ties to even), last stride 1.
 * Any cutting will do, in any order; chunks that are multiples of 64 tokens are fastest.
 * Errors: NULL_POINTER, BAD_DTYPE, BAD_SHAPE, BAD_STRIDE, MISALIGNED, OUT_OF_RANGE,
 * INVALID_ARGUMENT (already committed). */
RELAY_API relay_status relay_prompt_write(relay_prompt *prompt, int32_t layer, int32_t first_token,
                                          const relay_tensor *key, const relay_tensor *value);

/* The same from pages, as a prefill leaves them:
 *   key_pool, value_pool: [num_blocks, block_size, num_kv_heads, head_dim];
 *   block_table: [ceil(num_tokens / block_size)] ids of the blocks that hold the prompt's
 *   tokens 0..num_tokens-1.
 * Errors: as above; OUT_OF_RANGE for a block id outside the pool. */
RELAY_API relay_status relay_prompt_write_pages(relay_prompt *prompt, int32_t layer,
                                                const relay_tensor *key_pool,
                                                const relay_tensor *value_pool,
                                                const int32_t *block_table);

/* Makes a filled prompt findable and, with a directory, writes its file (data
 * synchronised, then renamed, before this returns; others find it in memory
 * meanwhile).  The prompt stays pinned.
 * A file that cannot be written is IO_ERROR; the prompt is in the cache all the same, and
 * gone once it is evicted.
 * Errors: NULL_POINTER, INVALID_ARGUMENT (not begun here, or tokens missing), IO_ERROR. */
RELAY_API relay_status relay_prompt_commit(relay_prompt *prompt);

/* Unpins; a prompt that was begun and not committed is dropped.  Accepts NULL. */
RELAY_API void relay_prompt_release(relay_prompt *prompt);

/* Tokens, bytes in memory, key; the key lives as long as the pin. */
RELAY_API int32_t relay_prompt_num_tokens(const relay_prompt *prompt);
RELAY_API uint64_t relay_prompt_num_bytes(const relay_prompt *prompt);
RELAY_API const char *relay_prompt_key(const relay_prompt *prompt);

/* Reads packed K/V back as [n, num_kv_heads, head_dim] f32 tensors, for tests and for
 * hosts that need it unpacked.  Either of key, value may be NULL.
 * Errors: NULL_POINTER (prompt), BAD_DTYPE, BAD_SHAPE, BAD_STRIDE (elements share memory,
 * too), MISALIGNED, OVERLAP (their byte ranges meet), OUT_OF_RANGE. */
RELAY_API relay_status relay_prompt_read(const relay_prompt *prompt, int32_t layer,
                                         int32_t first_token, relay_tensor *key,
                                         relay_tensor *value);

/* Announces keys that will be wanted soon, the soonest first: those in the directory and not
 * in memory are read in the background, in order, prefetch_batch_size at a time.  A newer
 * announcement goes before the rest of an older one.  Returns at once; unknown keys are
 * ignored.  Prefetch never evicts a prompt in use, nor one that the same or a newer
 * announcement named; where that leaves no room, the rest is not read.  No-op when disabled
 * or memory only.
 * Errors: NULL_POINTER, INVALID_ARGUMENT, OUT_OF_MEMORY (no thread, too). */
RELAY_API relay_status relay_prompt_cache_prefetch(relay_prompt_cache *cache,
                                                   const char *const *keys, int32_t num_keys);

/* Blocks until every announced key has been dealt with.  Errors: NULL_POINTER. */
RELAY_API relay_status relay_prompt_cache_wait(relay_prompt_cache *cache);

/* Drops an entry from memory and from the directory.  In use: it goes at its last
 * release, and is no longer found from now on.  Waits while its file is read or written.
 * Errors: NULL_POINTER, INVALID_ARGUMENT, NOT_FOUND, IO_ERROR, OUT_OF_MEMORY. */
RELAY_API relay_status relay_prompt_cache_forget(relay_prompt_cache *cache, const char *key);

typedef struct relay_prompt_cache_stats {
    uint32_t struct_size;
    int32_t prompts;          /* now in memory, pinned ones included */
    int32_t pinned;
    uint64_t bytes;           /* now in memory */
    uint64_t peak_bytes;
    uint64_t memory_hits;     /* acquire found it in memory */
    uint64_t file_hits;       /* acquire read it from the directory */
    uint64_t misses;
    uint64_t evictions;
    uint64_t prefetched;      /* read in the background */
    uint64_t prefetch_groups; /* groups that did it */
    uint64_t rejected_files;  /* damaged, foreign or unreadable; once for each try */
    uint64_t files_written;
} relay_prompt_cache_stats;

/* Errors: NULL_POINTER, BAD_STRUCT_SIZE. */
RELAY_API relay_status relay_prompt_cache_get_stats(relay_prompt_cache *cache,
                                                    relay_prompt_cache_stats *stats);

#ifdef __cplusplus
}
#endif
#endif
