"""Figures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from lawa_exp.results.statistics import curve
from lawa_exp.results.tables import NATS
from lawa_exp.storage.rows import Row, averager_ids
from lawa_exp.system.files import write_atomically

STYLES = ("-", "--", "-.", ":")  # told apart in grey
DRAWN = 6  # averages whose curves have a colour; of more, the best of each kind


def draw_curves(rows: list[Row], path: Path, title: str, unit: str = NATS) -> None:
    """Val loss against step, as `curves_of` draws it; no file where there is nothing to draw. unit: of the loss."""
    figure = curves_of(rows, title, unit)
    if figure is not None:
        save_figure(figure, path)


def curves_of(rows: list[Row], title: str, unit: str) -> Any:
    """The figure: the live weights and each average (of many `highlighted`); the axis leaves the first fall out."""
    live = curve(rows, "live")
    live = [(s, v) for s, v in live if s > 0] or live  # a run that diverges early has its first weights only
    if not live:
        return None
    figure, axes = pyplot().subplots(figsize=(7, 4.2), dpi=120)
    axes.plot(*zip(*live, strict=True), color="black", linewidth=2, marker=".", label="live", zorder=3)
    values = [v for _, v in live]
    curves = {id: points for id in averager_ids(rows) if (points := curve(rows, id))}
    named = highlighted(rows)
    faint = [points for id, points in curves.items() if id not in named]
    for i, points in enumerate(faint):
        label = f"{len(faint)} others" if i == 0 else None
        axes.plot(*zip(*points, strict=True), color="0.8", linewidth=0.8, zorder=1, label=label)
    for i, id in enumerate(named, 1):
        style = STYLES[i % len(STYLES)]
        axes.plot(*zip(*curves[id], strict=True), linestyle=style, linewidth=1.6, marker=".", label=id)
        values += [v for _, v in curves[id]]
    later = [v for s, v in live if s >= 0.15 * live[-1][0]]
    low, high = min(values), max(later)
    margin = 0.05 * max(high - low, 1e-3)
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("step (optimizer updates)")
    axes.set_ylabel(f"validation loss ({unit})")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def highlighted(rows: list[Row]) -> list[str]:
    """The averages whose curves have a colour and a name: all, or of more than `DRAWN` the best of each kind.

    The best at the last step of any; in order of appearance.
    """
    last = {id: points[-1] for id in averager_ids(rows) if (points := curve(rows, id))}
    if len(last) <= DRAWN:
        return list(last)
    kinds = {r["weights"]: r["averager"] for r in rows if r["weights"] in last}
    end = max(step for step, _ in last.values())
    best: dict[str, str] = {}
    for id in sorted((id for id in last if last[id][0] == end), key=lambda id: last[id][1]):
        best.setdefault(kinds[id], id)
    return [id for id in last if id in best.values()]


def save_figure(figure: Any, path: Path) -> None:
    """A PNG without the traces of the machine that drew it; the old one, or all of the new."""
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], metadata={"Software": None})
    pyplot().close(figure)
    write_atomically(path, content.getvalue())


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files; imported when something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt
