"""safetensors files, written byte for byte alike for the same tensors.

Our own writer because the library's orders its metadata at random; its files and ours open in each other.
Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, the data.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lawa_exp.formats.dtypes import SIZES
from lawa_exp.formats.safetensors import SafetensorsFile
from lawa_exp.formats.stored import Place, count, extent, shards_of

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Kind:
    """What a file says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def kind_of(tensor: Tensor) -> Kind:
    return Kind(tensor.dtype, tuple(tensor.shape))


def header_of(kinds: Mapping[str, Kind], metadata: Mapping[str, str] | None = None) -> tuple[bytes, dict[str, int]]:
    """The bytes before the data, and where each tensor's begin in the file; they are in the order of their names."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    begins: dict[str, int] = {}
    end = 0
    for name in sorted(kinds):
        begins[name], end = end, end + kinds[name].bytes
        header[name] = {
            "dtype": DTYPES[kinds[name].dtype],
            "shape": list(kinds[name].shape),
            "data_offsets": [begins[name], end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    encoded = len(encoded).to_bytes(8, "little") + encoded
    return encoded, {name: len(encoded) + begin for name, begin in begins.items()}


def in_files(stem: str, kinds: Mapping[str, Kind], limit: int) -> dict[str, list[str]]:
    """The names of the tensors of each file: one, or several of at most `limit` bytes (a larger tensor has its own).

    Several are named as Hugging Face's, model-00001-of-00002.safetensors, and need `index_of` in the same folder.
    """
    groups: list[list[str]] = [[]]
    held = 0
    for name in sorted(kinds):
        if groups[-1] and held + kinds[name].bytes > limit:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += kinds[name].bytes
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    return {f"{stem}-{i:05d}-of-{len(groups):05d}.safetensors": names for i, names in enumerate(groups, 1)}


def index_of(files: Mapping[str, list[str]], kinds: Mapping[str, Kind]) -> str:
    """The content of `stem.safetensors.index.json`, as Hugging Face reads it."""
    where = {name: file.rpartition("/")[2] for file, names in files.items() for name in names}
    total = {"total_size": sum(kind.bytes for kind in kinds.values())}
    return json.dumps({"metadata": total, "weight_map": where}, indent=2, sort_keys=True) + "\n"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes the tensors, in the order of their names. metadata: further texts of the header."""
    header, _ = header_of({name: kind_of(t) for name, t in tensors.items()}, metadata)
    with path.open("wb") as file:
        file.write(header)
        for name in sorted(tensors):
            file.write(bytes_of(tensors[name]))


def bytes_of(tensor: Tensor) -> memoryview:
    """Its content, row-major, copied only where it is elsewhere or not contiguous."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def stored(folder: Path, stem: str = "model") -> list[Path]:
    """The files of `stem` in a committed folder: one, or the shards that its index names. Empty: there are none."""
    whole = folder / f"{stem}.safetensors"
    if whole.is_file():
        return [whole]
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return []
    return shards_of(index)


def map_stored(folder: Path, stem: str = "model") -> dict[str, Tensor]:
    """All tensors of `stem` in a committed folder, mapped as `map_tensors` does."""
    files = stored(folder, stem)
    if not files:
        raise ValueError(f"{folder} has no {stem}.safetensors")
    return {name: tensor for file in files for name, tensor in map_tensors(file).items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, in memory of their own. UserError names a file that is no whole safetensors file."""
    return {name: t.clone() for name, t in map_tensors(path).items()}


def map_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, in its mapped pages: memory that the system takes back and reads anew as it must.

    What is written to them stays with this process. UserError as in `read_tensors`.
    """
    return map_places(path, SafetensorsFile(path).tensors)


def map_places(path: Path, places: Mapping[str, Place]) -> dict[str, Tensor]:
    """The tensors at checked places of a file, in its mapped pages."""
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return {name: _mapped(pages, place) for name, place in places.items()}


def _mapped(pages: mmap.mmap, place: Place) -> Tensor:
    """The tensor at `place`; a copy where the file does not align it."""
    dtype, size = getattr(torch, place.dtype), SIZES[place.dtype]
    if not count(place.shape):
        return torch.empty(place.shape, dtype=dtype)
    reach = extent(place)
    if place.offset % size:
        flat = torch.frombuffer(bytearray(pages[place.offset : place.offset + reach * size]), dtype=dtype)
    else:
        flat = torch.frombuffer(pages, dtype=dtype, count=reach, offset=place.offset)
    return flat.as_strided(place.shape, place.strides)
