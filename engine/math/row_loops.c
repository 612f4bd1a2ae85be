#define LOOPS eng_row_loops_plain
#include "row_loops.inc"
