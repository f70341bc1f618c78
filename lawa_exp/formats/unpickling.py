"""An unpickler that a few bytes cannot make take gigabytes, or hours; its subclasses choose what names stand for."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar, cast

from lawa_exp.system.errors import UserError
from lawa_exp.system.files import SMALL, size_text

MOST_VALUES = 4_000_000  # containers and marks of a pickle; a checkpoint has some ten for each tensor
PICKLES = 5  # of a file from before torch 1.6: a number, the protocol, the system, the content, the storages' keys
LARGEST_TUPLE = 100_000  # values, with all that is in the tuples in it


def _counted(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def counting(self: Bounded) -> None:
        self.made += 1
        if self.made > MOST_VALUES:
            raise pickle.UnpicklingError(f"more than {MOST_VALUES:,} values")
        load(self)

    return counting


def _measured(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def measuring(self: Bounded) -> None:
        load(self)
        made = self.stack[-1]  # type: ignore[attr-defined]
        size = len(made)
        for part in made:
            if type(part) is tuple:
                size += self.sizes.get(id(part), 0)
        if size > LARGEST_TUPLE:
            raise pickle.UnpicklingError(f"a tuple of more than {LARGEST_TUPLE:,} values")
        self.sizes[id(made)] = size

    return measuring


class Bounded(pickle._Unpickler):
    """Takes no more memory and time than some tens of times the pickle's length.

    In Python: the memo of the one in C is as long as the largest number in it. Tuples in tuples can
    stand for 2^40 values, which a hash goes through.
    """

    def __init__(self, file: BinaryIO, **options: Any) -> None:
        super().__init__(file, **options)
        self.made = 0
        self.sizes: dict[int, int] = {}  # of tuples, by id: whatever has that id now was measured last

    def load_bytes_in_place(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        self.append(bytearray(self.read(length)))  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        **{op[0]: _counted(pickle._Unpickler.dispatch[op[0]]) for op in (
            pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.MARK, pickle.MEMOIZE,
        )},
        **{op[0]: _measured(pickle._Unpickler.dispatch[op[0]]) for op in (
            pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
        )},
        pickle.BYTEARRAY8[0]: load_bytes_in_place,
    }  # fmt: skip


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
                    Skimmer(cast(BinaryIO, archive.open(record))).load()
        else:
            file.seek(begin)
            for _ in range(PICKLES):
                Skimmer(file).load()
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{what} cannot be read ({str(error)[:100] or type(error).__name__})") from None
    finally:
        file.seek(begin)
