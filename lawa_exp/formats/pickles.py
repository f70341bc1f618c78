"""Pickles of PyTorch checkpoints, read without torch and without running anything that they name, and written again.

What is let in: tensors, plain data, and by name numpy's arrays and scalars of numbers (as in its random state),
argparse.Namespace and the classes of fairseq that its checkpoints hold (dictionaries, meters, settings). Names become
stand-ins that keep what the pickle said of them; no class or function outside this file is looked up. Everything else
is refused.
"""

from __future__ import annotations

import copyreg
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

from lawa_exp.formats.dtypes import SIZES
from lawa_exp.formats.unpickling import Bounded

STORAGES = {  # the storage classes of torch that say their dtype; the others are kept as UntypedStorage
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
CLASSES = {dtype: name for name, dtype in STORAGES.items()}
UNTYPED = ("torch.storage", "UntypedStorage")
TENSOR_V2, TENSOR_V3 = ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor_v3")
PARAMETERS = {("torch._utils", "_rebuild_parameter"), ("torch._utils", "_rebuild_parameter_with_state")}
METERS = ("AverageMeter", "Meter", "MetersDict", "StopwatchMeter", "SumMeter", "TimeMeter")
CLASSES_BY_NAME = {
    ("argparse", "Namespace"),
    ("collections", "Counter"),
    ("fairseq.data.dictionary", "Dictionary"),
    *((module, name) for module in ("fairseq.meters", "fairseq.logging.meters") for name in METERS),
}
CLASSES_OF = {"fairseq.dataclass.configs", "fairseq.dataclass.constants"}  # modules whose classes are all let in
CLASS = re.compile(r"[A-Z][A-Za-z0-9_]*")
NUMPY_DTYPE = ("numpy", "dtype")
NUMPY_ARRAY = ("numpy", "ndarray")  # named by the call of _reconstruct, and not called
NUMBERS = re.compile(r"b1|[iufc]\d{1,2}")  # the dtypes of numpy that are let in
NUMPY = {
    NUMPY_DTYPE,
    NUMPY_ARRAY,
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}
CALLED = PARAMETERS | NUMPY | {("torch", "Size"), ("torch", "device")}  # functions that are kept as calls
EXTRA_DTYPES = {"complex32", "complex64", "complex128", "float8_e8m0fnu", "float4_e2m1fn_x2", "float", "double", "half"}
DTYPES = SIZES.keys() | EXTRA_DTYPES
OTHER_SIZES = {"complex64": 8, "complex128": 16}


class Refused(Exception):
    """The pickle names what is not let in."""


@dataclass(frozen=True)
class Name:
    """Something that the pickle names; called, it keeps the call."""

    module: str
    name: str

    def __call__(self, *args: object) -> Call:
        if (self.module, self.name) == NUMPY_DTYPE:
            code = args[0] if args and isinstance(args[0], str) else "of an odd kind"
            if not NUMBERS.fullmatch(code):
                raise Refused(ascii(f"numpy.dtype {code}")[1:-1])
        if (self.module, self.name) == NUMPY_ARRAY:
            raise Refused("numpy.ndarray called")
        return Call(self, args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a change of what it names")


@dataclass(eq=False)
class Call:
    """The result of a function that is named and not called."""

    function: Name
    args: tuple[object, ...]
    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


@dataclass(eq=False)
class Storage:
    """A run of elements in the file. numel: in elements of dtype; of an untyped one bytes, until a tensor says more."""

    key: str
    dtype: str | None
    location: str
    numel: int

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a change of a storage")

    @property
    def nbytes(self) -> int:
        if self.dtype is None:
            return self.numel
        return self.numel * (SIZES.get(self.dtype) or OTHER_SIZES[self.dtype])


@dataclass(eq=False)
class Tensor:
    """A view of a storage; offset and strides in elements. rest: requires_grad, hooks and what else is pickled."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    rest: tuple[object, ...]
    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class Inert:
    """Base of the stand-ins for classes: keeps its arguments, state and items, and does nothing."""

    args: tuple[object, ...]
    called = False  # made by a call of its class, not by __new__ alone
    state: object = None

    def __new__(cls, *args: object) -> Inert:
        made = super().__new__(cls)
        made.args, made.pairs, made.listed = args, [], []
        return made

    pairs: list[tuple[object, object]]
    listed: list[object]

    def __init__(self, *args: object) -> None:
        self.called = True

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.pairs.append((key, value))

    def append(self, value: object) -> None:
        self.listed.append(value)

    def reduced(self) -> tuple[object, ...]:
        """What pickle's `__reduce__` of the original gave."""
        made = (type(self), self.args) if self.called else (copyreg.__newobj__, (type(self), *self.args))  # type: ignore[attr-defined]
        return (*made, self.state, iter(self.listed) if self.listed else None, iter(self.pairs) if self.pairs else None)


class Function:
    """One of the functions below, which a pickle can call and not change."""

    __slots__ = ("_run",)

    def __init__(self, run: Callable[..., object]) -> None:
        self._run = run

    def __call__(self, *args: object) -> object:
        return self._run(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a change of what it names")


@Function
def _bytes(text: str, encoding: str) -> bytes:
    """How protocol 2 spells bytes: `_codecs.encode(text, "latin1")`."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in {encoding}")
    return text.encode("latin-1")


@Function
def _no_bytes() -> bytes:
    """How protocol 2 spells b""."""
    return b""


@Function
def _bytearray(*args: object) -> bytearray:
    content = _bytes(*args) if len(args) == 2 else args[0] if args else b""
    if not isinstance(content, bytes):
        raise pickle.UnpicklingError("a bytearray that is not made from bytes")
    return bytearray(content)


PLAIN: dict[tuple[str, str], type | Function] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "bytearray"): _bytearray,
    ("builtins", "bytes"): _no_bytes,
    ("_codecs", "encode"): _bytes,
}


def _is_allowed_class(module: str, name: str) -> bool:
    return (module, name) in CLASSES_BY_NAME or (module in CLASSES_OF and CLASS.fullmatch(name) is not None)


class Reader(Bounded):
    """`load()` gives the object with stand-ins. `Refused` names what is not let in."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.classes: dict[tuple[str, str], type] = {}
        self.names: dict[tuple[str, str], Name] = {}
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> type | Function | Name:
        module = "builtins" if module == "__builtin__" else module  # protocol 2 has Python 2's name
        address = module, name  # all that is let in is spelled out, but for names of classes: none holds a line break
        if address in LOADED:
            return LOADED[address]
        if _is_allowed_class(module, name):
            return self.classes.setdefault(address, type(name, (Inert,), {"__module__": module}))
        is_dtype = module == "torch" and name in DTYPES
        is_storage = address == UNTYPED or (module == "torch" and name in STORAGES)
        if is_dtype or is_storage or address in CALLED:
            return self.names.setdefault(address, Name(module, name))
        raise Refused(ascii(f"{module}.{name}")[1:-1])

    def persistent_load(self, pid: object) -> Storage:
        tag, kind, key, location, numel, *view = pid if isinstance(pid, tuple) and len(pid) >= 5 else (None,) * 5
        if tag != "storage" or not isinstance(kind, Name) or type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError("a storage that cannot be read")
        if any(part is not None for part in view):
            raise Refused("torch storage views (of PyTorch 0.x)")
        return self.storages.setdefault(key, Storage(key, STORAGES.get(kind.name), location, numel))


@Function
def _tensor_v2(
    storage: Storage, offset: int, size: object, stride: object, requires_grad: bool, hooks: object, *rest: object
) -> Tensor:
    if storage.dtype is None:
        raise pickle.UnpicklingError("a tensor without a dtype")
    return _tensor(storage, storage.dtype, offset, size, stride, (requires_grad, hooks, *rest))


@Function
def _tensor_v3(
    storage: Storage, offset: int, size: object, stride: object, requires_grad: bool, hooks: object, dtype: Name,
    *rest: object,
) -> Tensor:  # fmt: skip
    if storage.dtype is None and dtype.name in SIZES:
        storage.dtype = dtype.name
        storage.numel //= SIZES[dtype.name]
    return _tensor(storage, dtype.name, offset, size, stride, (requires_grad, hooks, *rest))


def _tensor(
    storage: Storage, dtype: str, offset: int, size: object, stride: object, rest: tuple[object, ...]
) -> Tensor:
    shape, strides = _ints(size), _ints(stride)
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise pickle.UnpicklingError("a tensor whose shape cannot be read")
    return Tensor(storage, dtype, _ints([offset])[0], shape, strides, rest)


def _ints(values: object) -> tuple[int, ...]:
    """A shape or strides: a sequence, or a call of torch.Size."""
    if isinstance(values, Call):
        values = values.args[0]
    if isinstance(values, tuple | list):
        numbers = tuple(v for v in values if type(v) is int and v >= 0)
        if len(numbers) == len(values):
            return numbers
    raise pickle.UnpicklingError("a tensor whose shape cannot be read")


LOADED: dict[tuple[str, str], type | Function] = {**PLAIN, TENSOR_V2: _tensor_v2, TENSOR_V3: _tensor_v3}


def tensor_in(value: object) -> Tensor | None:
    """The tensor that a value is, as a plain tensor or a Parameter."""
    if isinstance(value, Call) and (value.function.module, value.function.name) in PARAMETERS:
        value = value.args[0]
    return value if isinstance(value, Tensor) else None


class Rewriter(pickle._Pickler):
    """Writes what `Reader` read, protocol 2 as torch does; `storages` are those that it met, by their new keys."""

    dispatch: ClassVar[dict[type, Callable[..., None]]] = dict(pickle._Pickler.dispatch)

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, protocol=2)
        self.storages: dict[str, Storage] = {}
        self.keys: dict[int, str] = {}
        self.names: dict[tuple[str, str], Name] = {}

    def named(self, module: str, name: str) -> Name:
        return self.names.setdefault((module, name), Name(module, name))

    def persistent_id(self, obj: object) -> tuple[object, ...] | None:
        if not isinstance(obj, Storage):
            return None
        key = self.keys.setdefault(id(obj), str(len(self.keys)))
        self.storages[key] = obj
        if obj.dtype in CLASSES:
            return ("storage", self.named("torch", CLASSES[obj.dtype]), key, obj.location, obj.numel)
        return ("storage", self.named(*UNTYPED), key, obj.location, obj.nbytes)

    def reducer_override(self, obj: object) -> Any:  # a tuple, or NotImplemented
        if isinstance(obj, Inert):
            return obj.reduced()
        if isinstance(obj, Call):
            return (obj.function, obj.args, obj.state)
        if isinstance(obj, Tensor):
            view = (obj.storage, obj.offset, obj.shape, obj.strides)
            if obj.dtype in CLASSES:
                return (self.named(*TENSOR_V2), (*view, *obj.rest), obj.state)
            dtype = self.named("torch", obj.dtype)
            return (self.named(*TENSOR_V3), (*view, *obj.rest[:2], dtype, *obj.rest[2:]), obj.state)
        if isinstance(obj, Function):
            raise pickle.PicklingError("a function where a value should be")
        return NotImplemented

    def _save_name(self, obj: Name) -> None:
        self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())  # type: ignore[attr-defined]
        self.memoize(obj)  # type: ignore[attr-defined]

    def _save_class(self, obj: type) -> None:
        if issubclass(obj, Inert):
            self.write(b"c" + f"{obj.__module__}\n{obj.__name__}\n".encode())  # type: ignore[attr-defined]
            self.memoize(obj)  # type: ignore[attr-defined]
        else:
            self.save_global(obj)  # type: ignore[attr-defined]

    dispatch[Name] = _save_name
    dispatch[type] = _save_class


def walk(value: object, seen: set[int] | None = None) -> Iterator[object]:
    """Every container and stand-in inside `value`, each once."""
    seen = set() if seen is None else seen
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, str | bytes | int | float | type | None) or id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, Mapping):
            stack += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            stack += value
        elif isinstance(value, Call):
            stack += [value.args, value.state]
        elif isinstance(value, Inert):
            stack += [value.args, value.state, [v for _, v in value.pairs], value.listed]
