"""Define stand-ins for what torch.save pickles: storages, the tensors that are views of them, and objects around them.

WORDS are the names that torch.load(weights_only=True) accepts, and a few more. What they make is never an object of torch: a
tensor becomes a View (its bytes can be merged), or is refused (torch can load it, but the bytes aren't its elements).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...dtypes import BFLOAT16, DTYPES, FLOAT16, FLOAT32, FLOAT64, DType
from ...errors import MalformedError
from ..tensors import Part
from . import arrays
from .arrays import Array, Texts, naturals, never_called
from .standins import Opaque, Standin, Word

_DTYPES = {dtype.name: dtype for dtype in DTYPES}
# Storage classes, and the dtype of their elements; where it can't be merged, its name and size in bytes.
_CLASSES: dict[str, DType | tuple[str, int]] = {
    "FloatStorage": FLOAT32,
    "DoubleStorage": FLOAT64,
    "HalfStorage": FLOAT16,
    "BFloat16Storage": BFLOAT16,
    "LongStorage": _DTYPES["int64"],
    "IntStorage": _DTYPES["int32"],
    "ShortStorage": _DTYPES["int16"],
    "CharStorage": _DTYPES["int8"],
    "ByteStorage": _DTYPES["uint8"],
    "BoolStorage": _DTYPES["bool"],
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
    "QInt8Storage": ("qint8", 1),
    "QInt32Storage": ("qint32", 4),
    "QUInt8Storage": ("quint8", 1),
    "QUInt4x2Storage": ("quint4x2", 1),
    "QUInt2x4Storage": ("quint2x4", 1),
}
_STORAGES: dict[str, DType | tuple[str, int]] = {
    **{f"{module}.{name}": dtype for module in ("torch", "torch.cuda") for name, dtype in _CLASSES.items()},
    "torch.storage.UntypedStorage": _DTYPES["uint8"],
}
# torch's other dtypes, which tensors or their attributes may have, and which can't be merged.
_OTHERS = [
    *("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2", "complex32", "complex64", "complex128"),
    *("qint8", "qint32", "quint8", "quint4x2", "quint2x4", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
]
_SCHEMES = [f"per_{part}" for part in ("tensor_affine", "tensor_symmetric", "channel_affine", "channel_symmetric")]
_SCHEMES += ["per_channel_affine_float_qparams"]
_REMEDIES = {"c": "save torch.view_as_real of it", "q": "save its dequantize()"}  # by the first letter of a dtype


class Storage(Standin):
    """Hold where a storage is in the file, and the dtype of its class (its name where it isn't supported)."""

    def __init__(self, dtype: DType | str, offset: int, nbytes: int):
        self.dtype, self.offset, self.nbytes = dtype, offset, nbytes


class Stub(Standin):
    """Stand in for a tensor."""

    def build(self, state: Any) -> None:
        """Ignore Python attributes: they don't change the elements."""

    def place(self, file: str) -> tuple[DType, Part]:
        """Return the tensor's dtype, and its location in `file` as one part. Raises MalformedError."""
        raise NotImplementedError


class View(Stub):
    """Hold a view of a storage. offset and strides are in elements.

    dtype: None if it is the storage's; else a DType, or the name of one that isn't supported.
    """

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: DType | str | None = None):
        self.storage, self.offset, self.shape, self.strides, self.dtype = storage, offset, shape, strides, dtype

    def place(self, file: str) -> tuple[DType, Part]:
        whole = isinstance(self.storage, Storage) and naturals((self.offset,))
        if not whole or not naturals(self.shape) or not naturals(self.strides) or len(self.shape) != len(self.strides):
            raise MalformedError("is an incomplete tensor: the file is damaged")
        dtype = self.dtype or self.storage.dtype
        if isinstance(dtype, str):
            remedy = _REMEDIES.get(dtype[0], "convert it to bfloat16 first")
            raise MalformedError(f"has dtype {dtype}, which isn't supported; {remedy}")
        end = self.offset + 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if math.prod(self.shape) and end * dtype.itemsize > self.storage.nbytes:
            raise MalformedError(f"reaches {end * dtype.itemsize} bytes into a storage of {self.storage.nbytes}")
        offset = self.storage.offset + self.offset * dtype.itemsize
        return dtype, Part(file, offset, (0,) * len(self.shape), self.shape, self.strides)


class _FromArray(Stub):
    """Hold a NumPy array that torch makes a tensor of `dtype` of, as it did for devices without storages (XLA)."""

    def __init__(self, array: Any, dtype: Any, *_: Any):
        self.array, self.dtype = array, _named(dtype)

    def place(self, file: str) -> tuple[DType, Part]:
        if not isinstance(self.array, Array):
            raise MalformedError("is an incomplete tensor: the file is damaged")
        dtype, part = arrays.place(self.array, file, Texts())
        if dtype != self.dtype or dtype == BFLOAT16:  # NumPy's uint16 is no bfloat16 here
            raise MalformedError("is stored in another dtype than its own; load it with torch and save it again")
        return dtype, part


class _Refused(Stub):
    """Stand in for a tensor that torch can load, but that isn't stored as its elements. why: part of a sentence."""

    def __init__(self, why: str):
        self.why = why

    def place(self, file: str) -> tuple[DType, Part]:
        raise MalformedError(self.why)


def claimed(kind: Any, word: Any, count: Any) -> tuple[DType | str, int]:
    """Return the dtype of a storage (its name if it isn't supported), and how many bytes it should have.

    kind, word, count: of its persistent id: "storage", the class, and the number of elements. Raises MalformedError.
    """
    found = _STORAGES.get(word.name) if isinstance(word, Word) else None
    if kind != "storage" or found is None or not naturals((count,)):
        raise MalformedError("refers to an object that is not the storage of a dense tensor")
    name, size = (found, found.itemsize) if isinstance(found, DType) else found
    return name, count * size


def _named(kind: Any) -> DType | str:
    """Return the dtype for which `kind`, an argument of a call, stands; its name if it isn't supported."""
    if not isinstance(kind, Word):
        raise MalformedError("makes a tensor of what is no dtype: it is damaged")
    name = kind.name.removeprefix("torch.")
    return _DTYPES.get(name, name)


def _marked(view: View, marks: Any) -> Stub:
    """Return a view, or a refusal if it has torch's conjugate or negative bit: its elements are not those stored.

    marks: the bits, by name.
    """
    if isinstance(marks, dict) and any(marks.values()):
        return _Refused("is a view with torch's negative or conjugate bit; save its resolve_conj().resolve_neg()")
    return view


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, marks: Any = None) -> Stub:
    """Stand in for torch._utils._rebuild_tensor_v2."""
    return _marked(View(storage, offset, shape, strides), marks)


def _rebuild_of_dtype(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, kind: Any, marks: Any = None
) -> Stub:
    """Stand in for torch._utils._rebuild_tensor_v3: the tensor has a dtype, and its storage has none."""
    return _marked(View(storage, offset, shape, strides, _named(kind)), marks)


def _first(data: Any, *_: Any) -> Any:
    """Stand in for functions whose result has the elements of their first argument, such as _rebuild_parameter."""
    return data


def _cast(data: Any, kind: Any, *_: Any) -> Stub:
    """Stand in for torch._utils._rebuild_device_tensor_from_cpu_tensor, which casts a tensor to a dtype."""
    dtype = _named(kind)
    if not isinstance(data, View) or not isinstance(data.storage, Storage) or (data.dtype or data.storage.dtype) != dtype:
        return _Refused("is stored in another dtype than its own; load it with torch and save it again")
    return data


def _with_attributes(make: Any, kind: Any, arguments: Any, _state: Any) -> Stub:
    """Stand in for torch._tensor._rebuild_from_type_v2: calls `make`, and sets the result's class and attributes."""
    if not isinstance(make, Word) or not isinstance(kind, Word) or type(arguments) is not tuple:
        raise MalformedError("makes a tensor in a way that torch doesn't")
    made = make.make(*arguments)
    if not isinstance(made, Stub if kind.name in _TENSORS else _Refused):
        raise MalformedError("makes a tensor in a way that torch doesn't")
    return made


def _of_a_class(kind: Any, *_: Any) -> Stub:
    """Stand in for torch._utils._rebuild_wrapper_subclass: a tensor without elements, of a class that has them elsewhere."""
    if isinstance(kind, Word) and kind.name == "torch.distributed.tensor.DTensor":
        return _Refused("is a DTensor, of which every process has a part; save its full_tensor()")
    return _Refused("is of a class that holds its elements elsewhere; save it as a plain tensor")


def _refused(why: str) -> Callable[..., Stub]:
    """Return a function of any arguments that makes a tensor which is refused."""
    return lambda *_: _Refused(why)


def _dict(items: Any = ()) -> dict[Any, Any]:
    """Return a new dict. items: as Python 2's OrderedDict is pickled, a list of pairs, each a list; or a factory, or a dict,
    of a defaultdict or Counter, which are not needed."""
    pairs = list(items) if isinstance(items, list) else []
    if not all(type(pair) in (list, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise MalformedError("makes a dict in a way that Python doesn't")
    made = dict(pairs)
    if len(made) != len(pairs):
        raise MalformedError("holds a name twice")
    if isinstance(items, list):
        items[:] = [None]  # no pair: a list that could be copied many times would take any amount of memory
    return made


_CONSTANTS, _FACTORIES = ("set", "frozenset", "complex", "bytearray"), ("list", "dict", "int", "float")
# What a DTensor's state consists of, by module, within torch.distributed.
_DISTRIBUTED = {
    "tensor": ("DTensor",),
    "tensor._dtensor_spec": ("DTensorSpec", "TensorMeta", "ShardOrderEntry"),
    "tensor.placement_types": ("Shard", "_StridedShard", "Replicate", "Partial"),
    "device_mesh": ("DeviceMesh",),
    "_mesh_layout": ("_MeshLayout", "_FlatLayout"),
}
_TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
_SPARSE = _refused("is sparse: only the elements that aren't 0 are stored; save its to_dense()")
_QUANTIZED = _refused("is quantized: its elements are stored as integers; save its dequantize()")
WORDS: dict[tuple[str, str], Callable[..., Any]] = {
    **arrays.WORDS,
    ("torch._utils", "_rebuild_tensor"): View,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_of_dtype,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _cast,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _FromArray,
    ("torch._utils", "_rebuild_xla_tensor"): _FromArray,
    ("torch._utils", "_rebuild_sparse_tensor"): _SPARSE,
    ("torch._utils", "_rebuild_sparse_csr_tensor"): _SPARSE,
    ("torch._utils", "_rebuild_qtensor"): _QUANTIZED,
    ("torch._utils", "_rebuild_nested_tensor"): _refused("is a nested tensor, which isn't supported; save its unbind()"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _refused("was on the meta device: the file has no values for it"),
    ("torch._utils", "_rebuild_wrapper_subclass"): _of_a_class,
    ("torch._tensor", "_rebuild_from_type_v2"): _with_attributes,
    ("torch", "Tensor"): never_called,
    ("torch.nn.parameter", "Parameter"): _first,
    ("torch.nn.parameter", "Buffer"): never_called,
    **{(module, name): never_called for module, _, name in (full.rpartition(".") for full in _STORAGES)},
    **{("torch", name): never_called for name in (*_DTYPES, *_OTHERS, *_SCHEMES)},
    # What models' state and tensors' attributes may hold besides.
    ("torch", "Size"): arrays.WORDS["builtins", "tuple"],
    ("torch", "device"): Opaque,
    ("torch.serialization", "_get_layout"): Opaque,
    **{(module, name): Opaque for module in ("builtins", "__builtin__") for name in _CONSTANTS},
    **{(module, name): never_called for module in ("builtins", "__builtin__") for name in _FACTORIES},
    **{(f"torch.distributed.{module}", name): Opaque for module, names in _DISTRIBUTED.items() for name in names},
    **{("collections", name): _dict for name in ("OrderedDict", "defaultdict", "Counter")},
}
