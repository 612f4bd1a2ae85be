"""The documented surface: its usage runs as it is written, and every name does what it says."""
import ast
import dataclasses
import importlib.metadata
import inspect
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from python_package import ROOT, attention, close

import relay_attention_port
from relay_attention_port import relay_config, relayattn_ops_v091
from relay_attention_port.errors import InvalidArgumentError, RelayError
from relay_attention_port.integration_example import RelayAttentionIntegration
from relay_attention_port.relay_config import RelayConfig, RelayInfo, RelayMetadata

torch = pytest.importorskip("torch")

# ---- the documented usage, as it is written --------------------------------------------

BASIC = """\
from relay_attention_port.relay_config import RelayConfig
from relay_attention_port.integration_example import RelayAttentionIntegration

# Create configuration
config = RelayConfig(
    enabled=True,
    use_triton=True,
    cache_system_prompts=True
)

# Create integration
integration = RelayAttentionIntegration(config)

# Create attention layer with relay support
attention = integration.create_attention_layer(
    num_heads=32,
    head_size=128,
    scale=0.125
)

# Create relay metadata
relay_metadata = integration.create_relay_metadata(system_length=10)

# Use in forward pass
output = attention.forward(query, key, value, attn_metadata=relay_metadata)
"""

ADVANCED = """\
from relay_attention_port.relay_config import RelayConfig, RelayInfo

# Custom relay configuration
relay_info = RelayInfo(
    system_length=15,
    enabled=True,
    use_triton=True,
    cache_system_prompts=True,
    max_cached_system_prompts=100
)

config = RelayConfig(
    enabled=True,
    default_relay_info=relay_info,
    enable_prefetch=True,
    prefetch_batch_size=8
)
"""

FORMULA = """\
def relay_fusion(out_sys, lse_sys, out_usr, lse_usr):
    # Calculate fusion weights
    alpha_sys = 1. / (1. + (lse_usr - lse_sys).exp())
    
    # Fuse outputs
    out_fused = alpha_sys * out_sys + (1. - alpha_sys) * out_usr
    
    return out_fused
"""

CONFIG = """\
@dataclass
class RelayConfig:
    enabled: bool = False
    use_triton: bool = True
    cache_system_prompts: bool = True
    max_cached_system_prompts: int = 100
    enable_prefetch: bool = True
    prefetch_batch_size: int = 4
"""

INFO = """\
@dataclass
class RelayInfo:
    system_length: int
    enabled: bool = True
    use_triton: bool = True
    cache_system_prompts: bool = True
    max_cached_system_prompts: int = 100
"""

# Three signatures without bodies: no Python program. test_metadata_has_the_documented_methods reads it.
METADATA = """\
class RelayMetadata:
    def __init__(self, relay_info: Optional[RelayInfo] = None)
    def set_cache_keys(self, system_key: str, user_key: str)
    def has_relay_info(self) -> bool
"""

DEBUG = """\
# Enable debug logging
import logging
logging.basicConfig(level=logging.DEBUG)
"""

RUN_TESTS = """\
# Run unit tests (when implemented)
python -m pytest tests/test_relay_attention.py
"""

RUN_EXAMPLE = """\
# Test with actual vLLM models
python integration_example.py
"""


def tensors(tokens, heads=32, size=128, dtype=torch.float32):
    make = torch.Generator().manual_seed(0)
    return [torch.randn(tokens, heads, size, generator=make).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_basic_integration(dtype, tolerance):
    """Prefill by the documented lines, then decode on the same layer: both are attention over everything so far."""
    query, key, value = tensors(25, dtype=dtype)
    space = {"query": query[:24], "key": key[:24], "value": value[:24]}
    exec(BASIC, space)
    exact = [x.float().numpy() for x in (query, key, value)]
    close(space["output"].float(), attention(*(x[:24] for x in exact), scale=0.125)[0], tolerance)
    output = space["attention"].forward(query[24:], key[24:], value[24:], attn_metadata=space["relay_metadata"])
    close(output.float(), attention(exact[0][24:], *exact[1:], scale=0.125)[0], tolerance)
    assert space["attention"].num_tokens(space["relay_metadata"]) == 25
    assert space["relay_metadata"].relay_info == RelayInfo(10)


def test_advanced_configuration():
    space = {}
    exec(ADVANCED, space)
    config = space["config"]
    assert (config.enabled, config.prefetch_batch_size, config.default_relay_info) == (True, 8, RelayInfo(15))
    info = config.create_relay_info(7)
    assert info == RelayInfo(7) and config.default_relay_info.system_length == 15


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_fusion_is_the_documented_formula(backend):
    """As documented, for LSEs that its lines can take: finite, with a last dimension of 1."""
    space = {}
    exec(FORMULA, space)
    out_sys, out_usr, lses = *tensors(6, 4, 16)[:2], torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    wanted = space["relay_fusion"](out_sys, lses[0].unsqueeze(-1), out_usr, lses[1].unsqueeze(-1))
    close(relayattn_ops_v091.relay_fusion(out_sys, lses[0], out_usr, lses[1], backend=backend), wanted, 2e-6)
    assert relay_attention_port.relay_fusion is relayattn_ops_v091.relay_fusion
    signature = str(inspect.signature(relay_attention_port.relay_fusion))
    for said in ("out_sys", "lse_sys", "out_usr", "lse_usr", "backend: 'str' = 'native'",
                 "trans_lse_sys: 'bool' = False", "trans_lse_usr: 'bool' = False"):
        assert said in signature


@pytest.mark.parametrize("documented, mine, more", [(CONFIG, RelayConfig, {"default_relay_info"}),
                                                    (INFO, RelayInfo, set())])
def test_fields_and_defaults(documented, mine, more):
    space = {"dataclass": dataclasses.dataclass}
    exec(documented, space)
    wanted = {field.name: field.default for field in dataclasses.fields(space[mine.__name__])}
    have = {field.name: field.default for field in dataclasses.fields(mine) if field.name not in more}
    assert have == wanted and {field.name for field in dataclasses.fields(mine)} == set(wanted) | more


def test_metadata_has_the_documented_methods():
    for line in METADATA.splitlines()[1:]:
        [wanted] = ast.parse(line.strip() + ": ...").body
        method = getattr(RelayMetadata, wanted.name)
        assert [a.arg for a in wanted.args.args] == list(inspect.signature(method).parameters)
    metadata = RelayMetadata()
    assert not metadata.has_relay_info() and metadata.system_cache_key is None and metadata.user_cache_key is None
    metadata = RelayMetadata(RelayInfo(3))
    metadata.set_cache_keys("system", "user")
    assert metadata.has_relay_info()
    assert (metadata.system_cache_key, metadata.user_cache_key) == ("system", "user")


def run(*command, cwd=ROOT, **environment):
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd,
                          env={**os.environ, "OMP_WAIT_POLICY": "passive", **environment})


def test_debug_mode():
    """The documented lines alone show what the relay does."""
    done = run(sys.executable, "-c", DEBUG + BASIC.replace("output = ", """
import numpy as np
query, key, value = (np.ones((12, 32, 128), np.float32) for _ in range(3))
relay_metadata.set_cache_keys("handbook", "user")
output = """))
    assert done.returncode == 0, done.stderr
    for said in ("DEBUG:relay_attention_port", "librelayattn ", "layer-0: 32 query heads",
                 "'handbook': packed, 10 tokens", "12 rows of 1 requests"):
        assert said in done.stderr, said


@pytest.mark.parametrize("command, folder", [
    (["-m", "relay_attention_port.integration_example"], "/"),
    (RUN_EXAMPLE.split()[-1:], ROOT), (RUN_EXAMPLE.split()[-1:], ROOT / "python" / "relay_attention_port")])
def test_example_runs(command, folder):
    done = run(sys.executable, *command, cwd=folder)
    assert done.returncode == 0, done.stderr
    plain, relay = (line for line in done.stdout.splitlines() if " attention   " in line)
    assert "plain attention" in plain and " 0 of 24 calls" in plain
    assert "relay attention" in relay and " 0 of 24 calls" not in relay
    assert done.stderr == ""


def test_readme():
    """Its Python lines run as they are written, and print what they say."""
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    done = run(sys.executable, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == re.search(r"# (\d+)$", code.strip()).group(1)


def test_documented_test_command():
    assert Path(RUN_TESTS.split()[-1]) == Path(__file__).relative_to(ROOT)


def test_no_usage_is_left_out():
    """Every text above is executed or read by a test here; what is documented and not run, and why."""
    not_run = {"pip install -r requirements.txt": "the packages of the tests are in tests/requirements.txt",
               "pip install vllm==0.9.1": "needs vLLM: pip install 'relay-attention-port[vllm]'"}
    texts = [name for name, value in globals().items() if name.isupper() and isinstance(value, str)]
    source = Path(__file__).read_text()
    for name in texts:
        assert source.count(name) >= 2, f"{name} is never used"
    assert len(texts) == 9 and all(not_run.values())


# ---- settings --------------------------------------------------------------------------


@pytest.mark.parametrize("make, said", [
    (lambda: RelayInfo(-1), "RelayInfo.system_length: -1, expected 0"),
    (lambda: RelayInfo(1.5), "RelayInfo.system_length: 1.5, expected an integer"),
    (lambda: RelayInfo(True), "RelayInfo.system_length: True"),
    (lambda: RelayInfo(2**31), "RelayInfo.system_length: 2147483648"),
    (lambda: RelayInfo(1, enabled=1), "RelayInfo.enabled: 1, expected True or False"),
    (lambda: RelayInfo(1, max_cached_system_prompts=0), "RelayInfo.max_cached_system_prompts: 0, expected 1"),
    (lambda: RelayConfig(enabled="yes"), "RelayConfig.enabled: 'yes'"),
    (lambda: RelayConfig(use_triton=None), "RelayConfig.use_triton: None"),
    (lambda: RelayConfig(cache_system_prompts=2), "RelayConfig.cache_system_prompts: 2"),
    (lambda: RelayConfig(enable_prefetch=0), "RelayConfig.enable_prefetch: 0"),
    (lambda: RelayConfig(max_cached_system_prompts=-5), "RelayConfig.max_cached_system_prompts: -5"),
    (lambda: RelayConfig(prefetch_batch_size=0), "RelayConfig.prefetch_batch_size: 0"),
    (lambda: RelayConfig(default_relay_info=10), "RelayConfig.default_relay_info: 10, expected a RelayInfo"),
    (lambda: RelayConfig().create_relay_info(-2), "RelayInfo.system_length: -2"),
    (lambda: RelayMetadata(10), "relay_info: 10, expected a RelayInfo or None"),
    (lambda: RelayMetadata().set_cache_keys("", "u"), "system_key: ''"),
    (lambda: RelayMetadata().set_cache_keys("s", "x" * 256), "user_key: "),
    (lambda: RelayMetadata().set_cache_keys("s", 5), "user_key: 5"),
    (lambda: RelayMetadata().set_cache_keys("s\0", None), "system_key: "),
    (lambda: RelayAttentionIntegration().create_relay_metadata(-1), "RelayInfo.system_length: -1"),
])
def test_wrong_fields_are_named(make, said):
    with pytest.raises(InvalidArgumentError) as raised:
        make()
    assert str(raised.value).startswith(said) and isinstance(raised.value, (ValueError, RelayError))


def test_integers_of_numpy_are_integers():
    info = RelayInfo(np.int64(10), max_cached_system_prompts=np.uint8(3))
    assert info == RelayInfo(10, max_cached_system_prompts=3) and type(info.system_length) is int


def test_a_field_made_wrong_later_is_found():
    config = RelayConfig()
    config.prefetch_batch_size = 0
    for use in (lambda: config.create_relay_info(1), lambda: RelayAttentionIntegration(config)):
        with pytest.raises(InvalidArgumentError, match="prefetch_batch_size: 0"):
            use()


@pytest.mark.parametrize("config", [RelayConfig(), RelayConfig(True, None, False, False, 7, False, 9),
                                    RelayConfig(default_relay_info=RelayInfo(3, True, False, True, 5))])
def test_settings_mean_what_they_mean_in_c(config):
    """create_relay_info, field for field, and what a config does to a prompt cache."""
    import ctypes

    from relay_attention_port import c_structs as c
    from relay_attention_port.c_library import library
    from relay_attention_port.devices import default_device
    from relay_attention_port.layer_prompts import cache_settings

    lib, raw, made = library(), library().defaults(c.Config), c.Info()
    names = [field.name for field in dataclasses.fields(RelayInfo)]
    for field in dataclasses.fields(RelayConfig):
        if field.name != "default_relay_info":
            setattr(raw, field.name, getattr(config, field.name))
    if config.default_relay_info:
        info = c.Info(ctypes.sizeof(c.Info), *(getattr(config.default_relay_info, name) for name in names))
        raw.default_relay_info = ctypes.pointer(info)
    lib.call(lib.c.relay_config_create_info, None, ctypes.byref(raw), 21, ctypes.byref(made))
    mine = config.create_relay_info(21)
    assert {name: getattr(made, name) for name in names} == {name: getattr(mine, name) for name in names}
    settings = cache_settings(default_device(), config)
    assert settings.enabled == config.cache_system_prompts
    assert settings.max_cached_system_prompts == config.max_cached_system_prompts
    assert settings.enable_prefetch == config.enable_prefetch
    assert settings.prefetch_batch_size == config.prefetch_batch_size


def test_defaults_are_the_c_ones():
    from relay_attention_port import c_structs as c
    from relay_attention_port.c_library import library

    raw, config = library().defaults(c.Config), RelayConfig()
    for field in dataclasses.fields(RelayConfig):
        if field.name != "default_relay_info":
            assert getattr(raw, field.name) == getattr(config, field.name), field.name


def test_use_triton_names_the_backend():
    assert RelayInfo(1).fusion_backend == "triton" and RelayInfo(1, use_triton=False).fusion_backend == "native"


# ---- names -----------------------------------------------------------------------------


def test_documented_modules_and_names():
    for name in ("RelayConfig", "RelayInfo", "RelayMetadata"):
        assert getattr(relay_attention_port, name) is getattr(relay_config, name)
    assert relay_attention_port.RelayAttentionIntegration is RelayAttentionIntegration
    space = {}
    exec("from relay_attention_port import *", space)
    assert set(space) >= set(relay_attention_port.__all__)
    with pytest.raises(AttributeError, match="no attribute 'RelayAttention'"):
        relay_attention_port.RelayAttention  # noqa: B018


@pytest.mark.parametrize("name", ["RelayAttentionBackend", "RelayAttentionImpl"])
def test_vllm_classes_come_with_vllm(name):
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        with pytest.raises(ImportError, match="vllm is not installed|needs vllm"):
            getattr(relay_attention_port, name)
    else:
        assert inspect.isclass(getattr(relay_attention_port, name))


def test_every_public_function_says_what_it_does():
    undocumented = []
    for name in relay_attention_port.__all__:
        thing = getattr(relay_attention_port, name)
        if not inspect.getdoc(thing):
            undocumented.append(name)
    assert not undocumented
    assert (Path(relay_attention_port.__file__).parent / "py.typed").is_file()


def test_logger_is_the_packages():
    assert logging.getLogger("relay_attention_port").handlers == []  # a library adds none
    assert np.isfinite(relay_attention_port.default_device().info().threads)
