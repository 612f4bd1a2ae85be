"""A step as the library sees it: what the batch shares, and one plan for each kind of layer.

Knows numpy and the library, no vLLM: block tables and lengths come in as arrays.
"""

from __future__ import annotations

import logging
from typing import Any, Optional

from ..devices import Device
from ..forests import Forest
from ..plans import Attention, Plan
from ..tensor_view import TensorView
from .counters import tally
from .packed import PackedPrefixes
from .settings import Settings

log = logging.getLogger("relay_attention_port.vllm")


class LayerPlan:
    """The plan of one kind of layer; the planner builds it when the step's first layer of that kind asks."""

    def __init__(self, planner: "StepPlanner", plan: Plan, reads_pages: bool) -> None:
        self._planner, self._plan, self._reads_pages = planner, plan, reads_pages
        self._step = -1  # the step that it was last built for

    def now(self) -> Plan:
        """The plan, of this step."""
        if self._step != self._planner.step:
            self._step = self._planner.step
            self._planner.build(self._plan, self._reads_pages)
        return self._plan


class StepPlanner:
    """The forest of a KV group, made anew each step, its plans, and the packed copies of what stays shared. Belongs to
    one thread.

    writes_seen: whether all that is written into the pools goes through the slots of steps; without it nothing is
    packed, and nothing is on a GPU.
    """

    def __init__(self, device: Device, settings: Settings, block_size: int, writes_seen: bool = True) -> None:
        self.device, self.settings, self.block_size = device, settings, block_size
        self.step = 0
        self._forest, self._pages = Forest(device), Forest(device)
        self._plans: dict[Attention, LayerPlan] = {}
        self._counted = True  # the current step is in the counters
        self._tables: tuple[Any, Any, Any, int] = ([0], [], [[]], 0)
        self._moved = 0  # segments of the forest that are read from copies
        self._pages_step = -1
        self.packed: Optional[PackedPrefixes] = None
        if device.kind == "cpu" and settings.packed_gib > 0 and self._depth() > 0 and writes_seen:
            self.packed = PackedPrefixes(device, block_size, max(1, int(settings.packed_gib * 2**30)))

    def _depth(self) -> int:
        settings = self.settings
        return 0 if settings.deterministic or settings.strategy == "plain" else settings.max_depth

    def begin(self, query_start_loc: Any, seq_lens: Any, block_table: Any, num_blocks: int, slots: Any) -> None:
        """A new step: int32 arrays [R + 1], [R], [R, n], as in Forest.find, and the slots, int64, that it writes. They
        are used again during the step."""
        self._counted = False
        self._tables = query_start_loc, seq_lens, block_table, num_blocks
        if self.packed is not None:
            self.packed.begin(slots, num_blocks)
        self._look()
        if self.packed is not None:
            self._moved = self.packed.place(self._forest)
        tally.log_if_due(self.settings.log_interval)

    def _look(self) -> None:
        """What the step's block tables share, all of it in pages; plans are to be built from it."""
        self.step += 1
        self._moved = 0
        self._find(self._forest)

    def layer(self, attention: Attention, keys: TensorView, values: TensorView) -> tuple[LayerPlan, int]:
        """The plan for layers of this kind, and the number of the layer with these pools."""
        number = 0
        if self.packed is not None and attention.sliding_window == 0:
            number = self.packed.layer(keys, values)
            if self._moved and not self.packed.holds_any():
                self._look()  # a layer that the copies lack
        plan = self._plans.get(attention)
        if plan is None:
            strategy = "auto" if self.settings.deterministic else self.settings.strategy
            made = Plan(self.device, attention, strategy=strategy, repeatable=self.settings.deterministic)
            plan = self._plans[attention] = LayerPlan(self, made, attention.sliding_window > 0)
        return plan, number

    def build(self, plan: Plan, reads_pages: bool) -> None:
        """Builds a plan for this step. Layers with a window read pages: of a long prefix they need little."""
        forest = self._forest
        if reads_pages and self._moved:
            forest = self._pages
            if self._pages_step != self.step:
                self._find(forest)
                self._pages_step = self.step
        plan.build(forest)
        self._count(plan)

    def _find(self, forest: Forest) -> None:
        settings, depth = self.settings, self._depth()
        starts, lens, table, num_blocks = self._tables
        shortest = settings.min_prefix
        while True:
            forest.find(starts, lens, table, block_size=self.block_size, num_blocks=num_blocks,
                        min_shared_tokens=shortest, max_depth=depth)
            if settings.max_groups == 0 or forest.num_segments <= settings.max_groups:
                return
            lengths = sorted((segment.span.length for segment in forest.segments()), reverse=True)
            shortest = lengths[settings.max_groups] + 1  # with it go all that are as short

    def _count(self, plan: Plan) -> None:
        """A step counts once, by its first kind of layer."""
        if self._counted:
            return
        self._counted = True
        info = plan.info()
        tally.add(info.relay_segments, info.shared_tokens_saved, self._moved)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("step %d: %d requests, %d rows, %d shared prefixes read once, %d read by each request, %d packed, "
                      "%d K/V tokens saved, kernel %s", self.step, info.num_requests, info.num_rows,
                      info.relay_segments, info.plain_segments, self._moved, info.shared_tokens_saved, info.kernel)
