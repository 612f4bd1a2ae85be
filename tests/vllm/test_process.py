"""What the plugin does to a process before vLLM makes its worker."""
import importlib
import os
import sys
from types import SimpleNamespace

import pytest
import vllm

from relay_attention_port.vllm import v0_9_1

VARIABLE = "ONEDNN_MAX_CPU_ISA"
EXTENSION = "vllm.cumem_allocator"


@pytest.fixture
def extension(monkeypatch, tmp_path):
    """Lets vllm.cumem_allocator be what a test says; without a word it is not there."""
    monkeypatch.setattr(vllm, "__path__", [str(tmp_path), *vllm.__path__])
    monkeypatch.setitem(sys.modules, EXTENSION, None)
    del sys.modules[EXTENSION]
    return lambda text: (tmp_path / "cumem_allocator.py").write_text(text)


def test_an_extension_that_cannot_be_loaded_is_left_out(extension):
    """As in the wheel for CUDA on a machine without a driver; vLLM's worker imports the module that needs it."""
    extension("raise ImportError('libcuda.so.1: cannot open shared object file: No such file or directory')")
    user = sys.modules.pop("vllm.device_allocator.cumem", None)
    try:
        with pytest.raises(ImportError, match="libcuda"):
            importlib.import_module("vllm.device_allocator.cumem")
        v0_9_1.leave_out_gpu_modules()
        assert not importlib.import_module("vllm.device_allocator.cumem").cumem_available
    finally:
        if user is not None:
            sys.modules["vllm.device_allocator.cumem"] = user


def test_an_extension_that_loads_stays(extension):
    extension("here = True")
    v0_9_1.leave_out_gpu_modules()
    assert sys.modules[EXTENSION].here


def test_no_extension_is_no_matter(extension):
    v0_9_1.leave_out_gpu_modules()
    assert EXTENSION not in sys.modules


@pytest.mark.parametrize("features, before, after", [
    ("avx2 avx512 amx amx-palette-hidden", None, "AVX512_CORE_FP16"),
    ("avx2 avx512 amx amx-palette-hidden", "AVX2", "AVX2"),
    ("avx2 avx512 amx", None, None), ("avx2", None, None)])
def test_torch_is_kept_off_hidden_tiles(monkeypatch, caplog, features, before, after):
    device = SimpleNamespace(info=lambda: SimpleNamespace(features=features))
    monkeypatch.setattr(v0_9_1, "default_device", lambda: device)
    monkeypatch.setenv(VARIABLE, before or "")
    if before is None:
        del os.environ[VARIABLE]
    v0_9_1.keep_torch_off_hidden_tiles()
    assert os.environ.get(VARIABLE) == after
    assert (VARIABLE in caplog.text) == (before is None and after is not None)
