#include "options.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { HELP_WIDTH = 88, HELP_COLUMN = 24 };

int opt_mistake(const opt_command *command, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s: ", command->name);
    vfprintf(stderr, format, args);
    fprintf(stderr, "\nTry '%s --help'.\n", command->name);
    va_end(args);
    return 2;
}

/* ---- values ------------------------------------------------------------- */

static bool parse_whole(const char *text, const char **end, int64_t *value) {
    char *stop;
    errno = 0;
    long long parsed = strtoll(text, &stop, 10);
    *end = stop;
    *value = parsed;
    return errno == 0 && stop != text && text[0] != ' ' && text[0] != '\t';
}

/* 1024 ** (place of the letter in " KMGT"); 0 for another letter. */
static int64_t unit_of(char letter) {
    switch (letter) {
    case '\0': return 1;
    case 'k': case 'K': return 1LL << 10;
    case 'm': case 'M': return 1LL << 20;
    case 'g': case 'G': return 1LL << 30;
    case 't': case 'T': return 1LL << 40;
    default: return 0;
    }
}

static bool parse_bytes(const char *text, int64_t *value) {
    const char *end;
    if (!parse_whole(text, &end, value) || *value < 0) return false;
    int64_t unit = unit_of(*end);
    if (unit == 0 || (*end != '\0' && end[1] != '\0')) return false;
    if (*value > INT64_MAX / unit) return false;
    *value *= unit;
    return true;
}

/* The largest unit that divides a size, so that --help shows 4G and not 4294967296. */
static void print_bytes(FILE *out, uint64_t bytes) {
    static const char units[] = "TGMK";
    for (int i = 0; bytes != 0 && i < 4; i++) {
        uint64_t unit = (uint64_t)unit_of(units[i]);
        if (bytes % unit == 0) {
            fprintf(out, "%" PRIu64 "%c", bytes / unit, units[i]);
            return;
        }
    }
    fprintf(out, "%" PRIu64, bytes);
}

static int word_index(const opt_spec *spec, const char *text, size_t length) {
    for (int i = 0; spec->words[i] != NULL; i++)
        if (strlen(spec->words[i]) == length && memcmp(spec->words[i], text, length) == 0) return i;
    return -1;
}

static bool store_whole(const opt_spec *spec, const char *text) {
    const char *end;
    int64_t value;
    if (!parse_whole(text, &end, &value) || *end != '\0') return false;
    if (value < spec->min || value > spec->max) return false;
    if (spec->kind == OPT_KIND_INT) *spec->to.i32 = (int32_t)value;
    else *spec->to.i64 = value;
    return true;
}

static bool store_ints(const opt_spec *spec, const char *text) {
    opt_ints list = {.count = 0};
    for (const char *at = text;; at++) {
        int64_t value;
        if (list.count == OPT_MAX_INTS || !parse_whole(at, &at, &value)) return false;
        if (value < spec->min || value > spec->max) return false;
        list.items[list.count++] = (int32_t)value;
        if (*at == '\0') break;
        if (*at != ',') return false;
    }
    *spec->to.ints = list;
    return true;
}

static bool store_float(const opt_spec *spec, const char *text) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(value)) return false;
    if (!(value >= spec->low && value <= spec->high)) return false;
    *spec->to.number = value;
    return true;
}

static bool store_bytes(const opt_spec *spec, const char *text) {
    int64_t value;
    if (!parse_bytes(text, &value) || value < spec->min || value > spec->max) return false;
    *spec->to.bytes = (uint64_t)value;
    return true;
}

static bool store_choice(const opt_spec *spec, const char *text) {
    int index = word_index(spec, text, strlen(text));
    if (index < 0) return false;
    *spec->to.choice = index;
    return true;
}

static bool store_choices(const opt_spec *spec, const char *text) {
    uint32_t mask = 0;
    for (;;) {
        size_t length = strcspn(text, ",");
        int index = word_index(spec, text, length);
        if (index < 0) return false;
        mask |= 1u << index;
        if (text[length] == '\0') break;
        text += length + 1;
    }
    *spec->to.mask = mask;
    return true;
}

static bool store_strings(const opt_spec *spec, const char *text) {
    opt_strings *list = spec->to.texts;
    const char **items = realloc(list->items, ((size_t)list->count + 1) * sizeof *items);
    if (items == NULL) return false;
    list->items = items;
    list->items[list->count++] = text;
    return true;
}

static bool store(const opt_spec *spec, const char *text) {
    switch (spec->kind) {
    case OPT_KIND_FLAG: *spec->to.flag = true; return true;
    case OPT_KIND_STRING: *spec->to.text = text; return true;
    case OPT_KIND_STRINGS: return store_strings(spec, text);
    case OPT_KIND_INT:
    case OPT_KIND_INT64: return store_whole(spec, text);
    case OPT_KIND_INTS: return store_ints(spec, text);
    case OPT_KIND_FLOAT: return store_float(spec, text);
    case OPT_KIND_BYTES: return store_bytes(spec, text);
    case OPT_KIND_CHOICE: return store_choice(spec, text);
    case OPT_KIND_CHOICES: return store_choices(spec, text);
    }
    return false;
}

/* ---- what is accepted, in words ----------------------------------------- */

static void print_words(FILE *out, const opt_spec *spec) {
    for (int i = 0; spec->words[i] != NULL; i++)
        fprintf(out, "%s%s", i ? ", " : "", spec->words[i]);
}

static void print_range(FILE *out, const opt_spec *spec) {
    fprintf(out, "%" PRId64, spec->min);
    if (spec->max == INT64_MAX || (spec->kind != OPT_KIND_INT64 && spec->max == INT32_MAX))
        fputs(" or more", out);
    else
        fprintf(out, " to %" PRId64, spec->max);
}

static void print_byte_range(FILE *out, const opt_spec *spec) {
    print_bytes(out, (uint64_t)spec->min);
    if (spec->max == INT64_MAX) {
        fputs(" or more", out);
    } else {
        fputs(" to ", out);
        print_bytes(out, (uint64_t)spec->max);
    }
}

static void print_accepted(FILE *out, const opt_spec *spec) {
    switch (spec->kind) {
    case OPT_KIND_FLAG: fputs("no value", out); break;
    case OPT_KIND_STRING:
    case OPT_KIND_STRINGS: fputs("text", out); break;
    case OPT_KIND_INT:
    case OPT_KIND_INT64: fputs("a whole number: ", out); print_range(out, spec); break;
    case OPT_KIND_INTS:
        fprintf(out, "at most %d whole numbers with commas between them, each ", OPT_MAX_INTS);
        print_range(out, spec);
        break;
    case OPT_KIND_FLOAT: fprintf(out, "a number from %g to %g", spec->low, spec->high); break;
    case OPT_KIND_BYTES:
        fputs("bytes, with K, M, G or T for units of 1024: ", out);
        print_byte_range(out, spec);
        break;
    case OPT_KIND_CHOICE: fputs("one of ", out); print_words(out, spec); break;
    case OPT_KIND_CHOICES:
        fputs("words with commas between them, out of ", out);
        print_words(out, spec);
        break;
    }
}

/* A number beyond a range whose end --help does not mention. */
static bool is_too_large(const opt_spec *spec, const char *text) {
    char *end;
    bool whole = spec->kind == OPT_KIND_INT || spec->kind == OPT_KIND_INT64, bytes = spec->kind == OPT_KIND_BYTES;
    if (!(whole && spec->max >= INT32_MAX) && !(bytes && spec->max == INT64_MAX)) return false;
    double value = strtod(text, &end);
    if (end == text || end != text + strspn(text, "0123456789")) return false;
    if (bytes && *end != '\0' && end[1] == '\0') value *= (double)unit_of(*end++);
    return *end == '\0' && value >= (double)spec->max;
}

/* A list takes any text, so that all that can be wrong is memory. */
static int refuse(const opt_command *command, const opt_spec *spec, const char *text) {
    if (spec->kind == OPT_KIND_STRINGS) {
        fprintf(stderr, "%s: --%s: out of memory\n", command->name, spec->name);
        return 1;
    }
    if (is_too_large(spec, text))
        return opt_mistake(command, "--%s: %s is too large; at most %" PRId64, spec->name, text, spec->max);
    char accepted[512] = "";
    FILE *out = fmemopen(accepted, sizeof accepted, "w");
    if (out != NULL) {
        print_accepted(out, spec);
        fclose(out);
    }
    return opt_mistake(command, "--%s: expected %s; got \"%s\"", spec->name, accepted, text);
}

/* ---- help --------------------------------------------------------------- */

/* Prints words from `column` on, broken before HELP_WIDTH, further lines indented. */
static void print_wrapped(FILE *out, const char *text, int column, int indent) {
    int at = column;
    while (*text != '\0') {
        int word = (int)strcspn(text, " \n");
        if (at > indent && at + 1 + word > HELP_WIDTH) {
            fprintf(out, "\n%*s", indent, "");
            at = indent;
        } else if (at > indent) {
            fputc(' ', out);
            at++;
        }
        fprintf(out, "%.*s", word, text);
        at += word;
        text += word;
        text += strspn(text, " \n");
    }
    fputc('\n', out);
}

static void print_ints(FILE *out, const opt_ints *list) {
    for (int i = 0; i < list->count; i++) fprintf(out, "%s%" PRId32, i ? "," : "", list->items[i]);
}

static void print_mask(FILE *out, const opt_spec *spec) {
    bool first = true;
    for (int i = 0; spec->words[i] != NULL; i++) {
        if (!(*spec->to.mask >> i & 1)) continue;
        fprintf(out, "%s%s", first ? "" : ",", spec->words[i]);
        first = false;
    }
}

static void print_default(FILE *out, const opt_spec *spec) {
    if (spec->shown_default != NULL) {
        fputs(spec->shown_default, out);
        return;
    }
    switch (spec->kind) {
    case OPT_KIND_FLAG:
    case OPT_KIND_STRINGS: break;
    case OPT_KIND_STRING: fputs(*spec->to.text != NULL ? *spec->to.text : "", out); break;
    case OPT_KIND_INT: fprintf(out, "%" PRId32, *spec->to.i32); break;
    case OPT_KIND_INT64: fprintf(out, "%" PRId64, *spec->to.i64); break;
    case OPT_KIND_INTS: print_ints(out, spec->to.ints); break;
    case OPT_KIND_FLOAT: fprintf(out, "%g", *spec->to.number); break;
    case OPT_KIND_BYTES: print_bytes(out, *spec->to.bytes); break;
    case OPT_KIND_CHOICE: fputs(spec->words[*spec->to.choice], out); break;
    case OPT_KIND_CHOICES: print_mask(out, spec); break;
    }
}

/* "help text; one of a, b (default a)" */
static void describe(FILE *out, const opt_spec *spec) {
    char preset[256] = "";
    FILE *text = fmemopen(preset, sizeof preset, "w");
    if (text != NULL) {
        print_default(text, spec);
        fclose(text);
    }
    fputs(spec->help, out);
    if (spec->kind == OPT_KIND_CHOICE || spec->kind == OPT_KIND_CHOICES) {
        fputs(": ", out);
        print_words(out, spec);
    }
    if (spec->kind == OPT_KIND_STRINGS) fputs("; may be repeated", out);
    if (spec->required) fputs(" (required)", out);
    else if (preset[0] != '\0') fprintf(out, " (default %s)", preset);
}

static void print_option(FILE *out, const char *name, const char *value, const char *text) {
    int column = fprintf(out, "  --%s%s%s", name, value ? " " : "", value ? value : "");
    if (column > HELP_COLUMN - 2) {
        fprintf(out, "\n%*s", HELP_COLUMN, "");
    } else {
        fprintf(out, "%*s", HELP_COLUMN - column, "");
    }
    print_wrapped(out, text, HELP_COLUMN, HELP_COLUMN);
}

void opt_help(const opt_command *command, FILE *out) {
    fprintf(out, "Usage: %s %s\n\n", command->name, command->usage);
    print_wrapped(out, command->summary, 0, 0);
    fputs("\nOptions:\n", out);
    for (int i = 0; i < command->num_specs; i++) {
        const opt_spec *spec = &command->specs[i];
        char text[1024] = "";
        FILE *description = fmemopen(text, sizeof text, "w");
        if (description != NULL) {
            describe(description, spec);
            fclose(description);
        }
        print_option(out, spec->name, spec->value, text);
    }
    print_option(out, "help", NULL, "this text (of an option given twice, the later one counts)");
    if (command->examples != NULL) fprintf(out, "\nExamples:\n%s", command->examples);
}

/* ---- parsing ------------------------------------------------------------ */

static const opt_spec *find(const opt_command *command, const char *name, size_t length) {
    for (int i = 0; i < command->num_specs; i++) {
        const char *known = command->specs[i].name;
        if (strlen(known) == length && memcmp(known, name, length) == 0) return &command->specs[i];
    }
    return NULL;
}

/* Reads the option at argv[*at] and its value; returns -1 or an exit code. */
static int parse_one(const opt_command *command, int argc, char **argv, int *at, uint64_t *seen) {
    const char *argument = argv[*at];
    if (argument[0] == '-' && argument[1] != '-' && find(command, argument + 1, strcspn(argument + 1, "=")) != NULL)
        return opt_mistake(command, "unexpected argument \"%s\": options begin with two hyphens", argument);
    if (strncmp(argument, "--", 2) != 0 || argument[2] == '\0')
        return opt_mistake(command, "unexpected argument \"%s\"", argument);
    const char *name = argument + 2;
    size_t length = strcspn(name, "=");
    const opt_spec *spec = find(command, name, length);
    if (spec == NULL) return opt_mistake(command, "unknown option --%.*s", (int)length, name);
    const char *value = name[length] == '=' ? name + length + 1 : NULL;
    if (spec->kind == OPT_KIND_FLAG && value != NULL) return refuse(command, spec, value);
    if (spec->kind != OPT_KIND_FLAG && value == NULL) {
        if (*at + 1 >= argc) return opt_mistake(command, "--%s needs a value: %s", spec->name, spec->value);
        value = argv[++*at];
    }
    if (!store(spec, value)) return refuse(command, spec, value);
    *seen |= UINT64_C(1) << (spec - command->specs);
    return -1;
}

static bool wants_help(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return true;
    return false;
}

int opt_parse(const opt_command *command, int argc, char **argv) {
    uint64_t seen = 0;
    /* before anything is stored: the targets still hold the defaults */
    if (wants_help(argc, argv)) {
        opt_help(command, stdout);
        return 0;
    }
    for (int at = 1; at < argc; at++) {
        int code = parse_one(command, argc, argv, &at, &seen);
        if (code >= 0) return code;
    }
    for (int i = 0; i < command->num_specs; i++)
        if (command->specs[i].required && !(seen >> i & 1))
            return opt_mistake(command, "--%s %s is required: %s", command->specs[i].name,
                               command->specs[i].value, command->specs[i].help);
    return -1;
}

void opt_strings_free(opt_strings *strings) {
    free(strings->items);
    strings->items = NULL;
    strings->count = 0;
}
