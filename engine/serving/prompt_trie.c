#include "prompt_trie.h"

#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"

bool eng_trie_add(eng_trie *trie, const int32_t *tokens, int32_t count, eng_error *err) {
    eng_trie_prompt *grown = eng_grow(trie->prompts, &trie->prompt_room, (size_t)trie->num_prompts + 1, sizeof *grown, err);
    if (grown == NULL) return false;
    trie->prompts = grown;
    int32_t *copy = malloc((size_t)count * sizeof *copy);
    if (copy == NULL) return eng_fail(err, "out of memory for a prompt of %d tokens", (int)count);
    memcpy(copy, tokens, (size_t)count * sizeof *copy);
    grown[trie->num_prompts] = (eng_trie_prompt){copy, count, trie->num_prompts, -1};
    trie->num_prompts++;
    return true;
}

void eng_trie_free(eng_trie *trie) {
    for (int32_t i = 0; i < trie->num_prompts; i++) free(trie->prompts[i].tokens);
    free(trie->prompts);
    free(trie->nodes);
    *trie = (eng_trie){0};
}

/* ---- cutting ------------------------------------------------------------ */

/* Prompts side by side in lexicographic order that have their first `start` tokens in common, all of
 * which `parent` and the nodes above it cover. */
typedef struct group {
    eng_trie_prompt *prompts;
    int32_t count, start, parent;
} group;

static int32_t common_tokens(const eng_trie_prompt *a, const eng_trie_prompt *b) {
    int32_t n = 0, limit = a->count < b->count ? a->count : b->count;
    while (n < limit && a->tokens[n] == b->tokens[n]) n++;
    return n;
}

static int compare_prompts(const void *left, const void *right) {
    const eng_trie_prompt *a = left, *b = right;
    int32_t n = common_tokens(a, b);
    if (n == a->count || n == b->count) return (a->count > b->count) - (a->count < b->count);
    return a->tokens[n] < b->tokens[n] ? -1 : 1;
}

static int compare_indices(const void *left, const void *right) {
    const eng_trie_prompt *a = left, *b = right;
    return (a->index > b->index) - (a->index < b->index);
}

/* Whether [start, end) is worth a node; a whole prompt that stands on nothing always is. */
static bool worth_a_node(const eng_trie *trie, const group *g, int32_t end) {
    const eng_trie_prompt *first = &g->prompts[0], *last = &g->prompts[g->count - 1];
    bool all_end = first->count == end && last->count == end;
    if (end == g->start) return false;
    if (g->parent < 0 && all_end) return true;
    if (end - g->start < ENG_MIN_SHARED_TOKENS) return false;
    int32_t depth = g->parent < 0 ? 0 : trie->nodes[g->parent].depth;
    return all_end ? depth < ENG_MAX_PATH : depth < ENG_MAX_PATH - 1;
}

static bool add_node(eng_trie *trie, const group *g, int32_t end, int32_t *index, eng_error *err) {
    eng_trie_node *grown = eng_grow(trie->nodes, &trie->node_room, (size_t)trie->num_nodes + 1, sizeof *grown, err);
    if (grown == NULL) return false;
    trie->nodes = grown;
    int32_t depth = g->parent < 0 ? 1 : grown[g->parent].depth + 1;
    grown[trie->num_nodes] = (eng_trie_node){g->parent, depth, g->start, end, g->prompts[0].tokens};
    *index = trie->num_nodes++;
    return true;
}

/* Prompts of a group that go on alike behind its common tokens. */
static int32_t run_length(const group *g, int32_t from, int32_t common) {
    int32_t n = 1;
    while (from + n < g->count && common_tokens(&g->prompts[from], &g->prompts[from + n]) > common) n++;
    return n;
}

static bool cut(eng_trie *trie, group g, eng_error *err) {
    int32_t common = common_tokens(&g.prompts[0], &g.prompts[g.count - 1]);
    if (worth_a_node(trie, &g, common)) {
        if (!add_node(trie, &g, common, &g.parent, err)) return false;
        g.start = common;
    }
    int32_t done = 0;
    while (done < g.count && g.prompts[done].count == common) g.prompts[done++].leaf = g.parent;
    while (done < g.count) {
        int32_t n = run_length(&g, done, common);
        group part = {g.prompts + done, n, g.start, g.parent};
        if (!cut(trie, part, err)) return false;
        done += n;
    }
    return true;
}

bool eng_trie_build(eng_trie *trie, eng_error *err) {
    if (trie->num_prompts == 0) return true;
    size_t count = (size_t)trie->num_prompts;
    qsort(trie->prompts, count, sizeof *trie->prompts, compare_prompts);
    bool ok = cut(trie, (group){trie->prompts, trie->num_prompts, 0, -1}, err);
    qsort(trie->prompts, count, sizeof *trie->prompts, compare_indices);
    return ok;
}

eng_path eng_trie_path(const eng_trie *trie, int32_t node) {
    eng_path path = {0};
    if (node < 0) return path;
    path.count = trie->nodes[node].depth;
    path.tokens = trie->nodes[node].end;
    for (int32_t i = path.count; i-- > 0; node = trie->nodes[node].parent)
        path.steps[i] = (eng_path_step){node, trie->nodes[node].end - trie->nodes[node].start};
    return path;
}
