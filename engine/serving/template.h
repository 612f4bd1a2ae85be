/* Chat templates: how a conversation of the model's family is written as one text.
 *
 * A template here is a row of literals, not the Jinja program that a checkpoint carries; which row a checkpoint
 * means is for template_detect.h.  `raw` is none: the system text, one space unless the texts bring white space of
 * their own, and the user's text.  All others leave the newline out that ends a system prompt's file. */
#ifndef RELAY_ENGINE_TEMPLATE_H
#define RELAY_ENGINE_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>

#include "common/bytes.h"
#include "common/error.h"

enum { ENG_TEMPLATE_SIGNS = 2 };

typedef struct eng_template {
    const char *name;
    const char *signs[ENG_TEMPLATE_SIGNS];  /* stand in the checkpoint's program, in one form; none: found by name only */
    const char *bar;                        /* does not stand in it */
    const char *begin;                      /* opens the conversation; it holds the BOS token where there is one */
    const char *system_open, *system_close; /* around the system text */
    const char *default_system;             /* stands in where no system text is given; NULL: nothing does */
    const char *turn_open, *turn_close;     /* around a user's text; turn_close ends where the answer begins */
    const char *answer_close;               /* ends an answer before another turn */
    bool system_in_turn;                    /* the system text goes inside the first turn */
    bool turn_open_repeats_begin;           /* every turn opens with `begin` again */
    bool trims_system, trims_user;
    bool trims_turn;                        /* system and user text as one, so that the user's keeps its left side */
} eng_template;

/* NULL for an unknown name. */
const eng_template *eng_template_find(const char *name);

/* Row i of all, in the order in which their signs are looked for, or NULL; row 0 is raw. */
const eng_template *eng_template_at(int i);

/* "raw, chatml, ..." for messages and help; static storage. */
const char *eng_template_names(void);

/* Appends the conversation up to where the answer to `user` begins.  `system` NULL: the default, or none. */
bool eng_template_render(const eng_template *t, const char *system, const char *user, eng_bytes *out, eng_error *err);

/* Appends what every such conversation begins with, whatever `user` is. */
bool eng_template_render_open(const eng_template *t, const char *system, eng_bytes *out, eng_error *err);

/* Appends what stands between an answer and the next one. */
bool eng_template_render_next(const eng_template *t, const char *user, eng_bytes *out, eng_error *err);

/* The token that ends a turn ("<|im_end|>"); its size is 0 where there is none. */
const char *eng_template_turn_end(const eng_template *t, size_t *size);

/* Whether the text is without a template's special tokens, so that the tokeniser adds its own. */
bool eng_template_is_raw(const eng_template *t);

#endif
