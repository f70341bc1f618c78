"""What readers say about a checkpoint and what writers need: where each tensor lies in which file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, Protocol, TypedDict

from lawa_exp.system.errors import UserError
from lawa_exp.system.files import read_json

SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".bin", ".ckpt")  # of files that may be checkpoints
ABOUT = "lawa_exp"  # in the metadata of our averages; of PyTorch files a record, of DCP folders a file, ABOUT.json
STATISTICS = re.compile(r"(^|[./])(running_mean|running_var)$")  # of BatchNorm: floats that are not averaged


@dataclass(slots=True)
class Region:
    """A range of a file with a CRC-32. expected: its value; None: to be found (of what is written)."""

    begin: int
    end: int
    expected: int | None
    what: str  # for the message
    value: int | None = None  # as found


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in a file: the byte of its first element, and strides in elements."""

    offset: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    region: Region | None = field(default=None, compare=False)


class Index(TypedDict):
    """A sharded Hugging Face folder's; what else stands in it is kept."""

    weight_map: dict[str, str]  # the file of each tensor
    metadata: NotRequired[dict[str, object] | None]


class Writer(Protocol):
    """Lays out one output file like the input that it was made from."""

    name: str
    size: int  # bytes of the finished file
    places: dict[str, Place]  # where the engine is to write the tensors
    copies: list[tuple[str, Place, Place]]  # taken as they are: what, in the source, here
    beneath: list[tuple[str, Place, Place]]  # the same, before everything else, which may be written over it
    regions: list[Region]
    is_described: bool  # its metadata say how the file was made
    left_out: list[str]  # keys of the input that the output is without
    carried: list[str]  # objects of the input that were not made, by the names of their classes
    others: list[str]  # names in the state dict that are no tensor's
    emptied: list[str]  # what of the input has been set to what it was before training
    kept: list[str]  # keys of what has other floating-point tensors, which are as the input has them

    def finish(self, write: Callable[[int, bytes], None]) -> None:
        """Writes everything else, once the checksums of `regions` are known. write: offset, bytes."""
        ...


class Source(Protocol):
    """One input file."""

    path: Path
    tensors: dict[str, Place]
    keyed: bool  # whether it can hold several state dicts

    def describe(self, about: str) -> None:
        """Writes `about` into the metadata of the output. To be called before `writer`."""
        ...

    def writer(self, dtype: str | None) -> Writer:
        """For an output like this file; dtype: of its floating-point tensors, None: their own."""
        ...

    def forget(self) -> None:
        """Drops what only `writer` needs."""
        ...


@dataclass
class Checkpoint:
    """What one argument of the command holds: one file, or the shards of a folder."""

    path: Path  # as given, for messages
    sources: list[Source]
    extras: dict[str, Path] = field(default_factory=dict)  # files that are copied along, by their place in the output
    indexes: dict[str, Index] = field(default_factory=dict)  # of sharded Hugging Face folders, by their place
    parts: dict[Path, str] = field(default_factory=dict)  # of files of other models: begins the names of their tensors
    unread: list[str] = field(default_factory=list)  # other weights and subfolders, which the output is without
    convert: Callable[[Path], list[str]] | None = None  # makes the output folder a DCP one; returns what it left out
    about: str = ""  # what the output says of itself

    def place(self, source: Source) -> Path:
        """Where a source lies in the folder."""
        path = source.path
        return path.relative_to(self.path) if path in self.parts else Path(path.name)

    def writers(self, dtype: str | None) -> list[Writer]:
        """Of an output like this, in the order of the sources. UserError where one is too odd to be written again."""
        made = []
        for source in self.sources:
            with reading(source.path):
                made.append(source.writer(dtype))
        return made

    def describe(self, about: str) -> None:
        """What the output's metadata says of it."""
        self.about = about
        for source in self.sources:
            source.describe(about)

    def forget(self) -> None:
        """Drops what only `writers` needs."""
        for source in self.sources:
            source.forget()


@dataclass(frozen=True)
class Average:
    """sum(weight * input) / sum(weights) over some of the checkpoints; inputs ascend."""

    inputs: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def latest(self) -> Average:
        return Average(self.inputs[-1:], (1.0,))


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides, in elements."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def count(shape: tuple[int, ...]) -> int:
    """Elements of a tensor."""
    number = 1
    for size in shape:
        number *= size
    return number


def extent(place: Place) -> int:
    """Elements from the tensor's first to its last, where there are any."""
    return 1 + sum((n - 1) * s for n, s in zip(place.shape, place.strides, strict=True))


def may_overlap_itself(place: Place) -> bool:
    """False only where no two of its elements share memory: each stride leads behind all that the smaller ones span."""
    behind = 1
    for stride, size in sorted(zip(place.strides, place.shape, strict=True)):
        if size > 1:
            if stride < behind:
                return True
            behind += (size - 1) * stride
    return False


class Damaged(UserError):
    """A file or folder that cannot be read as what it is."""


class TooLarge(UserError):
    """A file that is not read, as it holds more of something than is read."""


def damaged(path: Path, why: str) -> Damaged:
    return Damaged(f"{path} is damaged: {why}")


def read_list(path: Path) -> Any:
    """The value in a folder's small JSON file. Damaged: it is none."""
    try:
        return read_json(path)
    except UserError as error:
        raise Damaged(str(error)) from None


def read_index(path: Path) -> Index:
    """The content of a sharded Hugging Face folder's index. UserError: it is none, or names files elsewhere."""
    with reading(path):
        content: Index = read_list(path)
        content["weight_map"] = dict(content["weight_map"])
        files = set(content["weight_map"].values())
        if any(Path(name).name != name for name in files):
            raise UserError(f"{path} names a file outside its folder")
        if not files or not isinstance(content.get("metadata"), dict | None):
            raise damaged(path, "it names no file, or its metadata is of another kind")
    return content


def shards_of(index: Path) -> list[Path]:
    """The files that an index names, sorted. UserError as in `read_index`, or where one is missing."""
    files = [index.parent / name for name in sorted(set(read_index(index)["weight_map"].values()))]
    if lacking := [file for file in files if not file.is_file()]:
        raise damaged(index, f"{lacking[0].name}, which it names, is not there")
    return files


@contextmanager
def using(path: Path) -> Iterator[None]:
    """Errors of a file descriptor, with its path."""
    try:
        yield
    except OSError as error:
        raise of_path(error, path) from None


def of_path(error: OSError, path: Path) -> OSError:
    return OSError(error.errno, error.strerror, str(path))


class PastLimit(Exception):
    """A file is not damaged, but holds more of something than is read."""


def too_much(path: Path, error: PastLimit) -> TooLarge:
    return TooLarge(f"{path} is not read: it holds {error}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What a damaged file can raise is anything; it becomes one line that names the file."""
    try:
        yield
    except (UserError, OSError):
        raise
    except PastLimit as error:
        raise too_much(path, error) from None
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise damaged(path, f"it cannot be read ({text or type(error).__name__})") from None
