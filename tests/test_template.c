/* Chat templates as texts, and how a checkpoint's own is recognised. */
#include "serving/template.h"

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

static void test_texts(void) {
    check_render("llama2", "Be kind.", " Hello ", "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHello [/INST]");
    check_render("llama2", NULL, "Hello", "<s>[INST] Hello [/INST]");
    check_render("llama3", " Be kind.\n", "Hello",
                 "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
                 "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
                 "<|start_header_id|>assistant<|end_header_id|>\n\n");
    check_render("llama3.1", NULL, "Hello",
                 "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
                 "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
                 "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
                 "<|start_header_id|>assistant<|end_header_id|>\n\n");
    check_render("chatml", "Be kind.", "Hello ",
                 "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello <|im_end|>\n<|im_start|>assistant\n");
    check_render("chatml", NULL, "Hello", "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
    check_render("qwen2", NULL, "Hello",
                 "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
                 "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
    check_render("gemma", "Be kind.", " Hello\n",
                 "<bos><start_of_turn>user\nBe kind.\n\nHello<end_of_turn>\n<start_of_turn>model\n");
    check_render("mistral", "Be kind.", "Hello", "<s> [INST] Be kind.\n\nHello [/INST]");
    check_render("mistral-v3", "Be kind.", "Hello", "<s>[INST] Be kind.\n\nHello[/INST]");
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
    check_next("raw", "and ?", "\nand ?");
}

static void check_detected(const char *chat_template, const char *expected) {
    const eng_template *t = NULL;
    eng_error err = {""};
    bool ok = eng_template_detect("m", chat_template, &t, &err);
    CHECK_MSG(ok && strcmp(t->name, expected) == 0, "%s, expected %s %s", ok ? t->name : "nothing", expected, err.text);
}

static void test_detection(void) {
    check_detected(NULL, "raw");
    check_detected("{{ '<|start_header_id|>' + message['role'] }}", "llama3");
    check_detected("{{ 'Cutting Knowledge Date: December 2023' }} <|start_header_id|>", "llama3.1");
    check_detected("<|im_start|>system\nYou are a helpful assistant.<|im_end|>", "qwen2");
    check_detected("'<|im_start|>' + message.role", "chatml");
    check_detected("{{ '[INST] <<SYS>>' }}", "llama2");
    check_detected("{{ ' [INST] ' }}", "mistral");
    check_detected("{{ '[AVAILABLE_TOOLS]' }} [INST] ", "mistral-v3");
    check_detected("<start_of_turn>", "gemma");
    const eng_template *t;
    eng_error err = {""};
    CHECK(!eng_template_detect("m/tokenizer_config.json", "{{ something else }}", &t, &err));
    CHECK_CONTAINS(err.text, "m/tokenizer_config.json");
    CHECK_CONTAINS(err.text, "--template");
}

static void test_names(void) {
    char names[512];
    snprintf(names, sizeof names, "%s", eng_template_names());
    int count = 0;
    for (char *name = strtok(names, ", "); name != NULL; name = strtok(NULL, ", "), count++)
        CHECK_MSG(eng_template_find(name) != NULL, "%s is named and not there", name);
    CHECK(count == 10);
    CHECK(eng_template_find("jinja") == NULL);
    size_t size;
    CHECK(strncmp(eng_template_turn_end(eng_template_find("gemma"), &size), "<end_of_turn>", 13) == 0 && size == 13);
    CHECK(strncmp(eng_template_turn_end(eng_template_find("llama2"), &size), "</s>", 4) == 0 && size == 4);
    eng_template_turn_end(eng_template_find("raw"), &size);
    CHECK(size == 0);
}

int main(void) {
    test_texts();
    test_raw();
    test_second_turns();
    test_detection();
    test_names();
    return test_result();
}
