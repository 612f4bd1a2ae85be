/* The prompt cache when memory, threads or the operating system fail it, call by call.
 *
 * The executable is linked with --wrap for the functions below, so that every call of the library
 * passes through here (tests/CMakeLists.txt). */
#define _DEFAULT_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "prompt_fixture.h"

static relay_device *device;
static char scratch[256];

/* ---- what fails ---- */

typedef enum fault { ALLOC, MAP, THREAD, OPENAT, WRITE, FSYNC, RENAMEAT, UNLINKAT, READ, FSTAT, FAULTS } fault;

static const char *const fault_names[FAULTS] = {"aligned_alloc", "mmap", "pthread_create", "openat", "write",
                                                "fsync", "renameat", "unlinkat", "read", "fstat"};

static struct {
    pthread_mutex_t lock;
    bool fails[FAULTS]; /* which functions count and fail */
    long countdown;     /* calls until one fails; below 0: that one has */
    bool for_good;      /* and so do all later ones */
    int error;
    bool choppy;        /* read and write do a few bytes at a time, and are interrupted in between */
    unsigned calls;
} faults = {.lock = PTHREAD_MUTEX_INITIALIZER, .countdown = 0};

static bool now_fails(fault which) {
    pthread_mutex_lock(&faults.lock);
    bool counts = faults.fails[which];
    bool fails = counts && (faults.countdown == 0 || (faults.countdown < 0 && faults.for_good));
    if (counts && faults.countdown >= 0) faults.countdown--;
    pthread_mutex_unlock(&faults.lock);
    if (fails) errno = faults.error;
    return fails;
}

/* How much of a transfer happens; 0: it is interrupted instead. */
static size_t chopped(size_t size) {
    if (!faults.choppy) return size;
    pthread_mutex_lock(&faults.lock);
    unsigned turn = faults.calls++;
    pthread_mutex_unlock(&faults.lock);
    if (turn % 3 == 2) {
        errno = EINTR;
        return 0;
    }
    return size < 1 + turn % 700 ? size : 1 + turn % 700;
}

static void arm(fault which, long countdown, bool for_good, int error) {
    memset(faults.fails, 0, sizeof faults.fails);
    faults.fails[which] = true;
    faults.countdown = countdown;
    faults.for_good = for_good;
    faults.error = error;
}

/* Whether the fault has happened. */
static bool disarm(void) {
    pthread_mutex_lock(&faults.lock);
    memset(faults.fails, 0, sizeof faults.fails);
    bool happened = faults.countdown < 0;
    faults.countdown = 0;
    pthread_mutex_unlock(&faults.lock);
    return happened;
}

#define WRAP(result, name, parameters)    \
    result __real_##name parameters;      \
    result __wrap_##name parameters;      \
    result __wrap_##name parameters

WRAP(void *, aligned_alloc, (size_t alignment, size_t size)) {
    return now_fails(ALLOC) ? NULL : __real_aligned_alloc(alignment, size);
}

WRAP(void *, mmap, (void *address, size_t size, int protection, int flags, int file, off_t offset)) {
    return now_fails(MAP) ? MAP_FAILED : __real_mmap(address, size, protection, flags, file, offset);
}

WRAP(int, pthread_create, (pthread_t *thread, const pthread_attr_t *attributes, void *(*function)(void *),
                           void *argument)) {
    return now_fails(THREAD) ? EAGAIN : __real_pthread_create(thread, attributes, function, argument);
}

int __real_openat(int directory, const char *path, int flags, ...);
int __wrap_openat(int directory, const char *path, int flags, ...);
int __wrap_openat(int directory, const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return now_fails(OPENAT) ? -1 : __real_openat(directory, path, flags, mode);
}

WRAP(ssize_t, write, (int file, const void *data, size_t size)) {
    if (now_fails(WRITE)) return -1;
    size_t part = chopped(size);
    return part == 0 && size > 0 ? -1 : __real_write(file, data, part);
}

WRAP(ssize_t, read, (int file, void *data, size_t size)) {
    if (now_fails(READ)) return -1;
    size_t part = chopped(size);
    return part == 0 && size > 0 ? -1 : __real_read(file, data, part);
}

WRAP(int, fsync, (int file)) { return now_fails(FSYNC) ? -1 : __real_fsync(file); }

WRAP(int, renameat, (int from_directory, const char *from, int to_directory, const char *to)) {
    return now_fails(RENAMEAT) ? -1 : __real_renameat(from_directory, from, to_directory, to);
}

WRAP(int, unlinkat, (int directory, const char *path, int flags)) {
    return now_fails(UNLINKAT) ? -1 : __real_unlinkat(directory, path, flags);
}

WRAP(int, fstat, (int file, struct stat *status)) {
    return now_fails(FSTAT) ? -1 : __real_fstat(file, status);
}

/* ---- everything once ---- */

static relay_prompt_cache_options file_options(void) {
    relay_prompt_cache_options options = small_options();
    options.directory = scratch;
    options.max_cached_system_prompts = 2;
    return options;
}

/* What may come out where something fails. */
static bool is_honest(relay_status status) {
    return status == RELAY_OK || status == RELAY_OUT_OF_MEMORY || status == RELAY_IO_ERROR ||
           status == RELAY_NOT_FOUND;
}

/* Like look_up, without demanding success. */
static relay_status try_to_find(relay_prompt_cache *cache, const char *key) {
    relay_prompt *prompt = NULL;
    relay_status status = relay_prompt_cache_acquire(cache, key, &prompt);
    if (prompt != NULL) CHECK(status == RELAY_OK && holds_its_numbers(prompt));
    relay_prompt_release(prompt);
    return status;
}

/* A life of a cache in which every function is called; what fails must say so and leave the rest
 * in order. */
static void live(const char *what, long countdown) {
    relay_prompt_cache_options options = file_options();
    relay_prompt_cache *cache = NULL;
    relay_status seen[9];
    forget_log();
    seen[0] = relay_prompt_cache_create(device, &options, &cache);
    CHECK((seen[0] == RELAY_OK) == (cache != NULL));
    if (cache != NULL) {
        seen[1] = build(cache, "a", 100);
        seen[2] = build(cache, "b", 3);
        seen[3] = build(cache, "c", 3);
        seen[4] = try_to_find(cache, "a");
        seen[5] = relay_prompt_cache_prefetch(cache, (const char *const[]){"b", "c", "d"}, 3);
        seen[6] = relay_prompt_cache_wait(cache);
        seen[7] = try_to_find(cache, "c");
        seen[8] = relay_prompt_cache_forget(cache, "c");
        relay_prompt_cache_stats stats = stats_of(cache);
        CHECK(stats.pinned == 0 && stats.prompts <= 2);
    }
    for (int i = 0; i < (cache != NULL ? 9 : 1); i++) {
        CHECK_MSG(is_honest(seen[i]), "%s, call %ld: step %d gave %s", what, countdown, i,
                  relay_status_name(seen[i]));
        bool explained = logged.lines[RELAY_LOG_ERROR] > 0;
        CHECK_MSG(seen[i] == RELAY_OK || seen[i] == RELAY_NOT_FOUND || explained,
                  "%s, call %ld: step %d gave %s and no reason", what, countdown, i, relay_status_name(seen[i]));
    }
    relay_prompt_cache_destroy(cache);
}

/* And afterwards all is as if nothing had been: files are whole, nothing lies around. */
static void check_aftermath(const char *what, long countdown) {
    relay_prompt_cache_options options = file_options();
    relay_prompt_cache *cache = make_cache(device, &options);
    static const char *const keys[] = {"a", "b", "c"};
    CHECK(count_files(scratch, "", NULL) == 2 + count_files(scratch, ".relay", NULL));
    for (size_t i = 0; i < 3; i++) {
        relay_status status = look_up(cache, keys[i]);
        CHECK_MSG(status == RELAY_OK || status == RELAY_NOT_FOUND, "%s, call %ld: '%s' gives %s", what, countdown,
                  keys[i], relay_status_name(status));
    }
    CHECK(stats_of(cache).rejected_files == 0);
    for (size_t i = 0; i < 3; i++) relay_prompt_cache_forget(cache, keys[i]);
    CHECK(count_files(scratch, ".relay", NULL) == 0);
    relay_prompt_cache_destroy(cache);
}

/* Fails the first call, the second, ..., until there is no such call. */
static void sweep(fault which, bool for_good, int error) {
    bool happened = true;
    long countdown = 0;
    for (; happened; countdown++) {
        arm(which, countdown, for_good, error);
        live(fault_names[which], countdown);
        happened = disarm();
        check_aftermath(fault_names[which], countdown);
    }
    CHECK_MSG(countdown > 1, "%s was never called", fault_names[which]);
}

static void test_sweeps(void) {
    static const int errors[FAULTS] = {ENOMEM, ENOMEM, EAGAIN, EMFILE, ENOSPC, EIO, EACCES, EACCES, EIO, EIO};
    for (int which = 0; which < FAULTS; which++) {
        sweep((fault)which, false, errors[which]);
        sweep((fault)which, true, errors[which]);
    }
}

/* ---- single failures in detail ---- */

/* A write that fails names the file and the reason, removes the temporary, keeps the old file. */
static void check_write_fault(fault which, long countdown, int error) {
    char path[600];
    relay_prompt_cache_options options = file_options();
    relay_prompt_cache *cache = make_cache(device, &options);
    relay_prompt *prompt = NULL;
    CHECK(count_files(scratch, ".relay", path) == 1); /* an older one of "a" */
    arm(which, countdown, false, error);
    CHECK_STATUS(build_pinned(cache, "a", 100, &prompt), RELAY_IO_ERROR);
    CHECK(disarm());
    CHECK_CONTAINS(logged.last, path);
    CHECK_CONTAINS(logged.last, strerror(error));
    CHECK(prompt != NULL && holds_its_numbers(prompt));
    relay_prompt_release(prompt);
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK); /* in memory */
    CHECK(stats_of(cache).files_written == 0 && count_files(scratch, "", NULL) == 3);
    relay_prompt_cache_destroy(cache);
    cache = make_cache(device, &options);
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK); /* on disk */
    relay_prompt_cache_destroy(cache);
}

static void test_write_faults(void) {
    relay_prompt_cache_options options = file_options();
    relay_prompt_cache *cache = make_cache(device, &options);
    CHECK_STATUS(build(cache, "a", 3), RELAY_OK);
    relay_prompt_cache_destroy(cache);
    check_write_fault(OPENAT, 0, EACCES);
    check_write_fault(WRITE, 0, ENOSPC);
    check_write_fault(WRITE, 1, EIO);
    check_write_fault(FSYNC, 0, EIO);
    check_write_fault(FSYNC, 1, EIO); /* of the directory: the file may or may not last */
    check_write_fault(RENAMEAT, 0, EACCES);
}

static void test_read_fault(void) {
    char path[600];
    relay_prompt_cache_options options = file_options();
    relay_prompt_cache *cache = make_cache(device, &options);
    CHECK_STATUS(build(cache, "a", 3), RELAY_OK);
    relay_prompt_cache_destroy(cache);
    CHECK(count_files(scratch, ".relay", path) == 1);
    for (long countdown = 0; countdown < 3; countdown++) { /* the header and two layers */
        cache = make_cache(device, &options);
        arm(READ, countdown, false, EIO);
        CHECK_STATUS(look_up(cache, "a"), RELAY_NOT_FOUND);
        CHECK(disarm());
        CHECK_CONTAINS(logged.last, path);
        CHECK_CONTAINS(logged.last, strerror(EIO));
        CHECK(stats_of(cache).rejected_files == 1 && stats_of(cache).prompts == 0);
        CHECK_STATUS(look_up(cache, "a"), RELAY_OK);
        relay_prompt_cache_destroy(cache);
    }
}

/* Transfers of a few bytes, interrupted by signals, make the same file. */
static void test_choppy(void) {
    relay_prompt_cache_options options = file_options();
    relay_prompt_cache *cache = make_cache(device, &options);
    faults.choppy = true;
    CHECK_STATUS(build(cache, "a", 300), RELAY_OK);
    relay_prompt_cache_destroy(cache);
    faults.choppy = false;
    cache = make_cache(device, &options);
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK);
    relay_prompt_cache_destroy(cache);
    cache = make_cache(device, &options);
    faults.choppy = true;
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK);
    faults.choppy = false;
    CHECK(stats_of(cache).file_hits == 1);
    relay_prompt_cache_destroy(cache);
}

static void with_scratch(void (*test)(void)) {
    make_scratch(scratch);
    test();
    remove_tree(scratch);
}

int main(void) {
    device = open_device(1);
    with_scratch(test_write_faults);
    with_scratch(test_read_fault);
    with_scratch(test_choppy);
    with_scratch(test_sweeps);
    relay_device_close(device);
    return test_result();
}
