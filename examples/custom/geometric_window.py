"""An averager: the latest k snapshots, each counting `ratio` times as much as the one after it.

    python -m lawa_exp avg=[custom] averagers.custom.builder=geometric_window:Geometric \
        averagers.custom.args='{k: 4, spacing: 50, ratio: 0.7}' ...

The closed form is all: the weights of the snapshots, oldest first, which are divided by their sum.
"""

from dataclasses import dataclass
from typing import ClassVar

from lawa_exp.averaging.settings import WindowSettings
from lawa_exp.config.rules import number, setting


@dataclass(frozen=True)
class Geometric(WindowSettings):
    kind: ClassVar[str] = "geometric"
    ratio: float = setting(
        number(above=0, high=1), "weight of a snapshot, as a share of the weight of the next newer one", default=0.5
    )

    def coefficients(self, steps):
        count = min(self.k, len(steps))
        return [self.ratio ** (count - 1 - i) for i in range(count)]
