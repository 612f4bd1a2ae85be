"""The second concept: system prompts that are kept (``relay/prompt_cache.h``)."""

from __future__ import annotations

import atexit
import ctypes
import weakref
from typing import Any, Iterable, NamedTuple, Optional

from . import c_structs as c
from .c_library import Handle, Owner, open_handle
from .devices import Device
from .errors import BadShapeError, InvalidArgumentError, NotFoundError
from .tensor_view import dtype_number, int32, int_array, output_view, tensor_view

MAX_KEY_BYTES = 255


class PromptCacheStats(NamedTuple):
    """Counters of a cache, as in ``relay_prompt_cache_stats``."""

    prompts: int
    pinned: int
    bytes: int
    peak_bytes: int
    memory_hits: int
    file_hits: int
    misses: int
    evictions: int
    prefetched: int
    prefetch_groups: int
    rejected_files: int
    files_written: int


def _encoded(key: str) -> bytes:
    raw = key.encode() if isinstance(key, str) else b""
    if not 1 <= len(raw) <= MAX_KEY_BYTES or b"\0" in raw:
        raise InvalidArgumentError(f"key: {key!r}, expected 1 to {MAX_KEY_BYTES} bytes of text without NUL")
    return raw


class Prompt(Owner):
    """One pinned prompt: K/V of a run of tokens for all layers. Comes from PromptCache.acquire or begin.

    It stays readable, and is never evicted, until it is released here *and* no forest uses it. As a context
    manager it releases itself.
    """

    def __init__(self, cache: "PromptCache", handle: Handle) -> None:
        self.cache, self.lib = cache, cache.lib
        self._handle = handle

    def __enter__(self) -> "Prompt":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def key(self) -> str:
        return str(self.lib.c.relay_prompt_key(self.pointer).decode())

    @property
    def num_tokens(self) -> int:
        return int(self.lib.c.relay_prompt_num_tokens(self.pointer))

    @property
    def num_bytes(self) -> int:
        return int(self.lib.c.relay_prompt_num_bytes(self.pointer))

    def write(self, layer: int, first_token: int, key: Any, value: Any) -> None:
        """Packs tokens first_token.. of one layer. key, value: [n, num_kv_heads, head_dim], both of the cache's
        dtype or both f32, last stride 1. One thread at a time.

        Raises BadDtypeError, BadShapeError, BadStrideError, MisalignedError, OutOfRangeError,
        InvalidArgumentError (already committed).
        """
        k = self.cache.device.check_here(tensor_view(key, "key"), "key")
        v = self.cache.device.check_here(tensor_view(value, "value"), "value")
        self.lib.call(self.lib.c.relay_prompt_write, self.pointer, int32(layer, "layer"),
                      int32(first_token, "first_token"), ctypes.byref(k.c), ctypes.byref(v.c))

    def write_pages(self, layer: int, key_pool: Any, value_pool: Any, block_table: Any) -> None:
        """The same for all tokens, from pages. Pools: [num_blocks, block_size, num_kv_heads, head_dim];
        block_table: ceil(num_tokens / block_size) ids. Raises as write, and OutOfRangeError for an id outside."""
        k = self.cache.device.check_here(tensor_view(key_pool, "key_pool"), "key_pool")
        v = self.cache.device.check_here(tensor_view(value_pool, "value_pool"), "value_pool")
        table = int_array(block_table, "block_table")
        if len(k.shape) == 4 and k.shape[1] > 0 and len(table) < -(-self.num_tokens // k.shape[1]):
            raise BadShapeError(f"block_table: {len(table)} ids of {k.shape[1]} tokens hold fewer than the prompt's "
                                f"{self.num_tokens}")
        self.lib.call(self.lib.c.relay_prompt_write_pages, self.pointer, int32(layer, "layer"), ctypes.byref(k.c),
                      ctypes.byref(v.c), table.ctypes.data)

    def commit(self) -> None:
        """Makes a filled prompt findable and, with a directory, writes its file. It stays pinned.
        Raises InvalidArgumentError (tokens missing), FileOperationError."""
        self.lib.call(self.lib.c.relay_prompt_commit, self.pointer)

    def read(self, layer: int, first_token: int, key: Any, value: Any) -> None:
        """Unpacks into key, value: [n, num_kv_heads, head_dim] float32."""
        k, v = output_view(key, "key"), output_view(value, "value")
        self.lib.call(self.lib.c.relay_prompt_read, self.pointer, int32(layer, "layer"),
                      int32(first_token, "first_token"), ctypes.byref(k.c), ctypes.byref(v.c))

    def release(self) -> None:
        """Unpins. A prompt that was begun and not committed is dropped."""
        self.close()


_open_caches: "weakref.WeakSet[PromptCache]" = weakref.WeakSet()


@atexit.register
def _finish_background_work() -> None:
    """Background threads log through Python, so they end before it does."""
    for cache in list(_open_caches):
        if not cache.closed and cache.process_is_mine():
            cache.wait()


class PromptCache(Owner):
    """System prompts by key, the least recently used dropped first, those in use never.

    num_layers, num_kv_heads, head_dim (a multiple of 8, up to 256), kv_dtype: the K/V's shape. model_id names the
    model; files of another are never used. enabled=False: nothing is kept once it is released.
    max_cached_system_prompts and max_bytes (0: no bound) limit what is in memory. directory: where prompts go that
    leave memory; prefetch reads them back in the background, prefetch_batch_size at a time.

    Every method may be called from any thread. Not to be used in a child after fork().
    Raises InvalidArgumentError (names the field), BadDtypeError, UnsupportedError, FileOperationError.
    """

    def __init__(self, device: Device, *, num_layers: int, num_kv_heads: int, head_dim: int, kv_dtype: Any = "bf16",
                 model_id: str = "", enabled: bool = True, max_cached_system_prompts: int = 100, max_bytes: int = 0,
                 directory: Optional[str] = None, enable_prefetch: bool = True, prefetch_batch_size: int = 4) -> None:
        self.device, self.lib = device, device.lib
        options = self.lib.defaults(c.PromptCacheOptions)
        options.num_layers = int32(num_layers, "num_layers")
        options.num_kv_heads = int32(num_kv_heads, "num_kv_heads")
        options.head_dim = int32(head_dim, "head_dim")
        options.kv_dtype = dtype_number(kv_dtype, "kv_dtype")
        options.model_id = model_id.encode()
        options.enabled = bool(enabled)
        options.max_cached_system_prompts = int32(max_cached_system_prompts, "max_cached_system_prompts")
        if not 0 <= max_bytes < 2**64:
            raise InvalidArgumentError(f"max_bytes: {max_bytes}, expected 0 to 2**64 - 1")
        options.max_bytes = max_bytes
        options.directory = None if directory is None else str(directory).encode()
        options.enable_prefetch = bool(enable_prefetch)
        options.prefetch_batch_size = int32(prefetch_batch_size, "prefetch_batch_size")
        self._handle = open_handle(self.lib, self.lib.c.relay_prompt_cache_create,
                                   self.lib.c.relay_prompt_cache_destroy, (device.handle,), device.pointer,
                                   ctypes.byref(options))
        _open_caches.add(self)

    def process_is_mine(self) -> bool:
        """False in a child of fork(): it has no background thread."""
        return self.handle.is_mine()

    def _prompt(self, function: Any, *arguments: Any) -> Prompt:
        return Prompt(self, open_handle(self.lib, function, self.lib.c.relay_prompt_release, (self.handle,),
                                        self.pointer, *arguments))

    def acquire(self, key: str) -> Prompt:
        """Finds and pins a prompt, in memory or in the directory.
        Raises NotFoundError, CacheFullError, InvalidArgumentError, OutOfMemoryError."""
        try:
            return self._prompt(self.lib.c.relay_prompt_cache_acquire, _encoded(key))
        except NotFoundError:
            raise NotFoundError(f"no prompt of key {key!r}") from None

    def find(self, key: str) -> Optional[Prompt]:
        """As acquire, with None for a key that is not there."""
        try:
            return self.acquire(key)
        except NotFoundError:
            return None

    def begin(self, key: str, num_tokens: int) -> Prompt:
        """Starts a prompt: write every token of every layer, then commit; or release to give up.
        Raises AlreadyExistsError, CacheFullError, InvalidArgumentError, OutOfMemoryError."""
        return self._prompt(self.lib.c.relay_prompt_cache_begin, _encoded(key), int32(num_tokens, "num_tokens"))

    def prefetch(self, keys: Iterable[str]) -> None:
        """Announces keys that will be wanted soon, the soonest first. Returns at once."""
        raw = [_encoded(key) for key in keys]
        self.lib.call(self.lib.c.relay_prompt_cache_prefetch, self.pointer, (ctypes.c_char_p * len(raw))(*raw),
                      len(raw))

    def wait(self) -> None:
        """Until every announced key has been dealt with."""
        self.lib.call(self.lib.c.relay_prompt_cache_wait, self.pointer)

    def forget(self, key: str) -> None:
        """Drops a prompt from memory and from the directory; one in use goes at its last release.
        Raises NotFoundError, FileOperationError."""
        try:
            self.lib.call(self.lib.c.relay_prompt_cache_forget, self.pointer, _encoded(key))
        except NotFoundError:
            raise NotFoundError(f"no prompt of key {key!r}") from None

    def stats(self) -> PromptCacheStats:
        stats = c.PromptCacheStats(struct_size=ctypes.sizeof(c.PromptCacheStats))
        self.lib.call(self.lib.c.relay_prompt_cache_get_stats, self.pointer, ctypes.byref(stats))
        return PromptCacheStats(*(getattr(stats, name) for name in PromptCacheStats._fields))
