"""The documented fusion of two parts of attention."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import sys
from typing import Any, Optional

import numpy as np

from .devices import device_of
from .errors import (BadDtypeError, BadShapeError, InvalidArgumentError, NoDeviceError, UnsupportedError,
                     WrongDeviceError)
from .operations import fuse
from .tensor_view import TensorView, readable_view, refuse_gradients

log = logging.getLogger(__name__)


def relay_fusion(out_sys: Any, lse_sys: Any, out_usr: Any, lse_usr: Any, backend: str = "native",
                 trans_lse_sys: bool = False, trans_lse_usr: bool = False) -> Any:
    """Fuses attention over the system prompt with attention over the user's tokens, exactly.

        alpha = 1 / (1 + exp(lse_usr - lse_sys))        out = alpha * out_sys + (1 - alpha) * out_usr

    in float32. A part whose LSE is -inf (or +inf, as some producers have it) is empty and not read; both empty gives 0.

    out_sys, out_usr: [tokens, heads, head_size], float32, float16 or bfloat16, any strides (a last stride other than
    1 costs a copy); lse_sys, lse_usr: float32, natural log, [tokens, heads], or [heads, tokens] with trans_lse_sys,
    trans_lse_usr. numpy arrays, torch tensors or objects with DLPack, on one device.
    backend: "native", the C library, or "triton". Where Triton cannot run, that is logged and "native" is taken.

    Returns a new tensor of out_sys's dtype: torch for torch, numpy for everything else. It carries no gradient.
    Raises InvalidArgumentError (backend), BadShapeError, BadDtypeError, WrongDeviceError, UnsupportedError (gradients).
    """
    if backend not in ("native", "triton"):
        raise InvalidArgumentError(f"backend: {backend!r}, expected 'native' or 'triton'")
    torch = sys.modules.get("torch")
    tensors = {"out_sys": out_sys, "lse_sys": lse_sys, "out_usr": out_usr, "lse_usr": lse_usr}
    all_torch = torch is not None and all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    refuse_gradients(tensors)
    views = {name: readable_view(tensor, name) for name, tensor in tensors.items()}
    if trans_lse_sys:
        views["lse_sys"] = _transposed(views["lse_sys"], "lse_sys")
    if trans_lse_usr:
        views["lse_usr"] = _transposed(views["lse_usr"], "lse_usr")
    _check(views)
    out = _empty_like(out_sys, views["out_sys"])
    if backend == "triton":
        why_not = "the tensors are not torch tensors" if not all_torch else why_no_triton(out.device.type)
        if why_not is None:
            _by_triton(out, views)
            return out
        _say_once(f"backend='triton': {why_not}; the fusion is computed natively")
    _natively(out, views)
    return out


def why_no_triton(device_type: str) -> Optional[str]:
    """Why Triton cannot compute on such tensors ("cpu", "cuda"); None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device_type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"Triton has no compiler for tensors on {device_type}"


@functools.lru_cache(maxsize=None)
def _say_once(message: str) -> None:
    log.warning("%s", message)


def _transposed(view: TensorView, name: str) -> TensorView:
    if len(view.shape) != 2:
        raise BadShapeError(f"{name}: shape {view.shape}, expected [heads, tokens]")
    return view.transposed()


def _check(views: dict[str, TensorView]) -> None:
    for name, view in views.items():
        if view.device != views["out_sys"].device:
            raise WrongDeviceError(f"{name}: on {view.device}, but out_sys is on {views['out_sys'].device}")
        if name.startswith("lse") and view.dtype != "f32":
            raise BadDtypeError(f"{name}: {view.dtype}, expected float32")
    shape = views["out_sys"].shape
    if len(shape) != 3:
        raise BadShapeError(f"out_sys: shape {shape}, expected [tokens, heads, head_size]")
    if views["out_usr"].shape != shape:
        raise BadShapeError(f"out_usr: shape {views['out_usr'].shape}, expected {shape} as out_sys has")
    for name in ("lse_sys", "lse_usr"):
        if views[name].shape != shape[:2]:
            raise BadShapeError(f"{name}: {views[name].shape} (tokens, heads), expected {shape[:2]}; for memory of "
                                f"[heads, tokens] give trans_{name}=True")


def _empty_like(tensor: Any, view: TensorView) -> Any:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        return torch.empty(view.shape, dtype=tensor.dtype, device=tensor.device)
    like = tensor.dtype if isinstance(tensor, np.ndarray) else {"f32": np.float32, "f16": np.float16}.get(view.dtype)
    if like is None:
        raise UnsupportedError(f"out_sys: {type(tensor).__name__} of bfloat16, for which numpy has no type; give a "
                               "torch tensor")
    return np.empty(view.shape, like)


def _as_torch(view: TensorView) -> Any:
    """The torch tensor of a view that came from one, with the view's shape and strides."""
    import torch

    owner: Any = view.owner
    offset = owner.storage_offset()
    return torch.as_strided(owner, view.shape, view.strides, offset)


def _by_triton(out: Any, views: dict[str, TensorView]) -> None:
    from . import triton_fusion

    triton_fusion.fuse(out, *(_as_torch(views[name]) for name in ("out_sys", "lse_sys", "out_usr", "lse_usr")))


def _natively(out: Any, views: dict[str, TensorView]) -> None:
    """On torch's current stream, where the tensors are on a GPU."""
    try:
        device = device_of(views["out_sys"])
    except NoDeviceError as error:
        _say_once(f"CUDA tensors are fused by PyTorch's operations: {error}")
        out.copy_(fuse_by_torch(*(_as_torch(views[n]) for n in ("out_sys", "lse_sys", "out_usr", "lse_usr"))))
        return
    fuse(device, [views["out_sys"], views["out_usr"]], [views["lse_sys"], views["lse_usr"]], out)


def fuse_by_torch(out_sys: Any, lse_sys: Any, out_usr: Any, lse_usr: Any) -> Any:
    """The same in PyTorch's operations, for GPU tensors where librelayattn_cuda is not installed. float32."""
    import torch

    infinity = float("inf")
    parts = []
    for out, lse, other in ((out_sys, lse_sys, lse_usr), (out_usr, lse_usr, lse_sys)):
        empty = lse.abs() == infinity
        other = torch.where(other == infinity, -infinity, other)
        weight = torch.where(empty, 0.0, 1.0 / (1.0 + torch.exp(other - lse)))
        parts.append(torch.where(empty.unsqueeze(-1), 0.0, weight.unsqueeze(-1) * out.float()))
    return parts[0] + parts[1]
