"""What a read-out evaluates weights with: our model on one of our data sets, or a function of the user's."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lawa_exp.averaging.swap import Swap
from lawa_exp.averaging.tensors import averaged_names, statistics_names
from lawa_exp.axes.configuration import Config
from lawa_exp.axes.layers.settings import LayersSettings
from lawa_exp.axes.model.settings import ModelSettings
from lawa_exp.config.shared import Trainer
from lawa_exp.evaluation.batchnorm import policy, recalibrate
from lawa_exp.evaluation.evaluate import Evaluation, batch_sums, fields_of, fixed_set
from lawa_exp.evaluation.numerics import Setup, autocast_for, scorer_for, seeded_model, set_up_arithmetic
from lawa_exp.evaluation.result_files import Files, none
from lawa_exp.formats.stored import STATISTICS
from lawa_exp.seams.dataset import Dataset
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError


@dataclass(frozen=True)
class Scored:
    """What came of evaluating some weights.

    fields: "loss" (and other metrics, "eval_samples" where they are known), as in a row; sums: as `batch_sums` gives
    them; measures: others, each a row of its own ("task", "metric", "value"). files: what else belongs to the results.
    """

    fields: Mapping[str, float]
    sums: np.ndarray | None
    measures: tuple[Mapping[str, object], ...] = ()
    files: Files = none


class Score(Protocol):
    """What evaluates weights."""

    def __call__(
        self, weights: Mapping[str, Tensor], split: str = "val", samples: int | None = None, bn: str | None = None
    ) -> Scored:
        """weights: by name, on any device. samples: how many of the split; None: as configured.

        bn: what is done about BatchNorm's statistics, see `batchnorm.policy`; None: they are as the weights have them.
        What has no splits, samples or BatchNorm takes no notice of these. FunctionFailed: it cannot.
        """
        ...


@dataclass(frozen=True)
class LanguageModel:
    """A language model that is evaluated on no data set of ours. batch_size: samples in one forward pass."""

    model: ModelSettings
    seed: int
    trainer: Trainer
    batch_size: int
    layers: tuple[tuple[str, LayersSettings], ...] = ()

    @property
    def context(self) -> int:
        """Tokens of a sample."""
        assert self.model.context is not None, f"{self.model.name} is no language model"
        return self.model.context


class InModel:
    """A model that has the weights which are evaluated last, and the arithmetic that evaluates them."""

    def __init__(self, setup: Setup, device: torch.device, ranks: Ranks) -> None:
        set_up_arithmetic(setup)
        self.settings, self.device, self.ranks = setup.model, device, ranks
        self.model = seeded_model(setup, device)
        self.averaged, self.statistics = averaged_names(self.model), statistics_names(self.model)
        self.swap = Swap(self.model)
        self.autocast = autocast_for(setup, device)

    @property
    def context(self) -> int:
        """Tokens that the model, a language model, takes."""
        assert self.settings.context is not None, "a model of images has no context"
        return self.settings.context


class OnModel(InModel):
    """Evaluates weights on one of our data sets."""

    def __init__(
        self, config: Config, data: Dataset, device: torch.device, ranks: Ranks, batch_size: int | None = None
    ) -> None:
        """batch_size: of evaluations, where not evaluate.batch_size; BatchNorm is recalibrated with the latter."""
        super().__init__(config, device, ranks)
        self.config, self.data = config, data
        self.scorer = scorer_for(config, self.model, data.task)
        self.columns = data.task.columns  # of the scorer, which may sum up more than the task does
        self.bn = policy(config, self.model)
        self.batch_size = batch_size or config.evaluate.batch_size

    def __call__(
        self, weights: Mapping[str, Tensor], split: str = "val", samples: int | None = None, bn: str | None = None
    ) -> Scored:
        settings = replace(self.config.evaluate, batch_size=self.batch_size)
        if samples is not None:
            settings = replace(settings, samples=samples)
        evaluation = Evaluation(self.scorer, self.data, settings, self.ranks, self.device, self.autocast, self.columns)
        self.swap.place(weights)
        if bn == "recalibrate":
            recalibrate(self.model, evaluation, self.config)
        sums = batch_sums(evaluation, split)
        task, evaluated = self.data.task, len(fixed_set(self.data.sizes[split], settings.samples))
        return Scored(fields_of(task, sums[:, : task.columns], evaluated), sums)


class FunctionFailed(Exception):
    """The user's function raised, as the message says; its traceback was printed."""


class ByFunction:
    """`package.module:function`, called with the weights by name (a dict of tensors on the CPU).

    It returns the loss, or a mapping with "loss" and, if it likes, "losses": those of the evaluation's samples or
    batches, always in one order, from which the noise is measured. The current folder is searched for the module.
    FunctionFailed where it raises.
    """

    def __init__(self, reference: str) -> None:
        self.reference = reference
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            module, name = reference.split(":")
            self.function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"--evaluate={reference}: expected package.module:function ({error})") from None

    def __call__(
        self, weights: Mapping[str, Tensor], split: str = "val", samples: int | None = None, bn: str | None = None
    ) -> Scored:
        try:
            result = self.function({name: t.clone() for name, t in weights.items()})  # it may write into them
        except Exception as error:
            frames = error.__traceback__
            traceback.print_exception(error.with_traceback(frames and frames.tb_next))  # from its first line on
            first_line = f"{type(error).__name__}: {error}".splitlines()[0]
            raise FunctionFailed(f"--evaluate={self.reference} raised {first_line}") from None
        losses = None
        if isinstance(result, Mapping):
            losses, result = result.get("losses"), result.get("loss")
        try:
            loss = float(result)
        except (TypeError, ValueError):
            raise UserError(f'--evaluate={self.reference}: expected a number or a mapping with "loss"') from None
        if losses is None:
            return Scored({"loss": loss}, None)
        each = np.array([float(x) for x in losses])
        return Scored({"loss": loss, "eval_samples": len(each)}, np.stack([each, np.ones_like(each)], axis=1))


def floating_names(tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """What is averaged where no model says: floating-point tensors but BatchNorm's statistics."""
    return frozenset(n for n, t in tensors.items() if t.is_floating_point() and not STATISTICS.search(n))
