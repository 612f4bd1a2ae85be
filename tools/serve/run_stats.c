#include "run_stats.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/json_memory.h"

static double rate(double amount, double seconds) {
    return seconds > 0 ? amount / seconds : 0;
}

static void set(json_t *object, const char *name, int64_t value) {
    json_object_set_new(object, name, json_integer(value));
}

static void set_real(json_t *object, const char *name, double value) {
    json_object_set_new(object, name, json_real(value));
}

static void add_counts(json_t *o, const run_counts *c) {
    set(o, "requests", c->answered + c->failed);
    set(o, "answered", c->answered);
    set(o, "errors", c->failed);
    set(o, "lines_refused", c->refused);
    set(o, "resumed", c->resumed);
    json_object_set_new(o, "accuracy", c->expected > 0 ? json_real((double)c->matched / (double)c->expected) : json_null());
    set(o, "expected", c->expected);
    set(o, "matched", c->matched);
    set_real(o, "seconds", c->seconds);
    set_real(o, "load_seconds", c->load_seconds);
    set_real(o, "tokens_per_second", rate((double)c->completion_tokens, c->seconds));
    set(o, "prompt_tokens", c->prompt_tokens);
    set(o, "shared_tokens", c->shared_tokens);
    set(o, "completion_tokens", c->completion_tokens);
}

static void add_engine(json_t *o, const eng_engine *engine) {
    const eng_engine_stats s = eng_engine_get_stats(engine);
    set_real(o, "prefill_seconds", s.scheduler.prefill_seconds);
    set_real(o, "decode_tokens_per_second",
             rate((double)(s.scheduler.rows - s.scheduler.prefill_rows), s.scheduler.seconds - s.scheduler.prefill_seconds));
    set_real(o, "attention_seconds", s.attention.seconds);
    set(o, "system_tokens_computed", s.prompts.tokens_computed);
    set_real(o, "system_seconds", s.prompts.seconds_computing);
    set(o, "steps", s.scheduler.steps);
    set(o, "relay_steps", s.attention.relay_steps);
    set(o, "plain_steps", s.attention.plain_steps);
    set(o, "shared_tokens_saved", s.attention.shared_tokens_saved);
    set(o, "preemptions", s.scheduler.preemptions);
    set(o, "most_requests_at_once", s.scheduler.most_running);
    set(o, "cache_memory_hits", (int64_t)s.cache.memory_hits);
    set(o, "cache_file_hits", (int64_t)(s.cache.file_hits + s.cache.prefetched));
    set(o, "cache_misses", (int64_t)s.cache.misses);
    set(o, "cache_rejected_files", (int64_t)s.cache.rejected_files);
    set(o, "peak_kv_bytes", (int64_t)(s.peak_pool_bytes + s.cache.peak_bytes));
    set(o, "peak_kv_pool_bytes", (int64_t)s.peak_pool_bytes);
    set(o, "peak_system_kv_bytes", (int64_t)s.cache.peak_bytes);
    json_object_set_new(o, "kv_dtype", json_string(relay_dtype_name(eng_engine_kv_dtype(engine))));
    json_object_set_new(o, "template", json_string(eng_engine_template_name(engine)));
    json_object_set_new(o, "linear_kernel", json_string(eng_model_kernel_name(eng_engine_model(engine))));
}

static bool complain(const char *path) {
    fprintf(stderr, "relay generate: %s: %s\n", path, strerror(errno));
    return false;
}

static bool put(FILE *file, const char *text) {
    return file != NULL && fputs(text, file) >= 0 && fputc('\n', file) != EOF && fflush(file) == 0;
}

/* Beside the file first, then over it: a reader sees the old one or the new one. */
static bool replace_file(const char *path, const char *text) {
    char beside[4096];
    if ((size_t)snprintf(beside, sizeof beside, "%s.%ld.part", path, (long)getpid()) >= sizeof beside) {
        errno = ENAMETOOLONG;
        return complain(path);
    }
    FILE *file = fopen(beside, "w");
    if (file == NULL) return complain(path);
    bool ok = put(file, text) && fsync(fileno(file)) == 0;
    int error = errno;
    if (fclose(file) != 0 && ok) ok = false, error = errno;
    if (ok && rename(beside, path) != 0) ok = false, error = errno;
    if (ok) return true;
    remove(beside);
    errno = error;
    return complain(path);
}

/* A pipe, /dev/null: what is there stays what it is. */
static bool write_device(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    bool ok = put(file, text);
    int error = errno;
    if (file != NULL && fclose(file) != 0 && ok) ok = false, error = errno;
    errno = error;
    return ok || complain(path);
}

bool run_stats_write(const char *path, const run_counts *counts, const eng_engine *engine) {
    eng_json_watch();
    json_t *o = json_object();
    add_counts(o, counts);
    add_engine(o, engine);
    struct stat info;
    char *text = json_dumps(o, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    json_decref(o);
    errno = ENOMEM;
    bool ok = text != NULL && !eng_json_starved();
    if (!ok) complain(path);
    else if (strcmp(path, "-") == 0) ok = put(stdout, text) || complain("stdout");
    else if (stat(path, &info) == 0 && !S_ISREG(info.st_mode)) ok = write_device(path, text);
    else ok = replace_file(path, text);
    free(text);
    return ok;
}
