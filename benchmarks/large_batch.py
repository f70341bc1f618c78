"""LAMB with one square-root recipe against AdamW and tuned momentum over batch sizes: conf/experiment/large_batch.yaml.

The peak is searched for on val with the first seed, by factors of 2, until the best lies inside of what was tried (or
TRIED peaks were). "Rule" has the peak that is best at the smallest batch, which scaling=sqrt carries to the others;
"tuned" has the best of each batch size. The other seeds are trained with what was chosen.

    python benchmarks/large_batch.py --out results/large_batch

It does what `python -m lawa_exp -m experiment=large_batch ...` does; runs that are there already are not trained again.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import shlex
import sys
from pathlib import Path
from typing import Any

from lawa_exp.launch.compose import main as main_command
from lawa_exp.results.figures import pyplot, save_figure
from lawa_exp.results.statistics import curve, mean_and_deviation, paired_difference
from lawa_exp.results.summary import made_with, with_spread
from lawa_exp.results.tables import markdown
from lawa_exp.storage import manifest
from lawa_exp.storage.rows import read_rows

BASE = 512  # scaling.base_batch of the experiment
OPTIMIZERS = {  # overrides, and the peaks (at batch BASE) where the search begins
    "lamb": (["optimizer=lamb"], (0.005, 0.01, 0.02, 0.04)),
    "adamw": (
        ["optimizer=adamw", "optimizer.beta2=0.999", "optimizer.weight_decay=0.01"],
        (0.004, 0.008, 0.016),
    ),
    "momentum": (["optimizer=sgd"], (0.01, 0.02, 0.04)),
}
ROWS = [("lamb", "rule"), ("adamw", "rule"), ("adamw", "tuned"), ("momentum", "tuned")]
TRIED = 8  # peaks at most, at one batch size

Runs = dict[tuple[int, float, int], Path]  # run directories by batch size, peak and seed


class Trainer:
    """Trains as the command line does, one multirun a call, what no finished multirun under `root` has."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        self.entries: list[dict[str, Any]] = []  # of all runs that were asked for

    def train(self, optimizer: str, sizes: list[int], peaks: list[float], seeds: list[int]) -> Runs:
        """The runs of the product."""
        wanted = list(itertools.product(sizes, peaks, seeds))
        known = self.finished(optimizer)
        if any(key not in known for key in wanted):
            product = {"batch.size": sizes, "lr.peak": peaks, "seed": seeds}
            axes = [f"{key}={','.join(f'{v:g}' for v in values)}" for key, values in product.items()]
            where = [f"runs_root={self.root}", f"sweep=large_batch-{len(list(self.root.glob('sweeps/*')))}"]
            if code := main_command(["-m", "experiment=large_batch", *OPTIMIZERS[optimizer][0], *axes, *where]):
                sys.exit(code)
            known = self.finished(optimizer)
        self.entries += [known[key] for key in wanted]
        return {key: known[key]["run_dir"] for key in wanted}

    def finished(self, optimizer: str) -> dict[tuple[int, float, int], dict[str, Any]]:
        """Manifest entries of this optimizer's finished runs, by batch size, peak and seed."""
        found = {}
        for path in sorted(self.root.glob(f"sweeps/*/{manifest.NAME}")):
            for entry in manifest.read(path.parent)["entries"]:
                given = dict(o.split("=", 1) for o in entry["overrides"])
                mine = {o for o in entry["overrides"] if o.startswith("optimizer")}
                over = any((entry["run_dir"] / marker).exists() for marker in ("DONE", "DIVERGED"))
                if over and given.get("experiment") == "large_batch" and mine == set(OPTIMIZERS[optimizer][0]):
                    found[int(given["batch.size"]), float(given["lr.peak"]), int(given["seed"])] = entry
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="512,2048,8192", help="batch sizes, ascending, the first one %(default)s")
    parser.add_argument("--seeds", default="0,1,2", help="the first is the one that peaks are chosen with")
    parser.add_argument("--runs-root", default="runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for summary.md, runs.csv and accuracy.png")
    options = parser.parse_args()
    sizes, seeds = ([int(x) for x in given.split(",")] for given in (options.sizes, options.seeds))
    trainer = Trainer(options.runs_root)
    runs: dict[str, Runs] = {}
    chosen: dict[str, dict[int, float]] = {}
    for name in OPTIMIZERS:
        runs[name] = search(trainer, name, sizes, seeds[0])
        chosen[name] = {size: best_peak(runs[name], size, seeds[0]) for size in sizes}
    for seed in seeds:
        for name in OPTIMIZERS:
            wanted: dict[tuple[float, ...], list[int]] = {}  # batch sizes by the peaks that they need
            for size in sizes:
                peaks = {peak_of(chosen, (n, kind), size) for n, kind in ROWS if n == name}
                wanted.setdefault(tuple(sorted(peaks)), []).append(size)
            for peaks, same in wanted.items():
                runs[name] |= trainer.train(name, same, list(peaks), [seed])
    for name in OPTIMIZERS:  # what else was tried
        found = trainer.finished(name).items()
        runs[name] |= {key: e["run_dir"] for key, e in found if key[0] in sizes and key[2] in seeds}
    options.out.mkdir(parents=True, exist_ok=True)
    write(options.out, runs, chosen, sizes, seeds, trainer.entries)


def search(trainer: Trainer, name: str, sizes: list[int], seed: int) -> Runs:
    """Runs of one seed at peaks among which the best is none of the outermost, at every batch size."""
    runs = trainer.train(name, sizes, list(OPTIMIZERS[name][1]), [seed])
    for size in sizes:
        while True:
            tried = sorted(peak for s, peak, _ in runs if s == size)
            best = best_peak(runs, size, seed)
            if best not in (tried[0], tried[-1]) or len(tried) >= TRIED:
                break
            runs |= trainer.train(name, [size], [best / 2 if best == tried[0] else best * 2], [seed])
    return runs


def best_peak(runs: Runs, size: int, seed: int) -> float:
    """The peak with the lowest val loss at the end; a run that diverged has none."""
    losses = {peak: final(run)["val loss"] for (s, peak, n), run in runs.items() if (s, n) == (size, seed)}
    return min(losses, key=losses.__getitem__)


def final(run: Path) -> dict[str, float]:
    """Loss and accuracy at the end; after a divergence an infinite loss and the accuracy of guessing."""
    if not (run / "DONE").exists():
        return {"val loss": math.inf, "test loss": math.inf, "test accuracy": 0.1}
    test = read_rows(run / "readouts" / "test" / "metrics.jsonl")
    found = {
        "val loss": curve(read_rows(run / "metrics.jsonl"), "live")[-1][1],
        "test loss": curve(test, "live", "test")[-1][1],
    }
    return found | {"test accuracy": curve(test, "live", "test", "accuracy")[-1][1]}


def peak_of(chosen: dict[str, dict[int, float]], row: tuple[str, str], size: int) -> float:
    """lr.peak, at batch BASE, of a row of the table."""
    name, kind = row
    return chosen[name][size if kind == "tuned" else min(chosen[name])]


def write(
    out: Path,
    runs: dict[str, Runs],
    chosen: dict[str, dict[int, float]],
    sizes: list[int],
    seeds: list[int],
    entries: list[dict[str, Any]],
) -> None:
    def values(row: tuple[str, str], size: int, key: str) -> list[float]:
        return [final(runs[row[0]][size, peak_of(chosen, row, size), seed])[key] for seed in seeds]

    def difference(one: tuple[tuple[str, str], int], other: tuple[tuple[str, str], int]) -> tuple[float, float]:
        """Of test accuracy, in points: mean, and half of its 95% interval, paired by seed."""
        return paired_difference(*([100 * v for v in values(row, size, "test accuracy")] for row, size in (one, other)))

    lamb = ("lamb", "rule")
    lines = [
        [
            "batch",
            "optimizer",
            "peak",
            "peak at this batch",
            "val loss",
            "test loss",
            "test accuracy (%)",
            "- LAMB by the rule",
        ]
    ]
    for size in sizes:
        for row in ROWS:
            peak = peak_of(chosen, row, size)
            accuracy = [100 * v for v in values(row, size, "test accuracy")]
            lines.append(
                [
                    str(size),
                    " ".join(row),
                    f"{peak:g}",
                    f"{peak * math.sqrt(size / BASE):.3g}",
                    *(
                        with_spread("{:.4f}", *mean_and_deviation(values(row, size, key)))
                        for key in ("val loss", "test loss")
                    ),
                    "{:.2f} ± {:.2f}".format(*mean_and_deviation(accuracy)),
                    "" if row == lamb else "{:+.2f} ± {:.2f}".format(*difference((row, size), (lamb, size))),
                ]
            )
    first, last = sizes[0], sizes[-1]
    drop, half = difference((lamb, last), (lamb, first))
    over_adamw = difference((lamb, last), (("adamw", "rule"), last))
    under = {size: difference((("momentum", "tuned"), size), (lamb, size)) for size in sizes}
    worse = [size for size, (mean, spread) in under.items() if mean < -spread]
    verdicts = [
        f"1. LAMB by the rule, {last} against {first}: {drop:+.2f} ± {half:.2f} points of test accuracy. "
        f"Expected: not under -1. {'Holds' if drop >= -1 else 'Fails'}.",
        f"2. LAMB against AdamW at {last}, both by the rule: {over_adamw[0]:+.2f} ± {over_adamw[1]:.2f}. "
        "Expected: above 0. "
        + (
            "Holds."
            if over_adamw[0] > over_adamw[1]
            else "Fails."
            if over_adamw[0] < -over_adamw[1]
            else "Not decided."
        ),
        "3. Tuned momentum against LAMB by the rule: "
        + ", ".join(f"{mean:+.2f} ± {spread:.2f} at {size}" for size, (mean, spread) in under.items())
        + f". Expected: nowhere significantly under 0. {f'Fails at {worse}' if worse else 'Holds'}.",
    ]
    tried = [["batch", "optimizer", "val loss at each peak (seed " + str(seeds[0]) + ")"]]
    for size in sizes:
        for name in runs:
            losses = sorted(
                (p, final(r)["val loss"]) for (s, p, n), r in runs[name].items() if (s, n) == (size, seeds[0])
            )
            best = chosen[name][size]
            tried.append(
                [
                    str(size),
                    name,
                    ", ".join(f"{'**' * (p == best)}{p:g}: {v:.4f}{'**' * (p == best)}" for p, v in losses),
                ]
            )
    page = [
        "# LAMB with one square-root recipe against AdamW and tuned momentum",
        "",
        f"    {shlex.join(['python', 'benchmarks/large_batch.py', *public(sys.argv[1:])])}",
        "",
        made_with(entries),
        "",
        "LeNet-5 on MNIST, a fixed number of epochs; hypotheses and recipe in conf/experiment/large_batch.yaml "
        f"(written before the runs). peak: the rate at batch {BASE}, which grows with the root of the batch. rule: the "
        f"peak that is best on val at {first}, at every batch; tuned: the best on val at this batch (one seed). Mean ± "
        f"standard deviation over {len(seeds)} seeds; the last column is paired by seed, with its 95% interval.",
        "",
        markdown(lines),
        "",
        "![accuracy](accuracy.png)",
        "",
        "## The hypotheses",
        "",
        *verdicts,
        "",
        "## What the tuning saw",
        "",
        markdown(tried),
        "",
    ]
    (out / "summary.md").write_text("\n".join(page))
    with (out / "runs.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["optimizer", "batch", "peak", "seed", "val loss", "test loss", "test accuracy"])
        for name, mine in runs.items():
            writer.writerows([name, *key, *final(run).values()] for key, run in sorted(mine.items()))
    figure, axes = pyplot().subplots(figsize=(6, 4.2), dpi=110)
    for i, row in enumerate(ROWS):
        found = [mean_and_deviation([100 - 100 * v for v in values(row, size, "test accuracy")]) for size in sizes]
        axes.errorbar(
            sizes,
            [m for m, _ in found],
            [d for _, d in found],
            label=" ".join(row),
            color=f"C{i}",
            marker="o",
            capsize=3,
            linestyle="-" if row[1] == "rule" else "--",
        )
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="test error (%), mean and deviation over seeds")
    axes.set_xticks(sizes, [str(s) for s in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, out / "accuracy.png")
    print("\n".join([markdown(lines), "", *verdicts]))


def public(arguments: list[str]) -> list[str]:
    """The arguments but for where the runs lie."""
    kept = []
    for i, argument in enumerate(arguments):
        if not argument.startswith("--runs-root") and not (i and arguments[i - 1] == "--runs-root"):
            kept.append(argument)
    return kept


if __name__ == "__main__":
    main()
