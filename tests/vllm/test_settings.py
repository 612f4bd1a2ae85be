"""What users can set, and what is said when they set something else."""
import dataclasses

import pytest

from relay_attention_port.vllm import settings
from relay_attention_port.vllm.settings import Settings, SettingsError, read


def test_defaults():
    assert read(None, {}) == read({}, {}) == read({"other": 1}, {}) == Settings()


def test_config_and_environment():
    assert read({"relay": {"min_prefix": 64, "max_groups": 2, "deterministic": True}}, {}) == Settings(
        min_prefix=64, max_groups=2, deterministic=True)
    variables = {"RELAY_VLLM_MIN_PREFIX": "128", "RELAY_VLLM_MAX_GROUPS": "3", "RELAY_VLLM_DETERMINISTIC": "1",
                 "RELAY_VLLM_LOG_INTERVAL": "0.5", "RELAY_VLLM_PACKED_GIB": "2.5"}
    assert read({"relay": {"min_prefix": 64}}, variables) == Settings(min_prefix=128, max_groups=3, deterministic=True,
                                                                       packed_gib=2.5, log_interval=0.5)
    assert read({"relay": {"strategy": "relay"}}, {"RELAY_VLLM": "plain"}).strategy == "plain"


@pytest.mark.parametrize("given, named", [
    ({"min_prefix": 0}, "relay.min_prefix: 0"), ({"min_prefix": "64"}, "relay.min_prefix: '64'"),
    ({"min_prefix": True}, "relay.min_prefix: True"), ({"max_groups": -1}, "relay.max_groups: -1"),
    ({"max_depth": 65}, "relay.max_depth: 65"), ({"deterministic": 1}, "relay.deterministic: 1"),
    ({"strategy": "fast"}, "relay.strategy: 'fast'"), ({"log_interval": -1}, "relay.log_interval: -1"),
    ({"log_interval": float("nan")}, "relay.log_interval: nan"), ({"packed_gib": -0.5}, "relay.packed_gib: -0.5"),
    ({"packed_gib": "1"}, "relay.packed_gib: '1'"), ({"packed_gib": True}, "relay.packed_gib: True"),
    ({"min_prefx": 1}, "relay.min_prefx: not known; there are strategy, min_prefix"), (None, "relay: None"),
    ({"strategy": ["relay"]}, r"relay.strategy: \['relay'\]"), ({7: 1}, "relay.7: not known"), ([1], r"relay: \[1\]"), ("on", "relay: 'on'"), ({"max_groups": 2**40}, "relay.max_groups: 1099511627776")])
def test_refused(given, named):
    with pytest.raises(SettingsError, match="^" + named):
        read({"relay": given}, {})


@pytest.mark.parametrize("variable, value", [
    ("RELAY_VLLM_MIN_PREFIX", "many"), ("RELAY_VLLM_MAX_GROUPS", ""), ("RELAY_VLLM_DETERMINISTIC", "perhaps"),
    ("RELAY_VLLM_LOG_INTERVAL", "soon"), ("RELAY_VLLM_PACKED_GIB", "all"), ("RELAY_VLLM", "maybe")])
def test_refused_variable(variable, value):
    with pytest.raises(SettingsError, match=f"^{variable}: '{value}'"):
        read({}, {variable: value})


@pytest.mark.parametrize("variable, value, said", [
    ("RELAY_VLLM_MIN_PREFIX", "-4", "-4, expected an integer from 1"), ("RELAY_VLLM_MIN_PREFIX", "1_000", "'1_000'"),
    ("RELAY_VLLM_MAX_GROUPS", "9" * 30, "9" * 30 + ", expected"), ("RELAY_VLLM_LOG_INTERVAL", "inf", "inf, expected"),
    ("RELAY_VLLM_LOG_INTERVAL", "nan", "nan, expected"), ("RELAY_VLLM_PACKED_GIB", "-1", "-1.0, expected")])
def test_a_variable_out_of_range_is_named(variable, value, said):
    with pytest.raises(SettingsError, match=f"^{variable}: {said}"):
        read({"relay": {"min_prefix": 64}}, {variable: value})


def test_unknown_variable():
    with pytest.raises(SettingsError, match="^RELAY_VLLM_MIN_PREFX: not known; there are RELAY_VLLM, RELAY_VLLM_MIN_PREFIX"):
        read({}, {"RELAY_VLLM_MIN_PREFX": "64", "RELAY_LIBRARY": "x"})


@pytest.mark.parametrize("key", ["Relay", "relay_attention", "relay-attention", "RELAY_VLLM", " relay"])
def test_misspelt_key(key):
    with pytest.raises(SettingsError, match=f"^{key}: not known; the key of additional_config is 'relay'"):
        read({key: {"min_prefix": 64}}, {})


def test_every_setting_has_its_rule():
    assert [field.name for field in dataclasses.fields(Settings)] == list(settings._RULES)


def test_modes():
    assert [settings.mode({"RELAY_VLLM": text}) for text in ("", "1", "on", "ON", "0", "off", "plain")] == [
        "on", "on", "on", "on", "off", "off", "plain"]
    assert settings.mode({}) == "on"
