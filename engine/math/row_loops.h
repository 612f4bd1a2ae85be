/* Loops over the numbers of one row, compiled once for each instruction set; all of them give the same
 * bits, as no multiplication is fused with an addition. */
#ifndef RELAY_ENGINE_ROW_LOOPS_H
#define RELAY_ENGINE_ROW_LOOPS_H

#include <stdint.h>

typedef struct eng_row_loops {
    /* out = x / sqrt(mean(x^2) + eps) * weight; out may be x */
    void (*norm)(int32_t n, const float *x, const float *weight, float eps, float *out);
    void (*add)(int32_t n, float *x, const float *y);                                    /* x += y */
    void (*gate_silu)(int32_t n, const float *gate, const float *up, float *out);        /* silu(gate) * up */
    void (*gate_gelu)(int32_t n, const float *gate, const float *up, float *out);
    void (*widen)(int32_t n, float scale, const uint16_t *x, float *out);                /* scale * bf16 */
    void (*round)(int32_t n, const float *x, uint16_t *out);                             /* to bf16 */
} eng_row_loops;

extern const eng_row_loops eng_row_loops_plain;
#ifdef ENG_LINEAR_X86
extern const eng_row_loops eng_row_loops_avx2, eng_row_loops_avx512;
#endif

/* The best for this CPU, RELAY_CPU permitting; found once. */
const eng_row_loops *eng_row_loops_choose(void);

#endif
