"""What the analysis finds: the content of critical_batch.json, which the page, the table and the picture show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from lawa_exp.critical_batch.fits import Law


@dataclass(frozen=True)
class Errors:
    """Relative errors of a predicted curve at some evaluations; None where there are none."""

    evaluations: int
    median_error: float | None
    max_error: float | None


@dataclass(frozen=True)
class Level:
    """One loss level: loss in nats, S (steps, by batch size) and s_min in steps, all else in samples.

    b_crit_low, b_crit_high: its 95% interval; b_crit_law: by the power law; fit_error: relative.
    """

    loss: float
    s_min: float
    e_min: float
    b_crit: float | None
    b_crit_low: float | None
    b_crit_high: float | None
    b_crit_law: float | None
    noise_scale: float | None
    fit_error: float
    steps: Mapping[int, float]


@dataclass(frozen=True)
class HeldOut:
    """The curve of `batch_size` as the batch sizes `others` predict it, and its errors and those of simpler guesses.

    covered: the measured evaluations that are predicted; beyond: errors at losses that not all others reach.
    nearest: the batch size whose own curve is the guess, at the same samples or steps.
    """

    batch_size: int
    others: Sequence[int]
    covered: Sequence[tuple[int, float]]
    last_step: int
    errors: Errors
    beyond: Errors
    by_seed: Sequence[Errors]
    nearest: int
    at_same_samples: Errors
    at_same_steps: Errors
    predicted: Sequence[tuple[float, float]]

    def as_json(self) -> dict[str, object]:
        return {
            "batch_size": self.batch_size,
            "from": self.others,
            "covered": self.covered,
            "last_step": self.last_step,
            **asdict(self.errors),
            "beyond_the_fits": asdict(self.beyond),
            "by_seed": [asdict(errors) for errors in self.by_seed],
            "nearest": self.nearest,
            "nearest_at_same_samples": asdict(self.at_same_samples),
            "nearest_at_same_steps": asdict(self.at_same_steps),
            "predicted": self.predicted,
        }


@dataclass(frozen=True)
class Findings:
    """weights: whose loss; smooth: evaluations in a mean; seeds: that every batch size has; laws_by_seed: theirs."""

    weights: str
    smooth: int
    batch_sizes: Sequence[int]
    seeds: int
    tokens_per_sample: int
    levels: Sequence[Level]
    law: Law | None
    laws_by_seed: Sequence[Law | None]
    hold_out: HeldOut | None
    runs: Sequence[str]
    notes: Sequence[str]

    def as_json(self) -> dict[str, object]:
        return asdict(self) | {"hold_out": self.hold_out.as_json() if self.hold_out else None}
