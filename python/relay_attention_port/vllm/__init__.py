"""The vLLM plugin. ``docs/vllm.md`` of the repository is its manual.

    plugin.py     entry points: whether the plugin acts in this process, and what it says if it does not
    settings.py   what users can set, from ``additional_config`` and the environment
    counters.py   what the relay did
    prometheus.py the counters on the metrics page of vLLM's server
    steps.py      a step's forest and plans, from block tables; knows no vLLM
    v0_9_1.py     everything that knows vLLM 0.9.1; another version is another file of this kind

Importing this package imports neither torch nor vLLM.
"""

from __future__ import annotations

from .counters import Counters, counters
from .settings import Settings, SettingsError

__all__ = ["Counters", "Settings", "SettingsError", "counters"]
