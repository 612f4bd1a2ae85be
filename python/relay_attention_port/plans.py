"""The fourth and fifth concepts: planning a step, and running one layer by the plan (``relay/plan.h``, ``run.h``)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Sequence

from . import c_structs as c
from .c_library import Owner, open_handle
from .cuda_tensors import PlanMemory
from .devices import Device
from .errors import BadShapeError, InvalidArgumentError, StalePlanError
from .forests import Forest
from .tensor_view import aligned_bytes, dtype_number, float_array, int32, output_view, tensor_view

STRATEGIES = {"auto": 0, "relay": 1, "plain": 2}
_NO_TENSOR = c.Tensor()


@dataclass(frozen=True)
class Attention:
    """The attention that a layer computes; the formula is in ``relay/plan.h``.

    dtypes: "f32", "f16", "bf16", or numpy's or torch's. softmax_scale 0: 1 / sqrt(head_dim). sliding_window w: a
    query sees itself and the w - 1 tokens before; num_sink_tokens leading tokens stay visible. use_alibi, use_sinks:
    a run is given alibi_slopes, sinks.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_dtype: Any = "bf16"
    kv_dtype: Any = "bf16"
    output_dtype: Any = "bf16"
    softmax_scale: float = 0.0
    logit_soft_cap: float = 0.0
    sliding_window: int = 0
    num_sink_tokens: int = 0
    use_alibi: bool = False
    use_sinks: bool = False


class PlanInfo(NamedTuple):
    """What a plan decided. ``relay_segments`` are read once for all their requests, ``plain_segments`` by each;
    ``shared_tokens_saved`` counts K/V tokens that plain attention would have read again."""

    num_requests: int
    num_rows: int
    relay_segments: int
    plain_segments: int
    shared_tokens_saved: int
    num_work_items: int
    unique_kv_bytes: float
    flops: float
    kernel: str


def _attention_struct(device: Device, attention: Attention) -> c.Attention:
    raw = device.lib.defaults(c.Attention)
    for name in ("num_heads", "num_kv_heads", "head_dim", "sliding_window", "num_sink_tokens"):
        setattr(raw, name, int32(getattr(attention, name), name))
    for name in ("query_dtype", "kv_dtype", "output_dtype"):
        setattr(raw, name, dtype_number(getattr(attention, name), name))
    raw.softmax_scale, raw.logit_soft_cap = attention.softmax_scale, attention.logit_soft_cap
    raw.use_alibi, raw.use_sinks = bool(attention.use_alibi), bool(attention.use_sinks)
    return raw


class Plan(Owner):
    """How a step is cut; built once per step, run once per layer. Belongs to one thread at a time.

    strategy: "auto" (the cost model decides for each segment), "relay" or "plain". repeatable: bitwise the same
    result whatever else is in the batch. The max_ bounds are for CUDA graphs.
    Raises InvalidArgumentError (names the field), BadDtypeError, UnsupportedError, OutOfMemoryError.
    """

    def __init__(self, device: Device, attention: Attention, *, strategy: str = "auto", repeatable: bool = False,
                 max_requests: int = 0, max_rows: int = 0, max_depth: int = 0, max_tokens: int = 0,
                 max_blocks: int = 0) -> None:
        self.device, self.lib, self.attention = device, device.lib, attention
        raw, options = _attention_struct(device, attention), self.lib.defaults(c.PlanOptions)
        if strategy not in STRATEGIES:
            raise InvalidArgumentError(f"strategy: {strategy!r}, expected 'auto', 'relay' or 'plain'")
        options.strategy, options.repeatable = STRATEGIES[strategy], bool(repeatable)
        bounds = {"max_requests": max_requests, "max_rows": max_rows, "max_depth": max_depth,
                  "max_tokens": max_tokens, "max_blocks": max_blocks}
        for name, bound in bounds.items():
            setattr(options, name, int32(bound, name))
        self._handle = open_handle(self.lib, self.lib.c.relay_plan_create, self.lib.c.relay_plan_destroy,
                                   (device.handle,), device.pointer, ctypes.byref(raw), ctypes.byref(options))
        self._args = self.lib.defaults(c.RunArgs)
        self._borrowed: Optional[tuple[object, ...]] = None
        self._workspace: Any = None
        self._workspace_bytes = 0
        self._cuda = PlanMemory(device.index) if device.kind == "cuda" else None

    def build(self, forest: Forest) -> "Plan":
        """Plans a step. The forest must stay unchanged while the plan is run (else: StalePlanError).
        Raises WrongDeviceError, InvalidArgumentError, OutOfRangeError, OutOfMemoryError."""
        self._borrowed = None
        self.lib.call(self.lib.c.relay_plan_build, self.pointer, forest.pointer)
        if self._cuda is not None:
            self._cuda.rebuilt()
        self._borrowed = (forest.handle, forest.pins)
        self._grow_workspace()
        return self

    def drop(self) -> None:
        """Lets go of the forest, and so of the prompts in it. The plan is as if it had never been built."""
        self._borrowed = None

    @property
    def workspace_bytes(self) -> int:
        return int(self.lib.c.relay_plan_workspace_bytes(self.pointer))

    @property
    def workspace(self) -> tuple[int, int]:
        """Address and size of the memory for a run, for a caller of relay_run itself. Raises StalePlanError."""
        if self._borrowed is None:
            raise StalePlanError("the plan is not built")
        return self._args.workspace, self._workspace_bytes

    def _grow_workspace(self) -> None:
        need = self.workspace_bytes
        if need <= self._workspace_bytes:
            return
        if self._cuda is not None:
            self._args.workspace = self._cuda.reserve(need)
        else:
            self._workspace = aligned_bytes(need)
            self._args.workspace = self._workspace.ctypes.data
        self._workspace_bytes = self._args.workspace_bytes = need

    def info(self) -> PlanInfo:
        """Raises StalePlanError before the first build."""
        info = c.PlanInfo(struct_size=ctypes.sizeof(c.PlanInfo))
        self.lib.call(self.lib.c.relay_plan_get_info, self.pointer, ctypes.byref(info))
        values = {name: getattr(info, name) for name in PlanInfo._fields}
        return PlanInfo(**{**values, "kernel": values["kernel"].decode()})

    def run(self, query: Any, output: Any, *, key_pool: Any = None, value_pool: Any = None,
            contiguous: Sequence[tuple[Any, Any]] = (), layer: int = 0, lse: Any = None, alibi_slopes: Any = None,
            sinks: Any = None, stream: Optional[int] = None, plan_in_workspace: Optional[bool] = None) -> None:
        """Computes one layer into `output` (and `lse`). Nothing is copied; the GIL is released meanwhile.

        query, output: [T, Hq, D], T >= the plan's rows (max_rows on CUDA, if it has bounds), last stride 1; key_pool,
        value_pool: [num_blocks, block_size, Hkv, D], the new tokens already in place; contiguous: (key, value) pairs,
        [n, Hkv, D] each;
        layer: of packed prompts; lse: [T, Hq] float32, natural log; alibi_slopes, sinks: [Hq] floats (CUDA: float32
        tensors there). The plan's own workspace is used: one run of a plan at a time.

        CUDA: asynchronous on `stream` (a cudaStream_t that lives until the plan runs on another), default torch's
        current one; after a run of the same plan on another stream it waits there, on the device. It can be captured
        into a graph (of torch's current stream), if the plan has bounds: each replay then takes the plan as built
        last, and the plan must outlive the graph. plan_in_workspace True: the work list is not copied, since a run
        before this one, in the same graph, has brought it; default: copied once for each build, and in each graph run.
        Raises, before anything is written: StalePlanError, BadDtypeError, BadShapeError, BadStrideError,
        OutOfRangeError, OverlapError, MisalignedError, WrongDeviceError, NullPointerError, InvalidArgumentError.
        """
        if self._borrowed is None:
            raise StalePlanError("the plan is not built")
        args, here = self._args, self.device.check_here
        args.query = here(tensor_view(query, "query"), "query").c
        args.output = here(output_view(output, "output"), "output").c
        args.key_pool = _NO_TENSOR if key_pool is None else here(tensor_view(key_pool, "key_pool"), "key_pool").c
        args.value_pool = (_NO_TENSOR if value_pool is None
                           else here(tensor_view(value_pool, "value_pool"), "value_pool").c)
        args.lse = _NO_TENSOR if lse is None else here(output_view(lse, "lse"), "lse").c
        args.layer = int32(layer, "layer")
        args.num_contiguous = len(contiguous)
        keep = [self._set_per_head("alibi_slopes", alibi_slopes), self._set_per_head("sinks", sinks)]
        args.contiguous = None
        if contiguous:
            pairs = [c.KvTensors(here(tensor_view(key, f"contiguous[{i}].key"), f"contiguous[{i}].key").c,
                                 here(tensor_view(value, f"contiguous[{i}].value"), f"contiguous[{i}].value").c)
                     for i, (key, value) in enumerate(contiguous)]
            args.contiguous = (c.KvTensors * len(pairs))(*pairs)
        if self._cuda is None:
            args.stream, args.plan_in_workspace = stream, bool(plan_in_workspace)
        else:
            args.stream, args.plan_in_workspace = self._cuda.enter(stream, plan_in_workspace)
        try:
            self.lib.call(self.lib.c.relay_run, self.pointer, ctypes.byref(args))
        except BaseException:
            if self._cuda is not None:
                self._cuda.rebuilt()
            raise
        del keep

    def _set_per_head(self, name: str, values: Any) -> Any:
        """Points the run's arguments at one float for each head; returns what must stay alive meanwhile."""
        if values is None:
            setattr(self._args, name, None)
            return None
        if self.device.kind == "cuda":
            view = self.device.check_here(tensor_view(values, name), name)
            if view.shape != (self.attention.num_heads,) or view.dtype != "f32":
                raise BadShapeError(f"{name}: {view.dtype} of shape {view.shape}, expected f32 of "
                                    f"({self.attention.num_heads},)")
            setattr(self._args, name, view.c.data)
            return view
        array = float_array(values, self.attention.num_heads, name)
        setattr(self._args, name, array.ctypes.data)
        return array
