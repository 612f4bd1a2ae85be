"""The models of models/ and the references that the engine's tests compare with."""
import json
import os
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import make_tiny_models
from make_reference import Reference

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOOKUP = os.path.join(ROOT, "models", "lookup")
CONSTRUCTED = os.path.join(ROOT, "models", "constructed")
GEMMA = os.path.join(ROOT, "models", "gemma")
END = 2  # </s> of the lookup models


def script(path, *arguments):
    return subprocess.run([sys.executable, path, *map(str, arguments)], capture_output=True, text=True)


def handbook(folder, out, *arguments):
    """-> system text, requests"""
    done = script(os.path.join(folder, "generate.py"), "--out", out, *arguments)
    assert done.returncode == 0, done.stderr
    with open(out / "requests.jsonl") as lines:
        return (out / "system.txt").read_text(), [json.loads(line) for line in lines]


def right(reference, system, requests):
    answers = reference.greedy(system, [r["text"] for r in requests], tokens=4)
    return sum(a["text"] == r["expected"] and a["tokens"][-1] == END for a, r in zip(answers, requests))


# ------------------------------------------------------------------ generate.py
def test_lookup_generate_is_deterministic(tmp_path):
    first = handbook(LOOKUP, tmp_path / "a", "--seed", 7, "--entries", 40, "--requests", 16)
    assert handbook(LOOKUP, tmp_path / "b", "--seed", 7, "--entries", 40, "--requests", 16) == first
    assert handbook(LOOKUP, tmp_path / "c", "--seed", 8, "--entries", 40, "--requests", 16) != first
    assert sorted(os.listdir(tmp_path / "a")) == ["requests.jsonl", "system.txt"]


@pytest.mark.parametrize("style", ["list", "prose", "pairs"])
def test_lookup_generate_expects_what_the_handbook_says(tmp_path, style):
    system, requests = handbook(LOOKUP, tmp_path, "--entries", 100, "--requests", 50, "--absent", 5, "--style", style)
    assert len(requests) == 50 and len({r["id"] for r in requests}) == 50
    absent = [r for r in requests if r["expected"] == "unknown ."]
    assert len(absent) == 5
    for r in requests:
        kind, key = r["text"].split()[3], r["text"].split()[5]
        entry = "%s : " % key if style == "list" else "the %s of %s is " % (kind, key)
        found = system.split(entry)[1].split()[0] if entry in system else "unknown"
        assert r["expected"] == found + " ."


@pytest.mark.parametrize("arguments, message", [
    (["--entries", 3], "--entries must be 4 to 1024, got 3"),
    (["--entries", 1025], "--entries must be 4 to 1024, got 1025"),
    (["--entries", "many"], "invalid int value: 'many'"),
    (["--requests", 0], "--requests must be 1 or more, got 0"),
    (["--requests", 4, "--absent", 5], "--absent must be 0 to the number of requests (4), got 5"),
    (["--style", "pairs", "--entries", 5], "--entries must be even with --style pairs, got 5"),
    (["--tokenizer", "/nowhere/tokenizer.json"], "cannot read the keys from /nowhere/tokenizer.json"),
])
def test_lookup_generate_refuses(tmp_path, arguments, message):
    done = script(os.path.join(LOOKUP, "generate.py"), "--out", tmp_path / "out", *arguments)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder, more", [(LOOKUP, []), (CONSTRUCTED, ["--model", LOOKUP])])
def test_generate_names_what_it_cannot_write(tmp_path, folder, more):
    (tmp_path / "file").write_text("")
    done = script(os.path.join(folder, "generate.py"), "--out", tmp_path / "file" / "out", *more)
    assert done.returncode != 0 and "cannot write to" in done.stderr and "Traceback" not in done.stderr


# --------------------------------------------------------------- lookup models
@pytest.fixture(scope="module")
def lookup():
    return Reference(LOOKUP)


@pytest.mark.parametrize("entries", [40, 200, 1000])
def test_lookup_answers_from_the_handbook(tmp_path, lookup, entries):
    system, requests = handbook(LOOKUP, tmp_path, "--seed", entries, "--entries", entries, "--requests", 16)
    assert right(lookup, system, requests) == 16


def test_lookup_answers_nothing_without_the_handbook(tmp_path, lookup):
    _, requests = handbook(LOOKUP, tmp_path, "--entries", 40, "--requests", 16)
    assert right(lookup, "", requests) == 0


def test_lookup_says_unknown_for_an_absent_key(tmp_path, lookup):
    system, requests = handbook(LOOKUP, tmp_path, "--entries", 40, "--requests", 16, "--absent", 16)
    assert right(lookup, system, requests) == 16


@pytest.mark.parametrize("heads, kv_heads, head_dim", [(8, 2, 128), (4, 1, 256), (16, 2, 64), (8, 4, 96)])
def test_constructed_answers_from_the_handbook(tmp_path, heads, kv_heads, head_dim):
    model = tmp_path / "model"
    done = script(os.path.join(CONSTRUCTED, "build.py"), "--out", model, "--heads", heads, "--kv-heads", kv_heads,
                  "--head-dim", head_dim)
    assert done.returncode == 0, done.stderr
    reference = Reference(model)
    system, requests = handbook(CONSTRUCTED, tmp_path / "data", "--model", model, "--entries", 60, "--requests", 16)
    assert right(reference, system, requests) == 16
    assert right(reference, "", requests) == 0


def test_constructed_refuses_a_shape_it_cannot_fill(tmp_path):
    for arguments, message in ((["--heads", 4, "--kv-heads", 4], "--heads must be a multiple of --kv-heads"),
                               (["--head-dim", 32], "--head-dim must be even and 64 or more"),
                               (["--keys", 0], "--keys must be 1 to 4000")):
        done = script(os.path.join(CONSTRUCTED, "build.py"), "--out", tmp_path / "m", *arguments)
        assert done.returncode != 0 and message in done.stderr
    assert not (tmp_path / "m").exists()


# ------------------------------------------------------------------ references
@pytest.mark.parametrize("family", list(make_tiny_models.FAMILIES))
def test_reference_is_what_transformers_generates(tmp_path, family):
    """Shared prefix, left padding and batches against plain generate(), one prompt at a time."""
    answers = make_tiny_models.build(family, str(tmp_path))
    reference = Reference(str(tmp_path))
    reference.model.config._attn_implementation = "sdpa"
    system, texts = make_tiny_models.prompts()
    for text, answer in zip(texts, answers):
        ids = torch.tensor([reference.encode(system + text)])
        out = reference.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False)
        assert out[0, ids.shape[1]:].tolist() == answer["tokens"]
        assert answer["prompt_tokens"] == ids.shape[1] and len(answer["gaps"]) == len(answer["tokens"])
    assert len({t for a in answers for t in a["tokens"]}) > 40, "answers do not vary: they would hide errors"


# ----------------------------------------------------------------------- Gemma
def test_gemma_requests_are_well_formed():
    with open(os.path.join(GEMMA, "requests.jsonl")) as f:
        requests = [json.loads(line) for line in f]
    assert [r["id"] for r in requests] == list(range(64))
    assert all(r["text"].startswith("Question: ") and r["text"].endswith("?\nAnswer:") for r in requests)


@pytest.fixture(scope="module")
def gemma():
    path = os.path.join(GEMMA, "checkpoint")
    if not os.path.exists(os.path.join(path, "SOURCE")):
        pytest.skip("no models/gemma/checkpoint: run models/gemma/fetch")
    return Reference(path)


def test_gemma_is_a_sane_model(gemma):
    answers = gemma.greedy("", ["Water boils at a temperature of", "Question: What colour is the sky?\nAnswer:"], 8)
    assert answers[0]["text"].startswith(" 100 degrees")
    assert answers[1]["text"].startswith(" Blue")


def test_gemma_tokenizer_keeps_the_text(gemma):
    assert len(gemma.tokenizer) == gemma.model.config.vocab_size == 262144
    for text in ("Hello,  world!\n\n\tprice: 2,150 euros", "\u00fcber \u4f60\u597d \U0001f6b2 \u0928\u092e\u0938\u094d\u0924\u0947 \ue000", "<table>\u2581x" + 40 * " " + "y"):
        ids = gemma.encode(text)
        assert ids[0] == 2 and gemma.tokenizer.decode(ids[1:]).replace(" ", "\u2581") == text.replace(" ", "\u2581")
