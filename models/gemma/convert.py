#!/usr/bin/env python3
"""Turn the Gemma 3 GGUF file into a directory as model hubs publish them.

    convert.py MODEL.gguf OUT

OUT gets config.json, generation_config.json, model.safetensors (bf16), tokenizer.json, tokenizer_config.json.
`transformers` reads weights and configuration. The tokenizer is written here: transformers makes a Unigram
model of it, whereas Gemma's published tokenizer.json is a BPE whose merges follow from the vocabulary's order.
"""
import argparse
import json
import os

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # token types of a GGUF vocabulary
SPACE = "\u2581"                            # how SentencePiece writes a space


def read_vocabulary(path):
    """-> tokens and types in the order of their ids, spelled as in the published tokenizer.json."""
    reader = GGUFReader(path)
    field = lambda name: reader.fields["tokenizer.ggml." + name]
    tokens = [bytes(field("tokens").parts[i]).decode() for i in field("tokens").data]
    types = [int(field("token_type").parts[i][0]) for i in field("token_type").data]
    # GGUF spells the tokens that are runs of spaces literally
    return [t.replace(" ", SPACE) if kind == USER_DEFINED else t for t, kind in zip(tokens, types)], types


def merges_of(tokens, types):
    """A token's rank as a merge is its place in the vocabulary; symbols that the user defined come first."""
    index = {t: i for i, t in enumerate(tokens)}
    merges = []
    for token, kind in sorted(zip(tokens, types), key=lambda x: (x[1] != USER_DEFINED, index[x[0]])):
        if kind not in (NORMAL, USER_DEFINED):
            continue
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        splits = [(a, b) for a, b in splits if a in index and b in index]
        merges += sorted(splits, key=lambda s: (index[s[0]], index[s[1]]))
    return merges


def tokenizer_json(tokens, types):
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": kind == CONTROL}
             for i, (t, kind) in enumerate(zip(tokens, types)) if kind in (CONTROL, USER_DEFINED)]
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    a, b = ({"Sequence": {"id": x, "type_id": y}} for x, y in (("A", 0), ("B", 1)))
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                          "invert": False},
        "post_processor": {
            "type": "TemplateProcessing", "single": [bos, a],
            "pair": [bos, a, {"SpecialToken": {"id": "<bos>", "type_id": 1}}, b],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [tokens.index("<bos>")], "tokens": ["<bos>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(tokens)},
                  "merges": [list(m) for m in merges_of(tokens, types)]}}


def tokenizer_config():
    # The GGUF file has no chat template: this is the pretrained model, not the instruction-tuned one.
    return {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>",
            "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False,
            "clean_up_tokenization_spaces": False, "spaces_between_special_tokens": False,
            "model_max_length": 32768}


def write_json(path, content, indent=2):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(content, f, indent=indent, ensure_ascii=False)
        f.write("\n")


def write_model(path, out):
    folder, name = os.path.split(os.path.abspath(path))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, torch_dtype=torch.float32)
    config = model.config
    config.rms_norm_eps = 1e-6  # 1e-6 as a float32 in the GGUF file
    del config._model_name_or_path  # the file's title, no path
    model.to(torch.bfloat16).save_pretrained(out)
    write_json(os.path.join(out, "generation_config.json"), {
        "bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id, "do_sample": False})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("gguf")
    p.add_argument("out")
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    write_model(a.gguf, a.out)
    write_json(os.path.join(a.out, "tokenizer.json"), tokenizer_json(*read_vocabulary(a.gguf)), None)
    write_json(os.path.join(a.out, "tokenizer_config.json"), tokenizer_config())


if __name__ == "__main__":
    main()
