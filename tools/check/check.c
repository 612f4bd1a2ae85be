/* relay check: counting cases and saying what failed. */
#include "check.h"

#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "check_cuda.h"
#include "commands.h"
#include "options.h"

static chk *current; /* for the fault handler */

bool chk_begin(chk *c, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(c->label, sizeof c->label, format, args);
    va_end(args);
    if (c->only != NULL && strstr(c->label, c->only) == NULL) {
        c->label[0] = '\0';
        return false;
    }
    c->bad = false;
    c->log[0] = '\0';
    if (c->verbose) fprintf(stderr, "%s\n", c->label);
    return true;
}

/* The first reason is printed with the case; further ones under it. */
void chk_fail(chk *c, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (!c->bad) fprintf(stderr, "FAILED seed %llu: %s\n", (unsigned long long)c->seed, c->label);
    fputs("  ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    c->bad = true;
}

void chk_end(chk *c) {
    if (c->bad) c->failed++;
    else c->passed++;
    c->label[0] = '\0';
}

void chk_skip(chk *c, const char *format, ...) {
    va_list args;
    va_start(args, format);
    char label[512];
    vsnprintf(label, sizeof label, format, args);
    va_end(args);
    if (c->only != NULL && strstr(label, c->only) == NULL) return;
    if (c->verbose) fprintf(stderr, "skipped: %s\n", label);
    c->skipped++;
}

bool chk_ok(chk *c, const char *call, relay_status status) {
    if (status == RELAY_OK) return true;
    chk_fail(c, "%s: %s: %s", call, relay_status_name(status), c->log[0] != '\0' ? c->log : "(nothing logged)");
    return false;
}

static void keep_log(void *user, relay_log_level level, const char *message) {
    chk *c = user;
    if (level == RELAY_LOG_ERROR) snprintf(c->log, sizeof c->log, "%s", message);
}

/* A touch outside a buffer: name the case, in calls that a signal handler may make. */
static void on_fault(int signal_number) {
    static const char before[] = "FAILED: memory outside a buffer was touched, or an input written, in: ";
    static const char after[] = "\n0 passed, 1 failed\n";
    (void)signal_number;
    ssize_t ignored = write(STDERR_FILENO, before, sizeof before - 1);
    ignored += write(STDERR_FILENO, current->label, strlen(current->label));
    ignored += write(STDERR_FILENO, after, 1);
    ignored += write(STDOUT_FILENO, after + 1, sizeof after - 2);
    _exit(ignored > 0 ? 1 : 3);
}

static bool open_devices(chk *c) {
    for (int32_t threads = 1; threads <= CHK_MAX_THREADS; threads++) {
        relay_device_options options = relay_device_options_defaults();
        options.threads = threads;
        options.log = keep_log;
        options.log_user = c;
        relay_status status = relay_device_open(&options, &c->device[threads]);
        if (status == RELAY_OK) continue;
        fprintf(stderr, "relay check: cannot open the device: %s: %s\n", relay_status_text(status), c->log);
        return false;
    }
    relay_device_info info = {.struct_size = sizeof info};
    if (relay_device_get_info(c->device[1], &info) != RELAY_OK) return false;
    c->exact = strcmp(info.cpu_level, "scalar") == 0;
    printf("relay %s, kernels up to %s, seed %llu\n", relay_version(), info.cpu_level,
           (unsigned long long)c->seed);
    return true;
}

/* Zero checked is a failure. */
static int summarise(const chk *c) {
    printf("largest relative error: %.2g in float32, %.2g where something is rounded to 16 bits\n", c->worst[0], c->worst[1]);
    printf("%d passed, %d failed", (int)c->passed, (int)c->failed);
    if (c->skipped > 0) printf(", %d skipped", (int)c->skipped);
    putchar('\n');
    bool written = fflush(stdout) == 0 && !ferror(stdout);
    return c->failed == 0 && c->passed > 0 && written ? 0 : 1;
}

static void watch_faults(chk *c) {
    current = c;
    struct sigaction action = {.sa_handler = on_fault};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
}

static int run_all(chk *c) {
    watch_faults(c);
    bool opened = open_devices(c);
    if (opened) {
        fflush(stdout);
        chk_states(c);
        chk_kernels(c);
        chk_fusion(c);
        chk_writes(c);
        chk_laws(c);
        chk_runs(c);
    }
    for (int32_t threads = 1; threads <= CHK_MAX_THREADS; threads++) relay_device_close(c->device[threads]);
    return opened ? summarise(c) : 1;
}

int cmd_check(int argc, char **argv) {
    static const char *const devices[] = {"cpu", "cuda", NULL};
    chk c = {.random_cases = 300};
    int64_t seed = 1;
    int device = 0;
    int32_t index = 0, replays = 2000;
    const opt_spec specs[] = {
        {OPT_INT64("seed", "N", &seed, 0, INT64_MAX, "of the random cases; the same seed gives the same cases")},
        {OPT_INT("cases", "N", &c.random_cases, 0, 1000000, "whole problems drawn at random")},
        {OPT_FLAG("quick", &c.quick, "a tenth of the cases")},
        {OPT_STRING("only", "TEXT", &c.only, "only cases whose name contains TEXT")},
        {OPT_CHOICE("device", "KIND", &device, devices, "what is checked; cuda needs librelayattn_cuda and a GPU")},
        {OPT_INT("index", "N", &index, 0, 1023, "which CUDA device")},
        {OPT_INT("replays", "N", &replays, 0, 100000000, "of a CUDA graph, batches changing between them")},
        {OPT_FLAG("verbose", &c.verbose, "name every case before it is computed")},
    };
    const opt_command command = {
        .name = "relay check",
        .usage = "[options]",
        .summary = "Checks this build on this processor: every kernel against the scalar reference, whole "
                   "problems against a float64 oracle, writes into pages, and the laws of fusion, cutting and "
                   "repeatability. The last line is the count; the exit code is 0 only if something was checked and all of "
                   "it passed. A kernel that the processor lacks is counted as skipped.",
        .specs = specs,
        .num_specs = OPT_COUNT(specs),
        .examples = "  relay check\n"
                    "  relay check --seed 7 --cases 5000     a long run\n"
                    "  relay check --seed 7 --only 'run 123:' --verbose\n"
                    "  RELAY_CPU=avx2 relay check            the kernels of a lesser processor\n",
    };
    int code = opt_parse(&command, argc, argv);
    if (code >= 0) return code;
    c.seed = (uint64_t)seed;
    if (c.quick) c.random_cases /= 10;
    if (device == 0) return run_all(&c);
    watch_faults(&c);
    return chk_cuda(&c, index, replays) ? summarise(&c) : 1;
}
