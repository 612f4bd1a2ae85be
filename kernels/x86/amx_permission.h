#ifndef RELAY_AMX_PERMISSION_H
#define RELAY_AMX_PERMISSION_H

/* Linux keeps the tile registers from a process until it asks.  Asks, for all threads of the
 * process, and returns 1 if AMX tiles may be used from now on.  The CPU's flags are the caller's
 * to check: they say whether AMX-BF16 is there. */
int relayi_amx_request(void);

#endif
