"""A layer's two calls of the library on a CUDA device, as ``layer_calls.LayerCalls`` makes them on the processor: on
torch's current stream, without waiting for anything."""

from __future__ import annotations

from typing import Any

from .. import cuda_tensors
from ..devices import Device
from ..operations import cache_write
from ..plans import Plan
from ..tensor_view import TensorView


class DeviceCalls:
    """The calls of one layer with these pools, [num_blocks, block_size, Hkv, D]. Belongs to one thread.

    alibi_slopes: [Hq] float32 in the processor's memory, or None.
    """

    def __init__(self, device: Device, keys: TensorView, values: TensorView, _layer: int, alibi_slopes: Any) -> None:
        self._device, self._keys, self._values = device, keys, values
        self._slopes = None if alibi_slopes is None else cuda_tensors.floats(alibi_slopes, device.index)

    def write(self, key: Any, value: Any, slots: Any, _num_slots: int) -> None:
        """Puts new K/V, [T, Hkv, D], into the pools. slots: [n <= T] int64 on the device.
        Raises as operations.cache_write."""
        cache_write(self._device, key, value, self._keys, self._values, slots)

    def run(self, plan: Plan, query: Any, output: Any) -> None:
        """Attention of query, [T, Hq, D], into output, by a plan that is built. A step's first layer brings the plan's
        work list to the device. Raises as Plan.run."""
        plan.run(query, output, key_pool=self._keys, value_pool=self._values, alibi_slopes=self._slopes)
