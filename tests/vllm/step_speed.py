#!/usr/bin/env python3
"""How fast a step of the backend is: 16 layers of 32 query heads over 8 kv heads, bf16, requests that decode over one
prompt and 32 to 128 tokens of their own.

    .venv-vllm/bin/python tests/vllm/step_speed.py [--packed]

prints, for head size 64, 32 requests and a prompt of 4,096 tokens, the time of a step with the prompt packed and in
vLLM's pages, with the plugin's plain path, and with PyTorch's scaled_dot_product_attention for each request over dense
copies; what the builder takes a step; and what Python takes a layer: a call of the backend less the same two calls of
the library with their arguments ready. --packed: packed against pages for more shapes, and the longest step while the
prompt was packed.

Variants take turns; medians.
"""
import argparse
import os
import statistics
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]
from plugin_tree import environment, make_metadata  # noqa: E402

folder = tempfile.mkdtemp()
os.environ.update({**environment(folder), "RELAY_VLLM_LOG_INTERVAL": "3600", "VLLM_LOGGING_LEVEL": "ERROR"})
sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
make_metadata(folder)

import torch  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402
import test_backend  # noqa: E402
from relay_attention_port.vllm import packed as packed_module  # noqa: E402
from test_backend import BLOCK, Step, impl_of  # noqa: E402

LAYERS, HEADS, KV_HEADS = 16, 32, 8


def timed(function):
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def taking_turns(variants, rounds):
    """{name: times} of functions, each once a round, the order turned about."""
    found, names = {name: [] for name in variants}, list(variants)
    for _ in range(rounds):
        for name in names:
            found[name].append(timed(variants[name]))
        names.reverse()
    return found


def ratio(times, over, under):
    return statistics.median(a / b for a, b in zip(times[over], times[under]))


def median_of(function, times=200):
    return statistics.median(timed(function) for _ in range(times))


class Decode:
    """A step of the backend; its layers' caches may be another one's."""

    def __init__(self, size, batch, prompt, caches=None, **settings):
        requests = [(prompt + 32 + 3 * i, 1, range(prompt // BLOCK)) for i in range(batch)]
        test_backend.POOL = prompt // BLOCK + 10 * batch
        self.step = Step(requests, HEADS, KV_HEADS, size, **settings)
        self.impls = [impl_of(HEADS, KV_HEADS, size) for _ in range(LAYERS)]
        self.caches = caches or [self.step.kv_cache.clone() for _ in range(LAYERS)]

    def run(self):
        step, metadata = self.step, self.step.build()
        for impl, cache in zip(self.impls, self.caches):
            impl.forward(None, step.query, step.key, step.value, cache, metadata, step.output)

    def build(self):
        self.step.build()
        self.impls[0]._bound.plan.now()

    def settle(self):
        """Until the prompt is packed, where it is to be; `longest` is the longest step meanwhile, the first ones aside."""
        times = [timed(self.run) for _ in range(packed_module.AFTER_STEPS + LAYERS + 3)]
        self.longest = max(times[3:])
        copies = self.step.builder.planner.packed
        assert copies is None or copies.holds_any()
        return self


def per_request(decode, batch, size):
    """Dense K/V of each request, made before the clock runs, and a group's heads as rows of one product: kinder to
    PyTorch than a paged cache and enable_gqa are."""
    step = decode.step
    dense = [[tuple(pool[ids].flatten(0, 1)[:n].transpose(0, 1).unsqueeze(0).contiguous() for pool in cache)
              for ids, n in zip(step.ids, step.lens)] for cache in decode.caches[:2]]
    query = step.query[:batch].reshape(batch, KV_HEADS, HEADS // KV_HEADS, size)

    def layers():
        for layer in range(LAYERS):
            for r, (keys, values) in enumerate(dense[layer % 2]):
                scaled_dot_product_attention(query[r:r + 1], keys, values)
    return layers


def main_table(size=64, batch=32, prompt=4096):
    packed = Decode(size, batch, prompt).settle()
    others = {"in pages": dict(packed_gib=0), "plain": dict(strategy="plain")}
    decodes = {name: Decode(size, batch, prompt, packed.caches, **settings).settle() for name, settings in others.items()}
    decodes["packed"] = packed
    variants = {name: decode.run for name, decode in decodes.items()}
    variants["PyTorch"] = per_request(packed, batch, size)
    times = taking_turns(variants, 7)
    print(f"step of {LAYERS} layers, {HEADS}/{KV_HEADS} heads of {size}, {batch} requests over {prompt} tokens:")
    for name in ("packed", "in pages", "plain", "PyTorch"):
        print(f"  {name:9} {statistics.median(times[name]) * 1e3:7.2f} ms, {ratio(times, name, 'packed'):5.2f} x packed")
    for name in ("packed", "in pages", "plain"):
        print(f"builder and plan, a step, {name}: {median_of(decodes[name].build) * 1e6:.0f} us")


def python_overhead(requests, heads, kv_heads, what):
    step = Step(requests, heads, kv_heads, 64)
    impl, metadata = impl_of(heads, kv_heads, 64), step.build()

    def forward():
        impl.forward(None, step.query, step.key, step.value, step.kv_cache, metadata, step.output)
    forward()
    bound, plan = impl._bound, impl._bound.plan.now()
    write, run = bound._lib.c.relay_cache_write, bound._lib.c.relay_run
    device = bound._device.pointer

    def ready():
        write(device, bound._write_pointer)
        run(plan.pointer, bound._run_pointer)
    def repeated(function):
        return lambda: [function() for _ in range(50)]
    times = taking_turns({"forward": repeated(forward), "ready": repeated(ready)}, 41)
    ours, theirs = (statistics.median(times[name]) / 50 * 1e6 for name in ("forward", "ready"))
    between = statistics.median(a - b for a, b in zip(times["forward"], times["ready"])) / 50 * 1e6
    print(f"a layer of {what}: {ours:.1f} us, the library {theirs:.1f} us, Python {between:.1f} us")


def packed_table():
    for size in (64, 128):
        for batch in (2, 8, 32):
            for prompt in (1024, 4096):
                packed = Decode(size, batch, prompt).settle()
                pages = Decode(size, batch, prompt, packed.caches, packed_gib=0).settle()
                times = taking_turns({"packed": packed.run, "pages": pages.run}, 9)
                print(f"heads of {size}, {batch} requests over {prompt} tokens: pages "
                      f"{statistics.median(times['pages']) * 1e3:.2f} ms, packed "
                      f"{statistics.median(times['packed']) * 1e3:.2f} ms: {ratio(times, 'pages', 'packed'):.2f} x, "
                      f"longest while packing {packed.longest * 1e3:.1f} ms", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--packed", action="store_true", help="packed against pages for more shapes")
    arguments = parser.parse_args()
    if arguments.packed:
        packed_table()
    else:
        main_table()
        python_overhead([(17, 1, [])], 4, 2, "next to nothing")
        python_overhead([(17 + i, 1, []) for i in range(8)], 8, 2, "8 short requests")
