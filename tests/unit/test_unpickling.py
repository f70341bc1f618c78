"""Pickles that are read without running them: what they may take, and that what is real never comes near."""

from __future__ import annotations

import pickle
import tracemalloc
import zipfile
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
from lawa_exp.formats.inside import inside
from lawa_exp.formats.pickles import Reader


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
