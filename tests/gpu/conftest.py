"""Tests that need an NVIDIA GPU, torch for it, and librelayattn_cuda. Without them none is collected, and pytest says
so in words at its end."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import python_package  # noqa: E402,F401


def why_not():
    """Why the tests cannot run here; None if they can."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    from relay_attention_port import Device, errors
    try:
        Device("cuda")
    except errors.NoDeviceError as error:
        return str(error)
    return None


REASON = why_not()
collect_ignore_glob = ["test_*.py"] if REASON else []


def pytest_terminal_summary(terminalreporter):
    if REASON:
        terminalreporter.write_line(f"tests/gpu was not run: {REASON}")
