"""Calibration: expected calibration error, and the temperature that scores are best divided by (Guo et al. 2017).

All of it comes from sums over one pass: of each temperature of a grid the loss, and of each of its bins of confidence
how many targets there are, how confident the model is and how often it is right.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lawa_exp.axes.configuration import Config
from lawa_exp.evaluation.numerics import scorer_for
from lawa_exp.evaluation.score import OnModel, Scored
from lawa_exp.seams.dataset import Dataset
from lawa_exp.seams.task import IGNORE, Metric, Task
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError

SPLIT = "calibration"  # of its rows: the odd blocks of what was evaluated
TEMPERATURES = tuple(2 ** (i / 16) for i in range(-32, 33))  # 1/4 to 4, 4% apart
PLAIN = TEMPERATURES.index(1.0)
MEANING = (
    "of the odd blocks (batches) of val, the expected calibration error and the loss as they are, and after scores are "
    "divided by the temperature, of those from 1/4 to 4 in steps of 4%, that has the lowest loss on the even blocks "
    "(the ends stand for what is beyond)"
)


class WithCalibration:
    """A task of classes, or of tokens, with the sums of calibration behind its own ones.

    For each temperature: the loss, and for each bin its targets, the confidence in the likeliest class and how many are
    right, both summed. Float64 [task.columns + temperatures * (1 + 3 * bins)].
    """

    def __init__(self, task: Task, bins: int) -> None:
        self.task, self.bins = task, bins
        self.columns = task.columns + len(TEMPERATURES) * (1 + 3 * bins)
        self.metrics: Mapping[str, Metric] = task.metrics
        self.decides = task.decides

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        return self.task.loss(scores, targets)

    def sums(self, scores: Tensor, targets: Tensor) -> Tensor:
        """scores: [..., classes]; targets: [...], int64. UserError: they are others."""
        if scores.shape[:-1] != targets.shape or scores.shape[-1] < 2 or targets.is_floating_point():
            raise UserError("--evaluate=calibration: expected a score for each class, and targets that are classes")
        flat, labels = scores.flatten(0, -2).float(), targets.flatten()
        counted = (labels != IGNORE).double()
        classes = labels.clamp(min=0)[:, None]
        right = (flat.argmax(-1) == labels).double()
        parts = [self.task.sums(scores, targets)]
        for temperature in TEMPERATURES:
            logs = torch.log_softmax(flat / temperature, -1)
            confidence = logs.amax(-1).exp().double()
            bins = (confidence * self.bins).long().clamp(max=self.bins - 1)
            of_bins = confidence.new_zeros(3, self.bins)
            of_bins.index_add_(1, bins, torch.stack([counted, counted * confidence, counted * right]))
            loss = -(logs.gather(1, classes)[:, 0].double() * counted).sum()
            parts += [loss[None], of_bins.flatten()]
        return torch.cat(parts)

    def fields(self, sums: np.ndarray) -> dict[str, float]:
        return self.task.fields(sums[: self.task.columns])


def calibration_error(bins: np.ndarray) -> float:
    """The mean over the targets of |share that is right - mean confidence| of their bin. bins: float64 [3, bins]."""
    counts, confidence, right = bins
    return float(np.abs(right - confidence).sum() / counts.sum())


class Calibration(OnModel):
    """Evaluates weights as the run did, and their calibration on val's odd blocks; the temperature is the even ones'.

    Measures: temperature, ece and loss as they are, and scaled_ece and scaled_loss with the temperature.
    UserError: the model or the task gives no scores of classes; there is one block only.
    """

    def __init__(self, config: Config, data: Dataset, device: torch.device, ranks: Ranks, bins: int) -> None:
        super().__init__(config, data, device, ranks)
        if config.model.computes_loss(self.model):
            raise UserError(
                f"--evaluate=calibration: model={config.model.name} computes its own loss and gives no scores of all "
                "classes; expected one that does"
            )
        self.task = WithCalibration(data.task, bins)
        self.scorer, self.columns = scorer_for(config, self.model, self.task), self.task.columns

    def __call__(
        self, weights: Mapping[str, Tensor], split: str = "val", samples: int | None = None, bn: str | None = None
    ) -> Scored:
        scored = super().__call__(weights, split, samples, bn)
        assert scored.sums is not None
        own = scored.sums[:, : self.data.task.columns]
        if len(own) < 2:
            raise UserError("--evaluate=calibration: val has one block (a batch of evaluate.batch_size); expected two")
        shape = len(scored.sums), len(TEMPERATURES), 1 + 3 * self.task.bins
        blocks = scored.sums[:, self.data.task.columns :].reshape(shape)
        even, odd = blocks[::2].sum(0), blocks[1::2].sum(0)
        best = int(even[:, 0].argmin())
        count = float(own[1::2, 1].sum())
        values = {"temperature": TEMPERATURES[best]}
        for prefix, at in (("", PLAIN), ("scaled_", best)):
            values[f"{prefix}ece"] = calibration_error(odd[at, 1:].reshape(3, -1))
            values[f"{prefix}loss"] = float(odd[at, 0]) / count
        named = {"split": SPLIT, "task": "calibration"}
        measures = [
            {**named, "metric": metric, "value": value, "count": int(count)} for metric, value in values.items()
        ]
        return Scored(scored.fields, own, tuple(measures))
