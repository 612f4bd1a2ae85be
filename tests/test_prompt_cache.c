/* The prompt cache in memory: order, pins, bounds, and what its functions refuse. */
#include "prompt_fixture.h"

static relay_device *device;

/* ---- options and arguments ---- */

static void refuse_options(relay_prompt_cache_options options, relay_status expected, const char *field) {
    relay_prompt_cache *cache = (relay_prompt_cache *)&options;
    forget_log();
    CHECK_STATUS(relay_prompt_cache_create(device, &options, &cache), expected);
    CHECK(cache == NULL);
    CHECK_CONTAINS(logged.last, "ERROR");
    CHECK_CONTAINS(logged.last, field);
}

static void test_options(void) {
    relay_prompt_cache_options options = relay_prompt_cache_options_defaults();
    char longest[257];
    memset(longest, 'x', 256);
    longest[256] = '\0';
    CHECK(options.kv_dtype == RELAY_BF16 && options.enabled == 1 && options.max_bytes == 0);
    CHECK(options.max_cached_system_prompts == 100 && options.enable_prefetch == 1);
    CHECK(options.prefetch_batch_size == 4 && options.directory == NULL && options.model_id[0] == '\0');
    refuse_options(options, RELAY_INVALID_ARGUMENT, "num_layers");
#define REFUSE(field, value, expected)                \
    do {                                              \
        options = small_options();                    \
        options.field = value;                        \
        refuse_options(options, expected, #field);    \
    } while (0)
    REFUSE(struct_size, 0, RELAY_BAD_STRUCT_SIZE);
    REFUSE(struct_size, (uint32_t)sizeof options + 8, RELAY_BAD_STRUCT_SIZE);
    REFUSE(num_layers, 0, RELAY_INVALID_ARGUMENT);
    REFUSE(num_layers, -1, RELAY_INVALID_ARGUMENT);
    REFUSE(num_layers, INT32_MAX, RELAY_INVALID_ARGUMENT);
    REFUSE(num_kv_heads, 0, RELAY_INVALID_ARGUMENT);
    REFUSE(num_kv_heads, INT32_MAX, RELAY_INVALID_ARGUMENT);
    REFUSE(head_dim, 0, RELAY_INVALID_ARGUMENT);
    REFUSE(head_dim, 12, RELAY_INVALID_ARGUMENT);
    REFUSE(head_dim, 264, RELAY_INVALID_ARGUMENT);
    REFUSE(kv_dtype, (relay_dtype)0, RELAY_BAD_DTYPE);
    REFUSE(kv_dtype, (relay_dtype)99, RELAY_BAD_DTYPE);
    REFUSE(model_id, NULL, RELAY_NULL_POINTER);
    REFUSE(model_id, longest, RELAY_INVALID_ARGUMENT);
    REFUSE(enabled, 2, RELAY_INVALID_ARGUMENT);
    REFUSE(max_cached_system_prompts, 0, RELAY_INVALID_ARGUMENT);
    REFUSE(max_cached_system_prompts, INT32_MAX, RELAY_INVALID_ARGUMENT);
    REFUSE(directory, "", RELAY_INVALID_ARGUMENT);
    REFUSE(enable_prefetch, -1, RELAY_INVALID_ARGUMENT);
    REFUSE(prefetch_batch_size, 0, RELAY_INVALID_ARGUMENT);
#undef REFUSE
}

static void test_null_arguments(void) {
    relay_prompt_cache_options options = small_options();
    relay_prompt_cache *cache = NULL;
    relay_prompt *prompt = NULL;
    CHECK_STATUS(relay_prompt_cache_create(NULL, &options, &cache), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_cache_create(device, NULL, &cache), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_cache_create(device, &options, NULL), RELAY_NULL_POINTER);
    cache = make_cache(device, &options);
    CHECK_STATUS(relay_prompt_cache_acquire(NULL, "a", &prompt), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_cache_acquire(cache, NULL, &prompt), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_cache_acquire(cache, "a", NULL), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_cache_begin(NULL, "a", 1, &prompt), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_cache_begin(cache, NULL, 1, &prompt), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_cache_begin(cache, "a", 1, NULL), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_commit(NULL), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_cache_forget(NULL, "a"), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_cache_forget(cache, NULL), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_cache_wait(NULL), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_cache_get_stats(cache, NULL), RELAY_NULL_POINTER);
    CHECK_STATUS(relay_prompt_cache_get_stats(NULL, NULL), RELAY_NULL_POINTER);
    CHECK(relay_prompt_num_tokens(NULL) == 0 && relay_prompt_num_bytes(NULL) == 0);
    CHECK(relay_prompt_key(NULL) == NULL);
    relay_prompt_release(NULL);
    relay_prompt_cache_destroy(NULL);
    relay_prompt_cache_destroy(cache);
}

static void test_arguments(void) {
    relay_prompt_cache_options options = small_options();
    relay_prompt_cache *cache = make_cache(device, &options);
    relay_prompt_cache_stats stats = {.struct_size = 4};
    relay_prompt *prompt = (relay_prompt *)&options;
    char key[258];
    memset(key, 'k', 257);
    key[256] = '\0';
    CHECK_STATUS(relay_prompt_cache_acquire(cache, "", &prompt), RELAY_INVALID_ARGUMENT);
    CHECK(prompt == NULL);
    CHECK_CONTAINS(logged.last, "key");
    CHECK_STATUS(relay_prompt_cache_acquire(cache, key, &prompt), RELAY_INVALID_ARGUMENT);
    CHECK_STATUS(relay_prompt_cache_begin(cache, key, 1, &prompt), RELAY_INVALID_ARGUMENT);
    CHECK_STATUS(relay_prompt_cache_begin(cache, "a", 0, &prompt), RELAY_INVALID_ARGUMENT);
    CHECK_CONTAINS(logged.last, "num_tokens");
    CHECK_STATUS(relay_prompt_cache_begin(cache, "a", -1, &prompt), RELAY_INVALID_ARGUMENT);
    CHECK_STATUS(relay_prompt_cache_forget(cache, ""), RELAY_INVALID_ARGUMENT);
    CHECK_STATUS(relay_prompt_cache_get_stats(cache, &stats), RELAY_BAD_STRUCT_SIZE);
    key[255] = '\0';
    CHECK_STATUS(build(cache, key, 3), RELAY_OK);
    CHECK_STATUS(look_up(cache, key), RELAY_OK);
    relay_prompt_cache_destroy(cache);
}

static void test_device_without_kernels(void) {
    relay_prompt_cache_options options = small_options();
    relay_prompt_cache *cache = NULL;
    relay_device other = *device;
    other.kernels.pack[RELAYI_DT_BF16] = NULL;
    CHECK_STATUS(relay_prompt_cache_create(&other, &options, &cache), RELAY_UNSUPPORTED);
    CHECK(cache == NULL);
    CHECK_CONTAINS(logged.last, "bf16");
    options.kv_dtype = RELAY_F16;
    CHECK_STATUS(relay_prompt_cache_create(&other, &options, &cache), RELAY_OK);
    relay_prompt_cache_destroy(cache);
}

static void test_huge_prompt(void) {
    relay_prompt_cache_options options = small_options();
    relay_prompt *prompt = NULL;
    options.num_layers = options.num_kv_heads = 4096;
    options.head_dim = 256;
    options.kv_dtype = RELAY_F32;
    relay_prompt_cache *cache = make_cache(device, &options);
    CHECK_STATUS(relay_prompt_cache_begin(cache, "a", INT32_MAX, &prompt), RELAY_OUT_OF_MEMORY);
    CHECK(prompt == NULL && stats_of(cache).prompts == 0 && stats_of(cache).bytes == 0);
    relay_prompt_cache_destroy(cache);
}

/* ---- a prompt's life ---- */

static void test_life(void) {
    relay_prompt_cache_options options = small_options();
    relay_prompt_cache *cache = make_cache(device, &options);
    relay_prompt *prompt, *other;
    CHECK_STATUS(look_up(cache, "a"), RELAY_NOT_FOUND);
    CHECK_STATUS(relay_prompt_cache_begin(cache, "a", 70, &prompt), RELAY_OK);
    CHECK(relay_prompt_num_tokens(prompt) == 70 && strcmp(relay_prompt_key(prompt), "a") == 0);
    CHECK(relay_prompt_num_bytes(prompt) == 2 * 2 * 128 * 8 * 2);
    CHECK_STATUS(look_up(cache, "a"), RELAY_NOT_FOUND);
    CHECK_STATUS(relay_prompt_cache_begin(cache, "a", 70, &other), RELAY_ALREADY_EXISTS);
    CHECK(other == NULL);
    CHECK_STATUS(write_all_layers(prompt), RELAY_OK);
    CHECK_STATUS(relay_prompt_commit(prompt), RELAY_OK);
    CHECK_STATUS(relay_prompt_commit(prompt), RELAY_INVALID_ARGUMENT);
    CHECK_STATUS(write_layer(prompt, 0), RELAY_INVALID_ARGUMENT);
    CHECK_CONTAINS(logged.last, "committed");
    CHECK_STATUS(relay_prompt_cache_acquire(cache, "a", &other), RELAY_OK);
    CHECK(other == prompt && stats_of(cache).pinned == 1);
    relay_prompt_release(prompt);
    CHECK(stats_of(cache).pinned == 1);
    relay_prompt_release(other);
    CHECK(stats_of(cache).pinned == 0 && stats_of(cache).prompts == 1);
    CHECK_STATUS(relay_prompt_cache_begin(cache, "a", 70, &other), RELAY_ALREADY_EXISTS);
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK);
    relay_prompt_cache_stats stats = stats_of(cache);
    CHECK(stats.memory_hits == 2 && stats.misses == 2 && stats.file_hits == 0 && stats.evictions == 0);
    CHECK(stats.bytes == 8192 && stats.peak_bytes == 8192 && stats.files_written == 0);
    relay_prompt_cache_destroy(cache);
}

static void test_not_committed(void) {
    relay_prompt_cache_options options = small_options();
    relay_prompt_cache *cache = make_cache(device, &options);
    relay_prompt *prompt;
    CHECK_STATUS(relay_prompt_cache_begin(cache, "a", 70, &prompt), RELAY_OK);
    CHECK_STATUS(write_layer(prompt, 0), RELAY_OK);
    CHECK_STATUS(relay_prompt_commit(prompt), RELAY_INVALID_ARGUMENT);
    CHECK_CONTAINS(logged.last, "token 0 of layer 1");
    relay_prompt_release(prompt);
    CHECK_STATUS(look_up(cache, "a"), RELAY_NOT_FOUND);
    CHECK(stats_of(cache).prompts == 0 && stats_of(cache).bytes == 0 && stats_of(cache).pinned == 0);
    CHECK_STATUS(build(cache, "a", 3), RELAY_OK);
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK);
    relay_prompt_cache_destroy(cache);
}

static void test_disabled(void) {
    relay_prompt_cache_options options = small_options();
    options.enabled = 0;
    options.directory = "/nonexistent/and/never/made";
    relay_prompt_cache *cache = make_cache(device, &options);
    relay_prompt *prompt, *other;
    CHECK_STATUS(build_pinned(cache, "a", 5, &prompt), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_acquire(cache, "a", &other), RELAY_OK);
    relay_prompt_release(prompt);
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK);
    relay_prompt_release(other);
    CHECK_STATUS(look_up(cache, "a"), RELAY_NOT_FOUND);
    CHECK_STATUS(relay_prompt_cache_prefetch(cache, (const char *const[]){"a"}, 1), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_wait(cache), RELAY_OK);
    CHECK(stats_of(cache).prompts == 0 && stats_of(cache).files_written == 0);
    CHECK(access("/nonexistent", F_OK) != 0);
    relay_prompt_cache_destroy(cache);
}

/* ---- order and bounds ---- */

/* Which of the keys "a".."z" are in memory, as text; looking does not change their order much
 * since nothing follows. */
static void keys_in_memory(relay_prompt_cache *cache, char found[27]) {
    size_t count = 0;
    for (char letter = 'a'; letter <= 'z'; letter++)
        if (look_up(cache, (char[]){letter, '\0'}) == RELAY_OK) found[count++] = letter;
    found[count] = '\0';
}

#define CHECK_KEYS(cache, expected)                                                    \
    do {                                                                               \
        char found_[27];                                                               \
        keys_in_memory(cache, found_);                                                 \
        CHECK_MSG(strcmp(found_, expected) == 0, "have \"%s\", expected \"%s\"", found_, expected); \
    } while (0)

static void test_order(void) {
    relay_prompt_cache_options options = small_options();
    options.max_cached_system_prompts = 3;
    relay_prompt_cache *cache = make_cache(device, &options);
    for (const char *key = "abc"; *key != '\0'; key++)
        CHECK_STATUS(build(cache, (char[]){*key, '\0'}, 3), RELAY_OK);
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK); /* now b is the oldest */
    CHECK_STATUS(build(cache, "d", 3), RELAY_OK);
    CHECK(stats_of(cache).prompts == 3 && stats_of(cache).evictions == 1);
    CHECK_KEYS(cache, "acd"); /* and a, c, d have been used in this order */
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK);
    CHECK_STATUS(build(cache, "e", 3), RELAY_OK);
    CHECK_KEYS(cache, "ade");
    relay_prompt_cache_destroy(cache);
}

static void test_pins(void) {
    relay_prompt_cache_options options = small_options();
    relay_prompt *a, *b, *c;
    options.max_cached_system_prompts = 2;
    relay_prompt_cache *cache = make_cache(device, &options);
    CHECK_STATUS(build_pinned(cache, "a", 3, &a), RELAY_OK);
    CHECK_STATUS(build(cache, "b", 3), RELAY_OK);
    CHECK_STATUS(build(cache, "c", 3), RELAY_OK); /* b goes, though a is older */
    CHECK_KEYS(cache, "ac");
    CHECK_STATUS(relay_prompt_cache_acquire(cache, "c", &c), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_begin(cache, "b", 3, &b), RELAY_CACHE_FULL);
    CHECK(b == NULL);
    CHECK_CONTAINS(logged.last, "'b'");
    CHECK_KEYS(cache, "ac");
    CHECK(holds_its_numbers(a) && holds_its_numbers(c));
    relay_prompt_release(a);
    CHECK_STATUS(build(cache, "b", 3), RELAY_OK);
    CHECK_KEYS(cache, "bc");
    relay_prompt_release(c);
    CHECK(stats_of(cache).evictions == 2 && stats_of(cache).pinned == 0);
    relay_prompt_cache_destroy(cache);
}

static void test_bytes(void) {
    const uint64_t tile = 2 * 2 * 64 * 8 * 2; /* bytes of a prompt of up to 64 tokens */
    relay_prompt_cache_options options = small_options();
    relay_prompt *prompt;
    options.max_bytes = 4 * tile;
    relay_prompt_cache *cache = make_cache(device, &options);
    CHECK_STATUS(relay_prompt_cache_begin(cache, "z", 257, &prompt), RELAY_CACHE_FULL);
    CHECK_CONTAINS(logged.last, "max_bytes");
    CHECK_STATUS(build(cache, "a", 64), RELAY_OK);
    CHECK_STATUS(build(cache, "b", 128), RELAY_OK);
    CHECK_STATUS(build(cache, "c", 1), RELAY_OK);
    CHECK(stats_of(cache).bytes == 4 * tile && stats_of(cache).evictions == 0);
    CHECK_STATUS(build(cache, "d", 65), RELAY_OK); /* a gives one tile, b two more */
    CHECK(stats_of(cache).bytes == 3 * tile && stats_of(cache).evictions == 2);
    CHECK_KEYS(cache, "cd");
    CHECK_STATUS(relay_prompt_cache_acquire(cache, "d", &prompt), RELAY_OK);
    relay_prompt *big;
    CHECK_STATUS(relay_prompt_cache_begin(cache, "e", 193, &big), RELAY_CACHE_FULL);
    CHECK_KEYS(cache, "cd"); /* a call that fails has dropped nothing */
    CHECK_STATUS(build(cache, "e", 128), RELAY_OK);
    CHECK_KEYS(cache, "de");
    CHECK(stats_of(cache).peak_bytes == 4 * tile && stats_of(cache).prompts == 2);
    relay_prompt_release(prompt);
    CHECK_STATUS(build(cache, "f", 256), RELAY_OK); /* all of it */
    CHECK_KEYS(cache, "f");
    relay_prompt_cache_destroy(cache);
}

static void test_many(void) {
    relay_prompt_cache_options options = small_options();
    options.max_cached_system_prompts = 500;
    relay_prompt_cache *cache = make_cache(device, &options);
    char key[16];
    for (int i = 0; i < 1000; i++) {
        snprintf(key, sizeof key, "key %d", i);
        CHECK_STATUS(build(cache, key, 1), RELAY_OK);
    }
    for (int i = 0; i < 1000; i++) {
        snprintf(key, sizeof key, "key %d", i);
        CHECK_STATUS(look_up(cache, key), i < 500 ? RELAY_NOT_FOUND : RELAY_OK);
    }
    relay_prompt_cache_destroy(cache);
}

/* ---- forget, destroy ---- */

static void test_forget(void) {
    relay_prompt_cache_options options = small_options();
    relay_prompt_cache *cache = make_cache(device, &options);
    relay_prompt *old, *building;
    CHECK_STATUS(relay_prompt_cache_forget(cache, "a"), RELAY_NOT_FOUND);
    CHECK_STATUS(build(cache, "a", 3), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_forget(cache, "a"), RELAY_OK);
    CHECK_STATUS(look_up(cache, "a"), RELAY_NOT_FOUND);
    CHECK(stats_of(cache).prompts == 0 && stats_of(cache).bytes == 0);
    CHECK_STATUS(build_pinned(cache, "a", 3, &old), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_forget(cache, "a"), RELAY_OK);
    CHECK_STATUS(look_up(cache, "a"), RELAY_NOT_FOUND);
    CHECK(holds_its_numbers(old) && stats_of(cache).prompts == 1);
    CHECK_STATUS(build(cache, "a", 9), RELAY_OK); /* a new one beside the old */
    CHECK_STATUS(look_up(cache, "a"), RELAY_OK);
    CHECK(stats_of(cache).prompts == 2 && relay_prompt_num_tokens(old) == 3);
    relay_prompt_release(old);
    CHECK(stats_of(cache).prompts == 1);
    CHECK_STATUS(relay_prompt_cache_begin(cache, "b", 3, &building), RELAY_OK);
    CHECK_STATUS(relay_prompt_cache_forget(cache, "b"), RELAY_OK);
    CHECK_STATUS(write_all_layers(building), RELAY_OK);
    CHECK_STATUS(relay_prompt_commit(building), RELAY_OK);
    CHECK_STATUS(look_up(cache, "b"), RELAY_NOT_FOUND);
    relay_prompt_release(building);
    CHECK(stats_of(cache).prompts == 1 && stats_of(cache).pinned == 0);
    relay_prompt_cache_destroy(cache);
}

static void test_destroy_with_pins(void) {
    relay_prompt_cache_options options = small_options();
    relay_prompt_cache *cache = make_cache(device, &options);
    static relay_prompt *prompt; /* static: what is lost on purpose is no leak */
    CHECK_STATUS(build_pinned(cache, "a", 3, &prompt), RELAY_OK);
    forget_log();
    relay_prompt_cache_destroy(cache);
    CHECK_CONTAINS(logged.last, "ERROR");
    CHECK_CONTAINS(logged.last, "not released");
    CHECK(holds_its_numbers(prompt));
}

int main(void) {
    device = open_device(1);
    test_options();
    test_null_arguments();
    test_arguments();
    test_device_without_kernels();
    test_huge_prompt();
    test_life();
    test_not_committed();
    test_disabled();
    test_order();
    test_pins();
    test_bytes();
    test_many();
    test_forget();
    test_destroy_with_pins();
    relay_device_close(device);
    return test_result();
}
