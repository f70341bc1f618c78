"""The findings as text, CSV and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lawa_exp.critical_batch.findings import Findings, HeldOut, Level
from lawa_exp.results.figures import pyplot, save_figure
from lawa_exp.results.statistics import Curve
from lawa_exp.results.tables import markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def text(findings: Findings) -> str:
    """What the figures are of, the table, and a line for each finding."""
    smooth = f", each the mean of {findings.smooth} evaluations" if findings.smooth > 1 else ""
    lines = [
        f"Batch sizes {', '.join(map(str, findings.batch_sizes))}, {findings.seeds} seed(s) of each; val loss (nats), "
        f"weights {findings.weights}{smooth}.",
        f"S is in steps; E, B_crit and the noise scale are in samples of {findings.tokens_per_sample} tokens. "
        "fit: the largest relative error of S.",
        "",
        level_table(findings),
        "",
        f"- {law_line(findings)}",
    ]
    if findings.hold_out:
        lines += [f"- {line}" for line in held_out_lines(findings.hold_out)]
    return "\n".join([*lines, *(f"- note: {note}" for note in findings.notes)])


def level_table(findings: Findings) -> str:
    sizes = findings.batch_sizes
    lines = [["loss", *(f"S at {b}" for b in sizes), "S_min", "E_min", "B_crit", "95%", "law", "noise scale", "fit"]]
    for level in findings.levels:
        lines.append(
            [
                f"{level.loss:.4f}",
                *(f"{level.steps[b]:,.0f}" for b in sizes),
                *(short(value) for value in (level.s_min, level.e_min, level.b_crit)),
                f"{short(level.b_crit_low)} to {short(level.b_crit_high)}" if level.b_crit_low else "-",
                *(short(value) for value in (level.b_crit_law, level.noise_scale)),
                f"{level.fit_error:.1%}",
            ]
        )
    return markdown(lines)


def short(value: float | None) -> str:
    """Three digits, or all before the point; `-` for what there is not."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def law_line(findings: Findings) -> str:
    law = findings.law
    if law is None:
        return "no power law: fewer than two levels have a B_crit"
    exponents = [other.exponent for other in findings.laws_by_seed if other]
    by_seed = f" (by seed {min(exponents):.3g} to {max(exponents):.3g})" if len(exponents) > 1 else ""
    return f"law: B_crit = {law.at_one:.3g} / loss^{law.exponent:.3g} samples{by_seed}"


def held_out_lines(h: HeldOut) -> list[str]:
    (first, start), (last, end) = h.covered[0], h.covered[-1]
    medians = [errors.median_error for errors in h.by_seed if errors.median_error is not None]
    by_seed = f" (by seed {min(medians):.2%} to {max(medians):.2%})" if len(medians) > 1 else ""
    law_alone = ""
    if h.beyond.evaluations:
        law_alone = (
            f"; the {h.beyond.evaluations} at losses that not all of them reach: median {h.beyond.median_error:.2%}"
        )
    guesses = [
        f"{errors.median_error:.2%} and {errors.max_error:.2%} after {at}"
        for errors, at in ((h.at_same_samples, "as many samples"), (h.at_same_steps, "as many steps"))
        if errors.evaluations
    ]
    return [
        f"batch size {h.batch_size} held out, predicted from {', '.join(map(str, h.others))}: relative error of the "
        f"loss: median {h.errors.median_error:.2%}{by_seed}, max {h.errors.max_error:.2%}; {h.errors.evaluations} "
        f"evaluations, steps {first:,} to {last:,} of {h.last_step:,} (loss {start:.3f} to {end:.3f}){law_alone}",
        f"for comparison, the loss of batch size {h.nearest} as it is: {', '.join(guesses) or 'not covered'}",
    ]


def as_csv(levels: Sequence[Level]) -> str:
    """A line for each level, with a column steps_B for each batch size B."""
    rows = []
    for level in levels:
        fields = {name: value for name, value in asdict(level).items() if name != "steps"}
        rows.append(fields | {f"steps_{size}": steps for size, steps in level.steps.items()})
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def draw(findings: Findings, curves: Mapping[int, Curve], path: Path) -> None:
    """Three panels: loss against step; samples against steps for each loss, with its fit; B_crit against the loss."""
    figure, (left, middle, right) = pyplot().subplots(1, 3, figsize=(14, 4.2), dpi=110)
    draw_curves(left, curves, findings.hold_out)
    draw_trade_off(middle, findings.levels)
    draw_critical(right, findings)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.tick_params(which="minor", labelsize=6)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8, loc="lower left" if axes is left else "best")
    save_figure(figure, path)


def draw_curves(axes: Axes, curves: Mapping[int, Curve], hold_out: HeldOut | None) -> None:
    colours = pyplot().get_cmap("viridis")
    for i, (size, points) in enumerate(curves.items()):
        colour = colours(0.9 * i / (len(curves) - 1))
        axes.plot(*zip(*points, strict=True), color=colour, marker=".", ms=3, linewidth=1, label=f"B = {size}")
    if hold_out:
        label = f"B = {hold_out.batch_size}, from the others"
        axes.plot(*zip(*hold_out.predicted, strict=True), color="black", linestyle="--", linewidth=1.4, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("step (optimizer updates)")
    axes.set_ylabel("validation loss (nats)")


def draw_trade_off(axes: Axes, levels: Sequence[Level]) -> None:
    colours = pyplot().get_cmap("plasma")
    for i, level in enumerate(levels):
        colour = colours(0.85 * i / max(len(levels) - 1, 1))
        smallest, largest = min(level.steps), max(level.steps)
        sizes = [smallest * (largest / smallest) ** (k / 50) for k in range(51)]
        fitted = [level.s_min + level.e_min / b for b in sizes]
        axes.plot(fitted, [b * s for b, s in zip(sizes, fitted, strict=True)], color=colour, linewidth=1)
        label = f"loss {level.loss:.3f}" if i in (0, len(levels) - 1) else None
        steps = list(level.steps.values())
        axes.plot(steps, [b * s for b, s in level.steps.items()], "o", color=colour, ms=4, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("S: steps to the loss")
    axes.set_ylabel("E: samples to the loss")


def draw_critical(axes: Axes, findings: Findings) -> None:
    levels, inside = findings.levels, [float(size) for size in findings.batch_sizes]
    for level in levels:
        if level.b_crit_low is not None and level.b_crit_high is not None:
            axes.plot([level.loss] * 2, [level.b_crit_low, level.b_crit_high], color="0.5", linewidth=1)
    for values, style, colour, label in (
        ([level.b_crit for level in levels], "o", "black", "B_crit (95%)" if findings.seeds > 1 else "B_crit"),
        ([level.b_crit_law for level in levels], "-", "black", "power law"),
        ([level.noise_scale for level in levels], "x", "C1", "gradient noise scale"),
    ):
        points = [(level.loss, value) for level, value in zip(levels, values, strict=True) if value is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=colour, ms=5, linewidth=1, label=label)
            inside += [value for _, value in points]
    for size in findings.batch_sizes:
        axes.axhline(size, color="0.8", linewidth=0.8, zorder=0)
    axes.set_yscale("log")
    axes.set_ylim(min(inside) / 2, max(inside) * 2)  # an interval may be much wider
    axes.invert_xaxis()
    axes.set_xlabel("validation loss (nats)")
    axes.set_ylabel("samples (grey lines: the batch sizes)")
