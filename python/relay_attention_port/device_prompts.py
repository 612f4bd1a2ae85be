"""The system prompts of one layer on a CUDA device: pages of the layer's own pool, kept by key.

The library's prompt cache packs K/V for the CPU; on a GPU a shared prompt is pages, which the kernels read as they are.
"""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from typing import Iterable, Optional

from . import c_structs as c
from . import cuda_tensors
from .devices import Device
from .errors import InvalidArgumentError, NotFoundError, UnsupportedError
from .forests import Span
from .operations import cache_write
from .page_pool import PagePool
from .relay_config import RelayInfo
from .tensor_view import TensorView

log = logging.getLogger(__name__)
Tensors = tuple[TensorView, TensorView]


class _Pages:
    """One prompt's blocks; they go back to the pool when neither the table nor a request has the prompt."""

    def __init__(self, pool: PagePool, blocks: list[int], length: int) -> None:
        self.pool, self.blocks, self.length = pool, blocks, length
        self.users: set[int] = set()  # what adds to it and takes from it in one step needs no lock

    def __del__(self) -> None:
        self.pool.give_back(self.blocks)


class DevicePrompt:
    """A prompt that is in use: while there is one, the prompt is not evicted. As ``prompts.Prompt`` to the layer."""

    def __init__(self, cache: "DevicePrompts", key: str, pages: _Pages) -> None:
        self.cache, self.key, self.num_tokens = cache, key, pages.length
        self._pages = pages
        pages.users.add(id(self))

    def __del__(self) -> None:
        self._pages.users.discard(id(self))

    def span(self, length: Optional[int] = None) -> Span:
        """Its tokens, or the first `length` of them."""
        return Span.paged(self.num_tokens if length is None else length, self._pages.blocks)


class DevicePrompts:
    """get() finds or makes the prompt of a request, as ``layer_prompts.LayerPrompts``. Not thread-safe: the layer
    locks. There is no directory, so nothing is prefetched."""

    def __init__(self, device: Device, settings: c.PromptCacheOptions, directory: Optional[str]) -> None:
        if directory is not None:
            raise UnsupportedError("cache_dir: on a CUDA device system prompts are kept in its memory alone")
        self._device = device
        self._most = settings.max_cached_system_prompts if settings.enabled else 0
        self._kept: OrderedDict[str, _Pages] = OrderedDict()  # the latest last
        self._numbers = itertools.count()
        self._counts = {"memory_hits": 0, "misses": 0, "evictions": 0}

    def announce(self, keys: Iterable[str]) -> None:
        """Nothing: there is no directory to read from."""

    def get(self, key: Optional[str], info: RelayInfo, tensors: Optional[Tensors], pool: PagePool) -> DevicePrompt:
        """The prompt of `key`, made of `tensors` (K and V) if it is not there; None: not to be found again.
        Raises NotFoundError if there are no tensors, InvalidArgumentError if it has another length."""
        if key is None or not info.cache_system_prompts or self._most == 0:
            return DevicePrompt(self, f"#{next(self._numbers)}", self._make(key, info, tensors, pool))
        pages = self._kept.get(key)
        if pages is not None and pages.length != info.system_length:
            raise InvalidArgumentError(f"relay_info.system_length: {info.system_length}, but the prompt of system key "
                                       f"{key!r} has {pages.length} tokens")
        if pages is None:
            self._counts["misses"] += 1
            pages = self._make(key, info, tensors, pool)
            if not self._make_room(self._most - 1):
                log.warning("system prompt %r is not kept: all %d that are kept are in use", key, len(self._kept))
                return DevicePrompt(self, f"#{next(self._numbers)}", pages)
            self._kept[key] = pages
        else:
            self._counts["memory_hits"] += 1
            log.debug("system prompt %r: found in the cache, %d tokens", key, pages.length)
        self._kept.move_to_end(key)
        found = DevicePrompt(self, key, pages)
        self._make_room(min(info.max_cached_system_prompts, self._most))
        return found

    def _make(self, key: Optional[str], info: RelayInfo, tensors: Optional[Tensors], pool: PagePool) -> _Pages:
        if tensors is None:
            raise NotFoundError(f"system_cache_key: {key!r} is not in the prompt cache, and system_included is False")
        length = info.system_length
        pages = _Pages(pool, pool.take(-(-length // pool.block_size)), length)
        slots = cuda_tensors.slots(pool.slots(pages.blocks, 0, length), self._device.index)
        cache_write(self._device, *tensors, pool.key, pool.value, slots)
        log.debug("system prompt %r: written, %d tokens in %d pages", key, length, len(pages.blocks))
        return pages

    def _make_room(self, most: int) -> bool:
        """Evicts the oldest that no request uses until `most` are kept; whether that could be."""
        for key in [key for key, pages in self._kept.items() if not pages.users]:
            if len(self._kept) <= most:
                break
            del self._kept[key]
            self._counts["evictions"] += 1
        return len(self._kept) <= most

    def stats(self) -> dict[str, int]:
        nothing = {"file_hits": 0, "prefetched": 0, "prefetch_groups": 0}
        return {"prompts": len(self._kept), **self._counts, **nothing}
