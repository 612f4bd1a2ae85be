"""Compares what the plan decides about sharing on the Hopper kernel with what was measured.

    python3 bench/fit_cuda.py bench/results/h200/sharing.jsonl

The input is of `relay bench attention --device cuda --json --always`: sharing, also where it does not pay, beside plain
attention. What sharing saves is (requests - 1) * prompt tokens * kv heads; it has to exceed a sum that src/plan_cuda.c,
weigh_sharing(), makes of the same numbers as least() here, with the constants that stand there. Prints where the decision costs time, and how much: sharing
that is slower than plain attention, and sharing left out that would be faster.
"""

import json
import pathlib
import re
import sys

PLAN = (pathlib.Path(__file__).parent.parent / "src" / "plan_cuda.c").read_text()
NOISE, LOST = 1.02, 0.88


def constant(name):
    return float(re.search(rf"#define {name} ([0-9.]+)", PLAN).group(1))


def least(heads, kv_heads, batch, user):
    own = min(batch * user * kv_heads, constant("MOST_OWN"))
    per_own = constant("SAVING_PER_OWN_ALONE" if heads == kv_heads else "SAVING_PER_OWN")
    return constant("MIN_SAVING_HOPPER") + constant("SAVING_PER_ROW") * batch * heads + own * per_own


def main():
    points = [json.loads(line) for line in pathlib.Path(sys.argv[1]).read_text().splitlines()]
    shared = slower = lost = 0
    for p in points:
        if p["method"] != "gd" or not p["relay_used"]:
            continue
        heads, kv_heads = (int(n) for n in p["heads"].split("/"))
        saved = (p["batch"] // p["groups"] - 1) * p["system"] * kv_heads * p["groups"]
        decided, ratio = saved >= least(heads, kv_heads, p["batch"], p["user"]), p["relay_us"] / p["plain_us"]
        shared += decided
        slower += decided and ratio > NOISE
        lost += not decided and ratio < LOST
        if (decided and ratio > NOISE) or (not decided and ratio < LOST):
            print(f'{"shared" if decided else "plain "} {saved:7d} relay / plain {ratio:.2f}  '
                  f'{p["heads"]} B{p["batch"]} S{p["system"]} U{p["user"]}')
    print(f"{shared} of {len(points)} shared; {slower} of them slower than plain attention by more than "
          f"{NOISE - 1:.0%}; {lost} left out that would be {1 - LOST:.0%} faster or more")


main()
