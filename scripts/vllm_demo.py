#!/usr/bin/env python3
"""Serve models/lookup by vLLM's OpenAI server with the plugin, ask it 64 questions at once, and show what the relay did.

    .venv-vllm/bin/python scripts/vllm_demo.py [--entries 1000] [--requests 64]

`make vllm-demo` installs what is needed first. The server runs twice, with the relay and with the plugin's plain
attention; files and logs are left in demo/vllm/.
"""
import argparse
import asyncio
import json
import os
import subprocess
import sys
import time

from vllm_server import Server, environment

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODEL = os.path.join(ROOT, "models", "lookup")
OUT = os.path.join(ROOT, "demo", "vllm")
LONG_ANSWER = 64  # tokens, where speed is read
ARGUMENTS = [MODEL, "--served-model-name", "lookup", "--max-model-len", "5120", "--max-num-seqs", "64",
             "--generation-config", "vllm"]  # the model's own ends every answer after 4 tokens


async def ask(port, prompts, **options):
    from openai import AsyncOpenAI
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=600) as client:
        return await asyncio.gather(*(client.completions.create(model="lookup", prompt=prompt, temperature=0, **options)
                                      for prompt in prompts))


def serve(name, plain, prompts, expected):
    print(f"\n{name}:")
    with Server(os.path.join(OUT, f"{name}.log"), environment(plain), ARGUMENTS) as server:
        server.wait()
        answers = [a.choices[0].text.strip() for a in asyncio.run(ask(server.port, prompts, max_tokens=8))]
        began = time.monotonic()
        long = asyncio.run(ask(server.port, prompts, max_tokens=LONG_ANSWER, extra_body={"ignore_eos": True}))
        seconds = time.monotonic() - began
        time.sleep(0.5)  # the last line with counters
        asyncio.run(ask(server.port, prompts[:1], max_tokens=2))
        counters = server.counters()
    tokens = sum(a.usage.completion_tokens for a in long)
    return {"answers": answers, "right": sum(map(str.__eq__, answers, expected)), "tokens_per_second": tokens / seconds,
            "counters": counters, "code": server.code}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=64)
    given = parser.parse_args()
    os.makedirs(OUT, exist_ok=True)
    subprocess.run([sys.executable, os.path.join(MODEL, "generate.py"), "--seed", "2024", "--entries", str(given.entries),
                    "--requests", str(given.requests), "--out", OUT], check=True)
    with open(os.path.join(OUT, "system.txt")) as f:
        handbook = f.read().rstrip("\n")
    with open(os.path.join(OUT, "requests.jsonl")) as f:
        requests = [json.loads(line) for line in f]
    prompts = [f"{handbook} {request['text']}" for request in requests]
    expected = [request["expected"] for request in requests]
    results = {name: serve(name, plain, prompts, expected) for name, plain in (("relay", False), ("plain", True))}
    print(f"\nFour of {len(requests)} requests, all of which begin with a handbook of {len(handbook.split()):,} tokens:")
    for request, answer in list(zip(requests, results["relay"]["answers"]))[:4]:
        print(f"  {request['text']}  ->  {answer}   (the handbook says {request['expected']})")
    print(f"\n{'':6} {'right':>8} {'tokens/s':>9} {'relayed steps':>14} {'groups':>7} {'K/V tokens not read again':>26}")
    for name, result in results.items():
        relayed, steps, groups, saved = result["counters"]
        print(f"{name:6} {result['right']:>5}/{len(requests)} {result['tokens_per_second']:>9.0f} {relayed:>6} of {steps:>4} "
              f"{groups:>7} {saved:>26,}")
    print(f"tokens/s: {LONG_ANSWER} tokens for each of {len(requests)} requests at once, the handbook in vLLM's prefix cache")
    with open(os.path.join(OUT, "results.json"), "w") as out:
        json.dump(results, out, indent=1)
    good = (all(r["right"] == len(requests) and r["code"] == 0 for r in results.values())
            and results["relay"]["counters"][0] > 0 == results["plain"]["counters"][0])
    sys.exit(0 if good else "vllm_demo: a wrong answer, a relay that did not act, or a server that did not end well")


if __name__ == "__main__":
    main()
