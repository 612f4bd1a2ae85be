"""Exact attention over shared system prompts, by the C library librelayattn (arXiv 2402.14808).

    from relay_attention_port import RelayConfig, RelayAttentionIntegration     # the documented surface
    from relay_attention_port import Device, Forest, Plan, PromptCache, fuse    # the C interface, thin

Importing needs numpy alone. torch is used when torch tensors are given, Triton when ``backend="triton"`` is asked
for, vLLM by ``RelayAttentionBackend`` and ``RelayAttentionImpl``.
"""

from __future__ import annotations

from .devices import Device, DeviceInfo, default_device
from .errors import LibraryLoadError, RelayError
from .forests import Forest, Segment, Span
from .operations import cache_write, fuse, run
from .plans import Attention, Plan, PlanInfo
from .prompts import Prompt, PromptCache, PromptCacheStats
from .tensor_view import TensorView, tensor_view

__all__ = ["Attention", "Device", "DeviceInfo", "Forest", "LibraryLoadError", "Plan", "PlanInfo", "Prompt",
           "PromptCache", "PromptCacheStats", "RelayError", "Segment", "Span", "TensorView", "cache_write",
           "default_device", "fuse", "run", "tensor_view"]
