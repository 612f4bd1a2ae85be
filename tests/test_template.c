/* Chat templates as texts, and how a checkpoint's own is recognised. */
#include "serving/template_detect.h"

#include <stdlib.h>

#include "test.h"

static void check_render(const char *name, const char *system, const char *user, const char *expected) {
    const eng_template *t = eng_template_find(name);
    eng_bytes text = {0};
    eng_error err;
    CHECK_MSG(t != NULL, "no template %s", name);
    if (t == NULL) return;
    CHECK(eng_template_render(t, system, user, &text, &err) && eng_bytes_append(&text, "", 1, &err));
    CHECK_MSG(strcmp(text.data, expected) == 0, "%s: \"%s\", expected \"%s\"", name, text.data, expected);
    eng_bytes_free(&text);
}

static void check_next(const char *name, const char *user, const char *expected) {
    eng_bytes text = {0};
    eng_error err;
    CHECK(eng_template_render_next(eng_template_find(name), user, &text, &err) && eng_bytes_append(&text, "", 1, &err));
    CHECK_MSG(strcmp(text.data, expected) == 0, "%s: \"%s\", expected \"%s\"", name, text.data, expected);
    eng_bytes_free(&text);
}

#define HEADER3(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define DATES31 "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
#define CHATML(role, text) "<|im_start|>" role "\n" text "<|im_end|>\n"
#define ANSWER "<|im_start|>assistant\n"

/* What transformers' apply_chat_template makes of the published programs, white space at both ends included;
 * docs/chat-templates.md names them.  Of Llama 3.2 with date_string="26 Jul 2024", of Qwen3 also with
 * enable_thinking=False. */
static const struct {
    const char *name, *with_system, *without;
} published[] = {
    {"llama2", "<s>[INST] <<SYS>>\n Be kind. \n<</SYS>>\n\n Hello [/INST]", "<s>[INST] Hello [/INST]"},
    {"llama3", "<|begin_of_text|>" HEADER3("system") "Be kind.<|eot_id|>" HEADER3("user") "Hello<|eot_id|>" HEADER3("assistant"),
     "<|begin_of_text|>" HEADER3("user") "Hello<|eot_id|>" HEADER3("assistant")},
    {"llama3.1", "<|begin_of_text|>" HEADER3("system") DATES31 "Be kind.<|eot_id|>" HEADER3("user") "Hello<|eot_id|>"
     HEADER3("assistant"),
     "<|begin_of_text|>" HEADER3("system") DATES31 "<|eot_id|>" HEADER3("user") "Hello<|eot_id|>" HEADER3("assistant")},
    {"qwen2", CHATML("system", " Be kind. ") CHATML("user", " Hello \n") ANSWER,
     CHATML("system", "You are a helpful assistant.") CHATML("user", " Hello \n") ANSWER},
    {"qwen2.5", CHATML("system", " Be kind. ") CHATML("user", " Hello \n") ANSWER,
     CHATML("system", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.") CHATML("user", " Hello \n")
     ANSWER},
    {"qwen3", CHATML("system", " Be kind. ") CHATML("user", " Hello \n") ANSWER, CHATML("user", " Hello \n") ANSWER},
    {"qwen3-no-thinking", CHATML("system", " Be kind. ") CHATML("user", " Hello \n") ANSWER "<think>\n\n</think>\n\n",
     CHATML("user", " Hello \n") ANSWER "<think>\n\n</think>\n\n"},
    {"chatml", CHATML("system", " Be kind. ") CHATML("user", " Hello \n") ANSWER, CHATML("user", " Hello \n") ANSWER},
    {"gemma", "<bos><start_of_turn>user\n Be kind. \n\nHello<end_of_turn>\n<start_of_turn>model\n",
     "<bos><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n"},
    {"mistral", "<s> [INST]  Be kind. \n\n Hello \n [/INST]", "<s> [INST]  Hello \n [/INST]"},
    {"mistral-v3", "<s>[INST]  Be kind. \n\n Hello \n[/INST]", "<s>[INST]  Hello \n[/INST]"},
    {"mistral-tekken", "<s>[INST] Be kind. \n\n Hello \n[/INST]", "<s>[INST] Hello \n[/INST]"},
    {"mistral-v7", "<s>[SYSTEM_PROMPT]  Be kind. [/SYSTEM_PROMPT][INST]  Hello \n[/INST]", "<s>[INST]  Hello \n[/INST]"},
};

static void test_published(void) {
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        check_render(published[i].name, " Be kind. ", " Hello \n", published[i].with_system);
        check_render(published[i].name, NULL, " Hello \n", published[i].without);
    }
}

/* Rows whose program refuses what is asked here, or adds its day's date. */
static void test_texts(void) {
    check_render("mistral-2023", NULL, " Hello \n", "<s>[INST]  Hello \n [/INST]");
    check_render("mistral-2023", "Be kind.", "Hello", "<s>[INST] Be kind.\n\nHello [/INST]");
    check_render("mistral-v7-tekken", " Be kind. ", " Hello \n", "<s>[SYSTEM_PROMPT] Be kind. [/SYSTEM_PROMPT][INST] Hello \n[/INST]");
    check_render("chatml-thinking", NULL, "Hello", CHATML("user", "Hello") ANSWER "<think>\n");
    check_render("chatml", "Be kind.\r\n", "Hello", CHATML("system", "Be kind.") CHATML("user", "Hello") ANSWER);
}

static void test_raw(void) {
    check_render("raw", "a handbook .", "what ?", "a handbook . what ?");
    check_render("raw", "a handbook .\n", "what ?", "a handbook .\nwhat ?");
    check_render("raw", "a handbook .", "\nwhat ?", "a handbook .\nwhat ?");
    check_render("raw", NULL, "what ?", "what ?");
    check_render("raw", "", "what ?", "what ?");
    CHECK(eng_template_is_raw(eng_template_find("raw")) && !eng_template_is_raw(eng_template_find("gemma")));
}

static void test_second_turns(void) {
    check_next("gemma", "And?", "<end_of_turn>\n<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\n");
    check_next("llama2", "And?", " </s><s>[INST] And? [/INST]");
    check_next("chatml", "And?", "<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n");
    check_next("llama3.1", "And?", "<|eot_id|>" HEADER3("user") "And?<|eot_id|>" HEADER3("assistant"));
    check_next("mistral", "And?", "</s> [INST] And? [/INST]");
    check_next("mistral-v7", "And?", "</s>[INST] And?[/INST]");
    check_next("raw", "and ?", "\nand ?");
}

static void check_detected(const char *program, const char *expected) {
    eng_template_match match;
    eng_error err = {""};
    bool ok = eng_template_detect("m", program, &match, &err);
    CHECK_MSG(ok && strcmp(match.format->name, expected) == 0, "%s, expected %s %s", ok ? match.format->name : "nothing",
              expected, err.text);
    eng_template_match_free(&match);
}

static void test_detection(void) {
    check_detected(NULL, "raw");
    check_detected("{{ '<|start_header_id|>' + message['role'] }}", "llama3");
    check_detected("{{ 'Cutting Knowledge Date: December 2023' }} {{ '<|start_header_id|>' }}", "llama3.1");
    check_detected("{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>' }}", "qwen2");
    check_detected("{{ '<|im_start|>' + message.role }}", "chatml");
    check_detected("{{ '<|im_start|>' }}{% if enable_thinking is defined and enable_thinking is false %}", "qwen3");
    check_detected("{{ '<|im_start|>assistant\\n<think>\\n' }}", "chatml-thinking");
    check_detected("{{ '[INST] <<SYS>>' }}", "llama2");
    check_detected("{{ ' [INST] ' + message + ' [/INST]' }}", "mistral");
    check_detected("{{ \"[INST] \" + message + \" [/INST]\" }}", "mistral-2023");
    check_detected("{{ '[AVAILABLE_TOOLS]' }} {{ \"[INST] \" + message + \"[/INST]\" }}", "mistral-v3");
    check_detected("{{ '[AVAILABLE_TOOLS]' }} {{ \"[INST]\" + message + \"[/INST]\" }}", "mistral-tekken");
    check_detected("{{ '[SYSTEM_PROMPT] ' + m + '[/SYSTEM_PROMPT]' }}{{ '[INST] ' + m + '[/INST]' }}", "mistral-v7");
    check_detected("{{ '[SYSTEM_PROMPT]' + m + '[/SYSTEM_PROMPT]' }}{{ '[INST]' + m + '[/INST]' }}", "mistral-v7-tekken");
    check_detected("{{ '<start_of_turn>' }}", "gemma");
}

static void test_unknown_program(void) {
    static const char *const programs[] = {"{{ something else }}", "", "{{", "{{ '", "{# '<|im_start|>'", "{{ '[SYSTEM_PROMPT]' }}"};
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++) {
        eng_template_match match;
        eng_error err = {""};
        CHECK_MSG(!eng_template_detect("m/tokenizer_config.json", programs[i], &match, &err), "%s", programs[i]);
        CHECK_CONTAINS(err.text, "m/tokenizer_config.json");
        CHECK_CONTAINS(err.text, "--template");
        eng_template_match_free(&match);
    }
}

static uint64_t hash_of(const char *program) {
    eng_template_match match;
    CHECK(eng_template_detect("m", program, &match, NULL));
    uint64_t hash = match.hash;
    eng_template_match_free(&match);
    return hash;
}

/* Spaces between words, comments and the kind of quotes do not count; what is put out does. */
static void test_one_form(void) {
    uint64_t hash = hash_of("{% if a %}{{ '<|im_start|>\\n' + \"it's\" }}{% endif %}");
    CHECK(hash == hash_of("{%  if a %}\n  {# it's so #}{{\t\"<|im_start|>\n\" +'it\\'s'}}\r\n{% endif %}"));
    CHECK(hash != hash_of("{% if a %}{{ '<|im_start|> \\n' + \"it's\" }}{% endif %}"));
    CHECK(hash != hash_of("{%- if a %}{{ '<|im_start|>\\n' + \"it's\" }}{% endif %}"));
    CHECK(hash != hash_of("{% if a %}{{ '<|im_start|>\\n' + \"its\" }}{% endif %}"));
}

static void check_default(const char *program, const char *expected) {
    eng_template_match match;
    CHECK(eng_template_detect("m", program, &match, NULL));
    bool same = expected == NULL ? match.default_system == NULL
                                 : match.default_system != NULL && strcmp(match.default_system, expected) == 0;
    CHECK_MSG(same, "%s, expected %s", match.default_system ? match.default_system : "none", expected ? expected : "none");
    eng_template_match_free(&match);
}

static void test_default_system(void) {
    check_default("{{ '<|im_start|>system\\nYou\\'re \"Tiny\".\\nBe kind.<|im_end|>\\n' }}", "You're \"Tiny\".\nBe kind.");
    check_default("{{ \"<|im_start|>system\nYou're Tiny.<|im_end|>\n\" }}", "You're Tiny.");
    check_default("{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}", NULL);
    check_default("{{ '<|im_start|>system\\n' }}{{ m }}{{ '<|im_end|>' }}{{ '<|im_start|>system\\nTiny<|im_end|>' }}", "Tiny");
    check_default("{{ '<|im_start|>system\\n<|im_end|>' }}", NULL);
    check_default("{{ '<|im_start|>system\\nTiny\\\\<|im_end|>' }}", "Tiny\\");
    check_default("{{ '<start_of_turn>' }}{{ '<|im_start|>system\\nTiny<|im_end|>' }}", "Tiny");
}

static void check_doubt(const char *program, const char *expected) {
    eng_template_match match;
    eng_error line = {""};
    CHECK(eng_template_detect("m", program, &match, NULL));
    CHECK(eng_template_match_doubt("m", &match, &line) == (expected != NULL));
    if (expected != NULL) CHECK_CONTAINS(line.text, expected);
    eng_template_match_free(&match);
}

static void test_doubts(void) {
    check_doubt(NULL, NULL);
    check_doubt("{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}", NULL);
    check_doubt("{{ '<|im_start|>' + message.role }}", "taken for \"chatml\"");
}

static void test_names(void) {
    char names[512];
    snprintf(names, sizeof names, "%s", eng_template_names());
    int count = 0;
    for (char *name = strtok(names, ", "); name != NULL; name = strtok(NULL, ", "), count++)
        CHECK_MSG(eng_template_find(name) != NULL, "%s is named and not there", name);
    CHECK(count == 17);
    CHECK(eng_template_find("jinja") == NULL);
    size_t size;
    CHECK(strncmp(eng_template_turn_end(eng_template_find("gemma"), &size), "<end_of_turn>", 13) == 0 && size == 13);
    CHECK(strncmp(eng_template_turn_end(eng_template_find("llama2"), &size), "</s>", 4) == 0 && size == 4);
    eng_template_turn_end(eng_template_find("raw"), &size);
    CHECK(size == 0);
}

int main(void) {
    test_published();
    test_texts();
    test_raw();
    test_second_turns();
    test_detection();
    test_unknown_program();
    test_one_form();
    test_default_system();
    test_doubts();
    test_names();
    return test_result();
}
