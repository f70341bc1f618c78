"""What the analysis found, as text, CSV and a picture. `found` is the content of critical_batch.json."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lawa_exp.results.figures import pyplot, save_figure
from lawa_exp.results.statistics import Curve
from lawa_exp.results.tables import markdown


def text(found: dict[str, Any]) -> str:
    """What the figures are of, the table, and a line for each finding."""
    smooth = f", each the mean of {found['smooth']} evaluations" if found["smooth"] > 1 else ""
    lines = [
        f"Batch sizes {', '.join(map(str, found['batch_sizes']))}, {found['seeds']} seed(s) of each; val loss (nats), "
        f"weights {found['weights']}{smooth}.",
        f"S is in steps; E, B_crit and the noise scale are in samples of {found['tokens_per_sample']} tokens. "
        "fit: the largest relative error of S.",
        "",
        level_table(found),
        "",
        f"- {law_line(found)}",
    ]
    if found["hold_out"]:
        lines += [f"- {line}" for line in held_out_lines(found["hold_out"])]
    return "\n".join([*lines, *(f"- note: {note}" for note in found["notes"])])


def level_table(found: dict[str, Any]) -> str:
    sizes = found["batch_sizes"]
    lines = [["loss", *(f"S at {b}" for b in sizes), "S_min", "E_min", "B_crit", "95%", "law", "noise scale", "fit"]]
    for row in found["levels"]:
        spread = [short(row[end]) for end in ("b_crit_low", "b_crit_high")]
        lines.append(
            [
                f"{row['loss']:.4f}",
                *(f"{row['steps'][b]:,.0f}" for b in sizes),
                *(short(row[name]) for name in ("s_min", "e_min", "b_crit")),
                " to ".join(spread) if row["b_crit_low"] else "-",
                *(short(row[name]) for name in ("b_crit_law", "noise_scale")),
                f"{row['fit_error']:.1%}",
            ]
        )
    return markdown(lines)


def short(value: float | None) -> str:
    """Three digits, or all before the point; `-` for what there is not."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def law_line(found: dict[str, Any]) -> str:
    law = found["law"]
    if law is None:
        return "no power law: fewer than two levels have a B_crit"
    exponents = [other["exponent"] for other in found["laws_by_seed"] if other]
    by_seed = f" (by seed {min(exponents):.3g} to {max(exponents):.3g})" if len(exponents) > 1 else ""
    return f"law: B_crit = {law['at_one']:.3g} / loss^{law['exponent']:.3g} samples{by_seed}"


def held_out_lines(held: dict[str, Any]) -> list[str]:
    (first, start), (last, end) = held["covered"][0], held["covered"][-1]
    medians = [s["median_error"] for s in held["by_seed"] if s["median_error"] is not None]
    by_seed = f" (by seed {min(medians):.2%} to {max(medians):.2%})" if len(medians) > 1 else ""
    beyond = held["beyond_the_fits"]
    law_alone = ""
    if beyond["evaluations"]:
        law_alone = (
            f"; the {beyond['evaluations']} at losses that not all of them reach: median {beyond['median_error']:.2%}"
        )
    guesses = [
        f"{held[name]['median_error']:.2%} and {held[name]['max_error']:.2%} after {said}"
        for name, said in (("nearest_at_same_samples", "as many samples"), ("nearest_at_same_steps", "as many steps"))
        if held[name]["evaluations"]
    ]
    return [
        f"batch size {held['batch_size']} held out, predicted from {', '.join(map(str, held['from']))}: relative error "
        f"of the loss: median {held['median_error']:.2%}{by_seed}, max {held['max_error']:.2%}; {held['evaluations']} "
        f"evaluations, steps {first:,} to {last:,} of {held['last_step']:,} (loss {start:.3f} to {end:.3f}){law_alone}",
        f"for comparison, the loss of batch size {held['nearest']} as it is: {', '.join(guesses) or 'not covered'}",
    ]


def as_csv(levels: Sequence[dict[str, Any]]) -> str:
    """A line for each level, with a column steps_B for each batch size B."""
    rows = [{k: v for k, v in row.items() if k != "steps"} for row in levels]
    for flat, row in zip(rows, levels, strict=True):
        flat |= {f"steps_{size}": steps for size, steps in row["steps"].items()}
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def draw(found: dict[str, Any], curves: Mapping[int, Curve], path: Path) -> None:
    """Three panels: loss against step; samples against steps for each loss, with its fit; B_crit against the loss."""
    figure, (left, middle, right) = pyplot().subplots(1, 3, figsize=(14, 4.2), dpi=110)
    draw_curves(left, curves, found["hold_out"])
    draw_trade_off(middle, found["levels"])
    draw_critical(right, found)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.tick_params(which="minor", labelsize=6)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8, loc="lower left" if axes is left else "best")
    save_figure(figure, path)


def draw_curves(axes: Any, curves: Mapping[int, Curve], held: dict[str, Any] | None) -> None:
    colours = pyplot().get_cmap("viridis")
    for i, (size, points) in enumerate(curves.items()):
        colour = colours(0.9 * i / (len(curves) - 1))
        axes.plot(*zip(*points, strict=True), color=colour, marker=".", ms=3, linewidth=1, label=f"B = {size}")
    if held:
        label = f"B = {held['batch_size']}, from the others"
        axes.plot(*zip(*held["predicted"], strict=True), color="black", linestyle="--", linewidth=1.4, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("step (optimizer updates)")
    axes.set_ylabel("validation loss (nats)")


def draw_trade_off(axes: Any, levels: Sequence[dict[str, Any]]) -> None:
    colours = pyplot().get_cmap("plasma")
    for i, row in enumerate(levels):
        colour = colours(0.85 * i / max(len(levels) - 1, 1))
        smallest, largest = min(row["steps"]), max(row["steps"])
        sizes = [smallest * (largest / smallest) ** (k / 50) for k in range(51)]
        fitted = [row["s_min"] + row["e_min"] / b for b in sizes]
        axes.plot(fitted, [b * s for b, s in zip(sizes, fitted, strict=True)], color=colour, linewidth=1)
        label = f"loss {row['loss']:.3f}" if i in (0, len(levels) - 1) else None
        steps = list(row["steps"].values())
        axes.plot(steps, [b * s for b, s in row["steps"].items()], "o", color=colour, ms=4, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("S: steps to the loss")
    axes.set_ylabel("E: samples to the loss")


def draw_critical(axes: Any, found: dict[str, Any]) -> None:
    rows, inside = found["levels"], list(found["batch_sizes"])
    for row in rows:
        if row["b_crit_low"] is not None:
            axes.plot([row["loss"]] * 2, [row["b_crit_low"], row["b_crit_high"]], color="0.5", linewidth=1)
    for name, style, colour, label in (
        ("b_crit", "o", "black", "B_crit (95%)" if found["seeds"] > 1 else "B_crit"),
        ("b_crit_law", "-", "black", "power law"),
        ("noise_scale", "x", "C1", "gradient noise scale"),
    ):
        points = [(row["loss"], row[name]) for row in rows if row[name] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=colour, ms=5, linewidth=1, label=label)
            inside += [value for _, value in points]
    for size in found["batch_sizes"]:
        axes.axhline(size, color="0.8", linewidth=0.8, zorder=0)
    axes.set_yscale("log")
    axes.set_ylim(min(inside) / 2, max(inside) * 2)  # an interval may be much wider
    axes.invert_xaxis()
    axes.set_xlabel("validation loss (nats)")
    axes.set_ylabel("samples (grey lines: the batch sizes)")
