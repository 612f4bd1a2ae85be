"""What one call of a layer is given, as rows of requests."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple, Optional, Sequence

import numpy as np

from .errors import BadShapeError, BadStrideError, InvalidArgumentError
from .relay_config import RelayMetadata
from .tensor_view import TensorView, output_view, readable_view, refuse_gradients


class Rows(NamedTuple):
    """One request of a call: its queries and keys among the call's. Without metadata there is no identity."""

    metadata: Optional[RelayMetadata]
    identity: Any
    first_query: int
    num_queries: int
    first_key: int
    num_keys: int

    @property
    def relaying(self) -> bool:
        info = None if self.metadata is None else self.metadata.relay_info
        return info is not None and info.enabled


class Batch(NamedTuple):
    """query, output: [T, Hq, D]; key, value: [N, Hkv, D]; result: what the caller gets."""

    query: TensorView
    key: TensorView
    value: TensorView
    output: TensorView
    result: Any
    rows: list[Rows]

    def system_rows(self, rows: Rows, length: int) -> tuple[TensorView, TensorView]:
        end = rows.first_key + length
        return self.key.rows(rows.first_key, end), self.value.rows(rows.first_key, end)


def identity_base(metadata: RelayMetadata) -> tuple[str, Any]:
    """What a request is known by: its user key, or else its metadata object."""
    if metadata.user_cache_key is not None:
        return ("key", metadata.user_cache_key)
    return ("object", id(metadata))


def _with_heads(view: TensorView, heads: int, size: int, name: str) -> TensorView:
    """[tokens, heads, size] or [batch, tokens, heads, size]."""
    shape = view.shape
    split = len(shape) >= 3 and shape[-2:] == (heads, size)
    if not split and len(shape) in (2, 3) and shape[-1] == heads * size:
        view = view.split_last(heads, size, name)
    elif not split:
        raise BadShapeError(f"{name}: shape {shape}, expected [tokens, {heads}, {size}] or [tokens, {heads * size}], "
                            "with or without a batch before it")
    return view


def _flat(view: TensorView) -> Optional[TensorView]:
    """Batch and tokens as one dimension; None where the strides do not allow that."""
    if len(view.shape) == 3:
        return view
    batch, tokens, *shape = view.shape
    outer, inner, *strides = view.strides
    if tokens > 1 and batch > 1 and outer != tokens * inner:
        return None
    return view.reshaped((batch * tokens, *shape), (outer if tokens == 1 else inner, *strides))


def _input(tensor: Any, heads: int, size: int, name: str) -> tuple[TensorView, tuple[int, ...]]:
    """A view as rows, and its leading dimensions. Copied only if its strides cannot be seen so."""
    view = _with_heads(readable_view(tensor, name), heads, size, name)
    flat = _flat(view)
    if flat is None:
        copy = tensor.contiguous() if hasattr(tensor, "contiguous") else np.ascontiguousarray(view.array())
        flat = _flat(_with_heads(readable_view(copy, name, view.dtype), heads, size, name))
        assert flat is not None
    return flat, view.shape[:-2]


def _output(tensor: Any, query: Any, heads: int, size: int, leading: tuple[int, ...],
            dtype: str) -> tuple[TensorView, Any]:
    if tensor is None:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(query, torch.Tensor):
            tensor = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        elif isinstance(query, np.ndarray):
            tensor = np.empty(query.shape, query.dtype)
        else:
            raise InvalidArgumentError(f"output: needed, since the query is a {type(query).__name__}")
    view = _with_heads(output_view(tensor, "output"), heads, size, "output")
    if view.shape[:-2] != leading:
        raise BadShapeError(f"output: {view.shape[:-2]} tokens, expected {leading} as the query has")
    flat = _flat(view)
    if flat is None:
        raise BadStrideError("output: its batch and tokens cannot be seen as rows")
    if view.dtype != dtype:
        raise BadShapeError(f"output: {view.dtype}, expected {dtype} as the query has")
    return flat, tensor


def _cut(count: int, total_queries: int, total_keys: int, query_lens: Optional[Sequence[int]]) -> list[int]:
    if total_queries != total_keys:
        raise BadShapeError(f"key: {total_keys} tokens, expected {total_queries} as the query has")
    if query_lens is None:
        if count == 0 or total_queries % count:
            raise InvalidArgumentError(f"query_lens: needed, since {total_queries} tokens are not equal parts for "
                                       f"{count} requests")
        return [total_queries // count] * count
    lens = [int(length) for length in query_lens]
    if len(lens) != count or min(lens, default=0) < 0 or sum(lens) != total_queries:
        raise InvalidArgumentError(f"query_lens: {lens}, expected {count} numbers >= 0 of sum {total_queries}")
    return lens


def _rows(metadata: Any, queries: tuple[int, ...], keys: tuple[int, ...],
          query_lens: Optional[Sequence[int]]) -> list[Rows]:
    one = metadata is None or isinstance(metadata, RelayMetadata)
    if len(queries) == 1 and not one:
        lens = _cut(len(metadata), queries[0], keys[0], query_lens)
        query_lens_of = key_lens_of = lens
    elif query_lens is not None:
        raise InvalidArgumentError("query_lens: only for a sequence of metadata with queries of [tokens, ...]")
    else:
        count = queries[0] if len(queries) == 2 else 1
        query_lens_of, key_lens_of = [queries[-1]] * count, [keys[-1]] * count
    listed = [metadata] * len(query_lens_of) if one else list(metadata)
    if len(listed) != len(query_lens_of):
        raise InvalidArgumentError(f"attn_metadata: {len(listed)} entries for a batch of {len(query_lens_of)}")
    made, first_query, first_key = [], 0, 0
    for index, (entry, num_queries, num_keys) in enumerate(zip(listed, query_lens_of, key_lens_of)):
        if entry is not None and not isinstance(entry, RelayMetadata):
            raise InvalidArgumentError(f"attn_metadata[{index}]: {entry!r}, expected a RelayMetadata")
        identity = None if entry is None else (*identity_base(entry), index if one else 0)
        made.append(Rows(entry, identity, first_query, num_queries, first_key, num_keys))
        first_query, first_key = first_query + num_queries, first_key + num_keys
    return made


def make_batch(num_heads: int, num_kv_heads: int, head_size: int, query: Any, key: Any, value: Any, output: Any,
               metadata: Any, query_lens: Optional[Sequence[int]]) -> Batch:
    """Raises BadShapeError, BadDtypeError, BadStrideError, InvalidArgumentError, UnsupportedError (gradients)."""
    refuse_gradients({"query": query, "key": key, "value": value})
    q, queries = _input(query, num_heads, head_size, "query")
    k, keys = _input(key, num_kv_heads, head_size, "key")
    v, values = _input(value, num_kv_heads, head_size, "value")
    if keys != values or len(keys) != len(queries) or keys[:-1] != queries[:-1]:
        raise BadShapeError(f"key, value: {keys} and {values} tokens for queries of {queries}")
    if v.dtype != k.dtype:
        raise BadShapeError(f"value: {v.dtype}, expected {k.dtype} as the key has")
    if queries[-1] > keys[-1]:
        raise BadShapeError(f"query: {queries[-1]} tokens, but only {keys[-1]} keys")
    out, result = _output(output, query, num_heads, head_size, queries, q.dtype)
    rows = _rows(metadata, queries, keys, query_lens)
    known = [row.identity for row in rows if row.identity is not None]
    if len(set(known)) != len(known):
        raise InvalidArgumentError("attn_metadata: the same request twice (one metadata object, or one user key)")
    return Batch(q, k, v, out, result, rows)
