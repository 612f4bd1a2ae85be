/* The one header that kernels/ knows: what a kernel is given, what it must do, and the
 * table that a device carries.
 *
 * The micro-kernel: online softmax over a run of tokens
 * -----------------------------------------------------
 * `attend` continues the attention of `rows` query rows over tokens [begin, end) of one kv
 * head of one span.  A row's running state is (acc[D], max, sum):
 *
 *     max = largest score so far (natural units, -INFINITY while none)
 *     sum = sum of exp(score - max),   acc = sum of exp(score - max) * value
 *
 * A row starts as (0, -INFINITY, 0) and several spans may be attended one after the other.
 * A kernel may keep `max` below the true maximum by up to 8 / log2(e) (lazy rescaling): state
 * is meaningful only as a whole.  Contract:
 *   - a row sees token n of the span iff (lo[row] <= n < hi[row]) or n < sinks[row];
 *     what lies outside is not allowed to reach the state, NaN included, but memory of the
 *     tile around it may be read (packed padding is zero; paged and contiguous memory is
 *     read for tokens in [begin, end) alone);
 *   - a row's result depends on its own query, range and the tokens, never on which other rows
 *     are in the call (unless the kernel is marked RELAYI_BITS_BY_CALL: then up to rounding);
 *   - score = soft_cap(scale * <q, k>) + slope * (span position + n - query position);
 *   - NaN in a visible query, key or value makes the row NaN;
 *   - accumulation is float32; a kernel may round probabilities (and queries, if it is chosen
 *     only for 16-bit queries) to bf16 when K/V are bf16;
 *   - nothing is allocated; scratch is the caller's.
 */
#ifndef RELAY_KERNEL_H
#define RELAY_KERNEL_H

#include "relay/base.h"
#include "packed.h"

/* Rows of one call, at most: bounds every scratch area. */
#define RELAYI_MAX_ROWS 256

/* K and V of one kv head of one span. */
typedef struct relayi_kv {
    int32_t packed;  /* 1: key/value point at the head's packed K and V areas */
    const void *key; /* else: element (token n, dim d) of kv head h's K is at
                        block(n) * key_block_stride + (n % block_size) * key_token_stride + d */
    const void *value;
    const int32_t *block_table; /* NULL: one block that holds all tokens */
    int32_t block_size;
    int64_t key_block_stride, key_token_stride;
    int64_t value_block_stride, value_token_stride;
} relayi_kv;

/* What one query row sees of the span; token numbers count from the span's start. */
typedef struct relayi_range {
    int32_t lo, hi;    /* lo <= n < hi is visible */
    int32_t sinks;     /* n < sinks is visible too */
    int32_t distance;  /* query position - span position (ALiBi: bias = slope * (n - distance)) */
} relayi_range;

/* Memory that the next call will read: `rows` rows of `bytes` bytes, `stride` bytes apart. */
typedef struct relayi_soon {
    const char *at;
    int64_t stride;
    int32_t rows, bytes;
} relayi_soon;

typedef struct relayi_attend_args {
    int32_t rows;     /* 1..RELAYI_MAX_ROWS */
    int32_t head_dim; /* multiple of 8, 8..256 */
    const float *query;        /* [rows][head_dim], unscaled, 64-byte aligned */
    const relayi_range *range; /* [rows] */
    int32_t all_visible;       /* 1: every row sees every token of [begin, end) */
    const float *slope;        /* [rows] ALiBi slopes, or NULL */
    float scale, soft_cap;     /* soft_cap 0 = none */
    relayi_kv kv;
    int32_t begin, end;        /* tokens; 0 <= begin < end; begin is a multiple of RELAYI_TILE */
    float *acc;                /* [rows][head_dim], 64-byte aligned rows where head_dim % 16 == 0 */
    float *max;                /* [rows] */
    float *sum;                /* [rows] */
    void *scratch;             /* `scratch_bytes` of the kernel, 64-byte aligned, this thread's */
    const relayi_soon *soon;   /* [num_soon]: of K and of V in turns; a hint, for a kernel that has time to fetch */
    int32_t num_soon;
} relayi_attend_args;

typedef void relayi_attend_fn(const relayi_attend_args *args);

/* The same for several kv heads: the calls differ in query, kv, acc, max, sum and slope alone, and
 * the first one's `soon` stands for all. */
typedef void relayi_attend_heads_fn(const relayi_attend_args *calls, int32_t num_calls);

/* Packs `count` <= 64 tokens (from kv, which is not packed, starting at token `begin`) as tile
 * number 0 at key_tile and value_tile, padding up to 64 with zeros. */
typedef void relayi_pack_fn(const relayi_kv *kv, int32_t head_dim, int32_t begin, int32_t count,
                            void *key_tile, void *value_tile);

/* Features beyond lo/hi ranges that an attend kernel computes; what is not set goes to the
 * reference kernel. */
enum {
    RELAYI_DOES_SOFT_CAP = 1,
    RELAYI_DOES_ALIBI = 2,
    RELAYI_DOES_SINK_TOKENS = 4,
    RELAYI_DOES_ALL = 7,
    RELAYI_BITS_BY_CALL = 8 /* a row's last bits depend on the rows beside it: for `few` alone */
};

/* One attend kernel with what the driver must know of it, as data. */
typedef struct relayi_attend_kernel {
    const char *name;          /* relayi_attend_<kv dtype>[_dot]_<isa> */
    relayi_attend_fn *attend;  /* packed, paged and contiguous K/V */
    int32_t features;          /* RELAYI_DOES_* */
    int32_t needs_16bit_query; /* 1: rounds queries to bf16, so only for bf16 queries */
    int32_t head_dim_multiple; /* takes head dims that are a multiple of this, up to 256 */
    int32_t row_block;         /* rows that share one pass over a K/V tile: stacking pays in
                                  multiples of this */
    int32_t gflops;            /* rough rate of one thread, for the cost model; 0 = scalar */
    size_t scratch_bytes;      /* for RELAYI_MAX_ROWS rows of head dim 256 */
    /* Another kernel for the same calls, in the same scratch, that is faster where K/V are not
     * packed and a call has up to `few_rows` rows; its bits differ.  0: there is none. */
    relayi_attend_heads_fn *few;
    int32_t few_rows;
} relayi_attend_kernel;

enum { RELAYI_DT_F32, RELAYI_DT_F16, RELAYI_DT_BF16, RELAYI_NUM_DT };

/* The table: filled with the reference, then overwritten family by family as far as the CPU's
 * flags, and what is preferred on it, go. */
typedef struct relayi_kernels {
    relayi_attend_kernel attend[RELAYI_NUM_DT];     /* by K/V dtype, any query dtype */
    relayi_attend_kernel attend_16bit[RELAYI_NUM_DT]; /* by K/V dtype, for 16-bit queries of the
                                                       same dtype as K/V */
    relayi_pack_fn *pack[RELAYI_NUM_DT];
    /* Fusing for one (row, head): out = sum_i w_i acc_i / denominator, lse, from `parts` states
     * whose accs are `acc_stride` floats apart and max/sum `stat_stride` floats apart.  A sink
     * logit (NULL = none) adds exp(sink) to the denominator.  Writes head_dim floats and, if
     * not NULL, the lse. */
    void (*finish)(int32_t parts, int32_t head_dim, const float *acc, int64_t acc_stride,
                   const float *max, const float *sum, int64_t stat_stride, const float *sink,
                   float *out, float *lse);
    /* n elements between float32 and a 16-bit dtype, to nearest, ties to even, NaN kept. */
    void (*f32_to_bf16)(const float *from, uint16_t *to, int64_t n);
    void (*f32_to_f16)(const float *from, uint16_t *to, int64_t n);
    void (*bf16_to_f32)(const uint16_t *from, float *to, int64_t n);
    void (*f16_to_f32)(const uint16_t *from, float *to, int64_t n);
} relayi_kernels;

/* CPU flags.  Capability: what may be executed.  Preference: what is fast though a lesser
 * instruction could do it. */
enum {
    RELAYI_CPU_AVX2 = 1 << 0,       /* AVX2, FMA, F16C, OS saves YMM */
    RELAYI_CPU_AVX512 = 1 << 1,     /* F, BW, DQ, VL, OS saves ZMM */
    RELAYI_CPU_AVX512BF16 = 1 << 2, /* VDPBF16PS */
    RELAYI_CPU_AMX = 1 << 3,        /* AMX-TILE, AMX-BF16, permission granted by the OS */
    RELAYI_CPU_FAST_BF16_DOT = 1 << 8 /* VDPBF16PS outruns f32 FMA on this model */
};

/* The ladder: each overwrites the entries that it does better. */
void relayi_kernels_ref(relayi_kernels *table);
void relayi_kernels_x86(relayi_kernels *table, uint32_t flags);

/* Peak rates of the families, for calibration: runs about `seconds` on the calling thread and
 * returns GFLOP/s (a multiply-add counts 2). */
double relayi_peak_f32(uint32_t flags, double seconds);
double relayi_peak_bf16(uint32_t flags, double seconds);

#endif
