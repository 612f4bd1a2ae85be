/* The x86 ladder: each family overwrites what it does better than the one below. */
#include "x86.h"

#define RELAYI_ROW(kernel, dt, flags, does, needs_16bit, multiple, block, scratch)                  \
    {.name = "relayi_attend_" #kernel, .attend = relayi_attend_##kernel, .features = (does),        \
     .needs_16bit_query = (needs_16bit), .head_dim_multiple = (multiple), .row_block = (block),     \
     .scratch_bytes = (scratch)},
static const relayi_attend_kernel kernels[] = {RELAYI_ATTEND_LIST_X86(RELAYI_ROW)};

/* The row of the kernel list whose function this is. */
static relayi_attend_kernel listed(relayi_attend_fn *attend) {
    size_t i = 0;
    while (kernels[i].attend != attend) i++;
    return kernels[i];
}

/* Rates of one thread over K/V in its caches, for the cost model, as measured on a Sapphire Rapids:
 * between families they differ by more than between processors. */
#define AVX2_GFLOPS 55
#define AVX512_GFLOPS 115
#define AVX512BF16_GFLOPS 130

static void set_attend(relayi_kernels *table, int dt, relayi_attend_fn *attend, int32_t gflops) {
    table->attend[dt] = listed(attend);
    table->attend[dt].gflops = gflops;
    table->attend_16bit[dt] = table->attend[dt];
}

static void use_avx2(relayi_kernels *table) {
    set_attend(table, RELAYI_DT_F32, relayi_attend_f32_avx2, AVX2_GFLOPS);
    set_attend(table, RELAYI_DT_F16, relayi_attend_f16_avx2, AVX2_GFLOPS);
    set_attend(table, RELAYI_DT_BF16, relayi_attend_bf16_avx2, AVX2_GFLOPS);
    table->pack[RELAYI_DT_F32] = relayi_pack_f32_avx2;
    table->pack[RELAYI_DT_F16] = relayi_pack_f16_avx2;
    table->pack[RELAYI_DT_BF16] = relayi_pack_bf16_avx2;
    table->finish = relayi_finish_avx2;
    table->f32_to_bf16 = relayi_f32_to_bf16_avx2;
    table->f32_to_f16 = relayi_f32_to_f16_avx2;
    table->bf16_to_f32 = relayi_bf16_to_f32_avx2;
    table->f16_to_f32 = relayi_f16_to_f32_avx2;
}

static void use_avx512(relayi_kernels *table) {
    set_attend(table, RELAYI_DT_F32, relayi_attend_f32_avx512, AVX512_GFLOPS);
    set_attend(table, RELAYI_DT_F16, relayi_attend_f16_avx512, AVX512_GFLOPS);
    set_attend(table, RELAYI_DT_BF16, relayi_attend_bf16_avx512, AVX512_GFLOPS);
    table->pack[RELAYI_DT_F32] = relayi_pack_f32_avx512;
    table->pack[RELAYI_DT_F16] = relayi_pack_f16_avx512;
    table->pack[RELAYI_DT_BF16] = relayi_pack_bf16_avx512;
    table->finish = relayi_finish_avx512;
    table->f32_to_bf16 = relayi_f32_to_bf16_avx512;
    table->f32_to_f16 = relayi_f32_to_f16_avx512;
    table->bf16_to_f32 = relayi_bf16_to_f32_avx512;
    table->f16_to_f32 = relayi_f16_to_f32_avx512;
}

void relayi_kernels_x86(relayi_kernels *table, uint32_t flags) {
    if (!(flags & RELAYI_CPU_AVX2)) return;
    use_avx2(table);
    if (!(flags & RELAYI_CPU_AVX512)) return;
    use_avx512(table);
    if ((flags & RELAYI_CPU_AVX512BF16) && (flags & RELAYI_CPU_FAST_BF16_DOT)) {
        table->attend_16bit[RELAYI_DT_BF16] = listed(relayi_attend_bf16_dot_avx512bf16);
        table->attend_16bit[RELAYI_DT_BF16].gflops = AVX512BF16_GFLOPS;
    }
    if (flags & RELAYI_CPU_AMX) relayi_kernels_amx(table, flags);
}
