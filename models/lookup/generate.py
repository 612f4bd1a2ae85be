#!/usr/bin/env python3
"""Make a random handbook (the shared system prompt) and requests about it.

    generate.py --seed N --entries N --requests N --out DIR [--style list|prose|pairs] [--absent N]

writes DIR/system.txt (one line of words separated by spaces) and
DIR/requests.jsonl, one {"id": .., "text": .., "expected": ..} a line.
The prompt of a request is `system + " " + text`; the reply is exactly
`expected`, then the token </s>.  `--bos` puts the token <s> first; the model
was trained with and without it.  `--absent` of the requests ask for a key that
the handbook lacks (expected: `unknown .`).  The same arguments give the same
bytes.  No dependencies.
"""
import argparse
import json
import os
import random
import sys

HEADER = ["you are the clerk of this house .", "this is the handbook ."]
CLOSING = "this is the end of the handbook ."
GREETINGS = ["hello .", "good morning .", "please help me .", "i have a question .",
             "i am at the front door and it is cold .", "we met at the desk before ."]
MAX_ENTRIES = 1024  # what the model was trained to


def parse_arguments():
    here = os.path.dirname(os.path.abspath(__file__))
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--entries", type=int, default=64, help="facts in the handbook, 4 to %d" % MAX_ENTRIES)
    p.add_argument("--requests", type=int, default=32)
    p.add_argument("--absent", type=int, default=0, help="requests for keys that are not there")
    p.add_argument("--style", choices=("list", "prose", "pairs"), default="list",
                   help="list: `K : V ;` (4 tokens a fact)  prose: `the code of K is V .` (7)\n"
                        "pairs: prose, a code and a room for each key")
    p.add_argument("--greet", action="store_true", help="some requests begin with a greeting")
    p.add_argument("--bos", action="store_true", help="the handbook begins with the token <s>")
    p.add_argument("--tokenizer", default=os.path.join(here, "tokenizer.json"))
    p.add_argument("--out", required=True, help="a directory; made if it is not there")
    a = p.parse_args()
    if not 4 <= a.entries <= MAX_ENTRIES:
        p.error("--entries must be 4 to %d, got %d" % (MAX_ENTRIES, a.entries))
    if a.style == "pairs" and a.entries % 2:
        p.error("--entries must be even with --style pairs, got %d" % a.entries)
    if a.requests < 1:
        p.error("--requests must be 1 or more, got %d" % a.requests)
    if not 0 <= a.absent <= a.requests:
        p.error("--absent must be 0 to the number of requests (%d), got %d" % (a.requests, a.absent))
    return p, a


def read_keys(path):
    """The keys are the tokens after the values, words of three syllables."""
    with open(path, encoding="utf-8") as f:
        vocab = json.load(f)["model"]["vocab"]
    return [w for w in sorted(vocab, key=vocab.get) if vocab[w] > vocab["999"]]


def make_facts(rng, keys, style):
    """-> [(key, code or room, value)] in the order of the handbook"""
    if style == "pairs":
        asks = [(k, t) for k in keys for t in ("code", "room")]
        rng.shuffle(asks)
    else:
        asks = [(k, "code" if style == "list" else rng.choice(("code", "room"))) for k in keys]
    return [(k, t, "%03d" % rng.randrange(1000)) for k, t in asks]


def handbook(facts, style, bos):
    entry = "{k} : {v} ;" if style == "list" else "the {t} of {k} is {v} ."
    lines = (["<s>"] if bos else []) + HEADER
    lines += [entry.format(k=k, t=t, v=v) for k, t, v in facts]
    return " ".join(lines + [CLOSING]) + "\n"


def make_requests(rng, facts, missing, count, greet):
    picked = []
    while len(picked) < count - len(missing):  # each about another fact, as far as they go
        picked += rng.sample(facts, min(len(facts), count - len(missing) - len(picked)))
    picked += [(k, "code", "unknown") for k in missing]
    rng.shuffle(picked)
    for i, (k, t, v) in enumerate(picked):
        text = "what is the %s of %s ? answer :" % (t, k)
        if greet and rng.random() < 0.5:
            text = rng.choice(GREETINGS) + " " + text
        yield {"id": i, "text": text, "expected": v + " ."}


def write(path, text):
    """The file appears whole or not at all."""
    with open(path + ".new", "w", encoding="utf-8") as f:
        f.write(text)
    os.replace(path + ".new", path)


def main():
    p, a = parse_arguments()
    try:
        keys = read_keys(a.tokenizer)
    except (OSError, ValueError, KeyError, TypeError) as e:
        sys.exit("generate.py: cannot read the keys from %s: %s: %s" % (a.tokenizer, type(e).__name__, e))
    n_keys = a.entries // 2 if a.style == "pairs" else a.entries
    if n_keys + a.absent > len(keys):
        p.error("%s has %d keys: too few for %d in the handbook and %d absent" %
                (a.tokenizer, len(keys), n_keys, a.absent))
    rng = random.Random(a.seed)
    keys = rng.sample(keys, n_keys + a.absent)
    facts = make_facts(rng, keys[:n_keys], a.style)
    requests = list(make_requests(rng, facts, keys[n_keys:], a.requests, a.greet))
    try:
        os.makedirs(a.out, exist_ok=True)
        write(os.path.join(a.out, "system.txt"), handbook(facts, a.style, a.bos))
        write(os.path.join(a.out, "requests.jsonl"), "".join(json.dumps(r) + "\n" for r in requests))
    except OSError as e:
        sys.exit("generate.py: cannot write to %s: %s" % (a.out, e.strerror or e))


if __name__ == "__main__":
    main()
