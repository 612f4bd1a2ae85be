/* The kernels behind a matrix product, and the layouts that they read.
 *
 * Weights lie in panels of ENG_PANEL output columns.  A bf16 panel is [in/2][ENG_PANEL][2]: the
 * two numbers of a pair are neighbours along the input, which is what the dot instructions and
 * the tile unit want and what two cheap operations widen to f32.  An f32 panel is [in][ENG_PANEL].
 * The input length is padded with zeros to a multiple of ENG_INPUT_STEP.
 *
 * Every kernel adds the products of one output one after the other along the input, in an order that
 * depends on the input length only, and can stop anywhere and go on from the sum in memory.  So a row's
 * result has the same bits whatever other rows are computed beside it, and however the input is cut. */
#ifndef RELAY_ENGINE_LINEAR_KERNELS_H
#define RELAY_ENGINE_LINEAR_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

enum { ENG_PANEL = 32, ENG_INPUT_STEP = 32, ENG_TILE_ROWS = 16 };

/* How a kernel wants the activations. */
typedef enum eng_rows_layout {
    ENG_ROWS_F32,  /* [rows][eng_x_stride(in)] */
    ENG_ROWS_BF16, /* [rows][eng_x_stride(in)] */
    ENG_TILES_BF16 /* [rows/16][in/32][16][32], missing rows zero */
} eng_rows_layout;

/* Rows a power of two apart would all fall into one set of the first-level cache. */
static inline int64_t eng_x_stride(int64_t in) {
    return in + ENG_INPUT_STEP;
}

/* A few rows times a part of one panel. */
typedef struct eng_run {
    int32_t rows;         /* 1 to the kernel's max_rows */
    int64_t in;           /* the padded input length */
    int64_t first, count; /* numbers of it, multiples of ENG_INPUT_STEP */
    const void *x;        /* in the kernel's layout, from number 0 */
    const char *panel;    /* from number 0 */
    float *sums;          /* [rows][ENG_PANEL]: begun where `first` is 0, else added to */
    const char *ahead;    /* what to fetch into the cache meanwhile, */
    int32_t ahead_step;   /* this many bytes with each ENG_INPUT_STEP numbers */
    int64_t ahead_x;      /* the same for each tile of activations: where from it, */
    int32_t ahead_x_size; /* and how many bytes */
} eng_run;

typedef void (*eng_run_fn)(const eng_run *run);

/* Rounds rows of `in` numbers into [padded / ENG_INPUT_STEP][tile_rows][ENG_INPUT_STEP], with zeros for the
 * numbers and rows that are missing. */
typedef void (*eng_pack_fn)(int32_t rows, int32_t tile_rows, int64_t in, int64_t padded, const float *x,
                            int64_t x_stride, uint16_t *to);

typedef struct eng_linear_kernel {
    const char *name;
    eng_rows_layout x_layout;
    bool weights_bf16;
    int32_t max_rows;
    eng_run_fn run;
    eng_pack_fn pack;           /* NULL with ENG_ROWS_F32 */
    void (*thread_begin)(void); /* NULL or what a thread calls around its runs */
    void (*thread_end)(void);
} eng_linear_kernel;

extern const eng_linear_kernel eng_linear_bf16_scalar, eng_linear_f32_scalar;
#ifdef ENG_LINEAR_X86
extern const eng_linear_kernel eng_linear_bf16_avx2, eng_linear_f32_avx2;
extern const eng_linear_kernel eng_linear_bf16_avx512, eng_linear_f32_avx512;
extern const eng_linear_kernel eng_linear_bf16_avx512bf16;
extern const eng_linear_kernel eng_linear_bf16_amx;
void eng_pack_bf16_avx512bf16(int32_t rows, int32_t tile_rows, int64_t in, int64_t padded, const float *x,
                              int64_t x_stride, uint16_t *to);
#endif

/* The kernels this CPU can run, best first among those of one kind; NULL past the end. */
const eng_linear_kernel *eng_linear_kernel_at(int index);

/* The kernel for weights kept as bf16 or f32; with `round_x` one that may round activations to bf16. */
const eng_linear_kernel *eng_linear_choose(bool weights_bf16, bool round_x);

/* Whether rounding activations to bf16 makes products with bf16 weights faster on this CPU. */
bool eng_linear_prefers_bf16(void);

#endif
