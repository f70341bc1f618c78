"""One training: a choice on every axis, and the settings that are no choice."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeAlias, TypeVar

from lawa_exp.averaging.settings import AveragerSettings
from lawa_exp.axes.batch.batches import BatchSizes
from lawa_exp.axes.choice import Choice
from lawa_exp.axes.fault.fault import Fault
from lawa_exp.axes.feedback.settings import FeedbackSettings
from lawa_exp.axes.layers.settings import LayersSettings
from lawa_exp.axes.logger.settings import LoggerSettings
from lawa_exp.axes.lr.schedule import Schedule
from lawa_exp.axes.model.settings import ModelSettings
from lawa_exp.axes.objective.settings import ObjectiveSettings
from lawa_exp.axes.optimizer.settings import OptimizerSettings
from lawa_exp.axes.sampling.settings import SamplingSettings
from lawa_exp.axes.scaling.scaling import Scaling
from lawa_exp.axes.update.settings import UpdateSettings
from lawa_exp.axes.watch.settings import WatchSettings
from lawa_exp.config.parts import Part
from lawa_exp.config.shared import Evaluate, Init, Logger, Save, Teacher, Trainer, Trajectory
from lawa_exp.seams.dataset import DatasetSettings

T = TypeVar("T")
Named: TypeAlias = tuple[tuple[str, T], ...]  # the choices of a list by name, in its order


@dataclass(frozen=True)
class Unresolved:
    """What a command wants of one training. Every value is checked; a `Part` may have amounts, and null for a default.

    budget: (unit, amount).
    """

    model: ModelSettings
    dataset: DatasetSettings
    optimizer: Part[OptimizerSettings]
    lr: Part[Schedule]
    batch: BatchSizes
    scaling: Part[Scaling]
    sampling: Part[SamplingSettings]
    objective: Part[ObjectiveSettings]
    layers: Named[Part[LayersSettings]]
    update: Named[Part[UpdateSettings]]
    watch: Named[Part[WatchSettings]]
    init: Init
    teacher: Teacher
    averagers: tuple[Part[AveragerSettings], ...]
    feedback: Part[FeedbackSettings]
    fault: Part[Fault]
    trainer: Part[Trainer]
    logger: Part[Logger]
    loggers: Named[Part[LoggerSettings]]
    evaluate: Part[Evaluate]
    save: Part[Save]
    trajectory: Part[Trajectory]
    budget: tuple[str, float]
    seed: int
    recipe: str

    @property
    def device(self) -> str:
        """The name of the device, or `auto`."""
        return str(self.trainer.values["device"])


@dataclass(frozen=True)
class Config:
    """One training, resolved: the settings of the parts are their own dataclasses, every step count is an integer."""

    model: ModelSettings
    dataset: DatasetSettings
    optimizer: OptimizerSettings
    lr: Schedule
    batch: BatchSizes
    scaling: Scaling
    sampling: SamplingSettings
    objective: ObjectiveSettings
    layers: Named[LayersSettings]
    update: Named[UpdateSettings]
    watch: Named[WatchSettings]
    init: Init
    teacher: Teacher
    averagers: tuple[AveragerSettings, ...]
    feedback: FeedbackSettings
    fault: Fault
    trainer: Trainer
    logger: Logger
    loggers: Named[LoggerSettings]
    evaluate: Evaluate
    save: Save
    trajectory: Trajectory
    steps: int  # the budget
    seed: int
    recipe: str

    @property
    def passes(self) -> float:
        """Forward and backward passes over a sample, in units of one; what only looks ahead is a third of one."""
        return 1 + sum(choice.passes for choice in self.choices.values())

    @property
    def choices(self) -> dict[str, Choice]:
        """Every choice that stands for something, by the group, and in a list by `group.name`."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        alone = {name: part for name, part in parts.items() if isinstance(part, Choice)}
        lists = {f"{g}.{name}": part for g in ("layers", "update", "watch") for name, part in parts[g]}
        return {name: part for name, part in {**alone, **lists}.items() if not part.absent}
