"""A folder of checkpoints that is no run of ours: which step each is of, and its tensors. Nothing is written there."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lawa_exp.checkpoint.tensors import map_tensors
from lawa_exp.config import UserError

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
ENDINGS = (".safetensors", *PICKLED)
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")  # of sharded Hugging Face folders
WHOLE = ("model.safetensors", "pytorch_model.bin")
INSIDE = ("model", "state_dict", "model_state_dict", "module")  # where a PyTorch checkpoint keeps its weights
PREFIXES = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before names


def find_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints in `folder` by their step, ascending; other files are passed over.

    UserError: there is none, a name holds no number, or two are of one step.
    """
    found: dict[int, Path] = {}
    if not folder.is_dir():
        raise UserError(f"RUN={folder}: no such folder")
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (checkpoint_file(path) if path.is_dir() else path.suffix in ENDINGS):
            continue
        step = step_in(path.name)
        if step is None:
            raise UserError(f"{path}: no step number in its name (as in ckpt_1000.pt or step_1000/)")
        if step in found:
            raise UserError(f"{path} and {found[step].name} are both of step {step:,}; leave one of them in the folder")
        found[step] = path
    if not found:
        raise UserError(f"RUN={folder}: no checkpoints there, files ({', '.join(ENDINGS)}) or folders of them")
    return dict(sorted(found.items()))


def step_in(name: str) -> int | None:
    """The number after `step`, `iter` or `update`; else the last number of the name."""
    marked = re.findall(r"(?:step|iter|update)s?[-_=]?(\d+)", name, re.IGNORECASE)
    numbers = marked or re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


def checkpoint_file(folder: Path) -> Path | None:
    """The file of a folder that holds its weights, or the index of several; None where that is not clear."""
    for name in (*INDICES, *WHOLE):
        if (folder / name).is_file():
            return folder / name
    files = [p for p in sorted(folder.iterdir()) if p.suffix in ENDINGS]
    return files[0] if len(files) == 1 else None


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights by name, mapped where the format allows it. UserError names a file that cannot be read."""
    if path.is_dir():
        inside = checkpoint_file(path)
        assert inside, path
        path = inside
    try:
        if path.name in INDICES:
            shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
            return {name: t for shard in shards for name, t in read_checkpoint(path.parent / shard).items()}
        if path.suffix == ".safetensors":
            return without_prefixes(map_tensors(path))
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        return without_prefixes(weights_in(content, path))
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} cannot be read: {reason}") from None


def weights_in(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict of a PyTorch checkpoint: itself, or under one of `INSIDE`."""
    if isinstance(content, Mapping):
        inner = next((content[key] for key in INSIDE if isinstance(content.get(key), Mapping)), content)
        tensors = {str(name): t for name, t in inner.items() if isinstance(t, Tensor)}
        if tensors:
            return tensors
    raise UserError(f"{path} holds no state dict, neither as it is nor under {', '.join(INSIDE)}")


def without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes that all of them have."""
    for prefix in PREFIXES * 2:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
    return tensors


class Fitted:
    """Reads checkpoints as the tensors of `own`, names and shapes alike; others they have are in `left_out`.

    known: names beside those of `own` that may be there without a word (of tied weights the others). what: whose
    tensors `own` are, for the UserError that names one that is missing or has another shape.
    """

    def __init__(self, own: Mapping[str, Tensor], known: Iterable[str], what: str) -> None:
        self.own, self.known, self.what = own, {*own, *known}, what
        self.left_out: set[str] = set()

    def __call__(self, path: Path) -> dict[str, Tensor]:
        tensors = read_checkpoint(path)
        for name, own in self.own.items():
            if name not in tensors:
                raise UserError(f"{path} does not fit {self.what}: no {name}, but {', '.join(list(tensors)[:3])}, ...")
            if tensors[name].shape != own.shape:
                shapes = f"{name} is {list(tensors[name].shape)}, there {list(own.shape)}"
                raise UserError(f"{path} does not fit {self.what}: {shapes}")
        self.left_out |= tensors.keys() - self.known
        return {name: tensors[name] for name in self.own}
