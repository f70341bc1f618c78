"""One checkpoint, whatever it is: recognised by what it holds, not by its name."""

from __future__ import annotations

import re
from pathlib import Path

from lawa_exp.formats.folders import (
    DCP,
    INDEX,
    WHOLE,
    checkpoint_in,
    further_models,
    not_read,
    others_in,
    parts_of,
    why_none,
)
from lawa_exp.formats.names import named
from lawa_exp.formats.safetensors import SafetensorsFile
from lawa_exp.formats.stored import (
    SUFFIXES,
    Checkpoint,
    Damaged,
    Index,
    Region,
    Source,
    TooLarge,
    damaged,
    read_index,
    reading,
    shards_of,
)
from lawa_exp.storage.commit import MANIFEST, Manifest
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import read_json

ADAPTER = "adapter_config.json"  # which PEFT does not open an adapter_model without
SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.)")  # in the name of a part of one of WHOLE


def is_looked_for(name: str) -> bool:
    """Whether libraries open a file of this name as a folder's weights, or as a part or the index of these."""
    return SHARD.sub("", name).removesuffix(INDEX) in WHOLE or name == DCP or name.endswith(".distcp")


def open_checkpoint(path: Path, key: str | None = None, whole: bool = False) -> Checkpoint:
    """The headers of a file or folder; nothing of the tensors is read. UserError says what is wrong with it.

    key: where the state dict is in a PyTorch file or DCP folder, with dots between the levels. whole: with the further
    models and the parts of a folder, else its model alone.
    """
    with reading(path):
        checkpoint = _open(path, key, whole)
    if key is not None and not any(source.keyed for source in checkpoint.sources):
        raise UserError(f"--key={key}: {path} is of safetensors, which hold one state dict; drop --key")
    return checkpoint


def unreadable(path: Path, key: str | None = None) -> str:
    """Why the checkpoint cannot be read; empty where its headers say nothing against it. key: see `open_checkpoint`.

    OSError: the disk or the machine is at fault, and not the checkpoint.
    """
    try:
        open_checkpoint(path, key)
    except (Damaged, TooLarge, FileNotFoundError) as error:
        return " ".join(str(error).split()).removeprefix(f"{path} is ").removeprefix("damaged: ")
    except UserError:  # as of --key, which is told once the model is known
        pass
    return ""


def _open(path: Path, key: str | None, whole: bool) -> Checkpoint:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not path.is_dir():
        config = path.parent / ADAPTER
        is_adapter = path.name in WHOLE and path.stem == "adapter_model" and config.is_file()
        return Checkpoint(path, [open_file(path, None, key)], {ADAPTER: config} if is_adapter else {})
    if (path / DCP).is_file():
        from lawa_exp.formats.dcp import open_dcp  # needs torch

        return open_dcp(path, key)
    sources, indexes = _weights_in(path, _manifest(path), key)
    checkpoint = Checkpoint(path, sources, indexes=indexes)
    if whole:
        _add_the_rest(checkpoint)
    if checkpoint.sources:
        return checkpoint
    has_others = (path / "trajectory").is_dir() or _has_checkpoints(path)
    if not has_others and (why := why_none(path)):
        raise UserError(f"{path} is {why}")
    hint = f"; --trajectory {path} takes those in it" if has_others else ""
    raise UserError(
        f"{path}: no checkpoint in this folder ({', '.join(WHOLE[:2])}, an adapter_model, their shards, or {DCP}){hint}"
    )


def _weights_in(
    folder: Path, manifest: Manifest | None, key: str | None, place: str = ""
) -> tuple[list[Source], dict[str, Index]]:
    """The files that libraries look for in a folder, and their index by its place, if any."""
    for name in WHOLE:
        index = folder / f"{name}{INDEX}"
        if (folder / name).is_file():
            return [open_file(folder / name, manifest, key)], {}
        if index.is_file():
            sources, content = _sharded(index, manifest)
            return sources, {f"{place}{index.name}": content}
    return [], {}


def _add_the_rest(checkpoint: Checkpoint) -> None:
    """Further models and parts, what is copied along, and the names of what is left out."""
    folder, parts = checkpoint.path, parts_of(checkpoint.path)
    more: list[tuple[str, list[Source]]] = [
        (path.stem, [open_file(path, None)]) for path in further_models(folder, {s.path for s in checkpoint.sources})
    ]
    for part in parts:
        sources, indexes = _weights_in(part, None, None, f"{part.name}/")
        more.append((part.name, sources))
        checkpoint.indexes |= indexes
    for name, sources in more:
        checkpoint.sources += sources
        checkpoint.parts |= {source.path: f"{name}/" for source in sources}
    taken = {source.path for source in checkpoint.sources}
    checkpoint.extras, checkpoint.unread = others_in(folder, taken, parts)


def open_file(path: Path, manifest: Manifest | None, key: str | None = None) -> Source:
    """manifest: that of its folder; key: of its state dict."""
    with reading(path):
        return _open_file(path, manifest, key)


def _open_file(path: Path, manifest: Manifest | None, key: str | None) -> Source:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    entry = (manifest or {}).get(path.name)
    size = path.stat().st_size
    if entry and size != entry["bytes"]:
        raise damaged(path, f"{size:,} bytes, {entry['bytes']:,} by its manifest")
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":
        return SafetensorsFile(path, Region(0, size, entry["crc32"], "the file") if entry else None)
    if head[:2] in (b"PK", b"\x80\x02"):
        from lawa_exp.formats.pytorch import TorchFile  # with zipfile and pickle takes milliseconds

        return TorchFile(path, key)
    if path.suffix == ".safetensors":
        raise damaged(path, "it does not begin with a header")
    whose = f", but {it}" if (it := not_read(path)) else ""
    raise Damaged(f"{path} is neither a safetensors file nor one of torch.save{whose}")


def _sharded(index: Path, manifest: Manifest | None) -> tuple[list[Source], Index]:
    """The files that an index names, and its content."""
    content = read_index(index)
    weight_map = content["weight_map"]
    sources = [open_file(file, manifest) for file in shards_of(index)]
    file_of: dict[str, str] = {}
    for source in sources:
        for name in source.tensors:
            if file_of.setdefault(name, source.path.name) != source.path.name:
                raise damaged(index.parent, f"{name} is both in {file_of[name]} and in {source.path.name}")
    for name in weight_map.keys() | file_of.keys():
        if weight_map.get(name) != file_of.get(name):
            raise damaged(index, f"{name} is not in the file that it names")
    return sources, content


def _manifest(folder: Path) -> Manifest | None:
    """A committed folder's manifest; None where there is none of ours."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    with reading(path):
        content: Manifest = read_json(path)
    try:
        ours = all("bytes" in entry and "crc32" in entry for entry in content.values())
    except (AttributeError, TypeError):
        ours = False
    return content if ours else None


def _has_checkpoints(folder: Path) -> bool:
    entries = (p for p in folder.iterdir() if named(p.name).counts)
    return any(checkpoint_in(p) if p.is_dir() else p.name.endswith(SUFFIXES) for p in entries)
