/* Finishing running states, conversions, and the table's first fill. */
#include <math.h>

#include "half.h"
#include "ref.h"

void relayi_finish_ref(int32_t parts, int32_t head_dim, const float *acc, int64_t acc_stride,
                       const float *max, const float *sum, int64_t stat_stride, const float *sink,
                       float *out, float *lse) {
    float top = sink ? *sink : -INFINITY;
    for (int32_t i = 0; i < parts; i++) {
        float m = max[i * stat_stride];
        if (m > top || isnan(m)) top = m; /* a NaN stays: nothing compares greater */
    }
    for (int32_t d = 0; d < head_dim; d++) out[d] = 0.0f;
    if (top == -INFINITY) {
        /* Nothing was seen, or only NaN scores: their sum is NaN, 0 otherwise. */
        float total = 0.0f;
        for (int32_t i = 0; i < parts; i++) total += sum[i * stat_stride];
        for (int32_t d = 0; isnan(total) && d < head_dim; d++) out[d] = total;
        if (lse) *lse = isnan(total) ? total : -INFINITY;
        return;
    }
    float denominator = sink ? expf(*sink - top) : 0.0f;
    for (int32_t i = 0; i < parts; i++) {
        float weight = expf(max[i * stat_stride] - top);
        denominator += weight * sum[i * stat_stride];
        if (max[i * stat_stride] == -INFINITY && sum[i * stat_stride] == 0.0f) continue;
        for (int32_t d = 0; d < head_dim; d++) out[d] += weight * acc[i * acc_stride + d];
    }
    float inverse = 1.0f / denominator;
    for (int32_t d = 0; d < head_dim; d++) out[d] *= inverse;
    if (lse) *lse = top + logf(denominator);
}

void relayi_f32_to_bf16_ref(const float *from, uint16_t *to, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = relayi_to_bf16(from[i]);
}

void relayi_f32_to_f16_ref(const float *from, uint16_t *to, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = relayi_to_f16(from[i]);
}

void relayi_bf16_to_f32_ref(const uint16_t *from, float *to, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = relayi_from_bf16(from[i]);
}

void relayi_f16_to_f32_ref(const uint16_t *from, float *to, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = relayi_from_f16(from[i]);
}

static relayi_attend_kernel reference(const char *name, relayi_attend_fn *attend) {
    return (relayi_attend_kernel){.name = name, .attend = attend, .features = RELAYI_DOES_ALL,
                                  .head_dim_multiple = 8, .row_block = 1};
}

void relayi_kernels_ref(relayi_kernels *table) {
    table->attend[RELAYI_DT_F32] = reference("relayi_attend_f32_ref", relayi_attend_f32_ref);
    table->attend[RELAYI_DT_F16] = reference("relayi_attend_f16_ref", relayi_attend_f16_ref);
    table->attend[RELAYI_DT_BF16] = reference("relayi_attend_bf16_ref", relayi_attend_bf16_ref);
    for (int dt = 0; dt < RELAYI_NUM_DT; dt++) table->attend_16bit[dt] = table->attend[dt];
    table->pack[RELAYI_DT_F32] = relayi_pack_f32_ref;
    table->pack[RELAYI_DT_F16] = relayi_pack_f16_ref;
    table->pack[RELAYI_DT_BF16] = relayi_pack_bf16_ref;
    table->finish = relayi_finish_ref;
    table->f32_to_bf16 = relayi_f32_to_bf16_ref;
    table->f32_to_f16 = relayi_f32_to_f16_ref;
    table->bf16_to_f32 = relayi_bf16_to_f32_ref;
    table->f16_to_f32 = relayi_f16_to_f32_ref;
}
