"""Operations that need no plan: merging partial attention, and writing K/V into pages (``fusion.h``, ``run.h``)."""

from __future__ import annotations

import ctypes
from typing import Any, Optional, Sequence

import numpy as np

from . import c_structs as c
from .cuda_tensors import slots_address
from .devices import Device
from .errors import BadShapeError
from .plans import Plan
from .tensor_view import int_array, output_view, tensor_view


def run(plan: Plan, query: Any, output: Any, **arguments: Any) -> None:
    """One layer by a plan: the same as ``plan.run(query, output, ...)``."""
    plan.run(query, output, **arguments)


def fuse(device: Device, outputs: Sequence[Any], lses: Sequence[Any], output: Any, lse: Any = None, *,
         stream: Optional[int] = None) -> None:
    """Merges partial attention exactly: lse = log(sum exp(lse_i)), output = sum exp(lse_i - lse) * outputs_i.

    outputs: each [T, H, D] f32, f16 or bf16, last stride 1; lses: each [T, H] float32, natural log, any strides;
    output: [T, H, D], may be outputs[0]; lse: [T, H] float32, may be lses[0]. Accumulates in float32. A part
    whose lse is -inf (or +inf) is empty. Releases the GIL. CUDA: asynchronous on `stream` (a cudaStream_t), default
    torch's current one.
    Raises BadDtypeError, BadShapeError, BadStrideError, OverlapError, InvalidArgumentError, WrongDeviceError.
    """
    if len(outputs) != len(lses):
        raise BadShapeError(f"lses: {len(lses)} parts, expected {len(outputs)} as in outputs")
    lib, here = device.lib, device.check_here
    args = lib.defaults(c.FuseArgs)
    args.num_parts = len(outputs)
    args.outputs = (c.Tensor * max(1, len(outputs)))(
        *(here(tensor_view(part, f"outputs[{i}]"), f"outputs[{i}]").c for i, part in enumerate(outputs)))
    args.lses = (c.Tensor * max(1, len(lses)))(
        *(here(tensor_view(part, f"lses[{i}]"), f"lses[{i}]").c for i, part in enumerate(lses)))
    args.output = here(output_view(output, "output"), "output").c
    if lse is not None:
        args.lse = here(output_view(lse, "lse"), "lse").c
    args.stream = device.stream(stream)
    lib.call(lib.c.relay_fuse, device.pointer, ctypes.byref(args))


def cache_write(device: Device, key: Any, value: Any, key_pool: Any, value_pool: Any, slot_mapping: Any, *,
                stream: Optional[int] = None) -> None:
    """Puts new K/V into pages, rounding to the pools' dtype (to nearest, ties to even). Releases the GIL.

    key, value: [T, Hkv, D], last stride 1; pools: [num_blocks, block_size, Hkv, D]; slot_mapping: [n <= T] integers,
    block_id * block_size + offset, a negative one skips its token. CUDA: asynchronous on `stream`, default torch's
    current one; slot_mapping is a dense int64 torch tensor there, and a slot beyond the pool is skipped.
    Raises BadDtypeError, BadShapeError, BadStrideError, OutOfRangeError (slot), OverlapError, WrongDeviceError.
    """
    lib, here = device.lib, device.check_here
    args = lib.defaults(c.CacheWriteArgs)
    args.key, args.value = here(tensor_view(key, "key"), "key").c, here(tensor_view(value, "value"), "value").c
    args.key_pool = here(output_view(key_pool, "key_pool"), "key_pool").c
    args.value_pool = here(output_view(value_pool, "value_pool"), "value_pool").c
    if device.kind == "cuda":
        args.slot_mapping, args.num_slots = slots_address(slot_mapping, device.index)
    else:
        slots: Any = int_array(slot_mapping, "slot_mapping", np.int64)
        args.slot_mapping, args.num_slots = slots.ctypes.data, len(slots)
    args.stream = device.stream(stream)
    lib.call(lib.c.relay_cache_write, device.pointer, ctypes.byref(args))
