"""Entry points: what turns the plugin off, and that each reason is said."""
import logging
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
from plugin_tree import write_metadata

import relay_attention_port
from relay_attention_port import c_library
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
    assert f"vllm {version} is installed; this relay_attention_port runs in vllm 0.9.1: install that" in said()


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


PLATFORM = "from vllm.platforms import current_platform as p; print(type(p).__name__)"


def refused(*said, **variables):
    """What vLLM's platform becomes: none here, and the log says why, in one line."""
    done = python(PLATFORM, **variables)
    assert done.stdout.strip().splitlines()[-1] == "UnspecifiedPlatform", done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "RelayAttention stays off" in line]
    assert len(lines) == 1, done.stdout + done.stderr
    for text in (*said, "this vLLM has no other platform for this machine, and cannot start"):
        assert text in lines[0]


def test_wrong_vllm_as_a_user_sees_it(tmp_path):
    write_metadata(tmp_path, "vllm", {}, version="0.10.0")
    refused("vllm 0.10.0 is installed; this relay_attention_port runs in vllm 0.9.1: install that",
            PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))


def test_text_file_for_a_library_as_a_user_sees_it(tmp_path):
    (tmp_path / "notes.txt").write_text("this is a text file\n" * 100)
    refused(str(tmp_path / "notes.txt"), "invalid ELF header", "RELAY_LIBRARY names this file",
            RELAY_LIBRARY=str(tmp_path / "notes.txt"))


@pytest.fixture
def broken(tmp_path):
    """A file that RELAY_LIBRARY may name, of each kind."""
    def make(kind):
        path = tmp_path / "librelayattn.so"
        if kind == "text":
            path.write_text("this is a text file\n" * 100)
        elif kind == "cut short":
            path.write_bytes(b"\x7fELF and no more")
        elif kind == "a folder":
            path.mkdir()
        elif kind == "another library":
            shutil.copy(sys.modules["_ctypes"].__file__, path)
        elif kind == "another version":
            from test_python_binding import compile_fake
            compile_fake(tmp_path, "0.2.0", None).rename(path)
        return str(path)
    return make


@pytest.fixture
def stays_off(monkeypatch, said):
    """What is logged when the plugin is asked anew, with the library not loaded yet."""
    def ask():
        monkeypatch.setattr(c_library, "_library", None)
        assert plugin.platform() is None
        assert "RelayAttention stays off: " in said() and "this vLLM has no other platform" in said()
        return said()
    return ask


@pytest.mark.parametrize("kind, why", [
    ("text", "invalid ELF header"), ("cut short", "cannot be loaded"), ("a folder", "cannot"),
    ("missing", "No such file"), ("another library", "is not the librelayattn that this package needs"),
    ("another version", "is version 0.2.0; this package needs 0.1")])
def test_library_that_does_not_load(broken, stays_off, monkeypatch, kind, why):
    path = broken(kind)
    monkeypatch.setenv("RELAY_LIBRARY", path)
    line = stays_off()
    assert path in line and why in line and "RELAY_LIBRARY names this file" in line


@pytest.mark.parametrize("content, why", [(None, "is not there: install the package"),
                                          (b"\x7fELF", "(install the package again)")], ids=["deleted", "damaged"])
def test_library_of_the_installation(stays_off, monkeypatch, tmp_path, content, why):
    """What a pip that was interrupted leaves."""
    if content:
        (tmp_path / "librelayattn.so").write_bytes(content)
    monkeypatch.delenv("RELAY_LIBRARY")
    monkeypatch.setattr(relay_attention_port, "__path__", [str(tmp_path)])
    line = stays_off()
    assert str(tmp_path / "librelayattn.so") in line and why in line


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
    both = python(PLATFORM, PYTHONPATH=path)
    assert both.returncode != 0 and "Only one platform plugin can be activated" in both.stderr
    assert "relay_attention" in both.stderr and "other" in both.stderr
    for named, expected in (("relay_attention", "RelayCpuPlatform"), ("other", "CpuPlatform")):
        one = python(PLATFORM, PYTHONPATH=path, VLLM_PLUGINS=named)
        assert one.stdout.strip().splitlines()[-1] == expected, one.stderr


@pytest.fixture(scope="module")
def small_heads(tmp_path_factory):
    from engines import random_model
    return random_model(tmp_path_factory.mktemp("heads"), "Llama", head_dim=20)


@pytest.mark.parametrize("options, named", [
    ({"block_size": 8}, "block_size 8 is not computed, only multiples of 16"),
    ({"block_size": 24}, "block_size 24 is not computed"), ({"dtype": "float32"}, "dtype torch.float32 is not computed"),
    ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype fp8 is not computed"),
    ({"kv_cache_dtype": "fp8_e5m2"}, "kv_cache_dtype fp8_e5m2 is not computed"),
    ({"model": "small_heads"}, "head_size 20 is not computed, only multiples of 8 up to 256"),
    ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}},
     "speculative_config"),
    ({"additional_config": {"relay": {"min_prefx": 64}}}, "relay.min_prefx: not known; there are strategy, min_prefix"),
    ({"additional_config": {"relay": {"max_groups": -1}}}, "relay.max_groups: -1, expected an integer from 0"),
    ({"additional_config": {"Relay": {"min_prefix": 64}}}, "Relay: not known; the key of additional_config is 'relay'"),
    ({"additional_config": {"relay": "on"}}, "relay: 'on', expected an object"),
    ({"variable": ("RELAY_VLLM_MIN_PREFIX", "many")}, "RELAY_VLLM_MIN_PREFIX: 'many', expected an integer"),
    ({"variable": ("RELAY_VLLM_MIN_PREFIX", "0")}, "RELAY_VLLM_MIN_PREFIX: 0, expected an integer from 1"),
    ({"variable": ("RELAY_VLLM_MIN_PREFX", "64")}, "RELAY_VLLM_MIN_PREFX: not known"),
    ({"variable": ("RELAY_VLLM", "sideways")}, "RELAY_VLLM: 'sideways', expected one of on, plain, off"),
    ({"variable": ("VLLM_USE_V1", "0")}, "V0 engine"),
], ids=lambda value: None if isinstance(value, dict) else value.split(",")[0])
def test_engine_that_is_refused(options, named, small_heads, monkeypatch):
    """vLLM passes on what a configuration's check raises, some of it as pydantic's ValidationError."""
    import engines  # noqa: F401  (registers the models)
    from serving import LOOKUP
    from vllm import LLM
    monkeypatch.delenv("VLLM_USE_V1", raising=False)  # vLLM sets it for the process
    options = dict(options)
    if "variable" in options:
        monkeypatch.setenv(*options.pop("variable"))
    model = small_heads if options.pop("model", None) else LOOKUP
    with pytest.raises((NotImplementedError, ValueError), match=re.escape(named)):
        LLM(str(model), max_model_len=512, seed=0, **options)
    monkeypatch.delenv("VLLM_USE_V1", raising=False)
