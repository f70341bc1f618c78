"""Training that restarts from its LAWA average."""

from __future__ import annotations

from dataclasses import dataclass

from lawa_exp.averaging import LawaSettings
from lawa_exp.axes.feedback.settings import FeedbackSettings
from lawa_exp.config.rules import integer, one_of, setting, steps


@dataclass(frozen=True)
class LawaRestartSettings(FeedbackSettings):
    """Every `every` steps training goes on from the LAWA average, with the optimizer's state kept or reset.

    What Kaddour's published code does where the averaged model is not kept apart. Snapshots are taken before the copy.
    """

    k: int = setting(integer(1), "snapshots in the window")
    spacing: int = setting(steps(1), "steps between two snapshots of the window")
    every: int = setting(steps(1), "steps after which training goes on from the average")
    start: int = setting(steps(), "the first step whose snapshot counts")
    optimizer: str = setting(one_of("keep", "reset"), "what happens to the optimizer's state: keep it, or reset it")

    @property
    def averager(self) -> LawaSettings:
        return LawaSettings(self.k, self.spacing, self.start)
