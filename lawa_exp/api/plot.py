"""Curves of runs, in matplotlib."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from lawa_exp.results.curves import SETTLED, kinds_of
from lawa_exp.results.figures import STYLE, STYLES
from lawa_exp.results.sheets import LIVE, MARKERS, STEP, Look, draw_line, later, looks_of
from lawa_exp.results.statistics import curve
from lawa_exp.storage.metrics import metrics_of
from lawa_exp.storage.rows import averager_ids, read_rows
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from lawa_exp.api.runs import Run

MANY = 12  # curves with a line in the legend


def draw(
    runs: list[Run],
    labels: Mapping[str, str],
    weights: Collection[str],
    metric: str,
    split: str,
    axes: Any,
) -> Any:
    """Of one run, looks as in its report; of several, a colour for each, a line for each of the weights.

    labels: of the runs, by name.
    """
    from matplotlib import pyplot as plt

    if axes is None:
        with plt.rc_context(STYLE):
            _, axes = plt.subplots(figsize=(7, 4.2))
    names: dict[str, int] = {}
    drawn: list[list[tuple[int, float]]] = []
    for number, run in enumerate(runs):
        rows = read_rows(run.path / "metrics.jsonl")
        ids = list(weights or [LIVE, *averager_ids(rows)])
        looks = looks_of(kinds_of(rows, [id for id in ids if id != LIVE]))
        for name in ids:
            points = [point for point in curve(rows, name, split, metric) if point[0] > 0]
            if not points:
                continue
            nth = names.setdefault(name, len(names))
            look = (
                looks[name]
                if len(runs) == 1
                else Look(f"C{number % 10}", STYLES[nth % len(STYLES)], MARKERS[nth % len(MARKERS)])
            )
            text = name if len(runs) == 1 else f"{labels[run.name] or run.name}: {name}"
            draw_line(axes, points, text, look)
            drawn.append(points)
    if not drawn:
        wanted = ", ".join(weights) or "any weights"
        raise UserError(f"no row of {wanted} with split={split} and {metric} in {', '.join(run.name for run in runs)}")
    later(axes, [v for points in drawn for s, v in points if s >= SETTLED * points[-1][0]])
    axes.set_xlabel(STEP)
    known = metrics_of(runs[0].path).get(metric)
    unit = f" ({known.unit})" if known and not known.is_share else ""
    axes.set_ylabel(f"{split} {metric}{unit}")
    if len(drawn) <= MANY:
        axes.legend(fontsize=8)
    return axes
