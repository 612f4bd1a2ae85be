"""vLLM's own test of cascade attention with whole answers, one prompt against 64 equal ones, by the plugin. It would pass
if nothing were ever shared, so the steps in which something was are counted."""
import os
import sys
from contextlib import ExitStack
from types import ModuleType
from unittest import mock

import pytest
from engines import counted, counted_since, engine, greedy
from own_modules import FOLDER, TALLY, grid, load, run_case
from serving import LOOKUP, ROOT, handbook

GEMMA = os.path.join(ROOT, "models", "gemma", "checkpoint")
TITLE = "test_cascade_attention.py::test_cascade_attention"


def load_theirs():
    """In this process, where the counters are: theirs forks one for each case."""
    helpers = ModuleType("tests.utils")
    helpers.fork_new_process_for_each_test = lambda test: test
    sys.modules["tests.utils"] = helpers
    try:
        return load("tests.v1.e2e.test_cascade_attention")
    finally:
        del sys.modules["tests.utils"]


theirs = load_theirs()


class Counted:
    """An engine that keeps what each call of generate answered and counted. `request`: asked instead of theirs, for a
    model that knows nothing else."""

    def __init__(self, llm, request):
        self.llm, self.request, self.calls = llm, request, []

    def generate(self, prompts, sampling_params):
        if self.request:
            prompts = [prompt[:prompt.index("\n<User>:")] + self.request for prompt in prompts]
        before = counted(self.llm)
        answers = self.llm.generate(prompts, sampling_params, use_tqdm=False)
        self.calls.append((answers, counted_since(self.llm, before)))
        return answers


def run_theirs(monkeypatch, attn_backend, message, checkpoint, strategy, request=None, expected=""):
    """Their test over a model and a system message that are here. Answers go on behind their end: 100 tokens of each are
    compared."""
    made = []

    def make(model):
        made.append(Counted(stack.enter_context(engine(checkpoint, strategy, max_model_len=8192)), request))
        return made[0]

    def parameters(temperature, max_tokens):
        assert temperature == 0.0
        return greedy(max_tokens, ignore_eos=True)

    with ExitStack() as stack, mock.patch.multiple(theirs, LLM=make, SamplingParams=parameters):
        theirs.test_cascade_attention(message, monkeypatch, attn_backend)
    (one, alone), (many, together) = made[0].calls
    assert len(one) == 1 and len(many) == 64
    for answer in one + many:
        assert len(answer.outputs[0].token_ids) == 100 and answer.outputs[0].token_ids == one[0].outputs[0].token_ids
        assert answer.outputs[0].text.strip().startswith(expected)
    assert alone["relayed_steps"] == alone["tokens_saved"] == 0 < alone["steps"]
    if strategy == "relay":  # all steps but the first, at least
        assert together["relayed_steps"] >= 99 and together["tokens_saved"] >= 99 * 63 * 256
    else:
        assert together["relayed_steps"] == together["tokens_saved"] == 0 < together["steps"]


@pytest.fixture(scope="module", autouse=True)
def summary(request):
    TALLY.register(request.config)


@pytest.mark.parametrize("strategy", ["relay", pytest.param("plain", marks=pytest.mark.long)])
def test_lookup(strategy, monkeypatch, tmp_path):
    name = f"{TITLE} (models/lookup, {strategy})"
    path, asks = handbook(tmp_path, 100, 1, 3)
    with open(path) as f:
        message = f.read().rstrip("\n")
    cases = grid(theirs.test_cascade_attention)
    TALLY.expect(name, len(cases))
    for case in cases:  # the backends that they name are nothing to the plugin
        run_case(name, run_theirs, case, monkeypatch=monkeypatch, message=message, checkpoint=LOOKUP, strategy=strategy,
                 request=" " + asks[0]["text"], expected=asks[0]["expected"])


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists(os.path.join(GEMMA, "model.safetensors")), reason="models/gemma/fetch not run")
def test_gemma(monkeypatch):
    """With their system message and request."""
    name = f"{TITLE} (Gemma 3 270M, relay)"
    with open(os.path.join(FOLDER, "tests", "system_messages", "sonnet3.5_nov2024.txt")) as f:
        message = f.read()
    cases = grid(theirs.test_cascade_attention)
    TALLY.expect(name, len(cases))
    run_case(name, run_theirs, cases[0], monkeypatch=monkeypatch, message=message, checkpoint=GEMMA, strategy="relay")
    TALLY.add(name, "left out: the backend that it names is nothing to the plugin", len(cases) - 1)
