#include "linear.h"

#include <omp.h>
#include <stdlib.h>

#include "common/big_memory.h"

static int64_t round_up(int64_t n, int64_t step) {
    return (n + step - 1) / step * step;
}

static size_t panel_bytes(const eng_linear *linear) {
    return (size_t)linear->in_padded * ENG_PANEL * (linear->kernel->weights_bf16 ? 2 : 4);
}

/* Sets every field; the weights are uninitialised. */
static bool prepare(eng_linear *linear, int32_t rows, int32_t in, eng_gate_fn gate, bool round_x,
                    const eng_linear_kernel *kernel, eng_error *err) {
    linear->in = in;
    linear->out = rows;
    linear->in_padded = round_up(in, ENG_INPUT_STEP);
    linear->panels = (int32_t)(round_up(rows, ENG_PANEL) / ENG_PANEL) * (gate ? 2 : 1);
    linear->gate = gate;
    linear->round_x = round_x;
    linear->kernel = kernel;
    size_t each = panel_bytes(linear);
    if (each > SIZE_MAX / 2 / (size_t)linear->panels) return eng_fail(err, "a %d by %d matrix is too large", rows, in);
    linear->bytes = each * (size_t)linear->panels;
    linear->weights = eng_big_alloc(linear->bytes);
    if (linear->weights == NULL) return eng_fail(err, "out of memory for %zu bytes of weights", linear->bytes);
    return true;
}

/* Numbers [first, last) of column n of a panel, from one row of the file. */
static void pack_column(const eng_linear *linear, void *panel, int n, const void *row, eng_dtype dtype, int64_t first,
                        int64_t last) {
    if (!linear->kernel->weights_bf16) {
        float *to = (float *)panel + n;
        for (int64_t i = first; i < last; i++) to[i * ENG_PANEL] = eng_f32_at(row, dtype, i);
        return;
    }
    uint16_t *to = (uint16_t *)panel + 2 * n;
    for (int64_t i = first; i < last; i++) {
        uint16_t half;
        if (dtype == ENG_DTYPE_BF16) memcpy(&half, (const char *)row + 2 * i, sizeof half);
        else half = eng_bf16_of_f32(eng_f32_at(row, dtype, i));
        to[i / 2 * 2 * ENG_PANEL + i % 2] = half;
    }
}

typedef struct part_row {
    const void *data;
    eng_dtype dtype;
} part_row;

static part_row find_row(const eng_linear_part *parts, int64_t row, int32_t in) {
    while (row >= parts->rows) row -= parts++->rows;
    size_t bytes = (size_t)row * (size_t)in * eng_dtype_size(parts->dtype);
    return (part_row){(const char *)parts->data + bytes, parts->dtype};
}

/* The column of y that a panel begins with. */
static int64_t first_column(const eng_linear *linear, int64_t panel) {
    return (linear->gate ? panel / 2 : panel) * ENG_PANEL;
}

/* In short steps along the input, so that what is written stays in the first-level cache. */
static void pack_panel(const eng_linear *linear, const eng_linear_part *parts, int64_t p) {
    char *panel = (char *)linear->weights + (size_t)p * panel_bytes(linear);
    const int64_t first = first_column(linear, p);
    if (linear->gate) parts += p % 2;
    const int columns = linear->out - first < ENG_PANEL ? (int)(linear->out - first) : ENG_PANEL;
    part_row rows[ENG_PANEL];
    for (int n = 0; n < columns; n++) rows[n] = find_row(parts, first + n, linear->in);
    if (linear->in_padded != linear->in || columns < ENG_PANEL) memset(panel, 0, panel_bytes(linear));
    for (int64_t i = 0; i < linear->in; i += ENG_INPUT_STEP) {
        int64_t last = i + ENG_INPUT_STEP < linear->in ? i + ENG_INPUT_STEP : linear->in;
        for (int n = 0; n < columns; n++) pack_column(linear, panel, n, rows[n].data, rows[n].dtype, i, last);
    }
}

static bool all_bf16(const eng_linear_part *parts, int32_t count) {
    for (int32_t i = 0; i < count; i++)
        if (parts[i].dtype != ENG_DTYPE_BF16) return false;
    return true;
}

static bool pack(const eng_linear_part *parts, int32_t count, int64_t rows, int32_t in, eng_gate_fn gate,
                 eng_compute compute, const eng_linear_kernel *kernel, eng_linear *out, eng_error *err) {
    memset(out, 0, sizeof *out);
    if (rows < 1 || rows > INT32_MAX / 2 - ENG_PANEL || in < 1)
        return eng_fail(err, "a matrix has no or too many rows");
    bool bf16 = all_bf16(parts, count);
    bool round_x = compute == ENG_COMPUTE_BF16 || (compute == ENG_COMPUTE_AUTO && bf16 && eng_linear_prefers_bf16());
    if (kernel == NULL) kernel = eng_linear_choose(bf16 || round_x, round_x);
    if (!prepare(out, (int32_t)rows, in, gate, round_x, kernel, err)) return false;
#pragma omp parallel for schedule(dynamic, 1)
    for (int32_t p = 0; p < out->panels; p++) pack_panel(out, parts, p);
    return true;
}

bool eng_linear_pack(const eng_linear_part *parts, int32_t count, int32_t in, eng_compute compute,
                     const eng_linear_kernel *kernel, eng_linear *out, eng_error *err) {
    int64_t rows = 0;
    for (int32_t i = 0; i < count; i++) rows += parts[i].rows;
    return pack(parts, count, rows, in, NULL, compute, kernel, out, err);
}

bool eng_linear_pack_gated(const eng_linear_part *gate, const eng_linear_part *up, eng_gate_fn fn, int32_t in,
                           eng_compute compute, const eng_linear_kernel *kernel, eng_linear *out, eng_error *err) {
    const eng_linear_part parts[] = {*gate, *up};
    return pack(parts, 2, gate->rows, in, fn, compute, kernel, out, err);
}

static uint64_t mix(uint64_t x) { /* splitmix64 */
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* The sign and 7 bits of mantissa are drawn: magnitudes uniform in [scale/2, scale), exactly bf16. */
static void fill_random(uint16_t *weights, size_t count, uint16_t exponent_bits, uint64_t seed) {
    uint64_t *to = (uint64_t *)(void *)weights;
    const uint64_t base = (uint64_t)exponent_bits * 0x0001000100010001u;
    for (size_t i = 0; i < count / 4; i++) to[i] = (mix(seed + i) & 0x807F807F807F807Fu) | base;
}

static void fill_random_panel(const eng_linear *linear, int64_t p, uint16_t exponent_bits, uint64_t seed) {
    uint16_t *panel = (uint16_t *)linear->weights + (size_t)p * (size_t)linear->in_padded * ENG_PANEL;
    fill_random(panel, (size_t)linear->in_padded * ENG_PANEL, exponent_bits, mix(seed) + ((uint64_t)p << 32));
}

bool eng_linear_random(int32_t rows, int32_t in, float scale, uint64_t seed, eng_compute compute, eng_linear *out,
                       eng_error *err) {
    return eng_linear_random_gated(rows, in, scale, NULL, seed, compute, out, err);
}

bool eng_linear_random_gated(int32_t rows, int32_t in, float scale, eng_gate_fn fn, uint64_t seed, eng_compute compute,
                             eng_linear *out, eng_error *err) {
    memset(out, 0, sizeof *out);
    bool round_x = compute == ENG_COMPUTE_BF16 || (compute == ENG_COMPUTE_AUTO && eng_linear_prefers_bf16());
    if (!prepare(out, rows, in, fn, round_x, eng_linear_choose(true, round_x), err)) return false;
    uint16_t exponent_bits = eng_bf16_of_f32(scale / 2) & 0x7F80;
#pragma omp parallel for schedule(dynamic, 1)
    for (int32_t p = 0; p < out->panels; p++) fill_random_panel(out, p, exponent_bits, seed);
    return true;
}

void eng_linear_free(eng_linear *linear) {
    free(linear->weights);
    memset(linear, 0, sizeof *linear);
}

void eng_linear_scratch_free(eng_linear_scratch *scratch) {
    free(scratch->data);
    memset(scratch, 0, sizeof *scratch);
}

static bool grow(eng_linear_scratch *scratch, size_t bytes, eng_error *err) {
    if (bytes <= scratch->bytes) return true;
    eng_linear_scratch_free(scratch);
    scratch->data = eng_big_alloc(bytes);
    if (scratch->data == NULL) return eng_fail(err, "out of memory for %zu bytes of activations", bytes);
    scratch->bytes = bytes;
    return true;
}

/* One product, as its threads see it. */
typedef struct job {
    const eng_linear *linear;
    int32_t rows;
    int64_t rows_padded;
    const float *x;
    int64_t x_stride;
    void *packed_x;
    float *y;
    int64_t y_stride;
    int32_t chunk_rows, group_panels; /* what a thread computes in one go */
    int64_t run;                      /* numbers of the input at a time */
    float *sums;                      /* [threads][group_panels][chunk_rows padded][ENG_PANEL] */
} job;

static void pack_row_f32(const job *j, int64_t r) {
    const eng_linear *linear = j->linear;
    float *to = (float *)j->packed_x + r * eng_x_stride(linear->in_padded);
    const float *x = j->x + r * j->x_stride;
    if (linear->round_x) for (int64_t i = 0; i < linear->in; i++) to[i] = eng_f32_of_bf16(eng_bf16_of_f32(x[i]));
    else memcpy(to, x, (size_t)linear->in * sizeof *x);
    memset(to + linear->in, 0, (size_t)(linear->in_padded - linear->in) * sizeof *to);
}

static void pack_row_bf16(const job *j, int64_t r) {
    const eng_linear *linear = j->linear;
    uint16_t *to = (uint16_t *)j->packed_x + r * eng_x_stride(linear->in_padded);
    linear->kernel->pack(1, 1, linear->in, linear->in_padded, j->x + r * j->x_stride, j->x_stride, to);
}

/* The rows of one tile after the other, so that it is written in one go. */
static void pack_tiles(const job *j, int64_t strip) {
    const eng_linear *linear = j->linear;
    const int64_t first = strip * ENG_TILE_ROWS, left = j->rows - first;
    uint16_t *to = (uint16_t *)j->packed_x + first * linear->in_padded;
    linear->kernel->pack(left < ENG_TILE_ROWS ? (int32_t)left : ENG_TILE_ROWS, ENG_TILE_ROWS, linear->in,
                         linear->in_padded, j->x + first * j->x_stride, j->x_stride, to);
}

/* One of the parts that packing is divided into: a row, or the rows of a tile. */
static void pack_part(const job *j, int64_t part) {
    switch (j->linear->kernel->x_layout) {
    case ENG_ROWS_F32: pack_row_f32(j, part); break;
    case ENG_ROWS_BF16: pack_row_bf16(j, part); break;
    case ENG_TILES_BF16: pack_tiles(j, part); break;
    }
}

static size_t packed_row_bytes(const eng_linear *linear) {
    const size_t in = (size_t)linear->in_padded, stride = (size_t)eng_x_stride(linear->in_padded);
    if (linear->kernel->x_layout == ENG_TILES_BF16) return in * sizeof(uint16_t);
    return stride * (linear->kernel->x_layout == ENG_ROWS_F32 ? sizeof(float) : sizeof(uint16_t));
}

/* ---- how the work is cut ------------------------------------------------- */

/* A run of a panel stays in the first-level cache while all rows of a chunk pass by; a run of the chunk's
 * activations, and the group's sums, stay in the second while all panels of the group do. */
enum { MAX_RUN = 640, MAX_CHUNK_ROWS = 256, MAX_SUMS = 4096, MAX_GROUP = 16, TASKS_PER_THREAD = 4, AHEAD_STEPS = 2 };

static int32_t smaller(int32_t a, int32_t b) {
    return a < b ? a : b;
}

static int32_t choose_group(const job *j, int32_t threads) {
    int32_t group = smaller(smaller(MAX_SUMS / j->chunk_rows, MAX_GROUP), j->linear->panels / (threads * TASKS_PER_THREAD));
    return group < 1 ? 1 : group;
}

/* Few rows read the weights once, in the order in which they lie; with more the sums are taken in runs. */
static void plan_cut(job *j, int32_t threads) {
    const eng_linear *linear = j->linear;
    j->chunk_rows = smaller(j->rows, MAX_CHUNK_ROWS);
    j->run = linear->in_padded;
    j->group_panels = 1;
    if (j->rows > linear->kernel->max_rows) {
        const int64_t runs = (linear->in_padded + MAX_RUN - 1) / MAX_RUN;
        j->run = round_up((linear->in_padded + runs - 1) / runs, ENG_INPUT_STEP);
        j->group_panels = choose_group(j, threads);
    }
    if (linear->gate) j->group_panels += j->group_panels % 2; /* a gate and its up are in one group */
}

/* Numbers of one panel's sums; whole tiles, whatever the kernel. */
static int64_t panel_sums(const job *j) {
    return round_up(j->chunk_rows, ENG_TILE_ROWS) * ENG_PANEL;
}

/* ---- multiplying ---------------------------------------------------------- */

/* A part of the work of one thread: `panels` from `panel` on, rows from `row` on. */
typedef struct task {
    int64_t panel;
    int32_t panels, row, rows;
    float *sums;
} task;

static const char *weights_at(const eng_linear *linear, int64_t panel, int64_t first) {
    const size_t number_bytes = ENG_PANEL * (linear->kernel->weights_bf16 ? 2 : 4);
    if (panel >= linear->panels) panel = linear->panels - 1; /* asked for to be fetched only */
    return (const char *)linear->weights + (size_t)panel * panel_bytes(linear) + (size_t)first * number_bytes;
}

/* The weights that are wanted after run `first` of panel `g` of the task. */
static const char *next_weights(const job *j, const task *t, int32_t g, int64_t first) {
    const bool last_panel = g + 1 == t->panels, last_run = first + j->run >= j->linear->in_padded;
    if (!last_panel) return weights_at(j->linear, t->panel + g + 1, first);
    return last_run ? weights_at(j->linear, t->panel + t->panels, 0) : weights_at(j->linear, t->panel, first + j->run);
}

/* Blocks of rows share the fetching of what comes next; a single one fetches its own weights a little ahead. */
static void plan_ahead(const job *j, const task *t, int32_t g, int32_t blocks, int32_t block, eng_run *run) {
    const int32_t step_bytes = ENG_INPUT_STEP * ENG_PANEL * (j->linear->kernel->weights_bf16 ? 2 : 4);
    if (blocks == 1) {
        run->ahead = run->panel + run->first / ENG_INPUT_STEP * step_bytes + AHEAD_STEPS * step_bytes;
        run->ahead_step = step_bytes;
        return;
    }
    run->ahead_step = (step_bytes / blocks + 63) / 64 * 64;
    run->ahead = next_weights(j, t, g, run->first) + block * (run->count / ENG_INPUT_STEP) * run->ahead_step;
}

/* The panels of a group share the fetching of the next run's activations, each a part of every tile. */
static void plan_ahead_x(const job *j, const task *t, int32_t g, eng_run *run) {
    const int32_t tile_bytes = ENG_TILE_ROWS * ENG_INPUT_STEP * (int32_t)sizeof(uint16_t);
    const int64_t next = run->first + j->run < j->linear->in_padded ? run->first + j->run : 0;
    if (j->linear->kernel->x_layout != ENG_TILES_BF16 || next == run->first) return;
    run->ahead_x_size = (tile_bytes / t->panels + 63) / 64 * 64;
    run->ahead_x = (next - run->first) / ENG_INPUT_STEP * tile_bytes + g * run->ahead_x_size;
    if (g * run->ahead_x_size >= tile_bytes) run->ahead_x_size = 0;
}

/* One run of one panel, all rows of the task. */
static void run_panel(const job *j, const task *t, int32_t g, int64_t first) {
    const eng_linear *linear = j->linear;
    const int32_t most = linear->kernel->max_rows, blocks = (t->rows + most - 1) / most;
    const int64_t left = linear->in_padded - first;
    eng_run run = {.in = linear->in_padded, .first = first, .count = left < j->run ? left : j->run,
                   .panel = weights_at(linear, t->panel + g, 0)};
    plan_ahead_x(j, t, g, &run);
    for (int32_t b = 0; b < blocks; b++) {
        run.rows = smaller(t->rows - b * most, most);
        run.x = (const char *)j->packed_x + (size_t)(t->row + b * most) * packed_row_bytes(linear);
        run.sums = t->sums + g * panel_sums(j) + (int64_t)b * most * ENG_PANEL;
        plan_ahead(j, t, g, blocks, b, &run);
        linear->kernel->run(&run);
    }
}

/* One panel's columns of y, or a gated pair's. */
static void store_panel(const job *j, const task *t, int32_t g) {
    const int64_t column = first_column(j->linear, t->panel + g), left = j->linear->out - column;
    const int32_t columns = left < ENG_PANEL ? (int32_t)left : ENG_PANEL;
    const float *sums = t->sums + g * panel_sums(j), *up = sums + panel_sums(j);
    for (int32_t r = 0; r < t->rows; r++) {
        float *y = j->y + (t->row + r) * j->y_stride + column;
        if (j->linear->gate) j->linear->gate(columns, sums + r * ENG_PANEL, up + r * ENG_PANEL, y);
        else memcpy(y, sums + r * ENG_PANEL, (size_t)columns * sizeof *y);
    }
}

static void run_task(const job *j, const task *t) {
    for (int64_t first = 0; first < j->linear->in_padded; first += j->run)
        for (int32_t g = 0; g < t->panels; g++) run_panel(j, t, g, first);
    for (int32_t g = 0; g < t->panels; g += j->linear->gate ? 2 : 1) store_panel(j, t, g);
}

static void run_group(const job *j, int64_t group, float *sums) {
    const int64_t panel = group * j->group_panels;
    task t = {.panel = panel, .panels = smaller(j->linear->panels - (int32_t)panel, j->group_panels), .sums = sums};
    for (t.row = 0; t.row < j->rows; t.row += j->chunk_rows) {
        t.rows = smaller(j->rows - t.row, j->chunk_rows);
        run_task(j, &t);
    }
}

static void run_job(const job *j) {
    const eng_linear_kernel *kernel = j->linear->kernel;
    const int64_t groups = (j->linear->panels + j->group_panels - 1) / j->group_panels;
    const int64_t parts = kernel->x_layout == ENG_TILES_BF16 ? j->rows_padded / ENG_TILE_ROWS : j->rows;
#pragma omp parallel
    {
        float *sums = j->sums + omp_get_thread_num() * j->group_panels * panel_sums(j);
        if (kernel->thread_begin) kernel->thread_begin();
#pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; part++) pack_part(j, part);
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t group = 0; group < groups; group++) run_group(j, group, sums);
        if (kernel->thread_end) kernel->thread_end();
    }
}

bool eng_linear_apply(const eng_linear *linear, eng_linear_scratch *scratch, int32_t rows, const float *x,
                      int64_t x_stride, float *y, int64_t y_stride, eng_error *err) {
    if (rows < 1) return true;
    const int32_t threads = omp_get_max_threads();
    job j = {.linear = linear, .rows = rows, .rows_padded = rows, .x = x, .x_stride = x_stride, .y = y,
             .y_stride = y_stride};
    if (linear->kernel->x_layout == ENG_TILES_BF16) j.rows_padded = round_up(rows, ENG_TILE_ROWS);
    plan_cut(&j, threads);
    const size_t x_bytes = (size_t)round_up(j.rows_padded * (int64_t)packed_row_bytes(linear), 64);
    const size_t sums_bytes = (size_t)(threads * j.group_panels * panel_sums(&j)) * sizeof(float);
    if (!grow(scratch, x_bytes + sums_bytes, err)) return false;
    j.packed_x = scratch->data;
    j.sums = (float *)(void *)((char *)scratch->data + x_bytes);
    run_job(&j);
    return true;
}
