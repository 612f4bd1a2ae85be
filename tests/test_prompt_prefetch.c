/* Prefetch: what is brought in, in which order and in which groups, and what has to stay.
 *
 * The thread is held where a test wants it by a damaged file: it logs that file, and the log
 * callback waits. */
#include <time.h>

#include "prompt_fixture.h"
#include "prompt_internal.h"

static relay_device *device;
static char scratch[256];

/* ---- a log that can hold whoever writes to it ---- */

static pthread_mutex_t gate_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_moved = PTHREAD_COND_INITIALIZER;
static bool gate_closed, gate_reached;

static void hold_at_gate(void *user, relay_log_level level, const char *message) {
    keep_line(user, level, message);
    if (level != RELAY_LOG_WARN) return;
    pthread_mutex_lock(&gate_lock);
    gate_reached = true;
    pthread_cond_broadcast(&gate_moved);
    while (gate_closed) pthread_cond_wait(&gate_moved, &gate_lock);
    pthread_mutex_unlock(&gate_lock);
}

static void close_gate(void) {
    pthread_mutex_lock(&gate_lock);
    gate_closed = true;
    gate_reached = false;
    pthread_mutex_unlock(&gate_lock);
}

static void wait_until_held(void) {
    pthread_mutex_lock(&gate_lock);
    while (!gate_reached) pthread_cond_wait(&gate_moved, &gate_lock);
    pthread_mutex_unlock(&gate_lock);
}

static void open_gate(void) {
    pthread_mutex_lock(&gate_lock);
    gate_closed = false;
    pthread_cond_broadcast(&gate_moved);
    pthread_mutex_unlock(&gate_lock);
}

/* ---- directories and caches ---- */

static relay_prompt_cache *open_cache(int32_t max_prompts, int32_t batch) {
    relay_prompt_cache_options options = small_options();
    options.directory = scratch;
    options.max_cached_system_prompts = max_prompts;
    options.prefetch_batch_size = batch;
    return make_cache(device, &options);
}

/* Writes the files of the prompts "a", "b", ... */
static void write_files(const char *letters) {
    relay_prompt_cache *cache = open_cache(100, 4);
    for (; *letters != '\0'; letters++)
        CHECK_STATUS(build(cache, (char[]){*letters, '\0'}, 3), RELAY_OK);
    relay_prompt_cache_destroy(cache);
}

/* Writes a file for "!" that is damaged. */
static void write_damaged(void) {
    char path[600];
    relay_prompt_cache *cache = open_cache(100, 4);
    CHECK_STATUS(build(cache, "!", 3), RELAY_OK);
    relay_prompt_cache_destroy(cache);
    CHECK(count_files(scratch, ".relay", path) == 1);
    CHECK(truncate(path, 100) == 0);
}

static relay_status announce(relay_prompt_cache *cache, const char *letters) {
    char text[26][2];
    const char *keys[26];
    int32_t count = 0;
    for (; letters[count] != '\0'; count++) {
        text[count][0] = letters[count];
        text[count][1] = '\0';
        keys[count] = text[count];
    }
    return relay_prompt_cache_prefetch(cache, keys, count);
}

/* The keys in memory, found out by what happens to the count of memory hits; with the files
 * deleted, nothing else can be found. */
static void check_in_memory(relay_prompt_cache *cache, const char *expected) {
    char found[27];
    size_t count = 0;
    remove_tree(scratch);
    for (char letter = 'a'; letter <= 'z'; letter++)
        if (look_up(cache, (char[]){letter, '\0'}) == RELAY_OK) found[count++] = letter;
    found[count] = '\0';
    CHECK_MSG(strcmp(found, expected) == 0, "have \"%s\", expected \"%s\"", found, expected);
}

/* ---- tests ---- */

static void test_groups(void) {
    write_files("abcdefghij");
    relay_prompt_cache *cache = open_cache(100, 4);
    CHECK_STATUS(announce(cache, "abcdefghij"), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_wait(cache), RELAY_OK);
    relay_prompt_cache_stats stats = stats_of(cache);
    CHECK(stats.prefetched == 10 && stats.prefetch_groups == 3 && stats.prompts == 10);
    CHECK(stats.pinned == 0 && stats.file_hits == 0 && stats.misses == 0);
    CHECK_STATUS(announce(cache, "abcdefghij"), RELAY_OK); /* all there: no group */
    CHECK_STATUS(relay_prompt_cache_wait(cache), RELAY_OK);
    CHECK(stats_of(cache).prefetch_groups == 3 && stats_of(cache).prefetched == 10);
    check_in_memory(cache, "abcdefghij");
    CHECK(stats_of(cache).memory_hits == 10);
    relay_prompt_cache_destroy(cache);
}

static void test_unknown_and_damaged(void) {
    write_damaged();
    write_files("ab");
    relay_prompt_cache *cache = open_cache(100, 4);
    CHECK_STATUS(announce(cache, "xa!yb"), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_wait(cache), RELAY_OK);
    relay_prompt_cache_stats stats = stats_of(cache);
    CHECK(stats.prefetched == 2 && stats.rejected_files == 1 && stats.prompts == 2);
    CHECK(stats.misses == 0); /* nobody has asked for them yet */
    check_in_memory(cache, "ab");
    relay_prompt_cache_destroy(cache);
}

/* What is announced first is wanted first: the rest does not push it out again. */
static void test_keeps_its_own(void) {
    write_files("abcde");
    relay_prompt_cache *cache = open_cache(3, 2);
    CHECK_STATUS(announce(cache, "abcde"), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_wait(cache), RELAY_OK);
    CHECK(stats_of(cache).prefetched == 3 && stats_of(cache).evictions == 0);
    check_in_memory(cache, "abc");
    relay_prompt_cache_destroy(cache);
}

static void test_keeps_pinned(void) {
    write_files("abx");
    relay_prompt_cache *cache = open_cache(2, 4);
    relay_prompt *pinned;
    CHECK_STATUS(relay_prompt_cache_acquire(cache, "x", &pinned), RELAY_OK);
    CHECK_STATUS(announce(cache, "ab"), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_wait(cache), RELAY_OK);
    CHECK(holds_its_numbers(pinned) && stats_of(cache).prompts == 2);
    relay_prompt_release(pinned);
    check_in_memory(cache, "ax");
    relay_prompt_cache_destroy(cache);
}

/* Older prompts go, but one that is announced again counts as used. */
static void test_replaces_older(void) {
    write_files("abc");
    relay_prompt_cache *cache = open_cache(2, 4);
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK);
    CHECK_STATUS(look_up(cache, "b"), RELAY_OK);
    CHECK_STATUS(announce(cache, "ac"), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_wait(cache), RELAY_OK);
    CHECK(stats_of(cache).evictions == 1);
    check_in_memory(cache, "ac");
    relay_prompt_cache_destroy(cache);
}

static void test_announced_counts_as_used(void) {
    write_files("abc");
    relay_prompt_cache *cache = open_cache(2, 4);
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK);
    CHECK_STATUS(look_up(cache, "b"), RELAY_OK);
    CHECK_STATUS(announce(cache, "a"), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_wait(cache), RELAY_OK);
    CHECK_STATUS(look_up(cache, "c"), RELAY_OK); /* evicts b */
    check_in_memory(cache, "ac");
    relay_prompt_cache_destroy(cache);
}

static void test_next_announcement_replaces(void) {
    write_files("abcd");
    relay_prompt_cache *cache = open_cache(2, 4);
    CHECK_STATUS(announce(cache, "ab"), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_wait(cache), RELAY_OK);
    CHECK_STATUS(announce(cache, "cd"), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_wait(cache), RELAY_OK);
    check_in_memory(cache, "cd");
    relay_prompt_cache_destroy(cache);
}

/* A newer announcement waits for one group, not for the whole of an older one; and what it
 * brought in is not pushed out by the rest of that. */
static void test_newer_goes_first(void) {
    write_damaged();
    write_files("abc");
    relay_prompt_cache *cache = open_cache(2, 1);
    close_gate();
    CHECK_STATUS(announce(cache, "!ab"), RELAY_OK);
    wait_until_held();
    CHECK_STATUS(announce(cache, "c"), RELAY_OK);
    open_gate();
    CHECK_STATUS(relay_prompt_cache_wait(cache), RELAY_OK);
    CHECK(stats_of(cache).prefetched == 2 && stats_of(cache).prefetch_groups == 2);
    check_in_memory(cache, "ac");
    relay_prompt_cache_destroy(cache);
}

/* However often keys are announced while the thread is busy, the list does not grow. */
static void test_repeated_announcements(void) {
    write_damaged();
    write_files("abc");
    relay_prompt_cache *cache = open_cache(10, 1);
    close_gate();
    CHECK_STATUS(announce(cache, "!abc"), RELAY_OK);
    wait_until_held();
    for (int i = 0; i < 50; i++) CHECK_STATUS(announce(cache, i % 2 == 0 ? "bc" : "ab"), RELAY_OK);
    int length = 0;
    pthread_mutex_lock(&cache->lock);
    for (const relayi_wish *wish = cache->wishes; wish != NULL; wish = wish->next) length++;
    pthread_mutex_unlock(&cache->lock);
    CHECK_MSG(length == 3, "%d keys are waiting", length);
    open_gate();
    CHECK_STATUS(relay_prompt_cache_wait(cache), RELAY_OK);
    CHECK(stats_of(cache).prefetched == 3);
    check_in_memory(cache, "abc");
    relay_prompt_cache_destroy(cache);
}

static void test_group_is_finished(void) {
    write_damaged();
    write_files("abc");
    relay_prompt_cache *cache = open_cache(2, 3);
    close_gate();
    CHECK_STATUS(announce(cache, "!ab"), RELAY_OK); /* one group */
    wait_until_held();
    CHECK_STATUS(announce(cache, "c"), RELAY_OK);
    open_gate();
    CHECK_STATUS(relay_prompt_cache_wait(cache), RELAY_OK);
    CHECK(stats_of(cache).prefetched == 3 && stats_of(cache).prefetch_groups == 2);
    check_in_memory(cache, "bc");
    relay_prompt_cache_destroy(cache);
}

typedef struct call {
    relay_prompt_cache *cache;
    relay_status status;
    bool returned;
} call;

static void *forget_damaged(void *argument) {
    call *made = argument;
    made->status = relay_prompt_cache_forget(made->cache, "!");
    pthread_mutex_lock(&gate_lock);
    made->returned = true;
    pthread_mutex_unlock(&gate_lock);
    return NULL;
}

static void *acquire_damaged(void *argument) {
    call *made = argument;
    relay_prompt *prompt = NULL;
    made->status = relay_prompt_cache_acquire(made->cache, "!", &prompt);
    relay_prompt_release(prompt);
    pthread_mutex_lock(&gate_lock);
    made->returned = true;
    pthread_mutex_unlock(&gate_lock);
    return NULL;
}

/* Makes a call while the thread reads "!"; it has to wait for that. */
static relay_status call_in_flight(relay_prompt_cache *cache, void *(*function)(void *)) {
    call made = {.cache = cache};
    pthread_t thread;
    relay_prompt *prompt;
    close_gate();
    CHECK_STATUS(announce(cache, "!"), RELAY_OK);
    wait_until_held();
    CHECK_STATUS(relay_prompt_cache_begin(cache, "!", 3, &prompt), RELAY_ALREADY_EXISTS);
    CHECK(pthread_create(&thread, NULL, function, &made) == 0);
    nanosleep(&(struct timespec){0, 20000000}, NULL);
    pthread_mutex_lock(&gate_lock);
    CHECK(!made.returned);
    pthread_mutex_unlock(&gate_lock);
    open_gate();
    pthread_join(thread, NULL);
    CHECK_STATUS(relay_prompt_cache_wait(cache), RELAY_OK);
    return made.status;
}

static void test_calls_in_flight(void) {
    write_damaged();
    relay_prompt_cache *cache = open_cache(2, 1);
    CHECK_STATUS(call_in_flight(cache, acquire_damaged), RELAY_NOT_FOUND);
    CHECK(stats_of(cache).rejected_files == 1); /* the waiting one has not read it again */
    CHECK(stats_of(cache).misses == 1);
    CHECK_STATUS(call_in_flight(cache, forget_damaged), RELAY_OK);
    CHECK(count_files(scratch, ".relay", NULL) == 0);
    CHECK(stats_of(cache).prompts == 0);
    relay_prompt_cache_destroy(cache);
}

static void test_destroy_in_flight(void) {
    write_files("abcdefghij");
    for (int i = 0; i < 20; i++) {
        relay_prompt_cache *cache = open_cache(100, 1 + i % 3);
        CHECK_STATUS(announce(cache, "abcdefghij"), RELAY_OK);
        if (i % 2 == 1) CHECK_STATUS(look_up(cache, "e"), RELAY_OK);
        relay_prompt_cache_destroy(cache);
    }
}

static void test_switched_off(void) {
    write_files("a");
    relay_prompt_cache_options options = small_options();
    options.directory = scratch;
    options.enable_prefetch = 0;
    for (int i = 0; i < 2; i++) {
        relay_prompt_cache *cache = make_cache(device, &options);
        CHECK_STATUS(announce(cache, "a"), RELAY_OK);
        CHECK_STATUS(relay_prompt_cache_wait(cache), RELAY_OK);
        CHECK(stats_of(cache).prefetched == 0 && stats_of(cache).prompts == 0);
        relay_prompt_cache_destroy(cache);
        options.enable_prefetch = 1;
        options.directory = NULL;
    }
}

static void test_arguments(void) {
    relay_prompt_cache *cache = open_cache(2, 1);
    CHECK_STATUS(relay_prompt_cache_prefetch(NULL, NULL, 0), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_cache_prefetch(cache, NULL, 1), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_cache_prefetch(cache, NULL, 0), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_prefetch(cache, NULL, -1), RELAY_INVALID_ARGUMENT);
    CHECK_STATUS(relay_prompt_cache_prefetch(cache, (const char *const[]){"a", NULL}, 2), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_cache_prefetch(cache, (const char *const[]){"a", ""}, 2), RELAY_INVALID_ARGUMENT);
    CHECK_STATUS(relay_prompt_cache_wait(cache), RELAY_OK);
    relay_prompt_cache_destroy(cache);
}

static void with_scratch(void (*test)(void)) {
    make_scratch(scratch);
    test();
    remove_tree(scratch);
}

int main(void) {
    static void (*const tests[])(void) = {
        test_groups, test_unknown_and_damaged, test_keeps_its_own, test_keeps_pinned, test_replaces_older,
        test_announced_counts_as_used, test_next_announcement_replaces, test_newer_goes_first, test_repeated_announcements,
        test_group_is_finished,
        test_calls_in_flight, test_destroy_in_flight, test_switched_off, test_arguments};
    relay_device_options options = relay_device_options_defaults();
    options.threads = 1;
    options.log = hold_at_gate;
    options.log_user = &logged;
    CHECK_STATUS(relay_device_open(&options, &device), RELAY_OK);
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) with_scratch(tests[i]);
    relay_device_close(device);
    return test_result();
}
