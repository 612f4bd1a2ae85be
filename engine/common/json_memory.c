#include "json_memory.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* This thread's use of jansson.  A parse has a way out, and lists what jansson holds, to free it there. */
static _Thread_local struct {
    bool starved;
    jmp_buf *way_out; /* NULL: no parse */
    void **blocks;
    size_t count, room;
} watch;

static bool list_block(void *block) {
    if (watch.count == watch.room) {
        size_t larger = watch.room * 2 + 64;
        void **moved = larger > SIZE_MAX / sizeof *moved ? NULL : realloc(watch.blocks, larger * sizeof *moved);
        if (moved == NULL) return false;
        watch.blocks = moved;
        watch.room = larger;
    }
    watch.blocks[watch.count++] = block;
    return true;
}

/* Mostly what was listed last. */
static void unlist_block(const void *block) {
    for (size_t i = watch.count; i-- > 0;) {
        if (watch.blocks[i] != block) continue;
        watch.blocks[i] = watch.blocks[--watch.count];
        return;
    }
}

static void *watched_malloc(size_t size) {
    void *block = malloc(size);
    if (watch.way_out == NULL) {
        if (block == NULL) watch.starved = true;
        return block;
    }
    if (block != NULL && list_block(block)) return block;
    free(block);
    longjmp(*watch.way_out, 1);
}

static void watched_free(void *block) {
    if (watch.way_out != NULL && block != NULL) unlist_block(block);
    free(block);
}

/* What jansson has allocated before came from malloc, too, so it can be freed as it is. */
static void install(void) { json_set_alloc_funcs(watched_malloc, watched_free); }

void eng_json_watch(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install);
    watch.starved = false;
}

bool eng_json_starved(void) { return watch.starved; }

/* False: jansson was refused memory and has been left. */
static bool load(const char *text, size_t size, size_t flags, json_error_t *detail, json_t **root) {
    jmp_buf back;
    watch.way_out = &back;
    if (setjmp(back) != 0) return false;
    *root = json_loadb(text, size, flags, detail);
    return true;
}

static void free_blocks(void) {
    while (watch.count > 0) free(watch.blocks[--watch.count]);
}

json_t *eng_json_parse(const char *text, size_t size, size_t flags, json_error_t *detail) {
    json_t *root = NULL;
    eng_json_watch();
    watch.starved = !load(text, size, flags, detail, &root);
    watch.way_out = NULL;
    if (watch.starved) {
        free_blocks();
        root = NULL;
        detail->line = detail->column = -1;
        snprintf(detail->text, sizeof detail->text, "out of memory");
    }
    free(watch.blocks);
    watch.blocks = NULL;
    watch.count = watch.room = 0;
    return root;
}
