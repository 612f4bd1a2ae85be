/* 16-bit floats by integer arithmetic: the definition that every vectorised conversion is
 * compared with.  Rounding is to nearest, ties to even; a NaN stays a (quiet) NaN. */
#ifndef RELAY_HALF_H
#define RELAY_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t relayi_float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float relayi_bits_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float relayi_from_bf16(uint16_t h) { return relayi_bits_float((uint32_t)h << 16); }

static inline uint16_t relayi_to_bf16(float x) {
    uint32_t bits = relayi_float_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static inline float relayi_from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 0x1fu, mantissa = h & 0x3ffu;
    if (exponent == 0) { /* zero or subnormal: mantissa * 2^-24 */
        float magnitude = (float)mantissa * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    if (exponent == 31) {
        uint32_t quiet = mantissa ? 0x400000u : 0;
        return relayi_bits_float(sign | 0x7f800000u | mantissa << 13 | quiet);
    }
    return relayi_bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

static inline uint16_t relayi_to_f16(float x) {
    uint32_t bits = relayi_float_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x47800000u) return (uint16_t)(sign | 0x7c00u); /* >= 65536 and infinity */
    if (magnitude < 0x38800000u) {
        /* Below the smallest normal: adding 0.5 leaves the rounded multiple of 2^-24 in the
         * low bits, rounded by the hardware. */
        uint32_t rounded = relayi_float_bits(relayi_bits_float(magnitude) + 0.5f);
        return (uint16_t)(sign | (rounded - 0x3f000000u));
    }
    uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u;
    return (uint16_t)(sign | rounded >> 13); /* a carry out of 65504 gives infinity */
}

#endif
