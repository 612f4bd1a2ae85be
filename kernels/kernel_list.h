/* The one list of all kernels: it declares them, and lets the checker walk over every kernel
 * that was built, those included that the ladder does not choose on this CPU.
 *
 * RELAYI_ATTEND_LIST(X)  X(name, K/V dtype, flags, features, needs_16bit_query,
 *                          head_dim_multiple, row_block, scratch_bytes)
 *                        function relayi_attend_<name>; the columns are relayi_attend_kernel's
 * RELAYI_PACK_LIST(X)    X(name, dtype, flags): function relayi_pack_<name>
 * RELAYI_STATE_LIST(X)   X(isa, flags): relayi_finish_<isa>, relayi_f32_to_bf16_<isa> and the
 *                        other three conversions
 *
 * `flags` are the RELAYI_CPU_* capabilities without which the kernel must not be called. */
#ifndef RELAY_KERNEL_LIST_H
#define RELAY_KERNEL_LIST_H

#include "kernel.h"

/* Bounds of the x86 families' work areas, asserted where these are defined. */
enum { RELAYI_SCRATCH_X86_F32 = 832 * 1024, RELAYI_SCRATCH_X86_16BIT = 576 * 1024 };

#define RELAYI_ATTEND_LIST_REF(X)                                 \
    X(f32_ref, RELAYI_DT_F32, 0, RELAYI_DOES_ALL, 0, 8, 1, 0)     \
    X(f16_ref, RELAYI_DT_F16, 0, RELAYI_DOES_ALL, 0, 8, 1, 0)     \
    X(bf16_ref, RELAYI_DT_BF16, 0, RELAYI_DOES_ALL, 0, 8, 1, 0)
#define RELAYI_PACK_LIST_REF(X)    \
    X(f32_ref, RELAYI_DT_F32, 0)   \
    X(f16_ref, RELAYI_DT_F16, 0)   \
    X(bf16_ref, RELAYI_DT_BF16, 0)
#define RELAYI_STATE_LIST_REF(X) X(ref, 0)

#if defined(__x86_64__)
/* The softmax between the tile products needs the AVX-512 families' instructions. */
#define RELAYI_NEEDS_AMX (RELAYI_CPU_AMX | RELAYI_CPU_AVX512 | RELAYI_CPU_AVX512BF16)
enum { RELAYI_SCRATCH_AMX = 848 * 1024 };

#define RELAYI_ATTEND_LIST_X86(X)                                                              \
    X(f32_avx2, RELAYI_DT_F32, RELAYI_CPU_AVX2, RELAYI_DOES_ALL, 0, 16, 6,                     \
      RELAYI_SCRATCH_X86_F32)                                                                  \
    X(f16_avx2, RELAYI_DT_F16, RELAYI_CPU_AVX2, RELAYI_DOES_ALL, 0, 16, 6,                     \
      RELAYI_SCRATCH_X86_16BIT)                                                                \
    X(bf16_avx2, RELAYI_DT_BF16, RELAYI_CPU_AVX2, RELAYI_DOES_ALL, 0, 16, 6,                   \
      RELAYI_SCRATCH_X86_16BIT)                                                                \
    X(f32_avx512, RELAYI_DT_F32, RELAYI_CPU_AVX512, RELAYI_DOES_ALL, 0, 16, 12,                \
      RELAYI_SCRATCH_X86_F32)                                                                  \
    X(f16_avx512, RELAYI_DT_F16, RELAYI_CPU_AVX512, RELAYI_DOES_ALL, 0, 16, 12,                \
      RELAYI_SCRATCH_X86_16BIT)                                                                \
    X(bf16_avx512, RELAYI_DT_BF16, RELAYI_CPU_AVX512, RELAYI_DOES_ALL, 0, 16, 12,              \
      RELAYI_SCRATCH_X86_16BIT)                                                                \
    X(bf16_dot_avx512bf16, RELAYI_DT_BF16, RELAYI_CPU_AVX512 | RELAYI_CPU_AVX512BF16,          \
      RELAYI_DOES_ALL, 1, 16, 12, RELAYI_SCRATCH_X86_16BIT)                                    \
    X(bf16_amx, RELAYI_DT_BF16, RELAYI_NEEDS_AMX, RELAYI_DOES_ALL, 1, 16, 16,                  \
      RELAYI_SCRATCH_AMX)                                                                      \
    X(bf16_few_amx, RELAYI_DT_BF16, RELAYI_NEEDS_AMX, RELAYI_DOES_ALL | RELAYI_BITS_BY_CALL,   \
      1, 16, 16, RELAYI_SCRATCH_AMX)                                                           \
    X(bf16_split_amx, RELAYI_DT_BF16, RELAYI_NEEDS_AMX, RELAYI_DOES_ALL, 0, 16, 16,            \
      RELAYI_SCRATCH_AMX)
#define RELAYI_PACK_LIST_X86(X)                      \
    X(f32_avx2, RELAYI_DT_F32, RELAYI_CPU_AVX2)      \
    X(f16_avx2, RELAYI_DT_F16, RELAYI_CPU_AVX2)      \
    X(bf16_avx2, RELAYI_DT_BF16, RELAYI_CPU_AVX2)    \
    X(f32_avx512, RELAYI_DT_F32, RELAYI_CPU_AVX512)  \
    X(f16_avx512, RELAYI_DT_F16, RELAYI_CPU_AVX512)  \
    X(bf16_avx512, RELAYI_DT_BF16, RELAYI_CPU_AVX512)
#define RELAYI_STATE_LIST_X86(X) \
    X(avx2, RELAYI_CPU_AVX2)     \
    X(avx512, RELAYI_CPU_AVX512)
#else
#define RELAYI_ATTEND_LIST_X86(X)
#define RELAYI_PACK_LIST_X86(X)
#define RELAYI_STATE_LIST_X86(X)
#endif

#define RELAYI_ATTEND_LIST(X) RELAYI_ATTEND_LIST_REF(X) RELAYI_ATTEND_LIST_X86(X)
#define RELAYI_PACK_LIST(X) RELAYI_PACK_LIST_REF(X) RELAYI_PACK_LIST_X86(X)
#define RELAYI_STATE_LIST(X) RELAYI_STATE_LIST_REF(X) RELAYI_STATE_LIST_X86(X)

typedef void relayi_finish_fn(int32_t parts, int32_t head_dim, const float *acc, int64_t acc_stride,
                              const float *max, const float *sum, int64_t stat_stride,
                              const float *sink, float *out, float *lse);
typedef void relayi_narrow_fn(const float *from, uint16_t *to, int64_t n);
typedef void relayi_widen_fn(const uint16_t *from, float *to, int64_t n);

#define RELAYI_DECLARE_ATTEND(name, ...) relayi_attend_fn relayi_attend_##name;
#define RELAYI_DECLARE_PACK(name, dt, flags) relayi_pack_fn relayi_pack_##name;
#define RELAYI_DECLARE_STATE(isa, flags)                                \
    relayi_finish_fn relayi_finish_##isa;                               \
    relayi_narrow_fn relayi_f32_to_bf16_##isa, relayi_f32_to_f16_##isa; \
    relayi_widen_fn relayi_bf16_to_f32_##isa, relayi_f16_to_f32_##isa;
RELAYI_ATTEND_LIST(RELAYI_DECLARE_ATTEND)
RELAYI_PACK_LIST(RELAYI_DECLARE_PACK)
RELAYI_STATE_LIST(RELAYI_DECLARE_STATE)

#endif
