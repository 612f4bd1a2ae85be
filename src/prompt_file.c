/* One prompt's file (docs/decisions/prompt-file.md):
 *
 *   header | checksum of each layer | zeros up to a multiple of 4096 | layer 0 | layer 1 | ...
 *
 * where a layer is exactly what lies in memory.  Numbers are in the byte order of the machine
 * that wrote the file; a file of the other order is rejected.  A file is read only if every field
 * is what this cache would have written for this key, its size is exact, and all checksums hold;
 * nothing of it is looked at before. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "alloc.h"
#include "checksum.h"
#include "log.h"
#include "prompt_internal.h"

#define MAGIC "RELAYKV\n"
#define FORMAT_VERSION 1
#define BYTE_ORDER_MARK UINT32_C(0x01020304)
#define PAYLOAD_ALIGNMENT 4096
#define READ_BYTES ((size_t)1 << 20) /* read and summed at a time: stays in the L2 cache */

typedef struct file_header {
    char magic[8];
    uint32_t byte_order;
    uint32_t format_version;
    uint32_t packed_version;
    uint32_t dtype;
    int32_t num_layers, num_kv_heads, head_dim;
    int32_t num_tokens;
    uint64_t payload_bytes;
    uint64_t checksum; /* of all that lies before the payload, this field as zero */
    uint64_t zero;
    char model_id[256], key[256]; /* padded with zeros */
} file_header;

_Static_assert(sizeof(file_header) == 576, "the header has no padding");
_Static_assert(RELAY_MAX_KEY_BYTES < 256, "a key fits the header with its NUL");

/* What lies before the payload; its size depends on the number of layers alone. */
static size_t preamble_bytes(const relay_prompt_cache *cache) {
    size_t bytes = sizeof(file_header) + (size_t)cache->options.num_layers * sizeof(uint64_t);
    return (bytes + PAYLOAD_ALIGNMENT - 1) / PAYLOAD_ALIGNMENT * PAYLOAD_ALIGNMENT;
}

/* All of the header that does not depend on the prompt's tokens. */
static void fill_header(const relay_prompt *prompt, file_header *header) {
    const relay_prompt_cache_options *options = &prompt->cache->options;
    memset(header, 0, sizeof *header);
    memcpy(header->magic, MAGIC, sizeof header->magic);
    header->byte_order = BYTE_ORDER_MARK;
    header->format_version = FORMAT_VERSION;
    header->packed_version = RELAYI_PACKED_VERSION;
    header->dtype = (uint32_t)options->kv_dtype;
    header->num_layers = options->num_layers;
    header->num_kv_heads = options->num_kv_heads;
    header->head_dim = options->head_dim;
    memcpy(header->model_id, options->model_id, strlen(options->model_id));
    memcpy(header->key, prompt->key, strlen(prompt->key));
}

/* Versions are left out of the name, so that a new library replaces the files of an old one. */
static void name_of(const relay_prompt *prompt, char name[RELAYI_FILE_NAME_BYTES]) {
    file_header header;
    fill_header(prompt, &header);
    header.format_version = header.packed_version = 0;
    uint64_t id[2] = {relayi_checksum_of(&header, sizeof header, 1),
                      relayi_checksum_of(&header, sizeof header, 2)};
    relayi_file_name(id, name);
}

static uint64_t preamble_checksum(const void *preamble, size_t size) {
    static const uint64_t zero = 0;
    char first[sizeof(file_header)];
    relayi_checksum checksum;
    memcpy(first, preamble, sizeof first);
    memcpy(first + offsetof(file_header, checksum), &zero, sizeof zero);
    relayi_checksum_start(&checksum, 0);
    relayi_checksum_add(&checksum, first, sizeof first);
    relayi_checksum_add(&checksum, (const char *)preamble + sizeof first, size - sizeof first);
    return relayi_checksum_finish(&checksum);
}

/* ---- writing ---- */

/* A file under way, and where the reason goes if it fails. */
typedef struct writer {
    const relay_prompt *prompt;
    int file;
    char name[RELAYI_FILE_NAME_BYTES], temporary[RELAYI_FILE_NAME_BYTES];
} writer;

static relay_status fail_writing(const writer *w, const char *what, int error) {
    char text[RELAYI_ERROR_TEXT_BYTES];
    const relay_prompt_cache *cache = w->prompt->cache;
    return relayi_fail(cache->device, RELAY_IO_ERROR, "prompt cache: %s/%s: cannot be %s: %s",
                       cache->options.directory, w->name, what, relayi_error_text(error, text));
}

static bool write_all(int file, const char *data, size_t size) {
    while (size > 0) {
        ssize_t wrote = write(file, data, size);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) {
            if (wrote == 0) errno = ENOSPC;
            return false;
        }
        data += wrote;
        size -= (size_t)wrote;
    }
    return true;
}

static void *make_preamble(const relay_prompt *prompt, size_t size) {
    char *preamble = relayi_alloc_array(size, 1);
    if (preamble == NULL) return NULL;
    file_header *header = (file_header *)preamble;
    uint64_t *sums = (uint64_t *)(preamble + sizeof *header);
    fill_header(prompt, header);
    header->num_tokens = prompt->num_tokens;
    header->payload_bytes = prompt->size.total;
    for (int32_t layer = 0; layer < header->num_layers; layer++)
        sums[layer] = relayi_checksum_of(prompt->data + (size_t)layer * prompt->size.layer,
                                         prompt->size.layer, (uint64_t)layer);
    header->checksum = preamble_checksum(preamble, size);
    return preamble;
}

static relay_status write_content(const writer *w) {
    const relay_prompt *prompt = w->prompt;
    size_t size = preamble_bytes(prompt->cache);
    void *preamble = make_preamble(prompt, size);
    if (preamble == NULL)
        return relayi_fail(prompt->cache->device, RELAY_IO_ERROR,
                           "prompt cache: %s/%s: no memory for its header",
                           prompt->cache->options.directory, w->name);
    bool wrote = write_all(w->file, preamble, size) &&
                 write_all(w->file, prompt->data, prompt->size.total);
    int error = errno;
    relayi_free(preamble);
    return wrote ? RELAY_OK : fail_writing(w, "written", error);
}

/* Some file systems cannot synchronise a directory and say EINVAL. */
static bool sync_directory(int directory) { return fsync(directory) == 0 || errno == EINVAL; }

static relay_status put_in_place(const writer *w) {
    int directory = w->prompt->cache->directory;
    if (fsync(w->file) != 0) return fail_writing(w, "synchronised", errno);
    if (renameat(directory, w->temporary, directory, w->name) != 0)
        return fail_writing(w, "renamed into place", errno);
    if (!sync_directory(directory)) return fail_writing(w, "synchronised with its directory", errno);
    return RELAY_OK;
}

relay_status relayi_prompt_store(const relay_prompt *prompt) {
    relay_prompt_cache *cache = prompt->cache;
    writer w = {.prompt = prompt};
    name_of(prompt, w.name);
    w.file = relayi_temporary_open(cache, w.name, w.temporary);
    if (w.file < 0) return fail_writing(&w, "created", errno);
    relay_status status = write_content(&w);
    if (status == RELAY_OK) status = put_in_place(&w);
    if (status != RELAY_OK) unlinkat(cache->directory, w.temporary, 0);
    close(w.file); /* its data is on the disk already, or the file is gone */
    return status;
}

relay_status relayi_prompt_delete(const relay_prompt *prompt) {
    const relay_prompt_cache *cache = prompt->cache;
    writer w = {.prompt = prompt};
    name_of(prompt, w.name);
    if (unlinkat(cache->directory, w.name, 0) != 0)
        return errno == ENOENT ? RELAY_NOT_FOUND : fail_writing(&w, "deleted", errno);
    return sync_directory(cache->directory) ? RELAY_OK
                                            : fail_writing(&w, "deleted for good", errno);
}

/* ---- reading ---- */

typedef struct reader {
    relay_prompt *prompt;
    int file;
    char *preamble; /* [preamble_size] */
    size_t preamble_size;
    char name[RELAYI_FILE_NAME_BYTES];
} reader;

static relay_status reject(const reader *r, const char *what) {
    relay_prompt_cache *cache = r->prompt->cache;
    relayi_log(cache->device, RELAY_LOG_WARN, "prompt cache: %s/%s: %s; not used",
               cache->options.directory, r->name, what);
    pthread_mutex_lock(&cache->lock);
    cache->stats.rejected_files++;
    pthread_mutex_unlock(&cache->lock);
    return RELAY_NOT_FOUND;
}

static relay_status reject_error(const reader *r, const char *call, int error) {
    char text[RELAYI_ERROR_TEXT_BYTES], what[RELAYI_ERROR_TEXT_BYTES + 32];
    snprintf(what, sizeof what, "cannot be %s: %s", call, relayi_error_text(error, text));
    return reject(r, what);
}

/* NULL, or what is wrong: the file ends early, or an error (then errno is not 0). */
static const char *read_all(int file, char *data, size_t size) {
    while (size > 0) {
        ssize_t got = read(file, data, size);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return "cannot be read";
        if (got == 0) {
            errno = 0;
            return "ends too early";
        }
        data += got;
        size -= (size_t)got;
    }
    return NULL;
}

static relay_status read_preamble(reader *r) {
    const char *wrong = read_all(r->file, r->preamble, r->preamble_size);
    if (wrong == NULL) return RELAY_OK;
    return errno != 0 ? reject_error(r, "read", errno) : reject(r, "ends inside its header");
}

/* What identifies the format: looked at before the checksum, to name a version's file as such. */
static relay_status check_format(const reader *r, const file_header *header) {
    char what[96];
    if (memcmp(header->magic, MAGIC, sizeof header->magic) != 0) return reject(r, "is no prompt file");
    if (header->byte_order != BYTE_ORDER_MARK) return reject(r, "was written in another byte order");
    if (header->format_version != FORMAT_VERSION) {
        snprintf(what, sizeof what, "has format version %u, expected %u", header->format_version,
                 FORMAT_VERSION);
        return reject(r, what);
    }
    if (header->checksum != preamble_checksum(r->preamble, r->preamble_size))
        return reject(r, "header is damaged (checksum)");
    if (header->packed_version != RELAYI_PACKED_VERSION) {
        snprintf(what, sizeof what, "has packed layout version %u, expected %u", header->packed_version,
                 RELAYI_PACKED_VERSION);
        return reject(r, what);
    }
    return RELAY_OK;
}

static relay_status check_number(const reader *r, const char *field, int64_t have, int64_t want) {
    char what[128];
    if (have == want) return RELAY_OK;
    snprintf(what, sizeof what, "%s is %lld, expected %lld", field, (long long)have, (long long)want);
    return reject(r, what);
}

/* The rest of the header against what this cache would write for this key. */
static relay_status check_fields(const reader *r, const file_header *header) {
    file_header want;
    fill_header(r->prompt, &want);
    if (memcmp(header->model_id, want.model_id, sizeof want.model_id) != 0)
        return reject(r, "belongs to another model (model_id)");
    if (memcmp(header->key, want.key, sizeof want.key) != 0) return reject(r, "holds another key");
    relay_status status = check_number(r, "kv_dtype", header->dtype, want.dtype);
    if (status == RELAY_OK) status = check_number(r, "num_layers", header->num_layers, want.num_layers);
    if (status == RELAY_OK) status = check_number(r, "num_kv_heads", header->num_kv_heads, want.num_kv_heads);
    if (status == RELAY_OK) status = check_number(r, "head_dim", header->head_dim, want.head_dim);
    return status;
}

/* Takes the number of tokens from the header, and with it the sizes, which the file must have. */
static relay_status check_sizes(const reader *r, const file_header *header) {
    relay_prompt *prompt = r->prompt;
    struct stat status;
    relayi_prompt_size size;
    if (header->num_tokens < 1) return check_number(r, "num_tokens", header->num_tokens, 1);
    if (!relayi_prompt_sizes(&prompt->cache->options, header->num_tokens, &size) ||
        header->payload_bytes != size.total)
        return reject(r, "sizes in its header contradict each other");
    if (fstat(r->file, &status) != 0) return reject_error(r, "examined", errno);
    if ((uint64_t)status.st_size != r->preamble_size + size.total)
        return check_number(r, "size in bytes", status.st_size, (int64_t)(r->preamble_size + size.total));
    prompt->num_tokens = header->num_tokens;
    prompt->size = size;
    return RELAY_OK;
}

static relay_status read_header(reader *r) {
    relay_status status = read_preamble(r);
    if (status != RELAY_OK) return status;
    file_header header;
    memcpy(&header, r->preamble, sizeof header);
    status = check_format(r, &header);
    if (status == RELAY_OK) status = check_fields(r, &header);
    if (status == RELAY_OK) status = check_sizes(r, &header);
    return status;
}

static relay_status read_layer(const reader *r, int32_t layer) {
    const relay_prompt *prompt = r->prompt;
    char *data = prompt->data + (size_t)layer * prompt->size.layer;
    size_t left = prompt->size.layer;
    relayi_checksum checksum;
    uint64_t want;
    memcpy(&want, r->preamble + sizeof(file_header) + (size_t)layer * sizeof want, sizeof want);
    relayi_checksum_start(&checksum, (uint64_t)layer);
    while (left > 0) {
        size_t part = left < READ_BYTES ? left : READ_BYTES;
        const char *wrong = read_all(r->file, data, part);
        if (wrong != NULL) return errno != 0 ? reject_error(r, "read", errno) : reject(r, wrong);
        relayi_checksum_add(&checksum, data, part);
        data += part;
        left -= part;
    }
    if (relayi_checksum_finish(&checksum) == want) return RELAY_OK;
    char what[64];
    snprintf(what, sizeof what, "layer %d is damaged (checksum)", layer);
    return reject(r, what);
}

static relay_status reserve(relay_prompt *prompt, uint64_t announcement) {
    relay_prompt *dropped = NULL;
    pthread_mutex_lock(&prompt->cache->lock);
    bool reserved = relayi_reserve(prompt, announcement, &dropped);
    pthread_mutex_unlock(&prompt->cache->lock);
    relayi_prompts_free(dropped);
    if (!reserved) return RELAY_CACHE_FULL;
    return relayi_prompt_allocate(prompt) ? RELAY_OK : RELAY_OUT_OF_MEMORY;
}

static relay_status read_opened(reader *r, uint64_t announcement) {
    r->preamble_size = preamble_bytes(r->prompt->cache);
    r->preamble = relayi_alloc(r->preamble_size);
    if (r->preamble == NULL) return RELAY_OUT_OF_MEMORY;
    relay_status status = read_header(r);
    if (status == RELAY_OK) status = reserve(r->prompt, announcement);
    for (int32_t layer = 0; status == RELAY_OK && layer < r->prompt->cache->options.num_layers; layer++)
        status = read_layer(r, layer);
    relayi_free(r->preamble);
    return status;
}

/* O_NONBLOCK: a FIFO of that name must not stop us. */
static int open_prompt(int directory, const char *name) {
    int file;
    do
        file = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    while (file < 0 && errno == EINTR);
    return file;
}

relay_status relayi_prompt_load(relay_prompt *prompt, uint64_t announcement) {
    reader r = {.prompt = prompt};
    name_of(prompt, r.name);
    r.file = open_prompt(prompt->cache->directory, r.name);
    if (r.file < 0) return errno == ENOENT ? RELAY_NOT_FOUND : reject_error(&r, "opened", errno);
    relay_status status = read_opened(&r, announcement);
    close(r.file);
    return status;
}
