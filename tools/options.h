/* Command-line options, declared as a table.
 *
 *     const char *model = NULL;
 *     int32_t batch = 32;
 *     const opt_spec specs[] = {
 *         {OPT_STRING("model", "DIR", &model, "where the checkpoint lies"), .required = true},
 *         {OPT_INT("batch", "N", &batch, 1, 1024, "requests answered at once")},
 *     };
 *     const opt_command command = {.name = "relay generate", .usage = "--model DIR [options]",
 *                                  .summary = "Answers ...", .specs = specs,
 *                                  .num_specs = OPT_COUNT(specs), .examples = "..."};
 *     int code = opt_parse(&command, argc, argv);
 *     if (code >= 0) return code;
 *
 * A variable's value before parsing is the default, which --help shows.  Options are written
 * --name VALUE or --name=VALUE; every command understands --help.
 */
#ifndef RELAY_OPTIONS_H
#define RELAY_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* What a repeated option collects.  The strings point into argv; opt_strings_free. */
typedef struct opt_strings {
    const char **items;
    int32_t count;
} opt_strings;

/* What `--name 1,7,32` collects; what is given replaces the default list whole. */
#define OPT_MAX_INTS 64
typedef struct opt_ints {
    int32_t items[OPT_MAX_INTS];
    int32_t count;
} opt_ints;

typedef enum opt_kind {
    OPT_KIND_FLAG,
    OPT_KIND_STRING,
    OPT_KIND_STRINGS,
    OPT_KIND_INT,
    OPT_KIND_INT64,
    OPT_KIND_INTS,
    OPT_KIND_FLOAT,
    OPT_KIND_BYTES,
    OPT_KIND_CHOICE,
    OPT_KIND_CHOICES
} opt_kind;

/* One option; write rows with the macros below. */
typedef struct opt_spec {
    opt_kind kind;
    const char *name;  /* without the dashes */
    const char *value; /* what --help calls the value */
    union {
        bool *flag;
        const char **text;
        opt_strings *texts;
        int32_t *i32;
        int64_t *i64;
        opt_ints *ints;
        double *number;
        uint64_t *bytes;
        int *choice;
        uint32_t *mask;
    } to;
    int64_t min, max;           /* whole numbers and bytes */
    double low, high;           /* floats */
    const char *const *words;   /* choices, NULL-terminated, at most 32 */
    const char *help;
    bool required;
    const char *shown_default;  /* --help shows it in place of the value; "" shows none */
} opt_spec;

/* clang-format off */
#define OPT_FLAG(n, t, h)            .kind = OPT_KIND_FLAG, .name = (n), .to.flag = (t), .help = (h)
#define OPT_STRING(n, v, t, h)       .kind = OPT_KIND_STRING, .name = (n), .value = (v), .to.text = (t), .help = (h)
/* repeated: --name A --name B */
#define OPT_STRINGS(n, v, t, h)      .kind = OPT_KIND_STRINGS, .name = (n), .value = (v), .to.texts = (t), .help = (h)
#define OPT_INT(n, v, t, lo, hi, h)  .kind = OPT_KIND_INT, .name = (n), .value = (v), .to.i32 = (t), .min = (lo), .max = (hi), .help = (h)
#define OPT_INT64(n, v, t, lo, hi, h) .kind = OPT_KIND_INT64, .name = (n), .value = (v), .to.i64 = (t), .min = (lo), .max = (hi), .help = (h)
/* a list: --name 1,7,32 */
#define OPT_INTS(n, v, t, lo, hi, h) .kind = OPT_KIND_INTS, .name = (n), .value = (v), .to.ints = (t), .min = (lo), .max = (hi), .help = (h)
#define OPT_FLOAT(n, v, t, lo, hi, h) .kind = OPT_KIND_FLOAT, .name = (n), .value = (v), .to.number = (t), .low = (lo), .high = (hi), .help = (h)
/* with a suffix K, M, G or T, units of 1024 */
#define OPT_BYTES(n, v, t, lo, hi, h) .kind = OPT_KIND_BYTES, .name = (n), .value = (v), .to.bytes = (t), .min = (lo), .max = (hi), .help = (h)
/* one word of a list: its index */
#define OPT_CHOICE(n, v, t, w, h)    .kind = OPT_KIND_CHOICE, .name = (n), .value = (v), .to.choice = (t), .words = (w), .help = (h)
/* words separated by commas: bit i for word i */
#define OPT_CHOICES(n, v, t, w, h)   .kind = OPT_KIND_CHOICES, .name = (n), .value = (v), .to.mask = (t), .words = (w), .help = (h)
/* clang-format on */

#define OPT_COUNT(specs) ((int)(sizeof(specs) / sizeof((specs)[0])))

typedef struct opt_command {
    const char *name;     /* "relay generate" */
    const char *usage;    /* what follows the name in the usage line */
    const char *summary;  /* what the command does; wrapped by --help */
    const opt_spec *specs;
    int num_specs;
    const char *examples; /* lines as they are to be shown, or NULL */
} opt_command;

/* Reads argv[1..] into the targets.  Returns -1 to go on, or the exit code of a command that is
 * done: 0 after --help (on stdout), 2 after a mistake (named on stderr). */
int opt_parse(const opt_command *command, int argc, char **argv);

/* For mistakes that only the command itself sees ("--resume needs --out"): one line on stderr
 * with the command's name and a pointer to --help; returns 2. */
int opt_mistake(const opt_command *command, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;

void opt_help(const opt_command *command, FILE *out);
void opt_strings_free(opt_strings *strings);

#endif
