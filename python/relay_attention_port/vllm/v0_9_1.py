"""Everything that knows vLLM 0.9.1: the platform, the attention backend of its V1 engine, and the operators that a
vLLM without compiled extensions lacks. Nothing of vLLM is patched; the platform extends its public base."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np
import torch
import torch.nn.functional as F
import vllm.envs as envs
from vllm.platforms.cpu import CpuPlatform

from ..devices import cuda_device, default_device
from ..plans import Attention
from ..tensor_view import float_array, int_array, tensor_view
from . import settings as settings_module
from .counters import counters
from .device_calls import DeviceCalls
from .layer_calls import LayerCalls
from .steps import LayerPlan, StepPlanner

log = logging.getLogger("relay_attention_port.vllm")
BACKEND = "relay_attention_port.relay_attention_backend.RelayAttentionBackend"
EXTENSION = "relay_attention_port.vllm.v0_9_1.RelayWorkerExtension"
DTYPES = (torch.bfloat16, torch.float16)
MAX_HEAD_SIZE = 256
_ONEDNN_ISA, _WITHOUT_AMX = "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16"
_PLATFORM_BLOCK_SIZE = 16  # the only one that CpuPlatform lets pass


def _refuse(what: str) -> NotImplementedError:
    return NotImplementedError(f"RelayAttention: {what}")


def check_shape(head_size: int, dtype: torch.dtype, kv_cache_dtype: Any, block_size: int) -> None:
    """Raises NotImplementedError, which names what is not computed."""
    if head_size % 8 or not 8 <= head_size <= MAX_HEAD_SIZE:
        raise _refuse(f"head_size {head_size} is not computed, only multiples of 8 up to {MAX_HEAD_SIZE}")
    if dtype not in DTYPES:
        raise _refuse(f"dtype {dtype} is not computed, only bfloat16 and float16 (--dtype bfloat16)")
    if kv_cache_dtype not in (None, "auto", dtype):
        raise _refuse(f"kv_cache_dtype {kv_cache_dtype} is not computed, only that of the model (--kv-cache-dtype auto)")
    check_block_size(block_size)


def check_block_size(block_size: int) -> None:
    """Raises NotImplementedError, as check_shape."""
    if block_size < 16 or block_size % 16:
        raise _refuse(f"block_size {block_size} is not computed, only multiples of 16 (--block-size 16)")


# ---- the platform ---------------------------------------------------------------------------------------------------


class RelayCpuPlatform(CpuPlatform):
    """The processor, with attention by the library."""

    @classmethod
    def get_attn_backend_cls(cls, selected_backend: Any, head_size: int, dtype: torch.dtype, kv_cache_dtype: Any,
                             block_size: int, use_v1: bool, use_mla: bool) -> str:
        if use_mla:
            raise _refuse("multi-head latent attention is not computed")
        if not use_v1:
            raise _refuse("vLLM's V0 engine is not served")
        if selected_backend is not None:
            log.info("VLLM_ATTENTION_BACKEND=%s has no effect: RelayAttention computes attention here", selected_backend)
        check_shape(head_size, dtype, kv_cache_dtype, block_size)
        return BACKEND

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        from vllm.config import CompilationLevel
        settings = settings_module.read(vllm_config.additional_config)
        _check_engine(vllm_config)
        compilation = vllm_config.compilation_config
        compilation.level = CompilationLevel.NO_COMPILATION
        if not {"none", "all"} & set(compilation.custom_ops):
            compilation.custom_ops.append("none")  # torch's own operators: the compiled ones may not exist
        if not vllm_config.parallel_config.worker_extension_cls:
            vllm_config.parallel_config.worker_extension_cls = EXTENSION
        _base_check(super(), vllm_config)
        log.info("RelayAttention: %s", settings)

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        return False


def _check_engine(vllm_config: Any) -> None:
    kv_dtype = vllm_config.cache_config.cache_dtype
    if kv_dtype != "auto":
        raise _refuse(f"kv_cache_dtype {kv_dtype} is not computed, only that of the model (--kv-cache-dtype auto)")
    model = vllm_config.model_config
    if model is not None and model.dtype not in DTYPES:
        raise _refuse(f"dtype {model.dtype} is not computed, only bfloat16 and float16 (--dtype bfloat16)")
    if vllm_config.cache_config.block_size is not None:
        check_block_size(vllm_config.cache_config.block_size)
    if getattr(vllm_config, "speculative_config", None) is not None:
        raise _refuse("speculative decoding (speculative_config) is not served by vLLM's V1 engine on a processor")
    if not envs.VLLM_USE_V1:
        raise _refuse("vLLM fell back to its V0 engine, which is not served; its log says why (VLLM_USE_V1=1 makes "
                      "vLLM refuse instead)")


def _base_check(base: Any, vllm_config: Any) -> None:
    """The base lets one block size pass; the library takes any."""
    cache = vllm_config.cache_config
    block_size = cache.block_size or _PLATFORM_BLOCK_SIZE
    cache.block_size = _PLATFORM_BLOCK_SIZE
    base.check_and_update_config(vllm_config)
    cache.block_size = block_size


class RelayWorkerExtension:
    """What ``llm.collective_rpc(name)`` can ask a worker."""

    def relay_counters(self) -> dict[str, int]:
        return dataclasses.asdict(counters())


# ---- the attention backend ------------------------------------------------------------------------------------------


class RelayAttentionBackend:
    """Attention of vLLM's V1 engine."""

    accept_output_buffer = True

    @staticmethod
    def get_name() -> str:
        return "RELAY_ATTENTION"

    @staticmethod
    def get_impl_cls() -> type["RelayAttentionImpl"]:
        return RelayAttentionImpl

    @staticmethod
    def get_metadata_cls() -> type["RelayAttentionMetadata"]:
        return RelayAttentionMetadata

    @staticmethod
    def get_builder_cls() -> type["RelayAttentionMetadataBuilder"]:
        return RelayAttentionMetadataBuilder

    @staticmethod
    def get_kv_cache_shape(num_blocks: int, block_size: int, num_kv_heads: int, head_size: int) -> tuple[int, ...]:
        if block_size % 16:
            raise ValueError(f"block_size: {block_size}, expected a multiple of 16")
        return (2, num_blocks, block_size, num_kv_heads, head_size)

    @staticmethod
    def use_cascade_attention(*_args: Any, **_kwargs: Any) -> bool:
        return False


@dataclass
class RelayAttentionMetadata:
    """A step. ``slots``: where the new tokens' K/V go, [num_actual_tokens] int64: an array, or a tensor on the GPU that
    the planner plans for. ``slots_given``: as the calls of a layer take it."""

    num_actual_tokens: int
    slots: Any
    planner: StepPlanner
    slots_given: Any = None

    def __post_init__(self) -> None:
        self.slots_given = self.slots.ctypes.data if isinstance(self.slots, np.ndarray) else self.slots


class RelayAttentionMetadataBuilder:
    """One for each KV group; build() is called once a step, its result used by the group's layers."""

    def __init__(self, runner: Any, kv_cache_spec: Any, block_table: Any) -> None:
        self.runner, self.block_table = runner, block_table
        settings = settings_module.read(runner.vllm_config.additional_config)
        # a connector writes blocks behind the worker's back
        connected = getattr(runner.vllm_config, "kv_transfer_config", None) is not None
        if connected and settings.packed_gib > 0:
            log.info("RelayAttention: no prefix is packed, since kv_transfer_config lets others write the K/V cache")
        place = getattr(runner, "device", torch.device("cpu"))
        self._on_gpu = place.type == "cuda"
        device = cuda_device(place.index or 0) if self._on_gpu else default_device()
        self.planner = StepPlanner(device, settings, kv_cache_spec.block_size, writes_seen=not connected)

    def reorder_batch(self, input_batch: Any, scheduler_output: Any) -> bool:
        return False  # the forest has an order of its own

    def use_cascade_attention(self, *_args: Any, **_kwargs: Any) -> bool:
        return False  # vLLM's own search for one prefix of all requests

    def build(self, num_reqs: int, num_actual_tokens: int, max_query_len: int, common_prefix_len: int,
              common_attn_metadata: Any) -> RelayAttentionMetadata:
        runner = self.runner
        slots = int_array(self.block_table.slot_mapping_np[:num_actual_tokens], "slot_mapping", np.int64)
        self.planner.begin(runner.query_start_loc_np[:num_reqs + 1], runner.seq_lens_np[:num_reqs],
                           self.block_table.get_numpy_array()[:num_reqs], runner.kv_cache_config.num_blocks, slots)
        if self._on_gpu:
            there = self.block_table.slot_mapping[:num_actual_tokens]
            slots = there.copy_(self.block_table.slot_mapping_cpu[:num_actual_tokens], non_blocking=True)
        return RelayAttentionMetadata(num_actual_tokens, slots, self.planner)


class _Binding:
    """A layer's calls with its cache and a planner; they are the same in every step. The other base makes the calls."""

    def __init__(self, planner: StepPlanner, kind: Attention, kv_cache: torch.Tensor, dtype: torch.dtype,
                 alibi_slopes: Any) -> None:
        keys, values = (planner.device.check_here(tensor_view(pool, name), name)
                        for pool, name in zip(kv_cache.unbind(0), ("key cache", "value cache")))
        self.plan: LayerPlan
        self.plan, layer = planner.layer(kind, keys, values)
        super().__init__(planner.device, keys, values, layer, alibi_slopes)  # type: ignore[call-arg]
        self._planner, self._cache, self._address, self._dtype = planner, kv_cache, kv_cache.data_ptr(), dtype

    def serves(self, planner: StepPlanner, kv_cache: torch.Tensor, dtype: torch.dtype) -> bool:
        return (kv_cache is self._cache and planner is self._planner and dtype is self._dtype
                and kv_cache.data_ptr() == self._address)


class _Bound(_Binding, LayerCalls):
    """On the processor."""


class _BoundOnGpu(_Binding, DeviceCalls):
    """On the GPU that the planner plans for."""


class RelayAttentionImpl:
    """One layer's attention. Raises NotImplementedError for what is not computed, and names it."""

    def __init__(self, num_heads: int, head_size: int, scale: float, num_kv_heads: Optional[int] = None,
                 alibi_slopes: Optional[list[float]] = None, sliding_window: Optional[int] = None,
                 kv_cache_dtype: str = "auto", blocksparse_params: Optional[dict[str, Any]] = None,
                 logits_soft_cap: Optional[float] = None, attn_type: str = "decoder",
                 kv_sharing_target_layer_name: Optional[str] = None, **extra: Any) -> None:
        if blocksparse_params is not None:
            raise _refuse("block-sparse attention is not computed")
        if attn_type != "decoder":
            raise _refuse(f"attn_type {attn_type!r} is not computed, only 'decoder'")
        if extra:
            raise _refuse(f"attention with {', '.join(sorted(extra))} is not computed")
        dtype = torch.get_default_dtype()  # the model's, while its layers are made
        check_shape(head_size, dtype if dtype in DTYPES else torch.bfloat16, kv_cache_dtype, 16)
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if self.num_kv_heads < 1 or num_heads % self.num_kv_heads:
            raise _refuse(f"num_heads {num_heads} is no multiple of num_kv_heads {self.num_kv_heads}")
        self.sliding_window = sliding_window or 0
        self.logits_soft_cap = logits_soft_cap or 0.0
        self.alibi_slopes = None if alibi_slopes is None else float_array(alibi_slopes, num_heads, "alibi_slopes")
        self.writes_cache = kv_sharing_target_layer_name is None
        self._bound: Union[None, _Bound, _BoundOnGpu] = None

    def _kind(self, dtype: torch.dtype) -> Attention:
        number = {torch.bfloat16: "bf16", torch.float16: "f16"}.get(dtype)
        if number is None:
            raise _refuse(f"dtype {dtype} is not computed, only bfloat16 and float16")
        return Attention(self.num_heads, self.num_kv_heads, self.head_size, number, number, number, self.scale,
                         self.logits_soft_cap, self.sliding_window, use_alibi=self.alibi_slopes is not None)

    def _bind(self, planner: StepPlanner, kv_cache: torch.Tensor, dtype: torch.dtype) -> Union[_Bound, _BoundOnGpu]:
        if kv_cache.dim() != 5 or kv_cache.shape[0] != 2:
            raise ValueError(f"kv_cache: shape {tuple(kv_cache.shape)}, expected (2, num_blocks, block_size, "
                             f"{self.num_kv_heads}, {self.head_size})")
        calls = _Bound if planner.device.kind == "cpu" else _BoundOnGpu
        self._bound = calls(planner, self._kind(dtype), kv_cache, dtype, self.alibi_slopes)
        return self._bound

    def forward(self, layer: Any, query: torch.Tensor, key: Optional[torch.Tensor], value: Optional[torch.Tensor],
                kv_cache: torch.Tensor, attn_metadata: Optional[RelayAttentionMetadata],
                output: Optional[torch.Tensor] = None, output_scale: Any = None) -> torch.Tensor:
        """query, output: [T, Hq, D]; key, value: [T, Hkv, D]; kv_cache: [2, num_blocks, block_size, Hkv, D].
        Writes the first num_actual_tokens rows of output. Without metadata (profiling): nothing."""
        if output is None:
            output = torch.empty_like(query)
        if output_scale is not None:
            raise _refuse("quantised output is not computed")
        if attn_metadata is None:
            return output
        planner, bound = attn_metadata.planner, self._bound
        if bound is None or not bound.serves(planner, kv_cache, query.dtype):
            bound = self._bind(planner, kv_cache, query.dtype)
        if self.writes_cache and key is not None and value is not None:
            bound.write(key, value, attn_metadata.slots_given, len(attn_metadata.slots))
        bound.run(bound.plan.now(), query, output)
        return output


# ---- operators of a vLLM without compiled extensions ------------------------------------------------------------------


def _gated(activation: Any) -> Any:
    def operator(out: torch.Tensor, x: torch.Tensor) -> None:
        gate, up = x.chunk(2, dim=-1)
        out.copy_(activation(gate) * up)
    return operator


def _each(activation: Any) -> Any:
    def operator(out: torch.Tensor, x: torch.Tensor) -> None:
        out.copy_(activation(x))
    return operator


def _mul_and_silu(out: torch.Tensor, x: torch.Tensor) -> None:
    up, gate = x.chunk(2, dim=-1)
    out.copy_(up * F.silu(gate))


def _fatrelu_and_mul(out: torch.Tensor, x: torch.Tensor, threshold: float) -> None:
    gate, up = x.chunk(2, dim=-1)
    out.copy_(F.threshold(gate, threshold, 0.0) * up)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_quick(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


_OPERATORS = {
    "silu_and_mul(Tensor! out, Tensor input) -> ()": _gated(F.silu),
    "mul_and_silu(Tensor! out, Tensor input) -> ()": _mul_and_silu,
    "gelu_and_mul(Tensor! out, Tensor input) -> ()": _gated(F.gelu),
    "gelu_tanh_and_mul(Tensor! out, Tensor input) -> ()": _gated(_gelu_tanh),
    "fatrelu_and_mul(Tensor! out, Tensor input, float threshold) -> ()": _fatrelu_and_mul,
    "gelu_new(Tensor! out, Tensor input) -> ()": _each(_gelu_tanh),
    "gelu_fast(Tensor! out, Tensor input) -> ()": _each(_gelu_tanh),
    "gelu_quick(Tensor! out, Tensor input) -> ()": _each(_gelu_quick),
}
_libraries: list[torch.library.Library] = []  # an operator lives as long as its library


# ---- what a process needs without a GPU -------------------------------------------------------------------------------


def prepare_process() -> None:
    """What a process of vLLM needs on a machine without a GPU, whichever way vLLM was built."""
    leave_out_gpu_modules()
    keep_torch_off_hidden_tiles()
    define_operators()


def keep_torch_off_hidden_tiles() -> None:
    """The oneDNN in PyTorch takes tile shapes from CPUID and ends with an illegal instruction where a hypervisor hides
    them. It reads the variable at its first product."""
    if "amx-palette-hidden" in default_device().info().features.split() and _ONEDNN_ISA not in os.environ:
        log.warning("this virtual machine hides the shape of its AMX tiles, on which PyTorch's products end with an "
                    "illegal instruction: RelayAttention sets %s=%s", _ONEDNN_ISA, _WITHOUT_AMX)
        os.environ[_ONEDNN_ISA] = _WITHOUT_AMX


def leave_out_gpu_modules() -> None:
    """vLLM's worker copes with a build that lacks this extension, not with one that cannot be loaded: the wheel for
    CUDA has it, and it needs the driver's library."""
    try:
        import vllm.cumem_allocator  # noqa: F401
    except ModuleNotFoundError:
        pass
    except ImportError as error:
        log.debug("vllm.cumem_allocator is left out: %s", error)
        sys.modules["vllm.cumem_allocator"] = None  # type: ignore[assignment]  # read as ModuleNotFoundError


def define_operators() -> None:
    """vLLM's layers look these up when they are made, even where they then use torch's own. Those that are there,
    of a vLLM with compiled extensions or from an earlier call, stay."""
    import vllm._custom_ops  # noqa: F401  (loads the compiled ones)
    missing = {schema: function for schema, function in _OPERATORS.items()
               if not hasattr(torch.ops._C, schema.split("(")[0])}
    if missing:
        library = torch.library.Library("_C", "FRAGMENT")
        for schema, function in missing.items():
            library.define(schema)
            library.impl(schema.split("(")[0], function, "CPU")
        _libraries.append(library)
