#!/usr/bin/env python3
"""How fast a step of the backend is: 16 layers, 32 query heads over 8 kv heads of 64, bf16, 32 requests that decode
over one prompt of 4,096 tokens and 32 to 128 tokens of their own.

    .venv-vllm/bin/python tests/vllm/step_speed.py

prints the time of a step with the relay, with the plugin's plain path, and with PyTorch's
scaled_dot_product_attention for each request over dense copies; what the builder takes a step; and what a layer takes
when there is next to nothing to compute. Best of several.
"""
import os
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
from test_backend import BLOCK, Step, impl_of  # noqa: E402

LAYERS, HEADS, KV_HEADS, SIZE, BATCH, PROMPT = 16, 32, 8, 64, 32, 4096


def best(function, times=7):
    found = []
    for _ in range(times):
        began = time.perf_counter()
        function()
        found.append(time.perf_counter() - began)
    return min(found)


def decode(strategy):
    requests = [(PROMPT + 32 + 3 * i, 1, range(PROMPT // BLOCK)) for i in range(BATCH)]
    step = Step(requests, HEADS, KV_HEADS, SIZE, strategy=strategy)
    impls = [impl_of(HEADS, KV_HEADS, SIZE) for _ in range(LAYERS)]
    caches = [step.kv_cache.clone() for _ in range(LAYERS)]

    def layers():
        metadata = step.build()
        for impl, cache in zip(impls, caches):
            impl.forward(None, step.query, step.key, step.value, cache, metadata, step.output)

    def building():
        step.build().planner.plan(impls[0]._kind(torch.bfloat16))
    return step, caches, best(layers), best(building, 50)


def per_request(step, caches):
    """Dense K/V of each request, made before the clock runs, and a group's heads as rows of one product: kinder to
    PyTorch than a paged cache and enable_gqa are."""
    dense = [[tuple(pool[ids].flatten(0, 1)[:n].transpose(0, 1).unsqueeze(0).contiguous() for pool in cache)
              for ids, n in zip(step.ids, step.lens)] for cache in caches[:2]]
    query = step.query[:BATCH].reshape(BATCH, KV_HEADS, HEADS // KV_HEADS, SIZE)

    def layers():
        for layer in range(LAYERS):
            for r, (keys, values) in enumerate(dense[layer % 2]):
                scaled_dot_product_attention(query[r:r + 1], keys, values)
    return best(layers, 3)


def trivial_layer():
    step = Step([(17, 1, [])], 4, 2, 64)
    impl, metadata = impl_of(4, 2, 64), step.build()
    call = lambda: impl.forward(None, step.query, step.key, step.value, step.kv_cache, metadata, step.output)
    call()
    return best(lambda: [call() for _ in range(100)], 20) / 100


if __name__ == "__main__":
    test_backend.POOL = 600
    step, caches, relay, building = decode("auto")
    _, _, plain, building_plain = decode("plain")
    torch_time = per_request(step, caches)
    print(f"step of {LAYERS} layers: relay {relay * 1e3:.2f} ms, plain {plain * 1e3:.2f} ms, PyTorch "
          f"{torch_time * 1e3:.1f} ms ({torch_time / relay:.1f}x the relay)")
    print(f"builder and plan, a step: {building * 1e6:.0f} us with the relay, {building_plain * 1e6:.0f} us plain")
    print(f"a layer of next to nothing: {trivial_layer() * 1e6:.1f} us")
