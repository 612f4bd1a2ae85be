/* The x86 ladder: each family overwrites what it does better than the one below. */
#include "kernel.h"

void relayi_kernels_x86(relayi_kernels *table, uint32_t flags) {
    (void)table;
    (void)flags;
}
