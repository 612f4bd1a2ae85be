/* The benches of `relay bench`, and what they share. */
#ifndef RELAY_BENCH_H
#define RELAY_BENCH_H

#include <stdbool.h>
#include <stdint.h>

int bench_attention(int argc, char **argv);
int bench_generate(int argc, char **argv);

/* Readings of one thing in seconds; the median is what is quoted. */
typedef struct bench_times {
    double *seconds;
    int32_t count, room;
} bench_times;

double bench_now(void);
bool bench_times_add(bench_times *times, double seconds);
double bench_times_median(bench_times *times); /* NAN without readings */
void bench_times_free(bench_times *times);

#endif
