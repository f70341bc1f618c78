"""What an average saves, in the papers' terms: steps, epochs and GPU hours.

Kaddour (2022, Figure 1): the longest time until the baseline has what the average had, over the average's evaluations.
Sanyal et al. (2024) state GPU hours of the steps that are saved. Both are `statistics.steps_saved` with a price.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lawa_exp.results.statistics import Curve, steps_saved
from lawa_exp.system.errors import UserError


@dataclass(frozen=True)
class Price:
    """What one step costs. steps_per_epoch, gpu_hours_per_step: None where it is not known."""

    steps_per_epoch: float | None = None
    gpu_hours_per_step: float | None = None

    @classmethod
    def of_epochs(cls, minutes: float, gpus: int, steps_per_epoch: float = 1) -> Price:
        """minutes: of wall time an epoch takes on `gpus` GPUs. With steps_per_epoch=1 curves are by epoch."""
        return cls(steps_per_epoch, minutes / 60 * gpus / steps_per_epoch)

    @classmethod
    def of_run(cls, gpu_hours: float, steps: int, steps_per_epoch: float | None = None) -> Price:
        """gpu_hours: of all GPUs together, for `steps`."""
        return cls(steps_per_epoch, gpu_hours / steps)


@dataclass(frozen=True)
class Saving:
    """steps: how many steps later the baseline has what the average has at step `at`; reached=False: more than that."""

    steps: float
    reached: bool
    at: int
    price: Price

    @property
    def epochs(self) -> float | None:
        return None if self.price.steps_per_epoch is None else self.steps / self.price.steps_per_epoch

    @property
    def gpu_hours(self) -> float | None:
        return None if self.price.gpu_hours_per_step is None else self.steps * self.price.gpu_hours_per_step

    def text(self) -> str:
        """`17,900 steps, 0.13 epochs, 4,197 GPU hours`, each with `> ` where it is a bound."""
        parts = [f"{self.steps:,.0f} steps"]
        parts += [f"{self.epochs:,.3g} epochs"] if self.epochs is not None else []
        parts += [f"{self.gpu_hours:,.3g} GPU hours"] if self.gpu_hours is not None else []
        return ", ".join(parts if self.reached else [f"> {part}" for part in parts])


def longest_saving(
    baseline: Curve, average: Curve, price: Price | None = None, higher_is_better: bool = False
) -> Saving:
    """The longest of the savings at the average's evaluations, by step ascending; of equally long ones the first.

    An evaluation that is worse than the baseline's first one is left out while there are others: when the baseline was
    there is not known.

    baseline, average: (step, value); lower values are better unless said. What the baseline never reaches counts as the
    steps that it has left. UserError: one of them has no evaluation.
    """
    if not baseline or not average:
        raise UserError("savings: expected evaluations of the baseline and of the average")
    sign = -1 if higher_is_better else 1
    turned = [(step, sign * value) for step, value in baseline]
    known = [(step, value) for step, value in average if sign * value <= turned[0][1]]
    found = [(steps_saved(turned, step, sign * value), step) for step, value in known or average[-1:]]
    (steps, reached), at = max(found, key=lambda f: (f[0][0], -f[1]))
    return Saving(steps, reached, at, price or Price())


def table_of(savings: dict[str, Saving]) -> list[list[str]]:
    """Rows for a table, a heading first: what is not known for any of them is left out."""
    known = [s for s in savings.values()]
    with_epochs, with_hours = (any(getattr(s, n) is not None for s in known) for n in ("epochs", "gpu_hours"))
    heading = ["average", "steps saved", *["epochs"] * with_epochs, *["GPU hours"] * with_hours, "at step"]
    rows = [heading]
    for name, s in savings.items():
        values = [s.steps, *[s.epochs] * with_epochs, *[s.gpu_hours] * with_hours]
        bound = "" if s.reached else "> "
        shown = ["" if v is None or math.isnan(v) else f"{bound}{v:,.4g}" for v in values]
        rows.append([name, *shown, f"{s.at:,}"])
    return rows
