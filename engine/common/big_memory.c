#define _DEFAULT_SOURCE 1 /* madvise() */
#include "big_memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

void *eng_big_alloc(size_t bytes) {
    const size_t huge = (size_t)2 << 20;
    const size_t alignment = bytes >= huge ? huge : 64;
    if (bytes > SIZE_MAX - huge) return NULL;
    size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void *block = aligned_alloc(alignment, rounded == 0 ? alignment : rounded);
#ifdef MADV_HUGEPAGE
    if (block != NULL && bytes >= huge) madvise(block, rounded, MADV_HUGEPAGE); /* a wish, no more */
#endif
    return block;
}
