"""The counters as Prometheus metrics, on the /metrics page of vLLM's server.

That page is made in the server's process, the counters are the workers'. Prometheus' client for Python joins processes
through files, in the folder that PROMETHEUS_MULTIPROC_DIR names before the server starts. Without that variable nobody
would read what a worker published, and nothing is.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
from typing import Any

log = logging.getLogger("relay_attention_port.vllm")
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
PREFIX = "relay_attention_"
GAUGES = ("packed_bytes",)  # the others only grow


class Publisher:
    """Mirrors a dataclass of numbers, one metric a field, in the series of this process: ``worker`` is its name. Trouble
    is logged once and ends the publishing, nothing else."""

    def __init__(self) -> None:
        self._published: dict[str, int] = {}
        self._metrics: dict[str, Any] = {}
        self._on = bool(os.environ.get(FOLDER_VARIABLE))

    def publish(self, counters: Any) -> None:
        if not self._on:
            return
        try:
            self._publish(counters)
        except (ImportError, OSError, ValueError) as error:
            self._on = False
            log.warning("RelayAttention: no counters on /metrics: %s", error)

    def _publish(self, counters: Any) -> None:
        if not self._metrics:
            self._metrics = _make([field.name for field in dataclasses.fields(counters)])
        for name, metric in self._metrics.items():
            value = getattr(counters, name)
            if name in GAUGES:
                metric.set(value)
            elif value > self._published.get(name, 0):
                metric.inc(value - self._published.get(name, 0))
            self._published[name] = value


def _make(names: list[str]) -> dict[str, Any]:
    from prometheus_client import CollectorRegistry, Counter, Gauge
    registry = CollectorRegistry()  # the files are what is read
    worker = multiprocessing.current_process().name
    made: dict[str, Any] = {}
    for name in names:
        if name in GAUGES:
            metric: Any = Gauge(PREFIX + name, f"RelayAttention: {name}", ["worker"], registry=registry,
                                multiprocess_mode="livesum")
        else:
            metric = Counter(PREFIX + name, f"RelayAttention: {name}", ["worker"], registry=registry)
        made[name] = metric.labels(worker)
    return made
