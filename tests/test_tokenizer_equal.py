"""The engine's tokeniser against the `tokenizers` package: ids and decoded text of 10,000 lines, for each tokenizer
at hand.  RELAY_TOKENIZE_LINES names the program built from tokenize_lines.c (default: under build/)."""
import os
import pathlib
import random
import struct
import subprocess
import sys

import pytest
from tokenizers import Tokenizer

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tokenizer_shapes
import tokenizer_texts

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("RELAY_TOKENIZE_LINES", str(ROOT / "build" / "tests" / "tokenize_lines"))
LINES = 10000
AT_HAND = {
    "lookup": ROOT / "models" / "lookup",
    "gemma": ROOT / "models" / "gemma" / "checkpoint",
}


def ask(model_dir, requests):
    done = subprocess.run([PROGRAM, str(model_dir)], input=b"".join(requests), capture_output=True, timeout=80)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


class Answers:
    def __init__(self, data):
        self.data, self.at = data, 0

    def numbers(self, count):
        self.at += 4 * count
        return struct.unpack_from("<%dI" % count, self.data, self.at - 4 * count)

    def ids(self):
        return list(self.numbers(self.numbers(1)[0]))

    def text(self):
        size = self.numbers(1)[0]
        self.at += size
        return self.data[self.at - size:self.at].decode()


def explain(line, got, want):
    return "line %r:\n engine  %r\n package %r" % (line, got, want)


def compare_lines(reference, model_dir, lines):
    """Encodes every line and decodes what came out, with and without special tokens."""
    flags = [(i % 3 != 0, i % 2 == 0) for i in range(len(lines))]
    answers = Answers(ask(model_dir, [b"e" + bytes([add, skip]) + struct.pack("<I", len(line)) + line
                                      for line, (add, skip) in zip(lines, flags)]))
    texts = [line.decode(errors="replace") for line in lines]
    encoded = {add: reference.encode_batch([t for t, f in zip(texts, flags) if f[0] == add], add_special_tokens=add)
               for add in (True, False)}
    queues = {add: iter(e) for add, e in encoded.items()}
    for line, (add, skip) in zip(lines, flags):
        want = next(queues[add]).ids
        got = answers.ids()
        assert got == want, explain(line, got, want)
        got, want = answers.text(), reference.decode(want, skip_special_tokens=skip)
        assert got == want, explain(line, got, want)
    assert answers.at == len(answers.data)


def compare_decoding(reference, model_dir, count=2000):
    """Decodes ids in no order that an encoder gives, unknown ones among them."""
    rng = random.Random(2)
    size = reference.get_vocab_size()
    lists = [[rng.randrange(size + 5) if rng.randrange(3) else rng.randrange(min(size, 300))
              for _ in range(rng.randrange(20))] for _ in range(count)]
    answers = Answers(ask(model_dir, [b"d" + bytes([i % 2]) + struct.pack("<%dI" % (len(ids) + 1), len(ids), *ids)
                                      for i, ids in enumerate(lists)]))
    for i, ids in enumerate(lists):
        got, want = answers.text(), reference.decode(ids, skip_special_tokens=bool(i % 2))
        assert got == want, explain(ids, got, want)


def settled_texts(lines, specials, count=4000):
    """Pairs of texts of which the second follows the first; many are torn within an added token or in white space."""
    rng = random.Random(3)
    marks = [s.encode() for s in rng.sample(specials, min(len(specials), 40))] + [b" ", b"\n\n", b"<sep>  \n  x", b"\xf0\x9f"]
    for _ in range(count):
        parts = [part for _ in range(rng.randrange(1, 6))
                 for part in (rng.choice(lines)[:rng.randrange(60) if rng.randrange(2) else 0], rng.choice(marks))]
        at = rng.randrange(len(parts[-1]) + 1)
        yield b"".join(parts[:-1]) + parts[-1][:at], parts[-1][at:] + rng.choice(marks) + rng.choice(lines)[:20]


def check_settled(model_dir, lines, specials):
    """What is said to be settled gives, with the rest, the tokens of the whole (tokenize_lines checks); returns how
    often something was."""
    pairs = list(settled_texts(lines, specials))
    answers = Answers(ask(model_dir, [b"s" + b"".join(struct.pack("<I", len(t)) + t for t in pair) for pair in pairs]))
    settled = [answers.numbers(1)[0] for _ in pairs]
    assert answers.at == len(answers.data) and all(s <= len(p[0]) for s, p in zip(settled, pairs))
    return sum(s > 0 for s in settled)


def compare(reference, model_dir):
    specials = [t.content for t in reference.get_added_tokens_decoder().values()]
    lines = tokenizer_texts.lines(LINES, specials)
    compare_lines(reference, model_dir, lines)
    compare_decoding(reference, model_dir)
    assert check_settled(model_dir, lines, specials) > 100


@pytest.mark.parametrize("name", sorted(tokenizer_shapes.SHAPES))
def test_trained_shape(name, tmp_path):
    reference = tokenizer_shapes.SHAPES[name]()
    reference.save(str(tmp_path / "tokenizer.json"))
    compare(reference, tmp_path)


def test_constructed(tmp_path):
    pytest.importorskip("numpy")
    build = [sys.executable, str(ROOT / "models" / "constructed" / "build.py"), "--out", str(tmp_path), "--keys", "50"]
    subprocess.run(build, check=True, capture_output=True)
    compare(Tokenizer.from_file(str(tmp_path / "tokenizer.json")), tmp_path)


@pytest.mark.parametrize("name", sorted(AT_HAND))
def test_published(name):
    model_dir = AT_HAND[name]
    if not (model_dir / "tokenizer.json").exists():
        pytest.skip("%s is not here" % (model_dir / "tokenizer.json").relative_to(ROOT))
    compare(Tokenizer.from_file(str(model_dir / "tokenizer.json")), model_dir)
