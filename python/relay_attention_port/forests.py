"""The third concept: what a batch shares (``relay/forest.h``)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Optional, Sequence

import numpy as np

from . import c_structs as c
from .c_library import Owner, open_handle
from .devices import Device
from .errors import BadShapeError, InvalidArgumentError, WrongDeviceError
from .prompts import Prompt
from .tensor_view import int32, int_array

_LAYOUTS = {c.KV_PAGED: "paged", c.KV_CONTIGUOUS: "contiguous", c.KV_PACKED: "packed"}


@dataclass(frozen=True)
class Span:
    """Where a run of ``length`` tokens' K/V lies. Make it by paged(), contiguous() or packed()."""

    layout: str
    length: int
    block_table: Any = None
    tensor_index: int = 0
    prompt: Optional[Prompt] = None

    @classmethod
    def paged(cls, length: int, block_table: Any) -> "Span":
        """Blocks of the pools given to a run; block_table: at least ceil(length / block_size) ids."""
        return cls("paged", length, block_table=block_table)

    @classmethod
    def contiguous(cls, length: int, tensor_index: int) -> "Span":
        """The (key, value) pair of that index among a run's `contiguous`."""
        return cls("contiguous", length, tensor_index=tensor_index)

    @classmethod
    def packed(cls, prompt: Prompt, length: Optional[int] = None) -> "Span":
        """A prompt of the cache, or its first `length` tokens. The forest keeps it pinned."""
        return cls("packed", prompt.num_tokens if length is None else length, prompt=prompt)


@dataclass(frozen=True)
class Segment:
    """A span that requests first_request .. first_request + num_requests - 1 (positions in the forest's order)
    attend; ``parent`` is the index of the segment that it stands on, or None."""

    span: Span
    first_request: int
    num_requests: int
    parent: Optional[int] = None


class Forest(Owner):
    """What the requests of a step share. Belongs to one thread at a time, together with its plans.

    Give it by set(), or let find() find it from block tables.
    """

    def __init__(self, device: Device) -> None:
        self.device, self.lib = device, device.lib
        self._handle = open_handle(self.lib, self.lib.c.relay_forest_create, self.lib.c.relay_forest_destroy,
                                   (device.handle,), device.pointer)
        self.pins: tuple[object, ...] = ()
        self.block_size = 16

    def set(self, query_start_loc: Any, own: Sequence[Span], segments: Sequence[Segment] = (), *, order: Any = None,
            block_size: int = 16, num_blocks: int = 0) -> "Forest":
        """Replaces the content. Plans built from the old one become stale.

        query_start_loc: [R + 1] int32, rows of request r are query_start_loc[r] .. query_start_loc[r + 1] - 1;
        own: a span for each request, its new tokens included; order: a permutation of the requests that lines the
        groups up; block_size, num_blocks: of the paged pool.
        Raises InvalidArgumentError, BadShapeError, OutOfRangeError (block id), WrongDeviceError, OutOfMemoryError.
        """
        starts = int_array(query_start_loc, "query_start_loc")
        if len(starts) != len(own) + 1:
            raise BadShapeError(f"query_start_loc: {len(starts)} entries, expected {len(own) + 1} for {len(own)} spans")
        desc = self.lib.defaults(c.ForestDesc)
        desc.block_size, desc.num_blocks = int32(block_size, "block_size"), int32(num_blocks, "num_blocks")
        arrays: list[Any] = [starts]
        desc.num_requests = len(own)
        desc.query_start_loc = starts.ctypes.data
        spans = [self._span(span, f"own[{i}]", block_size, arrays) for i, span in enumerate(own)]
        desc.own = (c.KvSpan * max(1, len(own)))(*spans)
        if order is not None:
            arrays.append(int_array(order, "order"))
            if len(arrays[-1]) != len(own):
                raise BadShapeError(f"order: {len(arrays[-1])} entries, expected {len(own)}")
            desc.order = arrays[-1].ctypes.data
        desc.num_segments = len(segments)
        desc.segments = (c.Segment * max(1, len(segments)))(
            *(c.Segment(c.NO_PARENT if segment.parent is None else int32(segment.parent, f"segments[{i}].parent"),
                        int32(segment.first_request, f"segments[{i}].first_request"),
                        int32(segment.num_requests, f"segments[{i}].num_requests"),
                        self._span(segment.span, f"segments[{i}].span", block_size, arrays))
              for i, segment in enumerate(segments)))
        self.lib.call(self.lib.c.relay_forest_set, self.pointer, ctypes.byref(desc))
        used = (*own, *(segment.span for segment in segments))
        self.pins = tuple(span.prompt.handle for span in used if span.prompt is not None)
        self.block_size = block_size
        return self

    def clear(self) -> "Forest":
        """No requests, no segments; prompts that it kept pinned are let go."""
        return self.set([0], [])

    def _span(self, span: Span, name: str, block_size: int, arrays: list[Any]) -> c.KvSpan:
        made = c.KvSpan(length=int32(span.length, f"{name}.length"))
        if span.layout == "paged":
            table = int_array(span.block_table, f"{name}.block_table")
            if block_size > 0 and len(table) * block_size < span.length:
                raise BadShapeError(f"{name}.block_table: {len(table)} blocks of {block_size} hold fewer than "
                                    f"{span.length} tokens")
            arrays.append(table)
            made.layout, made.block_table = c.KV_PAGED, table.ctypes.data
        elif span.layout == "contiguous":
            made.layout, made.tensor_index = c.KV_CONTIGUOUS, int32(span.tensor_index, f"{name}.tensor_index")
        elif span.layout == "packed" and span.prompt is not None:
            if span.prompt.cache.device is not self.device:
                raise WrongDeviceError(f"{name}.prompt: belongs to another device")
            made.layout, made.prompt = c.KV_PACKED, span.prompt.pointer
        else:
            raise InvalidArgumentError(f"{name}.layout: {span.layout!r}, expected 'paged', 'contiguous' or 'packed'")
        return made

    def find(self, query_start_loc: Any, seq_lens: Any, block_table: Any, *, block_size: int, num_blocks: int,
             min_shared_tokens: int = 32, max_depth: int = 4) -> "Forest":
        """Replaces the content by what block tables share: any subset of the requests, several groups, nested.

        query_start_loc: [R + 1]; seq_lens: [R], all tokens of each request, new ones included; block_table:
        [R, n] ids, rows dense, what lies behind a request's last block is not read. int32 arrays are not copied.
        min_shared_tokens: shorter common runs stay with the requests; max_depth: nested segments, 0 finds nothing.
        Raises as set().
        """
        starts = int_array(query_start_loc, "query_start_loc")
        lens = int_array(seq_lens, "seq_lens")
        table = int_array(block_table, "block_table", ndim=2)
        count = len(lens)
        if len(starts) != count + 1:
            raise BadShapeError(f"query_start_loc: {len(starts)} entries, expected {count + 1} for {count} requests")
        if len(table) < count or (count and table.shape[1] * max(0, int32(block_size, "block_size")) < lens.max()):
            raise BadShapeError(f"block_table: shape {table.shape} is too small for {count} requests of up to "
                                f"{lens.max() if count else 0} tokens in blocks of {block_size}")
        tables = self.lib.defaults(c.BlockTables)
        tables.num_requests = count
        tables.query_start_loc, tables.seq_lens = starts.ctypes.data, lens.ctypes.data
        tables.block_table = table.ctypes.data
        tables.block_table_stride = table.strides[0] // table.itemsize
        tables.block_size, tables.num_blocks = int32(block_size, "block_size"), int32(num_blocks, "num_blocks")
        tables.min_shared_tokens = int32(min_shared_tokens, "min_shared_tokens")
        tables.max_depth = int32(max_depth, "max_depth")
        self.lib.call(self.lib.c.relay_forest_find, self.pointer, ctypes.byref(tables))
        self.pins, self.block_size = (), block_size
        return self

    def move_segment(self, index: int, span: Span) -> None:
        """Says that a segment's tokens are to be read elsewhere: in a packed copy of the pages in which find() found
        them. span: packed() or contiguous(), of the segment's length and with the same K/V, which is the caller's
        responsibility. Plans built before become stale.
        Raises OutOfRangeError, InvalidArgumentError, WrongDeviceError."""
        raw = self._span(span, "span", self.block_size, [])
        self.lib.call(self.lib.c.relay_forest_move_segment, self.pointer, int32(index, "index"), ctypes.byref(raw))
        if span.prompt is not None:
            self.pins = (*self.pins, span.prompt.handle)

    @property
    def num_requests(self) -> int:
        return int(self.lib.c.relay_forest_num_requests(self.pointer))

    @property
    def num_segments(self) -> int:
        return int(self.lib.c.relay_forest_num_segments(self.pointer))

    def order(self) -> "np.ndarray[Any, Any]":
        """[R] int32: the request at each position."""
        order = self.lib.c.relay_forest_order(self.pointer)
        return np.array(order[:self.num_requests] if order else [], np.int32)

    def segments(self) -> list[Segment]:
        """A copy of the segments; packed ones come without their prompt."""
        found = []
        for index in range(self.num_segments):
            raw = self._segment(index)
            found.append(Segment(self._read(raw.kv), raw.first_request, raw.num_requests,
                                 None if raw.parent == c.NO_PARENT else raw.parent))
        return found

    def _segment(self, index: int) -> c.Segment:
        raw = c.Segment()
        self.lib.call(self.lib.c.relay_forest_get_segment, self.pointer, int32(index, "index"), ctypes.byref(raw))
        return raw

    def segment_blocks(self, index: int) -> tuple[int, bytes]:
        """A segment's tokens, and the ids of its blocks as the bytes of an int32 array, empty for one that is not
        paged: cheap to compare. Raises OutOfRangeError."""
        kv = self._segment(index).kv
        count = -(-kv.length // self.block_size) if kv.layout == c.KV_PAGED else 0
        return kv.length, ctypes.string_at(kv.block_table, 4 * count) if count else b""

    def own(self, request: int) -> Span:
        """A copy of a request's own span. Raises OutOfRangeError."""
        raw = c.KvSpan()
        self.lib.call(self.lib.c.relay_forest_get_own, self.pointer, int32(request, "request"), ctypes.byref(raw))
        return self._read(raw)

    def _read(self, raw: c.KvSpan) -> Span:
        table = None
        if raw.layout == c.KV_PAGED:
            count = -(-raw.length // self.block_size)
            table = np.array(ctypes.cast(raw.block_table, ctypes.POINTER(ctypes.c_int32))[:count], np.int32)
        return Span(_LAYOUTS[raw.layout], raw.length, table, raw.tensor_index)
