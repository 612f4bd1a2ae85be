/* Decides which kernels may run, so it is compiled without ISA flags. */
#define _GNU_SOURCE 1 /* syscall() */
#include "linear_kernels.h"
#include "row_loops.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#ifdef ENG_LINEAR_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Rungs of the ladder; RELAY_CPU names the highest that may be used. */
typedef enum level { LEVEL_SCALAR, LEVEL_AVX2, LEVEL_AVX512, LEVEL_AVX512BF16, LEVEL_AMX } level;

static level allowed_level(void) {
    static const char *const names[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx"};
    const char *wanted = getenv("RELAY_CPU");
    for (int i = 0; wanted && i < (int)(sizeof names / sizeof *names); i++)
        if (strcmp(wanted, names[i]) == 0) return (level)i;
    return LEVEL_AMX;
}

#ifdef ENG_LINEAR_X86
static uint64_t enabled_state(void) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return 0;
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

/* Linux lends the tile registers on request only, to the whole process. */
static bool may_use_tiles(void) {
#ifdef __linux__
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}

static level cpu_level(void) {
    const uint64_t avx_state = 0x6, avx512_state = 0xE6, tile_state = 0x60000, state = enabled_state();
    unsigned a, b, c, d, leaf1c, leaf7a, leaf7b, leaf7d, leaf71a;
    if (!__get_cpuid(1, &a, &b, &leaf1c, &d)) return LEVEL_SCALAR;
    if (!__get_cpuid_count(7, 0, &leaf7a, &leaf7b, &c, &leaf7d)) return LEVEL_SCALAR;
    bool avx2 = (leaf1c & bit_FMA) && (leaf7b & bit_AVX2) && (state & avx_state) == avx_state;
    if (!avx2) return LEVEL_SCALAR;
    const unsigned f_dq_bw_vl = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
    bool avx512 = (leaf7b & f_dq_bw_vl) == f_dq_bw_vl && (state & avx512_state) == avx512_state;
    if (!avx512) return LEVEL_AVX2;
    if (leaf7a < 1 || !__get_cpuid_count(7, 1, &leaf71a, &b, &c, &d) || !(leaf71a & (1u << 5))) return LEVEL_AVX512;
    const unsigned tile_and_bf16 = (1u << 24) | (1u << 22);
    bool tiles = (leaf7d & tile_and_bf16) == tile_and_bf16 && (state & tile_state) == tile_state;
    return tiles && may_use_tiles() ? LEVEL_AMX : LEVEL_AVX512BF16;
}

static bool is_amd(void) {
    unsigned a, b, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx;
}
#else
static level cpu_level(void) {
    return LEVEL_SCALAR;
}

static bool is_amd(void) {
    return false;
}
#endif

static level usable_level(void) {
    level cpu = cpu_level(), allowed = allowed_level();
    return cpu < allowed ? cpu : allowed;
}

typedef struct rung {
    level needs;
    const eng_linear_kernel *kernel;
} rung;

static const rung rungs[] = {
#ifdef ENG_LINEAR_X86
    {LEVEL_AMX, &eng_linear_bf16_amx},
    {LEVEL_AVX512BF16, &eng_linear_bf16_avx512bf16},
    {LEVEL_AVX512, &eng_linear_bf16_avx512},
    {LEVEL_AVX2, &eng_linear_bf16_avx2},
#endif
    {LEVEL_SCALAR, &eng_linear_bf16_scalar},
#ifdef ENG_LINEAR_X86
    {LEVEL_AVX512, &eng_linear_f32_avx512},
    {LEVEL_AVX2, &eng_linear_f32_avx2},
#endif
    {LEVEL_SCALAR, &eng_linear_f32_scalar},
};

enum { NUM_RUNGS = (int)(sizeof rungs / sizeof *rungs) };

const eng_linear_kernel *eng_linear_kernel_at(int index) {
    level have = usable_level();
    for (int i = 0; i < NUM_RUNGS; i++)
        if (rungs[i].needs <= have && index-- == 0) return rungs[i].kernel;
    return NULL;
}

bool eng_linear_prefers_bf16(void) {
    level have = usable_level();
    /* Intel's dot instruction has half the rate of its f32 multiply-add; AMD's has twice. */
    return have == LEVEL_AMX || (have == LEVEL_AVX512BF16 && is_amd());
}

static const eng_row_loops *find_row_loops(void) {
#ifdef ENG_LINEAR_X86
    level have = usable_level();
    if (have >= LEVEL_AVX512) return &eng_row_loops_avx512;
    if (have >= LEVEL_AVX2) return &eng_row_loops_avx2;
#endif
    return &eng_row_loops_plain;
}

const eng_row_loops *eng_row_loops_choose(void) {
    static const eng_row_loops *_Atomic found; /* asking the CPU is slow in a virtual machine */
    const eng_row_loops *loops = found;
    if (loops == NULL) found = loops = find_row_loops();
    return loops;
}

const eng_linear_kernel *eng_linear_choose(bool weights_bf16, bool round_x) {
    bool dot = weights_bf16 && round_x && eng_linear_prefers_bf16();
    level have = usable_level();
    for (int i = 0; i < NUM_RUNGS; i++) {
        const eng_linear_kernel *kernel = rungs[i].kernel;
        bool takes_f32 = kernel->x_layout == ENG_ROWS_F32;
        if (rungs[i].needs <= have && kernel->weights_bf16 == weights_bf16 && takes_f32 != dot) return kernel;
    }
    return weights_bf16 ? &eng_linear_bf16_scalar : &eng_linear_f32_scalar;
}
