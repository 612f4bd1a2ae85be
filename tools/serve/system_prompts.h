/* The system prompts that a command line names: `--system [NAME=]FILE`, repeated. */
#ifndef RELAY_SYSTEM_PROMPTS_H
#define RELAY_SYSTEM_PROMPTS_H

#include "engine.h"
#include "options.h"

typedef struct system_prompt {
    char *name;       /* NULL: the one prompt without a name */
    const char *path; /* borrowed */
    char *text;
} system_prompt;

typedef struct system_prompts {
    system_prompt *items; /* [count] */
    int32_t count;
} system_prompts;

/* Reads all files; a file name with '=' in it needs NAME= before it.  Messages go to stderr. */
bool system_prompts_read(const opt_strings *given, system_prompts *out);
void system_prompts_free(system_prompts *prompts);

bool system_prompts_add(const system_prompts *prompts, eng_engine *engine, eng_error *err);

/* The index of a name, or ENG_NO_PROMPT. */
int32_t system_prompts_find(const system_prompts *prompts, const char *name);

#endif
