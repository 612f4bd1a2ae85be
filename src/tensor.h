/* Checks of caller's tensors, and addressing of 16-bit and 32-bit elements. */
#ifndef RELAY_TENSOR_H
#define RELAY_TENSOR_H

#include <stdbool.h>

#include "log.h"

/* What a call expects of one tensor.  An extent of -1 takes any, min_first means that the first
 * extent may be larger. */
typedef struct relayi_expect {
    const char *name;       /* "relay_run_args.query" */
    int32_t ndim;
    int64_t shape[RELAY_MAX_DIMS];
    bool min_first;         /* shape[0] is a lower bound */
    bool dense_last;        /* the last stride must be 1 */
    relay_dtype dtype;      /* 0 = any dtype */
} relayi_expect;

relay_status relayi_check_tensor(const relay_device *device, const relay_tensor *tensor,
                                 const relayi_expect *expect);

/* First and one-past-last byte that a tensor can touch; an empty tensor touches none. */
void relayi_tensor_bytes(const relay_tensor *tensor, const char **first, const char **end);

/* Whether two tensors can touch a common byte (their byte ranges meet). */
bool relayi_tensors_overlap(const relay_tensor *a, const relay_tensor *b);

#endif
