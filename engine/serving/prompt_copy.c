#include "prompt_copy.h"

#include "common/big_memory.h"

#include <stdlib.h>

static bool fail_status(relay_status status, eng_error *err) {
    return eng_fail(err, "copying a prompt: %s", relay_status_text(status));
}

static relay_status copy_layer(const relay_prompt *from, relay_prompt *to, int32_t layer, relay_tensor *key,
                               relay_tensor *value) {
    relay_status status = relay_prompt_read(from, layer, 0, key, value);
    return status == RELAY_OK ? relay_prompt_write(to, layer, 0, key, value) : status;
}

/* f32 on the way, which holds every type of K/V exactly. */
static bool copy_layers(const relay_prompt *from, relay_prompt *to, const eng_kv_shape *shape, eng_error *err) {
    const int32_t tokens = relay_prompt_num_tokens(from);
    const size_t each = (size_t)tokens * (size_t)shape->kv_heads * (size_t)shape->head_dim;
    float *room = eng_big_alloc(2 * each * sizeof *room);
    if (room == NULL) return eng_fail(err, "copying a prompt: out of memory");
    relay_tensor key = relay_tensor_3d(room, RELAY_F32, tokens, shape->kv_heads, shape->head_dim);
    relay_tensor value = relay_tensor_3d(room + each, RELAY_F32, tokens, shape->kv_heads, shape->head_dim);
    relay_status status = RELAY_OK;
    for (int32_t layer = 0; layer < shape->layers && status == RELAY_OK; layer++)
        status = copy_layer(from, to, layer, &key, &value);
    free(room);
    return status == RELAY_OK || fail_status(status, err);
}

static bool check_paths(const eng_path *from, const eng_path *to, eng_error *err) {
    if (from->count == 1 && to->count == 1 && from->tokens == to->tokens && from->steps[0].node != to->steps[0].node)
        return true;
    return eng_fail(err, "copying a prompt: expected two that share nothing and have one length, got %d and %d tokens",
                    (int)from->tokens, (int)to->tokens);
}

static bool fill(eng_prompt_set *set, const eng_kv_shape *shape, const eng_path *from, const eng_path *to,
                 eng_error *err) {
    bool full;
    if (eng_prompt_set_filling(set) != NULL) return eng_fail(err, "copying a prompt: another is being computed");
    if (!eng_prompt_set_begin(set, to->steps[0].node, false, &full, err)) return false;
    if (eng_prompt_set_filling(set) == NULL) return true; /* it has come from its file */
    if (copy_layers(eng_prompt_set_handle(set, from->steps[0].node), eng_prompt_set_filling(set), shape, err))
        return eng_prompt_set_filled(set, to->tokens, 0, err);
    eng_prompt_set_abandon(set);
    return false;
}

bool eng_prompt_copy(eng_prompt_set *set, const eng_kv_shape *shape, int32_t from, int32_t to, eng_error *err) {
    const eng_path source = eng_prompt_set_path(set, from), target = eng_prompt_set_path(set, to);
    int32_t node;
    if (!check_paths(&source, &target, err)) return false;
    eng_prompt_state state = eng_prompt_set_pin(set, &source, &node, err);
    if (state == ENG_PROMPT_MISSING) return eng_fail(err, "copying a prompt: it has not been computed yet");
    if (state != ENG_PROMPT_READY) return false;
    bool ok = fill(set, shape, &source, &target, err);
    eng_prompt_set_unpin(set, &source);
    return ok;
}
