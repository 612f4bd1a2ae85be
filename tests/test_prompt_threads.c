/* Several threads, and several processes, on one cache or one directory; and processes that are
 * killed while they write.  Meant to be run under ThreadSanitizer too. */
#define _DEFAULT_SOURCE /* usleep */
#include <signal.h>
#include <sys/wait.h>

#include "prompt_fixture.h"

#define THREADS 4
#define KEYS 7

static relay_device *device;
static char scratch[256];

/* ---- threads ---- */

typedef struct worker {
    relay_prompt_cache *cache;
    uint64_t seed;
    int rounds;
    int wrong; /* what CHECK would count, but it is not thread-safe */
} worker;

static void key_of(uint64_t number, char key[16]) { snprintf(key, 16, "key %d", (int)(number % KEYS)); }

/* A host's way: take it if it is there, else compute it, else do without. */
static void use_prompt(worker *w, uint64_t dice) {
    char key[16];
    relay_prompt *prompt = NULL;
    key_of(dice, key);
    relay_status status = relay_prompt_cache_acquire(w->cache, key, &prompt);
    if (status == RELAY_NOT_FOUND) {
        status = relay_prompt_cache_begin(w->cache, key, 1 + (int32_t)(dice % 5) * 40, &prompt);
        if (status == RELAY_OK) status = write_all_layers(prompt);
        if (status == RELAY_OK && dice % 13 != 0) status = relay_prompt_commit(prompt);
    }
    bool expected = status == RELAY_OK || status == RELAY_ALREADY_EXISTS || status == RELAY_CACHE_FULL;
    if (!expected || (prompt != NULL && !holds_its_numbers(prompt))) w->wrong++;
    relay_prompt_release(prompt);
}

static void announce_some(worker *w, uint64_t dice) {
    char text[3][16];
    const char *keys[3];
    for (uint64_t i = 0; i < 3; i++) {
        key_of(dice + i, text[i]);
        keys[i] = text[i];
    }
    if (relay_prompt_cache_prefetch(w->cache, keys, 3) != RELAY_OK) w->wrong++;
}

static void forget_one(worker *w, uint64_t dice) {
    char key[16];
    key_of(dice, key);
    relay_status status = relay_prompt_cache_forget(w->cache, key);
    if (status != RELAY_OK && status != RELAY_NOT_FOUND) w->wrong++;
}

static void *work(void *argument) {
    worker *w = argument;
    relay_prompt_cache_stats stats = {.struct_size = sizeof stats};
    for (int i = 0; i < w->rounds; i++) {
        uint64_t dice = relayi_checksum_of(&i, sizeof i, w->seed) >> 8;
        if (dice % 16 == 0)
            forget_one(w, dice / 16);
        else if (dice % 16 == 1)
            announce_some(w, dice / 16);
        else
            use_prompt(w, dice / 16);
        if (relay_prompt_cache_get_stats(w->cache, &stats) != RELAY_OK || stats.prompts > 4) w->wrong++;
    }
    return NULL;
}

static void hammer(const char *directory, int rounds) {
    pthread_t threads[THREADS];
    worker workers[THREADS];
    relay_prompt_cache_options options = small_options();
    options.max_cached_system_prompts = 4;
    options.max_bytes = 4 * 2 * 4096;
    options.directory = directory;
    options.prefetch_batch_size = 2;
    relay_prompt_cache *cache = make_cache(device, &options);
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){.cache = cache, .seed = (uint64_t)i + 1, .rounds = rounds};
        CHECK(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        CHECK_MSG(workers[i].wrong == 0, "thread %d saw %d wrong answers", i, workers[i].wrong);
    }
    CHECK_STATUS(relay_prompt_cache_wait(cache), RELAY_OK);
    relay_prompt_cache_stats stats = stats_of(cache);
    CHECK(stats.pinned == 0 && stats.prompts <= 4 && stats.peak_bytes <= options.max_bytes);
    CHECK(stats.rejected_files == 0 && stats.memory_hits > 0);
    CHECK(directory == NULL || (stats.files_written > 0 && stats.file_hits > 0));
    relay_prompt_cache_destroy(cache);
}

static void test_threads_in_memory(void) { hammer(NULL, 3000); }

static void test_threads_with_files(void) { hammer(scratch, 150); }

/* Threads that want the same cold prompt read it once. */
static void *acquire_one(void *argument) {
    worker *w = argument;
    relay_prompt *prompt = NULL;
    if (relay_prompt_cache_acquire(w->cache, "a", &prompt) != RELAY_OK || !holds_its_numbers(prompt))
        w->wrong++;
    relay_prompt_release(prompt);
    return NULL;
}

static void test_read_once(void) {
    relay_prompt_cache_options options = small_options();
    options.directory = scratch;
    relay_prompt_cache *cache = make_cache(device, &options);
    CHECK_STATUS(build(cache, "a", 5000), RELAY_OK);
    relay_prompt_cache_destroy(cache);
    for (int round = 0; round < 10; round++) {
        pthread_t threads[THREADS];
        cache = make_cache(device, &options);
        worker w[THREADS];
        for (int i = 0; i < THREADS; i++) {
            w[i] = (worker){.cache = cache};
            CHECK(pthread_create(&threads[i], NULL, acquire_one, &w[i]) == 0);
        }
        for (int i = 0; i < THREADS; i++) {
            pthread_join(threads[i], NULL);
            CHECK(w[i].wrong == 0);
        }
        CHECK(stats_of(cache).file_hits == 1 && stats_of(cache).memory_hits == THREADS - 1);
        relay_prompt_cache_destroy(cache);
    }
}

/* ---- processes ---- */

/* Builds and reads the same keys as the other processes, each round with a fresh cache. */
static void share_directory(uint64_t seed) {
    relay_prompt_cache_options options = small_options();
    char key[16];
    options.directory = scratch;
    for (int round = 0; round < 6; round++) {
        relay_prompt_cache *cache = make_cache(device, &options);
        for (uint64_t i = 0; i < KEYS; i++) {
            uint64_t dice = relayi_checksum_of(&i, sizeof i, seed + (uint64_t)round);
            key_of(i, key);
            if (dice % 3 == 0)
                CHECK_STATUS(build(cache, key, 200), RELAY_OK); /* over what may be there */
            else
                CHECK(look_up(cache, key) == RELAY_OK || round == 0 || dice % 7 == 1);
        }
        CHECK_MSG(stats_of(cache).rejected_files == 0, "%s", logged.last);
        relay_prompt_cache_destroy(cache);
    }
}

static void test_processes(void) {
    enum { PROCESSES = 3 };
    pid_t children[PROCESSES];
    relay_prompt_cache_options options = small_options();
    options.directory = scratch;
    relay_prompt_cache *cache = make_cache(device, &options);
    char key[16];
    for (uint64_t i = 0; i < KEYS; i++) {
        key_of(i, key);
        CHECK_STATUS(build(cache, key, 200), RELAY_OK);
    }
    relay_prompt_cache_destroy(cache);
    fflush(NULL);
    for (int i = 0; i < PROCESSES; i++) {
        children[i] = fork();
        if (children[i] != 0) continue;
        test_failed = 0;
        share_directory((uint64_t)i * 100);
        _exit(test_failed != 0);
    }
    for (int i = 0; i < PROCESSES; i++) {
        int status = 0;
        CHECK(waitpid(children[i], &status, 0) == children[i]);
        CHECK_MSG(WIFEXITED(status) && WEXITSTATUS(status) == 0, "process %d ended with %d", i, status);
    }
    CHECK(count_files(scratch, ".relay", NULL) == KEYS && count_files(scratch, "", NULL) == KEYS + 2);
}

/* ---- kill -9 ---- */

#define KILL_KEYS 3
#define KILL_TOKENS 2000

/* What the children write, computed once: [key][layer] of small_options(). */
static char kill_key[KILL_KEYS][16];
static relay_tensor kill_k[KILL_KEYS][2], kill_v[KILL_KEYS][2];

static void make_kill_tensors(void) {
    for (uint64_t i = 0; i < KILL_KEYS; i++) {
        key_of(i, kill_key[i]);
        for (int32_t layer = 0; layer < 2; layer++) {
            kill_k[i][layer] = relay_tensor_3d(numbers_for(kill_key[i], layer, false, KILL_TOKENS * 8),
                                               RELAY_F32, KILL_TOKENS, 1, 8);
            kill_v[i][layer] = relay_tensor_3d(numbers_for(kill_key[i], layer, true, KILL_TOKENS * 8),
                                               RELAY_F32, KILL_TOKENS, 1, 8);
        }
    }
}

static void free_kill_tensors(void) {
    for (int i = 0; i < KILL_KEYS; i++)
        for (int layer = 0; layer < 2; layer++) {
            free(kill_k[i][layer].data);
            free(kill_v[i][layer].data);
        }
}

/* Writes the same prompts again and again until it is killed, which is its only end. */
static void write_for_ever(void) {
    relay_prompt_cache_options options = small_options();
    options.directory = scratch;
    for (uint64_t round = 0;; round++) {
        relay_prompt_cache *cache = make_cache(device, &options);
        relay_prompt *prompt = NULL;
        uint64_t i = round % KILL_KEYS;
        relay_prompt_cache_begin(cache, kill_key[i], KILL_TOKENS, &prompt);
        for (int32_t layer = 0; layer < 2; layer++)
            relay_prompt_write(prompt, layer, 0, &kill_k[i][layer], &kill_v[i][layer]);
        relay_prompt_commit(prompt);
        relay_prompt_release(prompt);
        relay_prompt_cache_destroy(cache);
    }
}

/* Until the child is in the middle of something, or for two seconds. */
static void wait_for_temporary(void) {
    for (int i = 0; i < 10000; i++) {
        if (count_files(scratch, "", NULL) - 2 > count_files(scratch, ".relay", NULL)) return;
        usleep(200);
    }
}

static void check_after_kill(int *found) {
    relay_prompt_cache_options options = small_options();
    options.directory = scratch;
    forget_log();
    relay_prompt_cache *cache = make_cache(device, &options);
    CHECK(count_files(scratch, ".relay", NULL) + 2 == count_files(scratch, "", NULL));
    for (int i = 0; i < KILL_KEYS; i++)
        if (look_up(cache, kill_key[i]) == RELAY_OK) ++*found;
    CHECK_MSG(stats_of(cache).rejected_files == 0, "%s", logged.last);
    relay_prompt_cache_destroy(cache);
}

static void test_kill(void) {
    int found = 0, unfinished = 0;
    make_kill_tensors();
    fflush(NULL);
    for (int round = 0; round < 40; round++) {
        pid_t child = fork();
        if (child == 0) write_for_ever();
        CHECK(child > 0);
        wait_for_temporary();
        usleep((useconds_t)(round * 1371 % 15000));
        kill(child, SIGKILL);
        CHECK(waitpid(child, NULL, 0) == child);
        unfinished += count_files(scratch, "", NULL) - 2 - count_files(scratch, ".relay", NULL);
        check_after_kill(&found);
    }
    free_kill_tensors();
    CHECK(found > 0 && unfinished > 0);
    printf("killed 40 writers: %d unfinished files, %d whole ones read\n", unfinished, found);
}

static void with_scratch(void (*test)(void)) {
    make_scratch(scratch);
    test();
    remove_tree(scratch);
}

int main(void) {
    device = open_device(1);
    with_scratch(test_threads_in_memory);
    with_scratch(test_threads_with_files);
    with_scratch(test_read_once);
    with_scratch(test_processes);
    with_scratch(test_kill);
    relay_device_close(device);
    return test_result();
}
