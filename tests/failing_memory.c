#define _DEFAULT_SOURCE
#include "failing_memory.h"

#include <dirent.h>
#include <errno.h>
#include <execinfo.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOST_CALLS = 1 << 20, DEPTH = 24 };

static struct {
    pthread_mutex_t lock;
    bool armed, for_good, happened;
    long which, calls;
    uint64_t *ways; /* [MOST_CALLS] of the calls, or NULL */
    size_t mapped;
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

#define WRAP(result, name, parameters) \
    result __real_##name parameters;   \
    result __wrap_##name parameters;   \
    result __wrap_##name parameters

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);

static uint64_t way_here(void) {
    void *frames[DEPTH];
    int depth = backtrace(frames, DEPTH);
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (int i = 0; i < depth; i++) hash = (hash ^ (uintptr_t)frames[i]) * UINT64_C(0x100000001b3);
    return hash;
}

bool failing_memory_now(void) {
    uint64_t way = state.ways != NULL ? way_here() : 0;
    pthread_mutex_lock(&state.lock);
    bool fails = state.armed && state.which >= 0 &&
                 (state.calls == state.which || (state.for_good && state.calls > state.which));
    if (state.armed && state.ways != NULL && state.calls < MOST_CALLS) state.ways[state.calls] = way;
    state.calls += state.armed;
    state.happened = state.happened || fails;
    pthread_mutex_unlock(&state.lock);
    if (fails) errno = ENOMEM;
    return fails;
}

void failing_memory_begin(long which, bool for_good) {
    pthread_mutex_lock(&state.lock);
    state.armed = true;
    state.for_good = for_good;
    state.happened = false;
    state.which = which;
    state.calls = 0;
    pthread_mutex_unlock(&state.lock);
}

bool failing_memory_end(void) {
    pthread_mutex_lock(&state.lock);
    state.armed = false;
    bool happened = state.happened;
    pthread_mutex_unlock(&state.lock);
    return happened;
}

long failing_memory_calls(void) { return state.calls; }

/* ---- ways ---------------------------------------------------------------- */

void failing_memory_remember(void) {
    void *frames[2];
    backtrace(frames, 2); /* the first call loads a library, which allocates */
    state.ways = __real_calloc(MOST_CALLS, sizeof *state.ways);
}

typedef struct numbered_way {
    uint64_t way;
    long call;
} numbered_way;

static int by_way(const void *a, const void *b) {
    const numbered_way *x = a, *y = b;
    if (x->way != y->way) return x->way < y->way ? -1 : 1;
    return (x->call > y->call) - (x->call < y->call);
}

static int by_number(const void *a, const void *b) {
    long x = *(const long *)a, y = *(const long *)b;
    return (x > y) - (x < y);
}

long *failing_memory_first_of_each_way(size_t *count) {
    long calls = state.calls < MOST_CALLS ? state.calls : MOST_CALLS;
    numbered_way *sorted = __real_malloc(((size_t)calls + 1) * sizeof *sorted);
    long *firsts = __real_malloc(((size_t)calls + 1) * sizeof *firsts);
    *count = 0;
    if (sorted == NULL || firsts == NULL) abort();
    for (long i = 0; i < calls; i++) sorted[i] = (numbered_way){state.ways[i], i};
    qsort(sorted, (size_t)calls, sizeof *sorted, by_way);
    for (long i = 0; i < calls; i++)
        if (i == 0 || sorted[i].way != sorted[i - 1].way) firsts[(*count)++] = sorted[i].call;
    qsort(firsts, *count, sizeof *firsts, by_number);
    free(sorted);
    free(state.ways);
    state.ways = NULL;
    return firsts;
}

/* ---- what fails ---------------------------------------------------------- */

WRAP(void *, malloc, (size_t size)) { return failing_memory_now() ? NULL : __real_malloc(size); }
WRAP(void *, calloc, (size_t count, size_t size)) { return failing_memory_now() ? NULL : __real_calloc(count, size); }
WRAP(void *, realloc, (void *old, size_t size)) { return failing_memory_now() ? NULL : __real_realloc(old, size); }
WRAP(char *, strdup, (const char *text)) { return failing_memory_now() ? NULL : __real_strdup(text); }
WRAP(FILE *, fopen, (const char *path, const char *mode)) { return failing_memory_now() ? NULL : __real_fopen(path, mode); }
WRAP(DIR *, opendir, (const char *path)) { return failing_memory_now() ? NULL : __real_opendir(path); }

WRAP(void *, aligned_alloc, (size_t alignment, size_t size)) {
    return failing_memory_now() ? NULL : __real_aligned_alloc(alignment, size);
}

static size_t whole_pages(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (size + page - 1) / page * page;
}

static void count_mapped(size_t more, size_t less) {
    pthread_mutex_lock(&state.lock);
    state.mapped = state.mapped + more - less;
    pthread_mutex_unlock(&state.lock);
}

WRAP(void *, mmap, (void *address, size_t size, int protection, int flags, int file, off_t offset)) {
    if (failing_memory_now()) return MAP_FAILED;
    void *mapped = __real_mmap(address, size, protection, flags, file, offset);
    if (mapped != MAP_FAILED) count_mapped(whole_pages(size), 0);
    return mapped;
}

WRAP(int, munmap, (void *address, size_t size)) {
    count_mapped(0, whole_pages(size));
    return __real_munmap(address, size);
}

size_t failing_memory_mapped(void) { return state.mapped; }

int failing_memory_open_files(void) {
    DIR *files = __real_opendir("/proc/self/fd");
    int count = -3; /* ., .. and the directory itself */
    while (files != NULL && readdir(files) != NULL) count++;
    if (files != NULL) closedir(files);
    return count;
}
