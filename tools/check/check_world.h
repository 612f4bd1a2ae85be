/* A whole problem of the interface: a plain description (chk_case), its tensors laid out in
 * guarded memory (chk_world), the library's answer and the oracle's. */
#ifndef RELAY_CHECK_WORLD_H
#define RELAY_CHECK_WORLD_H

#include "check.h"
#include "check_data.h"

enum { CHK_MAX_SEGMENTS = 16, CHK_MAX_REQUESTS = 512, CHK_MAX_SPANS = CHK_MAX_SEGMENTS + CHK_MAX_REQUESTS };

/* Tokens of one span.  Token n of it is token (first + n) of stream `content`, so two cases can
 * cut the same tokens differently. */
typedef struct chk_span {
    relay_kv_layout layout;
    int32_t length, extra; /* tokens that the prompt or tensor has beyond the length: NaN */
    uint64_t content;
    int64_t first;
} chk_span;

typedef struct chk_segment {
    int32_t parent, first, count;
    chk_span kv;
} chk_segment;

typedef struct chk_request {
    int32_t rows;
    uint64_t query; /* stream of the queries, by global position */
    chk_span own;
} chk_request;

typedef enum chk_lse { CHK_LSE_NONE, CHK_LSE_TH, CHK_LSE_HT, CHK_LSE_PADDED, CHK_NUM_LSE } chk_lse;

typedef struct chk_case {
    uint64_t seed;
    chk_kind kind;
    double value_size; /* as in chk_recipe */
    relay_attention attention;
    relay_strategy strategy;
    int32_t repeatable, threads;
    int32_t num_segments, num_requests; /* requests in batch order */
    chk_segment segments[CHK_MAX_SEGMENTS];
    chk_request requests[CHK_MAX_REQUESTS];
    int32_t order[CHK_MAX_REQUESTS]; /* position -> request; used if `ordered` */
    bool ordered;
    int32_t block_size, spare_rows; /* rows of query and output beyond the plan's */
    chk_form query_form, key_form, value_form, output_form;
    chk_lse lse;
} chk_case;

/* Heads 4/2, head dim 64, f32, uniform data, no request. */
chk_case chk_case_defaults(uint64_t seed);
/* Appends; both return the index.  `first` counts along the order. */
int32_t chk_add_segment(chk_case *k, int32_t parent, int32_t first, int32_t count, relay_kv_layout layout,
                        int32_t length);
int32_t chk_add_request(chk_case *k, int32_t rows, relay_kv_layout layout, int32_t length);
/* Global position of a request's first own token, and the request at a position of the order. */
int32_t chk_request_at(const chk_case *k, int32_t position);
int64_t chk_shared_tokens(const chk_case *k, int32_t request);
int64_t chk_total_rows(const chk_case *k);

/* A span in memory. */
typedef struct chk_placed {
    void *key, *value; /* dense [length][Hkv][D] as stored: what the oracle reads */
    chk_buffer blocks; /* PAGED: ids */
    chk_tensor contiguous[2];
    relay_prompt *prompt;
} chk_placed;

typedef struct chk_world {
    const chk_case *plain;
    relay_device *device;
    chk_placed spans[CHK_MAX_SPANS]; /* segments, then the requests' own */
    relay_prompt_cache *cache;
    chk_tensor pool[2]; /* keys, values */
    int32_t num_blocks;
    relay_kv_tensors contiguous[CHK_MAX_SPANS];
    chk_tensor query, output, lse;
    chk_buffer slopes, sinks;
    int32_t query_start[CHK_MAX_REQUESTS + 1];
} chk_world;

/* Lays a case out for one device; a failure has been reported.  Free it either way. */
bool chk_world_make(chk *c, const chk_case *plain, chk_world *world);
void chk_world_free(chk_world *world);

/* Sets the forest from the case and runs it.  `forest` is made here if NULL. */
bool chk_world_run(chk *c, chk_world *world, const relay_forest *forest, chk_result *got);
bool chk_world_run_twice(chk *c, chk_world *world, chk_result *first, chk_result *second); /* one plan */
bool chk_world_forest(chk *c, const chk_world *world, relay_forest **forest);
bool chk_world_expect(chk *c, const chk_world *world, chk_result *want);

/* Runs the case once and compares with the oracle. */
void chk_case_check(chk *c, const chk_case *plain);

/* Words for labels: "4/2x64 f32/bf16/f32 gap-100 window 7 ..." */
const char *chk_case_text(const chk_case *k, char *text, size_t size);

#endif
