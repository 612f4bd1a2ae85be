"""What users of the plugin can set.

In vLLM: ``additional_config={"relay": {"min_prefix": 64}}`` or ``--additional-config '{"relay": {...}}'``.
By environment: ``RELAY_VLLM`` (on, plain, off), ``RELAY_VLLM_MIN_PREFIX``, ``RELAY_VLLM_MAX_GROUPS``,
``RELAY_VLLM_DETERMINISTIC``, ``RELAY_VLLM_PACKED_GIB``, ``RELAY_VLLM_LOG_INTERVAL``. What the environment says wins.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Callable, Optional

KEY = "relay"  # in additional_config
MODE_VARIABLE = "RELAY_VLLM"
STRATEGIES = ("auto", "relay", "plain")
MODES = ("on", "plain", "off")
MAX_TOKENS = 2**31 - 1


class SettingsError(ValueError):
    """A setting that is not known or not within its range; the message names it."""


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
        if self.strategy not in STRATEGIES:
            raise SettingsError(f"{KEY}.strategy: {self.strategy!r}, expected one of {', '.join(STRATEGIES)}")
        _check_int("min_prefix", self.min_prefix, 1, MAX_TOKENS)
        _check_int("max_groups", self.max_groups, 0, MAX_TOKENS)
        _check_int("max_depth", self.max_depth, 0, 64)
        if not isinstance(self.deterministic, bool):
            raise SettingsError(f"{KEY}.deterministic: {self.deterministic!r}, expected true or false")
        _check_number("packed_gib", self.packed_gib, 2**20, "GiB")
        _check_number("log_interval", self.log_interval, 86400, "seconds")


def _check_number(name: str, value: object, high: int, unit: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
        raise SettingsError(f"{KEY}.{name}: {value!r}, expected 0 to {high} {unit}")


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingsError(f"{KEY}.{name}: {value!r}, expected an integer from {low} to {high}")


def mode(environment: Optional[Mapping[str, str]] = None) -> str:
    """What RELAY_VLLM says: "on" (also when it is not set), "plain" or "off"."""
    value = (os.environ if environment is None else environment).get(MODE_VARIABLE, "").strip().lower()
    value = {"": "on", "1": "on", "true": "on", "0": "off", "false": "off"}.get(value, value)
    if value not in MODES:
        raise SettingsError(f"{MODE_VARIABLE}: {value!r}, expected one of {', '.join(MODES)}")
    return value


def _flag(text: str) -> bool:
    values = {"1": True, "true": True, "0": False, "false": False}
    return values[text.strip().lower()]


_VARIABLES: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "RELAY_VLLM_MIN_PREFIX": ("min_prefix", int, "an integer"),
    "RELAY_VLLM_MAX_GROUPS": ("max_groups", int, "an integer"),
    "RELAY_VLLM_DETERMINISTIC": ("deterministic", _flag, "1 or 0"),
    "RELAY_VLLM_PACKED_GIB": ("packed_gib", float, "a number of GiB"),
    "RELAY_VLLM_LOG_INTERVAL": ("log_interval", float, "a number of seconds"),
}


def _from_config(additional_config: object) -> dict[str, Any]:
    given = additional_config.get(KEY, {}) if isinstance(additional_config, Mapping) else {}
    if not isinstance(given, Mapping):
        raise SettingsError(f"{KEY}: {given!r}, expected an object")
    names = [field.name for field in dataclasses.fields(Settings)]
    for name in given:
        if name not in names:
            raise SettingsError(f"{KEY}.{name}: not known; there are {', '.join(names)}")
    return dict(given)


def read(additional_config: object, environment: Optional[Mapping[str, str]] = None) -> Settings:
    """The settings of an engine. Raises SettingsError, which names the field or the variable."""
    env = os.environ if environment is None else environment
    values = _from_config(additional_config)
    for variable, (name, convert, expected) in _VARIABLES.items():
        if variable in env:
            try:
                values[name] = convert(env[variable])
            except (KeyError, ValueError):
                raise SettingsError(f"{variable}: {env[variable]!r}, expected {expected}") from None
    if mode(env) == "plain":
        values["strategy"] = "plain"
    return Settings(**values)
