/* The documented settings: checks, and what they mean for the objects that act on them. */
#include "relay/config.h"

#include "log.h"

relay_info relay_info_defaults(int32_t system_length) {
    return (relay_info){.struct_size = sizeof(relay_info), .system_length = system_length, .enabled = 1,
                        .use_triton = 1, .cache_system_prompts = 1, .max_cached_system_prompts = 100};
}

relay_config relay_config_defaults(void) {
    return (relay_config){.struct_size = sizeof(relay_config), .use_triton = 1, .cache_system_prompts = 1,
                          .max_cached_system_prompts = 100, .enable_prefetch = 1, .prefetch_batch_size = 4};
}

relay_metadata relay_metadata_defaults(void) {
    return (relay_metadata){.struct_size = sizeof(relay_metadata)};
}

static relay_status check_flag(const relay_device *device, const char *field, int32_t value) {
    if (value == 0 || value == 1) return RELAY_OK;
    return relayi_fail(device, RELAY_INVALID_ARGUMENT, "%s: %d, expected 0 or 1", field, value);
}

static relay_status check_least(const relay_device *device, const char *field, int32_t value, int32_t least) {
    if (value >= least) return RELAY_OK;
    return relayi_fail(device, RELAY_INVALID_ARGUMENT, "%s: %d, expected >= %d", field, value, least);
}

static relay_status check_info(const relay_device *device, const relay_info *info) {
    relay_status status = relayi_check_size(device, "relay_info", info->struct_size, sizeof *info);
    if (status == RELAY_OK) status = check_least(device, "relay_info.system_length", info->system_length, 0);
    if (status == RELAY_OK) status = check_flag(device, "relay_info.enabled", info->enabled);
    if (status == RELAY_OK) status = check_flag(device, "relay_info.use_triton", info->use_triton);
    if (status == RELAY_OK)
        status = check_flag(device, "relay_info.cache_system_prompts", info->cache_system_prompts);
    if (status == RELAY_OK)
        status = check_least(device, "relay_info.max_cached_system_prompts", info->max_cached_system_prompts, 1);
    return status;
}

relay_status relay_config_check(const relay_device *device, const relay_config *config) {
    if (config == NULL) return RELAY_NULL_POINTER;
    relay_status status = relayi_check_size(device, "relay_config", config->struct_size, sizeof *config);
    if (status == RELAY_OK) status = check_flag(device, "relay_config.enabled", config->enabled);
    if (status == RELAY_OK) status = check_flag(device, "relay_config.use_triton", config->use_triton);
    if (status == RELAY_OK)
        status = check_flag(device, "relay_config.cache_system_prompts", config->cache_system_prompts);
    if (status == RELAY_OK)
        status = check_least(device, "relay_config.max_cached_system_prompts", config->max_cached_system_prompts, 1);
    if (status == RELAY_OK) status = check_flag(device, "relay_config.enable_prefetch", config->enable_prefetch);
    if (status == RELAY_OK)
        status = check_least(device, "relay_config.prefetch_batch_size", config->prefetch_batch_size, 1);
    if (status == RELAY_OK && config->default_relay_info) status = check_info(device, config->default_relay_info);
    return status;
}

relay_status relay_config_create_info(const relay_device *device, const relay_config *config,
                                      int32_t system_length, relay_info *info) {
    if (info == NULL) return RELAY_NULL_POINTER;
    relay_status status = relay_config_check(device, config);
    if (status == RELAY_OK) status = check_least(device, "system_length", system_length, 0);
    if (status != RELAY_OK) return status;
    relay_info made = relay_info_defaults(system_length);
    made.enabled = config->enabled;
    made.use_triton = config->use_triton;
    made.cache_system_prompts = config->cache_system_prompts;
    made.max_cached_system_prompts = config->max_cached_system_prompts;
    if (config->default_relay_info) made = *config->default_relay_info;
    made.system_length = system_length;
    *info = made;
    return RELAY_OK;
}

relay_status relay_config_apply(const relay_device *device, const relay_config *config,
                                relay_prompt_cache_options *cache, relay_plan_options *plan) {
    if (cache == NULL || plan == NULL) return RELAY_NULL_POINTER;
    relay_status status = relay_config_check(device, config);
    if (status != RELAY_OK) return status;
    cache->enabled = config->cache_system_prompts;
    cache->max_cached_system_prompts = config->max_cached_system_prompts;
    cache->enable_prefetch = config->enable_prefetch;
    cache->prefetch_batch_size = config->prefetch_batch_size;
    plan->strategy = config->enabled ? RELAY_STRATEGY_AUTO : RELAY_STRATEGY_PLAIN;
    return RELAY_OK;
}

int32_t relay_metadata_has_info(const relay_metadata *metadata) {
    return metadata != NULL && metadata->relay_info != NULL;
}
