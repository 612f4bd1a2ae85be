"""Finds from a grid of `relay bench attention --device cuda --json` what sharing has to save to pay.

    python3 bench/fit_cuda.py bench/results/h200/grid.jsonl

A part of its own costs a segment a few microseconds, whatever its length; what it saves grows with the tokens
of one kv head that are not read again: (requests - 1) * tokens * kv heads.  Prints the shapes by that number,
and the least number from which on no shape was slower than plain attention: MIN_SAVING_HOPPER of src/plan_cuda.c.
"""

import json
import pathlib
import sys

NOISE = 1.02  # of two medians


def main():
    points = [json.loads(line) for line in pathlib.Path(sys.argv[1]).read_text().splitlines()]
    rows = []
    for p in points:
        if p["method"] == "gd" and p["relay_used"]:
            saved = (p["batch"] // p["groups"] - 1) * p["system"] * int(p["heads"].split("/")[1]) * p["groups"]
            rows.append((saved, p["relay_us"] / p["plain_us"], p))
    rows.sort(key=lambda row: row[0])
    least = 0
    for saved, ratio, p in rows:
        if ratio > NOISE:
            least = saved + 1
        if saved < 150000:
            print(f'{saved:8d} {ratio:6.3f}  {p["heads"]} B{p["batch"]} S{p["system"]} U{p["user"]}')
    print(f"no shape that saves {least} or more is slower")


main()
