"""The pages of conf/experiment: reads the finished runs of their sweeps, judges by the rule in the experiment's file.

    python benchmarks/experiments.py wsd_horizons runs/sweeps/wsd_horizons-* --out results/wsd_horizons

Every figure comes from the runs. A difference is paired by seed: mean and half of its 95% interval (Student's t).
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lawa_exp.axes.scaling.scaling import SEQUENCE
from lawa_exp.results.figures import STYLES, pyplot, save_figure
from lawa_exp.results.statistics import curve, mean_and_deviation, paired_difference
from lawa_exp.results.summary import made_with, read_run, with_spread
from lawa_exp.results.tables import markdown
from lawa_exp.storage import manifest
from lawa_exp.storage.rows import averager_ids

CONF = Path(__file__).parent.parent / "conf" / "experiment"
Interval = tuple[float, float]  # mean, half of the 95% interval
TOLERANCE = 0.01  # nats in wsd_horizons (H1), a share of the loss in power_rate


@dataclass(frozen=True)
class Cell:
    """Entries that differ in the seed alone. config: of one of them; losses: by split, weights and seed, at the end."""

    name: str
    overrides: dict[str, str]
    config: dict[str, Any]
    losses: dict[tuple[str, str], dict[int, float]]

    def of(self, weights: str = "live", split: str = "test") -> list[float]:
        """By ascending seed."""
        return [loss for _, loss in sorted(self.losses[split, weights].items())]

    def val(self, weights: str = "live") -> float:
        return statistics.fmean(self.of(weights, "val"))

    def best_average(self) -> str:
        """The averager with the lowest val loss, mean over seeds."""
        return min((w for split, w in self.losses if split == "val" and w != "live"), key=self.val)

    @property
    def peak(self) -> float:
        return float(self.config["lr"]["peak"])

    @property
    def batch(self) -> int:
        return int(self.config["batch"]["size"])


@dataclass(frozen=True)
class Sweep:
    """A finished multirun."""

    name: str
    manifest: dict[str, Any]
    cells: list[Cell]

    @property
    def command(self) -> str:
        """As it was given, but for the folder of the runs."""
        words = shlex.split(self.manifest["command"])
        return shlex.join(w for w in words if not w.startswith("runs_root="))


def read_sweep(folder: Path) -> Sweep:
    content = manifest.read(folder)
    found: dict[str, list[tuple[dict[str, str], Path, int, list[str]]]] = {}
    for entry in content["entries"]:
        overrides = dict(o.split("=", 1) for o in entry["overrides"])
        name = " ".join(f"{k}={v}" for k, v in overrides.items() if k not in ("seed", "runs_root", "sweep"))
        found.setdefault(name, []).append((overrides, entry["run_dir"], entry["steps"], entry["averages"]))
    cells = []
    for name, entries in found.items():
        losses: dict[tuple[str, str], dict[int, float]] = {}
        for _, run, steps, averages in entries:
            if not (run / "DONE").exists():
                raise SystemExit(f"{run} is not finished (diverged, or still to be trained): no page")
            config = yaml.safe_load((run / "config.yaml").read_text())
            for split, rows in zip(("val", "test"), read_run(run, averages, steps), strict=True):
                for weights in ("live", *averager_ids(rows)):
                    at_end = dict(curve(rows, weights, split)).get(steps)
                    if at_end is not None:
                        losses.setdefault((split, weights), {})[config["seed"]] = at_end
        config["steps"] = steps  # the run may have gone on for a larger budget
        cells.append(Cell(name, entries[0][0], config, losses))
    return Sweep(folder.name, content, cells)


def minus(a: Sequence[float], b: Sequence[float]) -> Interval:
    return paired_difference(a, b)


def shown(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds."""
    return with_spread("{:.4f}", *mean_and_deviation(values))


def signed(interval: Interval) -> str:
    return with_spread("{:+.4f}", *interval)


def verdict(intervals: Sequence[Interval], bound: float = 0.0) -> str:
    """Whether all intervals are below the bound, any is above it, or neither."""
    if all(mean + half < bound for mean, half in intervals):
        return "holds"
    return "fails" if any(mean - half > bound for mean, half in intervals) else "undecided"


def above(intervals: Sequence[Interval]) -> list[Interval]:
    """Turned round, for a verdict on "all are above 0"."""
    return [(-mean, half) for mean, half in intervals]


def best(cells: Sequence[Cell], weights: Callable[[Cell], str] = lambda _: "live") -> Cell:
    """The lowest val loss, mean over seeds."""
    return min(cells, key=lambda c: c.val(weights(c)))


def edge(chosen: Cell, cells: Sequence[Cell]) -> str:
    """A mark where the chosen peak is the smallest or largest that was tried."""
    peaks = [c.peak for c in cells]
    return f"{chosen.peak:g}" + (" (edge)" if chosen.peak in (min(peaks), max(peaks)) else "")


# --- the experiments: each returns Markdown and draws its plot ------------------------------------------------------


def wsd_horizons(sweeps: dict[str, Sweep], out: Path) -> str:
    decays = [c for c in sweeps["decays"].cells if "lr.decay_steps" in c.overrides]
    kinds = {
        "cosine to 10%": [c for c in sweeps["cosine"].cells if c.config["lr"]["final_ratio"] == 0.1],
        "cosine to 0": [c for c in sweeps["cosine"].cells if c.config["lr"]["final_ratio"] == 0],
        "WSD, 10% decay": [c for c in decays if c.overrides["lr.decay_steps"] == "10%"],
        "WSD, 2.5% decay": [c for c in decays if c.overrides["lr.decay_steps"] == "2.5%"],
    }
    stable = sweeps["stable"].cells
    horizons = sorted({c.config["steps"] for c in stable})
    seeds = len(stable[0].of())
    lines = [["horizon", "weights", "peak", "val loss", "test loss", "test - tuned cosine"]]
    points: dict[str, list[list[float]]] = {}
    h1, h2, over, under = [], [], [], []
    for horizon in horizons:
        at = {kind: [c for c in cells if c.config["steps"] == horizon] for kind, cells in kinds.items()}
        chosen = {kind: best(cells) for kind, cells in at.items()}
        cosine = best([chosen["cosine to 10%"], chosen["cosine to 0"]])
        decay, here = chosen["WSD, 10% decay"], [c for c in stable if c.config["steps"] == horizon]
        same = next(c for c in here if c.peak == decay.peak)
        tuned = best(here, Cell.best_average)
        rows = [(kind, c, "live", edge(c, at[kind])) for kind, c in chosen.items()]
        rows.append(("stable run of that 10%, live", same, "live", f"{same.peak:g}"))
        rows.append((f"the same, {same.best_average()}", same, same.best_average(), f"{same.peak:g}"))
        rows.append(
            (f"stable run tuned for it, {tuned.best_average()}", tuned, tuned.best_average(), edge(tuned, here))
        )
        for label, cell, weights, peak in rows:
            test = cell.of(weights)
            difference = "" if cell is cosine else signed(minus(test, cosine.of()))
            lines.append([str(horizon), label, peak, shown(cell.of(weights, "val")), shown(test), difference])
            key = re.sub(r", (lawa|ema)\S*", ", best average", label)
            points.setdefault(key, []).append(test)
        average, live, d10 = same.of(same.best_average()), same.of(), decay.of()
        h1.append(minus(d10, cosine.of()))
        h2.append(minus(chosen["WSD, 2.5% decay"].of(), d10))
        over.append(minus(average, d10))
        under.append(minus(average, [(a + b) / 2 for a, b in zip(live, d10, strict=True)]))
    h3 = {verdict(above(over)), verdict(under)}
    said = [
        f"- H1, 10% at most {TOLERANCE} above cosine: **{verdict(h1, TOLERANCE)}** ({', '.join(map(signed, h1))})",
        f"- H2, 2.5% worse than 10%: **{verdict(above(h2))}** ({', '.join(map(signed, h2))})",
        f"- H3, the average gives more than half of the decay's gain, not all: **{worst(h3)}** "
        f"(average - decay {', '.join(map(signed, over))}; average - middle {', '.join(map(signed, under))})",
    ]
    draw_lines(out / "plot.png", horizons, points, "horizon (steps)")
    sweep = [["horizon", "weights", *(f"{p:g}" for p in sorted({c.peak for c in stable}))]]
    for horizon in horizons:
        named = {**kinds, "stable, live": stable}
        for kind, cells in named.items():
            row = sorted((c for c in cells if c.config["steps"] == horizon), key=lambda c: c.peak)
            sweep.append([str(horizon), kind, *(f"{c.val():.4f}" for c in row)])
        row = sorted((c for c in stable if c.config["steps"] == horizon), key=lambda c: c.peak)
        sweep.append([str(horizon), "stable, best average", *(f"{c.val(c.best_average()):.4f}" for c in row)])
    return page(said, [("", markdown(lines)), (f"Val loss over peaks, mean of {seeds} seeds", markdown(sweep))])


def batch_rules(sweeps: dict[str, Sweep], out: Path) -> str:
    base = best(sweeps["base"].cells)
    power = sweeps["power"].cells if "power" in sweeps else []
    found = {(c.config["scaling"]["kind"], c.batch): c for c in [*sweeps["rules"].cells, *power]}
    sizes = sorted({base.batch, *(batch for _, batch in found)})
    rules = list(dict.fromkeys(rule for rule, _ in found))
    lines = [
        [
            "batch",
            "rule",
            "rate",
            "steps",
            "live, test",
            "averaged, test",
            "average",
            "gain",
            "live - sqrt",
            "averaged - sqrt",
        ]
    ]
    points: dict[str, list[list[float]]] = {}
    for size in sizes:
        for rule in ["any"] if size == base.batch else rules:
            cell = base if size == base.batch else found[rule, size]
            root = base if size == base.batch else found["sqrt", size]
            average = cell.best_average()
            gain = minus(cell.of(), cell.of(average))
            to_root = ["", ""]
            if cell is not root:
                to_root = [
                    signed(minus(cell.of(), root.of())),
                    signed(minus(cell.of(average), root.of(root.best_average()))),
                ]
            rate = f"{rate_of(cell, base):g}"
            lines.append(
                [
                    str(size),
                    rule,
                    rate,
                    str(cell.config["steps"]),
                    shown(cell.of()),
                    shown(cell.of(average)),
                    average,
                    signed(gain),
                    *to_root,
                ]
            )
        for rule in rules:
            cell = base if size == base.batch else found[rule, size]
            points.setdefault(f"{rule}, live", []).append(cell.of())
            points.setdefault(f"{rule}, averaged", []).append(cell.of(cell.best_average()))
    ends = [min(sizes), max(sizes)]
    h1 = [minus(found["sqrt", s].of(), found[rule, s].of()) for s in ends for rule in ("none", "linear")]
    ranges = []
    for s in ends:
        three = [found[rule, s] for rule in ("none", "linear", "sqrt")]
        live = np.ptp([c.of() for c in three], axis=0).tolist()
        averaged = np.ptp([c.of(c.best_average()) for c in three], axis=0).tolist()
        ranges.append(minus(averaged, live))
    said = [
        f"- H1, sqrt below none and linear at batch {ends[0]} and {ends[1]}, live: **{verdict(h1)}** (sqrt - none and "
        f"sqrt - linear at {ends[0]}: {signed(h1[0])}, {signed(h1[1])}; at {ends[1]}: {signed(h1[2])}, "
        f"{signed(h1[3])})",
        f"- H2, the rules' range is smaller averaged than live: **{verdict(ranges)}** (at {ends[0]}: "
        f"{signed(ranges[0])}; at {ends[1]}: {signed(ranges[1])})",
    ]
    if power:
        equal = all(found["power", s].losses == found["linear", s].losses for s in sizes if s != base.batch)
        said.append(f"- H3, power is linear, to the last digit: **{'holds' if equal else 'fails'}**")
    draw_lines(out / "plot.png", sizes, points, "batch (samples of 64 tokens), equal tokens")
    sweep = [["peak", "live, val", "best average, val", "average", "live, test", "averaged, test"]]
    for c in sorted(sweeps["base"].cells, key=lambda c: c.peak):
        a = c.best_average()
        mark = " (chosen)" if c is base else ""
        sweep.append(
            [f"{c.peak:g}{mark}", shown(c.of("live", "val")), shown(c.of(a, "val")), a, shown(c.of()), shown(c.of(a))]
        )
    return page(said, [("", markdown(lines)), (f"The base rate, at batch {base.batch}", markdown(sweep))])


def rate_of(cell: Cell, base: Cell) -> float:
    """The rate after the warm-up."""
    from lawa_exp.runs.choices import config_from

    config = config_from(cell.config)
    return config.lr.peak * config.scaling.factor(cell.batch, int(cell.config["model"]["context"]))


def batch_doubling(sweeps: dict[str, Sweep], out: Path) -> str:
    never = {c.config["steps"]: c for c in sweeps["never"].cells}
    short, long = never[min(never)], never[max(never)]
    (doubled,), (scaled,) = sweeps["doubled"].cells, sweeps["scaled"].cells
    runs = {
        f"never doubled, {short.config['steps']} steps": short,
        f"never doubled, {long.config['steps']} steps": long,
        f"doubled, {doubled.config['steps']} steps": doubled,
        f"doubled, and the rate with it, {scaled.config['steps']} steps": scaled,
    }
    ids = [w for split, w in doubled.losses if split == "test" and w != "live"]
    lines = [["run", "live, test", *(f"gain of {id}" for id in ids)]]
    points: dict[str, list[list[float]]] = {id: [] for id in ids}
    for name, cell in runs.items():
        lines.append([name, shown(cell.of()), *(signed(minus(cell.of(), cell.of(id))) for id in ids)])
        for id in ids:
            points[id].append(gain(cell, id))

    fixed = "lawa-k5-s12"

    def change(a: Cell, b: Cell, id: str) -> Interval:
        return minus(gain(a, id), gain(b, id))

    pairs = {
        "equal steps": (doubled, short),
        "equal samples": (doubled, long),
        "rate doubled too - not": (scaled, doubled),
    }
    changes = [["change of the gain", *ids]]
    changes += [[name, *(signed(change(a, b, id)) for id in ids)] for name, (a, b) in pairs.items()]
    h1 = [change(doubled, short, fixed), change(doubled, long, fixed)]
    h2 = [change(scaled, doubled, fixed)]
    said = [
        f"- H1, the gain of {fixed} is smaller after doubling: **{verdict(h1)}** (equal steps {signed(h1[0])}, equal "
        f"samples {signed(h1[1])})",
        f"- H2, it is larger again with the rate doubled too: **{verdict(above(h2))}** ({signed(h2[0])})",
    ]
    draw_bars(out / "plot.png", list(runs), points, "gain from averaging (nats, test)")
    return page(said, [("", markdown(lines)), ("How the gain changes, paired by seed", markdown(changes))])


def gain(cell: Cell, id: str) -> list[float]:
    return [a - b for a, b in zip(cell.of(), cell.of(id), strict=True)]


def power_rate(sweeps: dict[str, Sweep], out: Path) -> str:
    cells = [c for c in sweeps["fit"].cells if "init.from" in c.overrides]
    groups: dict[tuple[int, int], list[Cell]] = {}
    for c in cells:
        groups.setdefault((c.batch, tokens_of(c)), []).append(c)
    peaks = sorted({c.peak for c in cells})
    lines = [["batch", "tokens", *(f"{p:g}" for p in peaks), "best rate", "fitted rate"]]
    optima = {key: vertex(sorted(group, key=lambda c: c.peak)) for key, group in sorted(groups.items())}
    context = int(cells[0].config["model"]["context"])
    sequences = {key: key[0] * context / SEQUENCE for key in optima}
    matrix = np.array([[1.0, math.log(tokens)] for _, tokens in optima])
    target = np.array([math.log(rate / sequences[key]) for key, rate in optima.items()])
    (log_a, b), *_ = np.linalg.lstsq(matrix, target, rcond=None)
    a = math.exp(log_a)
    for key, group in sorted(groups.items()):
        law = sequences[key] * a * key[1] ** b
        row = [f"{c.val():.4f}" for c in sorted(group, key=lambda c: c.peak)]
        mark = " (edge)" if optima[key] in (peaks[0], peaks[-1]) else ""
        lines.append([str(key[0]), f"{key[1]:,}", *row, f"{optima[key]:.3g}{mark}", f"{law:.3g}"])
    free = np.linalg.lstsq(
        np.array([[1.0, math.log(s), math.log(key[1])] for key, s in sequences.items()]),
        np.array([math.log(rate) for rate in optima.values()]),
        rcond=None,
    )[0]
    fit = (
        f"Fit, linear in the batch: A = {a:.4g}, B = {b:.4g}. With the batch's exponent left free it is {free[1]:.2f}, "
        f"and that of the tokens {free[2]:.2f}."
    )
    if "heldout" not in sweeps:
        return page([], [("Val loss over peaks at the points of the fit", markdown(lines)), ("", fit)])
    swept = sorted(sweeps["heldout"].cells, key=lambda c: c.peak)
    chosen = best(swept)
    batch, tokens = chosen.batch, tokens_of(chosen)
    law = batch * context / SEQUENCE * a * tokens**b
    fit += f" At the held-out batch {batch}, {tokens:,} tokens: R = {law:.3g}; its sweep's best is {vertex(swept):.3g}."
    rows = [(f"WSD, peak {c.peak:g}" + (", chosen on val" if c is chosen else ""), c) for c in swept]
    for name, label in (
        ("predicted", "WSD at R"),
        ("power", "power schedule, fitted"),
        ("published", "power schedule, published constants"),
    ):
        if name in sweeps:
            rows += [(label, c) for c in sweeps[name].cells]
    table = [["held out", "val loss", "test loss", "test - chosen WSD", "in %"]]
    for label, c in rows:
        difference = minus(c.of(), chosen.of())
        percent = 100 * (statistics.fmean(c.of()) / statistics.fmean(chosen.of()) - 1)
        extra = ["", ""] if c is chosen else [signed(difference), f"{percent:+.2f}"]
        table.append([label, shown(c.of("live", "val")), shown(c.of()), *extra])
    said = []
    for number, name in enumerate(("power", "predicted", "published"), 1):
        if name in sweeps:
            interval = minus(sweeps[name].cells[0].of(), [(1 + TOLERANCE) * v for v in chosen.of()])
            what = {"power": "the fitted schedule", "predicted": "WSD at R", "published": "the published constants"}[
                name
            ]
            said.append(
                f"- H{number}, {what} within {TOLERANCE:.0%} of the best WSD: **{verdict([interval])}** "
                f"(loss - {1 + TOLERANCE:g} times WSD's: {signed(interval)})"
            )
    draw_held_out(out / "plot.png", swept, rows[len(swept) :], law)
    return page(
        said, [("", markdown(table)), ("Val loss over peaks at the points of the fit", markdown(lines)), ("", fit)]
    )


def tokens_of(cell: Cell) -> int:
    return int(cell.config["steps"]) * cell.batch * int(cell.config["model"]["context"])


def vertex(cells: Sequence[Cell]) -> float:
    """The peak where a parabola over log peak through the lowest val loss and its neighbours is lowest.

    The outermost peak where the lowest loss is there: the optimum is then not bracketed.
    """
    losses = [c.val() for c in cells]
    i = losses.index(min(losses))
    if i in (0, len(cells) - 1):
        return cells[i].peak
    x = [math.log(c.peak) for c in cells[i - 1 : i + 2]]
    square, linear, _ = np.polyfit(x, losses[i - 1 : i + 2], 2)
    return math.exp(-linear / (2 * square))


# --- pages and plots -------------------------------------------------------------------------------------------------


def worst(verdicts: set[str]) -> str:
    return next(v for v in ("fails", "undecided", "holds") if v in verdicts)


def page(said: list[str], tables: list[tuple[str, str]]) -> str:
    parts = ["## Judged", "", *said, ""] if said else []
    for head, table in tables:
        parts += [f"### {head}", ""] if head else []
        parts += [table, ""]
    return "\n".join(parts)


def plan_of(name: str) -> str:
    """What the experiment's file says from "Written before the runs" on."""
    comment = [line[1:].strip() for line in (CONF / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    text = " ".join(comment[next(i for i, line in enumerate(comment) if line.startswith("Written before")) :])
    return re.sub(r" (H\d) +", r"\n- \1: ", text)


def whiskers(values: list[list[float]]) -> tuple[list[float], list[float]]:
    both = [mean_and_deviation(v) for v in values]
    return [m for m, _ in both], [0.0 if math.isnan(s) else s for _, s in both]


def draw_lines(path: Path, xs: Sequence[float], points: dict[str, list[list[float]]], label: str) -> None:
    """Test loss, mean and standard deviation over seeds, a line for each key."""
    figure, axes = pyplot().subplots(figsize=(7.5, 4.6), dpi=110)
    for i, (name, values) in enumerate(points.items()):
        means, deviations = whiskers(values)
        shift = [x * 1.012 ** (i - len(points) / 2) for x in xs]
        axes.errorbar(shift, means, deviations, label=name, linestyle=STYLES[i % len(STYLES)], marker=".", capsize=2)
    axes.set_xscale("log")
    axes.set_xticks(list(xs), [str(x) for x in xs])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylabel("test loss (nats), mean and deviation over seeds")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    save_figure(figure, path)


def draw_bars(path: Path, names: list[str], points: dict[str, list[list[float]]], label: str) -> None:
    figure, axes = pyplot().subplots(figsize=(8.5, 4.2), dpi=110)
    width = 0.8 / len(points)
    for i, (name, values) in enumerate(points.items()):
        means, deviations = whiskers(values)
        axes.bar([x + (i + 0.5) * width - 0.4 for x in range(len(names))], means, width, yerr=deviations, label=name)
    axes.set_xticks(range(len(names)), [n.replace(", ", ",\n") for n in names], fontsize=8)
    axes.set_ylabel(label)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(figure, path)


def draw_held_out(path: Path, swept: Sequence[Cell], others: Sequence[tuple[str, Cell]], law: float) -> None:
    figure, axes = pyplot().subplots(figsize=(7, 4.2), dpi=110)
    means, deviations = whiskers([c.of() for c in swept])
    axes.errorbar(
        [c.peak for c in swept], means, deviations, label="WSD over peaks", marker=".", color="black", capsize=2
    )
    axes.axvline(law, color="0.6", linewidth=0.8, label="R, the fitted law")
    for i, (name, cell) in enumerate(others):
        axes.axhline(statistics.fmean(cell.of()), color=f"C{i}", linestyle=STYLES[i % len(STYLES)], label=name)
    axes.set_xscale("log")
    axes.set_xlabel("peak rate")
    axes.set_ylabel("test loss (nats), mean and deviation over seeds")
    axes.legend(fontsize=8)
    save_figure(figure, path)


EXPERIMENTS = {f.__name__: f for f in (wsd_horizons, batch_rules, batch_doubling, power_rate)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("sweeps", type=Path, nargs="+", help="the folders <runs_root>/sweeps/<experiment>-*")
    parser.add_argument("--out", type=Path, required=True, help="where summary.md and plot.png go")
    options = parser.parse_args()
    name = options.experiment
    sweeps = {s.name.removeprefix(f"{name}-"): read_sweep(s) for s in options.sweeps}
    options.out.mkdir(parents=True, exist_ok=True)
    body = EXPERIMENTS[name](sweeps, options.out)
    entries = [e for s in sweeps.values() for e in s.manifest["entries"]]
    in_order = sorted(options.sweeps, key=lambda s: (s / manifest.NAME).stat().st_mtime)
    commands = [sweeps[s.name.removeprefix(f"{name}-")].command for s in in_order]
    commands.append(f"python benchmarks/experiments.py {name} runs/sweeps/{name}-* --out results/{name}")
    counts = {len(c.of()) for s in sweeps.values() for c in s.cells if ("test", "live") in c.losses}
    head = [
        f"# {name}",
        "",
        *(f"    {c}" for c in commands),
        "",
        made_with(entries),
        "",
        f"Losses in nats per byte: mean ± standard deviation over {' or '.join(map(str, sorted(counts)))} seeds. "
        "Differences and gains: mean ± half of the 95% interval, paired by seed.",
        "",
        plan_of(name),
        "",
        body,
        "",
        "![plot](plot.png)",
        "",
    ]
    (options.out / "summary.md").write_text("\n".join(head))
    print(body)


if __name__ == "__main__":
    main()
