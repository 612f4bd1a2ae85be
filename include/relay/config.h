/* relay/config.h - the documented configuration of RelayAttention as C structs.
 *
 * Field for field what the Python package's dataclasses RelayConfig, RelayInfo
 * and RelayMetadata hold.  Hosts read their users' settings into these and turn
 * them into options of the objects that act on them.
 */
#ifndef RELAY_CONFIG_H
#define RELAY_CONFIG_H

#include "plan.h"
#include "prompt_cache.h"

#ifdef __cplusplus
extern "C" {
#endif

/* About one system prompt. */
typedef struct relay_info {
    uint32_t struct_size;
    int32_t system_length;             /* tokens, >= 0; the one field without a default */
    int32_t enabled;                   /* 1 */
    int32_t use_triton;                /* 1; means something to the Python package alone */
    int32_t cache_system_prompts;      /* 1 */
    int32_t max_cached_system_prompts; /* 100 */
} relay_info;

typedef struct relay_config {
    uint32_t struct_size;
    int32_t enabled;                      /* 0: plain attention everywhere */
    const relay_info *default_relay_info; /* NULL; borrowed */
    int32_t use_triton;                   /* 1 */
    int32_t cache_system_prompts;         /* 1 */
    int32_t max_cached_system_prompts;    /* 100 */
    int32_t enable_prefetch;              /* 1 */
    int32_t prefetch_batch_size;          /* 4 */
} relay_config;

/* About one request: which cached prompt it stands on. */
typedef struct relay_metadata {
    uint32_t struct_size;
    const struct relay_info *relay_info; /* NULL = no relay for this request; borrowed */
    const char *system_cache_key;  /* NULL = not cached; borrowed */
    const char *user_cache_key;    /* NULL; borrowed */
} relay_metadata;

RELAY_API relay_info relay_info_defaults(int32_t system_length);
RELAY_API relay_config relay_config_defaults(void);
RELAY_API relay_metadata relay_metadata_defaults(void);

/* Checks every field; `device` gives the log and may be NULL.
 * Errors: NULL_POINTER, BAD_STRUCT_SIZE, INVALID_ARGUMENT. */
RELAY_API relay_status relay_config_check(const relay_device *device, const relay_config *config);

/* The info that config.create_relay_info(system_length) gives: the default info
 * with this length, or one made of the config's own fields when there is none.
 * Errors: those of relay_config_check; INVALID_ARGUMENT for a negative length. */
RELAY_API relay_status relay_config_create_info(const relay_device *device,
                                                const relay_config *config,
                                                int32_t system_length, relay_info *info);

/* Writes the fields that a config decides into options that have been filled by
 * their defaults: bounds and prefetch of the cache; relay or plain for the plan.
 * Errors: those of relay_config_check. */
RELAY_API relay_status relay_config_apply(const relay_device *device, const relay_config *config,
                                          relay_prompt_cache_options *cache,
                                          relay_plan_options *plan);

/* has_relay_info(): 1 if this request takes part in the relay. */
RELAY_API int32_t relay_metadata_has_info(const relay_metadata *metadata);

#ifdef __cplusplus
}
#endif
#endif
