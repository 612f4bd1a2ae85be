#!/usr/bin/env python3
"""Tiny random checkpoints of every family that the engine takes, and what `transformers` answers with them.

    make_tiny_models.py --out DIR [--only NAME]

writes DIR/NAME/ as a hub publishes a model (config.json, safetensors, tokenizer.json ...) and DIR/NAME/reference.json:

    {"system", "texts": [...], "answers": [{"prompt_tokens", "tokens", "gaps", "text", "first_logits"}, ...]}

where the prompt of an answer is system + text. Prompts are longer than the sliding windows and than the length at
which rope scaling begins. The weights come from a seed and are large enough that outputs vary and the best token
stands clear of the second: every matrix keeps the size of what passes through it, and logits have a spread of 4.
"""
import argparse
import json
import os
import re
import sys

from make_reference import Reference  # sets the environment that torch needs, so it comes first

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, MistralConfig,
                          MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

HANDBOOK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "models", "gemma", "handbook.txt")
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]
VOCAB = 640
SPACE = "\u2581"
# how Llama 3 and Qwen cut text into words before the merges
WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
COMMON = dict(vocab_size=VOCAB, num_hidden_layers=2, intermediate_size=192, max_position_embeddings=1024,
              bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False)

# name: (configuration, model, tokenizer, dtype, largest shard)
FAMILIES = {
    "llama2": (LlamaConfig(**COMMON, hidden_size=256, num_attention_heads=4, num_key_value_heads=4),
               LlamaForCausalLM, "sentencepiece", torch.float16, None),
    "llama-linear": (LlamaConfig(**COMMON, hidden_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=80,
                                 rope_scaling={"rope_type": "linear", "factor": 4.0}),
                     LlamaForCausalLM, "sentencepiece", torch.float32, None),
    "llama3": (LlamaConfig(**COMMON, hidden_size=192, num_attention_heads=8, num_key_value_heads=2, head_dim=128,
                           rope_theta=500000.0, rope_scaling={
                               "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                               "original_max_position_embeddings": 64}),
               LlamaForCausalLM, "bytelevel", torch.bfloat16, None),
    "mistral": (MistralConfig(**COMMON, hidden_size=192, num_attention_heads=6, num_key_value_heads=3, head_dim=96,
                              sliding_window=24),
                MistralForCausalLM, "sentencepiece", torch.bfloat16, None),
    "qwen2": (Qwen2Config(**dict(COMMON, tie_word_embeddings=True), hidden_size=256, num_attention_heads=4,
                          num_key_value_heads=1, use_sliding_window=False),
              Qwen2ForCausalLM, "bytelevel", torch.bfloat16, None),
    "qwen3": (Qwen3Config(**COMMON, hidden_size=160, num_attention_heads=4, num_key_value_heads=2, head_dim=112),
              Qwen3ForCausalLM, "bytelevel", torch.float32, "1MB"),
    "gemma3": (Gemma3TextConfig(**dict(COMMON, tie_word_embeddings=True, num_hidden_layers=4), hidden_size=128,
                                num_attention_heads=4, num_key_value_heads=1, head_dim=256, sliding_window=16,
                                sliding_window_pattern=3, query_pre_attn_scalar=128,
                                rope_scaling={"rope_type": "linear", "factor": 8.0}),
               Gemma3ForCausalLM, "sentencepiece", torch.bfloat16, None),
}


def read_handbook():
    with open(HANDBOOK, encoding="utf-8") as f:
        return f.read()


def prompts():
    """-> system, texts: from one token to some hundreds, plain words and others"""
    paragraphs = read_handbook().split("\n\n")
    system = "\n\n".join(paragraphs[2:4]) + "\n\n"
    texts = ["When does the shop open on Monday?", "A", "Wie teuer ist das Fahrrad? 480 \u20ac \u2014 \u00e7a va \U0001f6b2",
             " two  spaces,\ttabs\nand 12345 digits", paragraphs[6][:400], paragraphs[10]]
    return system, texts


def train(tokenizer, size, alphabet=()):
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIALS, initial_alphabet=list(alphabet),
                                  show_progress=False, max_token_length=12)
    tokenizer.train_from_iterator(read_handbook().split("\n"), trainer)
    return tokenizer


def bytelevel_tokenizer():
    """As Llama 3 and Qwen have it."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    train(t, VOCAB, pre_tokenizers.ByteLevel.alphabet())
    return t


def sentencepiece_tokenizer():
    """As Llama 2, Mistral and Gemma have it: spaces become a letter, unknown letters become bytes."""
    t = Tokenizer(models.BPE(unk_token="<unk>"))
    t.normalizer = normalizers.Replace(" ", SPACE)
    t.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    train(t, VOCAB - 256)
    state = json.loads(t.to_str())
    learned = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)[len(SPECIALS):]
    tokens = SPECIALS + ["<0x%02X>" % b for b in range(256)] + learned
    state["model"].update(vocab={token: i for i, token in enumerate(tokens)}, byte_fallback=True, fuse_unk=True)
    state["pre_tokenizer"] = None
    t = Tokenizer.from_str(json.dumps(state))
    t.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    t.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1",
                                                     special_tokens=[("<s>", 1)])
    return t


def save_tokenizer(kind, out):
    tokenizer = {"bytelevel": bytelevel_tokenizer, "sentencepiece": sentencepiece_tokenizer}[kind]()
    assert tokenizer.get_vocab_size() <= VOCAB
    tokenizer.save(os.path.join(out, "tokenizer.json"))
    with open(os.path.join(out, "tokenizer_config.json"), "w") as f:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
                   "pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": 1024,
                   "clean_up_tokenization_spaces": False}, f, indent=1)


@torch.no_grad()
def fill(model, seed):
    """Random weights under which what flows through keeps its size, and the logits have a spread of 4."""
    g = torch.Generator().manual_seed(seed)
    tied, hidden = model.config.tie_word_embeddings, model.config.hidden_size
    for name, w in model.named_parameters():
        w.normal_(0, 1, generator=g)
        if "embed_tokens" in name:
            w.mul_(4 / hidden ** 0.5 if tied else 1)
        elif "lm_head" in name:
            w.mul_(4 / hidden ** 0.5)
        elif "norm" in name:
            # a tied head favours the token just read: the layers must outweigh it. Gemma's norms add 1.
            base = 0 if model.config.model_type == "gemma3_text" else 1
            w.mul_(0.2).add_(base + (12 if re.search("post_.*layernorm", name) and not base else 0))
        elif w.dim() == 1:
            w.mul_(0.3)
        else:
            w.mul_((4 if tied and re.search("o_proj|down_proj", name) else 1.5) / w.shape[1] ** 0.5)
    model.tie_weights()


def build(name, out):
    config, model_class, tokenizer, dtype, shard = FAMILIES[name]
    os.makedirs(out, exist_ok=True)
    model = model_class(config)
    fill(model, 1 + list(FAMILIES).index(name))
    model.to(dtype).save_pretrained(out, **({"max_shard_size": shard} if shard else {}))
    save_tokenizer(tokenizer, out)
    system, texts = prompts()
    answers = Reference(out).greedy(system, texts, 32, first_logits=True)
    with open(os.path.join(out, "reference.json"), "w", encoding="utf-8") as f:
        json.dump({"system": system, "texts": texts, "answers": answers}, f)
    return answers


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True)
    p.add_argument("--only", choices=list(FAMILIES))
    a = p.parse_args()
    try:
        for name in [a.only] if a.only else FAMILIES:
            answers = build(name, os.path.join(a.out, name))
            print("%-12s prompts of %s tokens, %d distinct tokens answered, smallest gap %.4f" % (
                name, ", ".join(str(x["prompt_tokens"]) for x in answers),
                len({t for x in answers for t in x["tokens"]}), min(min(x["gaps"]) for x in answers)), flush=True)
    except OSError as e:
        sys.exit("make_tiny_models.py: %s" % e)


if __name__ == "__main__":
    main()
