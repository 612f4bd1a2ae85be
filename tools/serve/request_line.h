/* One line of a file of requests. */
#ifndef RELAY_REQUEST_LINE_H
#define RELAY_REQUEST_LINE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct request_line {
    json_t *root;         /* owns what follows but id */
    char *id;             /* as JSON: "7" is not 7 */
    const char *text;
    bool default_system;  /* "system" is absent */
    const char *system;   /* NULL: none */
    int32_t max_tokens;   /* 0: not said */
    const char *expected; /* NULL: not said */
    char problem[256];    /* what is wrong with a line that has an id; else empty */
} request_line;

/* False where the line has no id to answer under; then `problem` says what is wrong, too. */
bool request_line_parse(const char *text, size_t size, request_line *out);
void request_line_free(request_line *line);

/* An id as JSON, to be freed; NULL where it is neither a text nor a number. */
char *request_id_text(const json_t *id);

#endif
