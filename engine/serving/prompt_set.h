/* The system prompts of a run, as tokens: what they share among themselves, and their K/V.
 *
 * The prompts form a trie.  A node is a run of tokens that is computed once and packed into the
 * prompt cache; a prompt is a path of nodes, and a request that begins with a prompt's tokens stands
 * on that path.  Where a request parts from its prompt early (the last token may come out otherwise
 * with the user's text behind it), it stands on the part that they have in common.
 *
 * A node's key is a hash of the model and of all tokens up to the node's end, so that equal prompts
 * are found whatever they are called. */
#ifndef RELAY_ENGINE_PROMPT_SET_H
#define RELAY_ENGINE_PROMPT_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "relay/prompt_cache.h"

enum {
    ENG_MIN_SHARED_TOKENS = 16, /* shorter runs cost more as a segment than as a request's own tokens */
    ENG_MAX_PATH = 8            /* nodes on a path; prompts that would nest deeper share less */
};

/* The first `length` tokens of a node. */
typedef struct eng_path_step {
    int32_t node, length;
} eng_path_step;

typedef struct eng_path {
    int32_t count, tokens; /* steps; sum of their lengths */
    eng_path_step steps[ENG_MAX_PATH];
} eng_path;

typedef struct eng_prompt_set eng_prompt_set;

/* `cache` is borrowed. */
bool eng_prompt_set_create(relay_prompt_cache *cache, const char *model_id, eng_prompt_set **out, eng_error *err);
void eng_prompt_set_destroy(eng_prompt_set *set);

/* Adds a prompt of `count` >= 1 tokens (copied); its index counts from 0.  Then build, once. */
bool eng_prompt_set_add(eng_prompt_set *set, const int32_t *tokens, int32_t count, eng_error *err);
bool eng_prompt_set_build(eng_prompt_set *set, eng_error *err);

/* Announces all nodes to the cache, which brings them in from its directory in the background. */
void eng_prompt_set_prefetch(eng_prompt_set *set);

/* Where a request of that prompt stands; at least one of its tokens stays its own. */
eng_path eng_prompt_set_match(const eng_prompt_set *set, int32_t prompt, const int32_t *tokens, int32_t count);

typedef enum eng_prompt_state {
    ENG_PROMPT_READY,   /* pinned: give it back with unpin */
    ENG_PROMPT_MISSING, /* *node has to be computed first */
    ENG_PROMPT_FAILED   /* it cannot be had: see the error */
} eng_prompt_state;

/* Pins all nodes of a path or none. */
eng_prompt_state eng_prompt_set_pin(eng_prompt_set *set, const eng_path *path, int32_t *node, eng_error *err);
void eng_prompt_set_unpin(eng_prompt_set *set, const eng_path *path);

/* ---- computing a node, one at a time ---- */

/* Starts to fill a node whose ancestors are ready and pins those.  `busy`: requests hold prompts that
 * will come free, so that a full cache is *full rather than a failure.  Nothing is being filled afterwards if it is full,
 * or if the node has come from its file meanwhile: pin it. */
bool eng_prompt_set_begin(eng_prompt_set *set, int32_t node, bool busy, bool *full, eng_error *err);

/* The node being filled: its handle, and the path that its next tokens stand on (ancestors and what
 * is there of itself). */
relay_prompt *eng_prompt_set_filling(const eng_prompt_set *set);
eng_path eng_prompt_set_filling_path(const eng_prompt_set *set);

/* The tokens that are still to be computed. */
const int32_t *eng_prompt_set_filling_tokens(const eng_prompt_set *set, int32_t *count);

/* `count` more tokens of all layers have been written; the last ones commit the node. */
bool eng_prompt_set_filled(eng_prompt_set *set, int32_t count, double seconds, eng_error *err);
void eng_prompt_set_abandon(eng_prompt_set *set);

/* ---- reading ---- */

int32_t eng_prompt_set_nodes(const eng_prompt_set *set);
const relay_prompt *eng_prompt_set_handle(const eng_prompt_set *set, int32_t node);
eng_path eng_prompt_set_path(const eng_prompt_set *set, int32_t prompt);

/* The key of a prompt's last node, which names the whole prompt; NULL where it has none. */
const char *eng_prompt_set_key(const eng_prompt_set *set, int32_t prompt);

typedef struct eng_prompt_set_stats {
    int64_t tokens_computed;
    double seconds_computing;
} eng_prompt_set_stats;
eng_prompt_set_stats eng_prompt_set_get_stats(const eng_prompt_set *set);

#endif
