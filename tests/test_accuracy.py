"""The models of models/lookup and models/constructed answer from handbooks that they have not seen, and every answer is
right: with the relay and without it, in any batch, in any number format.  One wrong answer is a bug."""
import json
import os
import struct

import pytest

from serving import LOOKUP, Mixed, Run, constructed, constructed_handbook, handbook, tokens_of

np = pytest.importorskip("numpy")

MODELS = ["trained", "8/2/128", "4/1/256", "16/2/64", "8/4/96"]
F32 = ("--compute", "f32", "--kv-dtype", "f32")
BF16 = ("--compute", "bf16", "--kv-dtype", "bf16")
FORMATS = {"f32": F32, "bf16": BF16, "f32 with bf16 K/V": ("--compute", "f32", "--kv-dtype", "bf16"),
           "bf16 with f32 K/V": ("--compute", "bf16", "--kv-dtype", "f32"), "f16 K/V": ("--kv-dtype", "f16")}
BATCHES = {40: (1, 7, 32), 200: (7, 32), 1000: (32,)}
WAYS = ("relay", "plain")


class Model:
    def __init__(self, name, tmp):
        self.name, self.tmp = name, tmp
        self.path = LOOKUP if name == "trained" else str(constructed(tmp / "model", name))

    def book(self, name, entries, requests, seed):
        out = self.tmp / name
        if self.name == "trained":
            return handbook(out, entries, requests, seed)
        return constructed_handbook(self.path, out, entries, requests, seed)


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    return Model(request.param, tmp_path_factory.mktemp("model"))



def right_both_ways(tmp, model, system, requests, batch, options):
    texts = []
    for way in WAYS:
        run = Run(tmp, requests, "--attention", way, "--batch", batch, *options, systems=[system], model=model, name=way).good()
        assert run.stats["system_tokens_computed"] == tokens_of(system)
        assert (run.stats["relay_steps"] > 0) == (way == "relay" and batch > 1)
        os.remove(run.out)
        texts.append(run.texts())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("entries", [40, 200, 1000])
def test_every_answer_is_right(tmp_path, model, entries):
    system, requests = model.book(f"book{entries}", entries, 32, 100 + entries)
    formats = {name: o for name, o in FORMATS.items() if entries == 200 or name in ("f32", "bf16")}
    for options in formats.values():
        for batch in BATCHES[entries]:
            right_both_ways(tmp_path, model.path, system, requests, batch, options)
    print(f"{model.name}, {entries} entries, {tokens_of(system)} tokens: {len(requests)} of {len(requests)} right, relay and "
          f"plain, each in {', '.join(formats)}, batches {BATCHES[entries]}")


def widen_weights(source, out):
    """The same checkpoint with its bf16 weights as f32."""
    out.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        with open(os.path.join(source, name)) as f:
            text = f.read()
        (out / name).write_text(text.replace('"bfloat16"', '"float32"'))
    with open(os.path.join(source, "model.safetensors"), "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        data = f.read()
    for entry in header.values():
        if "data_offsets" in entry:
            assert entry["dtype"] == "BF16"
            entry.update(dtype="F32", data_offsets=[2 * at for at in entry["data_offsets"]])
    text = json.dumps(header).encode()
    wide = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).tobytes()
    (out / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + wide)
    return out


def test_weights_as_f32(tmp_path, model):
    system, requests = model.book("f32 weights", 200, 32, 7)
    wide = widen_weights(model.path, tmp_path / "wide")
    for options in ((), BF16):
        right_both_ways(tmp_path, wide, system, requests, 32, options)


@pytest.fixture(scope="module")
def mixed(model):
    return Mixed(model.tmp, model.book)


@pytest.mark.parametrize("format", ["f32", "bf16"])
def test_mixed_prompts(tmp_path, model, mixed, format):
    """Two prompts, a nested one and none, in one batch: the same text with relay and plain, whatever the batch."""
    requests, texts = mixed.requests(), []
    for batch in (1, 7, 32):
        for way in WAYS:
            run = Run(tmp_path, requests, "--attention", way, "--batch", batch, "--max-tokens", 16, *FORMATS[format],
                      systems=mixed.systems(), model=model.path, name=f"{way}{batch}").good()
            assert run.stats["system_tokens_computed"] == mixed.computed
            assert run.stats["most_requests_at_once"] == min(batch, len(requests))
            mixed.check_shared(run)
            texts.append(run.texts())
        assert texts[-1] == texts[-2], batch
    # A request without a prompt has no right answer, and bf16 rounds differently in another batch.
    known = [{i: t for i, t in text.items() if format == "f32" or "none" not in i} for text in texts]
    assert all(k == known[0] for k in known)
    print(f"{model.name}, {format}: {len(requests)} requests over 3 prompts and none, the same texts in 6 runs")


def test_mixed_prompts_are_computed_once_ever(tmp_path, model, mixed):
    cache, requests = tmp_path / "cache", mixed.requests(without=0)
    runs = [Run(tmp_path, requests, "--cache-dir", cache, systems=mixed.systems(), model=model.path, name=f"run{i}").good()
            for i in range(2)]
    assert [run.stats["system_tokens_computed"] for run in runs] == [mixed.computed, 0]
    assert runs[0].texts() == runs[1].texts()
