"""relay_fusion: both backends, both LSE layouts, strides, infinities, data types, and what it refuses."""
import importlib.util
import logging
import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when a kernel is defined

import numpy as np
import pytest
from python_package import close

from relay_attention_port import errors, relay_fusion, relayattn_ops_v091

torch = pytest.importorskip("torch")
BACKENDS = ["native", pytest.param("triton", marks=pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"))]
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy, for the interpreter
INF, NAN = float("inf"), float("nan")


def parts(tokens=5, heads=3, size=20, seed=0, dtype=torch.float32):
    """out_sys, lse_sys, out_usr, lse_usr."""
    make = torch.Generator().manual_seed(seed)
    outs = [torch.randn(tokens, heads, size, generator=make).to(dtype) for _ in range(2)]
    lses = [torch.randn(tokens, heads, generator=make) * 3 for _ in range(2)]
    return outs[0], lses[0], outs[1], lses[1]


def merged(out_sys, lse_sys, out_usr, lse_usr):
    """The formula in float64; empty parts by its limits."""
    a, b = (x.double().numpy().copy() for x in (lse_sys, lse_usr))
    a[np.isposinf(a)], b[np.isposinf(b)] = -INF, -INF
    with np.errstate(invalid="ignore", over="ignore"):
        alpha, beta = (np.where(np.isneginf(x), 0.0, 1 / (1 + np.exp(y - x))) for x, y in ((a, b), (b, a)))
        x, y = (np.where((w == 0)[..., None], 0.0, w[..., None] * o.double().numpy())
                for w, o in ((alpha, out_sys), (beta, out_usr)))
    return x + y


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("float16", 2e-3), ("bfloat16", 1.6e-2)])
@pytest.mark.parametrize("shape", [(1, 1, 8), (5, 3, 20), (7, 2, 256), (0, 4, 64)])
def test_formula(backend, dtype, tolerance, shape):
    given = parts(*shape, dtype=getattr(torch, dtype))
    out = relay_fusion(*given, backend=backend)
    assert out.dtype == given[0].dtype and out.shape == given[0].shape
    close(out.float(), merged(*given), tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("trans_sys", [False, True])
@pytest.mark.parametrize("trans_usr", [False, True])
def test_layouts_of_the_lse(backend, trans_sys, trans_usr):
    out_sys, lse_sys, out_usr, lse_usr = given = parts()
    out = relay_fusion(out_sys, lse_sys.T.contiguous() if trans_sys else lse_sys, out_usr,
                       lse_usr.T.contiguous() if trans_usr else lse_usr, backend, trans_sys, trans_usr)
    close(out, merged(*given), 2e-6)


def test_square_lse_is_read_as_it_is_said():
    """tokens == heads: no shape tells the layouts apart."""
    given = parts(4, 4, 8)
    turned = given[0], given[1].T.contiguous(), given[2], given[3]
    close(relay_fusion(*turned, trans_lse_sys=True), merged(*given), 2e-6)
    close(relay_fusion(*turned), merged(*turned), 2e-6)


def awkward(name, tensor):
    """The same numbers by other strides."""
    if name == "padded":
        wide = torch.full([n + 3 for n in tensor.shape], NAN, dtype=tensor.dtype)
        view = wide[tuple(slice(1, n + 1) for n in tensor.shape)]
    elif name == "permuted":
        view = tensor.new_empty(tensor.shape[::-1]).permute(*reversed(range(tensor.dim())))
    elif name == "heads first":
        view = tensor.transpose(0, 1).contiguous().transpose(0, 1)
    else:
        wide = torch.full([n * 2 for n in tensor.shape], NAN, dtype=tensor.dtype)
        view = wide[tuple(slice(None, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["padded", "permuted", "heads first", "every second"])
def test_strides(backend, name):
    given = parts()
    odd = [awkward(name, tensor) for tensor in given]
    assert all(not x.is_contiguous() and torch.equal(x, y) for x, y in zip(odd, given))
    close(relay_fusion(*odd, backend=backend), merged(*given), 2e-6)
    lse = awkward(name, given[1].T.contiguous())
    close(relay_fusion(given[0], lse, *given[2:], backend, trans_lse_sys=True), merged(*given), 2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_lse(backend):
    out_sys, _, out_usr, lse_usr = parts()
    flat = torch.tensor(0.5).expand(5, 3)
    close(relay_fusion(out_sys, flat, out_usr, lse_usr, backend), merged(out_sys, flat, out_usr, lse_usr), 2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("empty", [-INF, INF])
def test_empty_parts(backend, empty):
    """An empty part is not read, the other comes out bit by bit; both empty is 0."""
    out_sys, lse_sys, out_usr, lse_usr = parts()
    lse_sys[0], lse_usr[1] = empty, empty
    lse_sys[2], lse_usr[2] = empty, empty
    out_sys[0], out_usr[1], out_sys[2], out_usr[2] = NAN, NAN, NAN, INF
    out = relay_fusion(out_sys, lse_sys, out_usr, lse_usr, backend)
    assert torch.equal(out[0], out_usr[0]) and torch.equal(out[1], out_sys[1]) and (out[2] == 0).all()
    close(out[3:], merged(out_sys[3:], lse_sys[3:], out_usr[3:], lse_usr[3:]), 2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_reaches_the_result(backend):
    out_sys, lse_sys, out_usr, lse_usr = parts()
    out_sys[0, 0, 3], lse_usr[1, 1], lse_sys[2, 2], lse_usr[2, 2] = NAN, NAN, NAN, -INF
    out = relay_fusion(out_sys, lse_sys, out_usr, lse_usr, backend).isnan()
    assert out[0, 0, 3] and out.sum() == 1 + 2 * 20 and out[1, 1].all() and out[2, 2].all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_apart(backend):
    out_sys, lse_sys, out_usr, lse_usr = parts()
    for gap in (100.0, 1e4, 3e38):
        assert torch.equal(relay_fusion(out_sys, lse_sys + gap, out_usr, lse_usr, backend), out_sys)
        assert torch.equal(relay_fusion(out_sys, lse_sys, out_usr, lse_usr + gap, backend), out_usr)


def test_numpy_and_mixed_dtypes():
    given = parts()
    out = relay_fusion(*(x.numpy() for x in given))
    assert isinstance(out, np.ndarray) and out.dtype == np.float32
    close(out, merged(*given), 2e-6)
    backwards = [x.numpy()[::-1] for x in given]
    close(relay_fusion(*backwards)[::-1], merged(*given), 2e-6)
    assert relay_fusion(given[0].half(), given[1], given[2], given[3]).dtype == torch.float16


def test_torch_operations_give_the_same():
    """What GPU tensors get where librelayattn_cuda is not installed."""
    out_sys, lse_sys, out_usr, lse_usr = given = parts()
    lse_sys[0], lse_usr[1], lse_sys[2], lse_usr[2], out_sys[0] = INF, -INF, -INF, INF, NAN
    close(relayattn_ops_v091.fuse_by_torch(*given), merged(*given), 2e-6)


@pytest.mark.parametrize("given, reason", [("torch", "no compiler for tensors on cpu"), ("numpy", "not torch tensors")])
def test_triton_that_cannot_run_is_said_once(monkeypatch, caplog, given, reason):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())  # as if Triton were installed
    relayattn_ops_v091._say_once.cache_clear()
    tensors = parts() if given == "torch" else [x.numpy() for x in parts()]
    with caplog.at_level(logging.WARNING, "relay_attention_port"):
        for _ in range(3):
            close(relay_fusion(*tensors, backend="triton"), merged(*parts()), 2e-6)
    assert [reason in record.message and "natively" in record.message for record in caplog.records] == [True]


def test_no_triton_is_said(monkeypatch, caplog):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    relayattn_ops_v091._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, "relay_attention_port"):
        close(relay_fusion(*parts(), backend="triton"), merged(*parts()), 2e-6)
    assert "Triton is not installed" in caplog.text


@pytest.mark.parametrize("change, kind, named", [
    (dict(backend="cuda"), errors.InvalidArgumentError, "backend: 'cuda'"),
    (dict(out_sys=torch.zeros(5, 60)), errors.BadShapeError, "out_sys"),
    (dict(out_usr=torch.zeros(5, 3, 21)), errors.BadShapeError, "out_usr"),
    (dict(lse_sys=torch.zeros(3, 5)), errors.BadShapeError, "lse_sys.*trans_lse_sys=True"),
    (dict(trans_lse_usr=True), errors.BadShapeError, "lse_usr"),
    (dict(lse_usr=torch.zeros(15), trans_lse_usr=True), errors.BadShapeError, "lse_usr"),
    (dict(lse_usr=torch.zeros(5, 3).half()), errors.BadDtypeError, "lse_usr: f16"),
    (dict(lse_sys=torch.zeros(5, 3).double()), errors.BadDtypeError, "lse_sys"),
    (dict(out_usr=torch.zeros(5, 3, 20, dtype=torch.int32)), errors.BadDtypeError, "out_usr"),
    (dict(out_usr=None), errors.BadDtypeError, "out_usr: NoneType"),
    (dict(out_usr=torch.zeros(5, 3, 20, device="meta")), errors.RelayError, "out_usr"),
    (dict(out_sys=torch.zeros(5, 3, 20, requires_grad=True)), errors.UnsupportedError, "out_sys: requires a gradient"),
])
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_arguments_are_named(backend, change, kind, named):
    given = dict(zip(("out_sys", "lse_sys", "out_usr", "lse_usr"), parts()), backend=backend)
    with pytest.raises(kind, match=named):
        relay_fusion(**{**given, **change})
