#include "serve_options.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file_map.h"

const char *const serve_attention_words[] = {"relay", "plain", NULL};
const char *const serve_kv_words[] = {"auto", "f32", "bf16", "f16", NULL};
const char *const serve_compute_words[] = {"auto", "f32", "bf16", NULL};

serve_options serve_options_defaults(void) {
    return (serve_options){.max_tokens = 256, .temperature = -1, .top_p = 1, .repetition_penalty = 1, .kv_memory = UINT64_C(1) << 30};
}

void serve_fill(const serve_options *o, eng_engine_options *engine) {
    static const relay_dtype dtypes[] = {(relay_dtype)0, RELAY_F32, RELAY_BF16, RELAY_F16};
    static const eng_compute computes[] = {ENG_COMPUTE_AUTO, ENG_COMPUTE_F32, ENG_COMPUTE_BF16};
    static const relay_strategy strategies[] = {RELAY_STRATEGY_AUTO, RELAY_STRATEGY_PLAIN};
    engine->model_dir = o->model;
    engine->template_name = o->template_name;
    engine->cache_dir = o->cache_dir;
    engine->threads = o->threads;
    engine->compute = computes[o->compute];
    engine->kv_dtype = dtypes[o->kv_dtype];
    engine->kv_bytes = o->kv_memory;
    engine->strategy = strategies[o->attention];
}

eng_sampling serve_sampling(const serve_options *o) {
    return (eng_sampling){.temperature = o->temperature < 0 ? 0 : (float)o->temperature, .top_k = o->top_k, .top_p = (float)o->top_p,
                          .min_p = (float)o->min_p, .repetition_penalty = (float)o->repetition_penalty,
                          .seed = (uint64_t)o->seed};
}

eng_stops serve_stops(const serve_options *o) {
    return (eng_stops){o->stops.items, o->stops.count};
}

int serve_check(const opt_command *command, const serve_options *o) {
    eng_error err;
    struct stat info;
    if (stat(o->model, &info) == 0 && !S_ISDIR(info.st_mode))
        return opt_mistake(command, "--model: %s is a file: the directory that it lies in is what counts", o->model);
    if (o->model[0] == '\0') return opt_mistake(command, "--model: the name of the directory is empty");
    eng_sampling sampling = serve_sampling(o);
    if (!eng_sampling_check(&sampling, &err)) return opt_mistake(command, "%s", err.text);
    for (int32_t i = 0; i < o->stops.count; i++)
        if (o->stops.items[i][0] == '\0') return opt_mistake(command, "--stop: an empty text would end every answer");
    if (o->template_name != NULL && eng_template_find(o->template_name) == NULL)
        return opt_mistake(command, "--template: \"%s\" is unknown; known are %s", o->template_name, eng_template_names());
    return -1;
}

static char *fail(const char *command, const char *path, const char *what) {
    fprintf(stderr, "%s: %s: %s\n", command, path, what);
    return NULL;
}

char *serve_read_text(const char *command, const char *path) {
    eng_file_map map;
    eng_error err;
    if (!eng_file_map_open(path, &map, &err)) {
        fprintf(stderr, "%s: %s\n", command, err.text);
        return NULL;
    }
    size_t size = map.size, blank = 0;
    const char *data = map.data;
    while (blank < size && (data[blank] == '\n' || data[blank] == '\r')) blank++;
    char *text = malloc(size + 1);
    if (text != NULL) {
        if (size > 0) memcpy(text, data, size);
        text[size] = '\0';
    }
    eng_file_map_close(&map);
    const char *problem = text == NULL ? "out of memory" : blank == size ? "a system prompt that is empty" : NULL;
    if (problem == NULL && strlen(text) != size) problem = "holds a 0 byte: no text";
    if (problem == NULL) return text;
    free(text);
    return fail(command, path, problem);
}
