"""What the tests of `relay generate` and `relay chat` share."""
import json
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RELAY = os.environ.get("RELAY_BIN", os.path.join(ROOT, "build", "relay"))
LOOKUP = os.path.join(ROOT, "models", "lookup")
CONSTRUCTED = os.path.join(ROOT, "models", "constructed")


def handbook(out, entries, requests, seed=1):
    """A handbook for the trained lookup model: (path of its text, its requests)."""
    subprocess.run([sys.executable, os.path.join(LOOKUP, "generate.py"), "--seed", str(seed), "--entries", str(entries),
                    "--requests", str(requests), "--out", str(out)], check=True)
    with open(os.path.join(out, "requests.jsonl")) as f:
        return os.path.join(out, "system.txt"), [json.loads(line) for line in f]


def constructed(out, shape):
    """A model of models/constructed with heads/kv heads/head dim as in "8/2/128"."""
    heads, kv_heads, head_dim = shape.split("/")
    subprocess.run([sys.executable, os.path.join(CONSTRUCTED, "build.py"), "--out", str(out), "--heads", heads, "--kv-heads",
                    kv_heads, "--head-dim", head_dim], check=True)
    return out


def constructed_handbook(model, out, entries, requests, seed=1):
    subprocess.run([sys.executable, os.path.join(CONSTRUCTED, "generate.py"), "--model", str(model), "--seed", str(seed),
                    "--entries", str(entries), "--requests", str(requests), "--out", str(out)], check=True)
    with open(os.path.join(out, "requests.jsonl")) as f:
        return os.path.join(out, "system.txt"), [json.loads(line) for line in f]


def tokens_of(path):
    with open(path) as f:
        return len(f.read().split())  # the lookup models' tokens are words


def shared_beginning(one, other):
    """Tokens that two prompts begin with, where they are enough to be computed once for both (ENG_MIN_SHARED_TOKENS)."""
    with open(one) as a, open(other) as b:
        same = len(os.path.commonprefix([a.read().split(), b.read().split()]))
    return same if same >= 16 else 0


class Mixed:
    """Two prompts, a third that goes on where the first ends, and requests without any.

    `book(name, entries, requests, seed)` makes a handbook as `handbook` does."""

    def __init__(self, tmp, book):
        first, asks_first = book("first", 40, 12, 11)
        other, asks_other = book("other", 60, 12, 12)
        more, asks_more = book("more", 50, 24, 13)
        nested = os.path.join(tmp, "nested.txt")
        with open(first) as a, open(more) as b, open(nested, "w") as out:
            text = a.read().rstrip("\n")
            out.write(text + " " + b.read())
        known = set(re.findall(r"\b[a-z]{6}\b", text)) - {"answer"}  # a name in both handbooks has two right answers
        asks_nested = [r for r in asks_more if not known & set(r["text"].split())][:12]
        assert len(asks_nested) > 6
        self.paths = {"first": first, "other": other, "nested": nested}
        self.asks = {"first": asks_first, "other": asks_other, "nested": asks_nested}
        self.computed = tokens_of(other) + tokens_of(nested) - shared_beginning(other, nested)

    def requests(self, without=6):
        """Every prompt's, and `without` that have none and expect nothing."""
        lines = [dict(r, id=f"{name} {r['id']}", system=name) for name, asks in self.asks.items() for r in asks]
        lines += [{"id": f"none {r['id']}", "text": r["text"], "system": None} for r in self.asks["first"][:without]]
        return sorted(lines, key=lambda r: r["id"][::-1])

    def systems(self):
        return [f"{name}={path}" for name, path in self.paths.items()]

    def check_shared(self, run):
        for answer in run.lines:
            name = answer["id"].split()[0]
            assert answer["shared_tokens"] == (0 if name == "none" else tokens_of(self.paths[name]))


def write_lines(path, requests):
    with open(path, "w") as f:
        f.writelines(json.dumps(r) + "\n" for r in requests)
    return str(path)


def read_lines(path):
    """The answers, each line of which has to be whole."""
    with open(path, "rb") as f:
        data = f.read()
    assert data == b"" or data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def command(*options, model=LOOKUP):
    return [RELAY, "generate", "--model", str(model), *map(str, options)]


class Run:
    """One finished run: its exit code, messages, answers by id, and stats."""

    def __init__(self, tmp, requests, *options, systems=(), model=LOOKUP, out=None, name="run"):
        self.requests = write_lines(tmp / f"{name}.requests.jsonl", requests) if isinstance(requests, list) else requests
        self.out = str(out or tmp / f"{name}.answers.jsonl")
        stats = tmp / f"{name}.stats.json"
        line = command("--requests", self.requests, "--out", self.out, "--stats", stats, *options, model=model)
        for system in systems:
            line += ["--system", str(system)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=600)
        self.code, self.err, self.stdout = done.returncode, done.stderr, done.stdout
        self.stats = json.loads(stats.read_text()) if stats.exists() else None
        self.lines = read_lines(self.out) if os.path.isfile(self.out) else []
        self.answers = {json.dumps(a["id"]): a for a in self.lines}
        assert len(self.answers) == len(self.lines), "an id was answered twice"

    def texts(self):
        return {i: a["text"] for i, a in self.answers.items()}

    def good(self):
        """Every request answered, every expected answer given."""
        assert self.code == 0, self.err
        assert self.stats["accuracy"] == 1.0, self.stats
        return self
