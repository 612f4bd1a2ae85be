#include "relay/base.h"

#define STRING_(x) #x
#define STRING(x) STRING_(x)

const char *relay_version(void) {
    return STRING(RELAY_VERSION_MAJOR) "." STRING(RELAY_VERSION_MINOR) "." STRING(RELAY_VERSION_PATCH);
}

const char *relay_status_name(relay_status status) {
    switch ((int)status) {
#define CASE(value, name, text) \
    case value: return #name;
        RELAY_STATUS_LIST(CASE)
#undef CASE
    default: return "UNKNOWN";
    }
}

const char *relay_status_text(relay_status status) {
    switch ((int)status) {
#define CASE(value, name, text) \
    case value: return text;
        RELAY_STATUS_LIST(CASE)
#undef CASE
    default: return "unknown status";
    }
}

size_t relay_dtype_size(relay_dtype dtype) {
    switch ((int)dtype) {
    case RELAY_F32: return 4;
    case RELAY_F16: return 2;
    case RELAY_BF16: return 2;
    default: return 0;
    }
}

const char *relay_dtype_name(relay_dtype dtype) {
    switch ((int)dtype) {
    case RELAY_F32: return "f32";
    case RELAY_F16: return "f16";
    case RELAY_BF16: return "bf16";
    default: return "unknown";
    }
}
