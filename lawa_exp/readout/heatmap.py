"""heatmap.png: k against spacing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from lawa_exp.readout.comparison import Comparison, Line, is_new
from lawa_exp.results.figures import pyplot, save_figure
from lawa_exp.results.grids import HATCHED, Cell, Windows, draw_panel
from lawa_exp.results.statistics import curve
from lawa_exp.results.tables import saved_text
from lawa_exp.storage.rows import Row


def grids(f: Comparison) -> dict[str, list[Line]]:
    """The lines of averages of a window, by kind (and start): what has a heat map, more than one cell each."""
    found: dict[str, list[Line]] = {}
    for line in f.lines:
        if "k" in line.fields and "spacing" in line.fields:
            start = line.fields.get("start")
            found.setdefault(line.fields["averager"] + (f" from step {start:,}" if start else ""), []).append(line)
    return {name: lines for name, lines in found.items() if len(lines) > 1}


def compared_at(f: Comparison, rows: list[Row]) -> int | None:
    """The last evaluation at which no window of a heat map is stale (see `is_new`): there all are compared."""
    windows = [line for lines in grids(f).values() for line in lines]
    steps = [{s for s, _ in curve(rows, line.id) if is_new(line.fields, s)} for line in windows]
    return max(set.intersection({s for s, _ in curve(rows, "live")}, *steps), default=None)


def compared_line(f: Comparison, rows: list[Row]) -> str:
    """What the heat map compares where windows are stale after the last step; empty where none is."""
    step = compared_at(f, rows)
    stale = {line.fields["spacing"] for lines in grids(f).values() for line in lines if not is_new(line.fields, f.step)}
    if not stale:
        return ""
    named = ", ".join(f"{spacing:,} ({f.step - f.step % spacing:,})" for spacing in sorted(stale))
    newest = f"after step {f.step:,} the newest snapshot is an earlier one at spacing {named}"
    if step is None:
        return f"Heat map: {newest}; at no evaluation are all windows new, so these cells are marked `of step`."
    return f"Heat map: losses at step {step:,}, the last evaluation at which all windows are new; {newest}."


def differences(f: Comparison, rows: list[Row], step: int, metric: str = "loss") -> dict[str, Cell]:
    """Of each window with a value at `step`, by id: loss (or a metric of `f`) less the live one, and how stale it is.

    The interval is known after the last step only.
    """
    live, found = dict(curve(rows, "live", metric=metric)).get(step, math.nan), {}
    digits = f.metrics[metric].digits if metric in f.metrics else 4
    for line in (line for lines in grids(f).values() for line in lines):
        half = (line.others[metric].half if metric in f.metrics else line.half) if step == f.step else math.nan
        newest = step - step % line.fields["spacing"]
        stale = "" if is_new(line.fields, step) else f"of step {newest:,}"
        gap = dict(curve(rows, line.id, metric=metric)).get(step, math.nan) - live
        if not math.isnan(gap):
            found[line.id] = Cell.of(gap, half, digits, stale)
    return found


def saved_cells(lines: list[Line]) -> tuple[int, dict[str, Cell]]:
    """The earliest step that steps saved are taken from, and those of each window by id, with its own where later."""
    first, found = min(line.at for line in lines), {}
    for line in lines:
        text = saved_text(*line.saved) + (f" from {line.at:,}" if line.at > first else "")
        found[line.id] = Cell(line.saved[0], text, line.saved_range, line.saved_unclear)
    return first, found


def windows_of(lines: list[Line], cells: Mapping[str, Cell]) -> Windows:
    """The cells of these lines, which are by id."""
    return {(line.fields["spacing"], line.fields["k"]): cells[line.id] for line in lines if line.id in cells}


def draw_heatmap(f: Comparison, rows: list[Row], path: Path, title: str, measure: str) -> bool:
    """k against spacing: difference to live, and steps saved; False, and no file, without a grid.

    The task's own metrics have a column each.

    Blue is better than live, red worse, white neither; cells whose interval includes 0 are hatched. The difference is
    that of step `compared_at`, else of the last, where stale windows are marked. The average that is chosen, at the
    last step, has a frame.
    """
    kinds = grids(f)
    if not kinds:
        path.unlink(missing_ok=True)  # of an earlier read-out
        return False
    step = compared_at(f, rows) or f.step
    gaps = {name: differences(f, rows, step, name) for name in ("loss", *f.metrics)}
    lines = [line for chosen in kinds.values() for line in chosen]
    spacings, ks = (sorted({line.fields[name] for line in lines}) for name in ("spacing", "k"))
    wide = 2 + len(f.metrics)
    width, height = wide * (1.5 * len(spacings) + 2.0), len(kinds) * (0.75 * len(ks) + 1.1) + 0.7
    figure, panels = pyplot().subplots(
        len(kinds), wide, figsize=(max(width, 4.5 * wide), max(height, 3)), dpi=120, squeeze=False, layout="constrained"
    )
    drawn: list[list[tuple[Windows, int]]] = [[] for _ in range(wide)]  # of each column: its cells, and the step named
    framed = []
    for chosen in kinds.values():
        first, saved = saved_cells(chosen)
        shown = [(gaps["loss"], step), (saved, first), *((gaps[name], step) for name in f.metrics)]
        for of_column, (cells, at) in zip(drawn, shown, strict=True):
            of_column.append((windows_of(chosen, cells), at))
        framed.append([(line.fields["spacing"], line.fields["k"]) for line in chosen if line.id == f.best])
    columns = [(f"{measure} less live, step {{:,}}", "RdBu_r"), ("steps saved, from step {:,}", "RdBu")]
    better = {name: "RdBu" if metric.higher_is_better else "RdBu_r" for name, metric in f.metrics.items()}
    columns += [(f"val {name} less live, step {{:,}}", colours) for name, colours in better.items()]
    for column, ((said, colours), grid) in enumerate(zip(columns, drawn, strict=True)):
        limit = max([1e-6, *(abs(cell.value) for windows, _ in grid for cell in windows.values())])
        for axes, (windows, at), name, best in zip(panels[:, column], grid, kinds, framed, strict=True):
            image = draw_panel(axes, windows, spacings, ks, limit, colours, best)
            axes.set_title(f"{name}: {said.format(at)}", fontsize=9)
        bar = figure.colorbar(image, ax=list(panels[:, column]), fraction=0.06, pad=0.02)
        bar.ax.tick_params(labelsize=7)
    unclear = any(cell.unclear for grid in drawn for windows, _ in grid for cell in windows.values())
    said = "blue: better than live, red: worse" + ("; frame: the best on val" if any(framed) else "")
    said += f"; {HATCHED}" if unclear else ""
    figure.suptitle(f"{title}\n{said}", fontsize=9)
    save_figure(figure, path)
    return True
