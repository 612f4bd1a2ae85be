#define LOOPS eng_row_loops_avx512
#include "row_loops.inc"
