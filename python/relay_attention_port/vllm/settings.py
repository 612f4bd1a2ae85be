"""What users of the plugin can set.

In vLLM: ``additional_config={"relay": {"min_prefix": 64}}`` or ``--additional-config '{"relay": {...}}'``.
By environment: ``RELAY_VLLM`` (on, plain, off), ``RELAY_VLLM_MIN_PREFIX``, ``RELAY_VLLM_MAX_GROUPS``,
``RELAY_VLLM_DETERMINISTIC``, ``RELAY_VLLM_PACKED_GIB``, ``RELAY_VLLM_LOG_INTERVAL``. What the environment says wins.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any, Callable, Optional

KEY = "relay"  # in additional_config
MODE_VARIABLE = "RELAY_VLLM"
STRATEGIES = ("auto", "relay", "plain")
MODES = ("on", "plain", "off")
MAX_TOKENS = 2**31 - 1


class SettingsError(ValueError):
    """A setting that is not known or not within its range; the message names it."""


def _integer(low: int, high: int) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
            f"an integer from {low} to {high}")


def _number(high: int, unit: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= high,
            f"0 to {high} {unit}")


# field: what is accepted, and how that is said
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "strategy": (lambda value: value in STRATEGIES, f"one of {', '.join(STRATEGIES)}"),
    "min_prefix": _integer(1, MAX_TOKENS),
    "max_groups": _integer(0, MAX_TOKENS),
    "max_depth": _integer(0, 64),
    "deterministic": (lambda value: isinstance(value, bool), "true or false"),
    "packed_gib": _number(2**20, "GiB"),
    "log_interval": _number(86400, "seconds"),
}


def _check(name: str, value: object, where: str) -> None:
    accepts, expected = _RULES[name]
    if not accepts(value):
        raise SettingsError(f"{where}: {value!r}, expected {expected}")


@dataclasses.dataclass(frozen=True)
class Settings:
    """strategy: "auto" lets the cost model decide for each shared prefix, "relay" reads every one once, "plain" none.
    min_prefix: shorter shared runs of tokens are left alone. max_groups: shared prefixes of a step at most, 0 for no
    bound; where there are more, the longest stay. max_depth: prefixes on one request's path (a prompt, tools under
    it, ...). deterministic: a request's attention is bitwise the same whatever else runs; nothing is shared then.
    packed_gib: memory of a worker for packed copies of prefixes that stay shared, 0 for none. log_interval: seconds
    between lines with counters, 0 for one each step."""

    strategy: str = "auto"
    min_prefix: int = 32
    max_groups: int = 0
    max_depth: int = 4
    deterministic: bool = False
    packed_gib: float = 1.0
    log_interval: float = 10.0

    def __post_init__(self) -> None:
        for name in _RULES:
            _check(name, getattr(self, name), f"{KEY}.{name}")


def mode(environment: Optional[Mapping[str, str]] = None) -> str:
    """What RELAY_VLLM says: "on" (also when it is not set), "plain" or "off"."""
    value = (os.environ if environment is None else environment).get(MODE_VARIABLE, "").strip().lower()
    value = {"": "on", "1": "on", "true": "on", "0": "off", "false": "off"}.get(value, value)
    if value not in MODES:
        raise SettingsError(f"{MODE_VARIABLE}: {value!r}, expected one of {', '.join(MODES)}")
    return value


def _whole(text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?[0-9]+\s*", text):  # int() takes 1_000, too
        raise ValueError
    return int(text)


def _flag(text: str) -> bool:
    values = {"1": True, "true": True, "0": False, "false": False}
    return values[text.strip().lower()]


_VARIABLES: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "RELAY_VLLM_MIN_PREFIX": ("min_prefix", _whole, "an integer"),
    "RELAY_VLLM_MAX_GROUPS": ("max_groups", _whole, "an integer"),
    "RELAY_VLLM_DETERMINISTIC": ("deterministic", _flag, "1 or 0"),
    "RELAY_VLLM_PACKED_GIB": ("packed_gib", float, "a number of GiB"),
    "RELAY_VLLM_LOG_INTERVAL": ("log_interval", float, "a number of seconds"),
}


def _misspelt(key: object) -> bool:
    """Keys of others may stand beside ours; one that can only mean ours must not be passed over."""
    return str(key).strip().lower().replace("-", "_") in ("relay", "relay_attention", "relay_attention_port", "relay_vllm")


def _from_config(additional_config: object) -> dict[str, Any]:
    everything = additional_config if isinstance(additional_config, Mapping) else {}
    for key in everything:
        if key != KEY and _misspelt(key):
            raise SettingsError(f"{key}: not known; the key of additional_config is {KEY!r}")
    given = everything.get(KEY, {})
    if not isinstance(given, Mapping):
        raise SettingsError(f'{KEY}: {given!r}, expected an object such as {{"min_prefix": 64}}')
    for name in given:
        if name not in _RULES:
            raise SettingsError(f"{KEY}.{name}: not known; there are {', '.join(_RULES)}")
    return dict(given)


def _from_environment(env: Mapping[str, str]) -> dict[str, Any]:
    for variable in env:
        if variable.startswith(MODE_VARIABLE + "_") and variable not in _VARIABLES:
            raise SettingsError(f"{variable}: not known; there are {', '.join([MODE_VARIABLE, *_VARIABLES])}")
    values = {}
    for variable, (name, convert, expected) in _VARIABLES.items():
        if variable in env:
            try:
                values[name] = convert(env[variable])
            except (KeyError, ValueError):
                raise SettingsError(f"{variable}: {env[variable]!r}, expected {expected}") from None
            _check(name, values[name], variable)
    return values


def read(additional_config: object, environment: Optional[Mapping[str, str]] = None) -> Settings:
    """The settings of an engine. Raises SettingsError, which names the field or the variable."""
    env = os.environ if environment is None else environment
    values = {**_from_config(additional_config), **_from_environment(env)}
    if mode(env) == "plain":
        values["strategy"] = "plain"
    return Settings(**values)
