/* Norms, gates, rotation and gathering against the same in double. */
#include "test.h"

#include <math.h>

#include "math/layer_math.h"
#include "math/row_loops.h"

static uint32_t state = 1;

static float draw(float scale) {
    state = state * 1664525u + 1013904223u;
    return ((float)(state >> 8) / (float)(1 << 23) - 1.0f) * scale;
}

static bool near(double got, double expected, double tolerance) {
    return fabs(got - expected) <= tolerance * (fabs(expected) + 1e-30);
}

static void test_norm(void) {
    enum { ROWS = 3, N = 37, STRIDE = 40 };
    float x[ROWS * STRIDE], weight[N], out[ROWS * STRIDE];
    for (int i = 0; i < ROWS * STRIDE; i++) x[i] = draw(3);
    for (int i = 0; i < N; i++) weight[i] = draw(1) + 1;
    eng_rms_norm(ROWS, N, x, STRIDE, weight, 1e-3f, out, STRIDE);
    for (int r = 0; r < ROWS; r++) {
        double sum = 0;
        for (int i = 0; i < N; i++) sum += (double)x[r * STRIDE + i] * x[r * STRIDE + i];
        double scale = 1 / sqrt(sum / N + 1e-3f);
        for (int i = 0; i < N; i++) CHECK(near(out[r * STRIDE + i], x[r * STRIDE + i] * scale * weight[i], 1e-6));
    }
    memset(x, 0, sizeof x);
    eng_rms_norm(ROWS, N, x, STRIDE, weight, 1e-6f, x, STRIDE); /* in place, of zeros */
    for (int i = 0; i < N; i++) CHECK(x[i] == 0);
}

static void check_gate(float gate, float up) {
    float out;
    double x = gate, u = sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x);
    eng_gate_of(ENG_ACTIVATION_SILU)(1, &gate, &up, &out);
    CHECK_MSG(near(out, x / (1 + exp(-x)) * up, 5e-7) || fabs(x / (1 + exp(-x))) < 1e-30, "silu(%g): %g", x, (double)out);
    eng_gate_of(ENG_ACTIVATION_GELU_TANH)(1, &gate, &up, &out);
    double expected = x / (1 + exp(-2 * u)) * up; /* for u << 0, f32 rounding of u shows in e^u */
    CHECK_MSG(near(out, expected, 5e-7 * (1 + fabs(u))) || fabs(expected) < 1e-30, "gelu(%g): %g, not %g", x, (double)out,
              expected);
}

static void test_gates(void) {
    const float edges[] = {0, -0.0f, 1, -1, 10, -10, 50, -50, 86, -86, 88, 100, 1000, -1000, 1e-20f, 3e38f};
    for (size_t i = 0; i < sizeof edges / sizeof *edges - 1; i++) check_gate(edges[i], 1.5f);
    for (int i = 0; i < 20000; i++) check_gate(draw(12), draw(2));
    const float nan[1] = {NAN}, one[1] = {1}, gate[2] = {1, -1}, up[2] = {3, 5};
    float out[2];
    eng_gate_of(ENG_ACTIVATION_SILU)(1, nan, one, out);
    CHECK(isnan(out[0]));
    eng_gate_of(ENG_ACTIVATION_GELU_TANH)(1, nan, one, out);
    CHECK(isnan(out[0]));
    eng_gate_of(ENG_ACTIVATION_SILU)(2, gate, up, out);
    CHECK(near(out[0], 1 / (1 + exp(-1.0)) * 3, 1e-6) && near(out[1], -1 / (1 + exp(1.0)) * 5, 1e-6));
}

static void test_gather(void) {
    const uint16_t table[6] = {0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0}; /* bf16 1 to 6 */
    const float wide[4] = {0.5f, 0.25f, 8, 16};
    const int32_t tokens[3] = {2, 0, 2};
    float out[6];
    eng_gather_rows(3, 2, table, ENG_DTYPE_BF16, tokens, 0.5f, out);
    CHECK(out[0] == 2.5f && out[1] == 3 && out[2] == 0.5f && out[3] == 1 && out[4] == 2.5f);
    eng_gather_rows(1, 2, wide, ENG_DTYPE_F32, tokens + 1, 1, out);
    CHECK(out[0] == 0.5f && out[1] == 0.25f);
    eng_add_rows(2, 2, out, wide);
    CHECK(out[0] == 1 && out[3] == 17);
}

static void test_frequencies(void) {
    enum { DIM = 64 };
    float inverse[DIM / 2], scaled[DIM / 2];
    const eng_rope_config plain = {.theta = 5e5, .factor = 1};
    eng_rope_config other = {.theta = 5e5, .scaling = ENG_ROPE_LINEAR, .factor = 4};
    eng_rope_frequencies(&plain, DIM, inverse);
    CHECK(inverse[0] == 1);
    for (int i = 0; i < DIM / 2; i++) CHECK(near(inverse[i], pow(5e5, -2.0 * i / DIM), 1e-7));
    eng_rope_frequencies(&other, DIM, scaled);
    for (int i = 0; i < DIM / 2; i++) CHECK(near(scaled[i], inverse[i] / 4.0, 1e-7));
    other = (eng_rope_config){.theta = 5e5, .scaling = ENG_ROPE_LLAMA3, .factor = 32, .low_freq_factor = 1,
                              .high_freq_factor = 4, .original_max_positions = 8192};
    eng_rope_frequencies(&other, DIM, scaled);
    int kept = 0, stretched = 0, blended = 0;
    for (int i = 0; i < DIM / 2; i++) {
        double wave = 2 * 3.14159265358979323846 / inverse[i];
        if (wave < 8192 / 4.0) kept += scaled[i] == inverse[i];
        else if (wave > 8192) stretched += near(scaled[i], inverse[i] / 32.0, 1e-7);
        else blended += scaled[i] < inverse[i] && scaled[i] > inverse[i] / 32;
    }
    CHECK(kept + stretched + blended == DIM / 2 && kept > 0 && stretched > 0 && blended > 0);
}

static void test_rotation(void) {
    enum { ROWS = 2, HEADS = 3, DIM = 16, STRIDE = 60 };
    const eng_rope_config rope = {.theta = 1e4, .factor = 1};
    const int32_t positions[ROWS] = {0, 4000};
    float inverse[DIM / 2], table[ROWS * DIM], x[ROWS * STRIDE], out[ROWS * HEADS * DIM];
    for (int i = 0; i < ROWS * STRIDE; i++) x[i] = draw(1);
    eng_rope_frequencies(&rope, DIM, inverse);
    eng_rope_table(ROWS, DIM, inverse, positions, table);
    eng_rotate(ROWS, HEADS, DIM, x, STRIDE, table, out);
    for (int i = 0; i < HEADS * DIM; i++) CHECK(out[i] == x[i]); /* position 0 */
    for (int h = 0; h < HEADS; h++)
        for (int i = 0; i < DIM / 2; i++) {
            float angle = 4000.0f * inverse[i];
            double a = x[STRIDE + h * DIM + i], b = x[STRIDE + h * DIM + DIM / 2 + i];
            const float *got = out + (HEADS + h) * DIM;
            CHECK(fabs(got[i] - (a * cos(angle) - b * sin(angle))) < 3e-7);
            CHECK(fabs(got[DIM / 2 + i] - (b * cos(angle) + a * sin(angle))) < 3e-7);
        }
}

static void test_soft_cap(void) {
    float x[3] = {1, -100, 0};
    eng_soft_cap(3, 5, x);
    CHECK(near(x[0], 5 * tanh(0.2), 1e-6) && near(x[1], -5, 1e-6) && x[2] == 0);
}

static void test_formats(void) {
    CHECK(eng_bf16_of_f32(1.0f) == 0x3F80 && eng_bf16_of_f32(-2.5f) == 0xC020);
    CHECK(eng_bf16_of_f32(eng_f32_of_bits(0x3F808000)) == 0x3F80); /* a tie goes to even */
    CHECK(eng_bf16_of_f32(eng_f32_of_bits(0x3F818000)) == 0x3F82);
    CHECK(eng_bf16_of_f32(INFINITY) == 0x7F80 && isnan(eng_f32_of_bf16(eng_bf16_of_f32(eng_f32_of_bits(0x7FFFFFFF)))));
    CHECK(eng_f32_of_f16(0x3555) == 0x1.554p-2f && eng_f32_of_f16(0x8001) == -0x1p-24f);
    CHECK(eng_f32_of_f16(0xFC00) == -INFINITY && isnan(eng_f32_of_f16(0x7E00)) && eng_f32_of_f16(0x7BFF) == 65504);
}

/* What this processor runs has the bits of the plain loops, at lengths with and without a rest. */
static void test_loops(void) {
    enum { MOST = 131 };
    const eng_row_loops *best = eng_row_loops_choose(), *plain = &eng_row_loops_plain;
    float x[2 * MOST], weight[MOST], a[MOST], b[MOST];
    uint16_t half_a[MOST], half_b[MOST];
    for (int32_t n = 1; n <= MOST; n += n < 40 ? 1 : 13) {
        for (int32_t i = 0; i < 2 * n; i++) x[i] = draw(20);
        for (int32_t i = 0; i < n; i++) weight[i] = draw(1);
        const size_t bytes = (size_t)n * sizeof *a;
        best->norm(n, x, weight, 1e-5f, a), plain->norm(n, x, weight, 1e-5f, b);
        CHECK(memcmp(a, b, bytes) == 0);
        best->gate_silu(n, x, x + n, a), plain->gate_silu(n, x, x + n, b);
        CHECK(memcmp(a, b, bytes) == 0);
        best->gate_gelu(n, x, x + n, a), plain->gate_gelu(n, x, x + n, b);
        CHECK(memcmp(a, b, bytes) == 0);
        best->add(n, a, weight), plain->add(n, b, weight);
        CHECK(memcmp(a, b, bytes) == 0);
        best->round(n, x, half_a), plain->round(n, x, half_b);
        CHECK(memcmp(half_a, half_b, bytes / 2) == 0 && half_a[n - 1] == eng_bf16_of_f32(x[n - 1]));
        best->widen(n, 0.5f, half_a, a), plain->widen(n, 0.5f, half_a, b);
        CHECK(memcmp(a, b, bytes) == 0 && a[0] == 0.5f * eng_f32_of_bf16(half_a[0]));
    }
}

int main(void) {
    test_loops();
    test_norm();
    test_gates();
    test_gather();
    test_frequencies();
    test_rotation();
    test_soft_cap();
    test_formats();
    return test_result();
}
