#include "linear_kernels.h"

#include <immintrin.h>
#include <string.h>

/* Tiles 0-3 accumulate 32 rows by 32 columns, 4-5 hold activations, 6-7 weights. */
enum { MAX_ROWS = ENG_MAX_KERNEL_ROWS, TILE_BYTES = 1024, PANEL_STEP = 16 * 4 * ENG_PANEL, AHEAD = 2 * PANEL_STEP };

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

/* What a step fetches for later: `lines` cache lines from `at`, which moves on by a step's weights. */
typedef struct prefetch {
    const char *at;
    int lines;
} prefetch;

static inline void prefetch_some(prefetch *p) {
    for (int i = 0; i < p->lines; i++) _mm_prefetch(p->at + 64 * i, _MM_HINT_T0);
    p->at += PANEL_STEP;
}

static void rows_16(int64_t steps, const char *x, const char *w, prefetch ahead, float *block) {
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t s = 0; s < steps; s++, x += TILE_BYTES, w += PANEL_STEP) {
        prefetch_some(&ahead);
        _tile_loadd(4, x, 64);
        _tile_loadd(6, w, 4 * ENG_PANEL);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w + 64, 4 * ENG_PANEL);
        _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, block, 4 * ENG_PANEL);
    _tile_stored(1, block + 16, 4 * ENG_PANEL);
}

static void rows_32(int64_t steps, const char *x, const char *w, prefetch ahead, float *block) {
    const char *x1 = x + steps * TILE_BYTES;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = 0; s < steps; s++, x += TILE_BYTES, x1 += TILE_BYTES, w += PANEL_STEP) {
        prefetch_some(&ahead);
        _tile_loadd(4, x, 64);
        _tile_loadd(6, w, 4 * ENG_PANEL);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w + 64, 4 * ENG_PANEL);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, x1, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, block, 4 * ENG_PANEL);
    _tile_stored(1, block + 16, 4 * ENG_PANEL);
    _tile_stored(2, block + 16 * ENG_PANEL, 4 * ENG_PANEL);
    _tile_stored(3, block + 16 * ENG_PANEL + 16, 4 * ENG_PANEL);
}

/* One block of rows fetches its own weights a little ahead; several share the fetching of the next panel,
 * while this one comes from the second-level cache. */
static prefetch plan_prefetch(int32_t index, int32_t blocks, int64_t steps, const char *panel) {
    const int lines = PANEL_STEP / 64;
    if (blocks == 1) return (prefetch){panel + AHEAD, lines};
    const int first = lines * index / blocks, last = lines * (index + 1) / blocks;
    return (prefetch){panel + steps * PANEL_STEP + 64 * first, last - first};
}

static void panel_bf16(int32_t rows, int64_t in, const void *x, const void *panel, float *y, int64_t y_stride) {
    float block[2 * ENG_TILE_ROWS * ENG_PANEL];
    const int64_t steps = in / ENG_INPUT_STEP;
    const int32_t blocks = (rows + 2 * ENG_TILE_ROWS - 1) / (2 * ENG_TILE_ROWS);
    for (int32_t b = 0; b < blocks; b++) {
        const int32_t first = b * 2 * ENG_TILE_ROWS, left = rows - first;
        const int32_t count = left < 2 * ENG_TILE_ROWS ? left : 2 * ENG_TILE_ROWS;
        const char *from = (const char *)x + 2 * b * steps * TILE_BYTES;
        const prefetch ahead = plan_prefetch(b, blocks, steps, panel);
        if (count > ENG_TILE_ROWS) rows_32(steps, from, panel, ahead, block);
        else rows_16(steps, from, panel, ahead, block);
        for (int32_t r = 0; r < count; r++)
            memcpy(y + (first + r) * y_stride, block + r * ENG_PANEL, ENG_PANEL * sizeof *y);
    }
}

const eng_linear_kernel eng_linear_bf16_amx = {
    "bf16_amx", ENG_TILES_BF16, true, MAX_ROWS, panel_bf16, thread_begin, thread_end};
