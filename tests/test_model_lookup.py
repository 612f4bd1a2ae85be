"""The lookup models through the engine's forward pass with naive attention: every answer right, f32 and bf16.

Run through ctest, or: FORWARD_TOKENS=build/tests/forward_tokens pytest tests/test_model_lookup.py
"""
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("numpy")

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.environ.get("FORWARD_TOKENS", os.path.join(ROOT, "build", "tests", "forward_tokens"))
TRAINED = os.path.join(ROOT, "models", "lookup")
CONSTRUCTED = os.path.join(ROOT, "models", "constructed")
SHAPES = [(8, 2, 128), (4, 1, 256), (16, 2, 64), (8, 4, 96)]


def run(*command):
    subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True)


def requests(model, out, entries, count):
    makes = [os.path.join(TRAINED, "generate.py")]
    if model != TRAINED:
        makes = [os.path.join(CONSTRUCTED, "generate.py"), "--model", model]
    run(*makes, "--seed", 11 + entries, "--entries", entries, "--requests", count, "--out", out)
    with open(os.path.join(out, "system.txt")) as f:
        system = f.read()
    with open(os.path.join(out, "requests.jsonl")) as f:
        return [(system + " " + r["text"], r["expected"]) for r in map(json.loads, f)]


def check(model, out, entries, count, compute):
    with open(os.path.join(model, "tokenizer.json")) as f:
        vocab = json.load(f)["model"]["vocab"]
    for text, expected in requests(model, out, entries, count):
        ids = " ".join(str(vocab[word]) for word in text.split())
        reply = [vocab[word] for word in expected.split()] + [vocab["</s>"]]
        got = subprocess.run([PROGRAM, model, str(len(reply)), compute], input=ids, capture_output=True, text=True,
                             env={**os.environ, "OMP_WAIT_POLICY": "passive"})
        assert got.returncode == 0, got.stderr
        assert list(map(int, got.stdout.splitlines()[0].split())) == reply


@pytest.mark.parametrize("compute", ["f32", "bf16", "auto"])
@pytest.mark.parametrize("entries", [40, 200])
def test_trained(entries, compute, tmp_path):
    check(TRAINED, tmp_path, entries, 4, compute)


@pytest.mark.parametrize("compute", ["f32", "bf16"])
@pytest.mark.parametrize("heads, kv_heads, head_dim", SHAPES)
def test_constructed(heads, kv_heads, head_dim, compute, tmp_path):
    model = tmp_path / "model"
    run(os.path.join(CONSTRUCTED, "build.py"), "--out", model, "--heads", heads, "--kv-heads", kv_heads, "--head-dim",
        head_dim)
    check(str(model), tmp_path, 40, 2, compute)
