#define _DEFAULT_SOURCE /* madvise, MAP_ANONYMOUS */
#include "alloc.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_PAGE ((size_t)2 << 20)

/* False for more than any object can have. */
static bool round_up(size_t size, size_t unit, size_t *rounded) {
    *rounded = (size + unit - 1) / unit * unit;
    return size <= PTRDIFF_MAX - (unit - 1);
}

void *relayi_alloc(size_t size) {
    size_t rounded;
    if (!round_up(size == 0 ? 1 : size, RELAYI_ALIGNMENT, &rounded)) return NULL;
    return aligned_alloc(RELAYI_ALIGNMENT, rounded);
}

void *relayi_alloc_array(size_t count, size_t size) {
    size_t total;
    if (!relayi_multiply(count, size, &total)) return NULL;
    void *memory = relayi_alloc(total);
    if (memory != NULL) memset(memory, 0, total);
    return memory;
}

char *relayi_copy_string(const char *text) {
    size_t size = strlen(text) + 1;
    char *copy = relayi_alloc(size);
    if (copy != NULL) memcpy(copy, text, size);
    return copy;
}

void relayi_free(void *memory) { free(memory); }

static void *map_pages(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

/* Maps one huge page too much and gives back what lies before the first boundary and behind. */
static void *map_huge(size_t size) {
    if (size > SIZE_MAX - HUGE_PAGE) return NULL;
    char *start = map_pages(size + HUGE_PAGE);
    if (start == NULL) return NULL;
    size_t before = (HUGE_PAGE - (uintptr_t)start % HUGE_PAGE) % HUGE_PAGE;
    if (before > 0) munmap(start, before);
    munmap(start + before + size, HUGE_PAGE - before);
#ifdef MADV_HUGEPAGE
    madvise(start + before, size, MADV_HUGEPAGE); /* a wish: nothing depends on it */
#endif
    return start + before;
}

void *relayi_map(size_t size) {
    size_t rounded;
    if (!round_up(size == 0 ? 1 : size, (size_t)sysconf(_SC_PAGESIZE), &rounded)) return NULL;
    return rounded < HUGE_PAGE ? map_pages(rounded) : map_huge(rounded);
}

void relayi_unmap(void *memory, size_t size) {
    if (memory == NULL) return;
    munmap(memory, size == 0 ? 1 : size);
}
