"""What a read-out says: a table, summary.md, curves.png and heatmap.png, from its rows and the sums of its batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawa_exp.metrics import curve, steps_saved
from lawa_exp.readout.noise import halfway, paired, saved_between, scatter, together
from lawa_exp.replay import ReadOut
from lawa_exp.report import draw_curves, markdown, pyplot, save_figure, saved_text

DRAWN = 6  # averages whose curves have a colour; of more, the best of each kind


@dataclass(frozen=True)
class Line:
    """One average after the last step. half: of the 95% interval of `difference`, which is its loss less the live one.

    at: the step that its steps saved are taken from. saved_range: as text; "" where the noise is not known.
    """

    id: str
    fields: dict[str, Any]
    loss: float
    difference: float
    half: float
    to_best: tuple[float, float]  # loss less that of the best average, and half of its interval
    at: int
    saved: tuple[float, bool]  # as `steps_saved` gives them
    saved_range: str


@dataclass(frozen=True)
class Findings:
    """What is told about a read-out. best: the id that val chooses."""

    step: int
    live: float
    lines: list[Line]
    best: str
    batches: int  # that the differences are paired by; 0: the noise of the samples is not known
    scatter: float  # of the live curve


def findings(found: ReadOut, rows: list[dict[str, Any]], ids: Sequence[str]) -> Findings:
    """rows: val rows of the live weights and of the averages `ids`, whose lines are in that order.

    Averages without a finite loss after the last step have none.
    """
    live = [point for point in curve(rows, "live") if point[0] > 0]
    step, live_loss = found.step, dict(live)[found.step]
    curves = {id: points for id in ids if step in dict(points := curve(rows, id))}
    fields = {r["weights"]: r for r in rows}
    best = min(curves, key=lambda id: dict(curves[id])[step])
    spread = scatter(live)

    def paired_to(id: str, other: str) -> float:
        return paired(found.sums[id], found.sums[other])[1] if {id, other} <= found.sums.keys() else math.nan

    lines = []
    for id, points in curves.items():
        loss = dict(points)[step]
        half = together(paired_to(id, "live"), 1.96 * spread)
        at = halfway([s for s, _ in points], step)
        saved = steps_saved(live, at, dict(points)[at])
        bounds = saved_between(live, at, dict(points)[at], half)
        saved_range = "" if bounds is None else " to ".join(saved_text(*b) for b in bounds)
        to_best = (loss - dict(curves[best])[step], paired_to(id, best))
        lines.append(Line(id, fields[id], loss, loss - live_loss, half, to_best, at, saved, saved_range))
    batches = len(found.sums["live"]) if "live" in found.sums else 0
    return Findings(step, live_loss, lines, best, batches if batches > 1 else 0, spread)


def table(f: Findings) -> str:
    """A line for each average: loss after the last step, difference to live and to the best, steps saved half-way."""
    noise = any(line.saved_range for line in f.lines)
    head = [
        "weights",
        f"val loss, step {f.step:,}",
        "to live",
        "to the best",
        "steps saved",
        *["range"] * noise,
        "at step",
    ]
    lines = [head, ["live", f"{f.live:.4f}", "", "", "", *[""] * noise, ""]]
    for line in f.lines:
        difference = f"{line.difference:+.4f}" + _half(line.half)
        to_best = "the best" if line.id == f.best else f"{line.to_best[0]:+.4f}" + _half(line.to_best[1])
        saved = [saved_text(*line.saved), *[line.saved_range] * noise, f"{line.at:,}"]
        lines.append([line.id, f"{line.loss:.4f}", difference, to_best, *saved])
    return markdown(lines)


def _half(half: float) -> str:
    return "" if math.isnan(half) else f" ± {half:.4f}"


def noise_line(f: Findings) -> str:
    """What the intervals hold and what they do not."""
    sources = [f"the evaluation's samples (paired, {f.batches} batches)"] if f.batches else []
    if not math.isnan(f.scatter):
        sources.append(f"the live curve's scatter from one evaluation to the next (standard deviation {f.scatter:.4f})")
    if not sources:
        return "Noise: not known (one batch of evaluation, and too few evaluations for the live curve's scatter)."
    missing = "" if f.batches else "; the evaluation's samples are not in it (fewer than two batches)"
    missing += "; the live curve's scatter is not in it (too few evaluations)" if math.isnan(f.scatter) else ""
    return (
        f"Noise: ± is half of a 95% interval from {' and '.join(sources)}{missing}. It is that of this one run: "
        "what another seed would change is not in it. To the best: the samples alone."
    )


SAVED_LINE = (
    "Steps saved: how many steps later the live weights reach what the average has at the step named (half-way, or as "
    "soon as it is defined); > n: not within the n steps left. Range: the same for that loss plus and minus its ±."
)


def grids(f: Findings) -> dict[str, list[Line]]:
    """The lines of averages of a window, by kind (and start): what has a heat map, more than one cell each."""
    found: dict[str, list[Line]] = {}
    for line in f.lines:
        if "k" in line.fields and "spacing" in line.fields:
            start = line.fields.get("start")
            found.setdefault(line.fields["averager"] + (f" from step {start:,}" if start else ""), []).append(line)
    return {name: lines for name, lines in found.items() if len(lines) > 1}


def draw_heatmap(f: Findings, path: Path, title: str) -> bool:
    """k against spacing: difference to live after the last step, and steps saved; False, and no file, without a grid.

    A frame is around the best of all.
    """
    kinds = grids(f)
    if not kinds:
        return False
    lines = [line for chosen in kinds.values() for line in chosen]
    spacings, ks = (sorted({line.fields[name] for line in lines}) for name in ("spacing", "k"))
    size = (2 * (1.5 * len(spacings) + 1.4), len(kinds) * (0.75 * len(ks) + 1.0) + 0.5)
    figure, panels = pyplot().subplots(
        len(kinds), 2, figsize=(max(size[0], 7.5), max(size[1], 2.8)), dpi=120, squeeze=False
    )
    limit = max(-min(line.difference for line in lines), 1e-6)  # colours tell gains apart; what is worse is red
    most = max(*(line.saved[0] for line in lines), 1.0)
    for (name, chosen), (left, right) in zip(kinds.items(), panels, strict=True):
        first = min(line.at for line in chosen)
        differences, saved = {}, {}
        for line in chosen:
            cell = spacings.index(line.fields["spacing"]), ks.index(line.fields["k"])
            later = f" from {line.at:,}" if line.at > first else ""
            differences[cell] = line.difference, f"{line.difference:+.4f}", _half(line.half).strip()
            saved[cell] = line.saved[0], saved_text(*line.saved) + later, line.saved_range
        best = [
            (spacings.index(line.fields["spacing"]), ks.index(line.fields["k"])) for line in chosen if line.id == f.best
        ]
        _panel(left, differences, spacings, ks, limit, "RdBu_r", best)
        left.set_title(f"{name}: val loss less live, step {f.step:,}", fontsize=9)
        _panel(right, saved, spacings, ks, most, "RdBu", best)
        right.set_title(f"{name}: steps saved, from step {first:,}", fontsize=9)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)
    return True


def _panel(
    axes: Any,
    cells: dict[tuple[int, int], tuple[float, str, str]],
    spacings: list[int],
    ks: list[int],
    limit: float,
    colours: str,
    framed: list[tuple[int, int]],
) -> None:
    """One grid. cells: by column and row, the value that gives the colour (white at 0), and two lines of text."""
    clipped = {cell: max(-limit, min(limit, value)) for cell, (value, *_) in cells.items()}
    values = [[clipped.get((x, y), math.nan) for x in range(len(spacings))] for y in range(len(ks))]
    axes.imshow(values, cmap=colours, vmin=-1.6 * limit, vmax=1.6 * limit, aspect="auto", origin="lower")
    for (x, y), (_, text, below) in cells.items():
        axes.text(x, y + (0.16 if below else 0), text, ha="center", va="center", fontsize=8)
        axes.text(x, y - 0.22, below, ha="center", va="center", fontsize=6, color="0.25")
    for x in range(len(spacings)):
        for y in range(len(ks)):
            if (x, y) not in cells:
                axes.text(x, y, "-", ha="center", va="center", fontsize=8, color="0.5")
    for x, y in framed:
        corner, sides = (x - 0.47, y - 0.46), (0.94, 0.92)
        axes.add_patch(pyplot().Rectangle(corner, *sides, fill=False, linewidth=1.6, edgecolor="black"))
    axes.set_xticks(range(len(spacings)), [f"{s:,}" for s in spacings], fontsize=8)
    axes.set_yticks(range(len(ks)), [str(k) for k in ks], fontsize=8)
    axes.set_xlabel("spacing (steps)", fontsize=8)
    axes.set_ylabel("k", fontsize=8)


@dataclass(frozen=True)
class Test:
    """The average that val chose, on the test split after the last step."""

    id: str
    loss: float
    live: float
    half: float  # of the 95% interval of the difference, from the samples alone
    samples: int


def chosen_line(f: Findings, test: Test | None, why_no_test: str) -> str:
    """What val chooses, and what it is worth where it was not chosen."""
    best = next(line for line in f.lines if line.id == f.best)
    difference = f"{best.difference:+.4f}{_half(best.half)}"
    text = f"Chosen on val (step {f.step:,}, of {len(f.lines)}): {f.best}, {difference} to live."
    if test is None:
        return f"{text} Not tested: {why_no_test}; on the val it was chosen on it looks better than it is."
    difference = f"{test.loss - test.live:+.4f}{_half(test.half)}"
    sampled = "" if math.isnan(test.half) else " (± from the samples alone)"
    losses = f"{test.loss:.4f}, live {test.live:.4f}, difference {difference}{sampled}"
    return f"{text} On test ({test.samples:,} samples): {losses}."


def write_summary(
    out: Path,
    f: Findings,
    rows: list[dict[str, Any]],
    title: str,
    chosen: str,
    notes: Sequence[str],
    command: str,
) -> str:
    """Writes summary.md and the figures into `out`; returns the text that the terminal shows."""
    ids = [line.id for line in f.lines]
    kinds: dict[str, Line] = {}
    for line in sorted(f.lines, key=lambda line: line.loss):
        kinds.setdefault(line.fields["averager"], line)
    faint = [id for id in ids if id not in {line.id for line in kinds.values()}] if len(ids) > DRAWN else []
    draw_curves(rows, out / "curves.png", title, faint)
    drawn = draw_heatmap(f, out / "heatmap.png", title)
    paragraphs = [table(f), chosen, noise_line(f), SAVED_LINE]
    listed = "\n".join(f"- {note}" for note in notes)
    figures = [*(["![k against spacing](heatmap.png)"] if drawn else []), "![curves](curves.png)"]
    head = [f"# {title}", f"    {command}", "Losses in nats. The rows are in metrics.jsonl."]
    parts = [*head, *paragraphs, *([listed] if listed else []), *figures]
    (out / "summary.md").write_text("\n\n".join(parts) + "\n")
    return "\n\n".join(paragraphs)
