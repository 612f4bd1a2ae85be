/* Files that anybody may have written: valid ones, damaged at random in ways that keep much of their sense, over
 * and over with the same seed.  Each is read, or refused with a message that names it; what is read is used.
 * Bits that flip and files that are cut are in the tests of each format. */
#include <stdlib.h>
#include <unistd.h>

#include "line_reader.h"
#include "model/model.h"
#include "model/safetensors.h"
#include "request_line.h"
#include "small_tokenizer.h"
#include "test.h"
#include "tokeniser/tokenizer.h"

enum { MOST_BYTES = 1 << 17 };

static char directory[64];

static const char *path_of(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static void write_file(const char *name, const char *data, size_t size) {
    FILE *file = fopen(path_of(name), "wb");
    CHECK(file != NULL && fwrite(data, 1, size, file) == size && fclose(file) == 0);
}

static size_t read_file(const char *path, char *to) {
    FILE *file = fopen(path, "rb");
    size_t size = file == NULL ? 0 : fread(to, 1, MOST_BYTES, file);
    CHECK_MSG(file != NULL && size < MOST_BYTES, "%s", path);
    if (file != NULL) fclose(file);
    return size;
}

static void link_model(const char *name) {
    char here[512], target[600];
    CHECK(getcwd(here, sizeof here) != NULL);
    snprintf(target, sizeof target, "%s/models/lookup/%s", here, name);
    CHECK(symlink(target, path_of(name)) == 0);
}

/* ---- damage -------------------------------------------------------------- */

static uint32_t draw(uint32_t *state, uint32_t below) {
    *state = *state * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)(*state >> 8) * below) >> 24);
}

static size_t replace(char *data, size_t size, size_t at, size_t length, const char *with, size_t with_size) {
    if (length > size - at) length = size - at;
    if (size - length + with_size > MOST_BYTES) return size;
    memmove(data + at + with_size, data + at + length, size - at - length);
    if (with_size > 0) memcpy(data + at, with, with_size);
    return size - length + with_size;
}

/* What makes trouble where a value is expected. */
static const char *const values[] = {
    "0", "-1", "1e999", "-0.0", "1e-320", "9223372036854775807", "-9223372036854775808", "18446744073709551616",
    "2147483648", "4294967295", "65536", "0.5", "NaN", "null", "true", "[]", "{}", "\"\"", "\"8\"", "[[[[]]]]", "[1,2,3]",
    "{\"a\":{}}", "\"\\u0000\"", "\"\\ud800\"", "\"\xFF\"", "1000000007", "[0,-1]", "[9223372036854775807,1]", "\"F64\"",
};

static bool in_number(char c) { return (c >= '0' && c <= '9') || c == '.' || c == '-'; }

/* A number, a text or a word, whatever stands nearest: another value in its place. */
static size_t change_value(char *data, size_t size, size_t at, uint32_t *state) {
    const char *value = values[draw(state, sizeof values / sizeof *values)];
    while (at < size && !in_number(data[at]) && data[at] != '"' && data[at] != 't' && data[at] != 'n') at++;
    if (at == size) return size;
    size_t end = at + 1;
    if (data[at] == '"') {
        while (end < size && data[end] != '"') end++;
        if (end < size) end++;
    } else {
        while (end < size && (in_number(data[end]) || (data[end] >= 'a' && data[end] <= 'z'))) end++;
    }
    return replace(data, size, at, end - at, value, strlen(value));
}

static size_t damage_once(char *data, size_t size, uint32_t *state) {
    static const char likely[] = "{}[]\",:0129-.eE\\u tfn\xFF\x00\x80";
    size_t at = draw(state, (uint32_t)size), length = 1 + draw(state, draw(state, 4) == 0 ? 200 : 12);
    char piece[256];
    switch (draw(state, 8)) {
    case 0: data[at] = (char)draw(state, 256); return size;
    case 1: data[at] = likely[draw(state, sizeof likely - 1)]; return size;
    case 2: return replace(data, size, at, length, NULL, 0);
    case 3: { /* a piece of it, somewhere else, too */
        size_t from = draw(state, (uint32_t)size);
        if (length > size - from) length = size - from;
        memcpy(piece, data + from, length);
        return replace(data, size, at, draw(state, 2) ? length : 0, piece, length);
    }
    default: return change_value(data, size, at, state);
    }
}

static size_t damage(const char *good, size_t size, char *bad, uint32_t seed) {
    uint32_t state = seed * 2654435761u + 1;
    memcpy(bad, good, size);
    uint32_t times = 1 + draw(&state, 3);
    while (times-- > 0 && size > 0) size = damage_once(bad, size, &state);
    return size;
}

/* ---- what reads them ----------------------------------------------------- */

typedef bool use_fn(eng_error *err);

static void refused_by_name(const char *name, uint32_t seed, bool ok, const eng_error *err) {
    CHECK_MSG(ok || strstr(err->text, directory) != NULL, "%s, seed %u: \"%s\" does not name a file", name, (unsigned)seed,
              err->text);
    for (const char *c = err->text; *c != '\0'; c++)
        if (*c == '\n') CHECK_MSG(false, "%s, seed %u: a message of several lines: %s", name, (unsigned)seed, err->text);
}

static bool use_model(eng_error *err) {
    const eng_model_options options = {.compute = ENG_COMPUTE_AUTO};
    eng_model *model;
    bool ok = eng_model_load(directory, &options, &model, err);
    CHECK(ok == (model != NULL));
    eng_model_free(model);
    return ok;
}

static bool use_config(eng_error *err) {
    static eng_model_config config;
    return eng_model_config_load(directory, &config, err);
}

static void add_up(const eng_tensor *tensor) {
    const unsigned char *bytes = tensor->data;
    static volatile unsigned sum;
    size_t size = (size_t)tensor->count * (tensor->dtype == ENG_DTYPE_F32 ? 4 : 2);
    for (size_t i = 0; i < size; i++) sum = sum + bytes[i]; /* outside the file: a fault */
}

static bool use_tensors(eng_error *err) {
    static const char *const names[] = {"w", "h", "norm"};
    eng_safetensors *tensors;
    eng_error inner = {""};
    if (!eng_safetensors_open(directory, &tensors, err)) return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        eng_tensor tensor;
        if (eng_safetensors_has(tensors, names[i]) && eng_safetensors_get(tensors, names[i], &tensor, &inner)) add_up(&tensor);
    }
    eng_safetensors_close(tensors);
    return true;
}

static bool use_tokenizer(eng_error *err) {
    eng_tokenizer *tokenizer;
    if (!eng_tokenizer_load(directory, &tokenizer, err)) return false;
    for (int i = 0; i < SMALL_TEXTS; i++) {
        eng_tokens tokens = {0};
        eng_bytes text = {0};
        eng_error inner = {""};
        if (eng_tokenizer_encode(tokenizer, small_texts[i], strlen(small_texts[i]), true, &tokens, &inner))
            eng_tokenizer_decode(tokenizer, tokens.ids, tokens.count, true, &text, &inner);
        eng_tokens_free(&tokens);
        eng_bytes_free(&text);
    }
    eng_tokenizer_free(tokenizer);
    return true;
}

/* Every damaged form of a file that is good; some are still good, and most are not. */
static void try_file(const char *name, const char *good, size_t size, uint32_t rounds, use_fn *use) {
    static char bad[MOST_BYTES];
    eng_error err = {""};
    uint32_t taken = 0;
    write_file(name, good, size);
    CHECK_MSG(use(&err), "%s: %s", name, err.text);
    for (uint32_t seed = 1; seed <= rounds; seed++) {
        write_file(name, bad, damage(good, size, bad, seed));
        err = (eng_error){""};
        bool ok = use(&err);
        refused_by_name(name, seed, ok, &err);
        taken += ok;
    }
    CHECK_MSG(taken > 0 && taken < rounds, "%s: %u of %u damaged files are taken", name, (unsigned)taken, (unsigned)rounds);
    write_file(name, good, size);
}

/* ---- the files ----------------------------------------------------------- */

static void test_configs(void) {
    static char good[MOST_BYTES];
    static const char *const names[] = {"config.json", "generation_config.json"};
    static const char *const configs[] = {
        "{\"model_type\":\"llama\",\"hidden_size\":64,\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
        "\"intermediate_size\":128,\"vocab_size\":100,\"max_position_embeddings\":8192,\"rms_norm_eps\":1e-5,\"rope_theta\":"
        "500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
        "\"original_max_position_embeddings\":2048},\"hidden_act\":\"silu\",\"eos_token_id\":[2,3]}",
        "{\"model_type\":\"gemma3_text\",\"hidden_size\":64,\"num_hidden_layers\":7,\"num_attention_heads\":4,"
        "\"num_key_value_heads\":1,\"head_dim\":32,\"intermediate_size\":128,\"vocab_size\":100,\"max_position_embeddings\":4096,"
        "\"rms_norm_eps\":1e-6,\"rope_theta\":1000000.0,\"rope_local_base_freq\":10000.0,\"sliding_window\":512,"
        "\"sliding_window_pattern\":6,\"query_pre_attn_scalar\":32,\"hidden_activation\":\"gelu_pytorch_tanh\"}",
    };
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++)
        try_file("config.json", configs[i], strlen(configs[i]), 3000, use_config);
    for (int i = 0; i < 2; i++) {
        char path[64];
        snprintf(path, sizeof path, "models/lookup/%s", names[i]);
        size_t size = read_file(path, good);
        write_file(names[i], good, size);
        if (i == 0) {
            link_model("model.safetensors");
            try_file(names[i], good, size, 400, use_model); /* with the weights that it is about */
            CHECK(remove(path_of("model.safetensors")) == 0);
        }
        try_file(names[i], good, size, 2000, use_config);
    }
}

/* The header's length in front of it is right, or nearly so. */
static void test_tensors(void) {
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"w\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
        "\"h\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[16,24]},\"norm\":{\"dtype\":\"F16\",\"shape\":[4],"
        "\"data_offsets\":[24,32]}}";
    static const char index[] = "{\"metadata\":{\"total_size\":32},\"weight_map\":{\"w\":\"a.safetensors\",\"h\":\"a.safetensors\","
                                "\"norm\":\"a.safetensors\"}}";
    static char file[MOST_BYTES + 64];
    eng_error err = {""};
    uint32_t taken = 0;
    for (uint32_t seed = 0; seed <= 5000; seed++) {
        size_t size = seed == 0 ? strlen(header) : damage(header, strlen(header), file + 8, seed);
        if (seed == 0) memcpy(file + 8, header, size);
        uint64_t said = size + (seed % 16 == 15 ? seed % 7 - 3 : 0);
        for (int i = 0; i < 8; i++) file[i] = (char)(said >> 8 * i);
        memset(file + 8 + size, 1, 32);
        write_file("model.safetensors", file, size + 8 + 32);
        bool ok = use_tensors(&err);
        refused_by_name("model.safetensors", seed, ok, &err);
        CHECK_MSG(seed > 0 || ok, "%s", err.text);
        taken += ok;
        if (seed == 0) write_file("a.safetensors", file, size + 8 + 32);
    }
    CHECK_MSG(taken > 1 && taken < 5000, "%u are taken", (unsigned)taken);
    CHECK(remove(path_of("model.safetensors")) == 0);
    try_file("model.safetensors.index.json", index, strlen(index), 2000, use_tensors);
}

static void test_tokenizers(void) {
    static char good[MOST_BYTES];
    eng_bytes json = small_tokenizer();
    try_file("tokenizer.json", json.data, json.size - 1, 2500, use_tokenizer);
    size_t size = read_file("models/lookup/tokenizer_config.json", good);
    try_file("tokenizer_config.json", good, size, 2000, use_tokenizer);
    size = read_file("models/lookup/tokenizer.json", good);
    try_file("tokenizer.json", good, size, 60, use_tokenizer);
    eng_bytes_free(&json);
}

/* Lines as a file gives them; each is a request, or has a problem that says what is wrong. */
static void test_requests(void) {
    static const char good[] =
        "{\"id\": 1, \"text\": \"what is the code of kazaga ? answer :\", \"expected\": \"029 .\", \"max_tokens\": 5}\n"
        "{\"id\":\"\xC3\xA9\\n\",\"text\":\"\\ud83d\\ude00\",\"system\":\"a\"}\r\n\n"
        "{\"id\":2.5,\"text\":\"\",\"system\":null,\"max_tokens\":null,\"expected\":null}";
    static char bad[MOST_BYTES];
    long requests = 0, problems = 0;
    for (uint32_t seed = 1; seed <= 4000; seed++) {
        size_t size = damage(good, sizeof good - 1, bad, seed);
        write_file("requests.jsonl", bad, size);
        FILE *file = fopen(path_of("requests.jsonl"), "rb");
        line_reader reader = line_reader_on(fileno(file));
        char *line;
        bool torn;
        while (line_reader_next(&reader, true, &line, &size, &torn) == LINE_READY) {
            request_line request;
            bool ok = request_line_parse(line, size, &request);
            bool fine = ok && request.problem[0] == '\0';
            CHECK_MSG(ok || request.problem[0] != '\0', "seed %u: no request and no problem: %s", (unsigned)seed, line);
            CHECK_MSG(!fine || (request.id != NULL && request.text != NULL), "seed %u: half a request: %s", (unsigned)seed, line);
            requests += fine;
            problems += !fine;
            request_line_free(&request);
        }
        line_reader_free(&reader);
        fclose(file);
    }
    CHECK_MSG(requests > 1000 && problems > 1000, "%ld requests, %ld problems", requests, problems);
}

int main(void) {
    static const char *const names[] = {"config.json", "generation_config.json", "a.safetensors",
                                        "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
                                        "requests.jsonl"};
    /* thousands of files, some of them synchronised: in memory, where that is possible */
    snprintf(directory, sizeof directory, "%s/relay-hostile-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    CHECK(mkdtemp(directory) != NULL);
    test_configs();
    test_tensors();
    test_tokenizers();
    test_requests();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) CHECK_MSG(remove(path_of(names[i])) == 0, "%s", names[i]);
    CHECK(rmdir(directory) == 0);
    return test_result();
}
