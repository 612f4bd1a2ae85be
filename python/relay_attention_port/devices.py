"""The first concept: where attention is computed (``relay/device.h``)."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import NamedTuple, Optional

from . import c_structs as c
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


class Device(Owner):
    """The CPU with a number of threads, or one CUDA device. May be shared by any number of threads.

    kind: "cpu" or "cuda"; index: the CUDA ordinal; threads: CPU threads of a run, 0 for OpenMP's own number;
    cpu_level: the highest kernel family to use ("scalar", "avx2", "avx512", "avx512bf16", "amx"), None for the
    best there is. What the library logs goes to the logger "relay_attention_port".

    Raises InvalidArgumentError, NoDeviceError, OutOfMemoryError, LibraryLoadError.
    """

    def __init__(self, kind: str = "cpu", index: int = 0, threads: int = 0, cpu_level: Optional[str] = None) -> None:
        if kind not in _KINDS:
            raise InvalidArgumentError(f"kind: {kind!r}, expected 'cpu' or 'cuda'")
        self.kind, self.index = kind, int32(index, "index")
        self.place = (kind, self.index)
        self.lib = library()
        options = self.lib.defaults(c.DeviceOptions)
        options.kind = _KINDS[kind]
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
            raise WrongDeviceError(f"{name}: on {view.device[0]}:{view.device[1]}, expected {self.kind}:{self.index}")
        return view


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
