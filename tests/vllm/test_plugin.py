"""Entry points: what turns the plugin off, and that each reason is said."""
import logging
import os
import subprocess
import sys
from importlib import metadata

import pytest
from plugin_tree import write_metadata

from relay_attention_port.vllm import plugin


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.DEBUG, "relay_attention_port")
    return lambda: " ".join(record.getMessage() for record in caplog.records)


def test_on_when_installed():
    assert plugin.platform() == "relay_attention_port.vllm.v0_9_1.RelayCpuPlatform"
    names = {group: [entry.name for entry in metadata.entry_points(group=group)]
             for group in ("vllm.platform_plugins", "vllm.general_plugins")}
    assert "relay_attention" in names["vllm.platform_plugins"] and "relay_attention" in names["vllm.general_plugins"]


@pytest.mark.parametrize("version", ["0.9.2", "0.10.0", "0.2.6"])
def test_wrong_vllm(monkeypatch, said, version):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert plugin.platform() is None
    assert f"vllm {version} is installed" in said() and "0.9.1" in said()


def test_local_versions_are_the_same(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "0.9.1+cu128")
    assert plugin.adapter() == "relay_attention_port.vllm.v0_9_1"


def test_no_vllm(monkeypatch, said):
    def missing(name):
        raise metadata.PackageNotFoundError(name)
    monkeypatch.setattr(metadata, "version", missing)
    assert plugin.platform() is None
    assert "vllm is not installed" in said() and "0.9.1" in said()


def test_off(monkeypatch, said):
    monkeypatch.setenv("RELAY_VLLM", "off")
    assert plugin.platform() is None
    assert "RELAY_VLLM=off" in said()


def test_bad_mode(monkeypatch, said):
    monkeypatch.setenv("RELAY_VLLM", "sideways")
    assert plugin.platform() is None
    assert "RELAY_VLLM: 'sideways', expected one of on, plain, off" in said()


def test_gpu_keeps_its_backend(monkeypatch, said):
    from vllm import platforms
    monkeypatch.setitem(platforms.builtin_platform_plugins, "cuda", lambda: "vllm.platforms.cuda.CudaPlatform")
    assert plugin.platform() is None
    class Gpu:
        device_name = "some GPU"
        def is_cuda_alike(self):
            return True
    monkeypatch.setattr(platforms, "_current_platform", Gpu())
    plugin.general()
    assert "leaves vLLM's own attention in place on some GPU" in said()


def python(code, **variables):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
                          env={**os.environ, **variables})


def test_library_that_does_not_load(tmp_path):
    broken = tmp_path / "librelayattn.so"
    broken.write_bytes(b"\x7fELF and no more")
    done = python("from relay_attention_port.vllm import plugin; print(plugin.platform())", RELAY_LIBRARY=str(broken))
    assert done.stdout.strip().splitlines()[-1] == "None", done.stderr
    assert "RelayAttention stays off" in done.stderr + done.stdout and str(broken) in done.stderr + done.stdout


def test_no_torch():
    done = python("import sys; sys.modules['torch'] = None\n"
                  "import relay_attention_port, relay_attention_port.vllm.plugin\n"
                  "try:\n import relay_attention_port.relay_attention_backend\n"
                  "except ImportError as error:\n print('said:', error)")
    assert "said: relay_attention_port.relay_attention_backend needs torch" in done.stdout, done.stderr


def test_backend_before_vllm():
    """Whichever is imported first."""
    done = python("from relay_attention_port.relay_attention_backend import RelayAttentionBackend as B, "
                  "RelayAttentionImpl as I\nfrom vllm.platforms import current_platform as p\n"
                  "print(B.get_name(), B.get_impl_cls() is I, type(p).__name__)")
    assert done.stdout.strip().splitlines()[-1] == "RELAY_ATTENTION True RelayCpuPlatform", done.stderr


def test_second_platform_plugin(tmp_path):
    write_metadata(tmp_path, "other-platform", {"vllm.platform_plugins": {"other": "other_platform:plug"}})
    (tmp_path / "other_platform.py").write_text("def plug():\n    return 'vllm.platforms.cpu.CpuPlatform'\n")
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    code = "from vllm.platforms import current_platform as p; print(type(p).__name__)"
    both = python(code, PYTHONPATH=path)
    assert both.returncode != 0 and "Only one platform plugin can be activated" in both.stderr
    assert "relay_attention" in both.stderr and "other" in both.stderr
    for named, expected in (("relay_attention", "RelayCpuPlatform"), ("other", "CpuPlatform")):
        one = python(code, PYTHONPATH=path, VLLM_PLUGINS=named)
        assert one.stdout.strip().splitlines()[-1] == expected, one.stderr
