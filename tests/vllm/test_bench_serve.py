"""vLLM's own benchmark against its own server with the plugin: nothing fails, and what the relay did is seen."""
import json
import os
import re
import subprocess
import sys
import urllib.request

import pytest
from serving import LOOKUP, ROOT

REQUESTS, PREFIX = 16, 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    sys.path.insert(0, os.path.join(ROOT, "scripts"))
    from vllm_server import Server, environment
    folder = tmp_path_factory.mktemp("server")
    metrics = folder / "metrics"
    metrics.mkdir()
    env = environment(False) | {"PROMETHEUS_MULTIPROC_DIR": str(metrics), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with Server(folder / "log", env, [LOOKUP, "--served-model-name", "lookup", "--max-model-len", "2048",
                                      "--max-num-batched-tokens", "2048", "--generation-config", "vllm"]) as running:
        running.wait()
        yield running
    assert running.code == 0


@pytest.mark.long
def test_bench_serve(server, tmp_path):
    # 0.9.1 cuts prefix and rest together to the input length: 1,000 tokens are shared, 100 are a request's own
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--base-url",
               f"http://127.0.0.1:{server.port}", "--endpoint", "/v1/completions", "--model", LOOKUP,
               "--served-model-name", "lookup", "--dataset-name", "random", "--random-prefix-len", PREFIX,
               "--random-input-len", PREFIX + 100, "--random-output-len", "8", "--num-prompts", REQUESTS,
               "--ignore-eos", "--save-result", "--result-dir", tmp_path, "--result-filename", "result.json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["completed"] == REQUESTS and result["total_output_tokens"] == REQUESTS * 8

    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    series = dict(re.findall(r'^relay_attention_(\w+)\{worker="EngineCore_0"\} ([\d.e+]+)$', page, re.M))
    assert float(series["relayed_steps_total"]) > 0
    assert float(series["tokens_saved_total"]) > (PREFIX - 100) * REQUESTS
    assert "vllm:generation_tokens_total" in page  # vLLM's own are still there
    with open(server.log_path) as log:
        lines = re.findall(r"^INFO \S+ \S+ \[counters.py:\d+\] RelayAttention: (\d+) of \d+ steps relayed", log.read(), re.M)
    assert int(lines[-1]) == float(series["relayed_steps_total"])
