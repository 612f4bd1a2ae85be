#ifndef RELAY_PLAN_BUILD_H
#define RELAY_PLAN_BUILD_H

#include "plan_internal.h"

/* Cuts a checked batch into rows, items and pieces, and fills plan->info.  False: no memory. */
bool relayi_build(relay_plan *plan, const relayi_forest_content *content);

#endif
