"""Borrowed, strided views of tensors: numpy arrays, torch tensors, and anything with DLPack. Nothing is copied.

Data types are named as in C: ``"f32"``, ``"f16"``, ``"bf16"``. numpy has no bfloat16 of its own: arrays of
``ml_dtypes.bfloat16`` are taken as they are, and arrays of uint16 by ``tensor_view(array, dtype="bf16")``.
"""

from __future__ import annotations

import ctypes
import operator
import struct
import sys
from typing import Any, Optional, Union

import numpy as np

from . import c_structs as c
from .cuda_tensors import dlpack_stream
from .errors import (BadDtypeError, BadShapeError, BadStrideError, InvalidArgumentError, OutOfRangeError,
                     UnsupportedError, WrongDeviceError)

DTYPES = {"f32": c.F32, "f16": c.F16, "bf16": c.BF16}
DTYPE_NAMES = {value: name for name, value in DTYPES.items()}
ITEM_BYTES = {c.F32: 4, c.F16: 2, c.BF16: 2}
_NUMPY_DTYPES = {"float32": c.F32, "float16": c.F16, "bfloat16": c.BF16}
_RAW_DTYPES: dict[int, Any] = {c.F32: np.float32, c.F16: np.float16, c.BF16: np.uint16}
_nothing = ctypes.create_string_buffer(64)  # where empty tensors point: the library reads NULL as "absent"
_NOWHERE = ctypes.addressof(_nothing)
_PACKED = struct.Struct("@Pii8q")  # a relay_tensor
_PADDING = [(0,) * (c.MAX_DIMS - n) for n in range(c.MAX_DIMS + 1)]
_CPU = ("cpu", 0)
_torch_dtypes: dict[Any, int] = {}
_numpy_dtypes: dict[Any, int] = {np.dtype(np.float32): c.F32, np.dtype(np.float16): c.F16}

INT32_MAX = 2**31 - 1


class TensorView:
    """One tensor as the library sees it. Make it by :func:`tensor_view`.

    ``c`` is the ``relay_tensor``; ``shape`` and ``strides`` (in elements) are tuples; ``device`` is ``("cpu", 0)``
    or ``("cuda", ordinal)``; ``owner`` keeps the memory alive. A view that is used again and again (a layer's K/V
    pool) is worth keeping: it can be given wherever a tensor can.
    """

    __slots__ = ("c", "owner", "writable", "device", "shape", "strides")

    def __init__(self, data: int, dtype: int, shape: tuple[int, ...], strides: tuple[int, ...], owner: object,
                 writable: bool = True, device: tuple[str, int] = _CPU) -> None:
        if len(shape) > c.MAX_DIMS:
            raise BadShapeError(f"a tensor of {len(shape)} dimensions, expected at most {c.MAX_DIMS}")
        self.shape, self.strides = shape, strides
        self.owner, self.writable, self.device = owner, writable, device
        rest = _PADDING[len(shape)]  # packing is three times as fast as setting the fields
        self.c = c.Tensor.from_buffer_copy(_PACKED.pack(data or _NOWHERE, dtype, len(shape), *shape, *rest, *strides,
                                                        *rest))

    @property
    def dtype(self) -> str:
        return DTYPE_NAMES[self.c.dtype]

    def _at(self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> "TensorView":
        data = self.c.data + offset * ITEM_BYTES[self.c.dtype]
        return TensorView(data, self.c.dtype, shape, strides, self.owner, self.writable, self.device)

    def rows(self, begin: int, end: int) -> "TensorView":
        """Rows begin..end-1 of the first dimension."""
        return self._at(begin * self.strides[0], (end - begin, *self.shape[1:]), self.strides)

    def row(self, index: int) -> "TensorView":
        """One entry of the first dimension."""
        return self._at(index * self.strides[0], self.shape[1:], self.strides[1:])

    def reshaped(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> "TensorView":
        """The same memory by other extents and strides; they are the caller's responsibility."""
        return self._at(0, shape, strides)

    def transposed(self) -> "TensorView":
        """The first two dimensions exchanged."""
        a, b, *rest = self.shape
        x, y, *more = self.strides
        return self._at(0, (b, a, *rest), (y, x, *more))

    def split_last(self, parts: int, size: int, name: str = "tensor") -> "TensorView":
        """The last dimension, parts * size long and dense, as two."""
        if self.shape[-1] != parts * size:
            raise BadShapeError(f"{name}: the last dimension is {self.shape[-1]}, expected {parts} * {size}")
        if self.strides[-1] != 1 and self.shape[-1] > 1:
            raise BadStrideError(f"{name}: the last stride is {self.strides[-1]}, expected 1")
        return self._at(0, (*self.shape[:-1], parts, size), (*self.strides[:-1], size, 1))

    def array(self) -> "np.ndarray[Any, Any]":
        """The same memory as a numpy array; bf16 as uint16."""
        if self.device[0] != "cpu":
            raise WrongDeviceError(f"a tensor on {self.device[0]} cannot be a numpy array")
        itemsize = ITEM_BYTES[self.c.dtype]
        length = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides)) if 0 not in self.shape else 0
        memory: Any = (ctypes.c_char * (length * itemsize)).from_address(self.c.data)
        flat = np.frombuffer(memory, _RAW_DTYPES[self.c.dtype])
        return np.lib.stride_tricks.as_strided(flat, self.shape, [s * itemsize for s in self.strides],
                                               writeable=self.writable)


def dtype_number(dtype: Union[str, object], name: str = "dtype") -> int:
    """The C number of "f32", "f16" or "bf16", or of a numpy or torch dtype that is one of them."""
    text = str(dtype)
    if text in DTYPES:
        return DTYPES[text]
    plain = text[6:] if text.startswith("torch.") else getattr(dtype, "__name__", text)
    if plain in _NUMPY_DTYPES:
        return _NUMPY_DTYPES[plain]
    raise BadDtypeError(f"{name}: {text}, expected f32, f16 or bf16")


def _of_numpy(array: "np.ndarray[Any, Any]", name: str, dtype: Optional[int]) -> TensorView:
    number = _numpy_dtypes.get(array.dtype) or _NUMPY_DTYPES.get(array.dtype.name)
    if dtype is not None and number is None and array.dtype == np.uint16:
        number = dtype
    if number is None or not array.dtype.isnative:
        raise BadDtypeError(f"{name}: {array.dtype}, expected float32, float16 or bfloat16")
    itemsize = array.itemsize
    if any(stride % itemsize for stride in array.strides):
        raise BadStrideError(f"{name}: strides of {array.strides} bytes are no multiples of {itemsize}")
    strides = tuple(stride // itemsize for stride in array.strides)
    return TensorView(array.ctypes.data, number, array.shape, strides, array, array.flags.writeable)


def _of_torch(tensor: Any, name: str) -> TensorView:
    number = _torch_dtypes.get(tensor.dtype)
    if number is None:
        number = _torch_dtypes[tensor.dtype] = dtype_number(tensor.dtype, name)
    where = _CPU if tensor.is_cpu else (tensor.device.type, tensor.device.index or 0)
    return TensorView(tensor.data_ptr(), number, tuple(tensor.shape), tensor.stride(), tensor, True, where)


class _DLTensor(ctypes.Structure):
    """The head of a DLManagedTensor (dlpack.h)."""

    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


_DL_DEVICES = {1: "cpu", 2: "cuda", 3: "cpu"}  # 3: pinned host memory
_DL_DTYPES = {(2, 32, 1): c.F32, (2, 16, 1): c.F16, (4, 16, 1): c.BF16}
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.argtypes, _capsule_pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p


def _of_dlpack(tensor: Any, name: str) -> TensorView:
    """Borrows a capsule: it is never marked as used, so its own destructor gives the memory back."""
    kind, index = tensor.__dlpack_device__() if hasattr(tensor, "__dlpack_device__") else (1, 0)
    if int(kind) not in _DL_DEVICES:
        raise WrongDeviceError(f"{name}: on DLPack device {int(kind)}, expected the CPU or CUDA")
    capsule = tensor.__dlpack__(stream=dlpack_stream(index)) if int(kind) == 2 else tensor.__dlpack__()
    dl = _DLTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    number = _DL_DTYPES.get((dl.code, dl.bits, dl.lanes))
    if number is None:
        raise BadDtypeError(f"{name}: DLPack type (code {dl.code}, {dl.bits} bits, {dl.lanes} lanes), expected "
                            "float32, float16 or bfloat16")
    if dl.device_type not in _DL_DEVICES:
        raise WrongDeviceError(f"{name}: on DLPack device {dl.device_type}, expected the CPU or CUDA")
    shape = tuple(dl.shape[i] for i in range(dl.ndim))
    strides = [1] * dl.ndim
    for i in reversed(range(dl.ndim - 1)):
        strides[i] = strides[i + 1] * shape[i + 1]
    if dl.strides:
        strides = [dl.strides[i] for i in range(dl.ndim)]
    return TensorView((dl.data or 0) + dl.byte_offset, number, shape, tuple(strides), capsule, True,
                      (_DL_DEVICES[dl.device_type], dl.device_id))


def tensor_view(tensor: Any, name: str = "tensor", dtype: Optional[str] = None) -> TensorView:
    """A view of a numpy array, a torch tensor, an object with ``__dlpack__``, or a view itself. No copy.

    ``name`` is what errors call it. ``dtype`` says how a numpy array of uint16 is to be read ("bf16" or "f16").
    Raises BadDtypeError, BadShapeError (more than 4 dimensions), BadStrideError, WrongDeviceError.
    """
    if isinstance(tensor, TensorView):
        return tensor
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        return _of_torch(tensor, name)
    if isinstance(tensor, np.ndarray):
        return _of_numpy(tensor, name, None if dtype is None else dtype_number(dtype))
    if hasattr(tensor, "__dlpack__"):
        return _of_dlpack(tensor, name)
    raise BadDtypeError(f"{name}: {type(tensor).__name__}, expected a numpy array, a torch tensor or an object with "
                        "__dlpack__")


def output_view(tensor: Any, name: str) -> TensorView:
    """A view that will be written. Raises InvalidArgumentError for memory that is read-only."""
    view = tensor_view(tensor, name)
    if not view.writable:
        raise InvalidArgumentError(f"{name}: is read-only")
    return view


def readable_view(tensor: Any, name: str, dtype: Optional[str] = None) -> TensorView:
    """A view for reading with strides that the kernels take: none is 0 or negative, and the last of three or more
    dimensions is 1. What has others is copied."""
    if isinstance(tensor, np.ndarray) and any(stride < 0 for stride in tensor.strides):
        tensor = np.ascontiguousarray(tensor)
    view = tensor_view(tensor, name, dtype)
    awkward = any(stride <= 0 and extent > 1 for stride, extent in zip(view.strides, view.shape))
    if len(view.shape) > 2 and view.shape[-1] > 1 and view.strides[-1] != 1:
        awkward = True
    if awkward:
        copy = tensor.contiguous() if hasattr(tensor, "contiguous") else np.ascontiguousarray(view.array())
        view = tensor_view(copy, name, view.dtype)
    return view


def refuse_gradients(tensors: dict[str, Any]) -> None:
    """Raises UnsupportedError for a torch tensor whose gradient would be lost."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if getattr(tensor, "requires_grad", False):
            raise UnsupportedError(f"{name}: requires a gradient, which is not computed; call it under torch.no_grad() "
                                   "or torch.inference_mode()")


def int32(value: object, name: str) -> int:
    """An int that fits C's int32_t. Raises InvalidArgumentError."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgumentError(f"{name}: {value!r}, expected an integer") from None
    if not -INT32_MAX <= number <= INT32_MAX:
        raise InvalidArgumentError(f"{name}: {number} does not fit 32 bits")
    return number


def int_array(values: Any, name: str, dtype: Any = np.int32, ndim: int = 1) -> "np.ndarray[Any, Any]":
    """Integers as an array; memory that is one already (numpy, or torch on the CPU) is not copied.

    Raises BadDtypeError for anything but integers, BadShapeError for other than `ndim` dimensions or a last
    dimension that is not dense, OutOfRangeError for a number that does not fit.
    """
    array = np.asarray(values)
    if array.size == 0 and array.dtype.kind == "f":
        array = array.astype(dtype)
    if array.dtype.kind not in "iu":
        raise BadDtypeError(f"{name}: {array.dtype}, expected integers")
    if array.ndim != ndim:
        raise BadShapeError(f"{name}: {array.ndim} dimensions, expected {ndim}")
    if array.dtype != dtype:
        limits = np.iinfo(dtype)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise OutOfRangeError(f"{name}: a number does not fit {np.dtype(dtype).name}")
        array = array.astype(dtype)
    if ndim == 1 or array.size and array.strides[-1] != array.itemsize:
        array = np.ascontiguousarray(array)
    return array


def float_array(values: Any, count: int, name: str) -> "np.ndarray[Any, Any]":
    """`count` floats as a dense float32 array. Raises BadShapeError, BadDtypeError."""
    try:
        array = np.ascontiguousarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise BadDtypeError(f"{name}: {error}") from None
    if array.shape != (count,):
        raise BadShapeError(f"{name}: shape {array.shape}, expected ({count},)")
    return array


def aligned_bytes(size: int, alignment: int = 64) -> "np.ndarray[Any, Any]":
    """Uninitialised bytes that begin at a multiple of `alignment`."""
    raw = np.empty(size + alignment, np.uint8)
    skip = -raw.ctypes.data % alignment
    return raw[skip:skip + size]
