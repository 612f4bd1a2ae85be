/* A C test in one header: CHECK what must hold, and `return test_result();` from main. */
#ifndef RELAY_TEST_H
#define RELAY_TEST_H

#include <stdio.h>
#include <string.h>

static int test_passed, test_failed;

#define CHECK(condition)                                                              \
    do {                                                                              \
        if (condition) {                                                              \
            test_passed++;                                                            \
        } else {                                                                      \
            test_failed++;                                                            \
            fprintf(stderr, "%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
        }                                                                             \
    } while (0)

/* Like CHECK, with a printf-style explanation of what was seen. */
#define CHECK_MSG(condition, ...)                                                     \
    do {                                                                              \
        if (condition) {                                                              \
            test_passed++;                                                            \
        } else {                                                                      \
            test_failed++;                                                            \
            fprintf(stderr, "%s:%d: CHECK(%s) failed: ", __FILE__, __LINE__, #condition); \
            fprintf(stderr, __VA_ARGS__);                                             \
            fputc('\n', stderr);                                                      \
        }                                                                             \
    } while (0)

#define CHECK_CONTAINS(text, part) \
    CHECK_MSG(strstr((text), (part)) != NULL, "\"%s\" does not contain \"%s\"", (text), (part))

/* Checking nothing is a failure. */
static int test_result(void) {
    printf("%d passed, %d failed\n", test_passed, test_failed);
    return test_failed != 0 || test_passed == 0;
}

#endif
