/* The trie of a run's system prompts: where they are cut into runs of tokens that are computed once. */
#ifndef RELAY_ENGINE_PROMPT_TRIE_H
#define RELAY_ENGINE_PROMPT_TRIE_H

#include "prompt_set.h"

typedef struct eng_trie_prompt {
    int32_t *tokens;
    int32_t count, index; /* index: in the order of adding */
    int32_t leaf;         /* last node of its path; -1: too short to have one */
} eng_trie_prompt;

typedef struct eng_trie_node {
    int32_t parent, depth; /* parent -1: a root, of depth 1 */
    int32_t start, end;    /* positions of its tokens */
    const int32_t *tokens; /* from position 0; borrowed from a prompt */
} eng_trie_node;

/* All zero is an empty one. */
typedef struct eng_trie {
    eng_trie_prompt *prompts; /* [num_prompts] in the order of adding */
    eng_trie_node *nodes;     /* parents before their children */
    int32_t num_prompts, num_nodes;
    size_t prompt_room, node_room;
} eng_trie;

bool eng_trie_add(eng_trie *trie, const int32_t *tokens, int32_t count, eng_error *err);
bool eng_trie_build(eng_trie *trie, eng_error *err);
void eng_trie_free(eng_trie *trie);

/* From the root to `node`, every node whole; an empty path for -1. */
eng_path eng_trie_path(const eng_trie *trie, int32_t node);

#endif
