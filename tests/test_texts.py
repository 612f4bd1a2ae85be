"""Whole texts: what `relay generate` answers is what `transformers` answers in float32, with the relay and without it,
in any batch, for every family."""
import json
import os

import pytest

from make_reference import Reference
from make_tiny_models import FAMILIES, build
from serving import LOOKUP, ROOT, Run, handbook
from transformers import AutoTokenizer

GEMMA = os.path.join(ROOT, "models", "gemma")
CHECKPOINT = os.path.join(GEMMA, "checkpoint")
TOKENS = 32
# Where the two best logits are closer than this, float32 sums in another order may choose the other token.
NEAR_F32 = 1e-4
NEAR_BF16 = 0.05
EXACT = ("--compute", "f32", "--kv-dtype", "f32")


def answer(tmp, model, system, texts, *options, name="run"):
    path = tmp / f"{name}.system.txt"
    path.write_text(system, encoding="utf-8")
    requests = [{"id": i, "text": text, "max_tokens": TOKENS} for i, text in enumerate(texts)]
    run = Run(tmp, requests, *options, "--template", "raw", systems=[path], model=model, name=name)
    assert run.code == 0, run.err
    return [run.answers[json.dumps(i)]["text"] for i in range(len(texts))]


def first_difference(reference, tokens_of, text):
    """Index of the first token of the reference whose text the other answer does not share."""
    for n in range(1, len(reference["tokens"]) + 1):
        if not text.startswith(tokens_of(reference["tokens"][:n])):
            return n - 1
    return len(reference["tokens"]) - 1


def compare(kind, reference, texts, decode, near):
    """Texts may part only at a token whose gap is under `near`; returns how many did."""
    parted = 0
    for i, (expected, text) in enumerate(zip(reference, texts)):
        if text == decode(expected["tokens"]):
            continue
        at = first_difference(expected, decode, text)
        gap = min(expected["gaps"][max(0, at - 1):at + 2])
        assert gap < near, f"{kind}: request {i} parts at token {at}, gap {gap}: {text!r}, not {decode(expected['tokens'])!r}"
        parted += 1
    print(f"{kind}: {len(texts) - parted} of {len(texts)} texts equal, {parted} part at a gap under {near}")
    return parted


def decoder(tokenizer):
    """Tokens as the text of an answer, which has no special tokens."""
    return lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.fixture(scope="module")
def lookup(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("lookup")
    path, requests = handbook(tmp, 200, 64, seed=5)
    system = open(path).read().rstrip("\n") + " "
    texts = [r["text"] for r in requests]
    reference = Reference(LOOKUP)
    return system, texts, reference, reference.greedy(system, texts, TOKENS)


@pytest.mark.parametrize("attention", ["relay", "plain"])
def test_lookup_equals_transformers(tmp_path, lookup, attention):
    system, texts, reference, expected = lookup
    got = answer(tmp_path, LOOKUP, system, texts, "--attention", attention, *EXACT)
    decode = decoder(reference.tokenizer)
    assert [g.strip() for g in got] == [decode(e["tokens"]).strip() for e in expected]


@pytest.fixture(scope="module")
def gemma():
    """64 questions about the handbook, answered by transformers; about a minute."""
    if not os.path.isdir(CHECKPOINT):
        pytest.skip("models/gemma/checkpoint is not there: models/gemma/fetch brings it")
    with open(os.path.join(GEMMA, "handbook.txt"), encoding="utf-8") as f:
        system = f.read()
    with open(os.path.join(GEMMA, "requests.jsonl"), encoding="utf-8") as f:
        texts = [json.loads(line)["text"] for line in f]
    reference = Reference(CHECKPOINT)
    return system, texts, reference, reference.greedy(system, texts, TOKENS)


@pytest.mark.parametrize("attention,batch", [("relay", 32), ("plain", 7)])
def test_gemma_equals_transformers(tmp_path, gemma, attention, batch):
    system, texts, reference, expected = gemma
    got = answer(tmp_path, CHECKPOINT, system, texts, "--attention", attention, "--batch", batch, *EXACT)
    compare(f"Gemma f32 {attention}", expected, got, decoder(reference.tokenizer), NEAR_F32)


def test_gemma_bf16_relay_and_plain(tmp_path, gemma):
    system, texts, reference, expected = gemma
    runs = {way: answer(tmp_path, CHECKPOINT, system, texts, "--attention", way, "--kv-dtype", "bf16", name=way)
            for way in ("relay", "plain")}
    parted = [i for i in range(len(texts)) if runs["relay"][i] != runs["plain"][i]]
    print(f"Gemma bf16: {len(texts) - len(parted)} of {len(texts)} texts equal with relay and plain")
    for i in parted:
        # as far as the two agree with the reference, its gaps tell how near the parting was
        at = min(first_difference(expected[i], decoder(reference.tokenizer), runs[way][i]) for way in runs)
        assert min(expected[i]["gaps"][:at + 2]) < NEAR_BF16, f"request {i}: {runs['relay'][i]!r}, {runs['plain'][i]!r}"


def nested_prompts(tmp, text):
    """Files of a prompt, one that goes on where it ends, and another; for requests of each and of none."""
    at = text.index(" ", len(text) // 2)
    texts = {"first": text[:at], "nested": text, "other": text[at:]}
    for name, content in texts.items():
        (tmp / f"{name}.txt").write_text(content, encoding="utf-8")
    return [f"{name}={tmp / name}.txt" for name in texts]


def mixed_runs_agree(tmp, model, text, asks, tokens):
    systems, names = nested_prompts(tmp, text), ["first", "nested", "other", None]
    requests = [{"id": i, "text": ask, "system": names[i % 4], "max_tokens": tokens} for i, ask in enumerate(asks)]
    runs = {}
    for batch in (1, 7, 32):
        for way in ("relay", "plain"):
            run = Run(tmp, requests, "--attention", way, "--batch", batch, "--template", "raw", "--cache-dir", tmp / "cache", *EXACT,
                      systems=systems, model=model, name=f"{way}{batch}")
            assert run.code == 0, run.err
            assert (run.stats["system_tokens_computed"] == 0) == (len(runs) > 0)
            runs[way, batch] = run.texts()
    first = runs["relay", 1]
    assert len(set(first.values())) > 4, "answers do not vary: they would hide errors"
    for which, texts in runs.items():
        assert texts == first, which


@pytest.mark.parametrize("name", FAMILIES)
def test_families_mixed_prompts(tmp_path, name):
    build(name, str(tmp_path / "model"))
    with open(tmp_path / "model" / "reference.json", encoding="utf-8") as f:
        reference = json.load(f)
    mixed_runs_agree(tmp_path, tmp_path / "model", reference["system"], (reference["texts"] * 8)[:32], TOKENS)


def test_gemma_mixed_prompts(tmp_path, gemma):
    system, texts, _, _ = gemma
    mixed_runs_agree(tmp_path, CHECKPOINT, system, texts[:16], 4)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_equal_transformers(tmp_path, name):
    """Random weights: relay and plain, and batches that mix prompts of all lengths."""
    build(name, str(tmp_path / "model"))
    with open(tmp_path / "model" / "reference.json", encoding="utf-8") as f:
        reference = json.load(f)
    decode = decoder(AutoTokenizer.from_pretrained(tmp_path / "model"))
    expected = [decode(a["tokens"]) for a in reference["answers"]]
    for attention, batch in (("relay", 32), ("plain", 32), ("relay", 1)):
        got = answer(tmp_path, tmp_path / "model", reference["system"], reference["texts"], "--attention", attention,
                     "--batch", batch, *EXACT, name=f"{attention}{batch}")
        assert got == expected, (attention, batch)
