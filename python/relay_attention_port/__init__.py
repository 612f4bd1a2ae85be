"""Exact attention over shared system prompts, by the C library librelayattn (arXiv 2402.14808).

    from relay_attention_port import RelayConfig, RelayAttentionIntegration     # the documented surface
    from relay_attention_port import Device, Forest, Plan, PromptCache, fuse    # the C interface, thin

Importing needs numpy alone. torch is used when torch tensors are given, Triton when ``backend="triton"`` is asked
for, vLLM by ``RelayAttentionBackend`` and ``RelayAttentionImpl``.
"""

from __future__ import annotations

import importlib
from typing import Any

from .devices import Device, DeviceInfo, default_device
from .errors import LibraryLoadError, RelayError
from .forests import Forest, Segment, Span
from .operations import cache_write, fuse, run
from .plans import Attention, Plan, PlanInfo
from .prompts import Prompt, PromptCache, PromptCacheStats
from .relay_config import RelayConfig, RelayInfo, RelayMetadata
from .relayattn_ops_v091 import relay_fusion
from .tensor_view import TensorView, tensor_view

__all__ = ["Attention", "Device", "DeviceInfo", "Forest", "LibraryLoadError", "Plan", "PlanInfo", "Prompt",
           "PromptCache", "PromptCacheStats", "RelayAttentionIntegration", "RelayConfig", "RelayError", "RelayInfo",
           "RelayMetadata", "Segment", "Span", "TensorView", "cache_write", "default_device", "fuse", "relay_fusion",
           "run", "tensor_view"]

# Imported when they are asked for: the example runs as a program of its own, the others need vLLM.
_LATER = {"RelayAttentionIntegration": "integration_example", "RelayAttentionBackend": "relay_attention_backend",
          "RelayAttentionImpl": "relay_attention_backend"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("relay-attention-port")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
