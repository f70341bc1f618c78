"""What a finished run or read-out says: a small table, report.md and curves.png, from its rows alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lawa_exp.metrics import averager_ids, curve, steps_saved

NATS = "nats per token"  # of images: nats per image
STYLES = ("-", "--", "-.", ":")  # told apart in grey
TABLE_STEPS = 5  # steps shown in the table
WIDE = 4  # averages up to which each has its columns; more have a line each
DRAWN = 6  # averages whose curves have a colour; of more, the best of each kind


def loss_table(rows: list[dict[str, Any]]) -> str:
    """Val loss of the live weights and of each average at a few steps, and the steps saved, as Markdown."""
    live = curve(rows, "live")
    ids = averager_ids(rows)
    if len(ids) > WIDE:
        return readout_table(rows)
    steps = [s for s, _ in live if s > 0]
    if not steps:
        return "no evaluation yet"
    shown = sorted({steps[math.ceil(len(steps) * (i + 1) / TABLE_STEPS) - 1] for i in range(TABLE_STEPS)})
    lines = [["step", "live", *(head for id in ids for head in (id, "steps saved"))]]
    for step in shown:
        line = [f"{step:,}", f"{dict(live)[step]:.4f}"]
        for id in ids:
            value = dict(curve(rows, id)).get(step)
            line += ["-", "-"] if value is None else [f"{value:.4f}", format_saved(live, step, value)]
        lines.append(line)
    return markdown(lines)


def readout_table(rows: list[dict[str, Any]], metric: str = "loss") -> str:
    """A line for each average: its last and its best val loss (or accuracy), and the most steps that it saves."""
    sign = -1 if metric == "accuracy" else 1  # of the two the lower is the better

    def points_of(id: str) -> list[tuple[int, float]]:
        return [(s, sign * v) for s, v in curve(rows, id, metric=metric)]

    live = points_of("live")
    lines = [
        ["weights", f"{metric} at step {live[-1][0]:,}", f"best {metric}", "at step", "most steps saved", "at step"]
    ]
    for id in ["live", *averager_ids(rows)]:
        points = points_of(id)
        if not points:
            continue
        best_step, best = min(points, key=lambda point: point[1])
        last = dict(points).get(live[-1][0])
        line = [id, f"{sign * last:.4f}" if last is not None else "-", f"{sign * best:.4f}", f"{best_step:,}"]
        at = max((steps_saved(live, s, v)[0], s) for s, v in points)[1]
        saved = ["", ""] if id == "live" else [format_saved(live, at, dict(points)[at]), f"{at:,}"]
        lines.append([*line, *saved])
    return markdown(lines)


def format_saved(live: Sequence[tuple[int, float]], step: int, value: float) -> str:
    """`+120`: the live weights need 120 steps more; `> 300`: they do not get there within the run."""
    return saved_text(*steps_saved(live, step, value))


def saved_text(saved: float, reached: bool) -> str:
    """What `steps_saved` gives, as text."""
    if not reached:
        return f"> {saved:,.0f}"
    return f"{round(saved):+,}" if round(saved) else "0"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned so that it reads well in a terminal; the first line is its head."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rendered = ["| " + " | ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
    return "\n".join([rendered[0], rule, *rendered[1:]])


def draw_curves(rows: list[dict[str, Any]], path: Path, title: str, unit: str = NATS) -> None:
    """Val loss against step, as `curves_of` draws it; no file where there is nothing to draw. unit: of the loss."""
    figure = curves_of(rows, title, unit)
    if figure is not None:
        save_figure(figure, path)


def curves_of(rows: list[dict[str, Any]], title: str, unit: str) -> Any:
    """The figure: the live weights and each average (of many `told_apart`); the axis leaves the first fall out."""
    live = curve(rows, "live")
    live = [(s, v) for s, v in live if s > 0] or live  # a run that diverges early has its first weights only
    if not live:
        return None
    figure, axes = pyplot().subplots(figsize=(7, 4.2), dpi=120)
    axes.plot(*zip(*live, strict=True), color="black", linewidth=2, marker=".", label="live", zorder=3)
    values = [v for _, v in live]
    curves = {id: points for id in averager_ids(rows) if (points := curve(rows, id))}
    named = told_apart(rows)
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


def told_apart(rows: list[dict[str, Any]]) -> list[str]:
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
    """A PNG without the traces of the machine that drew it."""
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    pyplot().close(figure)


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files; imported when something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def write_report(
    folder: Path,
    rows: list[dict[str, Any]],
    test: list[dict[str, Any]],
    title: str,
    facts: list[str],
    command: str,
    unit: str = NATS,
) -> None:
    """report.md and curves.png in `folder`. test: rows of the last step on the test split; facts: bullet points."""
    draw_curves(rows, folder / "curves.png", title, unit)
    parts = [
        f"# {title}",
        "",
        *(f"- {fact}" for fact in facts),
        "",
        f"## Validation loss ({unit})",
        "",
        loss_table(rows),
        "",
    ]
    parts += [
        "Steps saved: how many steps later the live weights of this same run reach what the average has at that step;",
        "`> n`: not within the n steps that were left.",
        "",
        "![curves](curves.png)",
        "",
    ]
    if curve(rows, "live", metric="accuracy"):
        parts += ["## Validation accuracy", "", readout_table(rows, "accuracy"), ""]
    if test:
        lines = [["weights", "test loss", "difference to live"]]
        lines += [[r["weights"], f"{r['loss']:.4f}", f"{r['loss'] - test[0]['loss']:+.4f}"] for r in test]
        if "accuracy" in test[0]:
            lines = [
                [*line, a] for line, a in zip(lines, ["accuracy", *(f"{r['accuracy']:.4f}" for r in test)], strict=True)
            ]
        parts += [
            f"## Test loss after step {test[0]['step']:,} ({test[0]['eval_samples']} samples)",
            "",
            markdown(lines),
            "",
        ]
    parts += ["## Run it again", "", f"    {command}", ""]
    (folder / "report.md").write_text("\n".join(parts))
