/* relay generate: answers a file of requests that share system prompts. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/json_memory.h"
#include "commands.h"
#include "interrupts.h"
#include "output_path.h"
#include "progress.h"
#include "request_source.h"
#include "result_file.h"
#include "run_stats.h"
#include "serve_options.h"
#include "system_prompts.h"

typedef struct generate_options {
    serve_options serve;
    opt_strings systems;
    const char *requests, *out, *stats;
    int32_t batch;
    bool resume, force, ignore_eos, repeatable;
} generate_options;

/* One request between its line and its answer. */
typedef struct ticket {
    char *id, *expected; /* expected may be NULL */
} ticket;

typedef struct generate_run {
    const generate_options *options;
    system_prompts systems;
    request_source source;
    result_file results;
    id_table done; /* answered before this run */
    eng_engine *engine;
    progress bar;
    run_counts counts;
    int32_t in_hand;  /* submitted, not written */
    bool source_ended, stopping, broken; /* broken: nothing more can be computed or written */
} generate_run;

static void print_log(void *user, relay_log_level level, const char *message) {
    (void)user;
    if (level <= RELAY_LOG_WARN) fprintf(stderr, "relay generate: %s\n", message);
}

static void complain(generate_run *run, const char *what) {
    progress_clear(&run->bar);
    fprintf(stderr, "relay generate: %s\n", what);
}

/* ---- output ------------------------------------------------------------- */

static bool write_line(generate_run *run, json_t *line) {
    char *text = json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(17));
    json_decref(line);
    size_t size = text == NULL || eng_json_starved() ? 0 : strlen(text); /* half a line is none */
    if (size > 0) text[size] = '\n'; /* in place of the 0 byte: size + 1 bytes are written */
    bool ok = size > 0 && results_write(&run->results, text, size + 1);
    if (size == 0) complain(run, "out of memory for an answer");
    free(text);
    if (!ok) run->broken = true;
    return ok;
}

static json_t *result_object(const char *id, const char *text, size_t size, const char *finish, const char *error) {
    eng_json_watch();
    json_t *line = json_object();
    json_t *value = json_loads(id, JSON_DECODE_ANY, NULL);
    json_object_set_new(line, "id", value);
    json_object_set_new(line, "text", json_stringn(size > 0 ? text : "", size));
    json_object_set_new(line, "finish_reason", json_string(finish));
    if (error != NULL) json_object_set_new(line, "error", json_string(error));
    return line;
}

static void add_numbers(json_t *line, int64_t prompt, int64_t shared, int64_t completion) {
    json_object_set_new(line, "prompt_tokens", json_integer(prompt));
    json_object_set_new(line, "shared_tokens", json_integer(shared));
    json_object_set_new(line, "completion_tokens", json_integer(completion));
}

static void free_ticket(ticket *t) {
    if (t == NULL) return;
    free(t->id);
    free(t->expected);
    free(t);
}

static void count_match(generate_run *run, bool has_expected, bool matches) {
    run->counts.expected += has_expected;
    run->counts.matched += has_expected && matches;
}

static void write_error(generate_run *run, const request_line *request, const char *error) {
    json_t *line = result_object(request->id, NULL, 0, "error", error);
    add_numbers(line, 0, 0, 0);
    run->counts.failed++;
    count_match(run, request->expected != NULL, false);
    write_line(run, line);
}

static void write_answer(generate_run *run, const eng_answer *answer) {
    const eng_request *r = &answer->request;
    const ticket *t = answer->user;
    bool failed = r->finish == ENG_FINISH_ERROR;
    json_t *line = result_object(t->id, answer->text.data, answer->text.size, eng_finish_name(r->finish),
                                 failed ? r->error.text : NULL);
    add_numbers(line, r->prompt_tokens, r->path.tokens, eng_request_answer_tokens(r));
    run->counts.answered += !failed;
    run->counts.failed += failed;
    run->counts.prompt_tokens += r->prompt_tokens;
    run->counts.shared_tokens += r->path.tokens;
    run->counts.completion_tokens += eng_request_answer_tokens(r);
    count_match(run, t->expected != NULL,
                !failed && t->expected != NULL && strlen(t->expected) == answer->text.size &&
                    memcmp(t->expected, answer->text.size > 0 ? answer->text.data : "", answer->text.size) == 0);
    write_line(run, line);
}

static void write_finished(generate_run *run) {
    eng_answer *answer;
    while ((answer = eng_engine_poll(run->engine)) != NULL) {
        if (!run->broken && answer->request.finish != ENG_FINISH_NONE) write_answer(run, answer);
        free_ticket(answer->user);
        eng_engine_free_answer(run->engine, answer);
        run->in_hand--;
    }
}

/* ---- input -------------------------------------------------------------- */

static bool find_system(const generate_run *run, const request_line *request, int32_t *prompt, char *why, size_t size) {
    *prompt = ENG_NO_PROMPT;
    if (request->default_system && run->systems.count <= 1) *prompt = run->systems.count - 1;
    else if (request->default_system) {
        snprintf(why, size, "\"system\": which of the %d system prompts is meant has to be said (null: none)",
                 (int)run->systems.count);
        return false;
    } else if (request->system != NULL) {
        *prompt = system_prompts_find(&run->systems, request->system);
        if (*prompt == ENG_NO_PROMPT) {
            snprintf(why, size, "\"system\": there is no system prompt \"%.100s\"", request->system);
            return false;
        }
    }
    return true;
}

static ticket *make_ticket(const request_line *request) {
    ticket *t = calloc(1, sizeof *t);
    if (t == NULL) return NULL;
    t->id = strdup(request->id);
    if (request->expected != NULL) t->expected = strdup(request->expected);
    if (t->id != NULL && (request->expected == NULL || t->expected != NULL)) return t;
    free_ticket(t);
    return NULL;
}

static void submit(generate_run *run, const request_line *request) {
    char why[256];
    int32_t prompt;
    if (request->problem[0] != '\0') {
        write_error(run, request, request->problem);
        return;
    }
    if (!find_system(run, request, &prompt, why, sizeof why)) {
        write_error(run, request, why);
        return;
    }
    const serve_options *serve = &run->options->serve;
    eng_submission submission = {.prompt = prompt, .text = request->text, .max_tokens = request->max_tokens,
                                 .sampling = serve_sampling(serve), .stream = eng_stream_of(request->id),
                                 .stops = serve_stops(serve), .user = make_ticket(request)};
    if (request->max_tokens == 0) {
        submission.max_tokens = serve->max_tokens;
        submission.shorten = true;
    }
    eng_answer *answer;
    eng_error err = {"out of memory for a request"};
    if (submission.user != NULL && eng_engine_submit(run->engine, &submission, &answer, &err)) {
        run->in_hand++;
        return;
    }
    free_ticket(submission.user);
    write_error(run, request, err.text);
}

/* An answer of an earlier run counts as if it had been given now. */
static bool skip_done(generate_run *run, const request_line *request) {
    const id_entry *entry = id_table_find(&run->done, request->id);
    if (entry == NULL) return false;
    run->counts.resumed++;
    const char *expected = request->expected;
    count_match(run, expected != NULL, expected != NULL && hash_text(expected, strlen(expected)) == entry->value);
    return true;
}

/* Keeps twice the batch in hand, so that a place that comes free finds its next request at once. */
static void take_requests(generate_run *run) {
    while (!run->source_ended && !run->broken && interrupts_seen() == 0 && run->in_hand < 2 * run->options->batch) {
        request_line request;
        line_status status = request_source_next(&run->source, !eng_engine_busy(run->engine), &request);
        if (status == LINE_LATER) return;
        if (status != LINE_READY) {
            run->source_ended = true;
            return;
        }
        if (!skip_done(run, &request)) submit(run, &request);
        request_line_free(&request);
        write_finished(run);
    }
}

/* ---- the run ------------------------------------------------------------ */

static void show_progress(generate_run *run) {
    const eng_engine_stats stats = eng_engine_get_stats(run->engine);
    const char *note = eng_prompt_set_filling(eng_engine_prompts(run->engine)) != NULL ? "system prompt" : "";
    if (run->stopping) note = "finishing the lines in hand; Ctrl-C again quits at once";
    progress_update(&run->bar, run->counts.answered + run->counts.failed + run->counts.resumed,
                    stats.scheduler.answer_tokens, note);
}

static void begin_stopping(generate_run *run) {
    run->stopping = true;
    eng_engine_drop(run->engine, false);
}

static void serve(generate_run *run) {
    double begun = eng_seconds();
    eng_error err;
    while (!run->broken) {
        if (interrupts_seen() != 0 && !run->stopping) begin_stopping(run);
        if (!run->stopping) take_requests(run);
        if (!eng_engine_busy(run->engine) && (run->source_ended || run->stopping)) break;
        if (eng_engine_busy(run->engine) && !eng_engine_step(run->engine, &err)) {
            complain(run, err.text);
            run->broken = true;
        }
        write_finished(run);
        show_progress(run);
    }
    eng_engine_drop(run->engine, true); /* of a broken run */
    write_finished(run);
    run->counts.seconds = eng_seconds() - begun;
    run->counts.refused = run->source.refused;
    progress_clear(&run->bar);
}

static void explain_stop(const generate_run *run) {
    const char *out = run->results.path;
    fprintf(stderr, "relay generate: interrupted; %lld answers are in %s\n",
            (long long)(run->counts.answered + run->counts.failed + run->counts.resumed), out);
    if (run->results.is_file) fprintf(stderr, "relay generate: the same command with --resume goes on from there\n");
}

static void print_summary(const generate_run *run) {
    const run_counts *c = &run->counts;
    fprintf(stderr, "relay generate: %lld answers in %.2f s, %.1f tokens/s", (long long)c->answered, c->seconds,
            c->seconds > 0 ? (double)c->completion_tokens / c->seconds : 0.0);
    if (c->expected > 0)
        fprintf(stderr, ", %lld of %lld as expected", (long long)c->matched, (long long)c->expected);
    if (c->resumed > 0) fprintf(stderr, ", %lld were there", (long long)c->resumed);
    if (c->failed > 0) fprintf(stderr, ", %lld with an error", (long long)c->failed);
    if (c->refused > 0) fprintf(stderr, ", %lld lines refused", (long long)c->refused);
    fputc('\n', stderr);
}

static bool open_engine(generate_run *run) {
    const generate_options *o = run->options;
    eng_engine_options options = eng_engine_options_defaults();
    double begun = eng_seconds();
    eng_error err;
    serve_fill(&o->serve, &options);
    options.max_batch = o->batch;
    options.ignore_eos = o->ignore_eos;
    options.repeatable = o->repeatable;
    options.log = print_log;
    bool ok = eng_engine_open(&options, &run->engine, &err) && system_prompts_add(&run->systems, run->engine, &err) &&
              eng_engine_start(run->engine, &err);
    if (!ok) complain(run, err.text);
    run->counts.load_seconds = eng_seconds() - begun;
    return ok;
}

static result_mode mode_of(const generate_options *o) {
    if (o->resume) return RESULTS_RESUME;
    return o->force ? RESULTS_FORCE : RESULTS_NEW;
}

/* What is read must not be written over, nor one output over the other. */
static bool apart(const char *option, const char *written, const char *other_option, const char *other) {
    if (written == NULL || other == NULL || strcmp(written, "-") == 0 || strcmp(other, "-") == 0) return true;
    if (!output_same_file(written, other)) return true;
    fprintf(stderr, "relay generate: %s: is given for %s and for %s: that would be lost\n", written, option, other_option);
    return false;
}

static bool check_outputs(const generate_run *run) {
    const generate_options *o = run->options;
    bool ok = apart("--out", o->out, "--requests", o->requests) && apart("--stats", o->stats, "--requests", o->requests) &&
              apart("--stats", o->stats, "--out", o->out);
    for (int32_t i = 0; ok && i < run->systems.count; i++)
        ok = apart("--out", o->out, "--system", run->systems.items[i].path) &&
             apart("--stats", o->stats, "--system", run->systems.items[i].path);
    const char *problem = o->stats == NULL || strcmp(o->stats, "-") == 0 ? NULL : output_problem(o->stats);
    if (ok && problem != NULL) fprintf(stderr, "relay generate: %s: %s\n", o->stats, problem);
    return ok && problem == NULL;
}

/* Everything that can be refused is looked at before the output is touched, the cheap things first. */
static bool prepare(generate_run *run) {
    const generate_options *o = run->options;
    return system_prompts_read(&o->systems, &run->systems) && check_outputs(run) &&
           results_check(o->out, mode_of(o), &run->done) &&
           request_source_open(o->requests, &run->source) && open_engine(run) &&
           results_open(o->out, mode_of(o), &run->results);
}

static int finish(generate_run *run) {
    const run_counts *c = &run->counts;
    bool ok = results_close(&run->results) && !run->broken && !run->source.failed;
    if (run->options->stats != NULL && !run_stats_write(run->options->stats, &run->counts, run->engine)) ok = false;
    if (run->stopping && ok) {
        explain_stop(run);
        return 128 + interrupts_seen();
    }
    if (c->answered + c->failed + c->resumed + c->refused == 0)
        fprintf(stderr, "relay generate: %s: holds no request\n", run->source.path);
    print_summary(run);
    return ok && run->counts.failed == 0 && run->counts.refused == 0 ? 0 : 1;
}

static int generate(const generate_options *options) {
    generate_run run = {.options = options, .source.fd = -1, .results.fd = -1};
    int code = 1;
    if (prepare(&run)) {
        interrupts_watch();
        run.source.reader.wake_fd = interrupts_fd();
        run.bar = progress_begin(run.source.total);
        serve(&run);
        code = finish(&run);
    }
    eng_engine_close(run.engine);
    request_source_close(&run.source);
    results_close(&run.results);
    id_table_free(&run.done);
    system_prompts_free(&run.systems);
    return code;
}

/* ---- the command line --------------------------------------------------- */

static int check_options(const opt_command *command, const generate_options *o) {
    if (o->resume && o->force) return opt_mistake(command, "--resume keeps what is there and --force replaces it: give one");
    if (o->resume && strcmp(o->out, "-") == 0) return opt_mistake(command, "--resume needs a file: --out FILE.jsonl");
    if (o->stats != NULL && strcmp(o->stats, "-") == 0 && strcmp(o->out, "-") == 0)
        return opt_mistake(command, "--out and --stats cannot both be stdout");
    return serve_check(command, &o->serve);
}

int cmd_generate(int argc, char **argv) {
    generate_options o = {.serve = serve_options_defaults(), .batch = 32};
    const opt_spec specs[] = {
        {OPT_STRING("model", "DIR", &o.serve.model, "the checkpoint as published: config.json, *.safetensors, tokenizer.json"), .required = true},
        {OPT_STRINGS("system", "[NAME=]FILE", &o.systems, "a system prompt; repeated, each with a NAME that requests refer to; one alone is every request's that names none")},
        {OPT_STRING("requests", "FILE.jsonl", &o.requests, "the requests, one a line; - is stdin"), .required = true},
        {OPT_STRING("out", "FILE.jsonl", &o.out, "the answers, one a line in the order of getting ready; - is stdout"), .required = true},
        {OPT_FLAG("resume", &o.resume, "go on with an --out that an earlier run left: its ids are skipped")},
        {OPT_FLAG("force", &o.force, "replace an --out that holds answers, which is refused otherwise")},
        {OPT_STRING("stats", "FILE.json", &o.stats, "what was computed, and how fast; - is stdout")},
        {OPT_INT("batch", "N", &o.batch, 1, 4096, "requests answered at once, at most")},
        SERVE_SPECS(&o.serve, "0"),
        {OPT_FLAG("ignore-eos", &o.ignore_eos, "every answer runs to its max tokens: for timing")},
        {OPT_FLAG("repeatable", &o.repeatable, "an answer's bits do not depend on the other requests of its batch; slower")},
    };
    const opt_command command = {
        .name = "relay generate",
        .usage = "--model DIR --requests FILE.jsonl --out FILE.jsonl [--system FILE] [options]",
        .summary = "Answers a file of requests with one model. The K/V of a system prompt is computed once and read "
                   "once for all requests of a step. A request is a line {\"id\", \"text\"} with, if wanted, "
                   "\"system\" (the NAME of a prompt; null: none), \"max_tokens\" and \"expected\" (the answer that "
                   "would be right: counted for --stats). An answer is a line {\"id\", \"text\", \"finish_reason\" "
                   "(stop, length or error, then with \"error\"), \"prompt_tokens\", \"shared_tokens\", "
                   "\"completion_tokens\"}. Ctrl-C finishes the lines in hand, twice quits at once; --resume goes "
                   "on later. The exit code is 0 when every request has an answer.",
        .specs = specs, .num_specs = OPT_COUNT(specs),
        .examples = "  relay generate --model models/lookup --system system.txt --requests requests.jsonl \\\n"
                    "      --out answers.jsonl --stats stats.json\n"
                    "  relay generate --model DIR --system shop=shop.txt --system bank=bank.txt --requests - --out -\n"};
    int code = opt_parse(&command, argc, argv);
    if (code < 0) code = check_options(&command, &o);
    if (code < 0) code = generate(&o);
    opt_strings_free(&o.systems);
    opt_strings_free(&o.serve.stops);
    return code;
}
