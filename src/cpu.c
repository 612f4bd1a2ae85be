/* Detection only: compiled without any instruction-set flag. */
#include "cpu.h"

#include <stdio.h>
#include <string.h>

const char *const relayi_level_names[RELAYI_NUM_LEVELS] = {"scalar", "avx2", "avx512", "avx512bf16",
                                                           "amx"};
const uint32_t relayi_level_flags[RELAYI_NUM_LEVELS] = {
    0,
    RELAYI_CPU_AVX2,
    RELAYI_CPU_AVX2 | RELAYI_CPU_AVX512,
    RELAYI_CPU_AVX2 | RELAYI_CPU_AVX512 | RELAYI_CPU_AVX512BF16 | RELAYI_CPU_FAST_BF16_DOT,
    RELAYI_CPU_AVX2 | RELAYI_CPU_AVX512 | RELAYI_CPU_AVX512BF16 | RELAYI_CPU_FAST_BF16_DOT |
        RELAYI_CPU_AMX,
};

int relayi_find_level(const char *name) {
    for (int i = 0; i < RELAYI_NUM_LEVELS; i++)
        if (strcmp(name, relayi_level_names[i]) == 0) return i;
    return -1;
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>

typedef struct leaf {
    uint32_t a, b, c, d;
} leaf;

static leaf read_leaf(uint32_t number, uint32_t sub) {
    leaf out = {0, 0, 0, 0};
    if (!__get_cpuid_count(number, sub, &out.a, &out.b, &out.c, &out.d)) return (leaf){0, 0, 0, 0};
    return out;
}

/* Which register files the OS saves; only readable when OSXSAVE is set. */
static uint32_t read_xcr0(void) {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static int has(uint32_t reg, int bit) { return reg >> bit & 1u; }

/* VDPBF16PS issues at full width and outruns f32 FMA on AMD from Zen 4 on; Intel's server cores
 * so far run it at half the FMA rate. */
static int fast_bf16_dot(void) {
    leaf vendor = read_leaf(0, 0);
    return vendor.b == 0x68747541; /* "Auth"enticAMD */
}

uint32_t relayi_cpu_flags(void) {
    leaf one = read_leaf(1, 0), seven = read_leaf(7, 0), seven_one = read_leaf(7, 1);
    uint32_t flags = 0;
    if (!has(one.c, 27)) return 0; /* OSXSAVE */
    uint32_t saved = read_xcr0();
    int ymm = (saved & 0x6u) == 0x6u, zmm = (saved & 0xe6u) == 0xe6u, tiles = (saved & 0x60000u) == 0x60000u;
    if (ymm && has(one.c, 12) && has(one.c, 28) && has(one.c, 29) && has(seven.b, 5))
        flags |= RELAYI_CPU_AVX2; /* FMA, AVX, F16C, AVX2 */
    if (!(flags & RELAYI_CPU_AVX2)) return flags;
    if (zmm && has(seven.b, 16) && has(seven.b, 17) && has(seven.b, 30) && has(seven.b, 31))
        flags |= RELAYI_CPU_AVX512; /* F, DQ, BW, VL */
    if (!(flags & RELAYI_CPU_AVX512)) return flags;
    if (has(seven_one.a, 5)) flags |= RELAYI_CPU_AVX512BF16;
    if ((flags & RELAYI_CPU_AVX512BF16) && fast_bf16_dot()) flags |= RELAYI_CPU_FAST_BF16_DOT;
    if ((flags & RELAYI_CPU_AVX512BF16) && tiles && has(seven.d, 24) && has(seven.d, 22) &&
        relayi_amx_request())
        flags |= RELAYI_CPU_AMX;
    return flags;
}

/* Some hypervisors pass the tiles on and leave out the leaf that describes them; programs that take tile shapes from it
 * then die of an illegal instruction.  Ours do not read it. */
static int hides_palette(void) {
    leaf palette = read_leaf(0x1d, 1);
    return !(palette.a | palette.b | palette.c);
}

static void brand(char *name, size_t size) {
    char text[49] = "";
    for (uint32_t i = 0; i < 3; i++) {
        leaf part = read_leaf(0x80000002u + i, 0);
        memcpy(text + 16 * i, &part, 16);
    }
    snprintf(name, size, "%s", text[0] ? text : "x86-64 processor");
}
#else
uint32_t relayi_cpu_flags(void) { return 0; }
static int hides_palette(void) { return 0; }
static void brand(char *name, size_t size) { snprintf(name, size, "processor"); }
#endif

void relayi_cpu_describe(char *name, size_t name_size, char *features, size_t features_size) {
    brand(name, name_size);
    uint32_t flags = relayi_cpu_flags();
    int amx = (flags & RELAYI_CPU_AMX) != 0;
    const struct {
        int is_there;
        const char *word;
    } words[] = {{(flags & RELAYI_CPU_AVX2) != 0, "avx2"},
                 {(flags & RELAYI_CPU_AVX512) != 0, "avx512"},
                 {(flags & RELAYI_CPU_AVX512BF16) != 0, "avx512bf16"},
                 {(flags & RELAYI_CPU_FAST_BF16_DOT) != 0, "fast-bf16-dot"},
                 {amx, "amx"},
                 {amx && hides_palette(), "amx-palette-hidden"}};
    size_t used = 0;
    features[0] = '\0';
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (words[i].is_there && used < features_size)
            used += (size_t)snprintf(features + used, features_size - used, "%s%s", used ? " " : "",
                                     words[i].word);
}
