/* relay info: the processor, the kernels chosen for it, and its measured limits. */
#include <jansson.h>
#include <stdlib.h>

#include "commands.h"
#include "device_internal.h"
#include "options.h"

static const relay_dtype dtypes[] = {RELAY_F32, RELAY_F16, RELAY_BF16};
enum { NUM_DTYPES = 3, SMALLEST_MULTIPLE = 8 /* of a head dim */ };

typedef struct feature {
    int32_t bit;
    const char *name;
} feature;

static const feature features[] = {
    {RELAYI_DOES_SOFT_CAP, "soft cap"},
    {RELAYI_DOES_ALIBI, "ALiBi"},
    {RELAYI_DOES_SINK_TOKENS, "sink tokens"},
};
enum { NUM_FEATURES = 3 };

typedef struct findings {
    relay_device *device;
    relay_device_info info;
    relay_calibration limits;
} findings;

static void print_error(void *user, relay_log_level level, const char *message) {
    (void)user;
    if (level <= RELAY_LOG_WARN) fprintf(stderr, "relay info: %s\n", message);
}

static relay_status measure(findings *found, int32_t threads) {
    relay_device_options options = relay_device_options_defaults();
    options.threads = threads;
    options.log = print_error;
    relay_status status = relay_device_open(&options, &found->device);
    if (status != RELAY_OK) return status;
    found->info.struct_size = sizeof found->info;
    found->limits.struct_size = sizeof found->limits;
    status = relay_device_get_info(found->device, &found->info);
    if (status != RELAY_OK) return status;
    return relay_device_calibrate(found->device, &found->limits);
}

static int32_t left_to_reference(const findings *found, relay_dtype query, relay_dtype kv) {
    return RELAYI_DOES_ALL & ~relayi_pick_attend(found->device, query, kv)->features;
}

static void print_kernel(const findings *found, relay_dtype query, relay_dtype kv) {
    int32_t left = left_to_reference(found, query, kv);
    int32_t multiple = relayi_pick_attend(found->device, query, kv)->head_dim_multiple;
    printf("  %-7s %-7s %s", relay_dtype_name(query), relay_dtype_name(kv),
           relay_device_kernel_name(found->device, query, kv));
    const char *lead = "; by the reference kernel: ";
    if (multiple > SMALLEST_MULTIPLE) {
        printf("%shead dims that are no multiple of %d", lead, (int)multiple);
        lead = ", ";
    }
    for (int i = 0; i < NUM_FEATURES; i++) {
        if (!(left & features[i].bit)) continue;
        printf("%s%s", lead, features[i].name);
        lead = ", ";
    }
    putchar('\n');
}

/* The first CUDA device, if there is one; that there is none is no error here. */
static relay_device *open_gpu(relay_device_info *info) {
    relay_device_options options = relay_device_options_defaults();
    relay_device *gpu = NULL;
    options.kind = RELAY_DEVICE_CUDA;
    info->struct_size = sizeof *info;
    if (relay_device_open(&options, &gpu) != RELAY_OK) return NULL;
    if (relay_device_get_info(gpu, info) == RELAY_OK) return gpu;
    relay_device_close(gpu);
    return NULL;
}

static void print_gpu(void) {
    relay_device_info info = {0};
    relay_device *gpu = open_gpu(&info);
    if (gpu == NULL) return;
    printf("\nCUDA device 0  %s\n  %s\n", info.name, info.features);
    for (int d = 1; d < NUM_DTYPES; d++)
        printf("  %-7s %-7s %s\n", relay_dtype_name(dtypes[d]), relay_dtype_name(dtypes[d]),
               relay_device_kernel_name(gpu, dtypes[d], dtypes[d]));
    relay_device_close(gpu);
}

static void print_text(const findings *found) {
    const relay_calibration *limits = &found->limits;
    printf("processor  %s\n", found->info.name);
    printf("has        %s\n", found->info.features);
    printf("uses       %s (RELAY_CPU=scalar|avx2|avx512|avx512bf16|amx lowers it)\n", found->info.cpu_level);
    printf("threads    %d\n", (int)found->info.threads);
    printf("\nkernels\n  query   K/V     kernel\n");
    for (int q = 0; q < NUM_DTYPES; q++)
        for (int kv = 0; kv < NUM_DTYPES; kv++) print_kernel(found, dtypes[q], dtypes[kv]);
    print_gpu();
    printf("\nlimits, measured now with all threads\n");
    printf("  memory read       %8.1f GB/s\n", limits->read_gbps);
    printf("  f32 multiply-add  %8.1f GFLOP/s\n", limits->f32_gflops);
    printf("  bf16 products     %8.1f GFLOP/s\n", limits->bf16_gflops);
}

static json_t *kernel_json(const findings *found, relay_dtype query, relay_dtype kv) {
    int32_t left = left_to_reference(found, query, kv);
    json_t *names = json_array();
    for (int i = 0; i < NUM_FEATURES; i++)
        if (left & features[i].bit) json_array_append_new(names, json_string(features[i].name));
    return json_pack("{s:s, s:s, s:s, s:i, s:o}", "query", relay_dtype_name(query), "kv",
                     relay_dtype_name(kv), "kernel", relay_device_kernel_name(found->device, query, kv),
                     "head_dim_multiple", (int)relayi_pick_attend(found->device, query, kv)->head_dim_multiple,
                     "reference_for", names);
}

/* null without a CUDA device */
static json_t *gpu_json(void) {
    relay_device_info info = {0};
    relay_device *gpu = open_gpu(&info);
    if (gpu == NULL) return json_null();
    json_t *json = json_pack("{s:s, s:s, s:s, s:s}", "name", info.name, "features", info.features, "bf16",
                             relay_device_kernel_name(gpu, RELAY_BF16, RELAY_BF16), "f16",
                             relay_device_kernel_name(gpu, RELAY_F16, RELAY_F16));
    relay_device_close(gpu);
    return json;
}

static bool print_json(const findings *found) {
    json_t *kernels = json_array();
    for (int q = 0; q < NUM_DTYPES; q++)
        for (int kv = 0; kv < NUM_DTYPES; kv++)
            json_array_append_new(kernels, kernel_json(found, dtypes[q], dtypes[kv]));
    json_t *root = json_pack(
        "{s:s, s:s, s:s, s:s, s:i, s:o, s:f, s:f, s:f, s:f, s:o}", "version", relay_version(),
        "processor", found->info.name, "features", found->info.features, "cpu_level",
        found->info.cpu_level, "threads", (int)found->info.threads, "kernels", kernels, "read_gbps",
        found->limits.read_gbps, "f32_gflops", found->limits.f32_gflops, "bf16_gflops",
        found->limits.bf16_gflops, "peak_gflops", found->limits.peak_gflops, "cuda", gpu_json());
    bool ok = root != NULL && json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) == 0;
    json_decref(root);
    return ok && putchar('\n') != EOF;
}

int cmd_info(int argc, char **argv) {
    bool json = false;
    int32_t threads = 0;
    const opt_spec specs[] = {
        {OPT_FLAG("json", &json, "print one JSON object instead of text")},
        {OPT_INT("threads", "N", &threads, 0, 4096, "threads to measure with; 0 = one per processor")},
    };
    const opt_command command = {
        .name = "relay info",
        .usage = "[options]",
        .summary = "Shows the processor, the attention kernel chosen for each pair of query and K/V "
                   "data types, what is left to the reference kernel, and the limits that the "
                   "benchmarks quote. Measuring them takes about half a second.",
        .specs = specs,
        .num_specs = OPT_COUNT(specs),
        .examples = "  relay info\n"
                    "  relay info --json | jq .read_gbps\n"
                    "  RELAY_CPU=avx2 relay info      what a lesser processor would use\n",
    };
    int code = opt_parse(&command, argc, argv);
    if (code >= 0) return code;
    findings found = {.device = NULL};
    relay_status status = measure(&found, threads);
    bool ok = status == RELAY_OK;
    if (!ok) fprintf(stderr, "relay info: %s\n", relay_status_text(status));
    else if (json) ok = print_json(&found);
    else print_text(&found);
    relay_device_close(found.device);
    return ok && fflush(stdout) == 0 && !ferror(stdout) ? 0 : 1;
}
