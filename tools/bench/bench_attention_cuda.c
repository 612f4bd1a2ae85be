/* relay bench attention --device cuda: relay and plain beside the device's limit, calibrated in the same run. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>

#include "bench_cuda.h"

static const char *const method_names[] = {"ev", "gd"};

typedef struct cuda_result {
    attention_shape shape;
    relay_plan_info info;
    double seconds[2], limit, plan_seconds, update_seconds, error;
    bench_cuda_method method;
    const bench_cuda_settings *set;
} cuda_result;

static double limit_of(const cuda_result *r, const relay_calibration *limits) {
    double read = r->info.unique_kv_bytes / (limits->read_gbps * 1e9);
    double compute = r->info.flops / (limits->bf16_gflops * 1e9);
    return read > compute ? read : compute;
}

/* ---- showing --------------------------------------------------------------- */

static json_t *microseconds(double seconds) {
    return isfinite(seconds) ? json_real(round(seconds * 1e8) / 100.0) : json_null();
}

static void print_json(const relay_device_info *device, const relay_calibration *limits, const cuda_result *r) {
    char heads[32];
    snprintf(heads, sizeof heads, "%d/%d", r->shape.heads, r->shape.kv_heads);
    json_t *line = json_pack(
        "{s:s, s:i, s:s, s:i, s:i, s:i, s:i, s:i, s:s, s:s, s:b, s:o, s:o, s:o, s:o, s:f, s:f, s:f, s:b, s:s, s:o, s:o, s:b, s:b, s:s}",
        "heads", heads, "head_dim", r->shape.head_dim, "kv_dtype", relay_dtype_name(r->shape.kv_dtype), "batch",
        r->shape.batch, "system", r->shape.system, "user", r->shape.user, "groups", r->shape.groups, "threads", 1,
        "device", "cuda", "method", method_names[r->method], "with_plan", r->set->with_plan, "relay_us",
        microseconds(r->seconds[0]), "plain_us", microseconds(r->seconds[1]), "private_us", json_null(), "limit_us",
        microseconds(r->limit), "read_gbps", limits->read_gbps, "peak_gflops", limits->bf16_gflops, "rel_error",
        r->error, "relay_used", r->info.relay_segments > 0, "kernel", r->info.kernel, "plan_us",
        microseconds(r->plan_seconds), "plan_update_us", microseconds(r->update_seconds), "ragged",
        r->set->ragged, "always", r->set->always, "processor", device->name);
    if (line == NULL) return;
    json_dumpf(line, stdout, JSON_REAL_PRECISION(5));
    putchar('\n');
    json_decref(line);
    fflush(stdout);
}

static void print_header(const relay_device_info *device, const relay_calibration *limits) {
    printf("%s (%s)\nread %.0f GB/s, bf16 %.0f TFLOP/s\n\n", device->name, device->features, limits->read_gbps,
           limits->bf16_gflops * 1e-3);
    printf("%-6s %4s %4s %6s %5s %3s %2s | %9s %9s %9s | %6s %6s | %7s %6s | %8s %s\n", "heads", "dim", "B", "S", "U", "G",
           "", "relay us", "plain us", "limit us", "rl/lim", "pl/rl", "plan us", "update", "error", "used");
}

static void print_row(const cuda_result *r) {
    char heads[32];
    snprintf(heads, sizeof heads, "%d/%d", r->shape.heads, r->shape.kv_heads);
    printf("%-6s %4d %4d %6d %5d %3d %2s | %9.2f %9.2f %9.2f | %6.2f %6.2f | %7.1f %6.1f | %8.1e %s\n", heads, r->shape.head_dim,
           r->shape.batch, r->shape.system, r->shape.user, r->shape.groups, method_names[r->method],
           r->seconds[0] * 1e6, r->seconds[1] * 1e6, r->limit * 1e6, r->seconds[0] / r->limit,
           r->seconds[1] / r->seconds[0], r->plan_seconds * 1e6, r->update_seconds * 1e6, r->error,
           r->info.relay_segments > 0 ? "relay" : "plain");
    fflush(stdout);
}

/* ---- the command ------------------------------------------------------------ */

static bool measure(cuda_lab *lab, const bench_cuda_settings *set, const attention_shape *shape,
                    const relay_device_info *device, const relay_calibration *limits) {
    cuda_case k;
    cuda_result r = {.shape = *shape, .info = {.struct_size = sizeof r.info}, .set = set};
    if (!cuda_case_open(&k, lab, shape, set->ragged, set->always)) return false;
    bool ok = relay_plan_get_info(k.plan[0], &r.info) == RELAY_OK;
    r.error = cuda_case_error(&k, 0);
    r.plan_seconds = cuda_case_time_build(&k, true);
    r.update_seconds = cuda_case_time_build(&k, false);
    r.limit = limit_of(&r, limits);
    for (int m = 0; ok && m < 2; m++) {
        if (!(set->methods & 1u << m)) continue;
        r.method = (bench_cuda_method)m;
        for (int which = 0; which < 2; which++)
            r.seconds[which] = cuda_case_time(&k, which, r.method, !set->with_plan, set->readings);
        ok = isfinite(r.seconds[0]) && isfinite(r.seconds[1]) && isfinite(r.error);
        if (set->json) print_json(device, limits, &r);
        else print_row(&r);
    }
    cuda_case_close(&k);
    return ok;
}

int bench_attention_cuda(const bench_cuda_settings *set) {
    cuda_lab lab;
    relay_device_info device = {.struct_size = sizeof device};
    relay_calibration limits = {.struct_size = sizeof limits};
    if (!cuda_lab_open(&lab, set->index, set->log, NULL)) return 1;
    bool ok = relay_device_get_info(lab.device, &device) == RELAY_OK &&
              relay_device_calibrate(lab.device, &limits) == RELAY_OK;
    if (ok && !set->json) print_header(&device, &limits);
    for (int32_t i = 0; i < set->num_shapes && limits.read_gbps > 0.0; i++)
        ok = measure(&lab, set, &set->shapes[i], &device, &limits) && ok;
    cuda_lab_close(&lab);
    return ok ? 0 : 1;
}
