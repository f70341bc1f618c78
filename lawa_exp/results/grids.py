"""k against spacing as a grid of colours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawa_exp.results.figures import pyplot, save_figure

COLUMNS = 4
DARK = 0.65  # share of the scale beyond which the text is white
HATCHED = "hatched: inconclusive (its 95% interval holds 0)"


@dataclass(frozen=True)
class Cell:
    """value: gives the colour; text, below: its two lines; unclear: it could be chance, and is hatched."""

    value: float
    text: str
    below: str
    unclear: bool

    @classmethod
    def of(cls, difference: float, half: float, digits: int = 4, more: str = "") -> Cell:
        """Of a difference to the live weights. half: of its 95% interval (nan: not known). more: stands below, too."""
        known = "" if math.isnan(half) else f"± {half:.{digits}f}"
        below = ", ".join(text for text in (known, more) if text)
        return cls(difference, f"{difference:+.{digits}f}", below, abs(difference) <= half)


Windows = Mapping[tuple[int, int], Cell]  # by (spacing, k)


def draw_panel(
    axes: Any,
    windows: Windows,
    spacings: list[int],
    ks: list[int],
    limit: float,
    colours: str,
    framed: list[tuple[int, int]],
) -> Any:
    """One grid, and what its colour bar is made for. limit: the value with the full colour; white is 0."""
    rectangle = pyplot().Rectangle
    columns, lines = ({value: i for i, value in enumerate(values)} for values in (spacings, ks))
    cells = {(columns[spacing], lines[k]): cell for (spacing, k), cell in windows.items()}
    values = [
        [cells[x, y].value if (x, y) in cells else math.nan for x in range(len(spacings))] for y in range(len(ks))
    ]
    axes.grid(visible=False)
    image = axes.imshow(values, cmap=colours, vmin=-limit, vmax=limit, aspect="auto", origin="lower")
    for (x, y), cell in cells.items():
        colour = "white" if abs(cell.value) > DARK * limit else "black"
        if cell.unclear:
            hatched = {"fill": False, "hatch": "////", "edgecolor": "0.75", "linewidth": 0}
            axes.add_patch(rectangle((x - 0.5, y - 0.5), 1, 1, **hatched))
        for up, text, size in ((0.16 if cell.below else 0, cell.text, 9), (-0.2, cell.below, 7)):
            axes.text(x, y + up, text, ha="center", va="center", fontsize=size, color=colour)
    for x in range(len(spacings)):
        for y in range(len(ks)):
            if (x, y) not in cells:
                axes.text(x, y, "-", ha="center", va="center", fontsize=9, color="0.5")
    for x, y in ((columns[spacing], lines[k]) for spacing, k in framed):
        axes.add_patch(rectangle((x - 0.48, y - 0.47), 0.96, 0.94, fill=False, linewidth=1.8, edgecolor="black"))
    axes.set_xticks(range(len(spacings)), [f"{s:,}" for s in spacings], fontsize=8)
    axes.set_yticks(range(len(ks)), [str(k) for k in ks], fontsize=8)
    axes.set_xlabel("spacing (steps)", fontsize=8)
    axes.set_ylabel("k", fontsize=8)
    return image


def draw_windows(grids: Mapping[str, Windows], path: Path, title: str) -> bool:
    """A grid for each name, one scale for all; False, and no file, where there is none. Lower values are better."""
    if not grids:
        path.unlink(missing_ok=True)
        return False
    keys = [key for windows in grids.values() for key in windows]
    spacings, ks = (sorted({key[i] for key in keys}) for i in (0, 1))
    columns = min(len(grids), COLUMNS)
    lines = math.ceil(len(grids) / columns)
    size = columns * (1.1 * len(spacings) + 1.2), lines * (0.6 * len(ks) + 1.2) + 0.6
    figure, panels = pyplot().subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    cells = [cell for windows in grids.values() for cell in windows.values()]
    limit = max([1e-6, *(abs(cell.value) for cell in cells)])
    for axes in panels.flat[len(grids) :]:
        axes.set_visible(False)
    for axes, (name, windows) in zip(panels.flat, grids.items(), strict=False):
        best = min(windows, key=lambda window: windows[window].value)
        image = draw_panel(axes, windows, spacings, ks, limit, "RdBu_r", [best] if windows[best].value < 0 else [])
        axes.set_title(name, fontsize=9)
    figure.colorbar(image, ax=list(panels.flat), fraction=0.04, pad=0.02)
    hatched = f"; {HATCHED}" if any(cell.unclear for cell in cells) else ""
    figure.suptitle(
        f"{title}\nblue: better than live, red: worse; frame: the best, where it is better{hatched}", fontsize=9
    )
    save_figure(figure, path)
    return True
