/* relay chat: a conversation in the terminal. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "commands.h"
#include "interrupts.h"
#include "line_reader.h"
#include "prompt_times.h"
#include "serve_options.h"

typedef struct chat_options {
    serve_options serve;
    const char *system;
} chat_options;

typedef struct chat {
    const chat_options *options;
    eng_engine *engine;
    bool has_system;
    eng_sampling sampling;
    eng_answer *answer; /* the last one: the conversation so far; NULL: none yet */
    line_reader reader;
    bool terminal;      /* somebody types */
} chat;

static void print_log(void *user, relay_log_level level, const char *message) {
    (void)user;
    if (level <= RELAY_LOG_WARN) fprintf(stderr, "relay chat: %s\n", message);
}

static bool complain(const char *what) {
    fprintf(stderr, "relay chat: %s\n", what);
    return false;
}

/* ---- the system prompt -------------------------------------------------- */

static void tell_computed(const chat *c, int32_t tokens, double seconds, const char *key) {
    fprintf(stderr, "system prompt: %d tokens computed in %.2f s", (int)tokens, seconds);
    if (c->options->serve.cache_dir == NULL) fputs("; with --cache-dir DIR the next time would find them there\n", stderr);
    else fputs("; the next time finds them in the cache\n", stderr);
    if (c->options->serve.cache_dir != NULL && key != NULL) prompt_time_note(c->options->serve.cache_dir, key, seconds);
}

static void tell_found(const chat *c, int32_t tokens, double seconds, const char *key) {
    double computing = prompt_time_find(c->options->serve.cache_dir, key);
    fprintf(stderr, "system prompt: %d tokens from the cache in %.2f s", (int)tokens, seconds);
    if (computing >= 0) fprintf(stderr, "; computing them took %.2f s", computing);
    fputc('\n', stderr);
}

static bool bring_system(chat *c, eng_error *err) {
    double begun = eng_seconds();
    if (!eng_engine_prepare(c->engine, 0, err)) return false;
    double seconds = eng_seconds() - begun;
    const eng_prompt_set *prompts = eng_engine_prompts(c->engine);
    int32_t index = eng_engine_shared_index(c->engine, 0);
    if (index < 0) return true;
    int32_t tokens = eng_prompt_set_path(prompts, index).tokens;
    const char *key = eng_prompt_set_key(prompts, index);
    if (eng_prompt_set_get_stats(prompts).tokens_computed > 0) tell_computed(c, tokens, seconds, key);
    else if (key != NULL) tell_found(c, tokens, seconds, key);
    return true;
}

/* ---- opening ------------------------------------------------------------ */

/* Where no temperature is given, the checkpoint's own way of drawing is taken; what is given goes before. */
static void choose_sampling(chat *c) {
    const serve_options *o = &c->options->serve;
    const eng_generation_defaults *own = &eng_model_config_of(eng_engine_model(c->engine))->generation;
    eng_sampling *s = &c->sampling;
    *s = serve_sampling(o);
    if (o->repetition_penalty == 1) s->repetition_penalty = (float)own->repetition_penalty;
    if (o->temperature >= 0 || !own->do_sample) return;
    s->temperature = (float)own->temperature;
    if (o->top_k == 0) s->top_k = own->top_k;
    if (o->top_p == 1) s->top_p = (float)own->top_p;
    if (o->min_p == 0) s->min_p = (float)own->min_p;
}

static bool open_engine(chat *c, const char *system, eng_error *err) {
    eng_engine_options options = eng_engine_options_defaults();
    serve_fill(&c->options->serve, &options);
    options.max_batch = 1;
    options.log = print_log;
    if (!eng_engine_open(&options, &c->engine, err)) return false;
    choose_sampling(c);
    if (!eng_sampling_check(&c->sampling, err)) return eng_fail_in(err, "generation_config.json");
    c->has_system = system != NULL;
    if (system != NULL && !eng_engine_add_prompt(c->engine, c->options->system, system, err)) return false;
    return eng_engine_start(c->engine, err) && (system == NULL || bring_system(c, err));
}

/* ---- turns -------------------------------------------------------------- */

static bool ask(chat *c, const char *text, eng_error *err) {
    const serve_options *o = &c->options->serve;
    if (c->answer != NULL) return eng_engine_continue(c->engine, c->answer, text, o->max_tokens, true, err);
    const eng_submission submission = {
        .prompt = c->has_system ? 0 : ENG_NO_PROMPT, .text = text, .max_tokens = o->max_tokens, .shorten = true,
        .sampling = c->sampling, .stream = eng_stream_of("chat"), .stops = serve_stops(o), .keep = true};
    return eng_engine_submit(c->engine, &submission, &c->answer, err);
}

static bool print_from(const eng_answer *answer, size_t *printed, size_t size) {
    if (size > *printed) fwrite(answer->text.data + *printed, 1, size - *printed, stdout);
    if (size > *printed) *printed = size;
    return fflush(stdout) == 0 || complain("stdout: cannot be written");
}

/* Prints as it comes what no stop string can take back. */
static bool stream_answer(chat *c, eng_error *err) {
    size_t printed = 0;
    eng_answer *done;
    bool ok = true;
    while ((done = eng_engine_poll(c->engine)) == NULL) {
        if (interrupts_seen() != 0 || !ok) eng_engine_cancel(c->engine, c->answer);
        else if (!eng_engine_step(c->engine, err)) {
            c->answer = NULL; /* the engine's, as long as it is not polled */
            return complain(err->text);
        } else ok = print_from(c->answer, &printed, eng_answer_settled(c->answer));
    }
    ok = ok && print_from(done, &printed, done->text.size);
    putchar('\n');
    return fflush(stdout) == 0 && ok;
}

/* An answer that failed ends the conversation, not the program: the next line begins another. */
static void forget_failed(chat *c) {
    if (c->answer->request.finish != ENG_FINISH_ERROR) return;
    complain(c->answer->request.error.text);
    eng_engine_free_answer(c->engine, c->answer);
    c->answer = NULL;
    complain("the conversation begins anew");
}

static bool take_turn(chat *c, const char *text) {
    eng_error err;
    if (!ask(c, text, &err)) return complain(err.text);
    if (!stream_answer(c, &err)) return false;
    forget_failed(c);
    if (interrupts_seen() == SIGINT) interrupts_clear();
    return true;
}

static void prompt_user(const chat *c) {
    if (!c->terminal) return;
    fputs("> ", stderr);
    fflush(stderr);
}

/* A Ctrl-C while nothing is being answered: the first says how to leave, a second one in its wake leaves. */
static bool handle_idle_interrupt(const chat *c, bool *warned) {
    if (interrupts_seen() == SIGTERM || *warned || !c->terminal) return false;
    fputs("\nCtrl-D leaves, and so does another Ctrl-C\n", stderr);
    interrupts_clear();
    *warned = true;
    return true;
}

static int converse(chat *c) {
    bool warned = false;
    for (;;) {
        char *line;
        size_t size;
        bool torn;
        prompt_user(c);
        line_status status = line_reader_next(&c->reader, true, &line, &size, &torn);
        if (interrupts_seen() != 0) {
            if (!handle_idle_interrupt(c, &warned)) return 128 + interrupts_seen();
            continue;
        }
        if (status == LINE_LATER) continue;
        if (status != LINE_READY) {
            if (c->terminal) fputc('\n', stderr);
            return status == LINE_END ? 0 : 1;
        }
        warned = false;
        if (size > 0 && line[size - 1] == '\r') line[size - 1] = '\0';
        if (line[strspn(line, " \t")] == '\0') continue;
        if (!take_turn(c, line)) return 1;
        if (interrupts_seen() != 0) return 128 + interrupts_seen();
    }
}

static int chat_on(const chat_options *options, const char *system) {
    chat c = {.options = options, .reader = line_reader_on(STDIN_FILENO), .terminal = isatty(STDIN_FILENO) == 1};
    eng_error err;
    int code = 1;
    if (open_engine(&c, system, &err)) {
        interrupts_watch();
        c.reader.wake_fd = interrupts_fd();
        if (c.terminal) fputs("Ctrl-C stops an answer, Ctrl-D leaves\n", stderr);
        code = converse(&c);
    } else complain(err.text);
    if (c.answer != NULL) eng_engine_free_answer(c.engine, c.answer);
    eng_engine_close(c.engine);
    line_reader_free(&c.reader);
    return code;
}

int cmd_chat(int argc, char **argv) {
    chat_options o = {.serve = serve_options_defaults()};
    o.serve.max_tokens = 1024;
    const opt_spec specs[] = {
        {OPT_STRING("model", "DIR", &o.serve.model, "the checkpoint as published: config.json, *.safetensors, tokenizer.json"), .required = true},
        {OPT_STRING("system", "FILE", &o.system, "the system prompt")},
        SERVE_SPECS(&o.serve, "the checkpoint's"),
    };
    const opt_command command = {
        .name = "relay chat",
        .usage = "--model DIR [--system FILE] [--cache-dir DIR] [options]",
        .summary = "Talks in the terminal, line by line. With --cache-dir the system prompt's K/V is kept and need not "
                   "be computed the next time. Ctrl-C stops an answer, Ctrl-D leaves; questions may also come from a "
                   "pipe, one a line.",
        .specs = specs, .num_specs = OPT_COUNT(specs),
        .examples = "  relay chat --model models/gemma/checkpoint --system handbook.txt --cache-dir ~/.cache/relay\n"};
    int code = opt_parse(&command, argc, argv);
    if (code < 0) code = serve_check(&command, &o.serve);
    if (code < 0) {
        char *system = o.system == NULL ? NULL : serve_read_text("relay chat", o.system);
        code = o.system != NULL && system == NULL ? 1 : chat_on(&o, system);
        free(system);
    }
    opt_strings_free(&o.serve.stops);
    return code;
}
