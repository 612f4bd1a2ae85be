"""Conversations as tokens against the Python packages, on the checkpoints that are here.

Neither carries a chat template of its own, so the texts are written out; what is compared is what becomes of them.
"""
import os
import subprocess

import pytest

tokenizers = pytest.importorskip("tokenizers")

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.environ.get("RENDER_CHAT", os.path.join(ROOT, "build", "tests", "render_chat"))
GEMMA = os.path.join(ROOT, "models", "gemma", "checkpoint")
LOOKUP = os.path.join(ROOT, "models", "lookup")
USERS = ["Hello", "  What is this?\n", "naïve 漢字 🙂 <b>", "a\n\nb"]


def rendered(model, talks, template="-"):
    """A line (template's name, tokens) for each (system, user); one run, for a tokeniser takes its time to load."""
    texts = [text for system, user in talks for text in ("-" if system is None else system, user)]
    done = subprocess.run([PROGRAM, model, template, *texts], check=True, capture_output=True, text=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    return [(name, [int(i) for i in ids]) for name, *ids in lines]


@pytest.fixture(scope="module")
def gemma():
    if not os.path.exists(GEMMA):
        pytest.skip("models/gemma/checkpoint is not there: models/gemma/fetch makes it")
    return tokenizers.Tokenizer.from_file(os.path.join(GEMMA, "tokenizer.json"))


def test_gemma(gemma):
    talks = [(system, user) for system in (None, "You are kind.", "Two lines\nof rules. ") for user in USERS]
    lines = rendered(GEMMA, talks, "gemma")
    assert len(lines) == len(talks)
    for (system, user), line in zip(talks, lines):
        first = "" if system is None else system + "\n\n"
        text = f"<bos><start_of_turn>user\n{first}{user.strip()}<end_of_turn>\n<start_of_turn>model\n"
        expected = gemma.encode(text, add_special_tokens=False).ids
        assert expected.count(gemma.token_to_id("<start_of_turn>")) == 2 and expected.count(gemma.token_to_id("<bos>")) == 1
        assert line == ("gemma", expected)


def test_raw_puts_the_tokenisers_own_tokens(gemma):
    talks = [(system, user) for system in (None, "Be kind.") for user in USERS]
    for (system, user), line in zip(talks, rendered(GEMMA, talks), strict=True):
        apart = "" if system is None else system if user[0].isspace() else system + " "
        assert line == ("raw", gemma.encode(apart + user).ids)


def test_lookup():
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(LOOKUP, "tokenizer.json"))
    assert rendered(LOOKUP, [("the handbook .", "what ?")]) == [("raw", tokenizer.encode("the handbook . what ?").ids)]
