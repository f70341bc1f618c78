"""Checkpoints that are no run of ours: their tensors, as those of a model. Nothing is written there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lawa_exp.axes.model.gpt.folder import activation_note
from lawa_exp.convert.checkpoints import as_ours, plain_settings, read_checkpoint
from lawa_exp.convert.recorded import recorded
from lawa_exp.system.errors import UserError


class Fitted:
    """Reads checkpoints as the tensors of `own`, names and shapes alike.

    others: names that may be in a checkpoint, too, without a note (of tied weights the others). what: whose tensors
    `own` are, for messages; settings: of that model, by name. key: of the state dict in the files. Further tensors are
    in `left_out`: integers, `masks`, rotary frequencies, and floats outside the model, as of a loss. UserError: a
    weight is missing or has another shape, weights of a layer that the model has, or has siblings of, would be left
    out, or the checkpoint records other settings.
    """

    def __init__(
        self,
        own: Mapping[str, Tensor],
        others: Iterable[str],
        what: str,
        settings: Mapping[str, object] | None = None,
        masks: Iterable[str] = (),
        key: str | None = None,
        aliases: Mapping[str, str] | None = None,
        loaded: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> None:
        """aliases: of tied weights the other names, each with the one in `own`; loaded: as `Recognised` has it."""
        self.aliases, self.loaded = aliases or {}, loaded
        self.own, self.expected, self.what = own, {*own, *others}, what
        self.settings, self.masks, self.key = settings, set(masks), key
        self.owner = what if settings is None else "the model"  # without settings it is another checkpoint
        self.layers = {place for name in own for place in _layers(name)}
        self.left_out: set[str] = set()
        self.recorded: dict[str, Any] = {}
        self.note = ""  # what our model computes otherwise than the checkpoints' own

    def __call__(self, path: Path) -> dict[str, Tensor]:
        tensors = self._named(path)
        for alias, name in self.aliases.items():
            if alias in tensors and not _same(tensors.setdefault(name, tensors[alias]), tensors[alias]):
                raise self._misfit(path, f"{name} and {alias}, one tensor of the model, differ")
        self._check_record(path)
        for name, own in self.own.items():
            if name not in tensors:
                raise self._misfit(
                    path, f"{self.owner} has {name}, the checkpoint has {', '.join(list(tensors)[:3])}, ..."
                )
            if tensors[name].shape != own.shape:
                shapes = f"{list(tensors[name].shape)}, {self.owner} has it with {list(own.shape)}"
                raise self._misfit(path, f"the checkpoint has {name} with shape {shapes}")
        further = tensors.keys() - self.expected
        floats = [name for name in further - self.masks if tensors[name].is_floating_point()]
        weights = sorted(name for name in floats if _layers(name) & self.layers and not name.endswith(".inv_freq"))
        if weights:
            more = f", ... ({len(weights)} tensors)" if len(weights) > 3 else ""
            raise self._misfit(
                path, f"the checkpoint has {', '.join(weights[:3])}{more}, {self.owner} has no such weights"
            )
        self.left_out |= further
        return {name: tensors[name] for name in self.own}

    def _check_record(self, path: Path) -> None:
        if self.settings is None:  # without a model of ours there is nothing to contradict
            return
        self.recorded = recorded(path, self.key)
        self.note = activation_note(path) if plain_settings(self.settings) else ""
        for key, value in self.recorded.items():
            own = (self.settings or {}).get(key, value)
            if own != value:
                raise self._misfit(path, f"the checkpoint has model.{key}={value}, the model has {own}")

    def _misfit(self, path: Path, why: str) -> UserError:
        return UserError(f"{path} does not fit {self.what}: {why}")

    def _named(self, path: Path) -> dict[str, Tensor]:
        tensors = read_checkpoint(path, self.key)
        if self.loaded and not self.own.keys() - self.aliases.values() <= tensors.keys():
            tensors = self.loaded(tensors)
        try:
            return as_ours(tensors, path, self.own, plain_settings(self.settings))
        except UserError as error:
            raise self._misfit(path, str(error)) from None


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() or one.equal(other)


def _layers(name: str) -> set[str]:
    """Where a tensor lies: its module, and the lists of modules (`transformer.h.*`) that this is in."""
    *modules, _ = name.split(".")
    lists = {".".join([*modules[:i], "*"]) for i, part in enumerate(modules) if part.isdigit()}
    return lists | {".".join(modules)} - {""}
