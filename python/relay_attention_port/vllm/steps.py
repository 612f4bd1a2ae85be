"""A step as the library sees it: what the batch shares, and one plan for each kind of layer.

Knows numpy and the library, no vLLM: block tables and lengths come in as arrays.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from ..devices import Device
from ..forests import Forest
from ..plans import Attention, Plan
from .counters import tally
from .settings import Settings

log = logging.getLogger("relay_attention_port.vllm")


@dataclass
class _Planned:
    plan: Plan
    step: int = -1  # the step that it was last built for


class StepPlanner:
    """The forest of a KV group, made anew each step, and its plans, each built when the step's first layer of its
    kind asks. Belongs to one thread."""

    def __init__(self, device: Device, settings: Settings, block_size: int) -> None:
        self.device, self.settings, self.block_size = device, settings, block_size
        self._forest = Forest(device)
        self._plans: dict[Attention, _Planned] = {}
        self._step = 0
        self._counted = True  # the current step is in the counters

    def begin(self, query_start_loc: Any, seq_lens: Any, block_table: Any, num_blocks: int) -> None:
        """A new step: int32 arrays [R + 1], [R], [R, n], as in Forest.find."""
        self._step += 1
        self._counted = False
        self._find(query_start_loc, seq_lens, block_table, num_blocks)
        tally.log_if_due(self.settings.log_interval)

    def _find(self, starts: Any, lens: Any, table: Any, num_blocks: int) -> None:
        settings = self.settings
        depth = 0 if settings.deterministic or settings.strategy == "plain" else settings.max_depth
        shortest = settings.min_prefix
        while True:
            self._forest.find(starts, lens, table, block_size=self.block_size, num_blocks=num_blocks,
                              min_shared_tokens=shortest, max_depth=depth)
            if settings.max_groups == 0 or self._forest.num_segments <= settings.max_groups:
                return
            lengths = sorted((segment.span.length for segment in self._forest.segments()), reverse=True)
            shortest = lengths[settings.max_groups] + 1  # with it go all that are as short

    def plan(self, attention: Attention) -> Plan:
        """The plan of this step for layers of this kind."""
        planned = self._plans.get(attention)
        if planned is None:
            strategy = "auto" if self.settings.deterministic else self.settings.strategy
            planned = self._plans[attention] = _Planned(Plan(self.device, attention, strategy=strategy,
                                                             repeatable=self.settings.deterministic))
        if planned.step != self._step:
            planned.plan.build(self._forest)
            planned.step = self._step
            self._count(planned.plan)
        return planned.plan

    def _count(self, plan: Plan) -> None:
        """A step counts once, by its first kind of layer."""
        if self._counted:
            return
        self._counted = True
        info = plan.info()
        tally.add(info.relay_segments, info.shared_tokens_saved)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("step %d: %d requests, %d rows, %d shared prefixes read once, %d read by each request, %d K/V "
                      "tokens saved, kernel %s", self._step, info.num_requests, info.num_rows, info.relay_segments,
                      info.plain_segments, info.shared_tokens_saved, info.kernel)
