#!/usr/bin/env python3
"""Make a random handbook (the shared system prompt) and requests about it, for a model that build.py made.

    generate.py --seed N --entries N --requests N --model DIR --out DIR

writes DIR/system.txt and DIR/requests.jsonl, one {"id", "text", "expected"} a line. The same arguments give the
same bytes. No dependencies.
"""
import argparse
import json
import os
import random
import re
import sys

KEY = "([bdfgklmnprstvz][aeiou]){3}"  # three syllables
MAX_ENTRIES = 1150                    # 7 tokens each: the model has 8,192 positions


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--entries", type=int, default=200, help="entries of the handbook, 7 tokens each, 1 to 1150")
    p.add_argument("--requests", type=int, default=64)
    p.add_argument("--model", required=True, help="the directory that build.py wrote (for its tokenizer.json)")
    p.add_argument("--out", required=True, help="a directory; made if it is not there")
    a = p.parse_args()
    if not 1 <= a.entries <= MAX_ENTRIES:
        p.error("--entries must be 1 to %d, got %d" % (MAX_ENTRIES, a.entries))
    if a.requests < 1:
        p.error("--requests must be 1 or more, got %d" % a.requests)
    return p, a


def read_keys(path):
    with open(path, encoding="utf-8") as f:
        return [w for w in json.load(f)["model"]["vocab"] if re.fullmatch(KEY, w)]


def write(path, text):
    """The file appears whole or not at all."""
    with open(path + ".new", "w", encoding="utf-8") as f:
        f.write(text)
    os.replace(path + ".new", path)


def main():
    p, a = parse_arguments()
    path = os.path.join(a.model, "tokenizer.json")
    try:
        keys = read_keys(path)
    except (OSError, ValueError, KeyError, TypeError) as e:
        sys.exit("generate.py: cannot read the keys from %s: %s: %s" % (path, type(e).__name__, e))
    if a.entries > len(keys):
        p.error("%s has %d keys: too few for %d entries" % (path, len(keys), a.entries))
    rng = random.Random(a.seed)
    facts = {k: "%03d" % rng.randrange(1000) for k in rng.sample(keys, a.entries)}
    asked = [rng.choice(list(facts)) for _ in range(a.requests)]
    system = "you are the clerk of this house . this is the handbook . "
    system += " ".join("the code of %s is %s ." % fact for fact in facts.items())
    requests = [{"id": i, "text": "what is the code of %s ? the code of %s is" % (k, k), "expected": facts[k] + " ."}
                for i, k in enumerate(asked)]
    try:
        os.makedirs(a.out, exist_ok=True)
        write(os.path.join(a.out, "system.txt"), system + "\n")
        write(os.path.join(a.out, "requests.jsonl"), "".join(json.dumps(r) + "\n" for r in requests))
    except OSError as e:
        sys.exit("generate.py: cannot write to %s: %s" % (a.out, e.strerror or e))


if __name__ == "__main__":
    main()
