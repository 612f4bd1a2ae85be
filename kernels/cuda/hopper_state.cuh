/* Partial states of the Hopper kernel: half the bytes of float32, in f16 with powers of two beside them.
 *
 * A state has one such power for each half of its dims, chosen so that the largest of them lies in [2^14, 2^15): values
 * of any size keep f16's 11 bits, and what is 2^28 times smaller than the largest begins to lose some.  Values that are
 * not finite stay what they are and have no say in it.
 *
 * Dims lie in the order in which a lane of four has them after a product: 16 bytes are a lane's dims of four blocks of
 * eight.  So nothing has to be exchanged before states are stored, and they are added as they lie. */
#ifndef RELAY_HOPPER_STATE_CUH
#define RELAY_HOPPER_STATE_CUH

#include "tile_cuda.cuh"

/* What lies in the place of a state's lse. */
struct state_stats {
    float lse;
    uint32_t scales; /* upper 16 bits of two floats: for the first half of the dims, low, and for the second, high */

    DEVICE float scale(int half) const { return __uint_as_float(half ? scales & 0xFFFF0000u : scales << 16); }
};
static_assert(sizeof(state_stats) == 8, "one load");

DEVICE state_stats *stats_of(const relayi_cuda_params &p, int64_t state) {
    return reinterpret_cast<state_stats *>(p.lse) + state;
}
/* In one load, past the first-level cache: other multiprocessors have stored them. */
DEVICE state_stats read_stats(const relayi_cuda_params &p, int64_t state) {
    uint2 word = __ldcg(reinterpret_cast<const uint2 *>(stats_of(p, state)));
    return {__uint_as_float(word.x), word.y};
}
DEVICE void store_scale(state_stats *stats, int half, uint32_t kept) {
    reinterpret_cast<uint16_t *>(&stats->scales)[half] = static_cast<uint16_t>(kept);
}

/* A state's 16-byte chunks. */
template <int D> DEVICE uint4 *state_chunks(const relayi_cuda_params &p, int64_t state) {
    return reinterpret_cast<uint4 *>(p.acc) + state * (D / 8);
}
/* The first of the two dims side by side that word `word` of a state is. */
DEVICE int state_dim(int word) { return word / 16 * 32 + word % 4 * 8 + word / 4 % 4 * 2; }

/* The largest finite |x| of at(0) to at(N - 1). */
template <int N, typename F> DEVICE float largest_finite(F at) {
    float top[2] = {0.0f, 0.0f}; /* NaN is a maximum of nothing */
#pragma unroll
    for (int i = 0; i < N; i++) top[i % 2] = fmaxf(top[i % 2], fabsf(at(i)));
    float largest = fmaxf(top[0], top[1]);
    if (__builtin_expect(largest < CUDART_INF_F, 1)) return largest; /* the rest is laid aside: code is cold here */
    largest = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++)
        if (fabsf(at(i)) < CUDART_INF_F) largest = fmaxf(largest, fabsf(at(i)));
    return largest;
}

/* How sums become a state: `by` is what they are multiplied with, `kept` 16 bits of state_stats::scales. */
struct state_scale {
    float by;
    uint32_t kept;

    /* `largest` of the sums; `inverse` of the sum of weights.  The power stops at 2^-100, so that the product of the
     * two stays finite: 2^-114 is the smallest output that has all 11 bits. */
    DEVICE state_scale(float largest, float inverse) {
        uint32_t exponent = __float_as_uint(fabsf(largest * inverse)) >> 23;
        exponent = max(exponent, 41u) - 14u;
        by = inverse * __uint_as_float((254u - exponent) << 23);
        kept = exponent << 7;
    }
    DEVICE uint32_t both() const { return kept << 16 | kept; }
};

/* What a state's elements are multiplied with when it is added by `weight`.  Where there is a weight the product does not
 * vanish: an infinity stays one. */
DEVICE float scaled_weight(float weight, float scale) {
    float by = weight * scale;
    return weight > 0.0f ? fmaxf(by, __uint_as_float(1)) : by;
}

/* o += by * the words' elements. */
template <int WORDS> DEVICE void add_words(float (&o)[2 * WORDS], float by, const uint32_t (&words)[WORDS]) {
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
        float2 two = __half22float2(*reinterpret_cast<const __half2 *>(&words[i]));
        o[2 * i] += by * two.x;
        o[2 * i + 1] += by * two.y;
    }
}

#endif
