"""Greedy tokens of the engine's forward pass (f32, naive attention) against transformers in f32, over tiny
random checkpoints of every supported family.

Run through ctest, or: FORWARD_TOKENS=build/tests/forward_tokens pytest tests/test_model_forward.py
"""
import os
import subprocess

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

torch.set_num_threads(1)
PROGRAM = os.environ.get("FORWARD_TOKENS", os.path.join("build", "tests", "forward_tokens"))
VOCAB, PROMPT, NEW = 320, 41, 24
SIZES = dict(vocab_size=VOCAB, hidden_size=96, intermediate_size=160, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
LOCAL = dict(rope_local_base_freq=100.0, query_pre_attn_scalar=24, head_dim=32)

# Qwen2 slides in all layers: with max_window_layers > 0, transformers 4.52 masks the layers below it as well.
# name -> (config class, what differs from SIZES, dtype on disk, more than one shard)
MODELS = {
    "llama2": ("LlamaConfig", dict(num_key_value_heads=4), "float16", False),
    "llama3-scaled": ("LlamaConfig", dict(rope_theta=5e5, rope_scaling=LLAMA3, tie_word_embeddings=True), "bfloat16", False),
    "llama-linear": ("LlamaConfig", dict(rope_scaling=dict(rope_type="linear", factor=3.0)), "float32", True),
    "llama-odd-sizes": ("LlamaConfig", dict(hidden_size=100, intermediate_size=141, head_dim=24, vocab_size=317), "bfloat16", False),
    "mistral-window": ("MistralConfig", dict(sliding_window=7), "bfloat16", False),
    "mistral-full": ("MistralConfig", dict(sliding_window=None), "float16", False),
    "qwen2": ("Qwen2Config", dict(), "bfloat16", True),
    "qwen2-window": ("Qwen2Config", dict(use_sliding_window=True, sliding_window=6, max_window_layers=0), "float32", False),
    "qwen3": ("Qwen3Config", dict(head_dim=40), "bfloat16", False),
    "gemma3": ("Gemma3TextConfig", dict(sliding_window=6, sliding_window_pattern=2, **LOCAL), "bfloat16", False),
    "gemma3-scaled": ("Gemma3TextConfig", dict(sliding_window=9, sliding_window_pattern=3,
                                               rope_scaling=dict(rope_type="linear", factor=8.0), **LOCAL), "float32", True),
    "gemma3-capped": ("Gemma3TextConfig", dict(final_logit_softcapping=5.0, **LOCAL), "float32", False),
}


def randomise(model):
    """Weights large enough that every part moves the logits and the best token is clear."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        if "norm" in name:
            parameter.data = parameter.data + 0.3 * noise
        elif name.endswith("bias"):
            parameter.data = 0.5 * noise
        elif "embed_tokens" in name:
            parameter.data = noise * (0.02 if model.config.model_type == "gemma3_text" else 0.6)  # tied: it must not echo
        else:
            parameter.data = noise * (1.6 / parameter.shape[-1] ** 0.5)


def make_checkpoint(name, out):
    kind, changes, dtype, sharded = MODELS[name]
    torch.manual_seed(sum(map(ord, name)))
    config = getattr(transformers, kind)(**{**SIZES, **changes}, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config)
    randomise(model)
    model.tie_weights()
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(out, max_shard_size="200KB" if sharded else "1GB")
    assert os.path.exists(os.path.join(out, "model.safetensors.index.json")) == sharded
    return out


def reference(path, prompt):
    model = transformers.AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32, attn_implementation="eager")
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(NEW):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt):]


def engine(path, prompt, compute="f32"):
    run = subprocess.run([PROGRAM, str(path), str(NEW), compute], input=" ".join(map(str, prompt)), capture_output=True,
                         text=True, env={**os.environ, "OMP_WAIT_POLICY": "passive"})
    assert run.returncode == 0, run.stderr
    tokens, gap = run.stdout.splitlines()
    return list(map(int, tokens.split())), float(gap.split()[1])


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_equal_transformers(name, tmp_path):
    path = make_checkpoint(name, tmp_path)
    vocab = MODELS[name][1].get("vocab_size", VOCAB)
    for seed in range(2):
        prompt = torch.randint(3, vocab, (PROMPT,), generator=torch.Generator().manual_seed(seed)).tolist()
        tokens, gap = engine(path, prompt)
        assert tokens == reference(path, prompt), f"smallest gap between two best logits: {gap}"
        assert len(set(tokens)) > 3, "a model that says one thing proves little"
