"""How the plots look, in one place: sheets of panels whose lines are means over seeds with a band of ± 1 sd.

Lines differ in grey, too: by line style, marker and lightness. What is drawn is kept as rows, for a CSV.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lawa_exp.results.figures import STYLES, pyplot
from lawa_exp.results.tables import NATS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (3.0, 2.6)  # inches
LEGEND = 0.35  # inches of height for a line of the legend
ENTRY = 0.75, 0.07  # inches that an entry of the legend takes, and each of its letters
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HEAD = ["panel", "line", "x", "mean", "sd", "n"]
STEP = "step (optimizer updates)"
SHARE = "progress (% of the budget)"
LOSS = f"validation loss ({NATS})"
GAIN = f"gain over live ({NATS})"


@dataclass(frozen=True)
class Look:
    colour: str
    line: str
    marker: str


LIVE = "live"
LOOKS = {
    LIVE: Look("black", "-", ""),
    "lawa": Look("#1b4f9c", "--", "o"),
    "best lawa": Look("#c8521c", "-.", "s"),
    "ema": Look("#3f9e7c", ":", "^"),
    "swa": Look("#b9a436", "-", "D"),
}
OTHER_KINDS = ("#7b3f8c", "#c8521c", "#a0522d", "#2f8f9d")
DOTS = 20  # markers of a line, at most


def looks_of(kinds: Mapping[str, str]) -> dict[str, Look]:
    """Of the live weights and of each average by its id. kinds: averagers by id; one kind has one hue, from dark to
    light where it has several."""
    from matplotlib.colors import to_hex, to_rgb

    others = itertools.cycle(OTHER_KINDS)
    hues = {kind: LOOKS[kind].colour if kind in LOOKS else next(others) for kind in dict.fromkeys(kinds.values())}
    sizes, nth = Counter(kinds.values()), Counter[str]()
    looks = {LIVE: LOOKS[LIVE]}
    for i, (id, kind) in enumerate(kinds.items()):
        share = 0.6 * nth[kind] / sizes[kind]  # of white
        red, green, blue = (c + share * (1 - c) for c in to_rgb(hues[kind]))
        looks[id] = Look(to_hex((red, green, blue)), STYLES[(i + 1) % len(STYLES)], MARKERS[i % len(MARKERS)])
        nth[kind] += 1
    return looks


def ramp(i: int, n: int) -> Look:
    """The look of the i-th of n values of an ordered quantity: from dark to light."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    share = i / max(n - 1, 1)
    return Look(to_hex(colormaps["cividis"](0.85 * share)), STYLES[i % len(STYLES)], MARKERS[i % len(MARKERS)])


BySeed = Mapping[float, Sequence[float]]  # {x: a value for each seed}


@dataclass
class Sheet:
    """A figure of panels; rows: its numbers, as `HEAD` names them; notes: what its caption adds."""

    figure: Figure
    panels: list[Axes]
    rows: list[list[object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, titles: Sequence[str], columns: int | None = None, share_y: bool = True) -> Sheet:
        """Panels of these titles, filled row by row. share_y: one y axis for those of a row."""
        columns = columns or len(titles)
        lines = math.ceil(len(titles) / columns)
        width, height = max(PANEL[0] * columns, 5.0), PANEL[1] * lines + 2 * LEGEND
        figure, axes = pyplot().subplots(
            lines,
            columns,
            figsize=(width, height),
            layout="constrained",
            squeeze=False,
            sharey="row" if share_y else False,
        )
        panels = list(axes.flat)
        for panel, title in zip(panels, titles, strict=False):
            panel.set_title(title)
        for panel in panels[len(titles) :]:
            panel.set_visible(False)
        return cls(figure, panels)

    def line(self, panel: int, label: str, values: BySeed, look: Look, hollow: bool = False) -> None:
        """Mean over seeds against x, with a band of ± 1 sd. hollow: lower bounds, by markers alone."""
        points = sorted((x, list(v)) for x, v in values.items() if v)
        if not points:
            return
        xs, means = [x for x, _ in points], [statistics.fmean(v) for _, v in points]
        sds = [statistics.stdev(v) if len(v) > 1 else 0.0 for _, v in points]
        axes = self.panels[panel]
        if hollow:
            axes.plot(xs, means, color=look.colour, marker=look.marker, linestyle="", fillstyle="none")
        else:
            draw_line(axes, list(zip(xs, means, strict=True)), label, look)
            if any(sds):
                low, high = ([m + sign * s for m, s in zip(means, sds, strict=True)] for sign in (-1, 1))
                axes.fill_between(xs, low, high, color=look.colour, alpha=0.15, linewidth=0)
        name = f"{label} (lower bound)" if hollow else label
        title = axes.get_title()
        rows = zip(points, means, sds, strict=True)
        self.rows += [[title, name, x, m, s if len(v) > 1 else "", len(v)] for (x, v), m, s in rows]

    def faint(self, panel: int, curves: Sequence[Sequence[tuple[float, float]]]) -> None:
        """Many lines behind the others, without names of their own."""
        for i, points in enumerate(curves):
            label = f"{len(curves)} others" if i == 0 else None
            self.panels[panel].plot(*zip(*points, strict=True), color="0.8", linewidth=0.8, zorder=1, label=label)

    def zero(self) -> None:
        """The line where an average is no better than the live weights."""
        for axes in self.panels:
            axes.axhline(0, color="0.35", linewidth=0.9, zorder=1)

    def labels(self, x: str, y: str, columns: int | None = None) -> None:
        """x: below the lowest panels; y: left of the first panel of each row."""
        columns = columns or len(self.panels)
        shown = [axes for axes in self.panels if axes.get_visible()]
        for i, axes in enumerate(shown):
            if i + columns >= len(shown):
                axes.set_xlabel(x)
            if i % columns == 0:
                axes.set_ylabel(y)

    def legend(self) -> Sheet:
        """One for all panels, below them."""
        entries: dict[str, Artist] = {}
        for axes in self.panels:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                entries.setdefault(label, handle)
        if entries:
            each = ENTRY[0] + ENTRY[1] * max(map(len, entries))
            columns = min(len(entries), max(1, int(self.figure.get_figwidth() / each)))
            self.figure.legend(
                list(entries.values()), list(entries), loc="outside lower center", ncols=columns, handlelength=3.2
            )
        return self


def draw_line(axes: Axes, points: Sequence[tuple[float, float]], label: str, look: Look) -> None:
    every = math.ceil(len(points) / DOTS)
    axes.plot(
        *zip(*points, strict=True),
        color=look.colour,
        linestyle=look.line,
        marker=look.marker,
        markevery=every,
        label=label,
    )


def later(panel: Axes, values: Sequence[float]) -> None:
    """Sets the y axis to these values with a margin, so that what falls before them does not fill it."""
    low, high = min(values), max(values)
    margin = 0.05 * max(high - low, 1e-3)
    panel.set_ylim(low - margin, high + margin)


def ticks(panel: Axes, values: Sequence[float]) -> None:
    """These and no others on the x axis, as plain numbers."""
    panel.set_xticks(values, [f"{v:g}" for v in values])
    panel.set_xticks([], minor=True)


def above(panel: Axes) -> None:
    """Cuts the y axis where it would reach further below 0 than above: what is bad by much leaves the frame."""
    bottom, top = panel.get_ylim()
    panel.set_ylim(max(bottom, -top), top)
