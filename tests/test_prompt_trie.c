/* Where system prompts are cut, and what a request shares with them. */
#include "serving/prompt_trie.h"

#include <stdlib.h>

#include "test.h"

enum { LONG = 100 };

/* Tokens that count up from 0, from position `at` on shifted by `shift`. */
static void add(eng_trie *trie, int32_t count, int32_t at, int32_t shift) {
    int32_t tokens[4 * LONG];
    eng_error err;
    for (int32_t i = 0; i < count; i++) tokens[i] = i < at ? i : i + shift;
    CHECK(eng_trie_add(trie, tokens, count, &err));
}

static eng_path path_of(const eng_trie *trie, int32_t prompt) {
    return eng_trie_path(trie, trie->prompts[prompt].leaf);
}

/* Every path covers a prompt from its front without a gap, and holds the prompt's own tokens. */
static void check_paths(const eng_trie *trie) {
    for (int32_t p = 0; p < trie->num_prompts; p++) {
        eng_path path = path_of(trie, p);
        int32_t at = 0;
        for (int32_t i = 0; i < path.count; i++) {
            const eng_trie_node *node = &trie->nodes[path.steps[i].node];
            CHECK(node->start == at && node->end > at && path.steps[i].length == node->end - node->start);
            CHECK(memcmp(node->tokens, trie->prompts[p].tokens, (size_t)node->end * sizeof(int32_t)) == 0);
            at = node->end;
        }
        CHECK(at == path.tokens && at <= trie->prompts[p].count && trie->prompts[p].index == p);
        CHECK_MSG(trie->prompts[p].count - at < ENG_MIN_SHARED_TOKENS || path.count >= ENG_MAX_PATH - 1,
                  "prompt %d: %d of %d tokens are on its path", p, at, trie->prompts[p].count);
    }
}

static void build(eng_trie *trie) {
    eng_error err;
    CHECK(eng_trie_build(trie, &err));
    check_paths(trie);
}

static void test_alone(void) {
    eng_trie trie = {0};
    add(&trie, 3, 3, 0);
    build(&trie);
    CHECK(trie.num_nodes == 1 && path_of(&trie, 0).tokens == 3);
    eng_trie_free(&trie);
    build(&trie);
    CHECK(trie.num_nodes == 0);
    eng_trie_free(&trie);
}

static void test_apart(void) {
    eng_trie trie = {0};
    add(&trie, LONG, 5, 1000); /* five tokens in common: not worth a segment */
    add(&trie, LONG, 5, 2000);
    build(&trie);
    CHECK(trie.num_nodes == 2 && path_of(&trie, 0).count == 1 && path_of(&trie, 1).count == 1);
    eng_trie_free(&trie);
}

static void test_nested(void) {
    eng_trie trie = {0};
    add(&trie, 2 * LONG, LONG, 1000); /* A + tools 1 */
    add(&trie, LONG, LONG, 0);        /* A */
    add(&trie, 2 * LONG, LONG, 2000); /* A + tools 2 */
    add(&trie, LONG, LONG, 0);        /* A again */
    add(&trie, LONG, 0, 5000);        /* B */
    build(&trie);
    CHECK_MSG(trie.num_nodes == 4, "%d nodes", trie.num_nodes);
    eng_path one = path_of(&trie, 0), a = path_of(&trie, 1), two = path_of(&trie, 2), again = path_of(&trie, 3);
    CHECK(one.count == 2 && two.count == 2 && a.count == 1 && again.count == 1);
    CHECK(one.steps[0].node == a.steps[0].node && two.steps[0].node == a.steps[0].node);
    CHECK(again.steps[0].node == a.steps[0].node && one.steps[1].node != two.steps[1].node);
    CHECK(path_of(&trie, 4).count == 1 && path_of(&trie, 4).steps[0].node != a.steps[0].node);
    eng_trie_free(&trie);
}

/* What a prompt has beyond its neighbours is left to the requests where it is short. */
static void test_short_rest(void) {
    eng_trie trie = {0};
    add(&trie, LONG + 4, LONG, 1000);
    add(&trie, LONG + 4, LONG, 2000);
    build(&trie);
    CHECK(trie.num_nodes == 1 && path_of(&trie, 0).tokens == LONG && path_of(&trie, 1).tokens == LONG);
    eng_trie_free(&trie);
}

static void test_deep(void) {
    eng_trie trie = {0};
    for (int32_t i = 1; i <= 12; i++) add(&trie, 20 * i, 20 * i, 0);
    build(&trie);
    int32_t deepest = 0;
    for (int32_t p = 0; p < 12; p++) {
        eng_path path = path_of(&trie, p);
        if (path.count > deepest) deepest = path.count;
    }
    CHECK_MSG(deepest == ENG_MAX_PATH, "depth %d", deepest);
    eng_trie_free(&trie);
}

int main(void) {
    test_alone();
    test_apart();
    test_nested();
    test_short_rest();
    test_deep();
    return test_result();
}
