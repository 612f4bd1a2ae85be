#include "prompt_times.h"

#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

static bool note_path(char *path, size_t size, const char *directory, const char *key, const char *ending) {
    return (size_t)snprintf(path, size, "%s/%.64s.seconds%s", directory, key, ending) < size;
}

void prompt_time_note(const char *directory, const char *key, double seconds) {
    char path[4096], beside[4096], ending[32];
    snprintf(ending, sizeof ending, ".%ld.part", (long)getpid());
    if (!note_path(path, sizeof path, directory, key, "") || !note_path(beside, sizeof beside, directory, key, ending))
        return;
    FILE *file = fopen(beside, "w");
    if (file == NULL) return;
    bool ok = fprintf(file, "%.6f\n", seconds) > 0;
    if (fclose(file) != 0 || !ok || rename(beside, path) != 0) remove(beside);
}

double prompt_time_find(const char *directory, const char *key) {
    char path[4096];
    double seconds = -1;
    if (!note_path(path, sizeof path, directory, key, "")) return -1;
    FILE *file = fopen(path, "r");
    if (file == NULL) return -1;
    if (fscanf(file, "%lf", &seconds) != 1 || !(seconds >= 0)) seconds = -1;
    fclose(file);
    return seconds;
}
