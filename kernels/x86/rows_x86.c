#include "rows_x86.h"

_Alignas(64) const char relayi_zero_row[1024];
