"""A model that walks: its prompt lists runs of words, and it goes on from the last word to the one that followed it, and
on from there. Every token of an answer of any length is thereby known from the prompt alone, and depends on a K/V entry
somewhere in the shared text or in the request's own; what is wrong with one entry derails the rest of the walk.

The weights are those of models/constructed but for the second layer's question: "what followed this word?" (a query of
the own code against keys of the word before) instead of "what is this key's value?"."""
import importlib.util
import os
import random

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HEADS, KV_HEADS, HEAD_DIM, LAYERS = 4, 2, 128, 2
FIRST, BREAK = "<s>", ";"  # the first word of a prompt is taken for its own follower, so it must be none that is asked
WORDS = 1000


def _constructed():
    path = os.path.join(ROOT, "models", "constructed", "build.py")
    spec = importlib.util.spec_from_file_location("constructed_build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chain_model(folder):
    """Writes the checkpoint; returns its folder."""
    made = _constructed()
    s = made.Shape(HEADS, KV_HEADS, HEAD_DIM)
    rng = np.random.default_rng(1)
    noise = lambda *shape: rng.normal(0, 0.02 / np.sqrt(shape[-1]), shape)
    vocab = made.SPECIALS + [BREAK] + [f"{i:03}" for i in range(WORDS)]
    codes = rng.choice([-1.0, 1.0], (len(vocab), s.code))
    w = {"model.embed_tokens.weight": made.embedding(s, vocab, codes)}
    for layer in range(LAYERS):
        w.update(made.noise_layer(s, layer, noise))
    w["model.norm.weight"] = np.full(s.hidden, np.sqrt((4 * s.code + 2) / s.hidden))
    find_follower = lambda *weights: made.find_word(*weights, s.own, s.prev1)  # the word that follows this one
    for layer, make in enumerate((made.look_back, find_follower)):
        make(s, *(w[f"model.layers.{layer}.self_attn.{x}_proj.weight"] for x in "qkvo"))
    head = w["lm_head.weight"] = noise(len(vocab), s.hidden)
    head[-WORDS:, s.found] = codes[-WORDS:] * (30 / s.code)
    made.save(str(folder), s, vocab, w)
    return str(folder)


class Book:
    """A text of runs of words, perhaps behind another book's."""

    def __init__(self, rng, runs, behind=None):
        self.runs = list(behind.runs) if behind else []
        free = [word for word in range(WORDS) if not any(word in run for run in self.runs)]
        words = iter(rng.sample(free, sum(runs)))
        self.runs += [[next(words) for _ in range(length)] for length in runs]
        self.text = " ".join([FIRST] + [f"{BREAK} {_text(run)}" for run in self.runs])

    def ask(self, rng, bridges):
        """(prompt, function of n that gives the right answer's n words): behind the book, bridges of the request's own
        words lead from the end of each of some runs to the beginning of the next, in a circle, into which the last
        word of the prompt enters."""
        used = {word for run in self.runs for word in run}
        own = iter(rng.sample([word for word in range(WORDS) if word not in used], 3 * bridges))
        circle = rng.sample(self.runs, bridges)
        follower, links = {}, []
        for run, target in zip(circle, circle[1:] + circle[:1]):
            link = [run[-1]] + [next(own) for _ in range(rng.randrange(1, 4))] + [target[0]]
            links.append(f"{BREAK} {_text(link)}")
            for chain in (run, link):
                follower.update(zip(chain, chain[1:]))
        rng.shuffle(links)
        start = rng.choice(list(follower))
        prompt = " ".join([self.text, *links, BREAK, _text([start])])

        def walk(n):
            words = [start]
            for _ in range(n):
                words.append(follower[words[-1]])
            return _text(words[1:])
        return prompt, walk


def _text(words):
    return " ".join(f"{word:03}" for word in words)


def books(rng, count, lengths):
    """Texts of some of those numbers of runs; every third goes on behind an earlier one."""
    made = []
    for i in range(count):
        behind = rng.choice([b for b in made if len(b.runs) < 16]) if i % 3 == 2 else None
        made.append(Book(rng, [rng.randrange(4, 12) for _ in range(rng.choice(lengths))], behind))
    return made
