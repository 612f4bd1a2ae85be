#!/usr/bin/env python3
"""What `transformers` answers: greedy tokens in float32, and how close the second best token was at each step.

    make_reference.py --model DIR --system FILE --requests FILE.jsonl --out FILE.json [--tokens 32]

The functions are for tests that compute the reference as they run:

    reference = Reference("models/lookup")
    answers = reference.greedy(system_text, [request["text"], ...], tokens=32)

An answer is a dict: prompt_tokens, tokens, gaps (best logit minus second best, one a token), text, first_logits
(when asked for). Generation stops after a stop token of generation_config.json, which is the last of `tokens`.

The system prompt is computed once and its K/V reused, and requests are decoded in batches, left-padded. Sums then
run in another order than for one request alone, so wherever a gap is under NEAR the request is computed again by
itself, from an empty cache: what is returned is then what a plain unbatched run returns.
"""
import argparse
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads make it ten times slower on a busy machine
# PyTorch 2.7's oneDNN stops with an illegal instruction in its AMX kernels on some virtual machines.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NEAR = 1e-3  # batching moved no gap by more than 2e-5 in the models here
BATCH = 16


def grouped_attention(module, query, key, value, attention_mask, scaling, **_):
    """Attention without a copy of K/V for each query head, which costs more than all the rest of a step here."""
    b, heads, n, d = query.shape
    kv = key.shape[1]
    scores = query.reshape(b, kv, -1, d) @ key.mT * scaling
    scores = scores.view(b, heads, n, -1)
    if attention_mask is not None:
        scores = scores + attention_mask[..., :key.shape[2]]
    out = scores.softmax(-1).view(b, kv, heads // kv * n, -1) @ value
    return out.view(b, heads, n, d).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register("grouped", grouped_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register("grouped", eager_mask)


class RoomyCache(DynamicCache):
    """Writes new K/V in place, into room made once, where DynamicCache copies everything at each step."""

    def __init__(self, past, room):
        super().__init__()
        for layer in past:
            for held, x in zip((self.key_cache, self.value_cache), layer):
                whole = x.new_empty(x.shape[0], x.shape[1], x.shape[2] + room, x.shape[3])
                held.append(whole[:, :, :x.shape[2]])
                held[-1].copy_(x)
        self._seen_tokens = past[0][0].shape[2]

    def update(self, key_states, value_states, layer_idx, cache_kwargs=None):
        for held, x in ((self.key_cache, key_states), (self.value_cache, value_states)):
            old = held[layer_idx]
            n = old.shape[2] + x.shape[2]
            held[layer_idx] = old.as_strided((*old.shape[:2], n, old.shape[3]), old.stride())
            held[layer_idx][:, :, old.shape[2]:] = x
        return self.key_cache[layer_idx], self.value_cache[layer_idx]


def common_prefix(rows):
    n = min(map(len, rows))
    for i in range(n):
        if any(row[i] != rows[0][i] for row in rows):
            return i
    return n


class Reference:
    def __init__(self, path):
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32).eval()
        stop = self.model.generation_config.eos_token_id
        self.stop = set(stop if isinstance(stop, list) else [stop]) - {None}

    def encode(self, text):
        """Raw text, with what the tokenizer adds of itself (Gemma's <bos>)."""
        return self.tokenizer(text).input_ids

    def greedy(self, system, texts, tokens=32, first_logits=False):
        """One answer a text. The prompt is system + text, tokenised as one."""
        return self.greedy_tokens([self.encode(system + text) for text in texts], tokens, first_logits)

    @torch.inference_mode()
    def greedy_tokens(self, prompts, tokens=32, first_logits=False):
        shared = min(common_prefix(prompts), min(map(len, prompts)) - 1)
        prefix = self._prefill(prompts[0][:shared]) if shared and len(prompts) > 1 else None
        answers = [None] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for at in range(0, len(order), BATCH):
            rows = order[at:at + BATCH]
            for i, answer in zip(rows, self._decode([prompts[i] for i in rows], prefix, tokens, first_logits)):
                answers[i] = answer
        for i, answer in enumerate(answers):
            if len(prompts) > 1 and min(answer["gaps"]) < NEAR:
                answers[i] = self._decode([prompts[i]], None, tokens, first_logits)[0]
        return answers

    def _prefill(self, ids):
        """-> [(keys, values)] of each layer, [1, kv heads, tokens, head dim]"""
        out = self.model(torch.tensor([ids]), past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1)
        return [(k, v) for k, v in out.past_key_values.to_legacy_cache()]

    def _batch_cache(self, prefix, kept, room):
        """The prefix's K/V for rows that keep kept[i] of its tokens, padded on the left to the longest."""
        longest = max(kept)
        rows = lambda x: torch.cat([torch.nn.functional.pad(x[:, :, :n], (0, 0, longest - n, 0)) for n in kept])
        return RoomyCache([(rows(k), rows(v)) for k, v in prefix], room)

    def _decode(self, prompts, prefix, tokens, first_logits):
        """Rows end at the same column; what lies left of a row is masked, and positions count from its start."""
        longest = max(map(len, prompts))
        held = prefix[0][0].shape[2] if prefix else 0
        chunk = longest - min(held, longest - 1)  # tokens of each row that are computed here
        # a row that is shorter than the chunk would need padding inside it: computed alone instead
        if min(map(len, prompts)) < chunk:
            assert len(prompts) > 1
            return [self._decode([p], None, tokens, first_logits)[0] for p in prompts]
        cache = DynamicCache()
        if longest > chunk:
            cache = self._batch_cache(prefix, [len(p) - chunk for p in prompts], chunk + tokens)
        self.model.config._attn_implementation = "sdpa" if len(prompts) == 1 else "grouped"
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        ids = torch.tensor([p[-chunk:] for p in prompts])
        positions = torch.tensor([range(len(p) - chunk, len(p)) for p in prompts])
        answers = [{"prompt_tokens": len(p), "tokens": [], "gaps": []} for p in prompts]
        for step in range(tokens):
            columns = torch.arange(mask.shape[1] - ids.shape[1], mask.shape[1])
            logits = self.model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                                cache_position=columns, use_cache=True, logits_to_keep=1).logits[:, -1]
            top = logits.topk(2, -1)
            for row, answer in enumerate(answers):
                if answer["tokens"] and answer["tokens"][-1] in self.stop:
                    continue
                answer["tokens"].append(int(top.indices[row, 0]))
                answer["gaps"].append(float(top.values[row, 0] - top.values[row, 1]))
                if first_logits and step == 0:
                    answer["first_logits"] = logits[row].tolist()
            if all(a["tokens"][-1] in self.stop for a in answers):
                break
            ids, positions = top.indices[:, :1], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones(len(prompts), 1, dtype=mask.dtype)], 1)
        for answer in answers:
            answer["text"] = self.tokenizer.decode([t for t in answer["tokens"] if t not in self.stop])
        return answers


def read_requests(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.strip()]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--system", required=True)
    p.add_argument("--requests", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--tokens", type=int, default=32)
    a = p.parse_args()
    if a.tokens < 1:
        p.error("--tokens must be 1 or more")
    try:
        with open(a.system, encoding="utf-8") as f:
            system = f.read()
        requests = read_requests(a.requests)
        answers = Reference(a.model).greedy(system, [r["text"] for r in requests], a.tokens)
        with open(a.out + ".new", "w", encoding="utf-8") as f:
            json.dump([dict(id=r["id"], **answer) for r, answer in zip(requests, answers)], f, ensure_ascii=False)
        os.replace(a.out + ".new", a.out)
    except (OSError, ValueError, KeyError) as e:
        sys.exit("make_reference.py: %s: %s" % (type(e).__name__, e))


if __name__ == "__main__":
    main()
