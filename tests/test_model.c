/* The forward step: what it refuses, and that a sequence's logits have the same bits in every batch. */
#define _POSIX_C_SOURCE 200809L
#include "test.h"

#include <stdlib.h>
#include <unistd.h>

#include "model/model.h"

enum { ROWS = 37 };

/* Row r is position 0 of its own sequence. */
static bool attend_alone(void *user, int32_t layer, const eng_attend_io *io, eng_error *err) {
    const eng_model_config *c = user;
    (void)layer;
    (void)err;
    const int32_t group = c->heads / c->kv_heads, d = c->head_dim;
    for (int32_t r = 0; r < io->rows; r++)
        for (int32_t h = 0; h < c->heads; h++) /* softmax over one key: its value, and a trace of q and k */
            for (int32_t i = 0; i < d; i++) {
                int64_t kv = ((int64_t)r * c->kv_heads + h / group) * d + i, at = ((int64_t)r * c->heads + h) * d + i;
                io->out[at] = io->v[kv] + 0.01f * io->q[at] * io->k[kv];
            }
    return true;
}

static bool attend_failing(void *user, int32_t layer, const eng_attend_io *io, eng_error *err) {
    (void)user;
    (void)io;
    return layer < 1 || eng_fail(err, "no attention in layer %d", layer);
}

static void check_batches(eng_compute compute) {
    eng_error err = {""};
    const eng_model_options options = {compute};
    eng_model *m;
    CHECK_MSG(eng_model_random("tiny", &options, &m, &err), "%s", err.text);
    const eng_model_config *c = eng_model_config_of(m);
    int32_t tokens[ROWS], positions[ROWS], wanted[ROWS];
    for (int32_t r = 0; r < ROWS; r++) {
        tokens[r] = (r * 131 + 7) % c->vocab;
        positions[r] = r * 97;
        wanted[r] = ROWS - 1 - r;
    }
    const size_t row_bytes = (size_t)c->vocab * sizeof(float);
    float *alone = malloc(row_bytes * ROWS), *together = malloc(row_bytes * ROWS);
    const int32_t zero = 0;
    for (int32_t r = 0; r < ROWS; r++) {
        const eng_step step = {1, tokens + r, positions + r, 1, &zero, alone + (size_t)r * (size_t)c->vocab};
        CHECK(eng_model_forward(m, &step, attend_alone, (void *)(uintptr_t)c, &err));
    }
    const eng_step step = {ROWS, tokens, positions, ROWS, wanted, together};
    CHECK_MSG(eng_model_forward(m, &step, attend_alone, (void *)(uintptr_t)c, &err), "%s", err.text);
    int different = 0;
    for (int32_t r = 0; r < ROWS; r++)
        different += memcmp(together + (size_t)(ROWS - 1 - r) * (size_t)c->vocab, alone + (size_t)r * (size_t)c->vocab,
                            row_bytes) != 0;
    CHECK_MSG(different == 0, "%s: %d of %d rows differ", eng_model_kernel_name(m), different, ROWS);
    CHECK(memcmp(alone, alone + c->vocab, row_bytes) != 0);
    free(alone);
    free(together);
    eng_model_free(m);
}

static void refused(eng_model *m, eng_step step, const char *part) {
    eng_error err = {""};
    CHECK(!eng_model_forward(m, &step, attend_failing, NULL, &err));
    CHECK_CONTAINS(err.text, part);
}

static void test_bad_steps(void) {
    eng_error err = {""};
    eng_model *m;
    CHECK(!eng_model_random("giant", NULL, &m, &err) && m == NULL);
    CHECK_CONTAINS(err.text, "\"giant\"");
    CHECK(eng_model_random("tiny", NULL, &m, &err));
    const int32_t vocab = eng_model_config_of(m)->vocab;
    int32_t tokens[2] = {1, 2}, positions[2] = {0, 1}, wanted[1] = {1};
    float *logits = malloc((size_t)vocab * sizeof *logits);
    const eng_step good = {2, tokens, positions, 1, wanted, logits};
    eng_step bad = good;
    refused(m, good, "no attention in layer 1");
    bad.rows = 0;
    refused(m, bad, "0 rows");
    bad = good;
    bad.num_logit_rows = 3;
    refused(m, bad, "logits of 3");
    bad = good;
    bad.logits = NULL;
    refused(m, bad, "NULL");
    wanted[0] = 2;
    refused(m, good, "logit_rows[0]: 2");
    tokens[1] = vocab;
    refused(m, good, "tokens[1]");
    tokens[1] = -1;
    refused(m, good, "tokens[1]: -1");
    tokens[1] = 0;
    positions[0] = 131072;
    refused(m, good, "positions[0]: 131072");
    free(logits);
    eng_model_free(m);
    eng_model_free(NULL);
}

static char dir[64];

static void write_file(const char *name, const void *bytes, size_t size) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(bytes, 1, size, file) != size) exit(1);
    fclose(file);
}

/* A checkpoint with one tensor: what is wrong with it, or missing, is named. */
static void test_bad_checkpoint(void) {
    const char *config = "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":16,\"num_hidden_layers\":1,"
                         "\"num_attention_heads\":2,\"intermediate_size\":8,\"vocab_size\":4}";
    const char *wrong = "{\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[4,15],\"data_offsets\":[0,120]}}";
    const char *alone = "{\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[4,16],\"data_offsets\":[0,128]}}";
    const char *const headers[] = {wrong, alone};
    const char *const parts[][2] = {{"[4, 15]", "[4, 16]"}, {"input_layernorm.weight", "missing"}};
    snprintf(dir, sizeof dir, "/tmp/test_model.XXXXXX");
    if (mkdtemp(dir) == NULL) exit(1);
    write_file("config.json", config, strlen(config));
    for (int i = 0; i < 2; i++) {
        unsigned char bytes[512] = {(unsigned char)strlen(headers[i])};
        memcpy(bytes + 8, headers[i], strlen(headers[i]));
        write_file("model.safetensors", bytes, 8 + strlen(headers[i]) + (i ? 128 : 120));
        eng_error err = {""};
        eng_model *m;
        CHECK(!eng_model_load(dir, NULL, &m, &err) && m == NULL);
        CHECK_CONTAINS(err.text, parts[i][0]);
        CHECK_CONTAINS(err.text, parts[i][1]);
        CHECK_CONTAINS(err.text, dir);
    }
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/config.json", dir);
    unlink(path);
    rmdir(dir);
}

int main(void) {
    check_batches(ENG_COMPUTE_F32);
    check_batches(ENG_COMPUTE_BF16);
    check_batches(ENG_COMPUTE_AUTO);
    test_bad_steps();
    test_bad_checkpoint();
    return test_result();
}
