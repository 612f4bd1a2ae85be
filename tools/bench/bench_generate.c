/* relay bench generate: whole decode steps of a model, three ways, beside the machine's limits. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "generate_case.h"
#include "options.h"

/* The prompt cache keeps a hundred prompts. */
enum { MAX_COPIES = 99 };

typedef struct settings {
    generate_shape shape;
    uint32_t methods;
    int32_t rounds;
    int compute, kv_dtype;
    uint64_t memory;
    bool json;
} settings;

static const char *const method_words[] = {"relay", "plain", "private", NULL};

/* Seconds that no correct way could undercut, given what the machine reads and computes: products, attention. */
typedef struct limits {
    double linear, attention;
} limits;

/* The mean of several calibrations. */
typedef struct mean_machine {
    relay_calibration machine;
    int32_t count;
} mean_machine;

typedef struct result {
    bool measured;
    generate_times times;
    double seconds[NUM_PARTS]; /* medians */
    mean_machine around;       /* its batches */
    limits limit, prefill_limit;
} result;

typedef struct findings {
    const settings *set;
    generate_case model;
    generate_prefill prefill;
    relay_device *device; /* calibrates */
    mean_machine all;
    result results[NUM_GENERATE_METHODS];
} findings;

/* ---- limits --------------------------------------------------------------- */

static double larger(double a, double b) {
    return a > b ? a : b;
}

static double seconds_of(double bytes, double flops, double gbps, double gflops) {
    return larger(bytes / (gbps * 1e9), flops / (gflops * 1e9));
}

/* Products of f32 activations cannot use the bf16 rate. */
static double linear_peak(const findings *f, const relay_calibration *machine) {
    const char *name = eng_model_kernel_name(eng_engine_model(f->model.engine));
    const eng_linear_kernel *kernel;
    for (int i = 0; (kernel = eng_linear_kernel_at(i)) != NULL; i++)
        if (strcmp(kernel->name, name) == 0 && kernel->x_layout != ENG_ROWS_F32) return machine->peak_gflops;
    return machine->f32_gflops;
}

static double linear_limit(const findings *f, const relay_calibration *machine, int32_t rows, int32_t logit_rows) {
    const eng_model *model = eng_engine_model(f->model.engine);
    return seconds_of((double)eng_model_step_bytes(model, logit_rows), eng_model_linear_flops(model, rows, logit_rows),
                      machine->read_gbps, linear_peak(f, machine));
}

/* All layers.  `read`: K/V tokens to be read; `seen`: sum over query rows of the tokens they attend. */
static double attention_limit(const findings *f, const relay_calibration *machine, double read, double seen) {
    const eng_model_config *c = eng_model_config_of(eng_engine_model(f->model.engine));
    relay_dtype dtype = eng_engine_kv_dtype(f->model.engine);
    const eng_kv_shape kv = {c->layers, c->kv_heads, c->head_dim, dtype};
    return seconds_of(read * (double)eng_kv_token_bytes(&kv), 4.0 * c->head_dim * c->heads * c->layers * seen,
                      machine->read_gbps, dtype == RELAY_F32 ? machine->f32_gflops : machine->peak_gflops);
}

static limits decode_limits(const findings *f, int method, const relay_calibration *machine) {
    const generate_shape *s = &f->set->shape;
    double copies = method == GENERATE_PRIVATE ? s->batch : 1, own = f->results[method].times.own_tokens;
    return (limits){linear_limit(f, machine, s->batch, s->batch),
                    attention_limit(f, machine, copies * s->system + s->batch * own, s->batch * (s->system + own))};
}

/* In steps of step_rows, as the engine does it: each reads the weights and the K/V before it. */
static limits prefill_limits(const findings *f, const relay_calibration *machine) {
    const generate_shape *s = &f->set->shape;
    limits limit = {0, 0};
    for (int32_t at = 0; at < s->system; at += s->step_rows) {
        int32_t rows = s->system - at < s->step_rows ? s->system - at : s->step_rows;
        limit.linear += linear_limit(f, machine, rows, 0);
        limit.attention += attention_limit(f, machine, at + rows, rows * (at + 0.5 * (rows + 1)));
    }
    return limit;
}

static double whole(limits limit) {
    return limit.linear + limit.attention;
}

/* ---- measuring ------------------------------------------------------------ */

static void add_machine(mean_machine *mean, const relay_calibration *now) {
    double share = 1.0 / ++mean->count;
    mean->machine.read_gbps += share * (now->read_gbps - mean->machine.read_gbps);
    mean->machine.f32_gflops += share * (now->f32_gflops - mean->machine.f32_gflops);
    mean->machine.peak_gflops += share * (now->peak_gflops - mean->machine.peak_gflops);
}

static bool calibrate(findings *f, result *r) {
    relay_calibration now = {.struct_size = sizeof now};
    if (relay_device_calibrate(f->device, &now) != RELAY_OK) return false;
    add_machine(&r->around, &now);
    add_machine(&f->all, &now);
    return true;
}

static bool wants(const settings *set, int method) {
    return set->methods >> method & 1;
}

/* The methods take turns, so that a drift of the machine meets all of them. */
static bool run_rounds(findings *f) {
    for (int32_t round = 0; round < f->set->rounds; round++)
        for (int m = 0; m < NUM_GENERATE_METHODS; m++) {
            result *r = &f->results[m];
            if (!wants(f->set, m)) continue;
            if (!calibrate(f, r) || !generate_case_run(&f->model, (generate_method)m, &r->times) || !calibrate(f, r))
                return false;
        }
    return true;
}

static bool summarise(findings *f, generate_method method) {
    result *r = &f->results[method];
    if (r->times.parts[PART_STEP].count == 0) {
        fprintf(stderr, "relay bench generate: no step decoded all requests at once: raise --max-tokens or --step-rows\n");
        return false;
    }
    for (int part = 0; part < NUM_PARTS; part++) r->seconds[part] = bench_times_median(&r->times.parts[part]);
    r->limit = decode_limits(f, method, &r->around.machine);
    r->prefill_limit = prefill_limits(f, &f->all.machine);
    r->measured = true;
    return true;
}

static bool measure(findings *f) {
    const settings *set = f->set;
    bool ok = generate_case_open(&f->model, &set->shape, wants(set, GENERATE_PRIVATE) ? set->shape.batch : 0);
    ok = ok && generate_case_prefill(&f->model, &f->prefill) && generate_case_copy(&f->model) && run_rounds(f);
    for (int m = 0; ok && m < NUM_GENERATE_METHODS; m++)
        if (wants(set, m)) ok = summarise(f, (generate_method)m);
    return ok;
}

/* ---- showing -------------------------------------------------------------- */

static json_t *milliseconds(double seconds) {
    return json_real(round(seconds * 1e6) / 1e3);
}

static void print_line(json_t *line) {
    if (line == NULL) return;
    json_dumpf(line, stdout, JSON_REAL_PRECISION(5));
    putchar('\n');
    json_decref(line);
}

static json_t *shape_json(const findings *f, const char *method) {
    const generate_shape *s = &f->set->shape;
    relay_device_info info = {.struct_size = sizeof info};
    relay_device_get_info(f->device, &info);
    return json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:s, s:s, s:i, s:s, s:s}", "attention", method, "shape", s->model,
                     "batch", s->batch, "system", s->system, "user", s->user, "max_tokens", s->max_tokens, "kv_dtype",
                     relay_dtype_name(eng_engine_kv_dtype(f->model.engine)), "linear_kernel",
                     eng_model_kernel_name(eng_engine_model(f->model.engine)), "threads", info.threads, "device", "cpu",
                     "processor", info.name);
}

static json_t *decode_json(const findings *f, const result *r) {
    const double *s = r->seconds;
    return json_pack("{s:f, s:i, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:f, s:f, s:f, s:b}", "tokens_per_second",
                     f->set->shape.batch / s[PART_STEP], "steps", r->times.parts[PART_STEP].count, "step_ms",
                     milliseconds(s[PART_STEP]), "attention_ms", milliseconds(s[PART_ATTENTION]), "linear_ms",
                     milliseconds(s[PART_LINEAR]), "other_ms", milliseconds(s[PART_OTHER]), "limit_step_ms",
                     milliseconds(whole(r->limit)), "limit_attention_ms", milliseconds(r->limit.attention),
                     "limit_linear_ms", milliseconds(r->limit.linear), "limit_fraction", whole(r->limit) / s[PART_STEP],
                     "attention_fraction", r->limit.attention / s[PART_ATTENTION], "linear_fraction",
                     r->limit.linear / s[PART_LINEAR], "relay_used", r->times.relay_steps > 0);
}

static json_t *prefill_json(const findings *f, const result *r) {
    const generate_prefill *p = &f->prefill;
    return json_pack("{s:f, s:f, s:f, s:f, s:f}", "prefill_tokens_per_second", f->set->shape.system / p->seconds,
                     "prefill_limit_tokens_per_second",
                     f->set->shape.system / whole(r->prefill_limit),
                     "prefill_linear_fraction", r->prefill_limit.linear / p->linear_seconds,
                     "prefill_attention_fraction", r->prefill_limit.attention / p->attention_seconds, "prefill_seconds",
                     p->seconds);
}

static void print_method_json(const findings *f, int method) {
    const result *r = &f->results[method];
    const relay_calibration *m = &r->around.machine;
    json_t *line = shape_json(f, method_words[method]);
    json_object_update_new(line, decode_json(f, r));
    json_object_update_new(line, prefill_json(f, r));
    json_object_update_new(line, json_pack("{s:f, s:f, s:f}", "read_gbps", m->read_gbps, "f32_gflops", m->f32_gflops,
                                           "peak_gflops", m->peak_gflops));
    print_line(line);
}

/* How many times as fast as `other` relay is: measured, and what the limits predict on one machine. */
static double ratio(const findings *f, int other) {
    return f->results[other].seconds[PART_STEP] / f->results[GENERATE_RELAY].seconds[PART_STEP];
}

static double predicted_ratio(const findings *f, int other) {
    const relay_calibration *machine = &f->all.machine;
    return whole(decode_limits(f, other, machine)) / whole(decode_limits(f, GENERATE_RELAY, machine));
}

static void print_ratios_json(const findings *f) {
    json_t *line = shape_json(f, "ratios");
    for (int m = GENERATE_PLAIN; m < NUM_GENERATE_METHODS; m++) {
        char measured[64], predicted[64];
        if (!f->results[m].measured) continue;
        snprintf(measured, sizeof measured, "relay_over_%s", method_words[m]);
        snprintf(predicted, sizeof predicted, "limit_relay_over_%s", method_words[m]);
        json_object_set_new(line, measured, json_real(ratio(f, m)));
        json_object_set_new(line, predicted, json_real(predicted_ratio(f, m)));
    }
    print_line(line);
}

static void print_header(const findings *f) {
    const generate_shape *s = &f->set->shape;
    relay_device_info info = {.struct_size = sizeof info};
    relay_device_get_info(f->device, &info);
    printf("%s, %d threads, level %s\n", info.name, info.threads, info.cpu_level);
    printf("%s, random weights, products by %s, K/V %s; %d requests of %d tokens under one prompt of %d, %d answered each\n\n",
           s->model, eng_model_kernel_name(eng_engine_model(f->model.engine)),
           relay_dtype_name(eng_engine_kv_dtype(f->model.engine)), s->batch, s->user, s->system, s->max_tokens);
    printf("%-8s %8s %9s %9s %9s %8s | %9s %9s %9s | %6s %6s %6s | %6s %8s\n", "", "tokens/s", "step ms", "attention",
           "linear", "other", "limit ms", "attention", "linear", "lim/st", "att", "lin", "GB/s", "GFLOP/s");
}

static void print_row(const findings *f, int method) {
    const result *r = &f->results[method];
    const double *s = r->seconds;
    printf("%-8s %8.1f %9.2f %9.2f %9.2f %8.2f | %9.2f %9.2f %9.2f | %6.2f %6.2f %6.2f | %6.1f %8.0f\n",
           method_words[method], f->set->shape.batch / s[PART_STEP], s[PART_STEP] * 1e3, s[PART_ATTENTION] * 1e3,
           s[PART_LINEAR] * 1e3, s[PART_OTHER] * 1e3, whole(r->limit) * 1e3, r->limit.attention * 1e3,
           r->limit.linear * 1e3, whole(r->limit) / s[PART_STEP], r->limit.attention / s[PART_ATTENTION],
           r->limit.linear / s[PART_LINEAR], r->around.machine.read_gbps, r->around.machine.peak_gflops);
}

static void print_prefill(const findings *f, const result *r) {
    const generate_prefill *p = &f->prefill;
    printf("\nprompt    %.0f tokens/s (%.2f s); the limit is %.0f; products at %.2f of their limit, attention at %.2f\n",
           f->set->shape.system / p->seconds, p->seconds,
           f->set->shape.system / whole(r->prefill_limit),
           r->prefill_limit.linear / p->linear_seconds, r->prefill_limit.attention / p->attention_seconds);
}

static void print_table(const findings *f) {
    const result *first = NULL;
    print_header(f);
    for (int m = 0; m < NUM_GENERATE_METHODS; m++) {
        if (!f->results[m].measured) continue;
        if (first == NULL) first = &f->results[m];
        print_row(f, m);
    }
    print_prefill(f, first);
    for (int m = GENERATE_PLAIN; m < NUM_GENERATE_METHODS && f->results[GENERATE_RELAY].measured; m++)
        if (f->results[m].measured)
            printf("relay is %.2f times as fast as %s; the limits say %.2f\n", ratio(f, m), method_words[m],
                   predicted_ratio(f, m));
}

static void print_json(const findings *f) {
    int measured = 0;
    for (int m = 0; m < NUM_GENERATE_METHODS; m++) {
        if (!f->results[m].measured) continue;
        print_method_json(f, m);
        measured++;
    }
    if (f->results[GENERATE_RELAY].measured && measured > 1) print_ratios_json(f);
}

/* ---- the command ---------------------------------------------------------- */

/* What the copies and the prompt take, packed. */
static double prompt_bytes(const settings *set) {
    const eng_kv_shape largest = {16, 8, 64, set->shape.kv_dtype == 0 ? RELAY_BF16 : set->shape.kv_dtype};
    return (set->shape.batch + 1.0) * set->shape.system * (double)eng_kv_token_bytes(&largest);
}

static int check_settings(const opt_command *command, settings *set) {
    static const relay_dtype dtypes[] = {(relay_dtype)0, RELAY_F32, RELAY_BF16, RELAY_F16};
    static const eng_compute computes[] = {ENG_COMPUTE_AUTO, ENG_COMPUTE_F32, ENG_COMPUTE_BF16};
    set->shape.kv_dtype = dtypes[set->kv_dtype];
    set->shape.compute = computes[set->compute];
    if (set->shape.compute == ENG_COMPUTE_F32 && set->shape.kv_dtype == 0) set->shape.kv_dtype = RELAY_F32;
    if (!wants(set, GENERATE_PRIVATE)) return -1;
    if (set->shape.batch > MAX_COPIES)
        return opt_mistake(command, "--attention private: expected a batch of at most %d, got %d", MAX_COPIES,
                           (int)set->shape.batch);
    if (prompt_bytes(set) > (double)set->memory)
        return opt_mistake(command, "--attention private: %d copies of the prompt take %.1f GB; --memory allows %.1f",
                           (int)set->shape.batch, prompt_bytes(set) * 1e-9, (double)set->memory * 1e-9);
    return -1;
}

static int run(const settings *set) {
    findings f = {.set = set};
    relay_device_options options = relay_device_options_defaults();
    options.threads = set->shape.threads;
    if (relay_device_open(&options, &f.device) != RELAY_OK) return 1;
    bool ok = measure(&f);
    if (ok && set->json) print_json(&f);
    else if (ok) print_table(&f);
    generate_case_close(&f.model);
    for (int m = 0; m < NUM_GENERATE_METHODS; m++) generate_times_free(&f.results[m].times);
    relay_device_close(f.device);
    return ok && fflush(stdout) == 0 && !ferror(stdout) ? 0 : 1;
}

int bench_generate(int argc, char **argv) {
    static const char *const compute_words[] = {"auto", "f32", "bf16", NULL};
    static const char *const kv_words[] = {"auto", "f32", "bf16", "f16", NULL};
    settings set = {.shape = {.model = "llama-1b", .batch = 32, .system = 4096, .user = 32, .max_tokens = 16,
                              .step_rows = 512},
                    .methods = 7, .rounds = 2, .memory = (uint64_t)12 << 30};
    const opt_spec specs[] = {
        {OPT_STRING("shape", "NAME", &set.shape.model, "of the random weights: llama-1b, or tiny")},
        {OPT_INT("batch", "N", &set.shape.batch, 1, 1024, "requests that decode at once")},
        {OPT_INT("system", "N", &set.shape.system, 16, 1 << 17, "tokens of the system prompt")},
        {OPT_INT("user", "N", &set.shape.user, 1, 1 << 17, "a request's own tokens, in pages of 16")},
        {OPT_INT("max-tokens", "N", &set.shape.max_tokens, 2, 1 << 16, "tokens of each answer")},
        {OPT_CHOICES("attention", "WAY,...", &set.methods, method_words, "what is timed"),
         .shown_default = "relay,plain,private"},
        {OPT_CHOICE("compute", "DTYPE", &set.compute, compute_words, "activations in products; auto: bf16 where the CPU is faster at it")},
        {OPT_CHOICE("kv-dtype", "DTYPE", &set.kv_dtype, kv_words, "of K/V; auto: bf16, or f32 with --compute f32")},
        {OPT_INT("rounds", "N", &set.rounds, 1, 1000, "batches answered each way, in turns")},
        {OPT_INT("step-rows", "N", &set.shape.step_rows, 1, 1 << 16, "tokens computed in one step, at most")},
        {OPT_BYTES("memory", "BYTES", &set.memory, 1 << 20, INT64_MAX, "for the copies of the prompt, at most")},
        {OPT_INT("threads", "N", &set.shape.threads, 0, 4096, "0: one per processor")},
        {OPT_FLAG("json", &set.json, "one JSON object a line: one for each way, then the ratios")},
    };
    const opt_command command = {
        .name = "relay bench generate", .usage = "[options]",
        .summary = "Times whole decode steps of a model with random weights, all requests under one system prompt: "
                   "`relay` reads the prompt's K/V once for all requests, `plain` reads the same memory for each "
                   "request, `private` gives each request a copy of its own. The prompt is computed once; the copies "
                   "are made by copying its K/V, not by computing it again. Only steps in which every request "
                   "decodes one token count, and the median is quoted.",
        .specs = specs, .num_specs = OPT_COUNT(specs),
        .examples =
            "  relay bench generate\n"
            "  relay bench generate --batch 8 --system 1024 --attention relay,plain --json\n"
            "\n"
            "What is shown, --json names in brackets; milliseconds are of one step:\n"
            "  tokens/s    of all requests together (tokens_per_second)\n"
            "  step ms     and its parts: attention with its planning and the writing of K/V, matrix\n"
            "              products, everything else (step_ms, attention_ms, linear_ms, other_ms)\n"
            "  limit ms    max(bytes / read bandwidth, FLOPs / peak) of the products, plus the same of\n"
            "              attention (limit_step_ms, limit_linear_ms, limit_attention_ms).  Bytes: each\n"
            "              weight once; each token of K/V in memory once, so the shared prompt once and\n"
            "              a private one for each request\n"
            "  lim/st      limit over measured, of the step, its attention, its products (limit_fraction,\n"
            "              attention_fraction, linear_fraction)\n"
            "  GB/s        and GFLOP/s: calibrated around each batch (read_gbps, peak_gflops, f32_gflops);\n"
            "              products of f32 activations and f32 K/V have the f32 peak as their limit\n"
            "  prompt      computing the system prompt, in steps of --step-rows (prefill_seconds,\n"
            "              prefill_tokens_per_second, prefill_limit_tokens_per_second,\n"
            "              prefill_linear_fraction, prefill_attention_fraction)\n"
            "  relay is    the ratio of steps, and that of the limits (relay_over_plain,\n"
            "              limit_relay_over_plain, relay_over_private, limit_relay_over_private)\n"};
    int code = opt_parse(&command, argc, argv);
    if (code < 0) code = check_settings(&command, &set);
    return code < 0 ? run(&set) : code;
}
