#define _GNU_SOURCE /* dladdr, RTLD_NODELETE */
#include "cuda_loader.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"

#define LIBRARY "librelayattn_cuda.so"
#define FLAGS (RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)

/* Beside the library, or the program, that holds this function.  False: there is no such file. */
static bool find_beside(char *path, size_t size) {
    Dl_info here;
    relay_status (*self)(const relay_device *, const relayi_cuda_ops **) = relayi_cuda_load;
    void *address;
    memcpy(&address, &self, sizeof address);
    if (dladdr(address, &here) == 0 || here.dli_fname == NULL) return false;
    const char *slash = strrchr(here.dli_fname, '/');
    int folder = slash ? (int)(slash - here.dli_fname) : 1;
    int length = snprintf(path, size, "%.*s/" LIBRARY, folder, slash ? here.dli_fname : ".");
    return length > 0 && (size_t)length < size && access(path, R_OK) == 0;
}

static void *open_library(const char **name, char *path, size_t size) {
    const char *asked = getenv("RELAY_CUDA_LIBRARY");
    if (asked != NULL && asked[0] != '\0') *name = asked;
    else if (find_beside(path, size)) *name = path;
    else *name = LIBRARY;
    return dlopen(*name, FLAGS);
}

static relay_status check_table(const relay_device *log, const char *name, const relayi_cuda_ops *ops) {
    if (ops == NULL) return relayi_fail(log, RELAY_NO_DEVICE, "%s: its table of functions is NULL", name);
    if (ops->version == RELAYI_CUDA_VERSION && ops->size == sizeof *ops) return RELAY_OK;
    return relayi_fail(log, RELAY_NO_DEVICE,
                       "%s is of another version: interface %u of %u bytes, this librelayattn knows %u of %zu", name,
                       ops->version, ops->size, RELAYI_CUDA_VERSION, sizeof *ops);
}

relay_status relayi_cuda_load(const relay_device *log, const relayi_cuda_ops **ops) {
    char path[4096];
    const char *name;
    *ops = NULL;
    void *library = open_library(&name, path, sizeof path);
    if (library == NULL) {
        const char *why = dlerror();
        return relayi_fail(log, RELAY_NO_DEVICE, "the CUDA library cannot be opened: %s", why ? why : name);
    }
    void *symbol = dlsym(library, RELAYI_CUDA_OPS_SYMBOL);
    relayi_cuda_ops_fn *table;
    memcpy(&table, &symbol, sizeof table);
    relay_status status = symbol == NULL ? relayi_fail(log, RELAY_NO_DEVICE, "%s has no %s: it is another library",
                                                       name, RELAYI_CUDA_OPS_SYMBOL)
                                         : check_table(log, name, table());
    if (status == RELAY_OK) *ops = table();
    else dlclose(library);
    return status;
}
