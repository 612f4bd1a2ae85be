/* What this processor can do, and which of it is worth using. */
#ifndef RELAY_CPU_H
#define RELAY_CPU_H

#include "kernel.h"

/* RELAYI_CPU_* capability and preference flags of this processor under this OS. */
uint32_t relayi_cpu_flags(void);

/* The families in ascending order: "scalar", "avx2", "avx512", "avx512bf16", "amx". */
#define RELAYI_NUM_LEVELS 5
extern const char *const relayi_level_names[RELAYI_NUM_LEVELS];
extern const uint32_t relayi_level_flags[RELAYI_NUM_LEVELS]; /* all flags up to the level */

/* Index of a level's name, -1 if unknown. */
int relayi_find_level(const char *name);

/* Processor's brand string and its features as words, cut at the sizes. */
void relayi_cpu_describe(char *name, size_t name_size, char *features, size_t features_size);

/* Asks the OS for the tile registers: 1 if they may be used (kernels/x86/amx_permission.c). */
int relayi_amx_request(void);

#endif
