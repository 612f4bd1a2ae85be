/* `relay generate` without memory: a whole run in this process, once for every way in which the engine
 * and the command come to ask for some, with that call refused.  Each such run gives the right answers,
 * or says that memory is out; what it has written is whole lines; nothing is left behind. */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "commands.h"
#include "failing_memory.h"
#include "test.h"

static char directory[64];
static const char system_text[] = 
    "you are the clerk of this house . this is the handbook . kazaga : 029 ; kugofo : 860 ; "
    "sodeto : 476 ; pudero : 794 ; resiru : 965 ; vumupa : 255 ; this is the end of the "
    "handbook .";
static const char request_text[] = 
    "{\"id\": 0, \"text\": \"what is the code of kazaga ? answer :\", \"expected\": \"029 .\"}\n"
    "{\"id\": 1, \"text\": \"what is the code of vumupa ? answer :\", \"expected\": \"255 .\"}\n";

static const char *path_of(const char *name) {
    static char paths[4][128];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(paths[turn], sizeof paths[turn], "%s/%s", directory, name);
    return paths[turn];
}

static void write_file(const char *name, const char *text) {
    FILE *file = fopen(path_of(name), "w");
    CHECK(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
}

static char *read_file(const char *name) {
    static char text[2][1 << 16];
    static int turn;
    FILE *file = fopen(path_of(name), "r");
    char *to = text[turn = !turn];
    size_t size = file == NULL ? 0 : fread(to, 1, sizeof text[0] - 1, file);
    if (file != NULL) fclose(file);
    to[size] = '\0';
    return to;
}

/* The command with its stderr in a file. */
static int generate(void) {
    char *arguments[] = {"generate", "--model", "models/lookup", "--system", NULL, "--requests", NULL, "--out", NULL,
                         "--stats", NULL, "--force", "--threads", "1", "--max-tokens", "8", "--kv-memory", "4M", NULL};
    char names[4][128];
    const char *const files[] = {"system.txt", "requests.jsonl", "out.jsonl", "stats.json"};
    for (int i = 0; i < 4; i++) {
        snprintf(names[i], sizeof names[i], "%s/%s", directory, files[i]);
        arguments[4 + 2 * i] = names[i];
    }
    int kept = dup(STDERR_FILENO), to = open(path_of("stderr"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(to, STDERR_FILENO);
    close(to);
    int code = cmd_generate(18, arguments);
    dup2(kept, STDERR_FILENO);
    close(kept);
    return code;
}

/* Each line is an answer as a run with memory gives it, or says that memory was out. */
static void check_lines(const char *out, const char *right, bool all, long which) {
    int answers = 0;
    for (const char *line = out; *line != '\0';) {
        const char *end = strchr(line, '\n');
        CHECK_MSG(end != NULL, "call %ld fails: a torn line: %s", which, line);
        if (end == NULL) return;
        char text[2048];
        snprintf(text, sizeof text, "%.*s\n", (int)(end - line), line);
        bool same = strstr(right, text) != NULL, said = strstr(text, "\"error\":") != NULL && strstr(text, "memory") != NULL;
        CHECK_MSG(same || said, "call %ld fails: a wrong line: %s", which, text);
        answers += same;
        line = end + 1;
    }
    CHECK_MSG(!all || answers == 2, "call %ld fails: success with %d of 2 answers", which, answers);
}

static void check_run(long which, bool for_good, const char *right) {
    remove(path_of("out.jsonl"));
    remove(path_of("stats.json"));
    failing_memory_begin(which, for_good);
    int code = generate();
    bool happened = failing_memory_end();
    const char *said = read_file("stderr"), *out = read_file("out.jsonl");
    CHECK_MSG(happened, "call %ld was not made", which);
    CHECK_MSG(code == 0 || code == 1, "call %ld fails: exit code %d", which, code);
    CHECK_MSG(code == 0 || strstr(said, "memory") != NULL || strstr(out, "memory") != NULL, "call %ld fails: exit code %d and: %s",
              which, code, said);
    check_lines(out, right, code == 0, which);
    const char *stats = read_file("stats.json");
    CHECK_MSG(code != 0 || strstr(stats, "\"tokens_per_second\"") != NULL, "call %ld fails: success without stats", which);
}

/* The calls worth failing: one for each way to them, as a whole run without failures makes them. */
static long *choose_calls(size_t *count, char *right, size_t room) {
    CHECK(generate() == 0); /* what is allocated once and kept */
    failing_memory_remember();
    failing_memory_begin(-1, false);
    int code = generate();
    CHECK_MSG(code == 0, "%s", read_file("stderr"));
    failing_memory_end();
    snprintf(right, room, "%s", read_file("out.jsonl"));
    return failing_memory_first_of_each_way(count);
}

int main(void) {
    static char right[1 << 16];
    size_t count = 0;
    /* thousands of files, some of them synchronised: in memory, where that is possible */
    snprintf(directory, sizeof directory, "%s/relay-generate-memory-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    CHECK(mkdtemp(directory) != NULL);
    write_file("system.txt", system_text);
    write_file("requests.jsonl", request_text);
    long *calls = choose_calls(&count, right, sizeof right);
    long made = failing_memory_calls();
    size_t mapped = failing_memory_mapped();
    int files = failing_memory_open_files();
    for (size_t i = 0; i < count; i++) {
        check_run(calls[i], false, right);
        if (i % 7 == 0) check_run(calls[i], true, right);
        CHECK_MSG(failing_memory_mapped() == mapped, "call %ld fails: memory stays mapped", calls[i]);
        CHECK_MSG(failing_memory_open_files() == files, "call %ld fails: files stay open", calls[i]);
        if (test_failed > 40) break;
    }
    printf("%zu ways to %ld calls\n", count, made);
    CHECK(count > 100);
    CHECK(generate() == 0 && strcmp(read_file("out.jsonl"), right) == 0);
    free(calls);
    static const char *const names[] = {"system.txt", "requests.jsonl", "out.jsonl", "stats.json", "stderr"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) remove(path_of(names[i]));
    CHECK(rmdir(directory) == 0);
    return test_result();
}
