"""Pickles of PyTorch checkpoints, read without torch and without running anything that they name, and written again.

Tensors and plain data are read. Whatever else a pickle names, a class or a function, becomes a stand-in that keeps what
the pickle said of it, and is written back as it was; nothing outside this file is looked up. Refused are tensors of
other kinds than dense ones, and names that run programs or touch files, which no checkpoint needs.
"""

from __future__ import annotations

import copyreg
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

from lawa_exp.formats.classes import GETATTR, PARAMETERS, is_refused
from lawa_exp.formats.dtypes import SIZES
from lawa_exp.formats.unpickling import Bounded, TooMuch

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
EXTRA_DTYPES = {"float", "double", "half"}
DTYPES = SIZES.keys() | EXTRA_DTYPES
MOST_CLASSES = 10_000  # of stand-ins


class Refused(Exception):
    """The pickle names what is not let in."""


@dataclass(frozen=True)
class Name:
    """A dtype or a class of storages that the pickle names; what makes a tensor, where one is written."""

    module: str
    name: str

    def __call__(self, *args: object) -> object:
        raise pickle.UnpicklingError(f"a call of {self.module}.{self.name}")

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a change of what it names")


@dataclass(eq=False, slots=True)
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
        return self.numel * SIZES[self.dtype]


@dataclass(eq=False, slots=True, weakref_slot=True)
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
    """Base of the stand-ins for classes and functions: keeps its arguments, state and items, and does nothing."""

    __slots__ = ("args", "called", "function", "listed", "pairs", "state")
    args: tuple[object, ...]
    function: object  # the stand-in that was called; None: its class
    called: bool  # made by a call of its class, not by __new__ alone
    state: object
    pairs: list[tuple[object, object]] | None
    listed: list[object] | None

    def __new__(cls, *args: object) -> Inert:
        made = super().__new__(cls)
        made.args, made.called = args, False
        made.function = made.state = made.pairs = made.listed = None
        return made

    def __init__(self, *args: object) -> None:
        self.called = True

    def __call__(self, *args: object) -> Inert:
        made = Inert(*args)
        made.function = self
        return made

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.pairs = self.pairs or []
        self.pairs.append((key, value))

    def append(self, value: object) -> None:
        self.listed = self.listed or []
        self.listed.append(value)

    def reduced(self) -> tuple[object, ...]:
        """What pickle's `__reduce__` of the original gave."""
        if self.called:
            made: tuple[object, object] = (self.function or type(self), self.args)
        else:
            made = (copyreg.__newobj__, (type(self), *self.args))  # type: ignore[attr-defined]
        return (*made, self.state, iter(self.listed) if self.listed else None, iter(self.pairs) if self.pairs else None)

    def inside(self) -> list[object]:
        """All that it keeps."""
        return [
            self.function,
            self.args,
            self.state,
            *(part for pair in self.pairs or () for part in pair),
            self.listed,
        ]


def stand_in(classes: dict[tuple[str, str], type], address: tuple[str, str]) -> type:
    """The class among `classes`, which is made where it is not there."""
    if address not in classes:
        classes[address] = type(address[1], (Inert,), {"__module__": address[0], "__slots__": ()})
    return classes[address]


def address_of(value: object) -> tuple[str, str] | None:
    """Module and name of the class or function that made a stand-in; None of anything else."""
    if not isinstance(value, Inert):
        return None
    return address_of(value.function) if value.function else (type(value).__module__, type(value).__name__)


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


@Function
def _new(cls: type, *args: object) -> object:
    """copyreg.__newobj__, where a pickle calls it by name."""
    if not (isinstance(cls, type) and issubclass(cls, Inert)):
        raise pickle.UnpicklingError("an object of what is no class")
    return cls.__new__(cls, *args)


PLAIN: dict[tuple[str, str], type | Function] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "bytearray"): _bytearray,
    ("builtins", "bytes"): _no_bytes,
    ("_codecs", "encode"): _bytes,
    ("copyreg", "__newobj__"): _new,
}


class Reader(Bounded):
    """`load()` gives the object with stand-ins. `Refused` names what is not let in."""

    def __init__(self, content: bytes, at: int = 0) -> None:
        super().__init__(content, at, encoding="utf-8")
        self.classes: dict[tuple[str, str], type] = {}
        self.names: dict[tuple[str, str], Name] = {}
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> type | Function | Name:
        # Protocol 2 has Python 2's names.
        address = module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        if address == GETATTR:
            return Function(self._attribute)
        if address in LOADED:
            return LOADED[address]
        is_storage = address == UNTYPED or (module == "torch" and name in STORAGES)
        if is_storage or (module == "torch" and name in DTYPES):
            return self.names.setdefault(address, Name(module, name))
        if is_refused(module, name):
            raise Refused(ascii(f"{module}.{name}")[1:-1])
        return self._stand_in(address)

    def _stand_in(self, address: tuple[str, str]) -> type:
        if len(self.classes) > MOST_CLASSES:
            raise TooMuch(f"more than {MOST_CLASSES:,} classes and functions")
        return stand_in(self.classes, address)

    def _attribute(self, owner: object, name: str) -> object:
        """Of a class the class in it; of an object its attribute, a method."""
        if isinstance(owner, type) and issubclass(owner, Inert) and isinstance(name, str):
            address = owner.__module__, f"{owner.__name__}.{name}"
            if is_refused(*address):
                raise Refused(ascii(".".join(address))[1:-1])
            return self._stand_in(address)
        return stand_in({}, GETATTR)(owner, name)

    def persistent_load(self, pid: object) -> object:
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":  # a class with its code, before torch 1.6
            return pid[1]
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
    if not isinstance(storage, Storage) or len(shape) != len(strides) or type(offset) is not int or offset < 0:
        raise pickle.UnpicklingError("a tensor whose shape cannot be read")
    return Tensor(storage, dtype, offset, shape, strides, rest)


def _ints(values: object) -> tuple[int, ...]:
    """A shape or strides: a sequence, or a call of torch.Size."""
    if type(values) is not tuple:
        if address_of(values) == ("torch", "Size"):
            values = values.args[0]  # type: ignore[attr-defined]
        values = tuple(values) if isinstance(values, tuple | list) else (None,)
    for value in values:
        if type(value) is not int or value < 0:
            raise pickle.UnpicklingError("a tensor whose shape cannot be read")
    return values


LOADED: dict[tuple[str, str], type | Function] = {**PLAIN, TENSOR_V2: _tensor_v2, TENSOR_V3: _tensor_v3}


def tensor_in(value: object) -> Tensor | None:
    """The tensor that a value is, as a plain tensor or a Parameter."""
    if isinstance(value, Inert) and address_of(value) in PARAMETERS:
        value = value.args[0] if value.args else None
    return value if isinstance(value, Tensor) else None


class Rewriter(pickle._Pickler):
    """Writes what `Reader` read, protocol 2 as torch does; `storages` are those that it met, by their new keys."""

    dispatch: ClassVar[dict[type, Callable[..., None]]] = dict(pickle._Pickler.dispatch)

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, protocol=2)
        self.storages: dict[str, Storage] = {}
        self.keys: dict[int, str] = {}
        self.names: dict[tuple[str, str], Name] = {}
        self.classes: dict[tuple[str, str], type] = {}  # that others are inside
        self.getattr = stand_in(self.classes, GETATTR)

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
        if issubclass(obj, Inert) and "." in obj.__name__:  # protocol 2 has no such names
            owner, _, name = obj.__name__.rpartition(".")
            parent = stand_in(self.classes, (obj.__module__, owner))
            self.save_reduce(self.getattr, (parent, name), obj=obj)  # type: ignore[attr-defined]
        elif issubclass(obj, Inert):
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
        elif isinstance(value, Inert):
            stack += value.inside()
