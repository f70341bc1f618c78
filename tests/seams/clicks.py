"""Click-through: inputs are a dict, targets are binary, and evaluations report the log loss and the AUC.

`python -m seams.clicks lawa_exp.readout RUN ...` is a command of the project with these choices; --norm before its name
gives the model a BatchNorm.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lawa_exp.axes.dataset import DATASETS
from lawa_exp.axes.dataset.base import BaseDataset, BaseSettings
from lawa_exp.axes.model import MODELS
from lawa_exp.axes.model.settings import ModelSettings
from lawa_exp.config.rules import boolean, setting, text
from lawa_exp.launch import compose
from lawa_exp.seams.dataset import Batch, DatasetFacts
from lawa_exp.seams.samples import Samples
from lawa_exp.seams.task import IGNORE, SHARE, Metric, Task

NAME = "seams.clicks"  # of this module
USERS, ITEMS, BINS = 64, 48, 2**10


class Clicks:
    """Scores [n] are logits; targets, int64 [n], are 1 for a click and 0 for none. The AUC is that of the scores'
    histograms, in BINS bins of the probability, where scores in one bin count half."""

    columns = 2 + 2 * BINS
    decides = "auc"
    metrics: Mapping[str, Metric] = {
        "loss": Metric("nats per impression", tolerance=0.0, column=0),
        "auc": Metric(SHARE, higher_is_better=True, tolerance=0.0),
    }

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        counted = (targets != IGNORE).to(scores.dtype)
        losses = F.binary_cross_entropy_with_logits(scores, targets.clamp(min=0).to(scores.dtype), reduction="none")
        return (losses * counted).sum()

    def sums(self, scores: Tensor, targets: Tensor) -> Tensor:
        counted = (targets != IGNORE).double()
        bins = (scores.float().sigmoid() * BINS).long().clamp(max=BINS - 1) + BINS * targets.clamp(min=0)
        histograms = counted.new_zeros(2 * BINS).index_add(0, bins, counted)
        return torch.cat([self.loss(scores, targets).double()[None], counted.sum()[None], histograms])

    def fields(self, sums: np.ndarray) -> dict[str, float]:
        without, clicked = sums[2 : 2 + BINS], sums[2 + BINS :]
        pairs = float(without.sum() * clicked.sum())
        right = float((clicked * (np.cumsum(without) - without / 2)).sum())
        return {"loss": float(sums[0] / sums[1]), "auc": right / pairs if pairs else float("nan")}


@dataclass(frozen=True)
class ClicksSettings(BaseSettings):
    """Impressions whose clicks follow from a number of the user and one of the item."""

    inputs: ClassVar[str] = "clicks"
    name: str = setting(text(), "what the run's folder and tables call it")

    def open(self, context: int | None) -> ClicksData:
        return ClicksData()


class ClicksData(BaseDataset):
    sizes: ClassVar[dict[str, int]] = {"train": 4096, "val": 640, "test": 600}
    tokens_per_sample, unit, sample, note, fingerprint = 1, "impression", "a user and an item", "", "c11c5"

    def __init__(self) -> None:
        draw = np.random.default_rng(5)
        users, items = (1.5 * draw.normal(size=n) for n in (USERS, ITEMS))
        self.splits: dict[str, Batch] = {}
        for split, size in self.sizes.items():
            user, item = draw.integers(USERS, size=size), draw.integers(ITEMS, size=size)
            clicked = draw.random(size) < 1 / (1 + np.exp(1 - users[user] - items[item]))
            self.splits[split] = {"user": user, "item": item}, clicked.astype(np.int64)

    @property
    def task(self) -> Task:
        return Clicks()

    def train_batch(self, seed: int, samples: Samples) -> Batch:
        return self.eval_batch("train", samples.indices)

    def noise_batch(self, seed: int, samples: Samples) -> Batch:
        draw = np.random.default_rng([seed, *samples.numbers])
        inputs = {name: draw.integers(size, size=len(samples)) for name, size in (("user", USERS), ("item", ITEMS))}
        return inputs, draw.integers(2, size=len(samples))

    def train_targets(self, seed: int, samples: Samples) -> int:
        return len(samples)

    def eval_batch(self, split: str, indices: np.ndarray) -> Batch:
        inputs, clicked = self.splits[split]
        assert isinstance(inputs, dict)
        return {name: of[indices] for name, of in inputs.items()}, clicked[indices]


@dataclass(frozen=True)
class TowersSettings(ModelSettings):
    """norm: with a BatchNorm."""

    inputs: ClassVar[str] = "clicks"
    name: str = setting(text(), "what the run's folder and tables call it")
    norm: bool = setting(boolean(), "whether towers are normalised")

    def fitted(self, data: DatasetFacts, name: str) -> TowersSettings:
        return self

    def build(self) -> nn.Module:
        return Towers(self.norm)


class Towers(nn.Module):
    """{"user": int64 [n], "item": int64 [n]} -> logits of a click, [n]."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(USERS, 8), nn.Embedding(ITEMS, 8)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.hidden, self.out = nn.Linear(8, 16), nn.Linear(16, 1)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        both = self.norm(self.user(inputs["user"]) + self.item(inputs["item"]))
        logits: Tensor = self.out(torch.relu(self.hidden(both))).squeeze(-1)
        return logits


MODEL, DATASET = {"kind": "towers", "name": "towers", "norm": False}, {"kind": "clicks", "name": "clicks"}


def register() -> None:
    """Adds both to the tables of this process; trainings that are composed get them."""
    for table, name, cls in (MODELS, "towers", "TowersSettings"), (DATASETS, "clicks", "ClicksSettings"):
        table._addresses[name] = f"{NAME}:{cls}"
        table._names[f"{NAME}:{cls}"] = name
    plain = compose.compose

    def composed(arguments: list[str], **how: Any) -> tuple[list[tuple[dict[str, Any], list[str]]], bool]:
        entries, multirun = plain(arguments, **how)
        return [({**values, "model": MODEL, "dataset": DATASET}, own) for values, own in entries], multirun

    compose.compose = composed


if __name__ == "__main__":
    importlib.import_module(NAME).register()
    if sys.argv[1] == "--norm":
        sys.argv.pop(1)
        importlib.import_module(NAME).MODEL["norm"] = True
    command = sys.argv[1]
    module = compose if command == "lawa_exp" else importlib.import_module(command)
    if not hasattr(module, "main"):
        module = importlib.import_module(f"{command}.__main__")
    sys.exit(module.main(sys.argv[2:]))
