"""Pickles that are read without running them: what they may take, and that what is real never comes near."""

from __future__ import annotations

import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from harness.hostile import PROTOCOL, named
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from lawa_exp.formats import unpickling
from lawa_exp.formats.checkpoint import open_file
from lawa_exp.formats.inside import inside
from lawa_exp.formats.pickles import Reader
from lawa_exp.system.errors import UserError


def metadata(tensors: int, chunks: int) -> Metadata:
    """As torch.distributed.checkpoint writes it for tensors that are cut into chunks."""
    sizes = [(torch.Size([c, 0]), torch.Size([1, 16])) for c in range(chunks)]
    names = [f"model.layers.{t}.weight" for t in range(tensors)]
    entries = {
        name: TensorStorageMetadata(
            TensorProperties(), torch.Size([chunks, 16]), [ChunkStorageMetadata(*size) for size in sizes]
        )
        for name in names
    }
    stored = {
        MetadataIndex(name, sizes[c][0], c): _StorageInfo(f"__{c}_0.distcp", 100 * c, 100)
        for name in names
        for c in range(chunks)
    }
    return Metadata(entries, {name: ("model", name) for name in names}, stored, StorageMeta())


def test_what_is_real_needs_no_more_than_its_bytes_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no number of tensors or chunks is too large."""
    from lawa_exp.formats.dcp import MetadataReader

    monkeypatch.setattr(unpickling, "FREE", 100)
    made = metadata(tensors=5, chunks=300)
    for protocol in (2, 4):
        found = MetadataReader(pickle.dumps(made, protocol)).load()
        assert found.storage_data == made.storage_data and found.state_dict_metadata == made.state_dict_metadata
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(50)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    assert len(Reader(zipfile.ZipFile(tmp_path / "a.pt").read("a/data.pkl")).load()["model"]) == 100


BOMBS = {  # what is looked up first, and what is repeated
    "lists": (b"N", b"]"),
    "dictionaries": (b"N", b"}"),
    "sets": (b"N", b"\x8f"),
    "tuples": (b"N", b"N\x85\x85"),
    "calls": (named("collections", "OrderedDict"), b"h\x01)R"),
    "objects": (named("a", "B"), b"h\x01)\x81"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_more_values_than_bytes_allow_are_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickling, "FREE", 1000)
    first, bomb = BOMBS[kind]
    with pytest.raises(pickle.UnpicklingError, match=r"[\d,]+ values in its first [\d,]+ bytes"):
        Reader(PROTOCOL + b"(" + first + b"q\x01" + bomb * 2000 + b"l.").load()


M = 2**61 - 1  # the hash of a number is its remainder
SAME = {  # keys of one hash
    "numbers": [1 + M * i for i in range(1, 1001)],
    "tuples": [(1 + M * i,) for i in range(1000)],
    "complex numbers": [complex(1000003 * i, -i) for i in range(2, 1000)],
    "sets": [frozenset([1 + M * i]) for i in range(1000)],
    "long tuples": [(*[0] * 2000, 1 + M * i) for i in range(100)],
}
IN = {
    "a dictionary": dict.fromkeys,
    "a set": set,
    "an ordered dictionary": lambda keys: Called(OrderedDict, [(key, None) for key in keys]),
    "a set that is called": lambda keys: Called(set, keys),
    "a class that is called": lambda keys: Called(frozenset, keys),
}


class Called:
    """Pickled as a call."""

    def __init__(self, function: object, argument: object) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("holder", IN)
@pytest.mark.parametrize("keys", SAME)
@pytest.mark.parametrize("protocol", [2, 4])
def test_keys_of_one_hash_are_refused(
    protocol: int, keys: str, holder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is compared with all before it: a few megabytes of them would take days."""
    monkeypatch.setattr(unpickling, "FREE", 5000)
    assert len(set(map(hash, SAME[keys]))) == 1
    with pytest.raises(
        pickle.UnpicklingError, match=r"values in its first [\d,]+ bytes, with comparisons of their keys"
    ):
        Reader(pickle.dumps({"a": IN[holder](SAME[keys])}, protocol)).load()


def test_one_large_key_again_and_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuple is hashed each time, whatever is in it."""
    monkeypatch.setattr(unpickling, "FREE", 5000)
    key = b"(" + b"N" * 10_000 + b"tq\x010"
    with pytest.raises(pickle.UnpicklingError, match="comparisons of their keys"):
        Reader(PROTOCOL + key + b"}" + b"h\x01Ns" * 100 + b".").load()


def test_many_keys_that_are_no_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As real files have them: few of one hash in one dictionary, and the same in many."""
    monkeypatch.setattr(unpickling, "FREE", 100)
    content = {
        "pairs": {(i, j): i for i in range(100) for j in range(100)},
        "each": [{(0, 0): i, -1: 1, -2: 2, 1.5: None, None: True} for i in range(1000)],
        "numbers": OrderedDict((i, i) for i in range(1000)),
    }
    for protocol in (2, 4):
        assert Reader(pickle.dumps(content, protocol)).load() == content


def test_a_limit_is_named_and_nothing_is_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    torch.save({"model": {"w": torch.ones(2)}, "pairs": tuple((i, i) for i in range(60_000))}, path)
    assert set(open_file(path, None).tensors) == {"w"}
    monkeypatch.setattr(unpickling, "LARGEST_TUPLE", 100_000)
    with pytest.raises(UserError) as refusal:
        open_file(path, None)
    what = "a tuple of 180,000 values, with those of the tuples in it (at most 100,000)"
    assert str(refusal.value) == f"{path} is not read: it holds {what}"


def test_a_sparse_file_takes_no_memory_when_a_folder_is_looked_at(tmp_path: Path) -> None:
    """A string of 1.5 GB in the older format, of which the disk holds nothing."""
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    with (tmp_path / "a.pt").open("wb") as file:
        file.write(head + PROTOCOL + b"X" + (3 << 29).to_bytes(4, "little"))
        file.truncate(1 << 31)
    tracemalloc.start()
    try:
        assert not inside(tmp_path / "a.pt").counts
        assert tracemalloc.get_traced_memory()[1] < 1 << 27
    finally:
        tracemalloc.stop()
