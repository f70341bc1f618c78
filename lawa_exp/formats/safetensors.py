"""safetensors files: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, the data.

https://github.com/huggingface/safetensors, "Format". They hold no checksum: a header that does not fit the file is
found, a flipped bit in the data is not (unless its folder has a manifest.json, as in our own runs).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from lawa_exp.formats.dtypes import FLOATS, SIZES
from lawa_exp.formats.stored import ABOUT, Place, Region, contiguous, count, damaged
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import SMALL

NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E8M0": "float8_e8m0fnu",
}
WRITTEN = {dtype: name for name, dtype in NAMES.items()}
FORMAT = {"format": "pt"}  # without it accelerate refuses a file that has metadata
LONGEST_HEADER = SMALL  # bytes; the library's limit is 100 MB, of which JSON can take gigabytes


class SafetensorsFile:
    """Reads the header. UserError names the file, and the tensor where there is one."""

    def __init__(self, path: Path, region: Region | None = None) -> None:
        """region: the whole file's, where its checksum is known: in a folder that a training of ours has committed."""
        self.path, self.keyed, self.is_ours = path, False, region is not None
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise damaged(path, f"{size:,} bytes, and its header alone would take {length + 8:,}: cut short?")
            if length > LONGEST_HEADER:
                raise damaged(path, f"a header of {length:,} bytes")
            try:
                header = json.loads(file.read(length).decode())
                self.metadata = header.pop("__metadata__", None)
                entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
                metadata = {} if self.metadata is None else self.metadata
                for text in [*header, *metadata.keys(), *metadata.values()]:
                    text.encode()  # all strings, and of Unicode
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise damaged(path, "its header cannot be read") from None
        self.ordered_names = list(header)
        self.tensors: dict[str, Place] = {}
        end = 0
        for name, entry in entries:
            place, end = self._place(name, entry, end, 8 + length, region)
            self.tensors[name] = place
        if 8 + length + end != size:
            raise damaged(path, f"{size:,} bytes, but {8 + length + end:,} by its header: cut short?")

    def _place(
        self, name: str, entry: Mapping[str, object], begin: int, base: int, region: Region | None
    ) -> tuple[Place, int]:
        code, sizes, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if (
            not isinstance(code, str)
            or not isinstance(sizes, list)
            or not isinstance(offsets, list)
            or len(offsets) != 2
            or not all(type(n) is int and 0 <= n < 1 << 63 for n in (*sizes, *offsets))
        ):
            raise damaged(self.path, f"the header's entry of {name} cannot be read")
        if code not in NAMES:
            raise UserError(f"{self.path}: {name} has dtype {code}; expected {', '.join(NAMES)}")
        dtype, shape, (first, last) = NAMES[code], tuple(sizes), offsets
        if count(tuple(max(n, 1) for n in shape)) * SIZES[dtype] >= 1 << 63:  # empty, with strides beyond an int64
            raise damaged(self.path, f"the header's entry of {name} has the shape {list(shape)}")
        if first != begin or last - first != count(shape) * SIZES[dtype]:
            raise damaged(self.path, f"the header's entry of {name} does not fit its shape and place")
        return Place(base + first, dtype, shape, contiguous(shape), region), last

    def describe(self, about: str) -> None:
        if not self.is_ours:  # else the bytes are those of the run's own average, and a file next to it says so
            self.metadata = {**(self.metadata or FORMAT), ABOUT: about}

    def writer(self, dtype: str | None) -> SafetensorsWriter:
        return SafetensorsWriter(self, dtype)

    def forget(self) -> None:
        self.metadata, self.ordered_names = None, []


class SafetensorsWriter:
    """The same names in the same order, with the same metadata."""

    def __init__(self, source: SafetensorsFile, dtype: str | None) -> None:
        self.name = source.path.name
        self.copies: list[tuple[str, Place, Place]] = []
        self.beneath: list[tuple[str, Place, Place]] = []
        self.regions: list[Region] = []
        self.is_described = not source.is_ours
        self.left_out: list[str] = []
        self.carried: list[str] = []
        self.others: list[str] = []
        self.emptied: list[str] = []
        self.kept: list[str] = []
        dtypes = {n: dtype if dtype and p.dtype in FLOATS else p.dtype for n, p in source.tensors.items()}
        names = list(source.tensors)
        if dtype:
            names.sort(key=lambda n: -SIZES[dtypes[n]])  # each type stays aligned to its size
        offsets, end = {}, 0
        for name in names:
            begin = end
            end += count(source.tensors[name].shape) * SIZES[dtypes[name]]
            offsets[name] = begin, end
        header: dict[str, object] = {} if source.metadata is None else {"__metadata__": source.metadata}
        for name in names if dtype else source.ordered_names:
            shape = list(source.tensors[name].shape)
            header[name] = {"dtype": WRITTEN[dtypes[name]], "shape": shape, "data_offsets": list(offsets[name])}
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        self.head = len(encoded).to_bytes(8, "little") + encoded
        self.size = len(self.head) + end
        self.places = {
            n: Place(len(self.head) + offsets[n][0], dtypes[n], p.shape, p.strides) for n, p in source.tensors.items()
        }

    def finish(self, write: Callable[[int, bytes], None]) -> None:
        write(0, self.head)
