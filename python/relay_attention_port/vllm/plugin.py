"""The entry points that vLLM calls, in every process that it starts.

``platform`` is for machines without a GPU: it gives vLLM the class that makes the processor a platform with the
relay. ``general`` is for all others: it changes nothing yet, and logs why. vLLM swallows what a platform plugin
raises, so that whatever stands in the way is logged, with what to do, and the plugin stays off.
"""

from __future__ import annotations

import logging
from importlib import import_module, metadata
from typing import Optional

from ..c_library import library
from ..errors import LibraryLoadError
from . import settings

# vLLM's version: the module that knows it
SUPPORTED = {"0.9.1": "relay_attention_port.vllm.v0_9_1"}
PLATFORM_CLASS = "RelayCpuPlatform"
log = logging.getLogger("relay_attention_port.vllm")


class VersionError(RuntimeError):
    """The vLLM that is installed is not one that the plugin knows."""


def vllm_version() -> str:
    """The version without its local part: 0.9.1 for 0.9.1+empty. Raises VersionError if there is none."""
    try:
        return metadata.version("vllm").split("+")[0]
    except metadata.PackageNotFoundError:
        raise VersionError("vllm is not installed; relay_attention_port runs in vllm " + " or ".join(SUPPORTED)) from None


def adapter() -> str:
    """The name of the module that knows the installed vLLM. Raises VersionError, which names both versions."""
    version = vllm_version()
    if version not in SUPPORTED:
        raise VersionError(f"vllm {version} is installed; this relay_attention_port runs in vllm "
                           f"{' or '.join(SUPPORTED)}: install that")
    return SUPPORTED[version]


def show_log() -> None:
    """Without a logging configuration of the program's own, what the plugin logs goes where vLLM's log goes."""
    package = logging.getLogger("relay_attention_port")
    if package.hasHandlers():
        return
    vllm = logging.getLogger("vllm")
    for handler in vllm.handlers:
        package.addHandler(handler)
    package.setLevel(vllm.level)


def _accelerator() -> Optional[str]:
    """vLLM's own platform for this machine, other than the processor."""
    from vllm import platforms
    for name, detect in platforms.builtin_platform_plugins.items():
        if name != "cpu" and detect() is not None:
            return name
    return None


def _without_us() -> str:
    """What vLLM does next, where it says that less plainly."""
    try:
        from vllm.platforms import builtin_platform_plugins
        others = any(detect() is not None for detect in builtin_platform_plugins.values())
    except ImportError:
        return ""
    return "" if others else "; this vLLM has no other platform for this machine, and cannot start"


def platform() -> Optional[str]:
    """Entry point of vllm.platform_plugins: the name of the platform class, or None to stay off."""
    show_log()
    try:
        if settings.mode() == "off":
            log.info("%s=off: RelayAttention stays off%s", settings.MODE_VARIABLE, _without_us())
            return None
        module = adapter()
        accelerator = _accelerator()
        if accelerator is not None:
            log.debug("vLLM runs on %s here; no platform is offered", accelerator)
            return None
        library()
        return f"{module}.{PLATFORM_CLASS}"
    except (VersionError, LibraryLoadError, settings.SettingsError) as error:
        log.error("RelayAttention stays off: %s%s", error, _without_us())
        return None


def general() -> None:
    """Entry point of vllm.general_plugins."""
    from vllm.platforms import current_platform
    show_log()
    if type(current_platform).__name__ == PLATFORM_CLASS:
        import_module(type(current_platform).__module__).prepare_process()
        log.debug("RelayAttention is vLLM's platform in this process")
    elif current_platform.is_cuda_alike():
        log.info("RelayAttention leaves vLLM's own attention in place on %s: the plugin gives vLLM its backend on "
                 "machines without a GPU only", current_platform.device_name)
    else:
        log.debug("RelayAttention is off in this process")
