#include "system_prompts.h"

#include <stdlib.h>
#include <string.h>

#include "serve_options.h"

static const char command[] = "relay generate";

static bool read_one(const char *given, system_prompt *out) {
    const char *equals = strchr(given, '=');
    out->path = equals != NULL ? equals + 1 : given;
    if (equals != NULL) {
        size_t length = (size_t)(equals - given);
        out->name = calloc(1, length + 1);
        if (out->name != NULL) memcpy(out->name, given, length);
        if (out->name == NULL || length == 0) {
            fprintf(stderr, "%s: --system %s: %s\n", command, given, length == 0 ? "no name before =" : "out of memory");
            return false;
        }
    }
    if (out->path[0] == '\0') {
        fprintf(stderr, "%s: --system %s: no file is named\n", command, given);
        return false;
    }
    out->text = serve_read_text(command, out->path);
    return out->text != NULL;
}

/* With several prompts a request has to say which, so each needs a name of its own. */
static bool check_names(const system_prompts *prompts) {
    for (int32_t i = 0; prompts->count > 1 && i < prompts->count; i++) {
        const char *name = prompts->items[i].name;
        if (name == NULL) {
            fprintf(stderr, "%s: --system %s: with several prompts each needs a name: --system NAME=%s\n", command,
                    prompts->items[i].path, prompts->items[i].path);
            return false;
        }
        if (system_prompts_find(prompts, name) != i) {
            fprintf(stderr, "%s: --system %s=...: two prompts of that name\n", command, name);
            return false;
        }
    }
    return true;
}

bool system_prompts_read(const opt_strings *given, system_prompts *out) {
    *out = (system_prompts){.items = calloc((size_t)given->count + 1, sizeof *out->items)};
    if (out->items == NULL) {
        fprintf(stderr, "%s: out of memory\n", command);
        return false;
    }
    bool ok = true;
    for (int32_t i = 0; ok && i < given->count; i++) {
        out->count++;
        ok = read_one(given->items[i], &out->items[i]);
    }
    ok = ok && check_names(out);
    if (!ok) system_prompts_free(out);
    return ok;
}

void system_prompts_free(system_prompts *prompts) {
    for (int32_t i = 0; i < prompts->count; i++) {
        free(prompts->items[i].name);
        free(prompts->items[i].text);
    }
    free(prompts->items);
    *prompts = (system_prompts){0};
}

bool system_prompts_add(const system_prompts *prompts, eng_engine *engine, eng_error *err) {
    for (int32_t i = 0; i < prompts->count; i++)
        if (!eng_engine_add_prompt(engine, prompts->items[i].path, prompts->items[i].text, err)) return false;
    return true;
}

int32_t system_prompts_find(const system_prompts *prompts, const char *name) {
    for (int32_t i = 0; i < prompts->count; i++)
        if (prompts->items[i].name != NULL && strcmp(prompts->items[i].name, name) == 0) return i;
    return ENG_NO_PROMPT;
}
