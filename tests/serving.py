"""What the tests of `relay generate` and `relay chat` share."""
import json
import os
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
