"""CUDA memory and streams, as torch keeps them. Nothing here is used for the CPU; torch is imported at the first use."""

from __future__ import annotations

import sys
from typing import Any, Optional

from .errors import BadDtypeError, BadShapeError, BadStrideError, WrongDeviceError


def memory(index: int) -> Any:
    """The torch device of CUDA device `index`."""
    import torch

    return torch.device("cuda", index)


def current_stream(index: int) -> int:
    """The cudaStream_t that torch's operations on device `index` go to now; the default stream where there is no torch."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.current_stream(index).cuda_stream) if torch is not None else 0


def is_capturing(index: int) -> bool:
    """Whether torch's current stream on device `index` is being captured into a graph."""
    import torch

    if torch.cuda.current_device() == index:
        return bool(torch.cuda.is_current_stream_capturing())
    with torch.cuda.device(index):
        return bool(torch.cuda.is_current_stream_capturing())


def dlpack_stream(index: int) -> int:
    """The current stream as ``__dlpack__`` wants it: the producer makes its work visible there."""
    return current_stream(index) or 1  # 1 is the default stream; DLPack forbids 0


def slots_address(slot_mapping: Any, index: int) -> tuple[int, int]:
    """Address and number of the slots of a cache write; they are read on the device.
    Raises WrongDeviceError, BadDtypeError, BadShapeError, BadStrideError."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(slot_mapping, torch.Tensor) or slot_mapping.device != memory(index):
        where = getattr(slot_mapping, "device", type(slot_mapping).__name__)
        raise WrongDeviceError(f"slot_mapping: {where}, expected an int64 torch tensor on cuda:{index}")
    if slot_mapping.dtype != torch.int64:
        raise BadDtypeError(f"slot_mapping: {slot_mapping.dtype}, expected torch.int64")
    if slot_mapping.dim() != 1:
        raise BadShapeError(f"slot_mapping: {slot_mapping.dim()} dimensions, expected 1")
    if slot_mapping.numel() > 1 and slot_mapping.stride(0) != 1:
        raise BadStrideError(f"slot_mapping: stride {slot_mapping.stride(0)}, expected 1")
    return int(slot_mapping.data_ptr()), int(slot_mapping.numel())


def floats(values: Any, index: int) -> Any:
    """A float32 tensor on the device with the numbers of an array."""
    import torch

    return torch.as_tensor(values, dtype=torch.float32).to(memory(index))


class PlanMemory:
    """A CUDA plan's workspace, and which stream its last run is on.

    Runs of a plan share its workspace, so a run on another stream than the last waits there for it, on the device.
    While a stream is captured nothing of the kind is recorded: a graph has its runs in order by itself.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._workspace: Any = None
        self._stream: Optional[int] = None  # of the last run
        self._holds_plan = False  # the workspace has the work list of the plan as it is built

    def reserve(self, size: int) -> int:
        """A workspace of `size` bytes; its address."""
        import torch

        self._workspace = torch.empty(size, dtype=torch.uint8, device=memory(self._index))
        self._stream, self._holds_plan = current_stream(self._index), False
        return int(self._workspace.data_ptr())

    def rebuilt(self) -> None:
        """The plan was built, or a run failed: the next run has to bring the work list."""
        self._holds_plan = False

    def enter(self, stream: Optional[int], plan_in_workspace: Optional[bool]) -> tuple[int, bool]:
        """Stream and plan_in_workspace of the run that comes now. Unless it is said, the work list is copied by the
        first run of a plan as built, and by every run of a graph and of a stream that the caller names."""
        now = current_stream(self._index) if stream is None else stream
        if is_capturing(self._index):
            return now, bool(plan_in_workspace)
        if now != self._stream:
            self._follow(now)
        skip = self._holds_plan and stream is None if plan_in_workspace is None else bool(plan_in_workspace)
        self._holds_plan = True
        return now, skip

    def _follow(self, now: int) -> None:
        """What comes on stream `now` comes after all that is queued on the last run's stream."""
        import torch

        place = memory(self._index)
        following = torch.cuda.ExternalStream(now, device=place)
        if self._stream is not None:
            following.wait_stream(torch.cuda.ExternalStream(self._stream, device=place))
        if self._workspace is not None:
            self._workspace.record_stream(following)
        self._stream, self._holds_plan = now, False
