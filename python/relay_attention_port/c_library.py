"""Finds and loads librelayattn, and turns its statuses into exceptions.

The library is the file named by the environment variable ``RELAY_LIBRARY``, else ``librelayattn.so`` in this
package. It is loaded at the first use, not when the package is imported.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import sys
import threading
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

from . import c_structs as c
from .errors import ClosedError, LibraryLoadError, error_of

FILE_NAME = "librelayattn.so"
VERSION = (0, 1)  # major.minor of the interface that c_structs mirrors
log = logging.getLogger("relay_attention_port")

_Struct = TypeVar("_Struct", bound=ctypes.Structure)
_pending = threading.local()
_loading = threading.Lock()
_library: Optional["Library"] = None

# name: argument types. They return a relay_status.
_CALLS: dict[str, list[Any]] = {
    "relay_device_open": [POINTER(c.DeviceOptions), POINTER(c_void_p)],
    "relay_device_get_info": [c_void_p, POINTER(c.DeviceInfo)],
    "relay_device_calibrate": [c_void_p, POINTER(c.Calibration)],
    "relay_prompt_cache_create": [c_void_p, POINTER(c.PromptCacheOptions), POINTER(c_void_p)],
    "relay_prompt_cache_acquire": [c_void_p, c_char_p, POINTER(c_void_p)],
    "relay_prompt_cache_begin": [c_void_p, c_char_p, c_int32, POINTER(c_void_p)],
    "relay_prompt_write": [c_void_p, c_int32, c_int32, POINTER(c.Tensor), POINTER(c.Tensor)],
    "relay_prompt_write_pages": [c_void_p, c_int32, POINTER(c.Tensor), POINTER(c.Tensor), c_void_p],
    "relay_prompt_commit": [c_void_p],
    "relay_prompt_read": [c_void_p, c_int32, c_int32, POINTER(c.Tensor), POINTER(c.Tensor)],
    "relay_prompt_cache_prefetch": [c_void_p, POINTER(c_char_p), c_int32],
    "relay_prompt_cache_wait": [c_void_p],
    "relay_prompt_cache_forget": [c_void_p, c_char_p],
    "relay_prompt_cache_get_stats": [c_void_p, POINTER(c.PromptCacheStats)],
    "relay_forest_create": [c_void_p, POINTER(c_void_p)],
    "relay_forest_set": [c_void_p, POINTER(c.ForestDesc)],
    "relay_forest_find": [c_void_p, POINTER(c.BlockTables)],
    "relay_forest_move_segment": [c_void_p, c_int32, POINTER(c.KvSpan)],
    "relay_forest_get_segment": [c_void_p, c_int32, POINTER(c.Segment)],
    "relay_forest_get_own": [c_void_p, c_int32, POINTER(c.KvSpan)],
    "relay_plan_create": [c_void_p, POINTER(c.Attention), POINTER(c.PlanOptions), POINTER(c_void_p)],
    "relay_plan_build": [c_void_p, c_void_p],
    "relay_plan_get_info": [c_void_p, POINTER(c.PlanInfo)],
    "relay_run": [c_void_p, POINTER(c.RunArgs)],
    "relay_cache_write": [c_void_p, POINTER(c.CacheWriteArgs)],
    "relay_fuse": [c_void_p, POINTER(c.FuseArgs)],
    "relay_config_check": [c_void_p, POINTER(c.Config)],
    "relay_config_create_info": [c_void_p, POINTER(c.Config), c_int32, POINTER(c.Info)],
    "relay_config_apply": [c_void_p, POINTER(c.Config), POINTER(c.PromptCacheOptions), POINTER(c.PlanOptions)],
}
_DESTROYS = ["relay_device_close", "relay_prompt_cache_destroy", "relay_prompt_release", "relay_forest_destroy",
             "relay_plan_destroy"]
# name: (result, argument types) of functions that cannot fail
_GETTERS: dict[str, tuple[Any, list[Any]]] = {
    "relay_version": (c_char_p, []),
    "relay_status_name": (c_char_p, [ctypes.c_int]),
    "relay_status_text": (c_char_p, [ctypes.c_int]),
    "relay_prompt_num_tokens": (c_int32, [c_void_p]),
    "relay_prompt_num_bytes": (c_uint64, [c_void_p]),
    "relay_prompt_key": (c_char_p, [c_void_p]),
    "relay_forest_num_requests": (c_int32, [c_void_p]),
    "relay_forest_num_segments": (c_int32, [c_void_p]),
    "relay_forest_order": (POINTER(c_int32), [c_void_p]),
    "relay_plan_workspace_bytes": (c_size_t, [c_void_p]),
}


def _receive_log(_user: Optional[int], level: int, message: bytes) -> None:
    """The library's log. An error becomes the text of the exception that the call in progress raises."""
    text = message.decode("utf-8", "replace")
    if level == c.LOG_ERROR:
        _pending.message = text
    else:
        log.log({c.LOG_WARN: logging.WARNING, c.LOG_INFO: logging.INFO}.get(level, logging.DEBUG), "%s", text)


receive_log = c.LogFunction(_receive_log)


def _take_message() -> Optional[str]:
    message: Optional[str] = getattr(_pending, "message", None)
    _pending.message = None
    return message


class Library:
    """librelayattn, loaded and checked. ``path`` is the file; ``call`` calls and raises."""

    def __init__(self, path: str) -> None:
        """Raises LibraryLoadError, which names the file, if it does not load or is of another version."""
        self.path = path
        try:
            self.c = ctypes.CDLL(path)
        except OSError as error:
            raise LibraryLoadError(f"{path} cannot be loaded: {error}") from error
        try:
            self._declare()
        except AttributeError as error:
            raise LibraryLoadError(f"{path} is not the librelayattn that this package needs: {error}") from error
        self.version = str(self.c.relay_version().decode())
        self._check()

    def _declare(self) -> None:
        for name, arguments in _CALLS.items():
            getattr(self.c, name).argtypes = arguments
            getattr(self.c, name).restype = ctypes.c_int
        for name in _DESTROYS:
            getattr(self.c, name).argtypes = [c_void_p]
            getattr(self.c, name).restype = None
        for name, (result, arguments) in _GETTERS.items():
            getattr(self.c, name).argtypes = arguments
            getattr(self.c, name).restype = result
        self._fill: dict[type[ctypes.Structure], Any] = {}
        self._filled: dict[type[ctypes.Structure], bytes] = {}
        for name, struct in c.DEFAULTS.items():
            # What a larger structure of a newer library would write beyond ours must have a place to go.
            padded = type("Padded", (ctypes.Structure,), {"_fields_": [("it", struct), ("rest", c_int64 * 128)]})
            function = getattr(self.c, name)
            function.argtypes, function.restype = [], padded
            self._fill[struct] = function

    def _check(self) -> None:
        wanted = ".".join(map(str, VERSION))
        if tuple(int(part) for part in re.findall(r"\d+", self.version)[:2]) != VERSION:
            raise LibraryLoadError(f"{self.path} is version {self.version}; this package needs {wanted}")
        for struct, function in self._fill.items():
            filled = function().it
            size, mine = filled.struct_size, ctypes.sizeof(struct)
            if size != mine:
                raise LibraryLoadError(f"{self.path}: {struct.__doc__} has {size} bytes there, {mine} here: "
                                       "it is another build than this package was written for")
            self._filled[struct] = bytes(filled)

    def defaults(self, struct: type[_Struct]) -> _Struct:
        """A structure filled by the library's ``_defaults`` function."""
        return struct.from_buffer_copy(self._filled[struct])

    def call(self, function: Any, *arguments: Any) -> None:
        """Calls a function that returns a status; raises the status's exception."""
        _pending.message = None
        status = function(*arguments)
        if status:
            raise self.error(status, function.__name__)

    def error(self, status: int, where: str) -> Exception:
        """The exception for a status, with what the library said about it."""
        text = _take_message() or f"{where}: {self.c.relay_status_text(status).decode()}"
        return error_of(status, text)

    def drop(self, function: Any, pointer: int) -> None:
        """Calls a destroy function; what it complains about is logged, since nobody could catch it."""
        function(pointer)
        message = _take_message()
        if message:
            log.error("%s", message)


def _path() -> str:
    named = os.environ.get("RELAY_LIBRARY")
    if named:
        return named
    package = sys.modules[__package__]
    folders = [Path(folder) for folder in package.__path__]  # two of them in an editable installation
    for folder in folders:
        if (folder / FILE_NAME).is_file():
            return str(folder / FILE_NAME)
    raise LibraryLoadError(f"{folders[0] / FILE_NAME} is not there: install the package (pip install .), or name the "
                           "file of a build by the environment variable RELAY_LIBRARY")


def _load() -> Library:
    path = _path()
    try:
        return Library(path)
    except LibraryLoadError as error:
        remedy = ("the environment variable RELAY_LIBRARY names this file: unset it for the package's own"
                  if os.environ.get("RELAY_LIBRARY") else "install the package again")
        raise LibraryLoadError(f"{error} ({remedy})") from error.__cause__


def library() -> Library:
    """The library, loaded at the first call. Thread-safe. Raises LibraryLoadError."""
    global _library
    if _library is None:
        with _loading:
            if _library is None:
                _library = _load()
                log.debug("librelayattn %s from %s", _library.version, _library.path)
    return _library


class Handle:
    """Owns one C object: destroyed when the last reference goes, after everything that was made on it.

    ``owners`` are the handles of what the object stands on (its device's, say). They are referred to, so they usually
    go later; but in garbage with cycles Python finalises in any order, so an owner also waits for what stands on it.
    A process that was forked leaves its parent's objects alone.
    """

    __slots__ = ("pointer", "_alive", "_dropped", "_dependents", "_destroy", "_library", "_owners", "_process",
                 "__weakref__")

    def __init__(self, lib: Library, pointer: c_void_p, destroy: Any, *owners: "Handle") -> None:
        self.pointer = int(pointer.value or 0)
        self._alive = [self.pointer]  # popped by the one who destroys: an atomic step, whichever threads finalise
        self._dropped = False
        self._dependents: set[int] = set()
        self._library = lib
        self._destroy = destroy
        self._owners = owners
        self._process = os.getpid()
        for owner in owners:
            owner._dependents.add(id(self))

    def is_mine(self, getpid: Callable[[], int] = os.getpid) -> bool:
        """False in a child of fork().  getpid is an argument because at exit `os` may be gone before this is."""
        return self._process == getpid()

    def __del__(self) -> None:
        self._dropped = True
        self._finish()

    def _finish(self) -> None:
        if not self._dropped or self._dependents:
            return
        try:
            pointer = self._alive.pop()
        except IndexError:
            return
        if self.is_mine():
            self._library.drop(self._destroy, pointer)
        for owner in self._owners:
            owner._dependents.discard(id(self))
            owner._finish()


class Owner:
    """Base of the Python objects that stand for a C object."""

    _handle: Optional[Handle] = None

    @property
    def handle(self) -> Handle:
        """Raises ClosedError after close()."""
        if self._handle is None:
            raise ClosedError(f"this {type(self).__name__} is closed")
        return self._handle

    @property
    def pointer(self) -> int:
        """The C pointer; valid while this object is open."""
        return self.handle.pointer

    @property
    def closed(self) -> bool:
        return self._handle is None

    def close(self) -> None:
        """Gives the object back. Its memory goes once nothing made on it is left. May be called again."""
        self._handle = None


def open_handle(lib: Library, create: Any, destroy: Any, owners: tuple[Handle, ...], *arguments: Any) -> Handle:
    """Calls a create function, whose last argument is the place for the object."""
    pointer = c_void_p()
    lib.call(create, *arguments, byref(pointer))
    return Handle(lib, pointer, destroy, *owners)
