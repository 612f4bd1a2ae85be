"""A CUDA device for machines without a GPU, for tests of the package: tests/pretended_cuda.c computes, in the
processor's memory. Every torch tensor then counts as one on cuda:0; numpy arrays stay where they are."""
import ctypes
import importlib
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import python_package
import torch

from relay_attention_port import Device, cuda_tensors, devices

tensor_view = importlib.import_module("relay_attention_port.tensor_view")  # the package has a function of that name

FLAGS = ["-std=c11", "-O2", "-ffp-contract=off", "-fvisibility=hidden", "-fPIC", "-shared"]


class Calls(ctypes.Structure):
    """pretended_record"""

    _fields_ = [(name, ctypes.c_int64) for name in ("attends", "copies", "writes", "fusions", "builds_waited")]
    _fields_.append(("stream", ctypes.c_void_p))


class Pretended:
    """``device``; ``calls``, what the device was asked for; ``stream``, the current one; ``capturing``; and the events
    between streams, ``ordered``, as (earlier, later)."""

    def __init__(self, path):
        library = ctypes.CDLL(str(path))
        self.calls = Calls.in_dll(library, "pretended_calls")
        self.failure = ctypes.c_int.in_dll(library, "pretended_failure")
        self.stream, self.capturing, self.ordered, self.used = 0, False, [], []
        self.device = None

    def clear(self):
        ctypes.memset(ctypes.byref(self.calls), 0, ctypes.sizeof(self.calls))
        self.ordered.clear()


@pytest.fixture(scope="session")
def pretended_library(tmp_path_factory):
    compiler = shutil.which("cc")
    assert compiler, "a C compiler is needed"
    path = tmp_path_factory.mktemp("pretended") / "librelayattn_cuda.so"
    root = python_package.ROOT
    subprocess.run([compiler, *FLAGS, "-I", root / "include", "-I", root / "src", root / "tests/pretended_cuda.c", "-o",
                    path, "-lm"], check=True)
    return path


@pytest.fixture
def pretended(pretended_library, monkeypatch):
    monkeypatch.setenv("RELAY_CUDA_LIBRARY", str(pretended_library))
    it = Pretended(pretended_library)
    it.clear()
    of_torch = tensor_view._of_torch

    def on_cuda(tensor, name):
        view = of_torch(tensor, name)
        view.device = ("cuda", 0)
        return view

    monkeypatch.setattr(tensor_view, "_of_torch", on_cuda)
    monkeypatch.setattr(cuda_tensors, "memory", lambda index: torch.device("cpu"))
    monkeypatch.setattr(cuda_tensors, "current_stream", lambda index: it.stream)
    monkeypatch.setattr(cuda_tensors, "is_capturing", lambda index: it.capturing)
    monkeypatch.setattr(cuda_tensors, "order", lambda earlier, later, index: it.ordered.append((earlier, later)))
    monkeypatch.setattr(cuda_tensors, "used_by", lambda tensor, stream, index: it.used.append(stream))
    monkeypatch.setattr(cuda_tensors, "same_bits", lambda a, b: np.array_equal(*(bits(view) for view in (a, b))))
    devices.cuda_device.cache_clear()
    it.device = Device("cuda")
    yield it
    devices.cuda_device.cache_clear()


def bits(view):
    return tensor_view.TensorView(view.c.data, view.c.dtype, view.shape, view.strides, view.owner).array()


@pytest.fixture
def vllm_classes(monkeypatch):
    """The module that knows vLLM, with stand-ins for what it imports of vLLM, which need not be installed here."""
    names = ("vllm", "vllm.envs", "vllm.platforms", "vllm.platforms.cpu")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["vllm"].envs = sys.modules["vllm.envs"]
    sys.modules["vllm.platforms.cpu"].CpuPlatform = type("CpuPlatform", (), {})
    monkeypatch.delitem(sys.modules, "relay_attention_port.vllm.v0_9_1", raising=False)
    yield importlib.import_module("relay_attention_port.vllm.v0_9_1")
    sys.modules.pop("relay_attention_port.vllm.v0_9_1", None)
