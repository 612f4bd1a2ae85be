"""An attention layer that shares system prompts and keeps K/V between calls."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from typing import Any, NamedTuple, Optional, Sequence, Union

import numpy as np

from . import cuda_tensors
from .device_prompts import DevicePrompt, DevicePrompts
from .devices import Device
from .errors import BadDtypeError, InvalidArgumentError, UnsupportedError
from .forests import Forest, Segment, Span
from .layer_batch import Batch, Rows, identity_base, make_batch
from .layer_prompts import LayerPrompts, cache_settings
from .operations import cache_write
from .page_pool import PagePool
from .plans import STRATEGIES, Attention, Plan
from .prompts import Prompt
from .relay_config import RelayConfig, RelayMetadata
from .tensor_view import TensorView, float_array, int32

log = logging.getLogger(__name__)
AnyPrompt = Union[Prompt, DevicePrompt]
Metadata = Union[None, RelayMetadata, Sequence[RelayMetadata]]


class LayerStats(NamedTuple):
    """What a layer did. ``relayed`` forwards read a prompt once for several requests, ``plain`` ones did not;
    ``tokens_saved`` K/V tokens were not read again; the rest counts its prompt cache and its pages."""

    forwards: int = 0
    relayed: int = 0
    plain: int = 0
    tokens_saved: int = 0
    prompts: int = 0
    memory_hits: int = 0
    file_hits: int = 0
    misses: int = 0
    evictions: int = 0
    prefetched: int = 0
    prefetch_groups: int = 0
    requests: int = 0
    page_bytes: int = 0


class _Request:
    """What is kept for a request between calls."""

    __slots__ = ("prompt", "system_length", "system_key", "blocks", "length")

    def __init__(self, prompt: Optional[AnyPrompt], system_length: int, system_key: Optional[str]) -> None:
        self.prompt, self.system_length, self.system_key = prompt, system_length, system_key
        self.blocks: list[int] = []
        self.length = 0  # tokens in blocks


class RelayAttentionLayer:
    """Causal attention of one layer; made by RelayAttentionIntegration.create_attention_layer.

    A request's first call brings its whole sequence: the system prompt's K/V go into the prompt cache (or are found
    there), the user's into pages. Every later call brings new tokens only. Calls are serialised by a lock.
    """

    def __init__(self, num_heads: int, head_size: int, scale: float, num_kv_heads: Optional[int] = None, *,
                 config: RelayConfig, device: Device, name: str = "layer", cache_dir: Optional[str] = None,
                 model_id: str = "", alibi_slopes: Optional[Sequence[float]] = None,
                 sliding_window: Optional[int] = None, logits_soft_cap: Optional[float] = None,
                 sinks: Optional[Sequence[float]] = None, kv_cache_dtype: str = "auto",
                 blocksparse_params: Optional[dict[str, Any]] = None, attn_type: str = "decoder",
                 block_size: int = 16, strategy: str = "auto", repeatable: bool = False) -> None:
        if kv_cache_dtype != "auto":
            raise UnsupportedError(f"kv_cache_dtype: {kv_cache_dtype!r}; K/V are kept as they come ('auto')")
        if blocksparse_params is not None:
            raise UnsupportedError("blocksparse_params: block-sparse attention is not computed")
        if attn_type != "decoder":
            raise UnsupportedError(f"attn_type: {attn_type!r}; only causal attention ('decoder') is computed")
        if not scale > 0:
            raise InvalidArgumentError(f"scale: {scale}, expected a positive number")
        if strategy not in STRATEGIES:
            raise InvalidArgumentError(f"strategy: {strategy!r}, expected one of {sorted(STRATEGIES)}")
        self.num_heads, self.head_size, self.scale = int32(num_heads, "num_heads"), int32(head_size, "head_size"), scale
        self.num_kv_heads = self.num_heads if num_kv_heads is None else int32(num_kv_heads, "num_kv_heads")
        if self.num_kv_heads < 1 or self.num_heads < 1 or self.num_heads % self.num_kv_heads:
            raise InvalidArgumentError(f"num_heads: {num_heads}, expected a multiple of num_kv_heads ({num_kv_heads})")
        self.config, self.device, self.name = config, device, name
        self.block_size = int32(block_size, "block_size")
        if self.block_size < 1:
            raise InvalidArgumentError(f"block_size: {block_size}, expected >= 1")
        self._alibi = self._per_head(alibi_slopes, "alibi_slopes")
        self._sinks = self._per_head(sinks, "sinks")
        self._window = 0 if sliding_window is None else int32(sliding_window, "sliding_window")
        self._soft_cap = float(logits_soft_cap or 0.0)
        self._strategy, self._repeatable = strategy, repeatable
        directory = None if cache_dir is None else os.path.join(cache_dir, name)
        self.prompts: Union[LayerPrompts, DevicePrompts]
        if device.kind == "cuda":
            self.prompts = DevicePrompts(device, cache_settings(device, config), directory)
        else:
            self.prompts = LayerPrompts(device, config, self.num_kv_heads, self.head_size, model_id, directory)
        self._forest = Forest(device)
        self._plans: dict[tuple[str, str, str], Plan] = {}
        self._pool: Optional[PagePool] = None
        self._requests: dict[Any, _Request] = {}
        self._lock = threading.RLock()
        self._counts = {"forwards": 0, "relayed": 0, "plain": 0, "tokens_saved": 0}
        usual = "f32" if device.kind == "cpu" else "bf16"
        self._plan(usual, usual, self._strategy_for(config.enabled))  # what is not computed is refused here

    def _per_head(self, values: Optional[Sequence[float]], name: str) -> Any:
        array = None if values is None else float_array(values, self.num_heads, name)
        return array if array is None or self.device.kind == "cpu" else cuda_tensors.floats(array, self.device.index)

    def _strategy_for(self, enabled: bool) -> str:
        return self._strategy if enabled else "plain"

    def _plan(self, query_dtype: str, kv_dtype: str, strategy: str) -> Plan:
        wanted = (query_dtype, kv_dtype, strategy)
        if wanted not in self._plans:
            attention = Attention(self.num_heads, self.num_kv_heads, self.head_size, query_dtype, kv_dtype, query_dtype,
                                  self.scale, self._soft_cap, self._window, 0, self._alibi is not None,
                                  self._sinks is not None)
            self._plans[wanted] = Plan(self.device, attention, strategy=strategy, repeatable=self._repeatable)
        return self._plans[wanted]

    def forward(self, query: Any, key: Any, value: Any, attn_metadata: Metadata = None, output: Any = None, *,
                query_lens: Optional[Sequence[int]] = None, system_included: bool = True) -> Any:
        """Attention of the given tokens over everything that came before them; returns a tensor like `query`.

        query: [tokens, heads, head_size], [tokens, heads * head_size], or either with a batch before it; key, value
        the same with num_kv_heads. numpy, torch or DLPack, on the layer's device; float32 (CPU), float16, bfloat16.
        With fewer query tokens than keys, the queries are the last ones. CUDA: on torch's current stream, which is
        the same one for all calls or ordered by the caller; not to be captured into a graph.

        attn_metadata: None, attention over the given tokens alone, nothing kept; a RelayMetadata, one request, or all
        rows of a batch as requests under one system prompt; a sequence of them, one for each request: of the batch's
        rows, or of [tokens, ...] cut by query_lens (default: equal parts).
        system_included: False says that a first call's tokens begin behind the system prompt, whose K/V the prompt
        cache holds under the system key (NotFoundError if not).
        output: where the result goes, like `query`.

        Raises InvalidArgumentError (system_length beyond the keys, a key used for something else), BadShapeError,
        BadDtypeError, NotFoundError, and what the library refuses; nothing that is kept has changed then.
        """
        batch = make_batch(self.num_heads, self.num_kv_heads, self.head_size, query, key, value, output, attn_metadata,
                           query_lens)
        with self._lock:
            self._open_pool(batch.key.dtype)
            fresh: dict[Any, _Request] = {}
            before = {rows.identity: self._requests[rows.identity].length for rows in batch.rows
                      if rows.identity in self._requests}
            try:
                first: dict[int, Rows] = {}  # of each metadata object
                for rows in batch.rows:
                    self._check_request(rows)
                    if rows.identity is None or rows.identity in self._requests:
                        continue
                    leader = first.setdefault(id(rows.metadata), rows)
                    fresh[rows.identity] = (self._begin(rows, batch, system_included) if leader is rows else
                                            self._follow(rows, leader, fresh[leader.identity], batch, system_included))
                self._compute(batch, fresh, system_included)
            except BaseException:
                self._undo(fresh, before)
                raise
            self._keep(batch, fresh)
        return batch.result

    __call__ = forward

    # ---- what is kept ----------------------------------------------------

    def _check_request(self, rows: Rows) -> None:
        request = self._requests.get(rows.identity)
        metadata = rows.metadata
        if request is None or metadata is None:
            return
        info = metadata.relay_info
        if info is not None and info.system_length != request.system_length:
            raise InvalidArgumentError(f"relay_info.system_length: {info.system_length}, but this request began with "
                                       f"{request.system_length}")
        if metadata.system_cache_key != request.system_key:
            raise InvalidArgumentError(f"system_cache_key: {metadata.system_cache_key!r}, but this request began with "
                                       f"{request.system_key!r}")

    def _begin(self, rows: Rows, batch: Batch, system_included: bool) -> _Request:
        """A new request; its system prompt goes into the cache, unless relaying is off."""
        metadata = rows.metadata
        info = metadata.relay_info if metadata is not None else None
        if metadata is None or info is None:
            return _Request(None, 0, None if metadata is None else metadata.system_cache_key)
        info.check()
        length = info.system_length
        if system_included and length > rows.num_keys:
            raise InvalidArgumentError(f"relay_info.system_length: {length}, but there are only {rows.num_keys} keys")
        request = _Request(None, length, metadata.system_cache_key)
        shared = batch.system_rows(rows, length) if system_included else None
        if not (info.enabled and self.config.enabled) or length == 0:
            if not system_included and length > 0:
                raise InvalidArgumentError("system_included: False, but relaying is off, so no system prompt is kept")
            return request
        key, dtype = metadata.system_cache_key, batch.key.dtype
        if isinstance(self.prompts, DevicePrompts):
            request.prompt = self.prompts.get(key, info, shared, self._open_pool(dtype))
        else:
            request.prompt = self.prompts.get(key, info, shared, dtype)
        return request

    def _follow(self, rows: Rows, leader: Rows, first: _Request, batch: Batch, system_included: bool) -> _Request:
        """Another row of a batch under one metadata: it shares the first row's prompt, so it must begin with it."""
        if system_included:
            pairs = zip(batch.system_rows(rows, first.system_length), batch.system_rows(leader, first.system_length))
            for name, (mine, theirs) in zip(("key", "value"), pairs):
                if first.prompt is not None and not _equal(mine, theirs):
                    raise InvalidArgumentError(f"{name}: the system tokens of row {rows.identity[-1]} are not those of "
                                               f"row {leader.identity[-1]}, though both have one metadata")
        return _Request(first.prompt, first.system_length, first.system_key)

    def _undo(self, fresh: dict[Any, _Request], before: dict[Any, int]) -> None:
        if self._pool is None:
            return
        for request in fresh.values():
            self._pool.give_back(request.blocks)
        for identity, length in before.items():
            request = self._requests[identity]
            needed = -(-length // self._pool.block_size)
            self._pool.give_back(request.blocks[needed:])
            del request.blocks[needed:]
            request.length = length

    def _keep(self, batch: Batch, fresh: dict[Any, _Request]) -> None:
        self._requests.update(fresh)
        for rows in batch.rows:
            if rows.identity in fresh and rows.identity[0] == "object":
                weakref.finalize(rows.metadata, _release_later, weakref.ref(self), rows.identity)

    def release(self, attn_metadata: Union[RelayMetadata, Sequence[RelayMetadata]]) -> int:
        """Forgets what is kept for requests; returns how many there were. A request without a user key goes by itself
        with its metadata object. Its system prompt stays in the prompt cache."""
        wanted = {identity_base(m) for m in ([attn_metadata] if isinstance(attn_metadata, RelayMetadata)
                                             else attn_metadata)}
        with self._lock:
            gone = [identity for identity in self._requests if identity[:2] in wanted]
            for identity in gone:
                self._release(identity)
        return len(gone)

    def _release(self, identity: Any) -> None:
        with self._lock:
            request = self._requests.pop(identity, None)
            if request is not None and self._pool is not None:
                self._pool.give_back(request.blocks)

    def prefetch(self, system_keys: Sequence[str]) -> None:
        """Announces system prompts that will be wanted soon; see RelayAttentionIntegration.prefetch."""
        with self._lock:
            self.prompts.announce(system_keys)

    def num_tokens(self, attn_metadata: RelayMetadata) -> int:
        """Tokens kept for a request, its system prompt included; 0 if it is not known."""
        with self._lock:
            request = self._requests.get((*identity_base(attn_metadata), 0))
            if request is None:
                return 0
            return request.length + (request.system_length if request.prompt is not None else 0)

    # ---- computing -------------------------------------------------------

    def _open_pool(self, dtype: str) -> PagePool:
        """The pages, made when the first call shows the dtype."""
        if self._pool is None:
            self._pool = PagePool(self.device, self.block_size, self.num_kv_heads, self.head_size, dtype)
        elif self._pool.dtype != dtype:
            raise BadDtypeError(f"key: {dtype}, but this layer's K/V are {self._pool.dtype}")
        return self._pool

    def _compute(self, batch: Batch, fresh: dict[Any, _Request], system_included: bool) -> None:
        pool = self._open_pool(batch.key.dtype)
        requests = [None if rows.identity is None else fresh.get(rows.identity) or self._requests[rows.identity]
                    for rows in batch.rows]
        slots = np.full(batch.key.shape[0], -1, np.int64)
        step = _Step(pool.block_size)
        for rows, request in zip(batch.rows, requests):
            if request is None:
                step.add_alone(rows, batch)
                continue
            skipped = request.system_length if (rows.identity in fresh and request.prompt is not None
                                                and system_included) else 0
            self._append(rows, request, skipped, slots)
            step.add(rows, request, skipped, batch)
        if (slots >= 0).any():
            where = slots if self.device.kind == "cpu" else cuda_tensors.slots(slots, self.device.index)
            cache_write(self.device, batch.key, batch.value, pool.key, pool.value, where)
        enabled = self.config.enabled and any(rows.relaying for rows in batch.rows)
        self._run(batch, step, self._strategy_for(enabled))

    def _append(self, rows: Rows, request: _Request, skipped: int, slots: "np.ndarray[Any, Any]") -> None:
        """Finds room for a request's new tokens and says where they go."""
        assert self._pool is not None
        end = request.length + rows.num_keys - skipped
        missing = -(-end // self._pool.block_size) - len(request.blocks)
        if missing > 0:
            request.blocks.extend(self._pool.take(missing))
        slots[rows.first_key + skipped:rows.first_key + rows.num_keys] = self._pool.slots(request.blocks,
                                                                                          request.length, end)
        request.length = end

    def _run(self, batch: Batch, step: "_Step", strategy: str) -> None:
        assert self._pool is not None
        plan = self._plan(batch.query.dtype, batch.key.dtype, strategy)
        try:
            step.fill(self._forest, self._pool.num_blocks)
            plan.build(self._forest).run(
                batch.query, batch.output, key_pool=self._pool.key if self._pool.num_blocks else None,
                value_pool=self._pool.value if self._pool.num_blocks else None, contiguous=step.contiguous,
                alibi_slopes=self._alibi, sinks=self._sinks)
            info = plan.info()
        finally:  # prompts are pinned by requests, not by what was computed last
            plan.drop()
            self._forest.clear()
        self._counts["forwards"] += 1
        self._counts["relayed" if info.relay_segments else "plain"] += 1
        self._counts["tokens_saved"] += info.shared_tokens_saved
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s: %d rows of %d requests; %d system prompts read once, %d read by each request, %d tokens not "
                      "read again; %s", self.name, info.num_rows, len(batch.rows), info.relay_segments,
                      info.plain_segments, info.shared_tokens_saved, info.kernel)

    def stats(self) -> LayerStats:
        with self._lock:
            cache = self.prompts.stats()
            return LayerStats(**self._counts, **cache, requests=len(self._requests),
                              page_bytes=self._pool.num_bytes if self._pool else 0)


class _Step:
    """The forest of one forward: requests in groups by their prompt, and the system's own rows of first calls."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.starts, self.own = [0], []  # type: tuple[list[int], list[Span]]
        self.groups: dict[str, tuple[AnyPrompt, list[int]]] = {}
        self.alone: list[int] = []
        self.contiguous: list[tuple[TensorView, TensorView]] = []

    def _add(self, rows: int, span: Span, prompt: Optional[AnyPrompt] = None) -> None:
        place = len(self.own)
        self.starts.append(self.starts[-1] + rows)
        self.own.append(span)
        if prompt is None:
            self.alone.append(place)
        else:
            self.groups.setdefault(f"{id(prompt.cache)}/{prompt.key}", (prompt, []))[1].append(place)

    def _given(self, rows: Rows, num_keys: int, batch: Batch) -> Span:
        """The first tokens of a request as they were given, without copying them."""
        end = rows.first_key + num_keys
        self.contiguous.append((batch.key.rows(rows.first_key, end), batch.value.rows(rows.first_key, end)))
        return Span.contiguous(num_keys, len(self.contiguous) - 1)

    def add_alone(self, rows: Rows, batch: Batch) -> None:
        self._add(rows.num_queries, self._given(rows, rows.num_keys, batch))

    def add(self, rows: Rows, request: _Request, skipped: int, batch: Batch) -> None:
        system_rows = max(0, rows.num_queries - (rows.num_keys - skipped))
        if system_rows > 0:  # queries of the system prompt itself see it causally
            self._add(system_rows, request.prompt.span(skipped) if isinstance(request.prompt, DevicePrompt)
                      else self._given(rows, skipped, batch))
        self._add(rows.num_queries - system_rows, Span.paged(request.length, request.blocks), request.prompt)

    def fill(self, forest: Forest, num_blocks: int) -> None:
        order, segments = list(self.alone), []
        for prompt, members in self.groups.values():
            span = prompt.span() if isinstance(prompt, DevicePrompt) else Span.packed(prompt)
            segments.append(Segment(span, len(order), len(members)))
            order.extend(members)
        forest.set(self.starts, self.own, segments, order=order, block_size=self.block_size, num_blocks=num_blocks)


def _equal(a: TensorView, b: TensorView) -> bool:
    if a.device != b.device or a.device[0] == "cpu":
        return np.array_equal(a.array(), b.array())
    return cuda_tensors.same_bits(a, b)


def _release_later(layer: "weakref.ref[RelayAttentionLayer]", identity: Any) -> None:
    alive = layer()
    if alive is not None:
        alive._release(identity)
