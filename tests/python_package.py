"""The tests' way to the Python package, and attention in float64 to compare it with.

The installed package is tested (`pip install .`; scripts/test installs the wheel). Where none is installed, this
tree's files are, with the library of the build in build/, or the one that RELAY_LIBRARY names.
"""
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent

if importlib.util.find_spec("relay_attention_port") is None:
    os.environ.setdefault("RELAY_LIBRARY", str(ROOT / "build" / "src" / "librelayattn.so"))
    sys.path.insert(0, str(ROOT / "python"))
    os.environ["PYTHONPATH"] = str(ROOT / "python")  # for the programs that tests start


def attention(query, key, value, scale=None, window=0, soft_cap=0.0, slopes=None, sinks=None, causal=True):
    """Attention of the last len(query) tokens over all, in float64: (output [T, Hq, D], lse [T, Hq])."""
    group = query.shape[1] // key.shape[1]
    key, value = (np.repeat(np.asarray(x, np.float64), group, axis=1) for x in (key, value))
    scores = np.einsum("qhd,khd->hqk", np.asarray(query, np.float64), key) * (scale or query.shape[2]**-0.5)
    if soft_cap:
        scores = soft_cap * np.tanh(scores / soft_cap)
    at = np.arange(len(key))
    distance = at - at[len(key) - len(query):, None]
    if slopes is not None:
        scores = scores + np.asarray(slopes)[:, None, None] * distance
    if causal:
        scores[:, distance > 0] = -np.inf
    if window:
        scores[:, distance <= -window] = -np.inf
    if sinks is not None:
        sink = np.broadcast_to(np.asarray(sinks, np.float64)[:, None, None], (*scores.shape[:2], 1))
        scores = np.concatenate([scores, sink], axis=2)
        value = np.concatenate([value, np.zeros((1, *value.shape[1:]))])
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights / total, value), (top + np.log(total))[:, :, 0].T


def close(got, wanted, tolerance):
    """Equal masks of NaN and infinity first, then values."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape
    assert (np.isnan(got) == np.isnan(wanted)).all() and (np.isinf(got) == np.isinf(wanted)).all()
    finite = np.isfinite(wanted)
    error = np.abs(got - wanted)[finite]
    assert error.size == 0 or error.max() <= tolerance, f"off by {error.max():.3e}, allowed {tolerance:.1e}"
