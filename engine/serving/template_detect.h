/* Which template a checkpoint means by the Jinja program that it carries.
 *
 * The program is not run.  It is brought to one form, in which spaces and comments between its words and the kind
 * of its quotes no longer count; the row of template.h is the first whose signs stand in it; and its hash tells
 * whether this very text was rendered beside that row and gave the same.  docs/chat-templates.md lists both. */
#ifndef RELAY_ENGINE_TEMPLATE_DETECT_H
#define RELAY_ENGINE_TEMPLATE_DETECT_H

#include <stdint.h>

#include "template.h"

typedef struct eng_template_match {
    const eng_template *format;
    char *default_system; /* owned: what the program itself puts where there is no system text; NULL: the row's */
    bool writes_bos;      /* the program writes the BOS token, and the row does not */
    bool compared;        /* this very text was */
    bool other_default;   /* the program has a default system text that is not followed */
    uint64_t hash;
} eng_template_match;

/* `chat_template` NULL: raw.  Fails where no row's signs are there; `where` begins the message. */
bool eng_template_detect(const char *where, const char *chat_template, eng_template_match *out, eng_error *err);
void eng_template_match_free(eng_template_match *match);

/* A line for the user about what the match leaves open, or false: there is nothing to say. */
bool eng_template_match_doubt(const char *where, const eng_template_match *match, eng_error *line);

#endif
