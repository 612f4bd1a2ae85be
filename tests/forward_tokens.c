/* forward_tokens MODEL_DIR NEW_TOKENS [f32|bf16|auto] < "id id id ..."
 * Continues the token ids greedily with naive attention; prints the new ids and, last, the smallest gap
 * between the two best logits.  The prompt goes in chunks of 5, so that steps of several sizes are used. */
#include <stdio.h>

#include "naive_attention.h"

enum { MAX_TOKENS = 8192, CHUNK = 5 };

static int32_t read_ids(int32_t *ids) {
    int32_t count = 0;
    while (count < MAX_TOKENS && scanf("%d", &ids[count]) == 1) count++;
    return count;
}

static int32_t best_of(const float *logits, int32_t n, float *gap) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++) best = logits[i] > logits[best] ? i : best;
    for (int32_t i = 0; i < n; i++)
        if (i != best && logits[best] - logits[i] < *gap) *gap = logits[best] - logits[i];
    return best;
}

/* Feeds ids[from..to); the last one's logits. */
static bool feed(eng_model *model, naive_cache *cache, const int32_t *ids, int32_t from, int32_t to, float *logits,
                 eng_error *err) {
    int32_t positions[CHUNK];
    for (int32_t at = from; at < to; at += CHUNK) {
        int32_t rows = to - at < CHUNK ? to - at : CHUNK, last = rows - 1;
        for (int32_t i = 0; i < rows; i++) positions[i] = at + i;
        const eng_step step = {rows, ids + at, positions, at + rows == to, &last, logits};
        if (!eng_model_forward(model, &step, naive_attend, cache, err)) return false;
    }
    return true;
}

static bool generate(eng_model *model, int32_t new_tokens, eng_error *err) {
    static int32_t ids[MAX_TOKENS];
    const eng_model_config *config = eng_model_config_of(model);
    int32_t count = read_ids(ids), from = 0;
    if (count == 0 || new_tokens > MAX_TOKENS - count) return eng_fail(err, "no token ids, or too many");
    naive_cache cache;
    float *logits = malloc((size_t)config->vocab * sizeof *logits), gap = INFINITY;
    bool ok = naive_cache_init(&cache, config, count + new_tokens) && logits;
    for (int32_t i = 0; ok && i < new_tokens; i++) {
        ok = feed(model, &cache, ids, from, count, logits, err);
        from = count;
        if (!ok) break;
        ids[count++] = best_of(logits, config->vocab, &gap);
        printf("%d ", ids[count - 1]);
    }
    if (ok) printf("\ngap %g\n", (double)gap);
    naive_cache_free(&cache);
    free(logits);
    return ok;
}

int main(int argc, char **argv) {
    eng_error err = {""};
    eng_model_options options = {ENG_COMPUTE_AUTO};
    if (argc < 3) return fprintf(stderr, "usage: forward_tokens MODEL_DIR NEW_TOKENS [f32|bf16|auto]\n"), 2;
    if (argc > 3 && strcmp(argv[3], "f32") == 0) options.compute = ENG_COMPUTE_F32;
    if (argc > 3 && strcmp(argv[3], "bf16") == 0) options.compute = ENG_COMPUTE_BF16;
    eng_model *model;
    bool ok = eng_model_load(argv[1], &options, &model, &err) && generate(model, atoi(argv[2]), &err);
    eng_model_free(model);
    if (!ok) fprintf(stderr, "%s\n", err.text);
    return ok ? 0 : 1;
}
