"""What the relay did in this process, as numbers and as a log line."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import weakref
from typing import Any, Optional

from .prometheus import Publisher

log = logging.getLogger("relay_attention_port.vllm")


@dataclasses.dataclass(frozen=True)
class Counters:
    """steps: batches that were planned; relayed_steps: those in which at least one shared prefix was read once for
    several requests; groups: such prefixes, summed over steps; tokens_saved: K/V tokens of one layer that would have
    been read again without it, summed over steps. packed_prefixes: prefixes of which a packed copy was made;
    packed_steps: steps that read at least one; packed_bytes: what the copies take now; forgotten: copies dropped, to
    make room or because vLLM gave one of their blocks to other tokens."""

    steps: int = 0
    relayed_steps: int = 0
    groups: int = 0
    tokens_saved: int = 0
    packed_prefixes: int = 0
    packed_steps: int = 0
    packed_bytes: int = 0
    forgotten: int = 0

    def line(self) -> str:
        packed = ""
        if self.packed_prefixes:
            packed = (f"; {self.packed_prefixes} prefixes packed, read by {self.packed_steps} steps, "
                      f"{self.packed_bytes / 2**20:.0f} MiB now, {self.forgotten} forgotten")
        return (f"RelayAttention: {self.relayed_steps} of {self.steps} steps relayed, {self.groups} groups, "
                f"{self.tokens_saved} K/V tokens of a layer not read again{packed}")


class Tally:
    """Counters that may be added to from several threads, and that log themselves now and then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = Counters()
        self._logged = Counters()
        self._logged_at = 0.0
        self._interval = 0.0
        self._timer: Optional[threading.Timer] = None
        self._publisher = Publisher()
        self._holders: weakref.WeakSet[Any] = weakref.WeakSet()

    def watch(self, holder: Any) -> None:
        """Counts ``holder.num_bytes`` among packed_bytes while it lives."""
        with self._lock:
            self._holders.add(holder)

    def _add(self, **more: int) -> None:
        with self._lock:
            self._now = dataclasses.replace(self._now, **{name: getattr(self._now, name) + count
                                                          for name, count in more.items()})

    def add(self, groups: int, tokens_saved: int, packed: int = 0) -> None:
        """One step more, with `packed` of its groups read from copies."""
        self._add(steps=1, relayed_steps=groups > 0, groups=groups, tokens_saved=tokens_saved, packed_steps=packed > 0)
        with self._lock:
            self._publisher.publish(self._with_bytes())
            self._log_later()

    def packed(self) -> None:
        self._add(packed_prefixes=1)

    def forgot(self) -> None:
        self._add(forgotten=1)

    def read(self) -> Counters:
        with self._lock:
            return self._with_bytes()

    def _with_bytes(self) -> Counters:
        return dataclasses.replace(self._now, packed_bytes=sum(holder.num_bytes for holder in self._holders))

    def reset(self) -> None:
        with self._lock:
            self._now = self._logged = Counters()

    def log_if_due(self, interval: float) -> None:
        """One INFO line if there is something new and the last line is `interval` seconds old. If it is younger, the line
        comes when it is that old, whether or not there is another step."""
        with self._lock:
            self._interval = interval
        self._log(interval)

    def _log(self, interval: float) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._logged_at < interval or self._now == self._logged:
                return
            self._logged, self._logged_at = self._now, now
            line = self._with_bytes().line()
        log.info("%s", line)

    def _log_later(self) -> None:
        """The last step before a pause is logged too. Holds the lock."""
        if self._timer is None and self._interval > 0:
            wait = max(0.0, self._logged_at + self._interval - time.monotonic())
            self._timer = threading.Timer(wait, self._logged_later)
            self._timer.daemon = True
            self._timer.start()

    def _logged_later(self) -> None:
        with self._lock:
            self._timer = None
        self._log(0.0)


tally = Tally()


def counters() -> Counters:
    """What the relay did in this process. vLLM's engine usually runs in a process of its own:
    ``llm.collective_rpc("relay_counters")`` asks there, and gives one dict a worker."""
    return tally.read()
