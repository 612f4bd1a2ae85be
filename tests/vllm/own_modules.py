"""vLLM's own test files, unmodified, from the copy that scripts/setup-vllm keeps of its source distribution: their grids
of cases, and a way to call one case on the processor."""
import importlib
import itertools
import os
import sys
import warnings
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from vllm.platforms import current_platform

FOLDER = os.path.join(sys.prefix, "share", "vllm-tests")


def load(name):
    """One of vLLM's test modules, as on a machine with one GPU."""
    if not os.path.isdir(FOLDER):
        pytest.fail(f"{FOLDER} is missing: run scripts/setup-vllm", pytrace=False)
    if FOLDER not in sys.path:
        sys.path.insert(0, FOLDER)
    with mock.patch("torch.cuda.device_count", lambda: 1), warnings.catch_warnings():
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)  # of theirs
        return importlib.import_module(name)


class Case(dict):
    """The arguments of one case, named as pytest would."""

    def __str__(self):
        return ", ".join(f"{name}={str(value)[:80]}" for name, value in self.items())


def grid(test):
    """Every case of a test's parameters."""
    axes = [[dict(zip(names, values if len(names) > 1 else [values])) for values in mark.args[1]]
            for mark in test.pytestmark if mark.name == "parametrize"
            for names in [[name.strip() for name in mark.args[0].split(",")]]]
    return [Case({name: value for part in parts for name, value in part.items()}) for parts in itertools.product(*axes)]


# What their tests ask of a platform.
PLATFORM = SimpleNamespace(is_cuda=lambda: True, is_cpu=lambda: False, get_device_name=lambda: "the processor",
                           seed_everything=current_platform.seed_everything)


class Stopwatch:
    """In place of torch.cuda.Event."""

    def __init__(self, enable_timing):
        pass

    def record(self):
        pass

    def elapsed_time(self, other):
        return 1.0


class Processor(TorchFunctionMode):
    """Tensors for "cuda" come to lie on the processor. Pools of K/V are drawn by numpy, which is several times as fast
    as PyTorch for half precision, and the last two are kept for the next case: no test writes to them."""

    def __init__(self):
        super().__init__()
        self.pools = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = "cpu"
        if function is torch.randn and len(args) == 4:
            return self._pool(("key", args, kwargs["dtype"]))
        if function is torch.randn_like and args[0].dim() == 4:
            return self._pool(("value", tuple(args[0].shape), args[0].dtype))
        return function(*args, **kwargs)

    def _pool(self, kind):
        if kind not in self.pools:
            if len(self.pools) == 2:
                del self.pools[next(iter(self.pools))]
            self.pools[kind] = draw(*kind)
        return self.pools[kind]


def draw(name, shape, dtype):
    """Normally distributed, in pieces, so that not much more memory is needed than for the result."""
    pool = torch.empty(shape, dtype=dtype)
    rng = np.random.default_rng([sum(name.encode()), *shape])
    for piece in pool.view(-1).split(2**24):
        piece.copy_(torch.from_numpy(rng.standard_normal(piece.numel(), np.float32)))
    return pool


PROCESSOR = Processor()


@contextmanager
def stand_ins(module, **names):
    """The module's names by ours, and the parts of PyTorch that need a GPU by some that do not."""
    with mock.patch.multiple(module, create=True, current_platform=PLATFORM, **names), \
            mock.patch("torch.set_default_device", lambda device: None), \
            mock.patch("torch.cuda.Event", Stopwatch), mock.patch("torch.cuda.synchronize", lambda: None), PROCESSOR:
        yield


def free_bytes():
    with open("/proc/meminfo") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable"))


class Tally:
    """What became of the cases of each test, for the end of pytest's output."""

    def __init__(self):
        self.sizes, self.outcomes = {}, {}

    def register(self, config):
        if not config.pluginmanager.is_registered(self):
            config.pluginmanager.register(self)

    def expect(self, test, size):
        self.sizes[test] = size
        self.outcomes.setdefault(test, Counter())

    def add(self, test, outcome, count=1):
        self.outcomes[test][outcome] += count

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("vLLM's own tests, computed by this package")
        for test, size in self.sizes.items():
            found = self.outcomes[test]
            rest = size - sum(found.values())
            parts = [f"{count} {outcome}" for outcome, count in found.items()]
            if rest:
                parts.append(f"{rest} not reached (--long, or not chosen)")
            terminalreporter.write_line(f"{test}: {size} cases: " + "; ".join(parts))


TALLY = Tally()


def run_case(name, test, case, left_out=None, **fixtures):
    """Calls it; a case that theirs skips, or that `left_out` names a reason for, is counted as such."""
    if left_out is not None:
        return TALLY.add(name, f"left out: {left_out}")
    try:
        test(**case, **fixtures)
    except pytest.skip.Exception as skipped:
        return TALLY.add(name, f'skipped by the test itself: "{skipped.msg or "no reason given"}"')
    except Exception as error:
        TALLY.add(name, "failed")
        raise AssertionError(f"{name}: {case}") from error
    return TALLY.add(name, "passed")
