#include "template.h"

#include <string.h>

#define LLAMA3_HEADER(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
/* The date that the published templates of Llama 3.1 and 3.2 fall back to. */
#define LLAMA31_DATES "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

/* Sources: tokenizer_config.json as published with Llama-2-7b-chat, Meta-Llama-3-8B-Instruct,
 * Llama-3.1-8B-Instruct, Mistral-7B-Instruct v0.2 and v0.3, Qwen2-0.5B-Instruct, Qwen2.5-0.5B-Instruct,
 * Qwen3-0.6B, gemma-3-270m-it.  Where the markers of several rows occur, the first row counts. */
static const eng_template templates[] = {
    {.name = "raw", .begin = "", .system_open = "", .system_close = "", .turn_open = "", .turn_close = "",
     .answer_close = "\n"},
    {.name = "llama3.1", .marker = "Cutting Knowledge Date", .begin = "<|begin_of_text|>",
     .system_open = LLAMA3_HEADER("system") LLAMA31_DATES, .system_close = "<|eot_id|>", .default_system = "",
     .turn_open = LLAMA3_HEADER("user"), .turn_close = "<|eot_id|>" LLAMA3_HEADER("assistant"),
     .answer_close = "<|eot_id|>", .trims_system = true, .trims_user = true},
    {.name = "llama3", .marker = "<|start_header_id|>", .begin = "<|begin_of_text|>",
     .system_open = LLAMA3_HEADER("system"), .system_close = "<|eot_id|>",
     .turn_open = LLAMA3_HEADER("user"), .turn_close = "<|eot_id|>" LLAMA3_HEADER("assistant"),
     .answer_close = "<|eot_id|>", .trims_system = true, .trims_user = true},
    {.name = "qwen2.5", .marker = "You are Qwen, created by Alibaba Cloud", .begin = "",
     .system_open = "<|im_start|>system\n", .system_close = "<|im_end|>\n",
     .default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
     .turn_open = "<|im_start|>user\n", .turn_close = "<|im_end|>\n<|im_start|>assistant\n",
     .answer_close = "<|im_end|>\n"},
    {.name = "qwen2", .marker = "You are a helpful assistant", .begin = "",
     .system_open = "<|im_start|>system\n", .system_close = "<|im_end|>\n",
     .default_system = "You are a helpful assistant.",
     .turn_open = "<|im_start|>user\n", .turn_close = "<|im_end|>\n<|im_start|>assistant\n",
     .answer_close = "<|im_end|>\n"},
    {.name = "chatml", .marker = "<|im_start|>", .begin = "",
     .system_open = "<|im_start|>system\n", .system_close = "<|im_end|>\n",
     .turn_open = "<|im_start|>user\n", .turn_close = "<|im_end|>\n<|im_start|>assistant\n",
     .answer_close = "<|im_end|>\n"},
    {.name = "gemma", .marker = "<start_of_turn>", .begin = "<bos>",
     .system_open = "", .system_close = "\n\n", .system_in_turn = true,
     .turn_open = "<start_of_turn>user\n", .turn_close = "<end_of_turn>\n<start_of_turn>model\n",
     .answer_close = "<end_of_turn>\n", .trims_user = true},
    {.name = "llama2", .marker = "<<SYS>>", .begin = "<s>",
     .system_open = "<<SYS>>\n", .system_close = "\n<</SYS>>\n\n", .system_in_turn = true,
     .turn_open = "[INST] ", .turn_close = " [/INST]", .answer_close = " </s>", .turn_open_repeats_begin = true,
     .trims_user = true},
    {.name = "mistral-v3", .marker = "[AVAILABLE_TOOLS]", .begin = "<s>",
     .system_open = "", .system_close = "\n\n", .system_in_turn = true,
     .turn_open = "[INST] ", .turn_close = "[/INST]", .answer_close = "</s>"},
    {.name = "mistral", .marker = "[INST]", .begin = "<s>",
     .system_open = "", .system_close = "\n\n", .system_in_turn = true,
     .turn_open = " [INST] ", .turn_close = " [/INST]", .answer_close = "</s>"},
};
enum { NUM_TEMPLATES = sizeof templates / sizeof templates[0] };

const eng_template *eng_template_find(const char *name) {
    for (int i = 0; i < NUM_TEMPLATES; i++)
        if (strcmp(templates[i].name, name) == 0) return &templates[i];
    return NULL;
}

const char *eng_template_names(void) {
    return "raw, llama3.1, llama3, qwen2.5, qwen2, chatml, gemma, llama2, mistral-v3, mistral";
}

bool eng_template_is_raw(const eng_template *t) {
    return t == &templates[0];
}

bool eng_template_detect(const char *where, const char *chat_template, const eng_template **out, eng_error *err) {
    *out = &templates[0];
    if (chat_template == NULL) return true;
    for (int i = 0; i < NUM_TEMPLATES; i++)
        if (templates[i].marker != NULL && strstr(chat_template, templates[i].marker) != NULL) {
            *out = &templates[i];
            return true;
        }
    return eng_fail(err, "%s: chat_template: not one that is known; choose with --template: %s", where,
                    eng_template_names());
}

/* ---- rendering ---------------------------------------------------------- */

/* What Jinja's trim (Python's str.strip) takes, as far as it is ASCII. */
static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r') || (c >= '\x1c' && c <= '\x1f');
}

static void strip(const char **text, size_t *size) {
    while (*size > 0 && is_space((*text)[*size - 1])) --*size;
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

static bool append_user(const eng_template *t, const char *user, eng_bytes *out, eng_error *err) {
    size_t size = strlen(user);
    if (t->trims_user) strip(&user, &size);
    return eng_bytes_append(out, user, size, err) && eng_bytes_append_string(out, t->turn_close, err);
}

static bool render_raw(const char *system, const char *user, eng_bytes *out, eng_error *err) {
    if (system == NULL) return eng_bytes_append_string(out, user, err);
    size_t size = strlen(system);
    bool apart = size == 0 || is_space(system[size - 1]) || is_space(user[0]);
    return eng_bytes_append(out, system, size, err) && (apart || eng_bytes_append(out, " ", 1, err)) &&
           eng_bytes_append_string(out, user, err);
}

bool eng_template_render(const eng_template *t, const char *system, const char *user, eng_bytes *out, eng_error *err) {
    if (eng_template_is_raw(t)) return render_raw(system, user, out, err);
    if (system == NULL) system = t->default_system;
    if (!eng_bytes_append_string(out, t->begin, err)) return false;
    if (!t->system_in_turn && !append_system(t, system, out, err)) return false;
    if (!eng_bytes_append_string(out, t->turn_open, err)) return false;
    if (t->system_in_turn && !append_system(t, system, out, err)) return false;
    return append_user(t, user, out, err);
}

bool eng_template_render_next(const eng_template *t, const char *user, eng_bytes *out, eng_error *err) {
    return eng_bytes_append_string(out, t->answer_close, err) &&
           (!t->turn_open_repeats_begin || eng_bytes_append_string(out, t->begin, err)) &&
           eng_bytes_append_string(out, t->turn_open, err) && append_user(t, user, out, err);
}
