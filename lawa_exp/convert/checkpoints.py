"""Checkpoints of any kind as the tensors of a model of ours: the one reader of all commands that load weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path

from torch import Tensor

from lawa_exp.axes.model.gpt.folder import is_hugging_face
from lawa_exp.axes.model.gpt.settings import GPTSettings
from lawa_exp.convert.fairseq import under_our_names
from lawa_exp.convert.hugging_face import from_hugging_face
from lawa_exp.formats.checkpoint import open_checkpoint
from lawa_exp.formats.checksums import check_places
from lawa_exp.formats.matching import canonical, common_prefix
from lawa_exp.storage.safetensors import map_places


def read_checkpoint(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The weights of a file or folder by name, in its mapped pages. UserError names what cannot be read, and why.

    Where a file has checksums its tensors are compared with them.
    key: of the state dict, see `open_checkpoint`.
    """
    opened = open_checkpoint(path, key)
    tensors: dict[str, Tensor] = {}
    for source in opened.sources:
        check_places(source.path, source.tensors.values())
        tensors |= {canonical(name): t for name, t in map_places(source.path, source.tensors).items()}
    return tensors


def as_ours(
    tensors: dict[str, Tensor], path: Path, names: Collection[str], gpt: GPTSettings | None = None
) -> dict[str, Tensor]:
    """The tensors of `path` under our names and in our shapes: fairseq's, transformers' GPT-2, or behind one prefix.

    names: of our model's tensors; gpt: its settings, where it is a GPT. UserError as the models raise it.
    """
    if gpt and is_hugging_face(path):
        return from_hugging_face(tensors, path, gpt)
    return without_prefix(under_our_names(tensors), names)


def without_prefix(tensors: dict[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Without what all names begin with (Lightning's `model.`), where they are `names` then, and were not before."""
    parts = common_prefix(list(tensors)).split(".")[:-1]
    for n in range(len(parts) + 1):
        prefix = "".join(f"{part}." for part in parts[:n])
        if all(prefix + name in tensors for name in names):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def plain_settings(settings: Mapping[str, object] | None) -> GPTSettings | None:
    """A GPT's settings from their values by name; None of another model."""
    if settings is None or settings.keys() != {field.name for field in fields(GPTSettings)}:
        return None
    return GPTSettings(**settings)  # type: ignore[arg-type]
