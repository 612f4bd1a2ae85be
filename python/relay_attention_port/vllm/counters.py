"""What the relay did in this process, as numbers and as a log line."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time

log = logging.getLogger("relay_attention_port.vllm")


@dataclasses.dataclass(frozen=True)
class Counters:
    """steps: batches that were planned; relayed_steps: those in which at least one shared prefix was read once for
    several requests; groups: such prefixes, summed over steps; tokens_saved: K/V tokens of one layer that would have
    been read again without it, summed over steps."""

    steps: int = 0
    relayed_steps: int = 0
    groups: int = 0
    tokens_saved: int = 0

    def line(self) -> str:
        return (f"RelayAttention: {self.relayed_steps} of {self.steps} steps relayed, {self.groups} groups, "
                f"{self.tokens_saved} K/V tokens of a layer not read again")


class Tally:
    """Counters that may be added to from several threads, and that log themselves now and then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = Counters()
        self._logged = Counters()
        self._logged_at = 0.0

    def add(self, groups: int, tokens_saved: int) -> None:
        """One step more."""
        with self._lock:
            now = self._now
            self._now = Counters(now.steps + 1, now.relayed_steps + (groups > 0), now.groups + groups,
                                 now.tokens_saved + tokens_saved)

    def read(self) -> Counters:
        with self._lock:
            return self._now

    def reset(self) -> None:
        with self._lock:
            self._now = self._logged = Counters()

    def log_if_due(self, interval: float) -> None:
        """One INFO line if there is something new and the last line is `interval` seconds old."""
        now = time.monotonic()
        with self._lock:
            if now - self._logged_at < interval or self._now == self._logged:
                return
            self._logged, self._logged_at = self._now, now
            line = self._now.line()
        log.info("%s", line)


tally = Tally()


def counters() -> Counters:
    """What the relay did in this process. vLLM's engine usually runs in a process of its own:
    ``llm.collective_rpc("relay_counters")`` asks there, and gives one dict a worker."""
    return tally.read()
