"""What evaluations of tokens and of images report."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lawa_exp.seams.task import IGNORE, SHARE, Metric
from lawa_exp.system.errors import UserError


def check_scores(scores: object, targets: Tensor, expected: str) -> None:
    """UserError: what the model returns are no scores of these targets. Looks at types and shapes alone."""
    if not isinstance(scores, Tensor):
        raise UserError(f"the model returns {type(scores).__name__}; expected a tensor {expected}, or .logits with one")
    wanted = targets.shape if targets.is_floating_point() else (*targets.shape, scores.shape[-1] if scores.ndim else 1)
    if scores.ndim < 2 or scores.numel() != math.prod(wanted):
        raise UserError(
            f"the model returns a tensor {list(scores.shape)} for targets {list(targets.shape)}; expected {expected}"
        )


class Tokens:
    """Cross-entropy over a vocabulary: scores [..., vocabulary], targets [...].

    in_bits: with the loss in bits too, as published losses of the data set are.
    """

    columns = 2
    decides = "loss"

    def __init__(self, unit: str = "token", in_bits: bool = False) -> None:
        self.in_bits = in_bits
        self.metrics: Mapping[str, Metric] = {"loss": Metric(f"nats per {unit}", tolerance=0.002, column=0)}
        if in_bits:
            self.metrics = {**self.metrics, "loss_bits": Metric(f"bits per {unit}")}

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        check_scores(scores, targets, "[batch, context, vocabulary]")
        return F.cross_entropy(scores.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="sum")

    def sums(self, scores: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([self.loss(scores, targets).double(), (targets != IGNORE).sum().double()])

    def fields(self, sums: np.ndarray) -> dict[str, float]:
        loss, targets = sums.tolist()
        bits = {"loss_bits": loss / targets / math.log(2)} if self.in_bits else {}
        return {"loss": loss / targets, **bits}


class Classes:
    """Cross-entropy and accuracy: scores [batch, classes]; targets are classes, [batch], or probabilities, [batch,
    classes]."""

    columns = 3
    decides = "accuracy"
    metrics: Mapping[str, Metric] = {
        "loss": Metric("nats per image", tolerance=0.002, column=0),
        "accuracy": Metric(SHARE, higher_is_better=True, column=2),
    }

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        check_scores(scores, targets, "[batch, classes]")
        if targets.is_floating_point():
            return F.cross_entropy(scores, targets, reduction="sum")
        return F.cross_entropy(scores.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="sum")

    def sums(self, scores: Tensor, targets: Tensor) -> Tensor:
        count, right = (targets != IGNORE).sum(), (scores.argmax(-1) == targets).sum()
        return torch.stack([self.loss(scores, targets).double(), count.double(), right.double()])

    def fields(self, sums: np.ndarray) -> dict[str, float]:
        loss, targets, right = sums.tolist()
        return {"loss": loss / targets, "accuracy": right / targets}
