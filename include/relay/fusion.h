/* relay/fusion.h - the sixth concept: merging partial attention exactly.
 *
 * Attention over a set of tokens is a pair (o, lse): the output and the natural
 * logarithm of the softmax denominator.  Parts over disjoint sets merge:
 *
 *     lse = log(sum_i exp(lse_i))        o = sum_i exp(lse_i - lse) * o_i
 *
 * which for two parts is alpha = 1 / (1 + exp(lse_usr - lse_sys)),
 * o = alpha * o_sys + (1 - alpha) * o_usr (arXiv 2402.14808, section 3.3).
 * The empty set is (0, -INFINITY), the exact identity: merging with it returns the
 * other part bit by bit.  +INFINITY as an LSE is read as -INFINITY, since some
 * producers mark empty rows so.
 */
#ifndef RELAY_FUSION_H
#define RELAY_FUSION_H

#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct relay_fuse_args {
    uint32_t struct_size;
    int32_t num_parts;           /* >= 1 */
    const relay_tensor *outputs; /* [num_parts], each [T, H, D], f32, f16 or bf16, last
                                    stride 1 */
    const relay_tensor *lses;    /* [num_parts], each f32 with shape [T, H] and any strides:
                                    an [H, T] array is {T, H} with strides {1, T} */
    relay_tensor output;         /* [T, H, D]; may be exactly outputs[0] */
    relay_tensor lse;            /* [T, H] f32, or data NULL; may be exactly lses[0] */
    void *stream;
} relay_fuse_args;

RELAY_API relay_fuse_args relay_fuse_args_defaults(void);

/* Merges in float32, in the order of the parts.  A part whose lse is -INFINITY is not
 * read.  NaN in a part that is read reaches the result.
 * Errors: NULL_POINTER, BAD_STRUCT_SIZE, INVALID_ARGUMENT, BAD_DTYPE, BAD_SHAPE,
 * BAD_STRIDE, OVERLAP. */
RELAY_API relay_status relay_fuse(relay_device *device, const relay_fuse_args *args);

#ifdef __cplusplus
}
#endif
#endif
