"""An unpickler that a few bytes cannot make take gigabytes, or hours; its subclasses choose what names stand for."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any, BinaryIO, ClassVar

from lawa_exp.formats.stored import PastLimit
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import SMALL, size_text

FREE = 500_000  # units that any pickle may make; more than these come with bytes
PICKLES = 5  # of a file from before torch 1.6: a number, the protocol, the system, the content, the storages' keys
LARGEST_TUPLE = 1_000_000  # values, with all that is in the tuples in it
HASHED = (set, frozenset, OrderedDict)  # what they are called with they hash
PLAIN_INT = 1 << 60  # numbers below it have hashes of their own
UNITS = {  # what an opcode costs, some 32 bytes each. A pickle of checkpoints has three bytes or more for each
    **dict.fromkeys((pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.LIST, pickle.DICT, pickle.MARK), 2),
    **dict.fromkeys((pickle.EMPTY_SET, pickle.FROZENSET), 6),
    **dict.fromkeys((pickle.REDUCE, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.OBJ, pickle.INST), 3),
    **dict.fromkeys((pickle.GLOBAL, pickle.STACK_GLOBAL), 1),
}
U32, U64 = Struct("<I").unpack_from, Struct("<Q").unpack_from
_Load = Callable[[Any], None]


def _counted(load: _Load, units: int) -> _Load:
    def counting(self: Bounded) -> None:
        self.count(units)
        load(self)

    return counting


def _calling(load: _Load, units: int, place: int) -> _Load:
    """place: of what is called, in the stack; its arguments are the next."""

    def counting(self: Bounded) -> None:
        self.count(units)
        if self.stack[place] in HASHED:
            self.count_arguments(self.stack[place], self.stack[place + 1])
        load(self)

    return counting


class TooMuch(PastLimit, pickle.UnpicklingError):
    """A pickle would make more than its length allows."""


class Bounded(pickle._Unpickler):
    """Reads a pickle in memory. It takes no more memory and time than some tens of times the pickle's length.

    In Python: the memo of the one in C is as long as the largest number in it. Tuples in tuples can stand for 2^40
    values, which a hash goes through, and keys of one hash are each compared with all before it. The opcodes that
    tensors mostly are of are done in `load`.
    """

    def __init__(self, content: bytes, at: int = 0, **options: Any) -> None:
        """at: where the pickle begins, and after `load` where the next one does."""
        super().__init__(io.BytesIO(), **options)
        self.content, self.at, self.begin = content, at, at
        self.made = 0
        self.nested: dict[int, tuple[int, object]] = {}  # tuples with tuples in them, by id, each with all its values
        self.keys: dict[int, int] = {}  # how many of one hash there are in one dictionary or set
        self.memo: list[object] = []
        self.far: dict[int, object] = {}  # of the memo, with numbers that were not the next
        self.stack: list[Any] = []

    def count(self, units: int) -> None:
        self.made += units
        limit = FREE + (self.at - self.begin) // 2
        if self.made > limit:
            what = f"{self.made:,} values in its first {self.at - self.begin:,} bytes"
            raise TooMuch(f"{what}, with comparisons of their keys (at most {limit:,})")

    def load(self) -> Any:
        self.metastack: list[list[Any]] = []
        self.stack = []
        self.append = self.stack.append
        self.proto = 0
        content, at, memo, dispatch = self.content, self.at, self.memo, self.dispatch
        size = len(content)
        while at < size:
            op = content[at]
            at += 1
            if op == 0x71 or op == 0x72:  # BINPUT, LONG_BINPUT
                if op == 0x71:
                    place = content[at]
                    at += 1
                else:
                    (place,) = U32(content, at)
                    at += 4
                if place == len(memo):
                    memo.append(self.stack[-1])
                else:
                    self.put(place)
            elif op == 0x68:  # BINGET
                place = content[at]
                at += 1
                self.append(memo[place] if place < len(memo) else self.far[place])
            elif op == 0x4B:  # BININT1
                self.append(content[at])
                at += 1
            elif op == 0x94 and not self.far:  # MEMOIZE
                memo.append(self.stack[-1])
            elif op == 0x6A:  # LONG_BINGET
                (place,) = U32(content, at)
                at += 4
                self.append(memo[place] if place < len(memo) else self.far[place])
            elif op == 0x58:  # BINUNICODE
                end = at + 4 + U32(content, at)[0]
                if end > size:
                    break
                self.append(str(content[at + 4 : end], "utf-8", "surrogatepass"))
                at = end
            elif op == 0x2E:  # STOP
                self.at = at
                return self.stack.pop()
            else:
                self.at = at
                dispatch[op](self)
                at = self.at
        raise EOFError("it is cut short")

    def put(self, place: int) -> None:
        """Into the memo, where it is not the next."""
        if place < len(self.memo):
            self.memo[place] = self.stack[-1]
        else:
            self.far[place] = self.stack[-1]

    def read(self, length: int) -> bytes:
        begin, self.at = self.at, self.at + length
        if self.at > len(self.content):
            raise EOFError("it is cut short")
        return self.content[begin : self.at]

    def readline(self) -> bytes:
        begin, self.at = self.at, self.content.index(b"\n", self.at) + 1
        return self.content[begin : self.at]

    def load_frame(self) -> None:
        if U64(self.read(8))[0] > len(self.content) - self.at:
            raise pickle.UnpicklingError("a frame is cut short")

    def load_memoize(self) -> None:
        self.put(len(self.memo) + len(self.far))

    def load_bytes_in_place(self) -> None:
        (length,) = U64(self.read(8))
        self.append(bytearray(self.read(length)))

    def load_tuple(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.append(tuple(items))
        for part in items:
            if type(part) is tuple:
                self.measure(self.stack[-1])
                break

    def load_tuple1(self) -> None:
        last = self.stack[-1]
        self.stack[-1] = (last,)
        if type(last) is tuple:
            self.measure(self.stack[-1])

    def load_tuple2(self) -> None:
        last = self.stack.pop()
        first = self.stack[-1]
        self.stack[-1] = (first, last)
        if type(first) is tuple or type(last) is tuple:
            self.measure(self.stack[-1])

    def load_tuple3(self) -> None:
        self.stack[-3:] = [made := tuple(self.stack[-3:])]
        if tuple in map(type, made):
            self.measure(made)

    def measure(self, made: tuple[object, ...]) -> None:
        """Of a tuple with tuples in it."""
        size = len(made)
        for part in made:
            if type(part) is tuple:
                size += self.nested[id(part)][0] if id(part) in self.nested else len(part)
        if size > LARGEST_TUPLE:
            raise TooMuch(f"a tuple of {size:,} values, with those of the tuples in it (at most {LARGEST_TUPLE:,})")
        self.nested[id(made)] = size, made  # which lives as long, so that nothing else has its id
        self.count(3)

    def count_key(self, holder: object, key: object) -> None:
        """Before `key` becomes one of `holder`. Texts need nothing: how their hashes collide, no file can know."""
        if type(key) is int and -PLAIN_INT < key < PLAIN_INT:
            return
        size = 1
        if type(key) is int:
            size = key.bit_length() >> 6
        else:
            for part in vars(key).values() if hasattr(key, "__dict__") else (key,):
                if isinstance(part, tuple):
                    size += self.nested[id(part)][0] if id(part) in self.nested else len(part)
        if size >= 8:
            self.count(size // 8)
        try:
            place = hash(key) ^ id(holder)
        except TypeError:
            return  # and it is no key
        self.keys[place] = same = self.keys.get(place, 0) + 1
        if same > 8:
            self.count(same * size // 8)

    def count_keys(self, holder: object, keys: Iterable[object]) -> None:
        for key in keys:
            if type(key) is not str:
                self.count_key(holder, key)

    def load_setitem(self) -> None:
        self.count_keys(self.stack[-3], self.stack[-2:-1])
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        self.count_keys(self.metastack[-1][-1], self.stack[::2])
        super().load_setitems()  # type: ignore[misc]

    def load_dict(self) -> None:
        self.count_keys(self.stack, self.stack[::2])
        super().load_dict()  # type: ignore[misc]

    def load_additems(self) -> None:
        self.count_keys(self.metastack[-1][-1], self.stack)
        super().load_additems()  # type: ignore[misc]

    def load_frozenset(self) -> None:
        self.count_keys(self.stack, self.stack)
        super().load_frozenset()  # type: ignore[misc]

    def _instantiate(self, made: object, items: list[object]) -> None:
        if made in HASHED:
            self.count_arguments(made, items)
        super()._instantiate(made, items)  # type: ignore[misc]

    def count_arguments(self, made: object, items: Any) -> None:
        """Of one of `HASHED` that is called; of an OrderedDict they are pairs."""
        for item in items:
            if isinstance(item, list | tuple | set | frozenset):
                pairs = (part for part in item if made is OrderedDict and isinstance(part, list | tuple) and part)
                self.count_keys(item, (part[0] for part in pairs) if made is OrderedDict else item)

    def load_text_get(self) -> None:
        place = int(self.readline())
        self.append(self.far[place] if place in self.far else self.memo[place])

    def load_text_put(self) -> None:
        self.put(int(self.readline()))

    dispatch: ClassVar[dict[int, _Load]] = {
        **pickle._Unpickler.dispatch,
        **{op[0]: _counted(pickle._Unpickler.dispatch[op[0]], units) for op, units in UNITS.items()},
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: _counted(load_dict, UNITS[pickle.DICT]),
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: _counted(load_frozenset, UNITS[pickle.FROZENSET]),
        pickle.REDUCE[0]: _calling(pickle._Unpickler.dispatch[pickle.REDUCE[0]], UNITS[pickle.REDUCE], -2),
        pickle.NEWOBJ[0]: _calling(pickle._Unpickler.dispatch[pickle.NEWOBJ[0]], UNITS[pickle.NEWOBJ], -2),
        pickle.NEWOBJ_EX[0]: _calling(pickle._Unpickler.dispatch[pickle.NEWOBJ_EX[0]], UNITS[pickle.NEWOBJ_EX], -3),
        pickle.TUPLE[0]: load_tuple,
        pickle.TUPLE1[0]: load_tuple1,
        pickle.TUPLE2[0]: load_tuple2,
        pickle.TUPLE3[0]: load_tuple3,
        pickle.FRAME[0]: load_frame,
        pickle.MEMOIZE[0]: load_memoize,
        pickle.BYTEARRAY8[0]: load_bytes_in_place,
        pickle.GET[0]: load_text_get,
        pickle.PUT[0]: load_text_put,
    }


class Anything:
    """Stands for whatever a pickle names, makes or changes; an instance also for a class that a pickle looked up."""

    def __new__(cls, *args: object, **named: object) -> Anything:
        return object.__new__(Anything)

    def __call__(self, *args: object, **named: object) -> Anything:
        return self

    def __init__(self, *args: object, **named: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        pass

    add = update = append


class Skimmer(Bounded):
    """Goes through a pickle that another reader is to load: what is too large for this one is not given to it."""

    def find_class(self, module: str, name: str) -> type:
        if name == "bytearray":  # called with a number it has that length
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return Anything

    def persistent_load(self, pid: object) -> object:
        return Anything()


def check_bounded(file: BinaryIO, what: object) -> None:
    """UserError: what torch.load would read of this file is too large, or damaged. `file` stays where it is."""
    begin = file.tell()
    try:
        if zipfile.is_zipfile(file):
            archive = zipfile.ZipFile(file)
            for record in archive.infolist():
                if record.file_size > max(SMALL, 2 * record.compress_size):
                    raise UserError(f"{what}: its {record.filename} has {size_text(record.file_size)} once inflated")
            for record in archive.infolist():
                if record.filename.endswith(".pkl"):
                    if record.file_size > SMALL:
                        raise UserError(f"{what}: its {record.filename} has {size_text(record.file_size)}")
                    Skimmer(archive.read(record)).load()
        else:
            file.seek(begin)
            content, at = file.read(SMALL), 0
            for _ in range(PICKLES):
                skimmer = Skimmer(content, at)
                skimmer.load()
                at = skimmer.at
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{what} cannot be read ({str(error)[:100] or type(error).__name__})") from None
    finally:
        file.seek(begin)
