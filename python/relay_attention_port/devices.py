"""The first concept: where attention is computed (``relay/device.h``)."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import threading
from typing import Any, NamedTuple, Optional

import numpy as np

from . import c_structs as c
from . import cuda_tensors
from .c_library import Owner, library, open_handle, receive_log
from .errors import InvalidArgumentError, WrongDeviceError
from .tensor_view import TensorView, int32

_KINDS = {"cpu": c.DEVICE_CPU, "cuda": c.DEVICE_CUDA}


class DeviceInfo(NamedTuple):
    """What a device is. ``features`` are the instruction sets found, ``cpu_level`` the kernels in use."""

    kind: str
    threads: int
    name: str
    features: str
    cpu_level: str


class Calibration(NamedTuple):
    """What a device can do at most, measured: reading memory (1e9 bytes/s), and 1e9 operations/s."""

    read_gbps: float
    f32_gflops: float
    bf16_gflops: float
    peak_gflops: float


def _kind_and_index(kind: Any, index: Optional[int]) -> tuple[str, int]:
    """"cuda:1", or a torch device, is kind and index in one."""
    named = re.fullmatch(r"(cpu|cuda)(?::(\d{1,9}))?", str(kind))
    if named is None:
        raise InvalidArgumentError(f"kind: {kind!r}, expected 'cpu', 'cuda' or 'cuda:INDEX'")
    number = 0 if index is None else int32(index, "index")
    if named[2] is not None:
        if index is not None and number != int(named[2]):
            raise InvalidArgumentError(f"index: {number}, but kind is {str(kind)!r}")
        number = int(named[2])
    return named[1], number


class Device(Owner):
    """The CPU with a number of threads, or one CUDA device. May be shared by any number of threads.

    kind: "cpu", "cuda", "cuda:1" or a torch.device; index: the CUDA ordinal, where kind does not say it (default 0);
    threads: CPU threads of a run, 0 for OpenMP's own number; cpu_level: the highest kernel family to use ("scalar",
    "avx2", "avx512", "avx512bf16", "amx"), None for the best there is. What the library logs goes to the logger
    "relay_attention_port".

    A CUDA device takes torch's CUDA tensors, and others' by DLPack, of that device alone. What runs there is
    asynchronous, on torch's current stream unless a call names another.

    Raises InvalidArgumentError, NoDeviceError, OutOfMemoryError, LibraryLoadError.
    """

    def __init__(self, kind: Any = "cpu", index: Optional[int] = None, threads: int = 0,
                 cpu_level: Optional[str] = None) -> None:
        self.place = self.kind, self.index = _kind_and_index(kind, index)
        self.lib = library()
        options = self.lib.defaults(c.DeviceOptions)
        options.kind = _KINDS[self.kind]
        options.index = self.index
        options.threads = int32(threads, "threads")
        options.cpu_level = None if cpu_level is None else cpu_level.encode()
        options.log = receive_log
        self._handle = open_handle(self.lib, self.lib.c.relay_device_open, self.lib.c.relay_device_close, (),
                                   ctypes.byref(options))

    def info(self) -> DeviceInfo:
        info = c.DeviceInfo(struct_size=ctypes.sizeof(c.DeviceInfo))
        self.lib.call(self.lib.c.relay_device_get_info, self.pointer, ctypes.byref(info))
        return DeviceInfo(self.kind, info.threads, info.name.decode(), info.features.decode(),
                          info.cpu_level.decode())

    def calibrate(self) -> Calibration:
        """Measures; takes about a second."""
        result = c.Calibration(struct_size=ctypes.sizeof(c.Calibration))
        self.lib.call(self.lib.c.relay_device_calibrate, self.pointer, ctypes.byref(result))
        return Calibration(result.read_gbps, result.f32_gflops, result.bf16_gflops, result.peak_gflops)

    def check_here(self, view: TensorView, name: str) -> TensorView:
        """Raises WrongDeviceError for a tensor that lies elsewhere."""
        if view.device != self.place:
            what = "a numpy array, " if isinstance(view.owner, np.ndarray) else ""
            raise WrongDeviceError(f"{name}: {what}on {view.device[0]}:{view.device[1]}, expected a tensor on "
                                   f"{self.kind}:{self.index}")
        return view

    def stream(self, given: Optional[int]) -> Optional[int]:
        """The stream of a call that names one, or none: torch's current one on a CUDA device."""
        if given is None and self.kind == "cuda":
            return cuda_tensors.current_stream(self.index)
        return given


_default: Optional[Device] = None
_default_process = 0
_opening = threading.Lock()


def default_device() -> Device:
    """The CPU with OpenMP's number of threads, opened at the first call and shared by the process."""
    global _default, _default_process
    with _opening:
        if _default is None or _default.closed or _default_process != os.getpid():
            _default, _default_process = Device(), os.getpid()
        return _default


@functools.lru_cache(maxsize=None)
def cuda_device(index: int = 0) -> Device:
    """A CUDA device, opened at the first call and shared by the process. Raises NoDeviceError."""
    return Device("cuda", index)


def device_of(view: TensorView) -> Device:
    """The process's device where a tensor lies. Raises NoDeviceError, WrongDeviceError."""
    kind, index = view.device
    if kind not in _KINDS:
        raise WrongDeviceError(f"a tensor on {kind}:{index}, expected the CPU or a CUDA device")
    return default_device() if kind == "cpu" else cuda_device(index)
