/* The number formats that weights come in, and how one becomes another. */
#ifndef RELAY_ENGINE_NUMBER_FORMAT_H
#define RELAY_ENGINE_NUMBER_FORMAT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum eng_dtype { ENG_DTYPE_F32, ENG_DTYPE_F16, ENG_DTYPE_BF16 } eng_dtype;

static inline size_t eng_dtype_size(eng_dtype dtype) {
    return dtype == ENG_DTYPE_F32 ? 4 : 2;
}

static inline float eng_f32_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t eng_bits_of_f32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float eng_f32_of_bf16(uint16_t half) {
    return eng_f32_of_bits((uint32_t)half << 16);
}

/* To nearest, ties to even; a NaN stays one (the carry could turn its payload into infinity). */
static inline uint16_t eng_bf16_of_f32(float value) {
    uint32_t bits = eng_bits_of_f32(value);
    uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    uint32_t quiet = (bits >> 16) | 0x40;
    return (uint16_t)((bits & 0x7FFFFFFF) > 0x7F800000 ? quiet : rounded);
}

/* Exact: the exponent is rebased by one multiplication, which also normalises subnormals. */
static inline float eng_f32_of_f16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t magnitude = (uint32_t)(half & 0x7FFF) << 13;
    if ((half & 0x7C00) == 0x7C00) return eng_f32_of_bits(sign | 0x7F800000 | magnitude);
    return eng_f32_of_bits(sign | eng_bits_of_f32(eng_f32_of_bits(magnitude) * 0x1p112f));
}

static inline float eng_f32_at(const void *data, eng_dtype dtype, int64_t index) {
    const char *at = (const char *)data + (size_t)index * eng_dtype_size(dtype);
    uint32_t bits = 0;
    memcpy(&bits, at, eng_dtype_size(dtype));
    if (dtype == ENG_DTYPE_F32) return eng_f32_of_bits(bits);
    return dtype == ENG_DTYPE_BF16 ? eng_f32_of_bf16((uint16_t)bits) : eng_f32_of_f16((uint16_t)bits);
}

#endif
