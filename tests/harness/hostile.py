"""Hostile files, made by code: each is a function of a folder, in which the commands then read them.

What would run, were anything run, makes the file CANARY beside the folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

CANARY = "CANARY"
Make = Callable[[Path], object]  # files in this folder
PROTOCOL = b"\x80\x02"
TENSOR = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


class Runs:
    """A pickle that makes the canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch ../{CANARY}",)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def in_key(content: bytes) -> bytes:
    """A dictionary with one entry."""
    return PROTOCOL + b"}" + text("a") + content + b"s."


GADGETS = {
    "os.system": pickle.dumps({"model": {}, "x": Runs()}, 2),
    "os.system of protocol 4": pickle.dumps({"x": Runs()}, 4),
    "eval": in_key(named("builtins", "eval") + text(f"open('../{CANARY}','w')") + b"\x85R"),
    "getattr": in_key(named("builtins", "getattr") + b"(" + named("os", "path") + text("os") + b"tR"),
    "a dotted name": PROTOCOL + b"}\x8c\x01a\x8c\x0bcollections\x8c\x16OrderedDict.__class__.x\x93s.",
    "torch.load": in_key(named("torch.serialization", "load") + text("/etc/passwd") + b"\x85R"),
    "INST": PROTOCOL + b"}" + text("a") + b"(S'touch ../CANARY'\nios\nsystem\ns.",
    "the extension registry": in_key(b"\x82\x01"),
    "a method of the instance": PROTOCOL
    + named("collections", "OrderedDict")
    + b")R}"
    + text("items")
    + named("os", "system")
    + b"sb.",
    "a name with a line break": PROTOCOL + b"}\x8c\x01a\x8c\x1afairseq.dataclass.configs\x8c\x06A\nos\nx\x93s.",
    "a lower-case name of fairseq's": in_key(named("fairseq.dataclass.configs", "os")),
    "numpy objects": in_key(named("numpy", "dtype") + b"(" + text("O8") + b"K\x00K\x01tR"),
    "bytearray(2^31)": in_key(named("__builtin__", "bytearray") + b"J\xff\xff\xff\x7f\x85R"),
}


def tensor_pickle(
    before: bytes = b"",
    after: bytes = b"",
    numel: int = 4,
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
) -> bytes:
    """{"w": a tensor}. before, after: opcodes that leave the stack as it was, and entries."""

    def integers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(pickle.dumps(v, 2)[2:-1] for v in values) + b"t"

    content = PROTOCOL + before + b"}" + text("w") + named("torch._utils", "_rebuild_tensor_v2") + b"(("
    content += text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu")
    content += pickle.dumps(numel, 2)[2:-1] + b"tQK\x00" + integers(shape) + integers(strides) + b"\x89"
    return content + named("collections", "OrderedDict") + b")RtRs" + after + b"."


def zipped(
    path: Path, content: bytes, records: Mapping[str, bytes] | None = None, compressed: int = zipfile.ZIP_STORED
) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content, compress_type=compressed)
        archive.writestr("archive/byteorder", b"little")
        for name, record in {"archive/data/0": bytes(16), **(records or {})}.items():
            archive.writestr(name, record)
        archive.writestr("archive/version", b"3\n")


def legacy(path: Path, content: bytes) -> None:
    head = [0x1950A86A20F9469CFC6C, 1001, {}]
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in head) + content + pickle.dumps([], 2))


def nested(levels: int, inner: bytes = b"N") -> bytes:
    """A tuple of 2^levels values, by a number of bytes that is some of `levels`."""
    return inner + b"2\x86" * levels


NUL = b"\0"
PICKLES: dict[str, Make] = {
    **{f"zip: {n}": lambda w, c=c: zipped(w / "evil.pt", c) for n, c in GADGETS.items()},  # type: ignore[misc]
    **{f"legacy: {n}": lambda w, c=c: legacy(w / "evil.pt", c) for n, c in list(GADGETS.items())[:4]},  # type: ignore[misc]
    "a pickle alone": lambda w: (w / "evil.pt").write_bytes(GADGETS["os.system"]),
    "a memo of 2^28": lambda w: zipped(w / "evil.pt", tensor_pickle(before=b"Nr" + struct.pack("<I", 1 << 28) + b"0")),
    "a memo of 2^31": lambda w: zipped(w / "evil.pt", tensor_pickle(before=b"Nr\xff\xff\xff\x7f0")),
    "a key of 2^40 tuples": lambda w: zipped(w / "evil.pt", PROTOCOL + b"}" + nested(40) + b"Ns."),
    "a key of 2^26 tuples": lambda w: zipped(w / "evil.pt", PROTOCOL + b"}" + nested(26, text("x")) + b"Ns."),
    "a set of 2^40 tuples": lambda w: zipped(
        w / "evil.pt", in_key(named("__builtin__", "set") + b"]" + nested(40) + b"a\x85R")
    ),
    "200,000 keys of one hash": lambda w: zipped(
        w / "evil.pt",
        tensor_pickle(
            after=text("d")
            + b"}("
            + b"".join(b"\x8a\x0c" + (i * (2**61 - 1) + 1).to_bytes(12, "little") + b"N" for i in range(1, 200_001))
            + b"us"
        ),
    ),
    "a key of 1,000,000 values 100,000 times": lambda w: zipped(
        w / "evil.pt",
        tensor_pickle(
            before=b"(" + b"N" * 1_000_000 + b"tq\1" + b"0", after=text("d") + b"}" + b"h\1Ns" * 100_000 + b"s"
        ),
    ),
    "300,000 lists in lists": lambda w: zipped(
        w / "evil.pt", tensor_pickle(after=text("d") + b"]" * 300_000 + b"a" * 299_999 + b"s")
    ),
    "a list in a list 100,000 times": lambda w: zipped(
        w / "evil.pt",
        tensor_pickle(
            before=b"]q\1(" + b"N" * 100_000 + b"e0]q\2(" + b"h\1" * 100_000 + b"e0", after=text("model") + b"h\2s"
        ),
    ),
    "20,000,000 lists": lambda w: zipped(
        w / "evil.pt",
        tensor_pickle(after=text("d") + b"](" + b"]" * 20_000_000 + b"es"),
        compressed=zipfile.ZIP_DEFLATED,
    ),
    "bytes of 2^40": lambda w: zipped(w / "evil.pt", in_key(b"\x8e" + struct.pack("<Q", 1 << 40) + b"x")),
    "a bytearray of 2^33": lambda w: zipped(w / "evil.pt", in_key(b"\x96" + struct.pack("<Q", 1 << 33) + b"x")),
    "a frame of 2^40": lambda w: zipped(w / "evil.pt", b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"}."),
    "a view of 10^12 elements": lambda w: zipped(
        w / "evil.pt",
        tensor_pickle(numel=2_000_000, shape=(1_000_000, 1_000_000), strides=(1, 1)),
        {"archive/data/0": bytes(8_000_000)},
    ),
    "one element 10^12 times": lambda w: zipped(
        w / "evil.pt", tensor_pickle(shape=(1_000_000, 1_000_000), strides=(0, 0))
    ),
    "a shape of 2^62": lambda w: zipped(w / "evil.pt", tensor_pickle(shape=(1 << 62, 4), strides=(0, 1))),
    "a data.pkl of 300 MB": lambda w: zipped(
        w / "evil.pt",
        tensor_pickle(after=text("z") + b"X" + struct.pack("<I", 300_000_000) + NUL * 300_000_000 + b"s"),
        compressed=zipfile.ZIP_DEFLATED,
    ),
    "records outside": lambda w: zipped(
        w / "evil.pt", tensor_pickle(), {f"../../{CANARY}": b"x", f"archive/data/../../../{CANARY}": b"y"}
    ),
    "TorchScript": lambda w: zipped(
        w / "evil.pt", tensor_pickle(), {"archive/constants.pkl": b"x", "archive/code/evil.py": b"import os"}
    ),
    "a FIFO": lambda w: os.mkfifo(w / "evil.pt"),
    "a device": lambda w: (w / "evil.pt").symlink_to("/dev/zero"),
}


def safetensors(path: Path, header: object, body: bytes = bytes(16), length: int | None = None) -> None:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(encoded) if length is None else length).to_bytes(8, "little") + encoded + body)


def entry(**changed: object) -> dict[str, object]:
    return {"w": {**TENSOR, **changed}}


def lists(number: int) -> bytes:
    return b'{"w":{"dtype":"F32","shape":[' + b"[]," * number + b"[]]}}"


HEADERS: dict[str, tuple[object, int]] = {  # with the bytes behind them
    "200,000 lists in lists": (b'{"w":' + b"[" * 200_000 + b"]" * 200_000 + b"}", 16),
    "a negative place": (entry(data_offsets=[-16, 0]), 16),
    "two at one place": ({"w": TENSOR, "v": TENSOR}, 16),
    "beyond the file": (entry(data_offsets=[0, 1600], shape=[400]), 16),
    "the shape NaN": (b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}', 16),
    "a negative shape": (entry(shape=[-1]), 16),
    "a shape of 2^124": (entry(shape=[1 << 62, 1 << 62, 0], data_offsets=[0, 0]), 0),
    "a list": ([1, 2], 16),
    "null": ({"w": None}, 16),
    "a dtype that is a list": (entry(dtype=["F32"]), 16),
    "metadata that is a list": ({"__metadata__": [1], "w": TENSOR}, 16),
    "half a character": (b'{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', 16),
    "noise": (b"{" + bytes(range(128, 256)), 16),
}
SAFETENSORS: dict[str, Make] = {
    **{  # type: ignore[misc]
        name: lambda w, header=header, size=size: safetensors(w / "evil.safetensors", header, bytes(size))
        for name, (header, size) in HEADERS.items()
    },
    "99 MB of lists": lambda w: safetensors(w / "evil.safetensors", lists(33_000_000)),
    "30 MB of lists": lambda w: safetensors(w / "evil.safetensors", lists(10_000_000)),
    "a header of 2^63": lambda w: safetensors(w / "evil.safetensors", entry(), length=1 << 63),
    "a FIFO": lambda w: os.mkfifo(w / "evil.safetensors"),
    "a device": lambda w: (w / "evil.safetensors").symlink_to("/dev/zero"),
}


def index(content: object, more: Make = lambda _: None) -> Make:
    def make(w: Path) -> None:
        (w / "hf").mkdir()
        raw = content if isinstance(content, str) else json.dumps({"metadata": {}, "weight_map": content})
        (w / "hf/model.safetensors.index.json").write_text(raw)
        safetensors(w / "hf/ok.safetensors", entry())
        safetensors(w / "outside.safetensors", entry())
        more(w)

    return make


def folder(more: Make) -> Make:
    def make(w: Path) -> None:
        (w / "hf").mkdir()
        safetensors(w / "hf/model.safetensors", entry())
        (w / "secret.txt").write_text("secret")
        more(w)

    return make


FOLDERS: dict[str, Make] = {
    "a file above": index({"w": "../outside.safetensors"}),
    "an absolute file": index({"w": "/dev/zero"}),
    "a FIFO": index({"w": "f.safetensors"}, lambda w: os.mkfifo(w / "hf/f.safetensors")),
    "a number": index({"w": 5}),
    "a list": index("[1]"),
    "a map that is a list": index('{"weight_map": [1]}'),
    "no map": index("{}"),
    "itself": index({"w": "model.safetensors.index.json"}),
    "100,000 lists in lists": index('{"weight_map": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "100 MB of lists": lambda w: index('{"weight_map": {"a": [' + "[]," * 33_000_000 + "[]]}}")(w),
    "a device as the index": folder(
        lambda w: [
            (w / "hf/model.safetensors").unlink(),
            (w / "hf/model.safetensors.index.json").symlink_to("/dev/zero"),
        ]
    ),
    "a tokenizer that is a link": folder(lambda w: (w / "hf/tokenizer.model").symlink_to("../secret.txt")),
    "a configuration that is a link": folder(lambda w: (w / "hf/config.json").symlink_to("/etc/passwd")),
}


def distributed(change: Callable[[Any], object] = lambda _: None, raw: bytes | None = None) -> Make:
    """A folder of torch.distributed.checkpoint, with its metadata changed."""

    def make(w: Path) -> None:
        import torch
        import torch.distributed.checkpoint as dcp

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save({"model": {"w": torch.arange(4.0)}, "n": [1, 2]}, checkpoint_id=w / "hf")
        shutil.copy(w / "hf/__0_0.distcp", w / "outside.bin")
        file = w / "hf/.metadata"
        metadata = pickle.loads(file.read_bytes())
        change(metadata)
        file.write_bytes(raw or pickle.dumps(metadata))

    return make


def stored(**changed: Any) -> Callable[[Any], object]:
    return lambda m: m.storage_data.update({k: dataclasses.replace(s, **changed) for k, s in m.storage_data.items()})


def longer(metadata: Any) -> None:
    metadata.planner_data = {k: (*v[:-1], 10**9) if k.startswith("n") else v for k, v in metadata.planner_data.items()}


def larger(metadata: Any) -> None:
    import torch

    metadata.state_dict_metadata["model.w"].size = torch.Size([1 << 33])


def as_code(w: Path) -> None:
    """An entry that is no tensor and whose bytes are a pickle."""
    distributed()(w)
    data, file = w / "hf/__0_0.distcp", w / "hf/.metadata"
    metadata, evil = pickle.loads(file.read_bytes()), pickle.dumps(Runs(), 2)
    place = {"offset": data.stat().st_size, "length": len(evil)}
    for key, where in list(metadata.storage_data.items()):
        if key.fqn.startswith("n"):
            metadata.storage_data[key] = dataclasses.replace(where, **place)
    data.write_bytes(data.read_bytes() + evil)
    file.write_bytes(pickle.dumps(metadata))


DISTRIBUTED: dict[str, Make] = {
    "os.system in the metadata": distributed(raw=GADGETS["os.system"]),
    "a memo of 2^28": distributed(raw=PROTOCOL + b"Nr" + struct.pack("<I", 1 << 28) + b"0}."),
    "a file above": distributed(stored(relative_path="../outside.bin")),
    "a device": distributed(stored(relative_path="/dev/zero")),
    "a tensor of 2^33": distributed(larger),
    "element 10^9 of a list": distributed(longer),
    "places that are none": distributed(stored(offset=-5, length=1 << 62)),
    "a pickle as an entry": as_code,
}
