"""Curves of runs, in matplotlib."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from lawa_exp.results.figures import STYLES
from lawa_exp.results.statistics import curve
from lawa_exp.storage.metrics import metrics_of
from lawa_exp.storage.rows import averager_ids, read_rows
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from lawa_exp.api.runs import Run

SHOWN_FROM = 0.15  # of the last step: the first fall would flatten all that follows
MANY = 12  # curves with a line in the legend


def draw(
    runs: list[Run],
    labels: Mapping[str, str],
    weights: Collection[str],
    metric: str,
    split: str,
    axes: Any,
) -> Any:
    """A colour for each run, a line style for each kind of weights. labels: of the runs, by name."""
    from matplotlib import pyplot as plt

    if axes is None:
        _, axes = plt.subplots(figsize=(7, 4.2))
    names: dict[str, int] = {}
    later, drawn = [], 0
    for number, run in enumerate(runs):
        rows = read_rows(run.path / "metrics.jsonl")
        for name in weights or ["live", *averager_ids(rows)]:
            points = [point for point in curve(rows, name, split, metric) if point[0] > 0]
            if not points:
                continue
            style = STYLES[names.setdefault(name, len(names)) % len(STYLES)]
            of_weights = "black" if name == "live" else f"C{names[name]}"
            color = of_weights if len(runs) == 1 else f"C{number % 10}"
            text = name if len(runs) == 1 else f"{labels[run.name] or run.name}: {name}"
            axes.plot(*zip(*points, strict=True), color=color, linestyle=style, marker=".", label=text)
            later += [value for step, value in points if step >= SHOWN_FROM * points[-1][0]]
            drawn += 1
    if not drawn:
        wanted = ", ".join(weights) or "any weights"
        raise UserError(f"no row of {wanted} with split={split} and {metric} in {', '.join(run.name for run in runs)}")
    margin = 0.05 * max(max(later) - min(later), 1e-6)
    axes.set_ylim(min(later) - margin, max(later) + margin)
    axes.set_xlabel("step (optimizer updates)")
    known = metrics_of(runs[0].path).get(metric)
    unit = f" ({known.unit})" if known and not known.is_share else ""
    axes.set_ylabel(f"{split} {metric}{unit}")
    axes.grid(alpha=0.3)
    if drawn <= MANY:
        axes.legend(fontsize=8)
    return axes
