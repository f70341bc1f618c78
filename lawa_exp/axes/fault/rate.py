"""A burst of rate."""

from __future__ import annotations

from dataclasses import dataclass

from lawa_exp.axes.fault.fault import Fault
from lawa_exp.config.rules import number, setting, steps


@dataclass(frozen=True)
class RateBurst(Fault):
    """The schedule's rate, scaled and warmed up as ever, times `factor`."""

    at: int = setting(steps(), "the step after which the rate is multiplied")
    length: int = setting(steps(1), "how many steps it lasts")
    factor: float = setting(number(above=0), "what the learning rate is multiplied by")

    @property
    def marks(self) -> frozenset[int]:
        return frozenset({self.at, self.at + 1, self.at + self.length + 1})

    @property
    def described(self) -> str:
        return f"the rate times {self.factor:g}"

    def rate_factor(self, step: int) -> float:
        return self.factor if self.at < step <= self.at + self.length else 1.0
