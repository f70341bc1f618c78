"""The curves of a run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from lawa_exp.results.figures import save_figure
from lawa_exp.results.sheets import LIVE, STEP, Sheet, later, looks_of
from lawa_exp.results.statistics import curve
from lawa_exp.results.tables import NATS
from lawa_exp.storage.rows import Row, averager_ids

DRAWN = 6  # averages whose curves have a colour; of more, the best of each kind
SETTLED = 0.15  # of the last step: the first fall before it would flatten all that follows


def draw_curves(rows: list[Row], path: Path, title: str, unit: str = NATS) -> None:
    """Val loss against step, as `curves_of` draws it; no file where there is nothing to draw. unit: of the loss."""
    sheet = curves_of(rows, title, unit)
    if sheet is not None:
        save_figure(sheet.figure, path)


def curves_of(rows: list[Row], title: str, unit: str) -> Sheet | None:
    """The live weights and each average (of many `highlighted`); the axis leaves the first fall out."""
    live = curve(rows, LIVE)
    live = [(s, v) for s, v in live if s > 0] or live  # a run that diverges early has its first weights only
    if not live:
        return None
    sheet = Sheet.of([f"{title} (one run)"])
    curves = {id: points for id in averager_ids(rows) if (points := curve(rows, id))}
    named = highlighted(rows)
    sheet.faint(0, [points for id, points in curves.items() if id not in named])
    looks = looks_of(kinds_of(rows, named))
    drawn = {LIVE: live, **{id: curves[id] for id in named}}
    for id, points in drawn.items():
        sheet.line(0, id, {step: [value] for step, value in points}, looks[id])
    later(sheet.panels[0], settled(drawn.values()))
    sheet.labels(STEP, f"validation loss ({unit})")
    return sheet.legend()


def settled(curves: Collection[Sequence[tuple[int, float]]]) -> list[float]:
    """What the y axis has to show: of the first curve the values after its first fall, and the lowest of all."""
    first = next(iter(curves))
    return [v for s, v in first if s >= SETTLED * first[-1][0]] + [min(v for points in curves for _, v in points)]


def kinds_of(rows: list[Row], ids: Collection[str]) -> dict[str, str]:
    """The averager of each of these ids, in their order."""
    kinds = {r["weights"]: r["averager"] for r in rows if r["weights"] != LIVE and "averager" in r}
    return {id: kinds.get(id, id.split("-")[0]) for id in ids}


def highlighted(rows: list[Row]) -> list[str]:
    """The averages whose curves have a colour and a name: all, or of more than `DRAWN` the best of each kind.

    The best at the last step of any; in order of appearance.
    """
    last = {id: points[-1] for id in averager_ids(rows) if (points := curve(rows, id))}
    if len(last) <= DRAWN:
        return list(last)
    kinds = kinds_of(rows, last)
    end = max(step for step, _ in last.values())
    best: dict[str, str] = {}
    for id in sorted((id for id in last if last[id][0] == end), key=lambda id: last[id][1]):
        best.setdefault(kinds[id], id)
    return [id for id in last if id in best.values()]
