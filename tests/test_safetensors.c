/* Good and bad checkpoints, all written here; and a loop of random damage. */
#define _POSIX_C_SOURCE 200809L
#include "test.h"

#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include "model/safetensors.h"

static char dir[64];

static const char *in_dir(const char *name) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void write_file(const char *name, const void *bytes, size_t size) {
    FILE *file = fopen(in_dir(name), "wb");
    CHECK(file != NULL);
    if (file == NULL) exit(1);
    CHECK(size == 0 || fwrite(bytes, 1, size, file) == size);
    fclose(file);
}

/* Header length, header, data: header_length < 0 takes the real one. */
static size_t build(unsigned char *out, const char *header, int64_t header_length, const void *data, size_t size) {
    uint64_t length = header_length < 0 ? strlen(header) : (uint64_t)header_length;
    for (int i = 0; i < 8; i++) out[i] = (unsigned char)(length >> (8 * i));
    memcpy(out + 8, header, strlen(header));
    memcpy(out + 8 + strlen(header), data, size);
    return 8 + strlen(header) + size;
}

static void write_tensors(const char *name, const char *header, int64_t header_length, const void *data, size_t size) {
    unsigned char bytes[8192];
    write_file(name, bytes, build(bytes, header, header_length, data, size));
}

static void clear(void) {
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json", "a.safetensors",
                                        "b.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(in_dir(names[i]));
}

static void expect_failure(const char *part1, const char *part2) {
    eng_error err = {""};
    eng_safetensors *t = (eng_safetensors *)(uintptr_t)1;
    CHECK(!eng_safetensors_open(dir, &t, &err));
    CHECK(t == NULL);
    CHECK_CONTAINS(err.text, part1);
    CHECK_CONTAINS(err.text, part2);
}

static const float numbers[4] = {1.5f, -2.0f, 0.25f, 8.0f};

static void single_fails(const char *header, size_t data, const char *part) {
    clear();
    write_tensors("model.safetensors", header, -1, numbers, data);
    expect_failure("model.safetensors", part);
}

static void test_reads(void) {
    const uint16_t halves[8] = {0x3C00, 0xC000, 0x0001, 0x7C00, 0x3F80, 0xC000, 0x0001, 0x7F80};
    unsigned char data[32];
    memcpy(data, numbers, 16);
    memcpy(data + 16, halves, 16);
    write_tensors("model.safetensors",
                  "{\"__metadata__\":{\"format\":\"pt\"},\"w\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
                  "\"h\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[16,24]},"
                  "\"b\":{\"dtype\":\"BF16\",\"shape\":[4,1],\"data_offsets\":[24,32]},"
                  "\"e\":{\"dtype\":\"I64\",\"shape\":[0],\"data_offsets\":[32,32]}}", -1, data, sizeof data);
    eng_error err = {""};
    eng_safetensors *t;
    eng_tensor w, h, b, e;
    CHECK_MSG(eng_safetensors_open(dir, &t, &err), "%s", err.text);
    CHECK(eng_safetensors_get(t, "w", &w, &err) && w.dims == 2 && w.shape[1] == 2 && w.count == 4);
    CHECK(eng_f32_at(w.data, w.dtype, 2) == 0.25f);
    CHECK(eng_safetensors_get(t, "h", &h, &err) && eng_f32_at(h.data, h.dtype, 1) == -2.0f);
    CHECK(eng_f32_at(h.data, h.dtype, 0) == 1.0f && eng_f32_at(h.data, h.dtype, 2) == 0x1p-24f);
    CHECK(eng_f32_at(h.data, h.dtype, 3) > 1e38f * 3);
    CHECK(eng_safetensors_get(t, "b", &b, &err) && eng_f32_at(b.data, b.dtype, 0) == 1.0f);
    CHECK(eng_f32_at(b.data, b.dtype, 1) == -2.0f);
    CHECK(!eng_safetensors_get(t, "e", &e, &err));
    CHECK_CONTAINS(err.text, "I64");
    CHECK(!eng_safetensors_get(t, "none", &e, &err));
    CHECK_CONTAINS(err.text, "\"none\" is missing");
    CHECK(eng_safetensors_has(t, "w") && !eng_safetensors_has(t, "v"));
    eng_safetensors_close(t);
}

#define T(name, dtype, shape, offsets) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void test_bad_headers(void) {
    single_fails("{" T("w", "F32", "[4]", "[0,16]") "}", 12, "truncated");
    single_fails("{" T("w", "F32", "[4]", "[16,0]") "}", 16, "out of order");
    single_fails("{" T("w", "F32", "[4]", "[-16,0]") "}", 16, "\"w\"");
    single_fails("{" T("w", "F32", "[4]", "[0,18446744073709551632]") "}", 16, "JSON");
    single_fails("{" T("w", "F32", "[4]", "[0,9223372036854775807]") "}", 16, "the file holds 16 bytes");
    single_fails("{" T("w", "F32", "[3]", "[0,16]") "}", 16, "need 12 bytes");
    single_fails("{" T("w", "F32", "[4611686018427387904,4]", "[0,16]") "}", 16, "overflows");
    single_fails("{" T("w", "F32", "[-1]", "[0,16]") "}", 16, "non-negative");
    single_fails("{" T("w", "F32", "[4.0]", "[0,16]") "}", 16, "integers");
    single_fails("{" T("w", "F32", "4", "[0,16]") "}", 16, "no array");
    single_fails("{" T("w", "F32", "[1,1,1,1,1,1,1,1,4]", "[0,16]") "}", 16, "dimensions");
    single_fails("{" T("w", "F12", "[4]", "[0,16]") "}", 16, "unknown dtype \"F12\"");
    single_fails("{\"w\":{\"dtype\":7,\"shape\":[4],\"data_offsets\":[0,16]}}", 16, "dtype");
    single_fails("{\"w\":{\"dtype\":\"F32\",\"shape\":[4]}}", 16, "data_offsets");
    single_fails("{\"w\":[1,2]}", 16, "no object");
    single_fails("{" T("a", "F32", "[3]", "[0,12]") "," T("w", "F32", "[2]", "[8,16]") "}", 16, "overlap");
    single_fails("{" T("a", "F32", "[1]", "[0,4]") "," T("w", "F32", "[2]", "[8,16]") "}", 16, "belong to no tensor");
    single_fails("{" T("w", "F32", "[3]", "[0,12]") "}", 16, "after the last tensor");
    single_fails("{" T("w", "F32", "[2]", "[0,8]") "," T("w", "F32", "[2]", "[8,16]") "}", 16, "duplicate");
    single_fails("{\"__metadata__\":{}}", 0, "no tensor");
    single_fails("[1]", 0, "object");
    single_fails("not json", 0, "JSON");
    single_fails("", 0, "JSON");
}

static void test_bad_lengths(void) {
    const char *header = "{" T("w", "F32", "[4]", "[0,16]") "}";
    clear();
    expect_failure(dir, "holds neither");
    write_file("model.safetensors", "", 0);
    expect_failure("model.safetensors", "0 bytes are too few");
    write_file("model.safetensors", "1234567", 7);
    expect_failure("model.safetensors", "7 bytes are too few");
    write_tensors("model.safetensors", header, 5000, numbers, 16);
    expect_failure("model.safetensors", "header length 5000");
    write_tensors("model.safetensors", header, INT64_MAX, numbers, 16);
    expect_failure("model.safetensors", "limit");
    write_tensors("model.safetensors", header, (int64_t)strlen(header) - 1, numbers, 16);
    expect_failure("model.safetensors", "JSON");
}

static void index_fails(const char *index, const char *part1, const char *part2) {
    write_file("model.safetensors.index.json", index, strlen(index));
    expect_failure(part1, part2);
}

static void test_shards(void) {
    eng_error err = {""};
    eng_safetensors *t;
    eng_tensor tensor;
    clear();
    write_tensors("a.safetensors", "{" T("a", "F32", "[4]", "[0,16]") "}", -1, numbers, 16);
    write_tensors("b.safetensors", "{" T("b", "F32", "[2]", "[0,8]") "}", -1, numbers, 8);
    const char *good = "{\"weight_map\":{\"a\":\"a.safetensors\",\"b\":\"b.safetensors\"}}";
    write_file("model.safetensors.index.json", good, strlen(good));
    CHECK_MSG(eng_safetensors_open(dir, &t, &err), "%s", err.text);
    CHECK(eng_safetensors_get(t, "b", &tensor, &err) && tensor.count == 2);
    CHECK(eng_safetensors_get(t, "a", &tensor, &err) && tensor.count == 4);
    eng_safetensors_close(t);
    index_fails("{\"weight_map\":{\"a\":\"a.safetensors\",\"c\":\"b.safetensors\"}}", "\"c\"", "does not hold it");
    index_fails("{\"weight_map\":{\"a\":\"b.safetensors\",\"b\":\"a.safetensors\"}}", "weight_map", "does not hold it");
    index_fails("{\"weight_map\":{\"a\":\"c.safetensors\"}}", "c.safetensors", "No such file");
    index_fails("{\"weight_map\":{\"a\":\"../a.safetensors\"}}", "\"a\"", "this directory");
    index_fails("{\"weight_map\":{\"a\":\"\"}}", "\"a\"", "this directory");
    index_fails("{\"weight_map\":{\"a\":3}}", "\"a\"", "this directory");
    index_fails("{\"weight_map\":{}}", "index.json", "empty");
    index_fails("{\"weight_map\":[]}", "index.json", "weight_map");
    index_fails("{}", "index.json", "weight_map");
    index_fails("[]", "index.json", "object");
    index_fails("{", "index.json", "line 1");
    write_tensors("b.safetensors", "{" T("a", "F32", "[2]", "[0,8]") "}", -1, numbers, 8);
    index_fails(good, "\"a\" is also in", ".safetensors");
}

/* Whatever opens must be readable to its last byte; nothing may crash. */
static void touch_all(const char *const *names) {
    eng_safetensors *t;
    eng_error err = {""};
    if (!eng_safetensors_open(dir, &t, &err)) {
        CHECK(err.text[0] != '\0');
        return;
    }
    volatile float sum = 0; /* keeps the reads */
    for (; *names != NULL; names++) {
        eng_tensor tensor;
        if (!eng_safetensors_get(t, *names, &tensor, &err)) continue;
        for (int64_t i = 0; i < tensor.count; i++) sum += eng_f32_at(tensor.data, tensor.dtype, i);
    }
    eng_safetensors_close(t);
}

static void test_damage(void) {
    static const char *const names[] = {"w", "h", NULL};
    unsigned char good[512], bad[512];
    size_t size = build(good, "{" T("w", "F32", "[2]", "[0,8]") "," T("h", "BF16", "[2,2]", "[8,16]") "}", -1, numbers, 16);
    uint32_t random = 1;
    clear();
    for (size_t cut = 0; cut <= size; cut++) {
        write_file("model.safetensors", good, cut);
        touch_all(names);
    }
    for (int round = 0; round < 3000; round++) {
        memcpy(bad, good, size);
        for (int flips = 0; flips <= round % 3; flips++) {
            random = random * 1664525u + 1013904223u;
            bad[(random >> 8) % size] ^= (unsigned char)(1u << (random >> 29));
        }
        write_file("model.safetensors", bad, size);
        touch_all(names);
    }
}

int main(void) {
    snprintf(dir, sizeof dir, "/tmp/test_safetensors.XXXXXX");
    if (mkdtemp(dir) == NULL) return 1;
    test_reads();
    test_bad_headers();
    test_bad_lengths();
    test_shards();
    test_damage();
    clear();
    rmdir(dir);
    return test_result();
}
