"""Operators for PyTorch: ``torch.ops.relay_attention.run``, ``.fuse`` and ``.cache_write``.

    from relay_attention_port import torch_ops                # defines them

    number = torch_ops.number_of(plan)
    torch.ops.relay_attention.cache_write(key, value, key_pool, value_pool, slot_mapping)
    torch.ops.relay_attention.run(query, output, number, key_pool, value_pool)
    output, lse = torch.ops.relay_attention.fuse([out_sys, out_usr], [lse_sys, lse_usr])

They take torch tensors on the CPU or on CUDA devices, say which of them they write, and have fake implementations: so
torch.compile takes them into its graphs (fullgraph=True), and what it compiles can be captured in a CUDA graph, as the
operators themselves can. On CUDA they are asynchronous on torch's current stream. They compute no gradients, and refuse
tensors that want one.

A plan comes in by its number, because an operator's arguments are tensors and numbers. A number belongs to one plan for
ever and does not keep it alive: whoever runs a compiled function or a graph keeps the plan, and its forest, as long; a
number whose plan is gone, or closed, raises ClosedError. What a plan holds is no argument either: build() it before the
operator runs, in any order with compiling; rebuilding it compiles nothing anew. torch.compile treats the number as any
integer argument: a second plan costs one more compilation, further ones none. In a CUDA graph the plan must have bounds
(Plan's max_ arguments), and each replay takes it as it was built last.

Importing this module imports torch.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Optional

import torch

from .devices import device_of
from .errors import BadShapeError, ClosedError
from .operations import cache_write, fuse
from .plans import Plan
from .tensor_view import refuse_gradients, tensor_view

_plans: "weakref.WeakValueDictionary[int, Plan]" = weakref.WeakValueDictionary()
_numbers: "weakref.WeakKeyDictionary[Plan, int]" = weakref.WeakKeyDictionary()
_next = itertools.count(1)

SCHEMAS = {
    "run": "(Tensor query, Tensor(a!) output, SymInt plan, Tensor? key_pool=None, Tensor? value_pool=None, "
           "Tensor[]? contiguous=None, int layer=0, Tensor(b!)? lse=None, Tensor? alibi_slopes=None, "
           "Tensor? sinks=None, bool? plan_in_workspace=None) -> ()",
    "fuse": "(Tensor[] outputs, Tensor[] lses) -> (Tensor, Tensor)",
    "cache_write": "(Tensor key, Tensor value, Tensor(a!) key_pool, Tensor(b!) value_pool, Tensor slot_mapping) -> ()",
}


def number_of(plan: Plan) -> int:
    """The number that stands for a plan in torch.ops.relay_attention.run; the same one each time."""
    number = _numbers.get(plan)
    if number is None:
        number = _numbers.setdefault(plan, next(_next))
        _plans[number] = plan
    return number


def plan_of(number: int) -> Plan:
    """The plan of a number. Raises ClosedError if it is gone."""
    plan = _plans.get(number)
    if plan is None:
        raise ClosedError(f"plan: there is no plan of number {number} any more; keep the Plan as long as what runs it")
    return plan


def _named(names: str, *tensors: Optional[torch.Tensor]) -> dict[str, Any]:
    return {name: tensor for name, tensor in zip(names.split(), tensors) if tensor is not None}


def run(query: torch.Tensor, output: torch.Tensor, plan: int, key_pool: Optional[torch.Tensor] = None,
        value_pool: Optional[torch.Tensor] = None, contiguous: Optional[list[torch.Tensor]] = None, layer: int = 0,
        lse: Optional[torch.Tensor] = None, alibi_slopes: Optional[torch.Tensor] = None,
        sinks: Optional[torch.Tensor] = None, plan_in_workspace: Optional[bool] = None) -> None:
    """Plan.run by the plan's number. contiguous: key, value, key, value, ... of the spans. Raises what Plan.run raises,
    and ClosedError, UnsupportedError (gradients)."""
    given = contiguous or []
    refuse_gradients(_named("query key_pool value_pool", query, key_pool, value_pool))
    if len(given) % 2:
        raise BadShapeError(f"contiguous: {len(given)} tensors, expected keys and values in turn")
    plan_of(plan).run(query, output, key_pool=key_pool, value_pool=value_pool,
                      contiguous=list(zip(given[0::2], given[1::2])), layer=layer, lse=lse, alibi_slopes=alibi_slopes,
                      sinks=sinks, plan_in_workspace=plan_in_workspace)


def run_fake(query: torch.Tensor, output: torch.Tensor, plan: int, key_pool: Optional[torch.Tensor] = None,
             value_pool: Optional[torch.Tensor] = None, *_rest: Any, **_named_rest: Any) -> None:
    refuse_gradients(_named("query key_pool value_pool", query, key_pool, value_pool))


def fuse_parts(outputs: list[torch.Tensor], lses: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """operations.fuse into new tensors: output, of outputs[0]'s dtype, [T, H, D], and lse, float32 [T, H]."""
    output, lse = fuse_fake(outputs, lses)
    fuse(device_of(tensor_view(outputs[0], "outputs[0]")), outputs, lses, output, lse)
    return output, lse


def fuse_fake(outputs: list[torch.Tensor], lses: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    if not outputs:
        raise BadShapeError("outputs: no parts")
    refuse_gradients({f"outputs[{i}]": part for i, part in enumerate(outputs)})
    refuse_gradients({f"lses[{i}]": part for i, part in enumerate(lses)})
    first = outputs[0]
    return first.new_empty(first.shape), first.new_empty(first.shape[:-1], dtype=torch.float32)


def write(key: torch.Tensor, value: torch.Tensor, key_pool: torch.Tensor, value_pool: torch.Tensor,
          slot_mapping: torch.Tensor) -> None:
    """operations.cache_write on the pools' device."""
    refuse_gradients({"key": key, "value": value})
    cache_write(device_of(tensor_view(key_pool, "key_pool")), key, value, key_pool, value_pool, slot_mapping)


def write_fake(key: torch.Tensor, value: torch.Tensor, key_pool: torch.Tensor, value_pool: torch.Tensor,
               slot_mapping: torch.Tensor) -> None:
    refuse_gradients({"key": key, "value": value})


def _define() -> Any:
    """The operators live as long as the library object."""
    library: Any = torch.library.Library("relay_attention", "DEF")  # type: ignore[no-untyped-call]
    real = {"run": run, "fuse": fuse_parts, "cache_write": write}
    fake: dict[str, Any] = {"run": run_fake, "fuse": fuse_fake, "cache_write": write_fake}
    for name, schema in SCHEMAS.items():
        library.define(name + schema, tags=(torch.Tag.needs_fixed_stride_order,))
        for key in ("CPU", "CUDA"):
            library.impl(name, real[name], key)
        torch.library.register_fake(f"relay_attention::{name}", fake[name], lib=library)
    return library


_library = _define()
