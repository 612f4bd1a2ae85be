#include "safetensors.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/file_map.h"
#include "common/json_memory.h"
#include "common/json_read.h"

/* What the format's own reader accepts at most. */
enum { MAX_HEADER_BYTES = 100 * 1000 * 1000, LENGTH_BYTES = 8 };

typedef struct dtype_info {
    const char *name;
    int bits;
    int readable; /* 1 + eng_dtype, or 0 where the engine has no use for it */
} dtype_info;

static const dtype_info dtypes[] = {
    {"F32", 32, 1 + ENG_DTYPE_F32}, {"F16", 16, 1 + ENG_DTYPE_F16}, {"BF16", 16, 1 + ENG_DTYPE_BF16},
    {"BOOL", 8, 0}, {"U8", 8, 0}, {"I8", 8, 0}, {"F8_E5M2", 8, 0}, {"F8_E4M3", 8, 0}, {"I16", 16, 0},
    {"U16", 16, 0}, {"I32", 32, 0}, {"U32", 32, 0}, {"F64", 64, 0}, {"I64", 64, 0}, {"U64", 64, 0},
};

typedef struct shard {
    char *path;
    eng_file_map map;
    json_t *header; /* owns the names */
} shard;

typedef struct entry {
    const char *name;
    const shard *from;
    const dtype_info *dtype;
    int32_t dims;
    int64_t shape[ENG_TENSOR_MAX_DIMS];
    uint64_t count, begin, end; /* bytes from the start of the shard's data */
} entry;

struct eng_safetensors {
    shard *shards;
    size_t num_shards;
    entry *entries; /* by name */
    size_t num_entries, room;
    char *dir;
};

static char *join_path(const char *dir, const char *name) {
    size_t size = strlen(dir) + strlen(name) + 2;
    char *path = malloc(size);
    if (path != NULL) snprintf(path, size, "%s/%s", dir, name);
    return path;
}

static bool out_of_memory(eng_error *err, const char *path) {
    return eng_fail(err, "%s: out of memory", path);
}

static uint64_t little_endian_64(const unsigned char *bytes) {
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--) value = value << 8 | bytes[i];
    return value;
}

static uint64_t header_bytes(const shard *s) {
    return little_endian_64(s->map.data);
}

static uint64_t data_bytes(const shard *s) {
    return (uint64_t)s->map.size - LENGTH_BYTES - header_bytes(s);
}

/* Parses the header; the rest of a file may still be wrong. */
static bool load_header(shard *s, eng_error *err) {
    if (s->map.size < LENGTH_BYTES)
        return eng_fail(err, "%s: %zu bytes are too few for a safetensors file", s->path, s->map.size);
    uint64_t length = header_bytes(s), rest = (uint64_t)s->map.size - LENGTH_BYTES;
    if (length > MAX_HEADER_BYTES)
        return eng_fail(err, "%s: header length %llu is beyond the format's limit of %d", s->path,
                        (unsigned long long)length, MAX_HEADER_BYTES);
    if (length > rest)
        return eng_fail(err, "%s: header length %llu, but only %llu bytes follow (truncated?)", s->path,
                        (unsigned long long)length, (unsigned long long)rest);
    json_error_t detail;
    s->header = eng_json_parse((const char *)s->map.data + LENGTH_BYTES, (size_t)length, JSON_REJECT_DUPLICATES, &detail);
    if (s->header == NULL)
        return eng_fail(err, "%s: header is not valid JSON: position %d: %s", s->path, detail.position, detail.text);
    if (!json_is_object(s->header)) return eng_json_unexpected(s->path, "header", "an object", s->header, err);
    return true;
}

static bool tensor_fail(const entry *e, const char *path, const char *what, eng_error *err) {
    return eng_fail(err, "%s: tensor \"%s\": %s", path, e->name, what);
}

static bool read_dtype(entry *e, const char *path, const json_t *tensor, eng_error *err) {
    const char *name = json_string_value(json_object_get(tensor, "dtype"));
    if (name == NULL) return tensor_fail(e, path, "dtype is missing or no string", err);
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (strcmp(dtypes[i].name, name) == 0) e->dtype = &dtypes[i];
    if (e->dtype == NULL)
        return eng_fail(err, "%s: tensor \"%s\": unknown dtype \"%.40s\"", path, e->name, name);
    return true;
}

static bool read_shape(entry *e, const char *path, const json_t *tensor, eng_error *err) {
    const json_t *shape = json_object_get(tensor, "shape");
    if (!json_is_array(shape)) return tensor_fail(e, path, "shape is missing or no array", err);
    if (json_array_size(shape) > ENG_TENSOR_MAX_DIMS) return tensor_fail(e, path, "shape has too many dimensions", err);
    e->dims = (int32_t)json_array_size(shape);
    e->count = 1;
    for (int32_t i = 0; i < e->dims; i++) {
        const json_t *extent = json_array_get(shape, (size_t)i);
        if (!json_is_integer(extent) || json_integer_value(extent) < 0)
            return tensor_fail(e, path, "shape holds something else than non-negative integers", err);
        e->shape[i] = json_integer_value(extent);
        if (e->shape[i] != 0 && e->count > (uint64_t)INT64_MAX / 8 / (uint64_t)e->shape[i])
            return tensor_fail(e, path, "the product of its shape overflows", err);
        e->count *= (uint64_t)e->shape[i];
    }
    return true;
}

static bool read_offsets(entry *e, const char *path, const json_t *tensor, uint64_t available, eng_error *err) {
    const json_t *offsets = json_object_get(tensor, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end))
        return tensor_fail(e, path, "data_offsets is not a pair of integers", err);
    long long from = json_integer_value(begin), to = json_integer_value(end);
    if (from < 0 || to < from)
        return eng_fail(err, "%s: tensor \"%s\": data_offsets [%lld, %lld] are out of order", path, e->name, from, to);
    if ((uint64_t)to > available)
        return eng_fail(err, "%s: tensor \"%s\": data_offsets end at %lld, but the file holds %llu bytes of data "
                        "(truncated?)", path, e->name, to, (unsigned long long)available);
    uint64_t needed = e->count * (uint64_t)(e->dtype->bits / 8);
    if ((uint64_t)(to - from) != needed)
        return eng_fail(err, "%s: tensor \"%s\": shape and dtype need %llu bytes, data_offsets hold %lld", path,
                        e->name, (unsigned long long)needed, to - from);
    e->begin = (uint64_t)from;
    e->end = (uint64_t)to;
    return true;
}

static bool read_entry(entry *e, const char *path, const json_t *tensor, uint64_t available, eng_error *err) {
    if (!json_is_object(tensor)) return tensor_fail(e, path, "its description is no object", err);
    return read_dtype(e, path, tensor, err) && read_shape(e, path, tensor, err) &&
           read_offsets(e, path, tensor, available, err);
}

static bool make_room(eng_safetensors *t, size_t more, const char *path, eng_error *err) {
    if (t->num_entries + more <= t->room) return true;
    size_t room = t->num_entries + more;
    entry *larger = realloc(t->entries, room * sizeof *larger);
    if (larger == NULL) return out_of_memory(err, path);
    t->entries = larger;
    t->room = room;
    return true;
}

static int by_offset(const void *left, const void *right) {
    const entry *a = left, *b = right;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    return (a->end > b->end) - (a->end < b->end);
}

static int by_name(const void *left, const void *right) {
    return strcmp(((const entry *)left)->name, ((const entry *)right)->name);
}

/* The tensors of one file must fill its data, one after the other. */
static bool check_layout(entry *entries, size_t count, const shard *s, eng_error *err) {
    qsort(entries, count, sizeof *entries, by_offset);
    uint64_t at = 0;
    for (size_t i = 0; i < count; i++) {
        const entry *e = &entries[i];
        if (e->begin < at)
            return eng_fail(err, "%s: tensor \"%s\": its data overlap those of tensor \"%s\"", s->path, e->name,
                            entries[i - 1].name);
        if (e->begin > at)
            return eng_fail(err, "%s: tensor \"%s\": %llu bytes before its data belong to no tensor", s->path, e->name,
                            (unsigned long long)(e->begin - at));
        at = e->end;
    }
    if (at != data_bytes(s))
        return eng_fail(err, "%s: %llu bytes after the last tensor belong to none", s->path,
                        (unsigned long long)(data_bytes(s) - at));
    return true;
}

static bool add_entries(eng_safetensors *t, const shard *s, eng_error *err) {
    const size_t first = t->num_entries;
    if (!make_room(t, json_object_size(s->header), s->path, err)) return false;
    for (void *it = json_object_iter(s->header); it != NULL; it = json_object_iter_next(s->header, it)) {
        if (strcmp(json_object_iter_key(it), "__metadata__") == 0) continue;
        entry *e = &t->entries[t->num_entries];
        memset(e, 0, sizeof *e);
        e->name = json_object_iter_key(it);
        e->from = s;
        if (!read_entry(e, s->path, json_object_iter_value(it), data_bytes(s), err)) return false;
        t->num_entries++;
    }
    return t->num_entries == first || check_layout(t->entries + first, t->num_entries - first, s, err);
}

/* The shard's place in t->shards is reserved: entries point at it. */
static bool open_shard(eng_safetensors *t, const char *name, eng_error *err) {
    shard *s = &t->shards[t->num_shards];
    s->path = join_path(t->dir, name);
    if (s->path == NULL) return out_of_memory(err, t->dir);
    t->num_shards++;
    return eng_file_map_open(s->path, &s->map, err) && load_header(s, err) && add_entries(t, s, err);
}

static bool sort_entries(eng_safetensors *t, eng_error *err) {
    if (t->num_entries == 0) return eng_fail(err, "%s: holds no tensor", t->shards[0].path);
    qsort(t->entries, t->num_entries, sizeof *t->entries, by_name);
    for (size_t i = 1; i < t->num_entries; i++) {
        const entry *a = &t->entries[i - 1], *b = &t->entries[i];
        if (by_name(a, b) == 0)
            return eng_fail(err, "%s: tensor \"%s\" is also in %s", b->from->path, b->name, a->from->path);
    }
    return true;
}

static const entry *find_entry(const eng_safetensors *t, const char *name) {
    entry key = {.name = name};
    return bsearch(&key, t->entries, t->num_entries, sizeof key, by_name);
}

static bool check_index(const eng_safetensors *t, const json_t *weight_map, const char *index_path, eng_error *err) {
    for (void *it = json_object_iter((json_t *)(uintptr_t)weight_map); it != NULL;
         it = json_object_iter_next((json_t *)(uintptr_t)weight_map, it)) {
        const char *name = json_object_iter_key(it), *file = json_string_value(json_object_iter_value(it));
        const entry *e = find_entry(t, name);
        if (e == NULL || strcmp(e->from->path + strlen(t->dir) + 1, file) != 0)
            return eng_fail(err, "%s: weight_map puts tensor \"%s\" into %s, which does not hold it", index_path, name,
                            file);
    }
    return true;
}

static bool is_open(const eng_safetensors *t, const char *name) {
    for (size_t i = 0; i < t->num_shards; i++)
        if (strcmp(t->shards[i].path + strlen(t->dir) + 1, name) == 0) return true;
    return false;
}

static bool plain_file_name(const char *name) {
    return name != NULL && name[0] != '\0' && name[0] != '.' && strchr(name, '/') == NULL;
}

static bool open_indexed(eng_safetensors *t, json_t *index, const char *index_path, eng_error *err) {
    const json_t *map;
    if (!json_is_object(index)) return eng_json_unexpected(index_path, "", "an object", index, err);
    if (!eng_json_object(index, index_path, "weight_map", &map, err)) return false;
    json_t *weight_map = (json_t *)(uintptr_t)map;
    if (json_object_size(weight_map) == 0) return eng_fail(err, "%s: weight_map is empty", index_path);
    t->shards = calloc(json_object_size(weight_map), sizeof *t->shards);
    if (t->shards == NULL) return out_of_memory(err, index_path);
    for (void *it = json_object_iter(weight_map); it != NULL; it = json_object_iter_next(weight_map, it)) {
        const json_t *file = json_object_iter_value(it);
        const char *name = json_string_value(file);
        if (!plain_file_name(name) || strlen(name) != json_string_length(file))
            return eng_fail(err, "%s: weight_map: tensor \"%s\" is not in a file of this directory", index_path,
                            json_object_iter_key(it));
        if (!is_open(t, name) && !open_shard(t, name, err)) return eng_fail_in(err, index_path);
    }
    return sort_entries(t, err) && check_index(t, weight_map, index_path, err);
}

static bool open_index_file(eng_safetensors *t, const char *path, eng_error *err) {
    json_t *index;
    if (!eng_json_load_file(path, &index, err)) return false;
    bool ok = open_indexed(t, index, path, err);
    json_decref(index);
    return ok;
}

static bool open_single(eng_safetensors *t, eng_error *err) {
    t->shards = calloc(1, sizeof *t->shards);
    if (t->shards == NULL) return out_of_memory(err, t->dir);
    return open_shard(t, "model.safetensors", err) && sort_entries(t, err);
}

static bool open_any(eng_safetensors *t, eng_error *err) {
    char *index = join_path(t->dir, "model.safetensors.index.json"), *single = join_path(t->dir, "model.safetensors");
    bool ok;
    if (index == NULL || single == NULL) ok = out_of_memory(err, t->dir);
    else if (access(single, F_OK) == 0) ok = open_single(t, err);
    else if (access(index, F_OK) == 0) ok = open_index_file(t, index, err);
    else ok = eng_fail(err, "%s: holds neither model.safetensors nor model.safetensors.index.json", t->dir);
    free(index);
    free(single);
    return ok;
}

bool eng_safetensors_open(const char *dir, eng_safetensors **out, eng_error *err) {
    *out = NULL;
    eng_safetensors *t = calloc(1, sizeof *t);
    if (t == NULL || (t->dir = strdup(dir)) == NULL) {
        free(t);
        return out_of_memory(err, dir);
    }
    if (!open_any(t, err)) {
        eng_safetensors_close(t);
        return false;
    }
    *out = t;
    return true;
}

void eng_safetensors_close(eng_safetensors *t) {
    if (t == NULL) return;
    for (size_t i = 0; i < t->num_shards; i++) {
        free(t->shards[i].path);
        json_decref(t->shards[i].header);
        eng_file_map_close(&t->shards[i].map);
    }
    free(t->shards);
    free(t->entries);
    free(t->dir);
    free(t);
}

bool eng_safetensors_has(const eng_safetensors *t, const char *name) {
    return find_entry(t, name) != NULL;
}

bool eng_safetensors_get(const eng_safetensors *t, const char *name, eng_tensor *out, eng_error *err) {
    const entry *e = find_entry(t, name);
    if (e == NULL) return eng_fail(err, "%s: tensor \"%s\" is missing", t->dir, name);
    if (!e->dtype->readable)
        return eng_fail(err, "%s: tensor \"%s\": dtype %s is not supported (F32, F16 and BF16 are)", e->from->path, name,
                        e->dtype->name);
    memset(out, 0, sizeof *out);
    out->data = (const char *)e->from->map.data + LENGTH_BYTES + header_bytes(e->from) + e->begin;
    out->dtype = (eng_dtype)(e->dtype->readable - 1);
    out->dims = e->dims;
    memcpy(out->shape, e->shape, sizeof out->shape);
    out->count = (int64_t)e->count;
    out->file = e->from->path;
    return true;
}
