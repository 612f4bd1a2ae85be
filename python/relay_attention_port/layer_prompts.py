"""The system prompts of one layer: kept ones in a prompt cache, by key, and those that only their requests hold."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import logging
from collections import OrderedDict
from typing import Iterable, Optional

from . import c_structs as c
from .devices import Device
from .errors import (AlreadyExistsError, BadDtypeError, CacheFullError, InvalidArgumentError, NotFoundError)
from .prompts import Prompt, PromptCache
from .relay_config import MOST, RelayConfig, RelayInfo
from .tensor_view import TensorView

log = logging.getLogger(__name__)
Tensors = tuple[TensorView, TensorView]
_COUNTERS = ("prompts", "memory_hits", "file_hits", "misses", "evictions", "prefetched", "prefetch_groups")


def cache_settings(device: Device, config: RelayConfig) -> c.PromptCacheOptions:
    """What a config decides about a prompt cache, by the library's own rule (relay_config_apply)."""
    config.check()
    lib = device.lib
    raw = lib.defaults(c.Config)
    for name in ("enabled", "use_triton", "cache_system_prompts", "max_cached_system_prompts", "enable_prefetch",
                 "prefetch_batch_size"):
        setattr(raw, name, int(getattr(config, name)))
    options, plan = lib.defaults(c.PromptCacheOptions), lib.defaults(c.PlanOptions)
    lib.call(lib.c.relay_config_apply, device.pointer, ctypes.byref(raw), ctypes.byref(options), ctypes.byref(plan))
    return options


class LayerPrompts:
    """get() finds or makes the prompt of a request. Not thread-safe: the layer locks."""

    def __init__(self, device: Device, config: RelayConfig, num_kv_heads: int, head_size: int, model_id: str,
                 directory: Optional[str]) -> None:
        self._device, self._shape = device, (num_kv_heads, head_size)
        self._settings = cache_settings(device, config)
        self._model_id, self._directory = model_id, directory
        self._dtype: Optional[str] = None
        self._kept: Optional[PromptCache] = None
        self._transient: Optional[PromptCache] = None
        self._recent: OrderedDict[str, None] = OrderedDict()  # keys, the latest last
        self._announced: list[str] = []
        self._numbers = itertools.count()

    def _open(self, dtype: str) -> tuple[PromptCache, PromptCache]:
        """The caches, made when the first prompt shows the dtype."""
        if self._kept is None or self._transient is None:
            settings = self._settings
            kv_heads, size = self._shape
            self._kept = PromptCache(self._device, num_layers=1, num_kv_heads=kv_heads, head_dim=size, kv_dtype=dtype,
                                     model_id=self._model_id, directory=self._directory, enabled=settings.enabled,
                                     max_cached_system_prompts=settings.max_cached_system_prompts,
                                     enable_prefetch=settings.enable_prefetch,
                                     prefetch_batch_size=settings.prefetch_batch_size)
            self._transient = PromptCache(self._device, num_layers=1, num_kv_heads=kv_heads, head_dim=size,
                                          kv_dtype=dtype, enabled=False, max_cached_system_prompts=MOST)
            self._dtype = dtype
            self._kept.prefetch(self._announced)
        if dtype != self._dtype:
            raise BadDtypeError(f"key: {dtype}, but this layer's system prompts are {self._dtype}")
        return self._kept, self._transient

    def announce(self, keys: Iterable[str]) -> None:
        """Keys that will be wanted soon; before the first call they are remembered."""
        if self._kept is None:
            self._announced = list(dict.fromkeys([*keys, *self._announced]))  # the latest first
        else:
            self._kept.prefetch(keys)

    def open(self, dtype: str) -> None:
        """Makes the caches now, for K/V of that dtype."""
        self._open(dtype)

    def wait(self) -> None:
        if self._kept is not None:
            self._kept.wait()

    def get(self, key: Optional[str], info: RelayInfo, tensors: Optional[Tensors], dtype: str) -> Prompt:
        """The pinned prompt of `key`, made of `tensors` (K and V) if it is not there; None: not to be found again.
        Raises NotFoundError if there are no tensors, InvalidArgumentError if it has another length."""
        kept, transient = self._open(dtype)
        if key is None or not info.cache_system_prompts:
            return self._make(transient, f"#{next(self._numbers)}", info, tensors)
        found = kept.find(key)
        if found is None:
            try:
                found = self._make(kept, key, info, tensors)
            except (CacheFullError, AlreadyExistsError) as error:
                log.warning("system prompt %r is not kept: %s", key, str(error))  # its traceback holds the request
                return self._make(transient, f"#{next(self._numbers)}", info, tensors)
        elif found.num_tokens != info.system_length:
            raise InvalidArgumentError(f"relay_info.system_length: {info.system_length}, but the prompt of system key "
                                       f"{key!r} has {found.num_tokens} tokens")
        else:
            log.debug("system prompt %r: found in the cache, %d tokens", key, found.num_tokens)
        self._bound(kept, key, info.max_cached_system_prompts)
        return found

    def _make(self, cache: PromptCache, key: str, info: RelayInfo, tensors: Optional[Tensors]) -> Prompt:
        if tensors is None:
            raise NotFoundError(f"system_cache_key: {key!r} is not in the prompt cache, and system_included is False")
        prompt = cache.begin(key, info.system_length)
        prompt.write(0, 0, *tensors)
        prompt.commit()
        log.debug("system prompt %r: packed, %d tokens, %d bytes%s", key, info.system_length, prompt.num_bytes,
                  "" if cache is self._kept else ", for its requests only")
        return prompt

    def _bound(self, kept: PromptCache, key: str, most: int) -> None:
        """An info may want fewer prompts kept than the config: the oldest go, from the directory too."""
        self._recent[key] = None
        self._recent.move_to_end(key)
        while len(self._recent) > min(most, self._settings.max_cached_system_prompts):
            oldest, _ = self._recent.popitem(last=False)
            if most < self._settings.max_cached_system_prompts:
                with contextlib.suppress(NotFoundError):  # the cache has dropped it before
                    kept.forget(oldest)

    def stats(self) -> dict[str, int]:
        if self._kept is None:
            return dict.fromkeys(_COUNTERS, 0)
        stats = self._kept.stats()
        return {name: int(getattr(stats, name)) for name in _COUNTERS}
