/* The judge: attention in float64, one request at a time, unsplit, as include/relay/plan.h
 * states it.  It shares no code with the library: a mistake would have to be made twice. */
#ifndef RELAY_CHECK_ORACLE_H
#define RELAY_CHECK_ORACLE_H

#include <stdint.h>

typedef struct oracle_attention {
    int32_t num_heads, num_kv_heads, head_dim;
    double scale, soft_cap;       /* soft_cap 0 = none */
    int64_t window, sink_tokens;  /* window 0 = none */
    const double *slopes;         /* [num_heads], or NULL */
    const double *sinks;          /* [num_heads], or NULL */
} oracle_attention;

/* One request: all its tokens from position 0 on; the query rows are its last tokens. */
typedef struct oracle_sequence {
    int64_t tokens, rows;
    const double *query; /* [rows][num_heads][head_dim] */
    const double *key;   /* [tokens][num_kv_heads][head_dim] */
    const double *value; /* likewise */
} oracle_sequence;

/* The answer, and what a tolerance needs to know of it. */
typedef struct oracle_answer {
    double *out;       /* [rows][num_heads][head_dim] */
    double *lse;       /* [rows][num_heads]; -INFINITY for a row that sees nothing */
    double *spread;    /* like out: sum of p * |v|, so how much cancelled */
    double *magnitude; /* like lse: largest scale * sum |q k| + |bias| among the tokens that
                          carry weight: a float32 score is off by some ulps of that */
} oracle_answer;

/* Returns 0, or -1 for want of memory. */
int oracle_attend(const oracle_attention *attention, const oracle_sequence *sequence,
                  const oracle_answer *answer);

/* Merges `parts` pairs (o, lse), o being [head_dim]; +INFINITY is read as -INFINITY. */
void oracle_fuse(int32_t parts, int32_t head_dim, const double *const *out, const double *lse,
                 double *fused, double *fused_lse, double *spread);

#endif
