"""Exceptions: one class for each error of the C interface (``relay_status`` in ``relay/base.h``).

Every class derives from :class:`RelayError` and from the built-in exception that a Python programmer would
expect, so ``except ValueError`` and ``except RelayError`` both work. The message is the library's own: it names
the argument, the value and what was expected.
"""

from __future__ import annotations

from typing import ClassVar


class RelayError(Exception):
    """Base of all errors of this package. ``status`` is the C status, or -1 where the error is Python's own."""

    status: ClassVar[int] = -1


class NullPointerError(RelayError, ValueError):
    """Something required is absent."""

    status = 1


class InvalidArgumentError(RelayError, ValueError):
    """An argument is outside its range."""

    status = 2


class BadStructSizeError(RelayError):
    """The library's structures are not those that this package was written for."""

    status = 3


class BadDtypeError(RelayError, TypeError):
    """A tensor or option has a data type that is not accepted there."""

    status = 4


class BadShapeError(RelayError, ValueError):
    """A tensor has another shape than the call needs."""

    status = 5


class BadStrideError(RelayError, ValueError):
    """A tensor has strides that the call cannot honour."""

    status = 6


class MisalignedError(RelayError, ValueError):
    """Memory is not aligned as the call needs."""

    status = 7


class OverlapError(RelayError, ValueError):
    """An output overlaps another tensor of the call."""

    status = 8


class OutOfRangeError(RelayError, IndexError):
    """An index points outside what it indexes."""

    status = 9


class UnsupportedError(RelayError, NotImplementedError):
    """Valid, but not computed by this build, this device or this package."""

    status = 10


class OutOfMemoryError(RelayError, MemoryError):
    """Memory could not be had."""

    status = 11


class NotFoundError(RelayError, LookupError):
    """There is no entry of that key."""

    status = 12


class AlreadyExistsError(RelayError):
    """An entry of that key exists or is being built."""

    status = 13


class CacheFullError(RelayError):
    """No room: every entry that could go is in use."""

    status = 14


class FileOperationError(RelayError, OSError):
    """The operating system refused a file operation."""

    status = 15


class CorruptFileError(RelayError):
    """A file is damaged, foreign, or of another version."""

    status = 16


class WorkspaceTooSmallError(RelayError, ValueError):
    """The workspace is smaller than the plan needs."""

    status = 17


class WrongDeviceError(RelayError, ValueError):
    """An object or a tensor belongs to another device."""

    status = 18


class StalePlanError(RelayError, RuntimeError):
    """The plan was not built, or its forest has changed since."""

    status = 19


class NoDeviceError(RelayError, RuntimeError):
    """There is no such device, or its driver cannot be used."""

    status = 20


class DeviceFaultError(RelayError, RuntimeError):
    """The device reported an error of its own."""

    status = 21


class LibraryLoadError(RelayError, ImportError):
    """librelayattn cannot be loaded, or is not the one that this package was written for."""


class ClosedError(RelayError, ValueError):
    """The object was closed or released before."""


BY_STATUS: dict[int, type[RelayError]] = {
    kind.status: kind for kind in RelayError.__subclasses__() if kind.status > 0
}


def error_of(status: int, message: str) -> RelayError:
    """The exception for a C status other than 0."""
    return BY_STATUS.get(status, RelayError)(message)
