/* relay/relay.h - all of librelayattn.  Read the headers in this order:
 *
 *   base.h          errors, dtypes, tensors, logging
 *   device.h        where attention is computed
 *   prompt_cache.h  system prompts that are kept
 *   forest.h        what a batch shares
 *   plan.h          how a step is cut
 *   run.h           one layer's attention; writing K/V into pages
 *   fusion.h        merging partial attention
 *   config.h        the documented settings as C structs
 */
#ifndef RELAY_RELAY_H
#define RELAY_RELAY_H

#include "base.h"
#include "config.h"
#include "device.h"
#include "forest.h"
#include "fusion.h"
#include "plan.h"
#include "prompt_cache.h"
#include "run.h"

#endif
