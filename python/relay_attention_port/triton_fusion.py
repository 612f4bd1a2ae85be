"""The fusion of two parts as a Triton kernel, for GPUs; by Triton's interpreter (TRITON_INTERPRET=1) on the CPU.

Importing this module imports Triton.
"""

from __future__ import annotations

import contextlib
from typing import Any

import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]


@triton.jit  # type: ignore[untyped-decorator,misc,unused-ignore]
def _fuse_row(out, out_sys, lse_sys, out_usr, lse_usr,  # type: ignore[no-untyped-def]
              out_t, out_h, sys_t, sys_h, sys_lse_t, sys_lse_h, usr_t, usr_h, usr_lse_t, usr_lse_h,
              SIZE: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    a = tl.load(lse_sys + token * sys_lse_t + head * sys_lse_h)
    b = tl.load(lse_usr + token * usr_lse_t + head * usr_lse_h)
    empty_a = (a == float("-inf")) | (a == float("inf"))  # some producers mark empty rows by +inf
    empty_b = (b == float("-inf")) | (b == float("inf"))
    a = tl.where(empty_a, float("-inf"), a)
    b = tl.where(empty_b, float("-inf"), b)
    weight_a = tl.where(empty_a, 0.0, 1.0 / (1.0 + tl.exp(b - a)))
    weight_b = tl.where(empty_b, 0.0, 1.0 / (1.0 + tl.exp(a - b)))
    at = tl.arange(0, BLOCK)
    # An empty part is not read: there may be anything in it, NaN too.
    x = tl.load(out_sys + token * sys_t + head * sys_h + at, mask=at < tl.where(empty_a, 0, SIZE), other=0.0)
    y = tl.load(out_usr + token * usr_t + head * usr_h + at, mask=at < tl.where(empty_b, 0, SIZE), other=0.0)
    merged = weight_a * x.to(tl.float32) + weight_b * y.to(tl.float32)
    tl.store(out + token * out_t + head * out_h + at, merged.to(out.dtype.element_ty), mask=at < SIZE)


def fuse(out: Any, out_sys: Any, lse_sys: Any, out_usr: Any, lse_usr: Any) -> None:
    """Torch tensors: out, out_sys, out_usr [T, H, D], last stride 1; lse_sys, lse_usr [T, H] float32, any strides."""
    import torch

    tokens, heads, size = out.shape
    if out.numel() == 0:
        return
    place = torch.cuda.device(out.device) if out.is_cuda else contextlib.nullcontext()
    with place:
        _fuse_row[(tokens, heads)](
            out, out_sys, lse_sys, out_usr, lse_usr, out.stride(0), out.stride(1), out_sys.stride(0),
            out_sys.stride(1), lse_sys.stride(0), lse_sys.stride(1), out_usr.stride(0), out_usr.stride(1),
            lse_usr.stride(0), lse_usr.stride(1), SIZE=size, BLOCK=triton.next_power_of_2(size))
