#include "prompt_set.h"

#include <stdlib.h>
#include <string.h>

#include "prompt_trie.h"
#include "common/sha256.h"

typedef struct node_state {
    char key[ENG_SHA256_HEX];
    relay_prompt *handle; /* pinned in the cache as long as it is here */
    int32_t users;        /* paths that hold it */
    bool absent;          /* it was not in the cache when last looked for */
} node_state;

struct eng_prompt_set {
    relay_prompt_cache *cache;
    char model_id[RELAY_MAX_KEY_BYTES + 1];
    eng_trie trie;
    node_state *nodes; /* [trie.num_nodes] */
    int32_t filling;   /* node, or -1 */
    int32_t filled;    /* its tokens that are there */
    eng_prompt_set_stats stats;
};

bool eng_prompt_set_create(relay_prompt_cache *cache, const char *model_id, eng_prompt_set **out, eng_error *err) {
    *out = NULL;
    eng_prompt_set *set = calloc(1, sizeof *set);
    if (set == NULL) return eng_fail(err, "out of memory for the prompts");
    set->cache = cache;
    set->filling = -1;
    strncpy(set->model_id, model_id, sizeof set->model_id - 1);
    *out = set;
    return true;
}

static void release_idle(eng_prompt_set *set) {
    for (int32_t i = 0; set->nodes != NULL && i < set->trie.num_nodes; i++) {
        if (set->nodes[i].users > 0 || i == set->filling) continue;
        relay_prompt_release(set->nodes[i].handle);
        set->nodes[i].handle = NULL;
    }
}

void eng_prompt_set_destroy(eng_prompt_set *set) {
    if (set == NULL) return;
    eng_prompt_set_abandon(set);
    for (int32_t i = 0; set->nodes != NULL && i < set->trie.num_nodes; i++) relay_prompt_release(set->nodes[i].handle);
    free(set->nodes);
    eng_trie_free(&set->trie);
    free(set);
}

bool eng_prompt_set_add(eng_prompt_set *set, const int32_t *tokens, int32_t count, eng_error *err) {
    return eng_trie_add(&set->trie, tokens, count, err);
}

static void make_key(const eng_prompt_set *set, const eng_trie_node *node, char key[ENG_SHA256_HEX]) {
    eng_sha256 hash;
    eng_sha256_begin(&hash);
    eng_sha256_add(&hash, set->model_id, strlen(set->model_id) + 1);
    for (int32_t i = 0; i < node->end; i++) {
        uint32_t token = (uint32_t)node->tokens[i];
        unsigned char bytes[4] = {(unsigned char)token, (unsigned char)(token >> 8), (unsigned char)(token >> 16),
                                  (unsigned char)(token >> 24)};
        eng_sha256_add(&hash, bytes, sizeof bytes);
    }
    /* equal tokens cut at another place hold other K/V */
    unsigned char start[4] = {(unsigned char)node->start, (unsigned char)(node->start >> 8),
                              (unsigned char)(node->start >> 16), (unsigned char)(node->start >> 24)};
    eng_sha256_add(&hash, start, sizeof start);
    eng_sha256_end_hex(&hash, key);
}

bool eng_prompt_set_build(eng_prompt_set *set, eng_error *err) {
    if (!eng_trie_build(&set->trie, err)) return false;
    set->nodes = calloc((size_t)set->trie.num_nodes + 1, sizeof *set->nodes);
    if (set->nodes == NULL) return eng_fail(err, "out of memory for the prompts");
    for (int32_t i = 0; i < set->trie.num_nodes; i++) make_key(set, &set->trie.nodes[i], set->nodes[i].key);
    return true;
}

void eng_prompt_set_prefetch(eng_prompt_set *set) {
    int32_t count = set->trie.num_nodes;
    const char **keys = malloc(((size_t)count + 1) * sizeof *keys);
    if (keys == NULL) return; /* prefetch is a convenience: acquire reads what it did not bring */
    for (int32_t i = 0; i < count; i++) keys[i] = set->nodes[i].key;
    relay_prompt_cache_prefetch(set->cache, keys, count);
    free(keys);
}

eng_path eng_prompt_set_path(const eng_prompt_set *set, int32_t prompt) {
    return eng_trie_path(&set->trie, set->trie.prompts[prompt].leaf);
}

const char *eng_prompt_set_key(const eng_prompt_set *set, int32_t prompt) {
    int32_t leaf = set->trie.prompts[prompt].leaf;
    return leaf < 0 ? NULL : set->nodes[leaf].key;
}

eng_path eng_prompt_set_match(const eng_prompt_set *set, int32_t prompt, const int32_t *tokens, int32_t count) {
    const eng_trie_prompt *p = &set->trie.prompts[prompt];
    int32_t common = 0, limit = count - 1 < p->count ? count - 1 : p->count;
    while (common < limit && tokens[common] == p->tokens[common]) common++;
    eng_path whole = eng_prompt_set_path(set, prompt), path = {0};
    for (int32_t i = 0; i < whole.count && common > path.tokens; i++) {
        eng_path_step step = whole.steps[i];
        if (step.length > common - path.tokens) step.length = common - path.tokens;
        if (step.length < whole.steps[i].length && step.length < ENG_MIN_SHARED_TOKENS) break;
        path.steps[path.count++] = step;
        path.tokens += step.length;
    }
    return path;
}

/* ---- pins --------------------------------------------------------------- */

static bool fail_cache(relay_status status, eng_error *err) {
    return eng_fail(err, "the system prompt's K/V: %s", relay_status_text(status));
}

/* Where the cache is full of prompts that are only kept because they may be wanted again, those go. */
static relay_status acquire(eng_prompt_set *set, node_state *node) {
    relay_status status = relay_prompt_cache_acquire(set->cache, node->key, &node->handle);
    if (status != RELAY_CACHE_FULL) return status;
    release_idle(set);
    return relay_prompt_cache_acquire(set->cache, node->key, &node->handle);
}

/* Likewise. */
static relay_status begin(eng_prompt_set *set, node_state *node, int32_t tokens) {
    relay_status status = relay_prompt_cache_begin(set->cache, node->key, tokens, &node->handle);
    if (status != RELAY_CACHE_FULL) return status;
    release_idle(set);
    return relay_prompt_cache_begin(set->cache, node->key, tokens, &node->handle);
}

static void unpin_first(eng_prompt_set *set, const eng_path *path, int32_t count) {
    for (int32_t i = 0; i < count; i++) set->nodes[path->steps[i].node].users--;
}

eng_prompt_state eng_prompt_set_pin(eng_prompt_set *set, const eng_path *path, int32_t *node, eng_error *err) {
    for (int32_t i = 0; i < path->count; i++) {
        *node = path->steps[i].node;
        node_state *state = &set->nodes[*node];
        relay_status status = RELAY_OK;
        /* while another is filled nothing can be begun anyway: its file need not be looked for again */
        if (*node == set->filling || (state->absent && set->filling >= 0)) status = RELAY_NOT_FOUND;
        else if (state->handle == NULL) status = acquire(set, state);
        state->absent = status == RELAY_NOT_FOUND;
        if (status == RELAY_OK) {
            state->users++;
            continue;
        }
        unpin_first(set, path, i);
        /* what memory has no room for is read again once others are done */
        if (status == RELAY_NOT_FOUND || status == RELAY_CACHE_FULL) return ENG_PROMPT_MISSING;
        fail_cache(status, err);
        return ENG_PROMPT_FAILED;
    }
    return ENG_PROMPT_READY;
}

void eng_prompt_set_unpin(eng_prompt_set *set, const eng_path *path) {
    unpin_first(set, path, path->count);
}

/* ---- filling ------------------------------------------------------------ */

/* The nodes above one, as a path. */
static eng_path ancestors(const eng_prompt_set *set, int32_t node) {
    return eng_trie_path(&set->trie, set->trie.nodes[node].parent);
}

#define MOST_TURNS 1000 /* an end, should somebody else be building the same prompt */

/* Where prefetch is looking for the node's file at this moment, its key is taken: `acquire` waits for that.  RELAY_OK with
 * `*found`: the file has come since it was last looked for, and the node is there. */
static relay_status begin_or_find(eng_prompt_set *set, node_state *node, int32_t tokens, bool *found) {
    *found = false;
    for (int32_t turn = 0; turn < MOST_TURNS; turn++) {
        relay_status status = begin(set, node, tokens);
        if (status != RELAY_ALREADY_EXISTS) return status;
        status = acquire(set, node);
        *found = status == RELAY_OK;
        if (status != RELAY_NOT_FOUND) return status;
    }
    return RELAY_ALREADY_EXISTS;
}

bool eng_prompt_set_begin(eng_prompt_set *set, int32_t node, bool busy, bool *full, eng_error *err) {
    *full = false;
    if (set->nodes[node].handle != NULL) return eng_fail(err, "the system prompt's K/V are there already");
    eng_path above = ancestors(set, node);
    int32_t missing;
    if (eng_prompt_set_pin(set, &above, &missing, err) != ENG_PROMPT_READY)
        return eng_fail(err, "the system prompt's K/V: a part that it stands on is gone");
    const eng_trie_node *range = &set->trie.nodes[node];
    bool found;
    relay_status status = begin_or_find(set, &set->nodes[node], range->end - range->start, &found);
    if (status == RELAY_OK && !found) {
        set->filling = node;
        set->filled = 0;
        return true;
    }
    eng_prompt_set_unpin(set, &above);
    *full = status == RELAY_CACHE_FULL && busy;
    return found || *full || fail_cache(status, err);
}

relay_prompt *eng_prompt_set_filling(const eng_prompt_set *set) {
    return set->filling < 0 ? NULL : set->nodes[set->filling].handle;
}

eng_path eng_prompt_set_filling_path(const eng_prompt_set *set) {
    eng_path path = ancestors(set, set->filling);
    if (set->filled == 0) return path;
    path.steps[path.count++] = (eng_path_step){set->filling, set->filled};
    path.tokens += set->filled;
    return path;
}

const int32_t *eng_prompt_set_filling_tokens(const eng_prompt_set *set, int32_t *count) {
    const eng_trie_node *node = &set->trie.nodes[set->filling];
    *count = node->end - node->start - set->filled;
    return node->tokens + node->start + set->filled;
}

static void end_filling(eng_prompt_set *set) {
    eng_path above = ancestors(set, set->filling);
    eng_prompt_set_unpin(set, &above);
    set->filling = -1;
}

bool eng_prompt_set_filled(eng_prompt_set *set, int32_t count, double seconds, eng_error *err) {
    const eng_trie_node *node = &set->trie.nodes[set->filling];
    set->filled += count;
    set->stats.tokens_computed += count;
    set->stats.seconds_computing += seconds;
    if (set->filled < node->end - node->start) return true;
    relay_status status = relay_prompt_commit(set->nodes[set->filling].handle);
    if (status != RELAY_OK && status != RELAY_IO_ERROR) { /* a file not written costs time next run, nothing now */
        eng_prompt_set_abandon(set);
        return fail_cache(status, err);
    }
    end_filling(set);
    return true;
}

void eng_prompt_set_abandon(eng_prompt_set *set) {
    if (set->filling < 0) return;
    node_state *state = &set->nodes[set->filling];
    end_filling(set);
    relay_prompt_release(state->handle);
    state->handle = NULL;
}

int32_t eng_prompt_set_nodes(const eng_prompt_set *set) {
    return set->trie.num_nodes;
}

const relay_prompt *eng_prompt_set_handle(const eng_prompt_set *set, int32_t node) {
    return set->nodes[node].handle;
}

eng_prompt_set_stats eng_prompt_set_get_stats(const eng_prompt_set *set) {
    return set->stats;
}
