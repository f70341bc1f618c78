"""Folders of torch.distributed.checkpoint: read and written by torch, by way of a PyTorch file of their weights.

torch's own reader unpickles whatever `.metadata` and the entries that are no tensors say; here both are restricted.
An optimizer's state is kept but zeroed (what a new optimizer has): a load asks for every name that its template has.
"""

from __future__ import annotations

import io
import logging
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint._traverse import OBJ_PATH, set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem, WriteItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from lawa_exp.formats.classes import USUAL
from lawa_exp.formats.copies import Copies
from lawa_exp.formats.dtypes import SIZES
from lawa_exp.formats.pickles import Reader, Refused
from lawa_exp.formats.pytorch import OPTIMIZER, TorchFile
from lawa_exp.formats.state_dicts import Finder, text_of
from lawa_exp.formats.stored import Checkpoint, count, damaged, reading
from lawa_exp.formats.unpickling import Bounded, check_bounded
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import open_regular, read_small

Value = TypeVar("Value")
LOADED: Finder[torch.Tensor] = Finder(
    lambda value: value if isinstance(value, torch.Tensor) else None,
    lambda tensor: tensor.numel() if tensor.is_floating_point() else 0,
)
METADATA = 1 << 27  # bytes of a folder's .metadata: of a million chunks of tensors
ALLOWED = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(("torch.distributed.checkpoint.metadata", name) for name in (
        "Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties",
        "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING",
    )),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "PurePosixPath")),
    *(("torch", dtype) for dtype in SIZES),
}  # fmt: skip


class Fixed(type):
    """The type of stand-ins, which make what they stand for, and which a pickle cannot change."""

    made: Callable[..., object]

    def __call__(cls, *args: object) -> object:
        return cls.made(*args)

    def __setstate__(cls, state: object) -> None:
        raise pickle.UnpicklingError("a change of what it names")


def stand_in(named: type) -> type:
    """For a class or function: a type, as pickle asks of what it makes an instance of without a call."""
    new = {"__new__": lambda _, *args: named.__new__(named, *args)}
    return Fixed(named.__name__, (), {"made": staticmethod(named), **new})


class MetadataReader(Bounded):
    def find_class(self, module: str, name: str) -> type | torch.dtype:
        if (module, name) not in ALLOWED:
            raise UserError(f"it holds {module}.{name}, which is not loaded")
        named = super().find_class(module, name)
        return named if isinstance(named, torch.dtype) else stand_in(named)


class FolderReader(dcp.FileSystemReader):
    """Reads the metadata once, which takes seconds where there are many chunks."""

    known: Metadata | None = None

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        if self.known is None:
            metadata: Metadata = MetadataReader(read_small(Path(self.path) / ".metadata", METADATA)).load()
            check_inside(metadata, Path(self.path))
            metadata.storage_meta = getattr(metadata, "storage_meta", None) or dcp.metadata.StorageMeta()
            self.known = metadata
        assert self.known.storage_meta
        self.known.storage_meta.load_id = self.load_id
        return self.known


@dataclass(frozen=True)
class Carried:
    """An object that is not made: the file of torch.save that it is in."""

    content: bytes


class EverythingPlanner(_EmptyStateDictLoadPlanner):
    """carried: the classes and functions of the objects that are not made."""

    def __init__(self) -> None:
        super().__init__()
        self.carried: list[str] = []

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        check_bounded(value, read_item.storage_index.fqn)
        content = value.read()
        made: object
        try:
            made = torch.load(io.BytesIO(content), weights_only=True)
        except pickle.UnpicklingError:
            self.carried += [name for name in names_in(content) if name not in self.carried]
            made = Carried(content)
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], made)


class CarryingPlanner(dcp.DefaultSavePlanner):
    def transform_object(self, write_item: WriteItem, object: object) -> object:
        return (
            io.BytesIO(object.content) if isinstance(object, Carried) else super().transform_object(write_item, object)
        )


def names_in(content: bytes) -> list[str]:
    """What a file of torch.save names besides tensors and plain data. UserError: something that is not carried."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    reader = Reader(archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl"))))
    try:
        reader.load()
    except Refused as refused:
        raise UserError(f"it holds {refused}, which is not read") from None
    return [".".join(address) for address in reader.classes if not USUAL.match(address[0])]


def open_dcp(path: Path, key: str | None = None) -> Checkpoint:
    """Copies the folder's weights into a temporary PyTorch file, which goes with the checkpoint.

    key: where they are, with dots between the levels.
    """
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    try:
        with reading(path):
            reader = FolderReader(path)
            metadata = reader.read_metadata()
            names = weights_of(metadata, key)
            tensors = {
                fqn: torch.empty(entry.size, dtype=entry.properties.dtype)
                for fqn, entry in metadata.state_dict_metadata.items()
                if fqn in names and isinstance(entry, TensorStorageMetadata)
            }
            _check(metadata, names, path)
            _load(tensors, reader, path, DefaultLoadPlanner())
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    folder = tempfile.TemporaryDirectory(prefix="lawa_exp-")
    file = Path(folder.name) / "weights.pt"
    torch.save({names[fqn]: t for fqn, t in tensors.items()}, file)
    source = TorchFile(file)
    source.keep = folder  # until the source is dropped

    def convert(output: Path) -> list[str]:
        averages = torch.load(output / file.name, weights_only=True)
        state: dict[str, object] = {}
        planner = EverythingPlanner()
        with reading(path):
            _load(state, reader, path, planner)
        source.carried += planner.carried
        flat, where = flatten_state_dict(state)
        own = set(map(id, averages.values()))
        for fqn, value in flat.items():
            if fqn in names:
                _set(state, where[fqn], averages[names[fqn]])
            elif isinstance(value, torch.Tensor) and _is_optimizer_state(fqn, flat):
                value.zero_()
                own.add(id(value))
                source.emptied.append(OPTIMIZER)
        left_out = _second_copies(averages).drop(state)
        source.kept += map(text_of, LOADED.others(state, lambda tensor: id(tensor) in own))
        (output / file.name).unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this is one process
            dcp.save(state, checkpoint_id=output, planner=CarryingPlanner())
        return left_out

    return Checkpoint(path, [source], convert=convert)


def check_inside(metadata: Metadata, folder: Path) -> None:
    """UserError: it names files elsewhere, is of more than the folder holds, or has lists longer than itself."""
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    whole = True
    for index, stored in metadata.storage_data.items():
        place = Path(stored.relative_path)
        if ".." in place.parts or not (folder / place).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{folder} names a file outside of it: {stored.relative_path}")
        if type(stored.offset) is not int or type(stored.length) is not int or min(stored.offset, stored.length) < 0:
            raise damaged(folder, f"the place of {index.fqn} cannot be read")
        whole = whole and (folder / place).is_file()  # one that is missing is named later
    for fqn, entry in metadata.state_dict_metadata.items():
        if not whole or not isinstance(entry, TensorStorageMetadata):
            continue
        if entry.size.numel() * entry.properties.dtype.itemsize > size:
            raise damaged(folder, f"{fqn} is of {entry.size.numel():,} elements, more than its files hold")
    most = len(metadata.state_dict_metadata)
    for fqn, path in (metadata.planner_data or {}).items():
        if any(isinstance(part, int) and not 0 <= part < most for part in path):
            raise damaged(folder, f"{fqn} is element {max(p for p in path if isinstance(p, int)):,} of a list")


def _second_copies(averages: Mapping[str, torch.Tensor]) -> Copies:
    own = {id(tensor) for tensor in averages.values()}

    def shape_of(value: object) -> tuple[int, ...] | None:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or id(value) in own:
            return None
        return tuple(value.shape)

    return Copies({n: tuple(t.shape) for n, t in averages.items() if t.is_floating_point()}, shape_of)


def _check(metadata: Metadata, names: Mapping[str, str], folder: Path) -> None:
    """The CRCs of what is averaged, where it lies in zip files of torch.save: torch does not look at them."""
    for index, stored in (metadata.storage_data or {}).items():
        if index.fqn not in names:
            continue
        path = folder / stored.relative_path
        if not path.is_file():
            raise damaged(path, "the file is missing")
        if stored.offset + stored.length > path.stat().st_size:
            raise damaged(path, f"{index.fqn} is cut short")
        with open_regular(path) as file:
            file.seek(stored.offset)
            entry = file.read(stored.length)
        with reading(path):
            if entry[:2] == b"PK" and zipfile.ZipFile(io.BytesIO(entry)).testzip() is not None:
                raise damaged(path, f"{index.fqn} does not have its checksum")


def weights_of(metadata: Metadata, key: str | None) -> dict[str, str]:
    """The entries that are averaged, with their names in the model. UserError: where they are is not clear."""
    paths = metadata.planner_data or {}
    top: dict[object, object] = {}
    for fqn, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            *parents, last = paths.get(fqn, (fqn,))
            inner = top
            for part in parents:
                inner = inner.setdefault(part, {})  # type: ignore[assignment]
            inner[last] = fqn
    finder = Finder(lambda value: value if isinstance(value, str) else None, lambda fqn: _floats(metadata, fqn))
    return {fqn: name for name, fqn in finder.find(top, key).tensors.items()}


def _floats(metadata: Metadata, fqn: str) -> int:
    entry = metadata.state_dict_metadata[fqn]
    assert isinstance(entry, TensorStorageMetadata)
    return count(tuple(entry.size)) if entry.properties.dtype.is_floating_point else 0


def _is_optimizer_state(fqn: str, flat: Mapping[str, object]) -> bool:
    before, state, _ = fqn.partition("state.")
    return bool(state) and any(other.startswith(f"{before}param_groups") for other in flat)


def _load(state: dict[str, Value], reader: FolderReader, path: Path, planner: DefaultLoadPlanner) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _load_state_dict(state, storage_reader=reader, planner=planner, no_dist=True)
        except CheckpointException as error:  # no Exception itself; it may hold an interrupt
            causes = [cause for cause, _ in error.failures.values()]
            if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
                raise KeyboardInterrupt from None
            raise damaged(path, " ".join(str(causes[0] if causes else error).split())[:200]) from None


def _set(state: dict[str, object], path: OBJ_PATH, value: torch.Tensor) -> None:
    inner: Any = state  # mappings in mappings, or in lists, as `flatten_state_dict` went through them
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
