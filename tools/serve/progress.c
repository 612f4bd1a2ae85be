#include "progress.h"

#include <stdio.h>
#include <unistd.h>

#include "common/clock.h"

enum { BAR = 24 };

progress progress_begin(int64_t total) {
    return (progress){.shown = isatty(STDERR_FILENO) == 1, .total = total, .begun = eng_seconds()};
}

static void draw_bar(int64_t done, int64_t total) {
    int filled = total > 0 ? (int)(done * BAR / total) : 0;
    fputc('[', stderr);
    for (int i = 0; i < BAR; i++) fputc(i < filled ? '#' : '.', stderr);
    fprintf(stderr, "] %lld/%lld", (long long)done, (long long)total);
}

static void draw_time_left(int64_t done, int64_t total, double elapsed) {
    if (done == 0 || done >= total) return;
    long left = (long)(elapsed / (double)done * (double)(total - done) + 0.5);
    if (left >= 3600) fprintf(stderr, "  %ld:%02ld:%02ld left", left / 3600, left / 60 % 60, left % 60);
    else fprintf(stderr, "  %ld:%02ld left", left / 60, left % 60);
}

void progress_update(progress *p, int64_t done, int64_t tokens, const char *note) {
    double now = eng_seconds();
    if (!p->shown || now - p->drawn < 0.1) return;
    p->drawn = now;
    double elapsed = now - p->begun;
    fputs("\r\033[K", stderr);
    if (p->total >= 0) draw_bar(done, p->total);
    else fprintf(stderr, "%lld done", (long long)done);
    fprintf(stderr, "  %.1f tokens/s", elapsed > 0 ? (double)tokens / elapsed : 0.0);
    if (p->total >= 0) draw_time_left(done, p->total, elapsed);
    if (note[0] != '\0') fprintf(stderr, "  %s", note);
    fflush(stderr);
}

void progress_clear(progress *p) {
    if (!p->shown) return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    p->drawn = 0;
}
