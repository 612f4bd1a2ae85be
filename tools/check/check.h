/* relay check: what its parts share - counting, reporting, comparing. */
#ifndef RELAY_CHECK_H
#define RELAY_CHECK_H

#include <stdbool.h>

#include "relay/relay.h"

enum { CHK_MAX_THREADS = 2 };

typedef struct chk {
    uint64_t seed;
    int32_t random_cases;
    bool quick, verbose;
    const char *only; /* cases whose label has this text alone; NULL = all */

    relay_device *device[CHK_MAX_THREADS + 1]; /* by number of threads */
    bool exact;    /* the scalar level: probabilities are never rounded */
    int32_t passed, failed, skipped;

    char label[512]; /* of the case in progress; a fault prints it */
    bool bad;        /* the case has failed */
    char log[1024];  /* the last error that the library explained */
    double worst[2]; /* largest relative error seen, scores of ordinary size: without and with 16-bit
                        rounding */
} chk;

/* One case: if chk_begin says so, do it, then chk_end.  The label names kernel and shape. */
bool chk_begin(chk *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
void chk_fail(chk *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
void chk_end(chk *c);
void chk_skip(chk *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Fails the case unless `status` is RELAY_OK, with what the library said. */
bool chk_ok(chk *c, const char *call, relay_status status);

/* ---- comparing ----------------------------------------------------------- */

/* Dense [rows][heads] and [rows][heads][dim] in float64. */
typedef struct chk_result {
    int64_t rows;
    int32_t heads, dim;
    double *out, *lse;          /* lse NULL: not asked for */
    double *spread, *magnitude; /* of an oracle's answer; NULL otherwise */
} chk_result;

bool chk_result_make(chk_result *result, int64_t rows, int32_t heads, int32_t dim, bool oracle);
void chk_result_free(chk_result *result);

/* Relative errors that are allowed; why these, see check_compare.c. */
typedef struct chk_tolerance {
    double relative; /* Frobenius, over the tensor */
    double element;  /* of one element, relative to what was summed for it */
    double rounding; /* half a unit of the output's last place, relative */
    double size;     /* of the values, where outputs have finer numbers near 0 than other tests ask for; 0: 1 */
} chk_tolerance;

chk_tolerance chk_tolerance_for(const chk *c, relay_dtype kv, relay_dtype output);

/* NaN and infinities first, then values; `want` needs spread and magnitude. */
void chk_compare(chk *c, const chk_result *want, const chk_result *got, chk_tolerance allowed);
/* Bit by bit (NaN equals NaN). */
void chk_compare_bits(chk *c, const char *what, const chk_result *want, const chk_result *got);

/* ---- the parts ----------------------------------------------------------- */

void chk_kernels(chk *c);
void chk_states(chk *c);
void chk_runs(chk *c);
void chk_fusion(chk *c);
void chk_laws(chk *c);
void chk_writes(chk *c);

#endif
