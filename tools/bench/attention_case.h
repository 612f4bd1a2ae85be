/* One shape of the attention bench, set up in memory: G prompts of S tokens, B requests with U own
 * tokens in shuffled pages, decoding one token each; and the same with a copy of the prompt for
 * each request.  There are as many layers as it takes to leave every cache between two readings of
 * the same byte; all layers hold the same numbers. */
#ifndef RELAY_ATTENTION_CASE_H
#define RELAY_ATTENTION_CASE_H

#include <stdbool.h>

#include "relay/relay.h"

typedef struct attention_shape {
    int32_t heads, kv_heads, head_dim, batch, system, user, groups;
    relay_dtype kv_dtype; /* of queries and outputs too */
} attention_shape;

typedef enum attention_method { METHOD_RELAY, METHOD_PLAIN, METHOD_PRIVATE, NUM_METHODS } attention_method;
extern const char *const attention_method_names[NUM_METHODS];

typedef struct attention_case {
    attention_shape shape;
    relay_device *device;
    relay_prompt_cache *cache[NUM_METHODS]; /* plain shares relay's */
    relay_prompt **prompts[NUM_METHODS];
    int32_t num_prompts[NUM_METHODS];
    int32_t layers[NUM_METHODS];
    relay_forest *forest[NUM_METHODS];
    relay_plan *plan[NUM_METHODS];  /* NULL: not asked for, or too large for memory */
    float *query, *key, *value;     /* rounded to kv_dtype: [B][H][D], [S][Hkv][D] */
    float *user_key, *user_value;   /* [B * U][Hkv][D] */
    void *query_data, *output_data; /* in kv_dtype, [B][H][D] */
    char *key_pool, *value_pool;    /* [layers][blocks][16][Hkv][D] */
    int32_t *tables;                /* [B][blocks of a request] */
    int32_t blocks_each, num_blocks;
    size_t pool_bytes;              /* of one layer's K, or V */
    void *workspace[NUM_METHODS];
    size_t workspace_bytes[NUM_METHODS];
} attention_case;

/* Sets a shape up for the methods of the mask.  Needs about `*bytes` of memory, which it refuses to
 * exceed (then `private` is left out first, and its plan stays NULL).  On failure says why on stderr. */
bool attention_case_open(attention_case *c, relay_device *device, const attention_shape *shape, uint32_t methods,
                         uint64_t max_bytes);
void attention_case_close(attention_case *c);

bool attention_case_run(attention_case *c, attention_method method, int32_t layer);

/* Relative Frobenius error of the last run's output, against float64 on a sample of rows and heads. */
double attention_case_error(const attention_case *c);

#endif
