"""Pages for the K/V of requests: a pool that grows, and the blocks that are free."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import cuda_tensors
from .devices import Device
from .tensor_view import ITEM_BYTES, TensorView, aligned_bytes, dtype_number


class PagePool:
    """K and V of one layer in blocks, [num_blocks, block_size, num_kv_heads, head_dim] each, of a device's memory."""

    def __init__(self, device: Device, block_size: int, num_kv_heads: int, head_dim: int, dtype: str) -> None:
        self._device, self.block_size, self.dtype = device, block_size, dtype
        self._shape = (block_size, num_kv_heads, head_dim)
        self._block_bytes = block_size * num_kv_heads * head_dim * ITEM_BYTES[dtype_number(dtype)]
        self._free: list[int] = []
        self.num_blocks = 0
        self.key, self.value = self._room(0), self._room(0)

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    @property
    def num_bytes(self) -> int:
        return 2 * self.num_blocks * self._block_bytes

    def _room(self, num_blocks: int) -> TensorView:
        """Memory for that many blocks; the view's owner is an array, or a tensor, of its bytes."""
        tokens, heads, size = self._shape
        memory: Any = None
        if self._device.kind == "cuda":
            memory, address = cuda_tensors.raw_bytes(num_blocks * self._block_bytes, self._device.index)
        else:
            memory = aligned_bytes(num_blocks * self._block_bytes)
            address = memory.ctypes.data
        return TensorView(address, dtype_number(self.dtype), (num_blocks, tokens, heads, size),
                          (tokens * heads * size, heads * size, size, 1), memory, True, self._device.place)

    def _grown(self, view: TensorView, num_blocks: int) -> TensorView:
        grown = self._room(num_blocks)
        new: Any = grown.owner
        old: Any = view.owner
        new[:len(old)] = old
        return grown

    def take(self, count: int) -> list[int]:
        """`count` blocks; the pool doubles when they run out."""
        if count > len(self._free):
            wanted = max(2 * self.num_blocks, self.num_blocks + count - len(self._free), 16)
            self.key, self.value = self._grown(self.key, wanted), self._grown(self.value, wanted)
            self._free.extend(reversed(range(self.num_blocks, wanted)))
            self.num_blocks = wanted
        return [self._free.pop() for _ in range(count)]

    def give_back(self, blocks: list[int]) -> None:
        self._free.extend(reversed(blocks))

    def slots(self, blocks: list[int], begin: int, end: int) -> "np.ndarray[Any, Any]":
        """Where tokens begin..end-1 of a request lie: int64, block * block_size + offset."""
        positions = np.arange(begin, end)
        table = np.asarray(blocks, np.int64)
        slots: "np.ndarray[Any, Any]" = table[positions // self.block_size] * self.block_size
        return slots + positions % self.block_size if len(positions) else np.empty(0, np.int64)
