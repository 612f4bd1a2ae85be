/* What the checker computes on: repeatable random numbers, numbers as they are stored, the kinds
 * of data, and buffers that notice a touch outside them. */
#ifndef RELAY_CHECK_DATA_H
#define RELAY_CHECK_DATA_H

#include <stdbool.h>

#include "relay/base.h"

/* ---- random numbers ------------------------------------------------------ */

typedef struct chk_rng {
    uint64_t state;
} chk_rng;

/* One number out of several, for giving every token its own stream. */
uint64_t chk_mix(uint64_t a, uint64_t b);
chk_rng chk_rng_at(uint64_t seed, uint64_t stream);
uint64_t chk_next(chk_rng *rng);
double chk_uniform(chk_rng *rng, double low, double high);
int32_t chk_between(chk_rng *rng, int32_t low, int32_t high); /* both included */
bool chk_chance(chk_rng *rng, int32_t percent);
void chk_shuffle(chk_rng *rng, int32_t *items, int32_t count);
#define CHK_PICK(rng, array) \
    ((array)[chk_between((rng), 0, (int32_t)(sizeof(array) / sizeof((array)[0])) - 1)])

/* ---- numbers as stored --------------------------------------------------- */

double chk_load(const void *base, relay_dtype dtype, int64_t index);
/* Rounds to nearest, ties to even, by float64 arithmetic and not by moving bits about. */
void chk_store(void *base, relay_dtype dtype, int64_t index, double value);
/* Makes every element NaN. */
void chk_poison(void *base, relay_dtype dtype, int64_t count);

/* ---- kinds of data ------------------------------------------------------- */

typedef enum chk_kind {
    CHK_UNIFORM,  /* scores of a standard deviation of about 1 */
    CHK_EQUAL,    /* every key the same: equal scores */
    CHK_DOMINANT, /* now and then a token 30 above the others */
    CHK_STAIRS,   /* scores that rise by 1 a token: a new maximum at each */
    CHK_GAP100,   /* half of the tokens 100 below */
    CHK_GAP1E4,   /* half of the tokens 10000 below */
    CHK_NAN,      /* uniform, with NaN in some queries, keys and values */
    CHK_INF_SCORES, /* infinities in queries and keys: scores that are infinite, mostly -INFINITY */
    CHK_INF_VALUES, /* infinities in values, under weights of ordinary size */
    CHK_NUM_KINDS
} chk_kind;

const char *chk_kind_name(chk_kind kind);

typedef struct chk_recipe {
    uint64_t seed;
    chk_kind kind;
    int32_t head_dim;
    double scale; /* of the softmax */
    double value_size; /* values lie between minus and plus it; 0: 1 */
} chk_recipe;

/* The vectors of token `position` of stream `content`: a function of their arguments alone, so
 * the same tokens can be cut into spans in many ways.  `to` has head_dim elements. */
void chk_key(const chk_recipe *recipe, uint64_t content, int64_t position, int32_t head, double *to);
void chk_value(const chk_recipe *recipe, uint64_t content, int64_t position, int32_t head, double *to);
void chk_query(const chk_recipe *recipe, uint64_t content, int64_t position, int32_t head, double *to);

/* ---- buffers ------------------------------------------------------------- */

/* Memory that ends (but for alignment) where a page without access begins, and has a pattern
 * before it and in what alignment leaves after it. */
typedef struct chk_buffer {
    void *data;
    size_t bytes;
    unsigned char *map;
    size_t map_bytes, lead, tail;
} chk_buffer;

/* `align`: of data; the element size puts the end exactly at the guard page. */
bool chk_buffer_make(chk_buffer *buffer, size_t bytes, size_t align);
void chk_buffer_fill(chk_buffer *buffer, unsigned char byte);
void chk_buffer_read_only(const chk_buffer *buffer, bool read_only); /* a write then faults */
bool chk_buffer_intact(const chk_buffer *buffer);
void chk_buffer_free(chk_buffer *buffer);

/* ---- tensors in such buffers --------------------------------------------- */

typedef enum chk_form {
    CHK_DENSE,
    CHK_PADDED,     /* odd gaps after every dimension */
    CHK_HEADS_FIRST, /* the head dimension outside the token dimension in memory */
    CHK_NUM_FORMS
} chk_form;

typedef struct chk_tensor {
    relay_tensor view;
    chk_buffer buffer;
    int64_t elements; /* from the first to the last, gaps included */
} chk_tensor;

/* `shape` has ndim entries of which the last is the head dim and the one before the heads (for
 * a 2-d tensor: tokens, heads); all elements are NaN. */
bool chk_tensor_make(chk_tensor *tensor, relay_dtype dtype, chk_form form, int32_t ndim,
                     const int64_t *shape);
int64_t chk_tensor_at(const relay_tensor *view, int64_t i, int64_t j, int64_t k, int64_t l);
void chk_tensor_free(chk_tensor *tensor);

#endif
