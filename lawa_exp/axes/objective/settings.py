"""What the settings of every objective have."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.choice import Choice

if TYPE_CHECKING:
    from torch import nn

    from lawa_exp.seams.objective import Objective
    from lawa_exp.seams.task import Task


class ObjectiveSettings(Choice):
    """The settings of an objective, which build it.

    group: so many consecutive samples of a batch go through one pass of one rank, on any number of ranks.
    phases: the batch is cut into so many pieces, in its order, that all ranks work on one after the other.
    skips: whether a pass may leave a parameter without gradient.
    """

    keeps_state: ClassVar[bool] = True

    group: int = 1
    phases: int = 1
    skips: ClassVar[bool] = False
    takes_teacher: ClassVar[bool] = False

    def task_of(self, task: Task) -> Task:
        """What evaluations report: the data set's `task`, unless the objective brings another."""
        return task

    def build(
        self, model: nn.Module, task: Task, computes_loss: bool = False, teacher: nn.Module | None = None
    ) -> Objective:
        """task: the data set's. computes_loss: see `TaskLoss`. teacher: where `takes_teacher`."""
        raise NotImplementedError
