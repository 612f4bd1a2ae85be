"""The documented names of the vLLM backend: ``RelayAttentionBackend`` and ``RelayAttentionImpl``.

Needs torch and a vLLM that the plugin knows; importing this without them raises ImportError, which says what is
missing. The backend is chosen by the plugin (``relay_attention_port.vllm``); nobody has to name it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from .vllm.plugin import VersionError, adapter

for _package in ("torch", "vllm"):
    if find_spec(_package) is None:
        raise ImportError(f"relay_attention_port.relay_attention_backend needs {_package}, which is not installed "
                          "(pip install 'relay-attention-port[vllm]')")
try:
    _name = adapter()
    import_module("vllm")  # first, and whole: it imports the adapter itself when it looks for its platform
    _module = import_module(_name)
except VersionError as _error:
    raise ImportError(str(_error)) from _error

RelayAttentionBackend = _module.RelayAttentionBackend
RelayAttentionImpl = _module.RelayAttentionImpl
RelayAttentionMetadata = _module.RelayAttentionMetadata
RelayAttentionMetadataBuilder = _module.RelayAttentionMetadataBuilder

__all__ = ["RelayAttentionBackend", "RelayAttentionImpl", "RelayAttentionMetadata", "RelayAttentionMetadataBuilder"]
