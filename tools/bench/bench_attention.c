/* relay bench attention: one decode step of one layer, three ways, beside the machine's limit. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention_case.h"
#include "bench.h"
#include "bench_cuda.h"
#include "options.h"

#define WARM_UP_SECONDS 0.3

typedef struct settings {
    opt_strings heads;
    opt_ints head_dim, batch, system, user;
    int32_t groups, threads;
    int kv_dtype;
    uint64_t memory;
    double seconds; /* measured per shape and method, at least */
    bool json, no_private;
    int device; /* 0 CPU, 1 CUDA */
    int32_t index, readings;
    uint32_t cuda_methods;
    bool with_plan, ragged, always;
} settings;

typedef struct result {
    attention_shape shape;
    relay_calibration limits;
    relay_plan_info info;
    double seconds[NUM_METHODS], limit, plan_seconds, error;
} result;

/* ---- measuring ------------------------------------------------------------ */

/* One pass over all layers; the time of one. */
static bool time_pass(attention_case *c, attention_method method, double *seconds) {
    double start = bench_now();
    for (int32_t layer = 0; layer < c->layers[method]; layer++)
        if (!attention_case_run(c, method, layer)) return false;
    *seconds = (bench_now() - start) / c->layers[method];
    return true;
}

static bool warm_up(attention_case *c) {
    double start = bench_now(), ignored;
    while (bench_now() - start < WARM_UP_SECONDS)
        if (!time_pass(c, METHOD_RELAY, &ignored)) return false;
    return true;
}

/* Passes that a method gets: at least three, and five where they do not take too long. */
static bool has_enough(const bench_times *times, double spent, double least) {
    return (times->count >= 5 && spent >= least) || (times->count >= 3 && spent > 4.0 * least);
}

/* The methods take turns, so that a drift of the machine meets all of them. */
static bool time_methods(attention_case *c, double least, double *seconds) {
    bench_times times[NUM_METHODS] = {{0}};
    double spent[NUM_METHODS] = {0};
    bool ok = true, more = true;
    while (ok && more) {
        more = false;
        for (int m = 0; ok && m < NUM_METHODS; m++) {
            double one = 0.0;
            if (c->plan[m] == NULL || has_enough(&times[m], spent[m], least)) continue;
            ok = time_pass(c, (attention_method)m, &one) && bench_times_add(&times[m], one);
            spent[m] += one * c->layers[m];
            more = true;
        }
    }
    for (int m = 0; m < NUM_METHODS; m++) {
        seconds[m] = bench_times_median(&times[m]);
        bench_times_free(&times[m]);
    }
    return ok;
}

static double time_plan(attention_case *c) {
    bench_times times = {0};
    for (int i = 0; i < 50; i++) {
        double start = bench_now();
        if (relay_plan_build(c->plan[METHOD_RELAY], c->forest[METHOD_RELAY]) != RELAY_OK) break;
        if (!bench_times_add(&times, bench_now() - start)) break;
    }
    double median = bench_times_median(&times);
    bench_times_free(&times);
    return median;
}

/* Calibrated before and after: the limit is what the machine gave around the timing. */
static bool calibrate(relay_device *device, relay_calibration *limits, bool second) {
    relay_calibration now = {.struct_size = sizeof now};
    if (relay_device_calibrate(device, &now) != RELAY_OK) return false;
    if (!second) {
        *limits = now;
        return true;
    }
    limits->read_gbps = 0.5 * (limits->read_gbps + now.read_gbps);
    limits->f32_gflops = 0.5 * (limits->f32_gflops + now.f32_gflops);
    limits->bf16_gflops = 0.5 * (limits->bf16_gflops + now.bf16_gflops);
    limits->peak_gflops = 0.5 * (limits->peak_gflops + now.peak_gflops);
    return true;
}

static double limit_of(const result *r) {
    double read = r->info.unique_kv_bytes / (r->limits.read_gbps * 1e9);
    double peak = r->shape.kv_dtype == RELAY_BF16 ? r->limits.peak_gflops : r->limits.f32_gflops;
    double compute = r->info.flops / (peak * 1e9);
    return read > compute ? read : compute;
}

static bool measure(relay_device *device, const settings *set, const attention_shape *shape, result *r) {
    attention_case c;
    uint32_t methods = set->no_private ? 3u : 7u;
    *r = (result){.shape = *shape, .limits = {.struct_size = sizeof r->limits}, .info = {.struct_size = sizeof r->info}};
    if (!attention_case_open(&c, device, shape, methods, set->memory)) return false;
    bool ok = relay_plan_get_info(c.plan[METHOD_RELAY], &r->info) == RELAY_OK && warm_up(&c) &&
              calibrate(device, &r->limits, false) && time_methods(&c, set->seconds, r->seconds) &&
              calibrate(device, &r->limits, true) && attention_case_run(&c, METHOD_RELAY, 0);
    if (ok) {
        r->error = attention_case_error(&c);
        r->plan_seconds = time_plan(&c);
        r->limit = limit_of(r);
    }
    attention_case_close(&c);
    return ok;
}

/* ---- showing -------------------------------------------------------------- */

static json_t *microseconds(double seconds) {
    return isfinite(seconds) ? json_real(round(seconds * 1e8) / 100.0) : json_null();
}

static void print_json(const relay_device *device, const result *r) {
    relay_device_info info = {.struct_size = sizeof info};
    relay_device_get_info(device, &info);
    char heads[32];
    snprintf(heads, sizeof heads, "%d/%d", r->shape.heads, r->shape.kv_heads);
    json_t *line = json_pack(
        "{s:s, s:i, s:s, s:i, s:i, s:i, s:i, s:i, s:s, s:o, s:o, s:o, s:o, s:f, s:f, s:f, s:b, s:s, s:o, s:s}",
        "heads", heads, "head_dim", r->shape.head_dim, "kv_dtype", relay_dtype_name(r->shape.kv_dtype), "batch",
        r->shape.batch, "system", r->shape.system, "user", r->shape.user, "groups", r->shape.groups, "threads",
        info.threads, "device", "cpu", "relay_us", microseconds(r->seconds[METHOD_RELAY]), "plain_us",
        microseconds(r->seconds[METHOD_PLAIN]), "private_us", microseconds(r->seconds[METHOD_PRIVATE]), "limit_us",
        microseconds(r->limit), "read_gbps", r->limits.read_gbps, "peak_gflops", r->limits.peak_gflops, "rel_error",
        r->error, "relay_used", r->info.relay_segments > 0, "kernel", r->info.kernel, "plan_us",
        microseconds(r->plan_seconds), "processor", info.name);
    if (line == NULL) return;
    json_dumpf(line, stdout, JSON_REAL_PRECISION(5));
    putchar('\n');
    json_decref(line);
    fflush(stdout);
}

static void print_header(const relay_device *device) {
    relay_device_info info = {.struct_size = sizeof info};
    relay_device_get_info(device, &info);
    printf("%s, %d threads, level %s\n\n", info.name, info.threads, info.cpu_level);
    printf("%-6s %4s %-5s %4s %6s %5s %3s | %9s %9s %9s %9s | %6s %6s %7s | %6s %7s | %8s %s\n", "heads", "dim", "kv",
           "B", "S", "U", "G", "relay us", "plain us", "private", "limit us", "lim/rl", "pl/rl", "priv/rl", "GB/s",
           "GFLOP/s", "error", "used");
}

static void print_row(const result *r) {
    const double *s = r->seconds;
    char heads[32];
    snprintf(heads, sizeof heads, "%d/%d", r->shape.heads, r->shape.kv_heads);
    printf("%-6s %4d %-5s %4d %6d %5d %3d | %9.1f %9.1f %9.1f %9.1f | %6.2f %6.2f %7.2f | %6.1f %7.0f | %8.1e %s\n",
           heads, r->shape.head_dim, relay_dtype_name(r->shape.kv_dtype), r->shape.batch, r->shape.system,
           r->shape.user, r->shape.groups, s[METHOD_RELAY] * 1e6, s[METHOD_PLAIN] * 1e6, s[METHOD_PRIVATE] * 1e6,
           r->limit * 1e6, r->limit / s[METHOD_RELAY], s[METHOD_PLAIN] / s[METHOD_RELAY],
           s[METHOD_PRIVATE] / s[METHOD_RELAY], r->limits.read_gbps, r->limits.peak_gflops, r->error,
           r->info.relay_segments > 0 ? "relay" : "plain");
    fflush(stdout);
}

/* ---- the command ---------------------------------------------------------- */

static bool parse_heads(const char *text, attention_shape *shape) {
    char rest;
    return sscanf(text, "%d/%d%c", &shape->heads, &shape->kv_heads, &rest) == 2 && shape->kv_heads > 0 &&
           shape->heads > 0 && shape->heads % shape->kv_heads == 0 && shape->heads <= 1024;
}

/* Every combination that was asked for; NULL without memory. */
static attention_shape *list_shapes(const settings *set, int32_t *count) {
    static const relay_dtype dtypes[] = {RELAY_F32, RELAY_F16, RELAY_BF16};
    size_t all = (size_t)set->heads.count * (size_t)set->head_dim.count * (size_t)set->user.count *
                 (size_t)set->system.count * (size_t)set->batch.count;
    attention_shape *shapes = calloc(all, sizeof *shapes), *at = shapes;
    for (int32_t h = 0; shapes != NULL && h < set->heads.count; h++)
        for (int32_t d = 0; d < set->head_dim.count; d++)
            for (int32_t u = 0; u < set->user.count; u++)
                for (int32_t s = 0; s < set->system.count; s++)
                    for (int32_t b = 0; b < set->batch.count; b++, at++) {
                        *at = (attention_shape){.head_dim = set->head_dim.items[d], .batch = set->batch.items[b],
                                                .system = set->system.items[s], .user = set->user.items[u],
                                                .groups = set->groups, .kv_dtype = dtypes[set->kv_dtype]};
                        parse_heads(set->heads.items[h], at);
                        if (at->groups > at->batch) at->groups = at->batch;
                    }
    *count = (int32_t)all;
    return shapes;
}

static int run_shapes(relay_device *device, const settings *set, const attention_shape *shapes, int32_t count) {
    int failed = 0;
    if (!set->json) print_header(device);
    for (int32_t i = 0; i < count; i++) {
        result r;
        if (!measure(device, set, &shapes[i], &r)) failed = 1;
        else if (set->json) print_json(device, &r);
        else print_row(&r);
    }
    return failed;
}

static void print_log(void *user, relay_log_level level, const char *message) {
    (void)user;
    if (level <= RELAY_LOG_WARN) fprintf(stderr, "relay bench: %s\n", message);
}

static int run_on_cpu(const settings *set, const attention_shape *shapes, int32_t count) {
    relay_device_options options = relay_device_options_defaults();
    options.threads = set->threads;
    options.log = print_log;
    relay_device *device;
    if (relay_device_open(&options, &device) != RELAY_OK) return 1;
    int code = run_shapes(device, set, shapes, count);
    relay_device_close(device);
    return code;
}

static int run_anywhere(const settings *set) {
    int32_t count;
    attention_shape *shapes = list_shapes(set, &count);
    if (shapes == NULL) return 1;
    bench_cuda_settings cuda = {.shapes = shapes, .num_shapes = count, .index = set->index, .readings = set->readings,
                                .methods = set->cuda_methods, .json = set->json, .with_plan = set->with_plan, .ragged = set->ragged,
                                .always = set->always, .log = print_log};
    int code = set->device == 0 ? run_on_cpu(set, shapes, count) : bench_attention_cuda(&cuda);
    free(shapes);
    return code;
}

int bench_attention(int argc, char **argv) {
    static const char *const dtype_words[] = {"f32", "f16", "bf16", NULL}, *const device_words[] = {"cpu", "cuda", NULL};
    static const char *const method_words[] = {"ev", "gd", NULL};
    const char *default_heads[] = {"32/8", "32/32"};
    settings set = {.head_dim = {{128}, 1}, .batch = {{1, 16}, 2}, .system = {{2048, 8192}, 2}, .user = {{128}, 1},
                    .groups = 1, .kv_dtype = 2, .memory = (uint64_t)8 << 30, .seconds = 0.5, .readings = 60, .cuda_methods = 3};
    const opt_spec specs[] = {
        {OPT_STRINGS("heads", "Q/KV", &set.heads, "query heads over kv heads; may be repeated"),
         .shown_default = "32/8 and 32/32"},
        {OPT_INTS("head-dim", "N,...", &set.head_dim, 8, 256, "elements of a head")},
        {OPT_INTS("batch", "N,...", &set.batch, 1, 4096, "requests")},
        {OPT_INTS("system", "N,...", &set.system, 1, 1 << 20, "tokens of the shared prompt")},
        {OPT_INTS("user", "N,...", &set.user, 1, 1 << 20, "a request's own tokens, in pages of 16")},
        {OPT_INT("groups", "N", &set.groups, 1, 4096, "prompts that the batch is divided among")},
        {OPT_CHOICE("kv-dtype", "TYPE", &set.kv_dtype, dtype_words, "type of K/V, queries and outputs")},
        {OPT_INT("threads", "N", &set.threads, 0, 4096, "0: one per processor")},
        {OPT_FLOAT("seconds", "S", &set.seconds, 0.01, 60.0, "time spent on each method")},
        {OPT_BYTES("memory", "BYTES", &set.memory, 1 << 20, INT64_MAX, "shapes, and private copies, that need more are left out")},
        {OPT_FLAG("no-private", &set.no_private, "leave the private copies out")},
        {OPT_CHOICE("device", "KIND", &set.device, device_words, "cuda: K/V in pages, all of it in device memory")},
        {OPT_INT("index", "N", &set.index, 0, 1023, "which CUDA device")},
        {OPT_CHOICES("method", "HOW", &set.cuda_methods, method_words,
                     "CUDA, cold caches: ev, events around a graph; gd, graphs with and without the work")},
        {OPT_INT("readings", "N", &set.readings, 5, 10000, "CUDA: readings of which the median is shown")},
        {OPT_FLAG("ragged", &set.ragged,
                  "CUDA: prompts of 2/9 to 16/9 of --system tokens, requests of 1 to twice --user: the same in sum")},
        {OPT_FLAG("always", &set.always, "CUDA: relay even where the plan says that it does not pay")},
        {OPT_FLAG("with-plan", &set.with_plan, "CUDA: time the copy of the work list too, as in a model's first layer")},
        {OPT_FLAG("json", &set.json, "one JSON object a line")},
    };
    const opt_command command = {
        .name = "relay bench attention", .usage = "[options]",
        .summary = "Times one decode step of one layer: `relay` reads the prompt once for all requests, `plain` reads "
                   "the shared prompt for each request, `private` reads a copy that each request owns; all by this "
                   "library's best kernels, over more memory than the caches hold. The limit is max(unique K/V "
                   "bytes / read bandwidth, FLOPs / peak), both calibrated around the timing; the error is relative "
                   "to float64.",
        .specs = specs, .num_specs = OPT_COUNT(specs),
        .examples = "  relay bench attention\n  relay bench attention --heads 8/1 --batch 8 --system 4000 --json\n"};
    int code = opt_parse(&command, argc, argv);
    if (code >= 0) return code;
    if (set.heads.count == 0) set.heads = (opt_strings){default_heads, 2};
    for (int32_t i = 0; i < set.heads.count; i++) {
        attention_shape ignored;
        if (!parse_heads(set.heads.items[i], &ignored))
            return opt_mistake(&command, "--heads %s: expected Q/KV with Q a multiple of KV, such as 32/8",
                               set.heads.items[i]);
    }
    if (set.device == 0 && set.ragged) return opt_mistake(&command, "--ragged: only with --device cuda");
    if (set.device == 0 && set.always) return opt_mistake(&command, "--always: only with --device cuda");
    if (set.device == 1 && set.kv_dtype == 0) return opt_mistake(&command, "--kv-dtype f32: CUDA computes f16 and bf16");
    code = run_anywhere(&set);
    if (set.heads.items != default_heads) opt_strings_free(&set.heads);
    return code;
}
