"""Weights of a model from outside, evaluated on held-out samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from lawa_exp.averaging.swap import Swap
from lawa_exp.averaging.tensors import averaged_names, statistics_in, statistics_names
from lawa_exp.axes.dataset.loading import to_device
from lawa_exp.axes.objective.task_loss import Scorer, scores_of
from lawa_exp.config.shared import Evaluate
from lawa_exp.evaluation.evaluate import Evaluation, batch_sums, fields_of, fixed_set
from lawa_exp.evaluation.numerics import exact_float32
from lawa_exp.evaluation.score import Scored
from lawa_exp.seams.dataset import Dataset, Inputs
from lawa_exp.seams.task import Task
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError, one_line


class Logits(nn.Module):
    """A model whose scores may be in its output's `logits`, and whose inputs may be arguments by name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs) -> Tensor:
        output = self.model(**inputs) if isinstance(inputs, dict) else self.model(inputs)
        scores = scores_of(output)
        return scores[0] if isinstance(scores, tuple) else scores


class Counting(nn.Module):
    """A scorer that says how many batches it has scored."""

    def __init__(self, scorer: nn.Module) -> None:
        super().__init__()
        self.scorer, self.batches = scorer, 0
        self.show: Callable[[int], None] | None = None

    def forward(self, inputs: Inputs, targets: Tensor) -> Tensor:
        sums: Tensor = self.scorer(inputs, targets)
        self.batches += 1
        if self.show:
            self.show(self.batches)
        return sums


class OnData:
    """See `score.Score`. Statistics of BatchNorm are those of the weights, as in a file of them; float32."""

    def __init__(
        self, model: nn.Module, data: Dataset, samples: int | str, batch_size: int, device: torch.device, ranks: Ranks
    ) -> None:
        """samples: of val that are evaluated, evenly spaced; batch_size: of them in one forward pass."""
        exact_float32()
        self.model, self.data, self.device, self.ranks = model.to(device).eval(), data, device, ranks
        self.averaged, self.statistics = averaged_names(model), statistics_names(model)
        self.bn = "latest" if statistics_in(model) else None
        self.swap = Swap(model)
        self.scorer = Counting(Scorer(Logits(model), data.task))
        self.outputs: int | None = None  # scores of a target, once a batch was tried
        self.settings = Evaluate(1, samples, batch_size, "latest", 1)

    @property
    def task(self) -> Task:
        return self.data.task

    @property
    def evaluated(self) -> int:
        """Samples of an evaluation."""
        return len(fixed_set(self.data.sizes["val"], self.settings.samples))

    @property
    def batches(self) -> int:
        """Forward passes of an evaluation."""
        return -(-self.evaluated // self.settings.batch_size)

    def __call__(
        self, weights: Mapping[str, Tensor], split: str = "val", samples: int | None = None, bn: str | None = None
    ) -> Scored:
        self.swap.place(weights)
        e = Evaluation(self.scorer, self.data, self.settings, self.ranks, self.device, nullcontext)
        sums = batch_sums(e, split)
        return Scored(fields_of(self.task, sums, self.evaluated), sums)

    @torch.no_grad()
    def try_one_batch(self, what: str) -> None:
        """UserError: the model does not take a batch, or gives no scores of its targets. what: the model's name."""
        indices = fixed_set(self.data.sizes["val"], self.settings.samples)[: self.settings.batch_size]
        batch = to_device(self.data.eval_parts("val", np.resize(indices, self.settings.batch_size)), self.device)
        inputs, targets = self.data.finished(*batch)
        shapes = {n: list(t.shape) for n, t in inputs.items()} if isinstance(inputs, dict) else list(inputs.shape)
        classes = self.data.classes
        where = f"{what}: {type(self.model).__name__} with a batch {shapes}"
        try:
            scores = Logits(self.model)(inputs)
            self.outputs = int(scores.shape[-1])
            if classes is not None and self.outputs != classes:
                raise UserError(f"it gives {self.outputs} scores, and the data have {classes} classes")
            self.task.sums(scores, targets)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        except Exception as error:  # whatever a model raises
            raise UserError(f"{where} raised {type(error).__name__}: {one_line(str(error))[:200]}") from None


def worse_than_a_guess(score: object, loss: float | None) -> str:
    """A warning where the loss of trained weights is higher than that of equal probabilities; else empty."""
    outputs = score.outputs if isinstance(score, OnData) else None
    if not outputs or loss is None or loss <= math.log(outputs):
        return ""
    return (
        f"warning: the checkpoint's loss, {loss:.4f}, is above {math.log(outputs):.4f}, that of equal "
        f"probabilities of its {outputs:,} outputs: do its tokenizer, classes and DATA belong together?"
    )
