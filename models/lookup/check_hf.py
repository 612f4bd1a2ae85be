#!/usr/bin/env python3
"""Check the checkpoint with Hugging Face transformers: greedy generate() on generate.py's text.

    check_hf.py [DIR] [--device cpu|cuda] [--seeds N] [--requests N]

Prints, in bf16 and in float32, how many replies were exact with the handbook and without it.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

# PyTorch 2.7's oneDNN stops with an illegal instruction in its AMX kernels on some virtual machines.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
SETTINGS = ("--entries 1000", "--entries 64", "--entries 64 --bos", "--entries 256 --greet", "--entries 512",
            "--entries 1000 --bos --absent 8", "--entries 512 --style pairs", "--entries 512 --style prose --greet")


def make(options, seed, requests):
    """-> handbook, requests"""
    with tempfile.TemporaryDirectory() as d:
        subprocess.check_call([sys.executable, os.path.join(HERE, "generate.py"), "--seed", str(seed),
                               "--requests", str(requests), "--out", d] + options.split())
        with open(os.path.join(d, "system.txt")) as system, open(os.path.join(d, "requests.jsonl")) as lines:
            return system.read().strip(), [json.loads(line) for line in lines]


def reply(net, tok, prompt):
    ids = tok(prompt, return_tensors="pt").input_ids.to(net.device)
    assert tok.unk_token_id not in ids[0].tolist(), "a word of the prompt is not in the vocabulary"
    out = net.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    return tok.decode(out[0, ids.shape[1]:])


def check(net, tok, options, seeds, requests):
    good = total = alone = 0
    for seed in range(101, 101 + seeds):
        system, lines = make(options, seed, requests)
        for r in lines:
            want = r["expected"] + " </s>"
            good += reply(net, tok, system + " " + r["text"]) == want
            alone += reply(net, tok, r["text"]) == want and "unknown" not in want
            total += 1
    print("  %-40s tokens %5d  exact %d/%d   without the handbook %d/%d" %
          (options, len(tok(system).input_ids), good, total, alone, total), flush=True)
    return good == total and alone == 0


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dir", nargs="?", default=HERE)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--requests", type=int, default=16)
    a = p.parse_args()
    tok, ok = AutoTokenizer.from_pretrained(a.dir), True
    for dtype in (torch.bfloat16, torch.float32):
        net = AutoModelForCausalLM.from_pretrained(a.dir, torch_dtype=dtype).to(a.device).eval()
        print(type(net).__name__, dtype, flush=True)
        for options in SETTINGS:
            ok = check(net, tok, options, a.seeds, a.requests) and ok
    sys.exit(0 if ok else "check_hf.py: not every reply was right")


if __name__ == "__main__":
    main()
