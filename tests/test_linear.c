/* Every matrix-product kernel of this machine against sums in double, and that a row's bits do not depend
 * on the rows beside it. */
#include "test.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "math/layer_math.h"
#include "math/linear.h"

enum { MAX_ROWS = 70 };

static uint32_t state = 1;

static float draw(void) {
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / (float)(1 << 23) - 1.0f;
}

typedef struct problem {
    int32_t out, in;
    float *w, *x, *y; /* w as the file has it, widened */
    void *file;
    eng_dtype dtype;
} problem;

static uint16_t f16_of_bf16_range(float value) { /* few bits, so exact: sign, exponent, top of the mantissa */
    uint32_t bits = eng_bits_of_f32(value);
    int exponent = (int)(bits >> 23 & 255) - 127 + 15;
    if (exponent < 1) return (uint16_t)(bits >> 31 << 15);
    return (uint16_t)(bits >> 31 << 15 | (uint32_t)exponent << 10 | (bits >> 13 & 0x3FF));
}

static void make_problem(problem *p, int32_t out, int32_t in, eng_dtype dtype) {
    const size_t count = (size_t)out * (size_t)in;
    *p = (problem){.out = out, .in = in, .dtype = dtype};
    p->w = malloc(count * sizeof *p->w);
    p->file = malloc(count * 4);
    p->x = malloc(sizeof *p->x * MAX_ROWS * (size_t)in);
    p->y = malloc(sizeof *p->y * MAX_ROWS * (size_t)(out + 3));
    for (size_t i = 0; i < count; i++) {
        float value = draw();
        uint16_t half = dtype == ENG_DTYPE_BF16 ? eng_bf16_of_f32(value) : f16_of_bf16_range(value);
        if (dtype == ENG_DTYPE_F32) memcpy((float *)p->file + i, &value, sizeof value);
        else memcpy((uint16_t *)p->file + i, &half, sizeof half);
        p->w[i] = eng_f32_at(p->file, dtype, (int64_t)i);
    }
    for (size_t i = 0; i < (size_t)MAX_ROWS * (size_t)in; i++) p->x[i] = draw();
}

static void free_problem(problem *p) {
    free(p->w);
    free(p->file);
    free(p->x);
    free(p->y);
}

/* Largest error relative to the sum of magnitudes; NaN counts as infinite. */
static double worst_error(const problem *p, int32_t rows, bool round_x, bool round_w) {
    double worst = 0;
    for (int32_t r = 0; r < rows; r++)
        for (int32_t n = 0; n < p->out; n++) {
            double sum = 0, size = 1e-30;
            for (int32_t i = 0; i < p->in; i++) {
                float x = p->x[(int64_t)r * p->in + i], w = p->w[(int64_t)n * p->in + i];
                if (round_x) x = eng_f32_of_bf16(eng_bf16_of_f32(x));
                if (round_w) w = eng_f32_of_bf16(eng_bf16_of_f32(w));
                sum += (double)x * w;
                size += fabs((double)x * w);
            }
            double error = fabs(p->y[(int64_t)r * (p->out + 3) + n] - sum) / size;
            if (!(error <= worst)) worst = isnan(error) ? INFINITY : error;
        }
    return worst;
}

static void apply(const eng_linear *linear, eng_linear_scratch *scratch, problem *p, int32_t rows) {
    eng_error err = {""};
    for (int64_t i = 0; i < (int64_t)MAX_ROWS * (p->out + 3); i++) p->y[i] = NAN;
    CHECK(eng_linear_apply(linear, scratch, rows, p->x, p->in, p->y, p->out + 3, &err));
    for (int32_t r = 0; r < rows; r++)
        for (int32_t n = 0; n < 3; n++) CHECK(isnan(p->y[(int64_t)r * (p->out + 3) + p->out + n])); /* the gap */
    if (rows < MAX_ROWS) CHECK(isnan(p->y[(int64_t)rows * (p->out + 3)]));
}

static eng_compute compute_of(const eng_linear_kernel *kernel) {
    return kernel->x_layout == ENG_ROWS_F32 ? ENG_COMPUTE_F32 : ENG_COMPUTE_BF16;
}

static void check_errors(const eng_linear_kernel *kernel, eng_compute compute, int32_t out, int32_t in,
                         eng_dtype dtype) {
    static const int32_t row_counts[] = {1, 2, 3, 5, 6, 7, 11, 12, 13, 15, 16, 17, 31, 32, 33, 64, MAX_ROWS};
    eng_error err = {""};
    eng_linear linear;
    eng_linear_scratch scratch = {0};
    eng_linear_part part = {.dtype = dtype, .rows = out};
    problem p;
    make_problem(&p, out, in, dtype);
    part.data = p.file;
    CHECK_MSG(eng_linear_pack(&part, 1, in, compute, kernel, &linear, &err), "%s", err.text);
    for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++) {
        apply(&linear, &scratch, &p, row_counts[i]);
        double error = worst_error(&p, row_counts[i], compute == ENG_COMPUTE_BF16, linear.kernel->weights_bf16);
        CHECK_MSG(error <= 1e-6, "%s: %d rows, %d by %d: %g", linear.kernel->name, row_counts[i], out, in, error);
    }
    eng_linear_free(&linear);
    eng_linear_scratch_free(&scratch);
    free_problem(&p);
}

/* Row r of every batch size, at every place, has the bits that it has alone, with any number of threads. */
static void check_row_invariance(const eng_linear_kernel *kernel, int32_t out, int32_t in) {
    eng_error err = {""};
    eng_linear linear;
    eng_linear_scratch scratch = {0};
    problem p;
    make_problem(&p, out, in, ENG_DTYPE_BF16);
    const eng_linear_part part = {p.file, p.dtype, out};
    float *alone = malloc(sizeof *alone * MAX_ROWS * (size_t)out);
    CHECK(eng_linear_pack(&part, 1, in, compute_of(kernel), kernel, &linear, &err));
    for (int32_t r = 0; r < MAX_ROWS; r++)
        CHECK(eng_linear_apply(&linear, &scratch, 1, p.x + (int64_t)r * in, in, alone + (int64_t)r * out, out, &err));
    for (int32_t rows = 1; rows <= MAX_ROWS; rows++) {
        omp_set_num_threads(1 + rows % 3);
        apply(&linear, &scratch, &p, rows);
        int different = 0;
        for (int32_t r = 0; r < rows; r++)
            different += memcmp(p.y + (int64_t)r * (out + 3), alone + (int64_t)r * out, sizeof(float) * (size_t)out) != 0;
        CHECK_MSG(different == 0, "%s: %d of %d rows differ from themselves alone", kernel->name, different, rows);
        for (int64_t i = 0; i < in; i++) { /* another place for the same row: swap first and last */
            float first = p.x[i];
            p.x[i] = p.x[(int64_t)(rows - 1) * in + i];
            p.x[(int64_t)(rows - 1) * in + i] = first;
        }
        apply(&linear, &scratch, &p, rows);
        CHECK(memcmp(p.y, alone + (int64_t)(rows - 1) * out, sizeof(float) * (size_t)out) == 0);
        for (int64_t i = 0; i < in; i++) {
            float first = p.x[i];
            p.x[i] = p.x[(int64_t)(rows - 1) * in + i];
            p.x[(int64_t)(rows - 1) * in + i] = first;
        }
    }
    free(alone);
    eng_linear_free(&linear);
    eng_linear_scratch_free(&scratch);
    free_problem(&p);
}

/* Several runs of the input, chunks of rows and panels a group: still the bits of each row alone. */
static void check_cuts(const eng_linear_kernel *kernel) {
    enum { ROWS = 290, OUT = 300, IN = 1500 };
    eng_error err = {""};
    eng_linear linear;
    eng_linear_scratch scratch = {0};
    problem p;
    make_problem(&p, OUT, IN, ENG_DTYPE_BF16);
    const eng_linear_part part = {p.file, p.dtype, OUT};
    float *x = malloc(sizeof *x * ROWS * IN), *y = malloc(sizeof *y * ROWS * OUT), alone[OUT];
    for (size_t i = 0; i < (size_t)ROWS * IN; i++) x[i] = draw();
    CHECK(eng_linear_pack(&part, 1, IN, compute_of(kernel), kernel, &linear, &err));
    for (int threads = 1; threads <= 2; threads++) {
        int different = 0;
        omp_set_num_threads(threads);
        CHECK(eng_linear_apply(&linear, &scratch, ROWS, x, IN, y, OUT, &err));
        for (int32_t r = 0; r < ROWS; r += 17) {
            CHECK(eng_linear_apply(&linear, &scratch, 1, x + (int64_t)r * IN, IN, alone, OUT, &err));
            different += memcmp(alone, y + (int64_t)r * OUT, sizeof alone) != 0;
        }
        CHECK_MSG(different == 0, "%s, %d threads: %d rows of %d differ", kernel->name, threads, different, ROWS);
    }
    free(x);
    free(y);
    eng_linear_free(&linear);
    eng_linear_scratch_free(&scratch);
    free_problem(&p);
}

static void check_kernel(const eng_linear_kernel *kernel) {
    static const int32_t shapes[][2] = {{1, 1}, {31, 33}, {32, 32}, {33, 64}, {65, 100}, {96, 31}, {130, 257}};
    const int before = test_failed;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        check_errors(kernel, compute_of(kernel), shapes[i][0], shapes[i][1],
                     kernel->weights_bf16 ? ENG_DTYPE_BF16 : ENG_DTYPE_F32);
        if (kernel->x_layout == ENG_ROWS_F32)
            check_errors(kernel, ENG_COMPUTE_BF16, shapes[i][0], shapes[i][1], ENG_DTYPE_BF16);
    }
    if (kernel->weights_bf16) check_row_invariance(kernel, 96, 320);
    check_row_invariance(kernel, 40, 100);
    check_cuts(kernel);
    check_errors(kernel, compute_of(kernel), 33, 1300, kernel->weights_bf16 ? ENG_DTYPE_BF16 : ENG_DTYPE_F32);
    printf("%s: %s\n", kernel->name, test_failed == before ? "ok" : "FAILED");
}

/* Several parts are one matrix; formats choose what is kept. */
static void test_parts(void) {
    eng_error err = {""};
    problem a, b;
    make_problem(&a, 20, 48, ENG_DTYPE_BF16);
    make_problem(&b, 30, 48, ENG_DTYPE_BF16);
    const eng_linear_part parts[2] = {{a.file, a.dtype, a.out}, {b.file, b.dtype, b.out}};
    eng_linear both, one;
    eng_linear_scratch scratch = {0};
    float y[50], y1[30];
    CHECK(eng_linear_pack(parts, 2, 48, ENG_COMPUTE_AUTO, NULL, &both, &err));
    CHECK(eng_linear_pack(parts + 1, 1, 48, ENG_COMPUTE_AUTO, NULL, &one, &err));
    CHECK(both.out == 50 && both.kernel->weights_bf16 && both.round_x == eng_linear_prefers_bf16());
    CHECK(eng_linear_apply(&both, &scratch, 1, a.x, 48, y, 50, &err));
    CHECK(eng_linear_apply(&one, &scratch, 1, a.x, 48, y1, 30, &err));
    CHECK(memcmp(y + 20, y1, sizeof y1) == 0);
    eng_linear_free(&both);
    eng_linear_free(&one);
    eng_linear_scratch_free(&scratch);
    free_problem(&a);
    free_problem(&b);
    check_errors(NULL, ENG_COMPUTE_F32, 37, 50, ENG_DTYPE_F16);
    check_errors(NULL, ENG_COMPUTE_AUTO, 37, 50, ENG_DTYPE_F16);
    check_errors(NULL, ENG_COMPUTE_BF16, 37, 50, ENG_DTYPE_F32);
}

/* A gated product has the bits of its two products and the gate between them. */
static void check_gated(const eng_linear_kernel *kernel, int32_t out, int32_t in, eng_gate_fn gate) {
    eng_error err = {""};
    problem g, u;
    make_problem(&g, out, in, ENG_DTYPE_BF16);
    make_problem(&u, out, in, ENG_DTYPE_BF16);
    const eng_linear_part parts[2] = {{g.file, g.dtype, out}, {u.file, u.dtype, out}};
    eng_linear gated, apart[2];
    eng_linear_scratch scratch = {0};
    float *halves = malloc(2 * sizeof *halves * (size_t)out), *expected = malloc(sizeof *expected * (size_t)out);
    CHECK(eng_linear_pack_gated(&parts[0], &parts[1], gate, in, compute_of(kernel), kernel, &gated, &err));
    for (int i = 0; i < 2; i++) CHECK(eng_linear_pack(&parts[i], 1, in, compute_of(kernel), kernel, &apart[i], &err));
    for (int32_t rows = 1; rows <= MAX_ROWS; rows = rows < 4 ? rows + 1 : rows * 2 + 1) {
        apply(&gated, &scratch, &g, rows);
        int different = 0;
        for (int32_t r = 0; r < rows; r++) {
            for (int i = 0; i < 2; i++)
                CHECK(eng_linear_apply(&apart[i], &scratch, 1, g.x + (int64_t)r * in, in, halves + i * out, out, &err));
            gate(out, halves, halves + out, expected);
            different += memcmp(expected, g.y + (int64_t)r * (out + 3), sizeof *expected * (size_t)out) != 0;
        }
        CHECK_MSG(different == 0, "%s: gated, %d by %d: %d of %d rows differ", kernel->name, out, in, different, rows);
    }
    free(halves);
    free(expected);
    eng_linear_free(&gated);
    for (int i = 0; i < 2; i++) eng_linear_free(&apart[i]);
    eng_linear_scratch_free(&scratch);
    free_problem(&g);
    free_problem(&u);
}

static void test_gated(void) {
    const eng_linear_kernel *kernel;
    for (int i = 0; (kernel = eng_linear_kernel_at(i)) != NULL; i++) {
        check_gated(kernel, 32, 64, eng_gate_of(ENG_ACTIVATION_SILU));
        check_gated(kernel, 75, 96, eng_gate_of(ENG_ACTIVATION_GELU_TANH));
        check_gated(kernel, 544, 700, eng_gate_of(ENG_ACTIVATION_SILU));
    }
}

static void test_random(void) {
    eng_error err = {""};
    eng_linear a, b;
    CHECK(eng_linear_random(70, 64, 0.5f, 7, ENG_COMPUTE_F32, &a, &err));
    CHECK(eng_linear_random(70, 64, 0.5f, 7, ENG_COMPUTE_F32, &b, &err));
    CHECK(memcmp(a.weights, b.weights, a.bytes) == 0);
    const uint16_t *w = a.weights;
    int negative = 0;
    for (int i = 0; i < 70 * 64; i++) {
        float size = fabsf(eng_f32_of_bf16(w[i]));
        negative += w[i] >> 15;
        if (!(size >= 0.25f && size < 0.5f)) CHECK_MSG(0, "%g", (double)size);
    }
    CHECK(negative > 1900 && negative < 2600);
    eng_linear_free(&a);
    eng_linear_free(&b);
}

int main(void) {
    int kernels = 0;
    for (const eng_linear_kernel *k; (k = eng_linear_kernel_at(kernels)) != NULL; kernels++) check_kernel(k);
    CHECK(kernels >= 2);
    test_parts();
    test_gated();
    test_random();
    return test_result();
}
