/* The kernels behind a matrix product, and the layouts that they read.
 *
 * Weights lie in panels of ENG_PANEL output columns.  A bf16 panel is [in/2][ENG_PANEL][2]: the
 * two numbers of a pair are neighbours along the input, which is what the dot instructions and
 * the tile unit want and what two cheap operations widen to f32.  An f32 panel is [in][ENG_PANEL].
 * The input length is padded with zeros to a multiple of ENG_INPUT_STEP.
 *
 * Every kernel adds the products of one output in an order that depends on the input length only,
 * so a row's result has the same bits whatever other rows are computed beside it. */
#ifndef RELAY_ENGINE_LINEAR_KERNELS_H
#define RELAY_ENGINE_LINEAR_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

enum { ENG_PANEL = 32, ENG_INPUT_STEP = 32, ENG_TILE_ROWS = 16, ENG_MAX_KERNEL_ROWS = 256 };

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

/* y[rows][ENG_PANEL] = x times one panel; rows <= the kernel's max_rows, `in` the padded length. */
typedef void (*eng_panel_fn)(int32_t rows, int64_t in, const void *x, const void *panel, float *y, int64_t y_stride);

typedef struct eng_linear_kernel {
    const char *name;
    eng_rows_layout x_layout;
    bool weights_bf16;
    int32_t max_rows;
    eng_panel_fn panel;
    void (*thread_begin)(void); /* NULL or what a thread calls around its panels */
    void (*thread_end)(void);
} eng_linear_kernel;

extern const eng_linear_kernel eng_linear_bf16_scalar, eng_linear_f32_scalar;
#ifdef ENG_LINEAR_X86
extern const eng_linear_kernel eng_linear_bf16_avx2, eng_linear_f32_avx2;
extern const eng_linear_kernel eng_linear_bf16_avx512, eng_linear_f32_avx512;
extern const eng_linear_kernel eng_linear_bf16_avx512bf16;
extern const eng_linear_kernel eng_linear_bf16_amx;
#endif

/* The kernels this CPU can run, best first among those of one kind; NULL past the end. */
const eng_linear_kernel *eng_linear_kernel_at(int index);

/* The kernel for weights kept as bf16 or f32; with `round_x` one that may round activations to bf16. */
const eng_linear_kernel *eng_linear_choose(bool weights_bf16, bool round_x);

/* Whether rounding activations to bf16 makes products with bf16 weights faster on this CPU. */
bool eng_linear_prefers_bf16(void);

#endif
