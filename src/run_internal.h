#ifndef RELAY_RUN_INTERNAL_H
#define RELAY_RUN_INTERNAL_H

#include "plan_internal.h"
#include "relay/run.h"

/* Everything that relay_run refuses; nothing has been written when it returns. */
relay_status relayi_check_run(const relay_plan *plan, const relay_run_args *args);

#endif
