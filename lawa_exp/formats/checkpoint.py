"""One checkpoint, whatever it is: recognised by what it holds, not by its name."""

from __future__ import annotations

import re
from pathlib import Path

from lawa_exp.formats.about import FILE
from lawa_exp.formats.safetensors import SafetensorsFile
from lawa_exp.formats.stored import Checkpoint, Region, Source, damaged, read_index, reading, shards_of
from lawa_exp.storage.commit import MANIFEST, Manifest
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import LARGE, read_json, size_text

WHOLE = (  # a folder's only file of weights: transformers', diffusers', open_clip's, PEFT's
    *("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin"),
)
ADAPTER = "adapter_config.json"  # which PEFT does not open an adapter_model without
INDEX = ".index.json"  # of a folder's shards: {"weight_map": {tensor: file}}
CARRIED = {".json", ".txt", ".model", ".py", ".jinja", ".tiktoken", ".bpe"}  # configuration and tokenizer files
NOT_CARRIED = {MANIFEST, FILE, "trainer_state.json", "optimizer.json"}
DCP = ".metadata"  # of torch.distributed.checkpoint
SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.)")  # in the name of a part of one of WHOLE


def is_looked_for(name: str) -> bool:
    """Whether libraries open a file of this name as a folder's weights, or as a part or the index of these."""
    return SHARD.sub("", name).removesuffix(INDEX) in WHOLE or name == DCP or name.endswith(".distcp")


def open_checkpoint(path: Path, key: str | None = None) -> Checkpoint:
    """The headers of a file or folder; nothing of the tensors is read. UserError says what is wrong with it.

    key: where the state dict is in a PyTorch file or DCP folder, with dots between the levels.
    """
    with reading(path):
        checkpoint = _open(path, key)
    if key is not None and not any(source.keyed for source in checkpoint.sources):
        raise UserError(f"--key={key}: {path} is of safetensors, which hold one state dict; drop --key")
    return checkpoint


def _open(path: Path, key: str | None) -> Checkpoint:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not path.is_dir():
        config = path.parent / ADAPTER
        extras = [config] if path.name in WHOLE and path.stem == "adapter_model" and config.is_file() else []
        return Checkpoint(path, [open_file(path, None, key)], extras)
    if (path / DCP).is_file():
        from lawa_exp.formats.dcp import open_dcp  # needs torch

        return open_dcp(path, key)
    manifest = _manifest(path)
    carried = [p for p in sorted(path.iterdir()) if p.suffix in CARRIED and p.is_file() and p.name not in NOT_CARRIED]
    for file in carried:
        _check_carried(file)
    for name in WHOLE:
        index = path / f"{name}{INDEX}"
        if (path / name).is_file():
            extras = [p for p in carried if not p.name.endswith(INDEX)]
            return Checkpoint(path, [open_file(path / name, manifest, key)], extras)
        if index.is_file():
            return _sharded(path, index, manifest, [p for p in carried if not p.name.endswith(INDEX)])
    hint = "; for a run or its snapshots: --trajectory" if (path / "trajectory").is_dir() or _has_steps(path) else ""
    raise UserError(
        f"{path}: no checkpoint in this folder ({', '.join(WHOLE[:2])}, an adapter_model, their shards, or {DCP}){hint}"
    )


def _check_carried(file: Path) -> None:
    """UserError: it would be copied from elsewhere, or is too large for what it is.

    In the cache of the Hugging Face hub a model's files are links into its folder blobs/.
    """
    places = [file.parent.resolve(), file.parent.resolve().parents[1] / "blobs"]
    if file.is_symlink() and not any(file.resolve().is_relative_to(place) for place in places):
        raise UserError(f"{file} is a link that leads out of its folder, and is not copied: put the file itself there")
    if file.stat().st_size > LARGE:
        raise UserError(f"{file} has {size_text(file.stat().st_size)}, expected at most {size_text(LARGE)}")


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
    raise UserError(f"{path} is neither a safetensors file nor one of torch.save")


def _sharded(path: Path, index: Path, manifest: Manifest | None, extras: list[Path]) -> Checkpoint:
    content = read_index(index)
    weight_map = content["weight_map"]
    sources = [open_file(file, manifest) for file in shards_of(index)]
    file_of: dict[str, str] = {}
    for source in sources:
        for name in source.tensors:
            if file_of.setdefault(name, source.path.name) != source.path.name:
                raise damaged(path, f"{name} is both in {file_of[name]} and in {source.path.name}")
    for name in weight_map.keys() | file_of.keys():
        if weight_map.get(name) != file_of.get(name):
            raise damaged(index, f"{name} is not in the file that it names")
    return Checkpoint(path, sources, extras, content, index.name)


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


def _has_steps(folder: Path) -> bool:
    return any(folder.glob("step_*"))
