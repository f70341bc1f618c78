"""An objective from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lawa_exp.axes.objective.settings import ObjectiveSettings
from lawa_exp.config.rules import arguments, boolean, integer, setting, text

if TYPE_CHECKING:
    from torch import nn

    from lawa_exp.seams.objective import Objective
    from lawa_exp.seams.task import Task


@dataclass(frozen=True)
class CustomObjective(ObjectiveSettings):
    """`builder(model, task, **args)`, a `seams.objective.Objective`; with `takes_teacher` it gets `teacher=` as well.

    task: the data set's `seams.task.Task`. teacher: a model with the weights that teacher.from names.
    """

    places: ClassVar[frozenset[str]] = frozenset({"skips"})  # it decides what DDP waits for, and no weight
    builder: str = setting(text(), "package.module:function that builds it")
    args: dict[str, Any] | None = arguments()
    group: int = setting(integer(1), "consecutive samples that go through one forward pass together")
    phases: int = setting(integer(1), "pieces of a batch that take turns, one choice each")
    skips: bool = setting(boolean(), "whether a pass may leave parameters without a gradient")  # type: ignore[misc]
    takes_teacher: bool = setting(boolean(), "whether the builder takes teacher=, the model that teacher.from names")  # type: ignore[misc]

    def build(
        self, model: nn.Module, task: Task, computes_loss: bool = False, teacher: nn.Module | None = None
    ) -> Objective:
        from lawa_exp.seams.objective import Objective
        from lawa_exp.storage import custom

        objective: Objective = custom.made(
            self,
            "objective",
            model,
            task,
            **({"teacher": teacher} if self.takes_teacher else {}),
            expected="a lawa_exp.seams.objective.Objective",
            fits=lambda made: isinstance(made, Objective),
        )
        return objective
