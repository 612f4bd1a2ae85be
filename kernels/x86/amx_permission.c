#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* syscall() */
#endif
#include "amx_permission.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>

/* Of <asm/prctl.h>, which older systems lack. */
enum { REQUEST_XCOMP_PERMISSION = 0x1023, TILE_DATA = 18 };

int relayi_amx_request(void) {
    return syscall(SYS_arch_prctl, REQUEST_XCOMP_PERMISSION, TILE_DATA) == 0;
}
#else
int relayi_amx_request(void) { return 0; }
#endif
