/* Memory and checksums, on which the prompt cache stands. */
#include <stdint.h>

#include "alloc.h"
#include "checksum.h"
#include "test.h"

static void test_alignment(void) {
    for (size_t size = 0; size < 300; size += 7) {
        char *memory = relayi_alloc(size);
        CHECK(memory != NULL && (uintptr_t)memory % RELAYI_ALIGNMENT == 0);
        if (memory != NULL) memset(memory, 1, size);
        relayi_free(memory);
    }
    relayi_free(NULL);
}

static void test_zeroed(void) {
    static const size_t sizes[] = {1, 4096, 4097, (size_t)2 << 20, ((size_t)5 << 20) + 3};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        char *array = relayi_alloc_array(sizes[i], 1), *map = relayi_map(sizes[i]);
        bool zero = array != NULL && map != NULL;
        for (size_t at = 0; zero && at < sizes[i]; at++) zero = array[at] == 0 && map[at] == 0;
        CHECK(zero);
        CHECK((uintptr_t)map % (sizes[i] < (size_t)2 << 20 ? 4096 : (size_t)2 << 20) == 0);
        if (map != NULL) memset(map, 1, sizes[i]);
        relayi_unmap(map, sizes[i]);
        relayi_free(array);
    }
    relayi_unmap(NULL, 5);
}

static void test_too_large(void) {
    volatile size_t huge = SIZE_MAX; /* or compilers warn that it is */
    size_t product;
    CHECK(relayi_alloc(huge) == NULL && relayi_alloc(huge - 63) == NULL);
    CHECK(relayi_alloc_array(huge / 2 + 1, 2) == NULL && relayi_alloc_array(2, huge / 2 + 1) == NULL);
    CHECK(relayi_map(huge) == NULL && relayi_map(huge / 2) == NULL && relayi_map(huge - 4095) == NULL);
    CHECK(!relayi_multiply(huge, 2, &product) && !relayi_multiply(2, huge, &product));
    CHECK(relayi_multiply(huge, 1, &product) && product == huge);
    CHECK(relayi_multiply(0, huge, &product) && product == 0);
    CHECK(relayi_multiply(huge, 0, &product) && product == 0);
}

static void test_copy(void) {
    char *copy = relayi_copy_string("text");
    CHECK(copy != NULL && strcmp(copy, "text") == 0);
    relayi_free(copy);
    copy = relayi_copy_string("");
    CHECK(copy != NULL && copy[0] == '\0');
    relayi_free(copy);
}

/* Every bit counts, wherever it is, and so do the length and the seed. */
static void test_checksum(void) {
    unsigned char data[200];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)(i * 37);
    for (size_t size = 0; size < sizeof data; size++) {
        uint64_t sum = relayi_checksum_of(data, size, 3);
        CHECK(sum != relayi_checksum_of(data, size + 1, 3) && sum != relayi_checksum_of(data, size, 4));
        for (size_t bit = 0; bit < size * 8; bit++) {
            data[bit / 8] ^= (unsigned char)(1 << bit % 8);
            CHECK(sum != relayi_checksum_of(data, size, 3));
            data[bit / 8] ^= (unsigned char)(1 << bit % 8);
        }
    }
    unsigned char zeros[100] = {0};
    for (size_t size = 0; size < 100; size++)
        CHECK(relayi_checksum_of(zeros, size, 0) != relayi_checksum_of(zeros, size + 1, 0));
}

/* Added in parts, from any address: the same; and the same as ever, since it is in files (of
 * this byte order). */
static void test_checksum_parts(void) {
    unsigned char data[1 + 32 * 20 + 11];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)(i * i >> 3);
    uint64_t sum = relayi_checksum_of(data + 1, sizeof data - 1, 9);
    for (size_t part = 32; part < 32 * 20; part += 32) {
        relayi_checksum checksum;
        relayi_checksum_start(&checksum, 9);
        relayi_checksum_add(&checksum, data + 1, part);
        relayi_checksum_add(&checksum, data + 1 + part, sizeof data - 1 - part);
        CHECK(relayi_checksum_finish(&checksum) == sum);
    }
    uint64_t known = relayi_checksum_of("relay", 5, 0);
    CHECK_MSG(known == UINT64_C(0xd56f3d672d035bdd), "0x%llx", (unsigned long long)known);
}

int main(void) {
    test_alignment();
    test_zeroed();
    test_too_large();
    test_copy();
    test_checksum();
    test_checksum_parts();
    return test_result();
}
