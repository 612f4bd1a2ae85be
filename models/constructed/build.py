#!/usr/bin/env python3
"""Build a checkpoint of any head shape whose weights are constructed, not trained, to answer from its prompt.

    build.py --out DIR [--heads 8] [--kv-heads 2] [--head-dim 128] [--keys 1500] [--noise 0.02] [--seed 1]

A handbook (the system prompt) holds entries `the code of KEY is VALUE .`; the request ends in
`the code of KEY is`, and the one right continuation is `VALUE . </s>`.  The two Llama layers are the induction
mechanism in closed form, so the model fails exactly when attention over the prompt is wrong:

* every word has a random +-1 code of C dims; the residual stream holds five groups
  [own code | code of the word before | code of the word two before | found code | const, value?, period?, other];
* layer 1, query heads 0 and 1 look 1 and 2 words back: query and key are constant, all the score comes from RoPE
  (a query turned by -delta * theta_i peaks where the key is delta words before);
* layer 2, query head heads-1 matches `word before` (query) with `two words before` (key) in the slowest RoPE pairs,
  where 8192 positions turn by less than half a radian, and prefers values; it copies the found word's own code;
* the output rows read the found code (values) and the own class (`.` after a value, </s> after a period).

All other weights are small noise, so every head and the MLP matter to the logits.  Needs numpy; the same
arguments give the same bytes.
"""
import argparse
import json
import os
import struct
import sys

import numpy as np

SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = "the code of is what ? . you are clerk this house handbook answer from it and nothing else".split()
FIRST_VALUE = len(SPECIALS) + len(WORDS)  # the id of "000"
VALUES = 1000
THETA = 5e8
POSITIONS = 8192
MAX_KEYS = 4000


def vocabulary(n_keys):
    """All tokens in order: specials, words, values, keys. The keys are a fixed walk over three-syllable words."""
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    keys, i = {}, 0
    while len(keys) < n_keys:
        keys[syllables[i % 70] + syllables[(i // 7 + 3 * i) % 70] + syllables[(i // 70 + 11) % 70]] = None
        i += 1
    return SPECIALS + WORDS + ["%03d" % v for v in range(VALUES)] + list(keys)


class Shape:
    """Sizes, and where the groups of the residual stream and the RoPE pairs of a head lie."""

    def __init__(self, heads, kv_heads, head_dim):
        self.heads, self.kv_heads, self.head_dim, self.half = heads, kv_heads, head_dim, head_dim // 2
        self.freq = THETA ** (-np.arange(self.half) / self.half)
        self.slow = np.flatnonzero(self.freq * POSITIONS < 0.5)  # pairs that carry content
        self.fast = np.arange(min(16, self.half // 2))           # pairs that carry position
        C = self.code = 2 * (len(self.slow) - 1)                 # the last slow pair carries the preference for values
        self.hidden = 4 * C + 4 + -(4 * C + 4) % 64
        self.own, self.prev1, self.prev2, self.found = (slice(g * C, (g + 1) * C) for g in range(4))
        self.const, self.value, self.period, self.other = range(4 * C, 4 * C + 4)


def embedding(s, vocab, codes):
    emb = np.zeros((len(vocab), s.hidden))
    emb[:, s.own], emb[:, s.const] = codes, 1
    for t, word in enumerate(vocab):
        emb[t, s.value if word.isdigit() else s.period if word == "." else s.other] = 1
    return emb


def noise_layer(s, layer, noise):
    p, C, inner = "model.layers.%d." % layer, s.code, 2 * s.hidden
    qd, kd = s.heads * s.head_dim, s.kv_heads * s.head_dim
    w = {}
    w[p + "self_attn.q_proj.weight"], w[p + "self_attn.k_proj.weight"] = noise(qd, s.hidden), noise(kd, s.hidden)
    w[p + "self_attn.v_proj.weight"], w[p + "self_attn.o_proj.weight"] = noise(kd, s.hidden), noise(s.hidden, qd)
    w[p + "mlp.gate_proj.weight"], w[p + "mlp.up_proj.weight"] = noise(inner, s.hidden), noise(inner, s.hidden)
    w[p + "mlp.down_proj.weight"] = noise(s.hidden, inner)
    stream = (C + 2) if layer == 0 else (3 * C + 2)  # squared norm of what the layer reads
    w[p + "input_layernorm.weight"] = np.full(s.hidden, np.sqrt(stream / s.hidden))
    w[p + "post_attention_layernorm.weight"] = np.full(s.hidden, np.sqrt((3 * C + 2) / s.hidden))
    return w


def look_back(s, q, k, v, o):
    """Layer 1: query heads 0 and 1 copy the codes of the words 1 and 2 before."""
    scale = s.head_dim ** 0.5  # undoes the softmax scale
    for back, group in ((1, s.prev1), (2, s.prev2)):
        h = (back - 1) * s.head_dim
        q[h:h + s.head_dim] = 0
        q[h + s.fast, s.const] = 14 * scale * np.cos(s.freq[s.fast] * back)
        q[h + s.half + s.fast, s.const] = -14 * scale * np.sin(s.freq[s.fast] * back)
        o[:, h:h + s.head_dim] = 0
        o[group, h:h + s.code] = np.eye(s.code)
    k[:s.head_dim] = v[:s.head_dim] = 0
    k[s.fast, s.const] = 1
    v[:s.code, s.own] = np.eye(s.code)


def find_word(s, q, k, v, o, asked, met):
    """Layer 2: the last query head finds the word whose group `met` is this one's group `asked`, and copies its code."""
    scale = s.head_dim ** 0.5  # undoes the softmax scale
    h, g = (s.heads - 1) * s.head_dim, (s.kv_heads - 1) * s.head_dim
    dims = np.concatenate([s.slow[:-1], s.half + s.slow[:-1]])
    q[h:h + s.head_dim] = k[g:g + s.head_dim] = v[g:g + s.head_dim] = 0
    o[:, h:h + s.head_dim] = 0
    q[h + dims, np.r_[asked]] = 50 * scale / s.code
    k[g + dims, np.r_[met]] = 1
    q[h + s.slow[-1], s.const], k[g + s.slow[-1], s.value] = 40 * scale, 1
    v[g:g + s.code, s.own] = np.eye(s.code)
    o[s.found, h:h + s.code] = np.eye(s.code)


def find_value(s, q, k, v, o):
    """The value whose key, two words before it, was named in the word before this one."""
    find_word(s, q, k, v, o, s.prev1, s.prev2)


def output_rows(s, vocab, codes, noise):
    head = noise(len(vocab), s.hidden)
    values = slice(FIRST_VALUE, FIRST_VALUE + VALUES)
    head[values, s.found] = codes[values] * (30 / s.code)
    head[vocab.index("."), s.value] = head[vocab.index("</s>"), s.period] = 60
    return head


def build(s, n_keys, noise_size, seed):
    rng = np.random.default_rng(seed)
    noise = lambda *shape: rng.normal(0, noise_size / np.sqrt(shape[-1]), shape)
    vocab = vocabulary(n_keys)
    codes = rng.choice([-1.0, 1.0], (len(vocab), s.code))
    w = {"model.embed_tokens.weight": embedding(s, vocab, codes)}
    for layer in range(2):
        w.update(noise_layer(s, layer, noise))
    w["model.norm.weight"] = np.full(s.hidden, np.sqrt((4 * s.code + 2) / s.hidden))
    for layer, make in enumerate((look_back, find_value)):
        make(s, *(w["model.layers.%d.self_attn.%s_proj.weight" % (layer, x)] for x in "qkvo"))
    w["lm_head.weight"] = output_rows(s, vocab, codes, noise)
    return vocab, w


def config_of(s, vocab):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": s.hidden,
            "intermediate_size": 2 * s.hidden, "num_hidden_layers": 2, "num_attention_heads": s.heads,
            "num_key_value_heads": s.kv_heads, "head_dim": s.head_dim, "vocab_size": len(vocab),
            "max_position_embeddings": POSITIONS, "rope_theta": THETA, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": 0, "torch_dtype": "bfloat16"}


def tokenizer_of(vocab):
    special = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": True} for i, t in enumerate(SPECIALS)]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
            "model": {"type": "WordLevel", "vocab": {t: i for i, t in enumerate(vocab)}, "unk_token": "<unk>"}}


def to_bf16(x):
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path, w):
    header, blobs, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, x in w.items():
        blob = to_bf16(x).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(x.shape), "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def save(out, s, vocab, w):
    os.makedirs(out, exist_ok=True)
    write_safetensors(os.path.join(out, "model.safetensors"), w)
    files = {"config.json": config_of(s, vocab),
             "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
             "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
                                       "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
                                       "model_max_length": POSITIONS, "clean_up_tokenization_spaces": False},
             "tokenizer.json": tokenizer_of(vocab)}
    for name, content in files.items():
        with open(os.path.join(out, name), "w") as f:
            json.dump(content, f, indent=1 if name != "tokenizer.json" else None)


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True)
    for flag, default in (("heads", 8), ("kv-heads", 2), ("head-dim", 128), ("keys", 1500), ("seed", 1)):
        p.add_argument("--" + flag, type=int, default=default)
    p.add_argument("--noise", type=float, default=0.02)
    a = p.parse_args()
    if a.kv_heads < 1 or a.heads < 2 * a.kv_heads or a.heads % a.kv_heads:
        p.error("--heads must be a multiple of --kv-heads, twice or more: heads 0 and 1 share the first kv head")
    if a.head_dim < 64 or a.head_dim % 2:
        p.error("--head-dim must be even and 64 or more: fewer slow pairs cannot hold a code")
    if not 1 <= a.keys <= MAX_KEYS:
        p.error("--keys must be 1 to %d" % MAX_KEYS)
    if not 0 <= a.noise <= 0.1:
        p.error("--noise must be 0 to 0.1")
    if a.seed < 0:
        p.error("--seed must be 0 or more")
    return a


def main():
    a = parse_arguments()
    shape = Shape(a.heads, a.kv_heads, a.head_dim)
    try:
        save(a.out, shape, *build(shape, a.keys, a.noise, a.seed))
    except OSError as e:
        sys.exit("build.py: cannot write to %s: %s" % (a.out, e.strerror or e))


if __name__ == "__main__":
    main()
