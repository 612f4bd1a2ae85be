#include "linear_kernels.h"

#include <immintrin.h>

/* Tiles 0-3 accumulate 32 rows by 32 columns, 4-5 hold activations, 6-7 weights. */
enum { MAX_ROWS = 2 * ENG_TILE_ROWS, TILE_BYTES = 1024, PANEL_STEP = 16 * 4 * ENG_PANEL };

typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

/* In memory for good: gcc 12 takes the intrinsic for a read of 8 bytes and would not store the rest. */
static const tile_config config = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {ENG_TILE_ROWS, ENG_TILE_ROWS, ENG_TILE_ROWS, ENG_TILE_ROWS, ENG_TILE_ROWS, ENG_TILE_ROWS, ENG_TILE_ROWS,
             ENG_TILE_ROWS},
};

static void thread_begin(void) {
    _tile_loadconfig(&config);
}

static void thread_end(void) {
    _tile_release();
}

/* Into the second-level cache: the first one holds the run of weights that all rows pass by. */
static inline void fetch(const char *at, int32_t bytes) {
    for (int32_t i = 0; i < bytes; i += 64) _mm_prefetch(at + i, _MM_HINT_T1);
}

/* Sums of 16 rows, in two tiles; their numbers are taken as text. */
#define BEGIN(left, right, run, sums)                              \
    do {                                                           \
        if ((run)->first == 0) {                                   \
            _tile_zero(left);                                      \
            _tile_zero(right);                                     \
        } else {                                                   \
            _tile_loadd(left, sums, 4 * ENG_PANEL);                \
            _tile_loadd(right, (sums) + 16, 4 * ENG_PANEL);        \
        }                                                          \
    } while (0)

/* Activations are loaded as a stream, which leaves the weights in the first-level cache. */
static void rows_16(const eng_run *run) {
    const char *x = (const char *)run->x + run->first / ENG_INPUT_STEP * TILE_BYTES, *ahead = run->ahead;
    const char *w = run->panel + run->first * 2 * ENG_PANEL, *end = w + run->count * 2 * ENG_PANEL;
    BEGIN(0, 1, run, run->sums);
    for (; w < end; x += TILE_BYTES, w += PANEL_STEP, ahead += run->ahead_step) {
        fetch(ahead, run->ahead_step);
        _tile_stream_loadd(4, x, 64);
        _tile_loadd(6, w, 4 * ENG_PANEL);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w + 64, 4 * ENG_PANEL);
        _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, run->sums, 4 * ENG_PANEL);
    _tile_stored(1, run->sums + 16, 4 * ENG_PANEL);
}

static void rows_32(const eng_run *run) {
    const char *x = (const char *)run->x + run->first / ENG_INPUT_STEP * TILE_BYTES, *ahead = run->ahead;
    const char *w = run->panel + run->first * 2 * ENG_PANEL, *end = w + run->count * 2 * ENG_PANEL;
    const char *x1 = x + run->in / ENG_INPUT_STEP * TILE_BYTES;
    float *sums1 = run->sums + ENG_TILE_ROWS * ENG_PANEL;
    BEGIN(0, 1, run, run->sums);
    BEGIN(2, 3, run, sums1);
    for (; w < end; x += TILE_BYTES, x1 += TILE_BYTES, w += PANEL_STEP, ahead += run->ahead_step) {
        fetch(ahead, run->ahead_step);
        fetch(x + run->ahead_x, run->ahead_x_size);
        fetch(x1 + run->ahead_x, run->ahead_x_size);
        _tile_stream_loadd(4, x, 64);
        _tile_loadd(6, w, 4 * ENG_PANEL);
        _tile_stream_loadd(5, x1, 64);
        _tile_loadd(7, w + 64, 4 * ENG_PANEL);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, run->sums, 4 * ENG_PANEL);
    _tile_stored(1, run->sums + 16, 4 * ENG_PANEL);
    _tile_stored(2, sums1, 4 * ENG_PANEL);
    _tile_stored(3, sums1 + 16, 4 * ENG_PANEL);
}

/* Whole tiles are computed: there is room behind the last row for them. */
static void run_bf16(const eng_run *run) {
    if (run->rows > ENG_TILE_ROWS) rows_32(run);
    else rows_16(run);
}

const eng_linear_kernel eng_linear_bf16_amx = {
    "bf16_amx", ENG_TILES_BF16, true, MAX_ROWS, run_bf16, eng_pack_bf16_avx512bf16, thread_begin, thread_end};
