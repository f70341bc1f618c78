"""The task's own loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.objective.settings import ObjectiveSettings

if TYPE_CHECKING:
    from torch import nn

    from lawa_exp.axes.objective.task_loss import TaskLoss
    from lawa_exp.seams.task import Task


@dataclass(frozen=True)
class TaskSettings(ObjectiveSettings):
    """The loss of the data set's task, which evaluations report too."""

    absent: ClassVar[bool] = True

    def build(
        self, model: nn.Module, task: Task, computes_loss: bool = False, teacher: nn.Module | None = None
    ) -> TaskLoss:
        from lawa_exp.axes.objective.task_loss import TaskLoss

        return TaskLoss(model, task, computes_loss)
