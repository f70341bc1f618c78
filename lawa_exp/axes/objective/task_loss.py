"""The loss of a task, in training and in evaluation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lawa_exp.seams.dataset import Inputs
from lawa_exp.seams.objective import Objective
from lawa_exp.seams.task import IGNORE, Task


def scores_of(output: Tensor) -> Tensor:
    """The `.logits` of an output that has them, as those of transformers' models do; else the output itself."""
    scores: Tensor = getattr(output, "logits", output)
    return scores


class TaskLoss(Objective):
    """The task's loss alone.

    computes_loss: the model is called with inputs and targets, and gives the summed loss itself: it need not form all
    scores (`ModelSettings.computes_loss`).
    """

    def __init__(self, model: nn.Module, task: Task, computes_loss: bool = False) -> None:
        super().__init__(model)
        self.task, self.computes_loss = task, computes_loss

    def forward(self, inputs: Inputs, targets: Tensor) -> dict[str, Tensor]:
        if self.computes_loss:
            return {"loss": self.model(inputs, targets)}
        return {"loss": self.task.loss(scores_of(self.model(inputs)), targets)}


class Scorer(nn.Module):
    """Inputs, targets -> the sums of the task, float64 [columns]; one module, so that compiling sees the whole."""

    def __init__(self, model: nn.Module, task: Task, computes_loss: bool = False) -> None:
        super().__init__()
        self.model, self.task = model, task
        self.computes_loss = computes_loss and task.columns == 2  # what else is summed up needs the scores

    def forward(self, inputs: Inputs, targets: Tensor) -> Tensor:
        if self.computes_loss:
            return torch.stack([self.model(inputs, targets).double(), (targets != IGNORE).sum().double()])
        return self.task.sums(scores_of(self.model(inputs)), targets)
