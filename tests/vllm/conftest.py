"""Tests of the vLLM plugin. They run in the environment of scripts/setup-vllm, by `make test-vllm`; elsewhere nothing
here is collected. This tree's package and entry points are used, with the library that RELAY_LIBRARY names."""
import importlib.util
import os
import shutil
import sys
import tempfile

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
_spec = importlib.util.find_spec("vllm")
HAVE_VLLM = _spec is not None and _spec.origin is not None  # this folder looks like a package of that name

if not HAVE_VLLM:
    collect_ignore_glob = ["test_*.py"]
else:
    sys.path.insert(0, os.path.dirname(HERE))
    from plugin_tree import environment, make_metadata

    _folder = tempfile.mkdtemp(prefix="relay-vllm-tests-")
    os.environ.update(environment(_folder))
    sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
    make_metadata(_folder)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the tests that take minutes, too")


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes minutes; runs with --long only")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long", default=False):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long: needs --long"))


def pytest_unconfigure():
    if HAVE_VLLM:
        shutil.rmtree(_folder, ignore_errors=True)
