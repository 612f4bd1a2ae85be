"""The documented settings. Field for field the structures of ``relay/config.h``.

Every field is checked when it is set by the constructor and again when it is used; a wrong one raises
InvalidArgumentError (a ValueError) that names it.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields, replace
from typing import Optional

from .errors import InvalidArgumentError
from .prompts import MAX_KEY_BYTES
from .tensor_view import INT32_MAX

MOST = INT32_MAX - 1  # of any count


def _check_int(owner: object, name: str, least: int) -> None:
    value = getattr(owner, name)
    if isinstance(value, bool) or not hasattr(value, "__index__"):  # numpy's integers are welcome
        raise InvalidArgumentError(f"{type(owner).__name__}.{name}: {value!r}, expected an integer")
    value = operator.index(value)
    setattr(owner, name, value)
    if not least <= value <= MOST:
        raise InvalidArgumentError(f"{type(owner).__name__}.{name}: {value}, expected {least} to {MOST}")


def _check_flags(owner: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, bool):
            raise InvalidArgumentError(f"{type(owner).__name__}.{name}: {value!r}, expected True or False")


@dataclass
class RelayInfo:
    """About one system prompt.

    system_length: tokens, >= 0. enabled: False computes plain attention. use_triton: what ``fusion_backend`` says.
    cache_system_prompts: False keeps the prompt no longer than its requests. max_cached_system_prompts: at most so
    many prompts stay cached beside this one.
    """

    system_length: int
    enabled: bool = True
    use_triton: bool = True
    cache_system_prompts: bool = True
    max_cached_system_prompts: int = 100

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises InvalidArgumentError for a field that is out of its range."""
        _check_int(self, "system_length", 0)
        _check_flags(self, ("enabled", "use_triton", "cache_system_prompts"))
        _check_int(self, "max_cached_system_prompts", 1)

    @property
    def fusion_backend(self) -> str:
        """The ``backend`` of relay_fusion that this asks for: "triton" or "native"."""
        return "triton" if self.use_triton else "native"


@dataclass
class RelayConfig:
    """Settings of a host.

    enabled: False computes plain attention everywhere. default_relay_info: what create_relay_info copies.
    cache_system_prompts, max_cached_system_prompts: whether and how many system prompts are kept for later requests.
    enable_prefetch, prefetch_batch_size: prompts that left memory are read back in the background, so many at a time.
    use_triton: for the infos that are made of this.
    """

    enabled: bool = False
    default_relay_info: Optional[RelayInfo] = None
    use_triton: bool = True
    cache_system_prompts: bool = True
    max_cached_system_prompts: int = 100
    enable_prefetch: bool = True
    prefetch_batch_size: int = 4

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises InvalidArgumentError for a field that is out of its range."""
        _check_flags(self, ("enabled", "use_triton", "cache_system_prompts", "enable_prefetch"))
        _check_int(self, "max_cached_system_prompts", 1)
        _check_int(self, "prefetch_batch_size", 1)
        if self.default_relay_info is not None:
            if not isinstance(self.default_relay_info, RelayInfo):
                raise InvalidArgumentError(f"RelayConfig.default_relay_info: {self.default_relay_info!r}, expected a "
                                           "RelayInfo or None")
            self.default_relay_info.check()

    def create_relay_info(self, system_length: int) -> RelayInfo:
        """The default info with this length, or one made of this config's fields when there is none.
        Raises InvalidArgumentError, for a negative length too."""
        self.check()
        if self.default_relay_info is not None:
            return replace(self.default_relay_info, system_length=system_length)
        shared = {field.name for field in fields(RelayInfo)} - {"system_length"}
        return RelayInfo(system_length, **{name: getattr(self, name) for name in shared})


class RelayMetadata:
    """About one request: its info, and the keys of what is kept for it.

    system_cache_key names the system prompt: requests of one key share its K/V, and the prompt stays in the prompt
    cache when they are gone. user_cache_key names the request: a later call of that key goes on with its K/V. Without
    a user key, the object itself is the request.
    """

    def __init__(self, relay_info: Optional[RelayInfo] = None) -> None:
        if relay_info is not None and not isinstance(relay_info, RelayInfo):
            raise InvalidArgumentError(f"relay_info: {relay_info!r}, expected a RelayInfo or None")
        self.relay_info = relay_info
        self.system_cache_key: Optional[str] = None
        self.user_cache_key: Optional[str] = None

    def set_cache_keys(self, system_key: Optional[str], user_key: Optional[str] = None) -> None:
        """Keys of 1 to 255 bytes of text, or None. Raises InvalidArgumentError."""
        for name, key in (("system_key", system_key), ("user_key", user_key)):
            if key is None:
                continue
            if not isinstance(key, str) or not 1 <= len(key.encode()) <= MAX_KEY_BYTES or "\0" in key:
                raise InvalidArgumentError(f"{name}: {key!r}, expected 1 to {MAX_KEY_BYTES} bytes of text without NUL")
        self.system_cache_key, self.user_cache_key = system_key, user_key

    def has_relay_info(self) -> bool:
        """True if this request takes part in the relay."""
        return self.relay_info is not None

    def __repr__(self) -> str:
        return (f"RelayMetadata({self.relay_info!r}, system_cache_key={self.system_cache_key!r}, "
                f"user_cache_key={self.user_cache_key!r})")
