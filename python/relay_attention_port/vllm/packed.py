"""Packed copies of prefixes that stay shared: the kernels read them up to twice as fast as vLLM's pages.

Knows numpy and the library, no vLLM. What makes a copy stale is not what a block is used for, of which a worker is
told nothing, but that it is written: every write of a group's K/V goes through the slots of a step, so a copy is what
its blocks hold for as long as none of them has been written since it was made. Freed blocks that keep their content,
a preempted request's or a finished one's, stay packed; the first write to one of them drops the copy.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from ..devices import Device
from ..errors import CacheFullError, OutOfMemoryError
from ..forests import Forest, Span
from ..prompts import Prompt, PromptCache
from ..tensor_view import ITEM_BYTES, TensorView
from .counters import tally

log = logging.getLogger("relay_attention_port.vllm")

MIN_TOKENS = 64          # one tile of the packed layout
AFTER_STEPS = 16         # a copy pays for itself in 5 to 40 steps; what has lived that long tends to live on
MOST_COPIES = 256
MOST_CANDIDATES = 256
BYTES_A_STEP = 16 << 20  # packed in one step, so that no step is held up for long


@dataclass
class _Copy:
    """A run of blocks as the layers had filled them up to the end of step `upto`."""

    ids: np.ndarray[Any, Any]
    raw: bytes  # the ids
    upto: int
    prompt: Prompt
    packed_layers: int = 0
    used_at: int = 0


class PackedPrefixes:
    """The copies of one KV group, and which of its blocks were written when. Belongs to one thread.

    max_bytes: of all copies together, above 0. The least recently used goes first.
    """

    def __init__(self, device: Device, block_size: int, max_bytes: int) -> None:
        self._device, self._block_size, self._max_bytes = device, block_size, max_bytes
        self._step = 0
        self._written: np.ndarray[Any, Any] = np.zeros(0, np.int64)  # the step that last wrote a block
        self._layers: dict[int, int] = {}  # the address of a layer's keys: its number
        self._pools: list[tuple[TensorView, TensorView]] = []  # by number
        self._cache: Optional[PromptCache] = None
        self._copies: dict[bytes, _Copy] = {}  # the least recently used first
        self._by_first: dict[bytes, list[_Copy]] = {}  # by the first block's id
        self._packing: Optional[_Copy] = None
        self._held: np.ndarray[Any, Any] = np.zeros(0, np.int64)  # the blocks of all copies, and the `upto` of each
        self._held_upto: np.ndarray[Any, Any] = np.zeros(0, np.int64)
        self._seen: dict[bytes, int] = {}  # steps in which a run was shared that has no copy
        self._serial = 0
        self.num_bytes = 0  # of all copies, now
        tally.watch(self)

    # ---- what a step does --------------------------------------------------------------------------------------------

    def begin(self, slots: Any, num_blocks: int) -> None:
        """A step that will write these slots, int64; before anything of it is placed. Drops what that makes stale."""
        self._step += 1
        if num_blocks != len(self._written):
            self.clear()
            self._written = np.zeros(num_blocks, np.int64)
        blocks = slots // self._block_size
        self._written[blocks[(blocks >= 0) & (blocks < num_blocks)]] = self._step
        if (self._written[self._held] > self._held_upto).any():
            for copy in self._all():
                if not self._is_valid(copy):
                    self._drop(copy)

    def place(self, forest: Forest) -> int:
        """Goes on packing, and moves the segments of a forest, as found in this step, to their copies; returns how many
        were moved."""
        if self._packing is not None:
            self._go_on(self._packing)
        found = []
        for index in range(forest.num_segments):
            length, raw = forest.segment_blocks(index)
            if length < MIN_TOKENS:
                continue
            copy = self._find(raw)
            if copy is None:
                self._see(raw)
            else:
                copy.used_at = self._step
                self._copies[copy.raw] = self._copies.pop(copy.raw)
                found.append((index, length, copy))
        for index, length, copy in found:
            forest.move_segment(index, Span.packed(copy.prompt, length))
        return len(found)

    def layer(self, keys: TensorView, values: TensorView) -> int:
        """The number of the layer that these pools belong to; it stays. Copies that lack a new layer are dropped."""
        address = int(keys.c.data)
        number = self._layers.get(address)
        if number is None:
            self.clear()
            number = self._layers[address] = len(self._pools)
            self._pools.append((keys, values))
        return number

    def holds_any(self) -> bool:
        return bool(self._copies)

    def clear(self) -> None:
        """Drops everything."""
        for copy in self._all():
            self._drop(copy)
        self._seen.clear()
        self._cache = None

    # ---- finding and forgetting --------------------------------------------------------------------------------------

    def _is_valid(self, copy: _Copy) -> bool:
        return bool((self._written[copy.ids] <= copy.upto).all())

    def _find(self, raw: bytes) -> Optional[_Copy]:
        """A copy that begins with these blocks."""
        for copy in self._by_first.get(raw[:4], ()):
            if copy.raw.startswith(raw):
                return copy
        return None

    def _drop(self, copy: _Copy) -> None:
        """A step that still reads it keeps its memory until its forest moves on."""
        if copy is self._packing:
            self._packing = None
        else:
            del self._copies[copy.raw]
            self._by_first[copy.raw[:4]].remove(copy)
            if not self._by_first[copy.raw[:4]]:
                del self._by_first[copy.raw[:4]]
            tally.forgot()
        copy.prompt.release()
        self._note_held()

    def _all(self) -> list[_Copy]:
        return [*self._copies.values(), *([self._packing] if self._packing else [])]

    def _note_held(self) -> None:
        copies = self._all()
        self.num_bytes = sum(copy.prompt.num_bytes for copy in copies)
        self._held = np.concatenate([copy.ids for copy in copies] or [np.zeros(0, np.int64)])
        self._held_upto = np.repeat([copy.upto for copy in copies], [len(copy.ids) for copy in copies])

    # ---- packing -----------------------------------------------------------------------------------------------------

    def _see(self, raw: bytes) -> None:
        seen = self._seen[raw] = self._seen.pop(raw, 0) + 1
        if len(self._seen) > MOST_CANDIDATES:
            del self._seen[next(iter(self._seen))]
        if seen >= AFTER_STEPS and self._packing is None:
            self._start(raw)

    def _start(self, raw: bytes) -> None:
        """Makes room for a copy. It is filled from the next step on, when the layers have written what this step has for
        them; a later write makes it stale."""
        ids = np.frombuffer(raw, np.int32)
        cache = self._open_cache()
        if cache is None:
            return
        prompt = self._begin_prompt(cache, len(ids) * self._block_size)
        del self._seen[raw]  # without room it is tried again when it has been seen as often
        if prompt is None:
            return
        self._packing = _Copy(ids, raw, self._step, prompt)
        self._note_held()

    def _open_cache(self) -> Optional[PromptCache]:
        """The cache for layers like those seen; None where there are none, or not all are alike."""
        kinds = {(keys.shape[2:], keys.dtype) for keys, _ in self._pools}
        if len(kinds) != 1:
            return None
        if self._cache is None:
            ((heads, size), dtype), = kinds
            self._cache = PromptCache(self._device, num_layers=len(self._pools), num_kv_heads=heads,
                                      head_dim=size, kv_dtype=dtype, enabled=False,  # what is dropped goes at once
                                      max_cached_system_prompts=MOST_COPIES, max_bytes=self._max_bytes)
        return self._cache

    def _fits(self, tokens: int) -> bool:
        """Whether a copy is within the bound at all: else nothing is to be dropped for it."""
        keys, _ = self._pools[0]
        tiles = -(-tokens // MIN_TOKENS)
        size = 2 * len(self._pools) * keys.shape[2] * keys.shape[3] * tiles * MIN_TOKENS * ITEM_BYTES[keys.c.dtype]
        if size > self._max_bytes:
            log.debug("a prefix of %d tokens is not packed: %d bytes are more than packed_gib", tokens, size)
        return size <= self._max_bytes

    def _begin_prompt(self, cache: PromptCache, tokens: int) -> Optional[Prompt]:
        """Room for a copy, made by dropping others, but none that was used of late, or two would take turns; None if it
        cannot be had."""
        self._serial += 1
        while self._fits(tokens):
            try:
                return cache.begin(str(self._serial), tokens)
            except CacheFullError:
                oldest = next(iter(self._copies.values()), None)
                if oldest is None or self._step - oldest.used_at < AFTER_STEPS:
                    return None
                self._drop(oldest)
            except OutOfMemoryError:
                return None
        return None

    def _go_on(self, copy: _Copy) -> None:
        """Some layers more; after the last one the copy can be used."""
        layers = len(self._pools)
        count = max(1, BYTES_A_STEP * layers // copy.prompt.num_bytes)
        for number in range(copy.packed_layers, min(layers, copy.packed_layers + count)):
            copy.prompt.write_pages(number, *self._pools[number], copy.ids)
            copy.packed_layers += 1
        if copy.packed_layers == layers:
            self._finish(copy)

    def _finish(self, copy: _Copy) -> None:
        copy.prompt.commit()
        self._packing = None
        for shorter in [other for other in self._by_first.get(copy.raw[:4], ()) if copy.raw.startswith(other.raw)]:
            self._drop(shorter)
        copy.used_at = self._step
        self._copies[copy.raw] = copy
        self._by_first.setdefault(copy.raw[:4], []).append(copy)
        tally.packed()
        self._note_held()
        log.debug("packed a prefix of %d tokens, %d bytes", copy.prompt.num_tokens, copy.prompt.num_bytes)
