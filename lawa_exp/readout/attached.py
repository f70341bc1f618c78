"""Averages that snapshots do not give and that the training kept: the attached ones, and power_ema of other widths."""

from __future__ import annotations

import functools
from collections.abc import Container, Hashable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from lawa_exp.averaging import AveragerSettings, PowerEmaSettings, row_fields
from lawa_exp.averaging.arithmetic import weighted_mean
from lawa_exp.averaging.power import rebuilding_error, rebuilding_weights
from lawa_exp.evaluation.batchnorm import policy_field
from lawa_exp.evaluation.replay import read_snapshot
from lawa_exp.storage.commit import steps_in
from lawa_exp.storage.rundir import RunDir

GROWTH = 1.25  # of the distances between the saved steps that a rebuilt width is made from


class Attached:
    """An average that was attached while the run trained, at the steps whose weights were kept (at least the last)."""

    def __init__(
        self, settings: AveragerSettings, run: RunDir, bn: str | None = None, steps: Container[int] | None = None
    ) -> None:
        """steps: those whose files have the statistics of `bn`; None: any do."""
        self.id = settings.id
        self.fields: Mapping[str, object] = {**row_fields(settings), **policy_field(bn)}
        saved = steps_in(run.averages / settings.id)
        self.paths = {s: path for s, path in saved.items() if steps is None or s in steps}

    def key(self, step: int) -> Hashable | None:
        return (self.id, step) if step in self.paths else None

    def weights(self, step: int) -> dict[str, Tensor]:
        return read_snapshot(self.paths[step])


class Rebuilt:
    """A power_ema of a width that was not tracked: the weighted sum of tracked ones (EDM2, section 3.2), in float64.

    Of the steps at which the tracked ones were saved it takes that at hand and earlier ones, further and further apart:
    what a profile adds depends on how far back it ends relative to the others, and most of them add nothing.
    """

    def __init__(
        self,
        sigma_rel: float,
        tracked: Sequence[PowerEmaSettings],
        run: RunDir,
        averaged: frozenset[str],
        bn: str | None = None,
        evaluated: Container[int] | None = None,
    ) -> None:
        """evaluated: the steps whose files have the statistics of `bn`; None: any do."""
        wanted = PowerEmaSettings(sigma_rel=sigma_rel, every=tracked[0].every)
        self.id = f"{wanted.id}-rebuilt"
        self.evaluated = evaluated
        named = {**row_fields(wanted), "weights": self.id, "rebuilt_from": [s.id for s in tracked]}
        self.fields: Mapping[str, object] = named | policy_field(bn)
        self.sigma_rel, self.averaged = sigma_rel, averaged
        self.paths: dict[float, dict[int, Path]] = {s.sigma_rel: steps_in(run.averages / s.id) for s in tracked}
        self.steps = sorted(set.intersection(*(set(paths) for paths in self.paths.values())))

    def key(self, step: int) -> Hashable | None:
        fits = self.evaluated is None or step in self.evaluated
        return (self.id, step) if fits and step in self.steps else None

    def weights(self, step: int) -> dict[str, Tensor]:
        profiles = self._profiles(step)
        averages = [read_once(self.paths[sigma][t]) for t, sigma in profiles]
        return weighted_mean(averages, rebuilding_weights(profiles, (step, self.sigma_rel)), self.averaged)

    def error(self, step: int) -> float:
        """Of the profile, see `rebuilding_error`."""
        profiles, wanted = self._profiles(step), (step, self.sigma_rel)
        return rebuilding_error(profiles, wanted, rebuilding_weights(profiles, wanted))

    def _profiles(self, step: int) -> list[tuple[int, float]]:
        earlier = [s for s in self.steps if s <= step]
        back, taken = 0.0, []
        while int(back) < len(earlier):
            taken.append(earlier[-1 - int(back)])
            back = max(back + 1, back * GROWTH)
        return [(t, sigma) for t in reversed(taken) for sigma in sorted(self.paths)]


@functools.cache
def read_once(path: Path) -> dict[str, Tensor]:
    """An average that several steps' sums are made of: verified once; its mapped pages are the system's to drop."""
    return read_snapshot(path)


def tracked_widths(
    run: RunDir, averagers: Sequence[AveragerSettings], every: int | None = None
) -> list[PowerEmaSettings]:
    """The power_emas that the run tracked (observing every `every` steps) and whose averages it kept; two at least.

    With every=None those of the shortest period. Empty where there are no two.
    """
    kept = [s for s in averagers if isinstance(s, PowerEmaSettings) and steps_in(run.averages / s.id)]
    period = min((s.every for s in kept), default=1) if every is None else every
    widths = sorted((s for s in kept if s.every == period), key=lambda s: s.sigma_rel)
    return widths if len(widths) >= 2 else []
