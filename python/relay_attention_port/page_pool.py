"""Pages for the K/V of requests: a pool that grows, and the blocks that are free."""

from __future__ import annotations

from typing import Any

import numpy as np

from .tensor_view import ITEM_BYTES, TensorView, aligned_bytes, dtype_number


class PagePool:
    """K and V of one layer in blocks, [num_blocks, block_size, num_kv_heads, head_dim] each, of the CPU's memory."""

    def __init__(self, block_size: int, num_kv_heads: int, head_dim: int, dtype: str) -> None:
        self.block_size, self.dtype = block_size, dtype
        self._shape = (block_size, num_kv_heads, head_dim)
        self._block_bytes = block_size * num_kv_heads * head_dim * ITEM_BYTES[dtype_number(dtype)]
        self._free: list[int] = []
        self.num_blocks = 0
        self.key, self.value = self._view(aligned_bytes(0)), self._view(aligned_bytes(0))

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    @property
    def num_bytes(self) -> int:
        return 2 * self.num_blocks * self._block_bytes

    def _view(self, memory: "np.ndarray[Any, Any]") -> TensorView:
        tokens, heads, size = self._shape
        shape = (len(memory) // self._block_bytes, tokens, heads, size)
        return TensorView(memory.ctypes.data, dtype_number(self.dtype), shape, (tokens * heads * size, heads * size,
                                                                               size, 1), memory)

    def _grown(self, view: TensorView, num_blocks: int) -> TensorView:
        memory = aligned_bytes(num_blocks * self._block_bytes)
        old: Any = view.owner
        memory[:len(old)] = old
        return self._view(memory)

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
