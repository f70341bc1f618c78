"""Checkpoints that are no run of ours: their tensors, as those of a model. Nothing is written there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from lawa_exp.checkpoint.tensors import map_places
from lawa_exp.config import UserError
from lawa_exp.formats.checkpoint import open_checkpoint
from lawa_exp.formats.matching import canonical
from lawa_exp.models.fairseq import under_our_names


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights of a file or folder by name, in its mapped pages. UserError names what cannot be read, and why."""
    opened = open_checkpoint(path)
    tensors: dict[str, Tensor] = {}
    for source in opened.sources:
        tensors |= {canonical(name): t for name, t in map_places(source.path, source.tensors).items()}
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
        tensors = self._named(path)
        for name, own in self.own.items():
            if name not in tensors:
                raise UserError(f"{path} does not fit {self.what}: no {name}, but {', '.join(list(tensors)[:3])}, ...")
            if tensors[name].shape != own.shape:
                shapes = f"{name} is {list(tensors[name].shape)}, there {list(own.shape)}"
                raise UserError(f"{path} does not fit {self.what}: {shapes}")
        self.left_out |= tensors.keys() - self.known
        return {name: tensors[name] for name in self.own}

    def _named(self, path: Path) -> dict[str, Tensor]:
        tensors = read_checkpoint(path)
        try:
            return under_our_names(tensors)
        except UserError as error:
            raise UserError(f"{path} does not fit {self.what}: {error}") from None
