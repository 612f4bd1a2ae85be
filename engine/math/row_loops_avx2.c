#define LOOPS eng_row_loops_avx2
#include "row_loops.inc"
