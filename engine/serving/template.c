#include "template.h"

#include <string.h>

#define LLAMA3_HEADER(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define LLAMA3_TURNS \
    .begin = "<|begin_of_text|>", .system_close = "<|eot_id|>", .turn_open = LLAMA3_HEADER("user"), \
    .turn_close = "<|eot_id|>" LLAMA3_HEADER("assistant"), .answer_close = "<|eot_id|>", .trims_system = true, \
    .trims_user = true
/* The date that the published templates have or fall back to; a day's own date would make the prompt another every
 * day, and its K/V would be computed anew. */
#define LLAMA31_DATES "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
#define CHATML_TURNS(thoughts) \
    .begin = "", .system_open = "<|im_start|>system\n", .system_close = "<|im_end|>\n", \
    .turn_open = "<|im_start|>user\n", .turn_close = "<|im_end|>\n<|im_start|>assistant\n" thoughts, \
    .answer_close = "<|im_end|>\n"
#define MISTRAL_TURNS .begin = "<s>", .answer_close = "</s>"
#define SYSTEM_IN_TURN .system_open = "", .system_close = "\n\n", .system_in_turn = true

/* The first row whose signs stand in a checkpoint's program is its own.  Where a family's program refuses a system
 * text (Mistral of 2023), it goes before the first user's; where it moves the text to the last turn (mistral-v3,
 * mistral-tekken), it stays in the first. */
static const eng_template templates[] = {
    {.name = "raw", .begin = "", .system_open = "", .system_close = "", .turn_open = "", .turn_close = "",
     .answer_close = "\n"},
    {.name = "llama3.1", .signs = {"<|start_header_id|>", "Cutting Knowledge Date"},
     .system_open = LLAMA3_HEADER("system") LLAMA31_DATES, .default_system = "", LLAMA3_TURNS},
    {.name = "llama3", .signs = {"<|start_header_id|>"}, .system_open = LLAMA3_HEADER("system"), LLAMA3_TURNS},
    {.name = "qwen3", .signs = {"<|im_start|>", "enable_thinkingisfalse"}, CHATML_TURNS("")},
    {.name = "qwen3-no-thinking", CHATML_TURNS("<think>\n\n</think>\n\n")},
    {.name = "chatml-thinking", .signs = {"<|im_start|>assistant\\n<think>\\n"}, CHATML_TURNS("<think>\n")},
    {.name = "qwen2.5", .signs = {"<|im_start|>", "You are Qwen, created by Alibaba Cloud"}, CHATML_TURNS(""),
     .default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
    {.name = "qwen2", .signs = {"<|im_start|>", "You are a helpful assistant"}, CHATML_TURNS(""),
     .default_system = "You are a helpful assistant."},
    {.name = "chatml", .signs = {"<|im_start|>"}, CHATML_TURNS("")},
    {.name = "gemma", .signs = {"<start_of_turn>"}, .begin = "<bos>", SYSTEM_IN_TURN,
     .turn_open = "<start_of_turn>user\n", .turn_close = "<end_of_turn>\n<start_of_turn>model\n",
     .answer_close = "<end_of_turn>\n", .trims_user = true},
    {.name = "llama2", .signs = {"<<SYS>>", "[INST]"}, .begin = "<s>",
     .system_open = "<<SYS>>\n", .system_close = "\n<</SYS>>\n\n", .system_in_turn = true,
     .turn_open = "[INST] ", .turn_close = " [/INST]", .answer_close = " </s>", .turn_open_repeats_begin = true,
     .trims_user = true, .trims_turn = true},
    {.name = "mistral-v7-tekken", .signs = {"'[SYSTEM_PROMPT]'", "'[INST]'"}, MISTRAL_TURNS,
     .system_open = "[SYSTEM_PROMPT]", .system_close = "[/SYSTEM_PROMPT]", .turn_open = "[INST]",
     .turn_close = "[/INST]"},
    {.name = "mistral-v7", .signs = {"'[SYSTEM_PROMPT] '", "'[INST] '"}, MISTRAL_TURNS,
     .system_open = "[SYSTEM_PROMPT] ", .system_close = "[/SYSTEM_PROMPT]", .turn_open = "[INST] ",
     .turn_close = "[/INST]"},
    {.name = "mistral-tekken", .signs = {"'[INST]'", "'[/INST]'"}, .bar = "[SYSTEM_PROMPT]", MISTRAL_TURNS,
     SYSTEM_IN_TURN, .turn_open = "[INST]", .turn_close = "[/INST]"},
    {.name = "mistral-v3", .signs = {"'[INST] '", "'[/INST]'"}, .bar = "[SYSTEM_PROMPT]", MISTRAL_TURNS,
     SYSTEM_IN_TURN, .turn_open = "[INST] ", .turn_close = "[/INST]"},
    {.name = "mistral", .signs = {"' [INST] '", "' [/INST]'"}, .bar = "[SYSTEM_PROMPT]", MISTRAL_TURNS,
     SYSTEM_IN_TURN, .turn_open = " [INST] ", .turn_close = " [/INST]"},
    {.name = "mistral-2023", .signs = {"'[INST] '", "' [/INST]'"}, .bar = "[SYSTEM_PROMPT]", MISTRAL_TURNS,
     SYSTEM_IN_TURN, .turn_open = "[INST] ", .turn_close = " [/INST]"},
};
enum { NUM_TEMPLATES = sizeof templates / sizeof templates[0] };

const eng_template *eng_template_find(const char *name) {
    for (int i = 0; i < NUM_TEMPLATES; i++)
        if (strcmp(templates[i].name, name) == 0) return &templates[i];
    return NULL;
}

const eng_template *eng_template_at(int i) {
    return i < NUM_TEMPLATES ? &templates[i] : NULL;
}

const char *eng_template_names(void) {
    return "raw, llama3.1, llama3, qwen3, qwen3-no-thinking, chatml-thinking, qwen2.5, qwen2, chatml, gemma, llama2, "
           "mistral-v7-tekken, mistral-v7, mistral-tekken, mistral-v3, mistral, mistral-2023";
}

bool eng_template_is_raw(const eng_template *t) {
    return t == &templates[0];
}

/* ---- rendering ---------------------------------------------------------- */

/* What Jinja's trim (Python's str.strip) takes, as far as it is ASCII. */
static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r') || (c >= '\x1c' && c <= '\x1f');
}

static void strip_right(const char *text, size_t *size) {
    while (*size > 0 && is_space(text[*size - 1])) --*size;
}

static void strip(const char **text, size_t *size) {
    strip_right(*text, size);
    while (*size > 0 && is_space((*text)[0])) ++*text, --*size;
}

const char *eng_template_turn_end(const eng_template *t, size_t *size) {
    const char *text = t->answer_close;
    *size = strlen(text);
    strip(&text, size);
    return text;
}

/* A text file ends in a newline that its writer did not mean as part of the turn. */
static size_t without_last_newline(const char *text) {
    size_t size = strlen(text);
    if (size > 0 && text[size - 1] == '\n') size--;
    if (size > 0 && text[size - 1] == '\r') size--;
    return size;
}

static bool append_system(const eng_template *t, const char *system, eng_bytes *out, eng_error *err) {
    if (system == NULL) return true;
    size_t size = without_last_newline(system);
    if (t->trims_system) strip(&system, &size);
    return eng_bytes_append_string(out, t->system_open, err) && eng_bytes_append(out, system, size, err) &&
           eng_bytes_append_string(out, t->system_close, err);
}

static bool append_user(const eng_template *t, const char *user, bool behind_system, eng_bytes *out, eng_error *err) {
    size_t size = strlen(user);
    if (t->trims_turn && behind_system) strip_right(user, &size);
    else if (t->trims_user) strip(&user, &size);
    return eng_bytes_append(out, user, size, err) && eng_bytes_append_string(out, t->turn_close, err);
}

static bool render_raw(const char *system, const char *user, eng_bytes *out, eng_error *err) {
    if (system == NULL) return eng_bytes_append_string(out, user, err);
    size_t size = strlen(system);
    bool apart = size == 0 || is_space(system[size - 1]) || is_space(user[0]);
    return eng_bytes_append(out, system, size, err) && (apart || eng_bytes_append(out, " ", 1, err)) &&
           eng_bytes_append_string(out, user, err);
}

bool eng_template_render_open(const eng_template *t, const char *system, eng_bytes *out, eng_error *err) {
    if (eng_template_is_raw(t)) return system == NULL || eng_bytes_append_string(out, system, err);
    if (system == NULL) system = t->default_system;
    if (!eng_bytes_append_string(out, t->begin, err)) return false;
    if (!t->system_in_turn && !append_system(t, system, out, err)) return false;
    if (!eng_bytes_append_string(out, t->turn_open, err)) return false;
    return !t->system_in_turn || append_system(t, system, out, err);
}

bool eng_template_render(const eng_template *t, const char *system, const char *user, eng_bytes *out, eng_error *err) {
    if (eng_template_is_raw(t)) return render_raw(system, user, out, err);
    return eng_template_render_open(t, system, out, err) &&
           append_user(t, user, system != NULL || t->default_system != NULL, out, err);
}

bool eng_template_render_next(const eng_template *t, const char *user, eng_bytes *out, eng_error *err) {
    return eng_bytes_append_string(out, t->answer_close, err) &&
           (!t->turn_open_repeats_begin || eng_bytes_append_string(out, t->begin, err)) &&
           eng_bytes_append_string(out, t->turn_open, err) && append_user(t, user, false, out, err);
}
