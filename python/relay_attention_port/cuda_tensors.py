"""CUDA memory and streams, as torch keeps them. Nothing here is used for the CPU; torch is imported when it is used."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Optional

from .errors import BadDtypeError, BadShapeError, BadStrideError, WrongDeviceError

if TYPE_CHECKING:
    from .tensor_view import TensorView


def memory(index: int) -> Any:
    """The torch device of CUDA device `index`."""
    import torch

    return torch.device("cuda", index)


def current_stream(index: int) -> int:
    """The cudaStream_t that torch's operations on device `index` go to now; the default one where there is no torch."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.current_stream(index).cuda_stream) if torch is not None else 0


def is_capturing(index: int) -> bool:
    """Whether torch's current stream on device `index` is being captured into a graph."""
    import torch

    cuda: Any = torch.cuda
    if cuda.current_device() == index:
        return bool(cuda.is_current_stream_capturing())
    with cuda.device(index):
        return bool(cuda.is_current_stream_capturing())


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


def slots(numbers: Any, index: int) -> Any:
    """Slots of a cache write, an int64 array, as a tensor on the device."""
    import torch

    return torch.from_numpy(numbers).to(memory(index))


def raw_bytes(size: int, index: int) -> tuple[Any, int]:
    """Uninitialised bytes on the device, and their address."""
    import torch

    tensor = torch.empty(size, dtype=torch.uint8, device=memory(index))
    return tensor, int(tensor.data_ptr())


_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


class _Memory:
    """Device memory as ``torch.as_tensor`` takes it, whoever owns it; two-byte and four-byte numbers as integers."""

    def __init__(self, view: TensorView) -> None:
        size = _BYTES[view.dtype]
        self.__cuda_array_interface__ = {"data": (view.c.data, True), "shape": view.shape, "version": 3,
                                         "typestr": f"<i{size}", "strides": tuple(s * size for s in view.strides)}


def same_bits(a: TensorView, b: TensorView) -> bool:
    """Whether two views on one CUDA device hold the same numbers, bit by bit. Waits for the device."""
    import torch

    return bool(torch.equal(*(torch.as_tensor(_Memory(view), device=memory(view.device[1])) for view in (a, b))))


def _stream(stream: int, index: int) -> Any:
    """torch's object for a cudaStream_t."""
    import torch

    make: Any = torch.cuda.ExternalStream
    return make(stream, device=memory(index))


def order(earlier: int, later: int, index: int) -> None:
    """What comes on stream `later` comes after all that is queued on stream `earlier`."""
    _stream(later, index).wait_stream(_stream(earlier, index))


def used_by(tensor: Any, stream: int, index: int) -> None:
    """Its memory is not given to anyone before what is queued on the stream is done."""
    tensor.record_stream(_stream(stream, index))


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
        self._workspace, address = raw_bytes(size, self._index)
        self._stream, self._holds_plan = current_stream(self._index), False
        return address

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
        if self._stream is not None:
            order(self._stream, now, self._index)
        if self._workspace is not None:
            used_by(self._workspace, now, self._index)
        self._stream, self._holds_plan = now, False
