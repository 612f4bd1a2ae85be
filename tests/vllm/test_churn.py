"""Requests that come and go against a pool that is too small: preemption, aborts, eviction of cached prefixes, block ids
that are used again. Every answer has to be the plain one, and the process must not grow.

Answers are compared whole. They can be, because rounding decides none: each token of the chain model stands more than
5 above the next, where bf16 rounds by 0.125, and churn.py checks that as it computes the plain answers.

PyTorch keeps up to 1,024 primitives of oneDNN and as many of its own for every thread, one for each number of rows of a
product: in traffic of this kind some 150 MiB, whichever backend runs. They are left out here, or a process of any
length would seem to grow."""
import json
import os
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
WITHOUT_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1", "LRU_CACHE_CAPACITY": "1"}
ALLOWED = 2048  # bytes a request that the process may grow by
LEAK = 10240    # bytes a request that must be seen


def churn(**options):
    line = [sys.executable, os.path.join(HERE, "churn.py")]
    for name, value in options.items():
        line += ["--" + name.replace("_", "-"), str(value)]
    path = os.pathsep.join([os.environ["PYTHONPATH"], os.path.dirname(HERE)])
    done = subprocess.run(line, capture_output=True, text=True, timeout=3000, cwd=HERE,
                          env={**os.environ, **WITHOUT_CACHES, "PYTHONPATH": path, "VLLM_LOGGING_LEVEL": "ERROR"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("warm_up, requests, leak", [
    pytest.param(400, 400, 100, id="900"), pytest.param(1000, 3500, 500, id="5000", marks=pytest.mark.long)])
def test_churn(warm_up, requests, leak):
    did = churn(warm_up=warm_up, requests=requests, leak=leak, bytes=LEAK)
    print(did)
    total = warm_up + requests + leak
    assert did["right"] + did["aborted"] == did["begun"] == total
    assert did["right_after_preemption"] > total // 20 and did["preempted"] > total // 10
    assert did["aborted"] > total // 50
    for stage in ("waiting", "reading", "answering", "preempted"):
        assert did[f"aborted_{stage}"] > total // 500
    assert did["blocks_evicted"] > 2 * total and did["blocks_handed_out_again"] > 2 * total
    assert did["fewest_uses_of_a_block"] > total // 200
    assert did["relayed_steps"] > total // 2 and did["groups"] > 2 * did["relayed_steps"]  # several prompts in a step
    assert did["blocks_not_given_back"] == 0
    assert did["packed_prefixes"] > total // 200 and did["packed_steps"] > total // 20 and did["forgotten"] > total // 200
    warm, flat, leaking = did["memory"]
    assert flat - warm < ALLOWED * requests, f"grew from {warm} to {flat} bytes in {requests} requests"
    assert leaking - flat > ALLOWED * leak, "a leak would not be seen"
