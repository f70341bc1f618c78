"""PyTorch files (.pt, .pth, .bin, .ckpt), read by byte ranges and written so that they load where they did.

Two containers are read: the zip of torch >= 1.6 (a pickle and one stored record for each storage, with CRC-32), and the
older sequence of pickles (no checksums). The zip is what is written.

What is averaged is the state dict (`state_dicts.py` says where that is). Everything else comes from the last input,
except what belongs to its live weights and would be wrong for an average: an optimizer's state is left as a new
optimizer has it (empty, `param_groups` kept), `best_val_loss` (nanoGPT) becomes infinite, and second copies of the
weights are left out.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import BinaryIO

from lawa_exp.formats.classes import USUAL
from lawa_exp.formats.copies import Copies
from lawa_exp.formats.dtypes import FLOATS, SIZES
from lawa_exp.formats.pickles import (
    Reader,
    Refused,
    Rewriter,
    Storage,
    Tensor,
    address_of,
    tensor_in,
    walk,
)
from lawa_exp.formats.state_dicts import Finder, kind_of, text_of, value_at
from lawa_exp.formats.stored import (
    ABOUT,
    PastLimit,
    Place,
    Region,
    contiguous,
    count,
    damaged,
    extent,
    may_overlap_itself,
    too_much,
)
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import SMALL, size_text

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
OPTIMIZER = "an optimizer's state"
ALIGNMENT = 64  # of a storage in the file, as torch has it
MOST_EXPANDED = 100_000_000  # elements of a tensor that shows a smaller storage several times
ZIP64 = 0xFFFFFFFF  # sizes and offsets from here on stand in an extra field


class TorchFile:
    """Reads the pickle. UserError names the file, and the tensor or class where there is one."""

    def __init__(self, path: Path, key: str | None = None) -> None:
        """key: where its state dict is, with dots between the levels."""
        self.path, self.keyed = path, True
        self.keep: object = None  # what must live as long as the file (a temporary folder)
        self.about = ""  # what an output like it says of itself
        self.carried: list[str] = []  # classes and functions that stand-ins are of
        self.emptied: list[str] = []  # what an output does not take over
        self.kept: list[str] = []  # where tensors are that are not averaged
        try:
            with path.open("rb") as file:
                if file.read(4) == ZIP_MAGIC:
                    self.root, content, ranges = self._read_zip(file)
                else:
                    self.root, content, ranges = self._read_legacy(file)
        except Refused as refused:
            raise UserError(
                f"{path} holds {refused}, which is not read: a checkpoint has dense tensors, plain data and "
                "objects that are carried along unread; of a whole model save model.state_dict() instead"
            ) from None
        if not isinstance(content, Mapping):
            raise UserError(f"{path} holds {kind_of(content)}, not a state dict; save model.state_dict() instead")
        self.content: Mapping[object, object] = content
        self.ranges = ranges
        try:
            state_dict = FINDER.find(content, key)
        except UserError as error:
            whole = next(
                (f"; {k} is {kind_of(v)}: save its state_dict()" for k, v in content.items() if _has_tensors(v)), ""
            )
            raise UserError(f"{path}: {error}{whole}") from None
        self.key, self.weights, self.others = state_dict.key, state_dict.tensors, state_dict.others
        self.tensors = {name: self._place(name, tensor) for name, tensor in self.weights.items()}

    def _read_zip(self, file: BinaryIO) -> tuple[str, object, dict[str, tuple[int, int, Region | None]]]:
        try:
            archive = zipfile.ZipFile(file)
            records = {name.partition("/")[2]: info for name, info in archive.NameToInfo.items()}
            for record in records.values():
                record.CRC = record.CRC or None  # type: ignore[assignment]  # torch can be told not to compute them: 0
            if "constants.pkl" in records:
                raise UserError(f"{self.path} is a TorchScript archive; what can be averaged is a saved state dict")
            if "data.pkl" not in records:
                raise UserError(f"{self.path} is a zip file, but not one of torch.save (no data.pkl)")
            for name in ("data.pkl", "byteorder"):
                if name in records and records[name].file_size > SMALL:
                    large = size_text(records[name].file_size)
                    raise UserError(f"{self.path}: its {name} has {large}, expected at most {size_text(SMALL)}")
            if "byteorder" in records and archive.read(records["byteorder"]) != b"little":
                raise UserError(f"{self.path} was written by a big-endian machine")
            pickled = archive.read(records["data.pkl"])
        except UserError:
            raise
        except Exception as error:  # zipfile raises much on a damaged file
            raise damaged(self.path, f"{error}; cut short?") from None
        content, storages, _ = self._unpickle(pickled)
        size = self.path.stat().st_size
        ranges: dict[str, tuple[int, int, Region | None]] = {}
        for key, storage in storages.items():
            info = records.get(f"data/{key}")
            if info is None or info.file_size < storage.nbytes or info.compress_type != zipfile.ZIP_STORED:
                raise damaged(self.path, f"the record data/{key} is missing, too short or compressed")
            file.seek(info.header_offset)
            header = file.read(30)
            if len(header) < 30 or header[:4] != ZIP_MAGIC:
                raise damaged(self.path, f"the record data/{key} has no header")
            begin = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
            end = begin + info.file_size
            if end > size:
                raise damaged(self.path, f"the record data/{key} ends behind the file: cut short?")
            region = Region(begin, end, info.CRC, f"record data/{key}")
            ranges[key] = begin, info.file_size, region if info.CRC else None
        return records["data.pkl"].filename.partition("/")[0], content, ranges

    def _read_legacy(self, file: BinaryIO) -> tuple[str, object, dict[str, tuple[int, int, Region | None]]]:
        file.seek(0)
        pickled = file.read(SMALL)
        try:
            magic = Reader(pickled)
            if magic.load() != LEGACY_MAGIC:
                raise pickle.UnpicklingError
        except Exception:
            raise UserError(f"{self.path} is not a file of torch.save (nor safetensors)") from None
        at = magic.at
        for _ in ("the protocol's version", "the system's"):
            _, _, at = self._unpickle(pickled, at)
        content, storages, at = self._unpickle(pickled, at)
        keys, _, at = self._unpickle(pickled, at)
        file.seek(at)
        if not isinstance(keys, list):
            raise damaged(self.path, "the list of its storages cannot be read")
        size = self.path.stat().st_size
        ranges: dict[str, tuple[int, int, Region | None]] = {}
        for key in keys:
            storage = storages.get(key)
            numel = int.from_bytes(file.read(8), "little")
            begin = file.tell()
            if storage is None or numel != (storage.numel):
                raise damaged(self.path, f"the storage {key} has {numel:,} elements, not what its pickle says")
            if begin + storage.nbytes > size:
                raise damaged(self.path, f"the storage {key} ends behind the file: cut short?")
            ranges[key] = begin, storage.nbytes, None
            file.seek(begin + storage.nbytes)
        if storages.keys() - ranges.keys():
            raise damaged(self.path, "a storage is missing: cut short?")
        return "archive", content, ranges

    def _unpickle(self, pickled: bytes, at: int = 0) -> tuple[object, dict[str, Storage], int]:
        """What is there, its storages, and where it ends."""
        reader = Reader(pickled, at)
        try:
            content = reader.load()
            self.carried += [".".join(address) for address in reader.classes if not USUAL.match(address[0])]
            return content, reader.storages, reader.at
        except (Refused, UserError):
            raise
        except PastLimit as error:
            raise too_much(self.path, error) from None
        except Exception as error:  # a damaged pickle can raise anything
            raise damaged(self.path, f"its pickle cannot be read ({error or type(error).__name__})") from None

    def _place(self, name: str, tensor: Tensor) -> Place:
        storage = tensor.storage
        if tensor.dtype not in SIZES or storage.dtype != tensor.dtype:
            raise UserError(f"{self.path}: {name} has dtype {tensor.dtype}, which cannot be averaged")
        if any(isinstance(part, Mapping) and part and not isinstance(part, OrderedDict) for part in tensor.rest):
            raise UserError(f"{self.path}: {name} is a lazily conjugated or negated view, which cannot be averaged")
        if count(tensor.shape) and tensor.offset + _span(tensor) > storage.numel:
            raise damaged(self.path, f"{name} reaches beyond its storage")
        if count(tensor.shape) > max(storage.numel, MOST_EXPANDED):
            raise damaged(self.path, f"{name} has {count(tensor.shape):,} elements in a storage of {storage.numel:,}")
        begin, _, region = self.ranges[storage.key]
        if region:
            region.what = name
        strides = _strides(tensor.shape, tensor.strides)
        return Place(begin + tensor.offset * SIZES[tensor.dtype], tensor.dtype, tensor.shape, strides, region)

    def describe(self, about: str) -> None:
        self.about = about

    def writer(self, dtype: str | None) -> TorchWriter:
        return TorchWriter(self, dtype)

    def forget(self) -> None:
        self.content, self.weights, self.ranges = {}, {}, {}


def _span(tensor: Tensor) -> int:
    """Elements from its first to its last."""
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))


def _strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of dimensions of size 1 (which mean nothing) as a contiguous tensor has them."""
    usual = contiguous(shape)
    return tuple(u if n == 1 else s for n, s, u in zip(shape, strides, usual, strict=True))


def _has_tensors(value: object) -> bool:
    """Whether it is an object, such as a whole module, with tensors in it."""
    return address_of(value) is not None and any(isinstance(part, Tensor | Storage) for part in walk(value))


FINDER = Finder(tensor_in, lambda tensor: count(tensor.shape) * (tensor.dtype in FLOATS))


def _reset_what_is_not_the_averages(top: object, weights: object) -> list[str]:
    """Empties the states of optimizers, and forgets the best loss, in place; returns which of them it was."""
    reset = []
    for value in walk(top, {id(weights)} if weights is not top else None):
        if isinstance(value, dict) and "state" in value and "param_groups" in value and value["state"]:
            value["state"] = {}
            reset.append(OPTIMIZER)
    if isinstance(top, dict) and top is not weights and "best_val_loss" in top:
        top["best_val_loss"] = math.inf
        reset.append("best_val_loss")
    return reset


def _second_copies(source: TorchFile, averaged: Container[int]) -> Copies:
    """averaged: ids of the storages that the average is in."""

    def shape_of(value: object) -> tuple[int, ...] | None:
        tensor = tensor_in(value)
        if tensor is None or tensor.dtype not in FLOATS or id(tensor.storage) in averaged:
            return None
        return tensor.shape

    return Copies({n: t.shape for n, t in source.weights.items() if t.dtype in FLOATS}, shape_of)


def _covered(source: TorchFile) -> dict[int, int]:
    """How many of each storage's elements, from its first on, surely are an averaged tensor's."""
    covered: dict[int, int] = {}
    for name, tensor in sorted(source.weights.items(), key=lambda item: item[1].offset):
        place, of = source.tensors[name], id(tensor.storage)
        dense = count(place.shape) == extent(place) and not may_overlap_itself(place)
        so_far = covered.setdefault(of, 0)
        if dense and tensor.offset <= so_far:
            covered[of] = max(so_far, tensor.offset + extent(place))
    return covered


class TorchWriter:
    """The last input's objects, pickled anew around other storages."""

    def __init__(self, source: TorchFile, dtype: str | None) -> None:
        self.name = source.path.name
        top = source.content
        averaged = {id(t.storage): t.storage for t in source.weights.values()}
        self.is_described = True
        self.left_out: list[str] = []
        self.carried, self.others = source.carried, source.others
        self.kept, self.emptied = source.kept, source.emptied
        self.emptied += _reset_what_is_not_the_averages(top, value_at(top, source.key))
        self.left_out = _second_copies(source, averaged.keys()).drop(top)
        covered, own = _covered(source), set(map(id, source.weights.values()))
        others = FINDER.others(top, lambda t: id(t) in own or t.offset + _span(t) <= covered.get(id(t.storage), 0))
        self.kept += map(text_of, others)
        were = {id(storage): storage.dtype for storage in averaged.values()}
        if dtype:
            for value in walk(top):
                if isinstance(value, Tensor) and id(value.storage) in averaged and value.dtype in FLOATS:
                    value.dtype = dtype
            for storage in averaged.values():
                storage.dtype = dtype if storage.dtype in FLOATS else storage.dtype
        pickled = io.BytesIO()
        rewriter = Rewriter(pickled)
        rewriter.dump(top)
        self.root = source.root
        self.records: list[tuple[str, bytes | Region]] = [("data.pkl", pickled.getvalue()), ("byteorder", b"little")]
        if source.about:
            self.records.append((f"{ABOUT}.json", source.about.encode()))  # torch.load does not look at it
        self.offsets: list[int] = []  # of each record's header
        self.end = 0
        for name, content in self.records:
            self._lay_out(name, len(content) if isinstance(content, bytes) else 0)
        begins: dict[int, tuple[int, Region]] = {}
        self.regions: list[Region] = []
        self.copies: list[tuple[str, Place, Place]] = []
        self.beneath: list[tuple[str, Place, Place]] = []
        for key, storage in rewriter.storages.items():
            old, _, old_region = source.ranges[storage.key]
            begin = self._lay_out(f"data/{key}", storage.nbytes)
            region = Region(begin, begin + storage.nbytes, None, f"record data/{key}")
            self.records.append((f"data/{key}", region))
            self.regions.append(region)
            begins[id(storage)] = begin, region
            what = f"storage {storage.key}"
            if id(storage) not in averaged:
                there = Place(old, "uint8", (storage.nbytes,), (1,), old_region)
                self.copies.append((what, there, Place(begin, "uint8", (storage.nbytes,), (1,), region)))
            elif covered[id(storage)] < storage.numel:
                was, now, shape = were[id(storage)], storage.dtype, (storage.numel,)
                assert was and now
                self.beneath.append((what, Place(old, was, shape, (1,), old_region), Place(begin, now, shape, (1,))))
        self.places = {}
        for name, tensor in source.weights.items():
            begin, region = begins[id(tensor.storage)]
            place = source.tensors[name]
            at = begin + tensor.offset * SIZES[tensor.dtype]
            self.places[name] = Place(at, tensor.dtype, place.shape, place.strides, region)
        self.records.append(("version", b"3\n"))
        self._lay_out("version", 2)
        directory = sum(len(self._directory_entry(i, 0)) for i in range(len(self.records)))
        self.size = self.end + directory + len(self._directory_end(directory))

    def _lay_out(self, name: str, size: int) -> int:
        """Gives the next record its place; returns where its content begins."""
        self.offsets.append(self.end)
        begin = self.end + len(_local_header(self._path(name), self.end, size, 0))
        self.end = begin + size
        return begin

    def _path(self, name: str) -> bytes:
        return f"{self.root}/{name}".encode()

    def _directory_entry(self, i: int, crc: int) -> bytes:
        name, content = self.records[i]
        size = len(content) if isinstance(content, bytes) else content.end - content.begin
        path, extra = self._path(name), b""
        large = [n for n in (size, size, self.offsets[i]) if n >= ZIP64]
        if large:
            extra = struct.pack(f"<HH{len(large)}Q", 1, 8 * len(large), *large)
        short = [min(n, ZIP64) for n in (size, size, self.offsets[i])]
        head = struct.pack(
            "<4s6H3L5H2L", b"PK\x01\x02", 45 if large else 20, 45 if large else 20, 0, 0, 0, 33, crc, *short[:2],
            len(path), len(extra), 0, 0, 0, 0, short[2],
        )  # fmt: skip
        return head + path + extra

    def _directory_end(self, size: int) -> bytes:
        number, begin = len(self.records), self.end
        large = b""
        if number >= 0xFFFF or begin >= ZIP64:
            large = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, number, number, size, begin)
            large += struct.pack("<4sLQL", b"PK\x06\x07", 0, begin + size, 1)
        few = min(number, 0xFFFF)
        return large + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, few, few, size, min(begin, ZIP64), 0)

    def finish(self, write: Callable[[int, bytes], None]) -> None:
        directory = b""
        for i, (name, content) in enumerate(self.records):
            if isinstance(content, bytes):
                crc, size, data = zlib.crc32(content), len(content), content
            else:
                assert isinstance(content.value, int)
                crc, size, data = content.value, content.end - content.begin, b""
            write(self.offsets[i], _local_header(self._path(name), self.offsets[i], size, crc) + data)
            directory += self._directory_entry(i, crc)
        write(self.end, directory + self._directory_end(len(directory)))


def _local_header(path: bytes, offset: int, size: int, crc: int) -> bytes:
    """The header of a stored record at `offset`, padded so that its content is aligned."""
    large = size >= ZIP64
    extra = struct.pack("<HHQQ", 1, 16, size, size) if large else b""
    padding = -(offset + 30 + len(path) + len(extra) + 4) % ALIGNMENT
    extra += struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    version, short = (45, ZIP64) if large else (20, size)
    head = struct.pack("<4s5H3L2H", ZIP_MAGIC, version, 0, 0, 0, 33, crc, short, short, len(path), len(extra))
    return head + path + extra
