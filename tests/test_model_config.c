/* config.json of every family, and what is refused with which message. */
#define _POSIX_C_SOURCE 200809L
#include "test.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "model/model_config.h"

static char dir[64];

static void write_json(const char *name, const char *text) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fputs(text, file) < 0) exit(1);
    fclose(file);
}

static void remove_json(const char *name) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path);
}

static eng_model_config load(const char *config) {
    eng_model_config out;
    eng_error err = {""};
    write_json("config.json", config);
    CHECK_MSG(eng_model_config_load(dir, &out, &err), "%s", err.text);
    return out;
}

static void refused(const char *config, const char *part1, const char *part2) {
    eng_model_config out;
    eng_error err = {""};
    write_json("config.json", config);
    CHECK(!eng_model_config_load(dir, &out, &err));
    CHECK_CONTAINS(err.text, "/config.json: ");
    CHECK_CONTAINS(err.text, part1);
    CHECK_CONTAINS(err.text, part2);
}

#define SIZES \
    "\"hidden_size\":2048,\"num_hidden_layers\":8,\"num_attention_heads\":32,\"num_key_value_heads\":8," \
    "\"intermediate_size\":8192,\"vocab_size\":1000,\"max_position_embeddings\":4096"
#define LLAMA "{\"architectures\":[\"LlamaForCausalLM\"]," SIZES
#define MISTRAL "{\"architectures\":[\"MistralForCausalLM\"]," SIZES
#define QWEN2 "{\"architectures\":[\"Qwen2ForCausalLM\"]," SIZES
#define QWEN3 "{\"architectures\":[\"Qwen3ForCausalLM\"]," SIZES
#define GEMMA "{\"architectures\":[\"Gemma3ForCausalLM\"]," SIZES ",\"head_dim\":128"

static void test_llama(void) {
    eng_model_config c = load(LLAMA ",\"rms_norm_eps\":1e-5,\"rope_theta\":500000.0,\"tie_word_embeddings\":true,"
                              "\"eos_token_id\":[7,8],\"torch_dtype\":\"bfloat16\",\"rope_scaling\":{\"factor\":32.0,"
                              "\"high_freq_factor\":4.0,\"low_freq_factor\":1.0,"
                              "\"original_max_position_embeddings\":8192,\"rope_type\":\"llama3\"}}");
    CHECK(c.family == ENG_FAMILY_LLAMA && c.head_dim == 64 && c.kv_heads == 8 && c.tie_embeddings);
    CHECK(c.attention_scale == 0.125f && c.embedding_scale == 1 && c.rms_eps == 1e-5f && c.sliding_window == 0);
    CHECK(c.rope.scaling == ENG_ROPE_LLAMA3 && c.rope.factor == 32 && c.rope.theta == 5e5);
    CHECK(c.rope.original_max_positions == 8192 && c.rope.high_freq_factor == 4);
    CHECK(c.num_eos_ids == 2 && c.eos_ids[1] == 8 && strcmp(c.dtype_name, "bfloat16") == 0);
    CHECK(!c.qkv_bias && !c.qk_norm && !c.sandwich_norms && c.bos_id == -1 && c.generation.temperature == 1);
    c = load("{\"model_type\":\"llama\",\"hidden_size\":256,\"num_hidden_layers\":1,\"num_attention_heads\":4,"
             "\"intermediate_size\":8,\"vocab_size\":9}");
    CHECK(c.kv_heads == 4 && c.max_positions == 2048 && c.rope.theta == 1e4 && c.rms_eps == 1e-6f);
    c = load(LLAMA ",\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2,\"rope_theta\":123456}}");
    CHECK(c.rope.theta == 123456 && c.rope.scaling == ENG_ROPE_LINEAR && c.rope.factor == 2);
    c = load(LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}}");
    CHECK(c.rope.scaling == ENG_ROPE_LINEAR && c.rope.factor == 4);
}

static void test_windows(void) {
    eng_model_config c = load(MISTRAL ",\"sliding_window\":null}");
    CHECK(eng_layer_window(&c, 0) == 0);
    c = load(MISTRAL ",\"sliding_window\":512}");
    CHECK(eng_layer_window(&c, 0) == 512 && eng_layer_window(&c, 7) == 512);
    c = load(MISTRAL "}");
    CHECK(eng_layer_window(&c, 0) == 4096); /* what transformers takes */
    c = load(QWEN2 ",\"sliding_window\":512,\"use_sliding_window\":false,\"max_window_layers\":2}");
    CHECK(c.qkv_bias && eng_layer_window(&c, 7) == 0);
    c = load(QWEN2 ",\"sliding_window\":512,\"use_sliding_window\":true,\"max_window_layers\":6}");
    CHECK(eng_layer_window(&c, 5) == 0 && eng_layer_window(&c, 6) == 512);
    c = load(QWEN3 ",\"sliding_window\":null,\"use_sliding_window\":false}");
    CHECK(c.qk_norm && !c.qkv_bias && c.head_dim == 128 && eng_layer_window(&c, 7) == 0);
    refused(QWEN3 ",\"sliding_window\":-4,\"use_sliding_window\":true}", "sliding_window", "-4");
    refused(MISTRAL ",\"sliding_window\":0}", "sliding_window", "0");
    refused(QWEN3 ",\"use_sliding_window\":true,\"layer_types\":[\"full_attention\"]}", "layer_types", "1 entries");
}

static void test_gemma(void) {
    eng_model_config c = load(GEMMA ",\"sliding_window\":512,\"query_pre_attn_scalar\":64,\"rope_local_base_freq\":5000,"
                              "\"sliding_window_pattern\":3,\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":8}}");
    CHECK(c.qk_norm && c.norm_plus_one && c.sandwich_norms && c.tie_embeddings);
    CHECK(c.activation == ENG_ACTIVATION_GELU_TANH && c.attention_scale == 0.125f);
    CHECK(c.embedding_scale == sqrtf(2048.0f) && c.rope.theta == 1e6 && c.rope.factor == 8);
    CHECK(eng_layer_window(&c, 0) == 512 && eng_layer_window(&c, 2) == 0 && eng_layer_window(&c, 3) == 512);
    CHECK(eng_layer_rope(&c, 0)->theta == 5000 && eng_layer_rope(&c, 0)->scaling == ENG_ROPE_DEFAULT);
    CHECK(eng_layer_rope(&c, 2)->theta == 1e6 && c.logit_soft_cap == 0 && c.attention_soft_cap == 0);
    c = load("{\"architectures\":[\"Gemma3ForConditionalGeneration\"],\"eos_token_id\":[1,106],\"text_config\":{"
             "\"hidden_size\":2560,\"intermediate_size\":10240,\"num_hidden_layers\":34,\"sliding_window\":1024,"
             "\"final_logit_softcapping\":30.0,\"layer_types\":null}}");
    CHECK(c.heads == 8 && c.kv_heads == 4 && c.head_dim == 256 && c.vocab == 262208 && c.num_eos_ids == 2);
    CHECK(eng_layer_window(&c, 4) == 1024 && eng_layer_window(&c, 5) == 0 && c.logit_soft_cap == 30);
    c = load("{\"model_type\":\"gemma3_text\"," SIZES ",\"sliding_window\":512,\"layer_types\":[\"full_attention\","
             "\"sliding_attention\",\"full_attention\",\"full_attention\",\"full_attention\",\"full_attention\","
             "\"full_attention\",\"full_attention\"],\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"linear\","
             "\"factor\":8,\"rope_theta\":1000000},\"sliding_attention\":{\"rope_type\":\"default\",\"rope_theta\":10000}}}");
    CHECK(eng_layer_window(&c, 0) == 0 && eng_layer_window(&c, 1) == 512);
    CHECK(eng_layer_rope(&c, 1)->theta == 1e4 && eng_layer_rope(&c, 0)->factor == 8);
    refused("{\"architectures\":[\"Gemma3ForConditionalGeneration\"]}", "text_config", "missing");
    refused("{\"architectures\":[\"Gemma3ForConditionalGeneration\"],\"text_config\":{\"hidden_size\":0}}",
            "text_config: hidden_size", "0");
}

static void test_generation(void) {
    write_json("generation_config.json", "{\"eos_token_id\":3,\"bos_token_id\":1,\"do_sample\":true,\"temperature\":0.6,"
               "\"top_p\":0.9,\"top_k\":64}");
    eng_model_config c = load(LLAMA ",\"eos_token_id\":2}");
    CHECK(c.num_eos_ids == 1 && c.eos_ids[0] == 3 && c.bos_id == 1 && c.generation.do_sample);
    CHECK(c.generation.temperature == 0.6 && c.generation.top_p == 0.9 && c.generation.top_k == 64);
    CHECK(c.generation.repetition_penalty == 1 && c.generation.min_p == 0);
    eng_error err = {""};
    write_json("generation_config.json", "{\"temperature\":-1}");
    CHECK(!eng_model_config_load(dir, &c, &err));
    CHECK_CONTAINS(err.text, "generation_config.json: temperature");
    write_json("generation_config.json", "[]");
    CHECK(!eng_model_config_load(dir, &c, &err));
    CHECK_CONTAINS(err.text, "generation_config.json: expected an object");
    remove_json("generation_config.json");
}

static void test_refused(void) {
    refused("{\"architectures\":[\"GPT2LMHeadModel\"]}", "\"GPT2LMHeadModel\" is not supported", "Qwen3ForCausalLM");
    refused("{\"model_type\":\"mixtral\"}", "mixtral", "LlamaForCausalLM");
    refused("{}", "model_type", "LlamaForCausalLM");
    refused("[]", "expected an object", "");
    refused("{", "line 1", "");
    refused("{\"architectures\":[\"LlamaForCausalLM\"]}", "hidden_size: missing", "");
    refused("{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":0}", "hidden_size", "0");
    refused("{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":\"2048\"}", "hidden_size", "\"2048\"");
    refused("{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":4611686018427387904}", "hidden_size",
            "4611686018427387904");
    refused(LLAMA ",\"num_key_value_heads\":5}", "num_key_value_heads: 5 does not divide", "32");
    refused(LLAMA ",\"head_dim\":100}", "head_dim: 100", "multiple of 8");
    refused(LLAMA ",\"head_dim\":512}", "head_dim", "512");
    refused(LLAMA ",\"num_attention_heads\":4,\"num_key_value_heads\":4}", "head_dim", "512");
    refused(LLAMA ",\"num_attention_heads\":24,\"num_key_value_heads\":4}", "hidden_size", "no multiple");
    refused(LLAMA ",\"hidden_act\":\"relu\"}", "hidden_act: \"relu\"", "silu");
    refused(LLAMA ",\"attention_bias\":true}", "attention_bias", "not supported");
    refused(LLAMA ",\"mlp_bias\":true}", "mlp_bias", "not supported");
    refused(LLAMA ",\"attention_bias\":1}", "attention_bias", "1");
    refused(LLAMA ",\"quantization_config\":{}}", "quantization_config", "not supported");
    refused(LLAMA ",\"rms_norm_eps\":-1}", "rms_norm_eps", "-1");
    refused(LLAMA ",\"rope_theta\":0}", "rope_theta", "0");
    refused(LLAMA ",\"partial_rotary_factor\":0.5}", "partial_rotary_factor", "0.5");
    refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4}}", "rope_scaling.rope_type: \"yarn\"", "llama3");
    refused(LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":4}}", "rope_scaling.type: \"dynamic\"", "linear");
    refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"linear\"}}", "rope_scaling.factor", "missing");
    refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":0}}", "rope_scaling.factor", "0");
    refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":1}}",
            "high_freq_factor", "4");
    refused(LLAMA ",\"rope_scaling\":\"llama3\"}", "rope_scaling", "\"llama3\"");
    refused(LLAMA ",\"eos_token_id\":1000}", "eos_token_id", "1000");
    refused(LLAMA ",\"eos_token_id\":[1,\"x\"]}", "eos_token_id", "\"x\"");
    refused(LLAMA ",\"eos_token_id\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}", "eos_token_id", "16");
    refused(LLAMA ",\"num_hidden_layers\":100000}", "num_hidden_layers", "100000");
    refused(GEMMA ",\"layer_types\":[\"full_attention\",\"chunked_attention\",0,0,0,0,0,0]}", "layer_types[1]",
            "chunked_attention");
}

int main(void) {
    snprintf(dir, sizeof dir, "/tmp/test_model_config.XXXXXX");
    if (mkdtemp(dir) == NULL) return 1;
    test_llama();
    test_windows();
    test_gemma();
    test_generation();
    test_refused();
    eng_model_config c;
    eng_error err = {""};
    remove_json("config.json");
    CHECK(!eng_model_config_load(dir, &c, &err));
    CHECK_CONTAINS(err.text, "config.json");
    rmdir(dir);
    return test_result();
}
