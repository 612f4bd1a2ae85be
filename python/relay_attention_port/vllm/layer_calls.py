"""A layer's two calls of the library, with all arguments in place that stay the same from step to step.

``plans.Plan.run`` and ``operations.cache_write`` look at every argument in every call. A layer of an engine differs
from step to step by the addresses and shapes of four tensors, so only those are written anew.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from .. import c_structs as c
from ..devices import Device
from ..errors import BadShapeError, WrongDeviceError
from ..plans import Plan
from ..tensor_view import TensorView, dtype_number

_THREE = struct.Struct("@Pii3q8x3q8x")  # a relay_tensor of three dimensions
_WRITE_KEY, _WRITE_VALUE = c.CacheWriteArgs.key.offset, c.CacheWriteArgs.value.offset
_RUN_QUERY, _RUN_OUTPUT = c.RunArgs.query.offset, c.RunArgs.output.offset
_numbers: dict[Any, int] = {}  # of torch's dtypes


def _put(to: Any, offset: int, tensor: Any, name: str) -> None:
    """A torch tensor in the processor's memory, [n, heads, size], as the relay_tensor at `offset` of a structure.
    Raises BadShapeError, BadDtypeError, WrongDeviceError; the library checks the rest."""
    number = _numbers.get(tensor.dtype)
    if number is None:
        number = _numbers[tensor.dtype] = dtype_number(tensor.dtype, name)
    if not tensor.is_cpu:
        raise WrongDeviceError(f"{name}: on {tensor.device}, expected a tensor in the processor's memory")
    try:
        _THREE.pack_into(to, offset, tensor.data_ptr(), number, 3, *tensor.shape, *tensor.stride())
    except struct.error:
        raise BadShapeError(f"{name}: {tensor.dim()} dimensions, expected 3") from None


class LayerCalls:
    """The calls of one layer with these pools, [num_blocks, block_size, Hkv, D]. Belongs to one thread.

    layer: its number in packed prompts; alibi_slopes: [Hq] float32, dense, or None.
    """

    def __init__(self, device: Device, keys: TensorView, values: TensorView, layer: int, alibi_slopes: Any) -> None:
        self._device, self._lib = device, device.lib
        self._keep = keys, values, alibi_slopes
        self._write = self._lib.defaults(c.CacheWriteArgs)
        self._write.key_pool, self._write.value_pool = keys.c, values.c
        self._run = self._lib.defaults(c.RunArgs)
        self._run.key_pool, self._run.value_pool, self._run.layer = keys.c, values.c, layer
        if alibi_slopes is not None:
            self._run.alibi_slopes = alibi_slopes.ctypes.data
        self._write_pointer, self._run_pointer = ctypes.byref(self._write), ctypes.byref(self._run)

    def write(self, key: Any, value: Any, slots: int, num_slots: int) -> None:
        """Puts new K/V, [T, Hkv, D], into the pools. slots: the address of num_slots int64.
        Raises as operations.cache_write."""
        args = self._write
        _put(args, _WRITE_KEY, key, "key")
        _put(args, _WRITE_VALUE, value, "value")
        args.slot_mapping, args.num_slots = slots, num_slots
        self._lib.call(self._lib.c.relay_cache_write, self._device.pointer, self._write_pointer)

    def run(self, plan: Plan, query: Any, output: Any) -> None:
        """Attention of query, [T, Hq, D], into output, by a plan that is built. Raises as Plan.run."""
        args = self._run
        _put(args, _RUN_QUERY, query, "query")
        _put(args, _RUN_OUTPUT, output, "output")
        args.workspace, args.workspace_bytes = plan.workspace
        self._lib.call(self._lib.c.relay_run, plan.pointer, self._run_pointer)
