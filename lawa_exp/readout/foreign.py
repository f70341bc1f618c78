"""Checkpoints that are no run of ours: their tensors, as those of a model. Nothing is written there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lawa_exp.checkpoint.tensors import map_places
from lawa_exp.config import UserError
from lawa_exp.formats.checkpoint import open_checkpoint, open_file
from lawa_exp.formats.matching import canonical
from lawa_exp.formats.pytorch import TorchFile
from lawa_exp.models.fairseq import under_our_names
from lawa_exp.models.gpt import of_nanogpt


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights of a file or folder by name, in its mapped pages. UserError names what cannot be read, and why."""
    opened = open_checkpoint(path)
    tensors: dict[str, Tensor] = {}
    for source in opened.sources:
        tensors |= {canonical(name): t for name, t in map_places(source.path, source.tensors).items()}
    return tensors


def recorded(path: Path) -> dict[str, Any]:
    """The settings of its model that a checkpoint itself holds (nanoGPT's `model_args`); empty where it has none."""
    source = open_file(path, None) if path.is_file() else None
    found = of_nanogpt(source.content.get("model_args")) if isinstance(source, TorchFile) else {}
    for key, value in found.items():
        if not isinstance(value, int | float):
            raise UserError(f"{path}: {key} in its model_args is no number")
    return found


class Fitted:
    """Reads checkpoints as the tensors of `own`, names and shapes alike.

    known: names beside those of `own` that may be there without a word (of tied weights the others). what: whose
    tensors `own` are, for messages; settings: of that model. Further tensors are in `left_out`, if they are no weights:
    integers and `masks`. UserError: a weight is missing, has another shape or would be left out, or the checkpoint
    records other settings.
    """

    def __init__(
        self,
        own: Mapping[str, Tensor],
        known: Iterable[str],
        what: str,
        settings: Any = None,
        masks: Iterable[str] = (),
    ) -> None:
        self.own, self.known, self.what = own, {*own, *known}, what
        self.settings, self.masks = settings, set(masks)
        self.left_out: set[str] = set()
        self.recorded: dict[str, Any] = {}

    def __call__(self, path: Path) -> dict[str, Tensor]:
        tensors = self._named(path)
        self._check_record(path)
        for name, own in self.own.items():
            if name not in tensors:
                raise self._misfit(path, f"no {name}, but {', '.join(list(tensors)[:3])}, ...")
            if tensors[name].shape != own.shape:
                raise self._misfit(path, f"{name} is {list(tensors[name].shape)}, there {list(own.shape)}")
        further = tensors.keys() - self.known
        weights = sorted(name for name in further - self.masks if tensors[name].is_floating_point())
        if weights:
            more = f", ... ({len(weights)} tensors)" if len(weights) > 3 else ""
            raise self._misfit(path, f"{', '.join(weights[:3])}{more} would be left out")
        self.left_out |= further
        return {name: tensors[name] for name in self.own}

    def _check_record(self, path: Path) -> None:
        self.recorded = recorded(path)
        for key, said in self.recorded.items():
            mine = getattr(self.settings, key, said)
            if mine != said:
                raise self._misfit(path, f"it was made with model.{key}={said}, there it is {mine}")

    def _misfit(self, path: Path, why: str) -> UserError:
        return UserError(f"{path} does not fit {self.what}: {why}")

    def _named(self, path: Path) -> dict[str, Tensor]:
        tensors = read_checkpoint(path)
        try:
            return under_our_names(tensors)
        except UserError as error:
            raise self._misfit(path, str(error)) from None
