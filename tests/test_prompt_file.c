/* Prompt files: found again, damaged at every place, foreign; directories that cannot be used;
 * full disks; other files and unfinished ones beside them. */
#define _DEFAULT_SOURCE /* flock, mount */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#ifdef __linux__
#include <sys/mount.h>
#endif

#include "prompt_fixture.h"

static relay_device *device;
static char scratch[256]; /* fresh for every test */

static relay_prompt_cache_options file_options(void) {
    relay_prompt_cache_options options = small_options();
    options.directory = scratch;
    return options;
}

static relay_prompt_cache *open_cache(void) {
    relay_prompt_cache_options options = file_options();
    return make_cache(device, &options);
}

/* ---- whole files in and out ---- */

static char *read_file(const char *path, size_t *size) {
    struct stat status;
    int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &status) != 0) return NULL;
    char *data = malloc((size_t)status.st_size + 1);
    *size = (size_t)status.st_size;
    CHECK(read(file, data, *size) == status.st_size);
    close(file);
    return data;
}

/* Without O_TRUNC, which makes some file systems flush the file when it is closed. */
static void write_file(const char *path, const void *data, size_t size) {
    int file = open(path, O_WRONLY | O_CREAT, 0666);
    bool wrote = file >= 0 && write(file, data, size) == (ssize_t)size && ftruncate(file, (off_t)size) == 0;
    if (!wrote) {
        perror(path);
        exit(1);
    }
    close(file);
}

/* ---- found again ---- */

static void test_second_cache(void) {
    relay_prompt_cache *cache = open_cache();
    CHECK_STATUS(look_up(cache, "a"), RELAY_NOT_FOUND);
    CHECK(stats_of(cache).rejected_files == 0);
    CHECK_STATUS(build(cache, "a", 70), RELAY_OK);
    CHECK_STATUS(build(cache, "b/../\n\xff", 3), RELAY_OK); /* any bytes make a key */
    CHECK(stats_of(cache).files_written == 2);
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK);
    CHECK(stats_of(cache).memory_hits == 1 && stats_of(cache).file_hits == 0);
    relay_prompt_cache_destroy(cache);
    CHECK(count_files(scratch, ".relay", NULL) == 2 && count_files(scratch, "", NULL) == 4);

    relay_prompt_cache *second = open_cache();
    CHECK_STATUS(look_up(second, "a"), RELAY_OK);
    CHECK_STATUS(look_up(second, "a"), RELAY_OK);
    CHECK_STATUS(look_up(second, "b/../\n\xff"), RELAY_OK);
    CHECK_STATUS(look_up(second, "c"), RELAY_NOT_FOUND);
    relay_prompt_cache_stats stats = stats_of(second);
    CHECK(stats.file_hits == 2 && stats.memory_hits == 1 && stats.misses == 1);
    CHECK(stats.prompts == 2 && stats.bytes == 3 * 4096 && stats.files_written == 0);
    relay_prompt_cache_destroy(second);
}

static void test_eviction_leaves_file(void) {
    relay_prompt_cache_options options = file_options();
    options.max_cached_system_prompts = 1;
    relay_prompt_cache *cache = make_cache(device, &options);
    CHECK_STATUS(build(cache, "a", 3), RELAY_OK);
    CHECK_STATUS(build(cache, "b", 3), RELAY_OK);
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK);
    CHECK(stats_of(cache).evictions == 2 && stats_of(cache).file_hits == 1);
    relay_prompt *a, *b;
    CHECK_STATUS(relay_prompt_cache_acquire(cache, "a", &a), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_acquire(cache, "b", &b), RELAY_CACHE_FULL);
    CHECK(b == NULL && stats_of(cache).prompts == 1);
    relay_prompt_release(a);
    CHECK_STATUS(look_up(cache, "b"), RELAY_OK);
    relay_prompt_cache_destroy(cache);
}

static void test_dtypes_and_shapes(void) {
    static const relay_dtype dtypes[] = {RELAY_F32, RELAY_F16, RELAY_BF16};
    for (int32_t i = 0; i < 9; i++) {
        relay_prompt_cache_options options = file_options();
        options.kv_dtype = dtypes[i % 3];
        options.num_layers = 1 + i / 3 * 500; /* the checksums of many layers need a second page */
        options.num_kv_heads = 1 + i % 2;
        for (int pass = 0; pass < 2; pass++) {
            relay_prompt_cache *cache = make_cache(device, &options);
            if (pass == 0) CHECK_STATUS(build(cache, "a", 65), RELAY_OK);
            if (pass == 1) CHECK_STATUS(look_up(cache, "a"), RELAY_OK);
            CHECK(stats_of(cache).file_hits == (uint64_t)pass);
            relay_prompt_cache_destroy(cache);
        }
    }
    CHECK(count_files(scratch, ".relay", NULL) == 9); /* they do not overwrite each other */
}

static void test_forget_file(void) {
    relay_prompt_cache *cache = open_cache();
    CHECK_STATUS(build(cache, "a", 3), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_forget(cache, "a"), RELAY_OK);
    CHECK(count_files(scratch, ".relay", NULL) == 0);
    CHECK_STATUS(look_up(cache, "a"), RELAY_NOT_FOUND);
    CHECK_STATUS(relay_prompt_cache_forget(cache, "a"), RELAY_NOT_FOUND);
    CHECK_STATUS(build(cache, "a", 3), RELAY_OK);
    relay_prompt_cache_destroy(cache);
    cache = open_cache();
    CHECK_STATUS(relay_prompt_cache_forget(cache, "a"), RELAY_OK); /* on disk alone */
    CHECK_STATUS(look_up(cache, "a"), RELAY_NOT_FOUND);
    relay_prompt *prompt;
    CHECK_STATUS(relay_prompt_cache_begin(cache, "a", 3, &prompt), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_forget(cache, "a"), RELAY_OK); /* while it is built */
    CHECK_STATUS(write_all_layers(prompt), RELAY_OK);
    CHECK_STATUS(relay_prompt_commit(prompt), RELAY_OK);
    relay_prompt_release(prompt);
    CHECK(count_files(scratch, ".relay", NULL) == 0);
    relay_prompt_cache_destroy(cache);
}

/* ---- damaged ---- */

/* The file is there, is not used, and is said to be bad. */
static void check_rejected(relay_prompt_cache *cache, const char *path, const char *what, size_t at) {
    uint64_t before = stats_of(cache).rejected_files;
    forget_log();
    relay_prompt *prompt = NULL;
    relay_status status = relay_prompt_cache_acquire(cache, "a", &prompt);
    CHECK_MSG(status == RELAY_NOT_FOUND, "%s at byte %zu: %s", what, at, relay_status_name(status));
    relay_prompt_release(prompt);
    CHECK(logged.lines[RELAY_LOG_WARN] == 1 && logged.lines[RELAY_LOG_ERROR] == 0);
    CHECK_CONTAINS(logged.last, path);
    relay_prompt_cache_stats stats = stats_of(cache);
    CHECK(stats.rejected_files == before + 1 && stats.prompts == 0 && stats.bytes == 0);
}

/* A file of prompt "a" as `scratch` holds it, in memory. */
static char *make_file(char path[600], size_t *size) {
    relay_prompt_cache *cache = open_cache();
    CHECK_STATUS(build(cache, "a", 3), RELAY_OK);
    relay_prompt_cache_destroy(cache);
    CHECK(count_files(scratch, ".relay", path) == 1);
    char *data = read_file(path, size);
    CHECK(data != NULL && *size == 4096 + 2 * 2048);
    return data;
}

static void test_cut_anywhere(void) {
    char path[600];
    size_t size;
    char *data = make_file(path, &size);
    relay_prompt_cache *cache = open_cache();
    for (size_t cut = 0; cut < size; cut++) {
        write_file(path, data, cut);
        check_rejected(cache, path, "cut", cut);
    }
    data[size] = 0;
    write_file(path, data, size + 1);
    check_rejected(cache, path, "longer", size + 1);
    write_file(path, data, size);
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK);
    relay_prompt_cache_destroy(cache);
    free(data);
}

static void test_flip_anywhere(void) {
    char path[600];
    size_t size;
    char *data = make_file(path, &size);
    relay_prompt_cache *cache = open_cache();
    for (size_t at = 0; at < size; at++) {
        data[at] ^= (char)(1 << at % 8);
        write_file(path, data, size);
        check_rejected(cache, path, "flipped", at);
        data[at] ^= (char)(1 << at % 8);
    }
    write_file(path, data, size);
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK);
    relay_prompt_cache_destroy(cache);
    free(data);
}

/* Random rubbish, also behind a valid beginning, never gets in. */
static void test_rubbish(void) {
    char path[600];
    size_t size;
    char *data = make_file(path, &size), *rubbish = malloc(size);
    relay_prompt_cache *cache = open_cache();
    for (uint64_t seed = 0; seed < 300; seed++) {
        size_t kept = (size_t)(relayi_checksum_of(&seed, sizeof seed, 1) % size);
        for (size_t i = 0; i < size; i++)
            rubbish[i] = i < kept ? data[i] : (char)relayi_checksum_of(&i, sizeof i, seed);
        write_file(path, rubbish, size);
        check_rejected(cache, path, "rubbish", kept);
    }
    relay_prompt_cache_destroy(cache);
    free(rubbish);
    free(data);
}

/* A damaged file is replaced when its prompt has been computed again. */
static void test_repaired(void) {
    char path[600];
    size_t size;
    char *data = make_file(path, &size);
    write_file(path, data, size / 2);
    relay_prompt_cache *cache = open_cache();
    CHECK_STATUS(look_up(cache, "a"), RELAY_NOT_FOUND);
    CHECK_STATUS(build(cache, "a", 3), RELAY_OK);
    relay_prompt_cache_destroy(cache);
    size_t again_size = 0;
    char *again = read_file(path, &again_size);
    CHECK(again_size == size && memcmp(again, data, size) == 0);
    free(again);
    free(data);
}

/* ---- foreign, but consistent in itself ---- */

/* Byte offsets of prompt_file.c's header. */
enum { AT_BYTE_ORDER = 8, AT_FORMAT = 12, AT_PACKED = 16, AT_DTYPE = 20, AT_LAYERS = 24, AT_HEADS = 28,
       AT_DIM = 32, AT_TOKENS = 36, AT_BYTES = 40, AT_CHECKSUM = 48, AT_MODEL = 64, AT_KEY = 320,
       PREAMBLE = 4096 };

static void put32(char *data, int at, uint32_t number) { memcpy(data + at, &number, sizeof number); }

static void put64(char *data, int at, uint64_t number) { memcpy(data + at, &number, sizeof number); }

static void sign(char *data) {
    put64(data, AT_CHECKSUM, 0);
    put64(data, AT_CHECKSUM, relayi_checksum_of(data, PREAMBLE, 0));
}

static void check_foreign(relay_prompt_cache *cache, const char *path, const char *good, size_t size,
                          int at, uint32_t number, const char *word) {
    char *data = malloc(size);
    memcpy(data, good, size);
    put32(data, at, number);
    sign(data);
    write_file(path, data, size);
    check_rejected(cache, path, word, (size_t)at);
    CHECK_CONTAINS(logged.last, word);
    free(data);
}

static void test_foreign_fields(void) {
    char path[600];
    size_t size;
    char *data = make_file(path, &size);
    relay_prompt_cache *cache = open_cache();
    sign(data);
    write_file(path, data, size);
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK); /* so it is the fields that matter below */
    relay_prompt_cache_destroy(cache);
    cache = open_cache();
    check_foreign(cache, path, data, size, 0, 0x41414141, "no prompt file");
    check_foreign(cache, path, data, size, AT_BYTE_ORDER, 0x04030201, "byte order");
    check_foreign(cache, path, data, size, AT_BYTE_ORDER, 0, "byte order");
    check_foreign(cache, path, data, size, AT_FORMAT, 2, "format version 2, expected 1");
    check_foreign(cache, path, data, size, AT_PACKED, 7, "packed layout version 7");
    check_foreign(cache, path, data, size, AT_DTYPE, RELAY_F16, "kv_dtype");
    check_foreign(cache, path, data, size, AT_LAYERS, 1, "num_layers is 1, expected 2");
    check_foreign(cache, path, data, size, AT_HEADS, 3, "num_kv_heads");
    check_foreign(cache, path, data, size, AT_DIM, 16, "head_dim");
    check_foreign(cache, path, data, size, AT_TOKENS, 0, "num_tokens");
    check_foreign(cache, path, data, size, AT_TOKENS, 0x80000000u, "num_tokens");
    check_foreign(cache, path, data, size, AT_TOKENS, 65, "contradict");
    check_foreign(cache, path, data, size, AT_TOKENS, 0x7fffffff, "contradict");
    check_foreign(cache, path, data, size, AT_BYTES + 4, 0x7fffffff, "contradict");
    check_foreign(cache, path, data, size, AT_MODEL, 0x78787878, "model_id");
    check_foreign(cache, path, data, size, AT_MODEL + 252, 0x78787878, "model_id"); /* no NUL */
    check_foreign(cache, path, data, size, AT_KEY, 0x78787878, "another key");
    put32(data, AT_TOKENS, 65); /* two tiles, as it says, but not as long as it is */
    put64(data, AT_BYTES, 2 * 4096);
    sign(data);
    write_file(path, data, size);
    check_rejected(cache, path, "size", 0);
    CHECK_CONTAINS(logged.last, "size in bytes");
    relay_prompt_cache_destroy(cache);
    free(data);
}

/* A file of another model, or shape, put where ours belongs. */
static void test_foreign_caches(void) {
    char path[600], other[600];
    size_t size;
    char *data = make_file(path, &size);
    for (int change = 0; change < 4; change++) {
        relay_prompt_cache_options options = file_options();
        if (change == 0) options.model_id = "another";
        if (change == 1) options.num_layers = 1;
        if (change == 2) options.num_kv_heads = 2;
        if (change == 3) options.kv_dtype = RELAY_F16;
        unlink(path);
        relay_prompt_cache *cache = make_cache(device, &options);
        CHECK_STATUS(build(cache, "a", 3), RELAY_OK);
        relay_prompt_cache_destroy(cache);
        CHECK(count_files(scratch, ".relay", other) == 1);
        CHECK(strcmp(path, other) != 0 && rename(other, path) == 0);
        cache = open_cache();
        check_rejected(cache, path, "foreign", (size_t)change);
        relay_prompt_cache_destroy(cache);
    }
    free(data);
}

/* What has the name of a prompt's file but is no regular file neither stops nor crashes us. */
static void test_strange_files(void) {
    char path[600], target[600];
    size_t size;
    char *data = make_file(path, &size);
    relay_prompt_cache *cache = open_cache();
    unlink(path);
    CHECK(mkdir(path, 0777) == 0);
    check_rejected(cache, path, "directory", 0);
    CHECK_STATUS(build(cache, "a", 3), RELAY_IO_ERROR); /* cannot be replaced by a file */
    CHECK_CONTAINS(logged.last, path);
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK); /* but is in the cache all the same */
    CHECK(count_files(scratch, "", NULL) == 3); /* no temporary is left */
    relay_prompt_cache_destroy(cache);
    cache = open_cache();
    rmdir(path);
    CHECK(mkfifo(path, 0666) == 0);
    check_rejected(cache, path, "fifo", 0);
    unlink(path);
    snprintf(target, sizeof target, "%s/elsewhere", scratch);
    write_file(target, data, size);
    CHECK(symlink(target, path) == 0);
    check_rejected(cache, path, "link", 0);
    relay_prompt_cache_destroy(cache);
    free(data);
}

/* ---- directories ---- */

static void refuse_directory(const char *path) {
    relay_prompt_cache_options options = file_options();
    relay_prompt_cache *cache = (relay_prompt_cache *)&options;
    options.directory = path;
    forget_log();
    CHECK_STATUS(relay_prompt_cache_create(device, &options, &cache), RELAY_IO_ERROR);
    CHECK(cache == NULL);
    CHECK_CONTAINS(logged.last, "directory");
    CHECK_CONTAINS(logged.last, path);
}

static void test_directories(void) {
    char path[600], deep[600];
    snprintf(path, sizeof path, "%s/file", scratch);
    write_file(path, "x", 1);
    refuse_directory(path);
    snprintf(path, sizeof path, "%s/file/below", scratch);
    refuse_directory(path);
    snprintf(deep, sizeof deep, "%s/made/with//its/parents/", scratch);
    relay_prompt_cache_options options = file_options();
    options.directory = deep;
    relay_prompt_cache *cache = make_cache(device, &options);
    CHECK_STATUS(build(cache, "a", 3), RELAY_OK);
    CHECK(count_files(deep, ".relay", NULL) == 1);
    relay_prompt_cache_destroy(cache);
}

/* A path is meant as seen when the cache was made. */
static void test_relative_directory(void) {
    char before[600];
    CHECK(getcwd(before, sizeof before) != NULL && chdir(scratch) == 0);
    relay_prompt_cache_options options = file_options();
    options.directory = "prompts";
    relay_prompt_cache *cache = make_cache(device, &options);
    CHECK(chdir("/") == 0);
    CHECK_STATUS(build(cache, "a", 3), RELAY_OK);
    relay_prompt_cache_destroy(cache);
    char path[600];
    snprintf(path, sizeof path, "%s/prompts", scratch);
    CHECK(count_files(path, ".relay", NULL) == 1);
    CHECK(chdir(before) == 0);
}

/* Runs a check in a child, and takes over its count of failures. */
static void in_child(void (*check)(void)) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        test_failed = 0;
        check();
        _exit(test_failed == 0 ? 0 : 1);
    }
    int status = 0;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK_MSG(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child ended with %d", status);
}

/* The super-user may write anywhere: somebody else tries. */
static void check_without_permission(void) {
    if (geteuid() == 0 && seteuid(65534) != 0) return;
    refuse_directory(scratch);
}

static void test_unwritable_directory(void) {
    CHECK(chmod(scratch, 0555) == 0);
    in_child(check_without_permission);
    CHECK(chmod(scratch, 0755) == 0);
}

static void check_unreadable_file(void) {
    char path[600];
    relay_prompt_cache *cache = open_cache();
    CHECK(count_files(scratch, ".relay", path) == 1);
    if (geteuid() == 0 && seteuid(65534) != 0) return;
    check_rejected(cache, path, "unreadable", 0);
    CHECK_CONTAINS(logged.last, "opened");
    relay_prompt_cache_destroy(cache);
}

static void test_unreadable_file(void) {
    char path[600];
    size_t size;
    free(make_file(path, &size));
    CHECK(chmod(path, 0) == 0);
    in_child(check_unreadable_file);
}

/* ---- disks without room ---- */

static void check_no_room(const char *word) {
    relay_prompt_cache *cache = open_cache();
    relay_prompt *prompt = NULL;
    CHECK_STATUS(build(cache, "small", 3), RELAY_OK);
    forget_log();
    CHECK_STATUS(build_pinned(cache, "big", 5000, &prompt), RELAY_IO_ERROR);
    CHECK_CONTAINS(logged.last, scratch);
    CHECK_CONTAINS(logged.last, word);
    CHECK(logged.lines[RELAY_LOG_ERROR] == 1);
    CHECK(prompt != NULL && holds_its_numbers(prompt));
    relay_prompt_release(prompt);
    CHECK_STATUS(look_up(cache, "big"), RELAY_OK); /* in memory */
    CHECK(count_files(scratch, "", NULL) == 3 && stats_of(cache).files_written == 1);
    relay_prompt_cache_destroy(cache);
}

static void check_file_too_large(void) {
    struct rlimit limit = {65536, 65536};
    signal(SIGXFSZ, SIG_IGN);
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    check_no_room("too large");
}

static void test_file_too_large(void) { in_child(check_file_too_large); }

static void check_disk_full(void) { check_no_room("No space"); }

static void test_disk_full(void) {
#ifdef __linux__
    if (mount("tmpfs", scratch, "tmpfs", 0, "size=128k") == 0) {
        in_child(check_disk_full);
        CHECK(umount(scratch) == 0);
        return;
    }
#endif
    (void)check_disk_full;
    printf("skipped: a full disk (a small file system cannot be mounted here)\n");
}

/* ---- what else lies in the directory ---- */

static void test_abandoned(void) {
    static const char *const ours[] = {"0123456789abcdef0123456789abcdef.relay.tmp-1-0",
                                       "00000000000000000000000000000000.relay.tmp-999999999-77"};
    static const char *const others[] = {"notes.txt", "x.relay.tmp-1-0", "abc.relay",
                                         "0123456789abcdef0123456789abcdef.relay.tmp-1-0~",
                                         "0123456789abcdef0123456789abcdef.relay.tmp--",
                                         "0123456789ABCDEF0123456789abcdef.relay.tmp-1-0",
                                         "0123456789abcdef0123456789abcdef.relay.tmp-1"};
    char path[600], held[600];
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", scratch, ours[i]);
        write_file(path, "half", 4);
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        snprintf(path, sizeof path, "%s/%s", scratch, others[i]);
        write_file(path, "mine", 4);
    }
    snprintf(held, sizeof held, "%s/fedcba9876543210fedcba9876543210.relay.tmp-1-5", scratch);
    write_file(held, "half", 4);
    int file = open(held, O_WRONLY);
    CHECK(file >= 0 && flock(file, LOCK_EX) == 0); /* its writer lives */
    relay_prompt_cache_destroy(open_cache());
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", scratch, ours[i]);
        CHECK_MSG(access(path, F_OK) != 0, "%s is still there", path);
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        snprintf(path, sizeof path, "%s/%s", scratch, others[i]);
        CHECK_MSG(access(path, F_OK) == 0, "%s was removed", path);
    }
    CHECK(access(held, F_OK) == 0);
    close(file);
    relay_prompt_cache_destroy(open_cache());
    CHECK(access(held, F_OK) != 0);
}

static void with_scratch(void (*test)(void)) {
    make_scratch(scratch);
    test();
    remove_tree(scratch);
}

int main(void) {
    static void (*const tests[])(void) = {
        test_second_cache, test_eviction_leaves_file, test_dtypes_and_shapes, test_forget_file,
        test_cut_anywhere, test_flip_anywhere, test_rubbish, test_repaired, test_foreign_fields,
        test_foreign_caches, test_strange_files, test_directories, test_relative_directory,
        test_unwritable_directory, test_unreadable_file, test_file_too_large, test_disk_full,
        test_abandoned};
    device = open_device(1);
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) with_scratch(tests[i]);
    relay_device_close(device);
    return test_result();
}
