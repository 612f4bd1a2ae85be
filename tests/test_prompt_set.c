/* Starting on a prompt while another thread looks for its file, as prefetch does: never an error, and what has come
 * meanwhile is not computed again. */
#include <pthread.h>
#include <stdatomic.h>

#include "prompt_fixture.h"
#include "serving/prompt_set.h"

enum { TOKENS = 80, TURNS = 3000 };

static char scratch[256];

typedef struct looker {
    relay_prompt_cache *cache;
    const char *key;
    atomic_bool stop;
    atomic_int looks;
} looker;

static void *look(void *argument) {
    looker *l = argument;
    while (!atomic_load(&l->stop)) {
        relay_prompt *prompt = NULL;
        if (relay_prompt_cache_acquire(l->cache, l->key, &prompt) == RELAY_OK) relay_prompt_release(prompt);
        atomic_fetch_add(&l->looks, 1);
    }
    return NULL;
}

static eng_prompt_set *make_set(relay_prompt_cache *cache) {
    eng_error err = {""};
    eng_prompt_set *set = NULL;
    int32_t tokens[TOKENS];
    for (int32_t i = 0; i < TOKENS; i++) tokens[i] = i;
    CHECK(eng_prompt_set_create(cache, "model", &set, &err) && eng_prompt_set_add(set, tokens, TOKENS, &err) &&
          eng_prompt_set_build(set, &err));
    return set;
}

static int32_t first_node(const eng_prompt_set *set) {
    const eng_path path = eng_prompt_set_path(set, 0);
    CHECK(path.count == 1 && path.tokens == TOKENS);
    return path.steps[0].node;
}

static void test_looked_for(relay_prompt_cache *cache) {
    eng_error err = {""};
    eng_prompt_set *set = make_set(cache);
    looker l = {.cache = cache, .key = eng_prompt_set_key(set, 0)};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, look, &l) == 0);
    while (atomic_load(&l.looks) == 0) continue;
    int32_t begun = 0;
    for (int32_t i = 0; i < TURNS; i++) {
        bool full;
        CHECK_MSG(eng_prompt_set_begin(set, first_node(set), false, &full, &err), "turn %d: %s", i, err.text);
        begun += eng_prompt_set_filling(set) != NULL;
        eng_prompt_set_abandon(set);
    }
    atomic_store(&l.stop, true);
    pthread_join(thread, NULL);
    CHECK(begun == TURNS); /* there is no file */
    eng_prompt_set_destroy(set);
}

/* Its file has come since: the node is there, and nothing is begun. */
static void test_come_meanwhile(relay_prompt_cache *cache) {
    eng_error err = {""};
    eng_prompt_set *set = make_set(cache);
    const char *key = eng_prompt_set_key(set, 0);
    const eng_path path = eng_prompt_set_path(set, 0);
    int32_t node;
    bool full;
    CHECK(eng_prompt_set_pin(set, &path, &node, &err) == ENG_PROMPT_MISSING);
    CHECK_STATUS(build(cache, key, TOKENS), RELAY_OK);
    CHECK_MSG(eng_prompt_set_begin(set, node, false, &full, &err), "%s", err.text);
    CHECK(!full && eng_prompt_set_filling(set) == NULL);
    CHECK(eng_prompt_set_pin(set, &path, &node, &err) == ENG_PROMPT_READY);
    eng_prompt_set_unpin(set, &path);
    eng_prompt_set_destroy(set);
}

int main(void) {
    relay_device *device = open_device(1);
    relay_prompt_cache_options options = small_options();
    make_scratch(scratch);
    options.directory = scratch;
    relay_prompt_cache *cache = make_cache(device, &options);
    test_looked_for(cache);
    test_come_meanwhile(cache);
    relay_prompt_cache_destroy(cache);
    remove_tree(scratch);
    relay_device_close(device);
    return test_result();
}
