"""The largest stable rate against the batch size, bisected: hypotheses and rules in conf/experiment/largest_rate.yaml.

    python benchmarks/largest_rate.py --out results/largest_rate

Each entry of that sweep is trained by the trainer's own loop, in this process, at one rate after another. What is found
goes into rates.csv in the folder (optimizer, batch size, seed, rate, trainings); what is there already is not bisected
again, so several processes can share the sweep: with overrides such as batch.size=512 each does its part.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import math
import shlex
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from torch import nn

from lawa_exp.launch.compose import compose, read
from lawa_exp.results.figures import pyplot, save_figure
from lawa_exp.results.statistics import curve, t95
from lawa_exp.results.tables import markdown
from lawa_exp.runs.prepare import Prepared, prepare
from lawa_exp.storage.rows import read_rows
from lawa_exp.storage.rundir import RunDir, cpu_name
from lawa_exp.system.distributed import Ranks, start_device
from lawa_exp.training.setup import set_up
from lawa_exp.training.train import train

OPTIMIZERS = {  # overrides, and the rate where the search begins
    "SGD": (["optimizer=sgd", "optimizer.momentum=0"], 0.1),
    "Adam": (["optimizer=adamw", "optimizer.beta2=0.999"], 0.01),
}
LEARNS = 0.9  # of the val loss at step 0
WITHIN = 1.1  # the smallest rate found unstable over the largest found stable
FURTHEST = 30  # doublings from where the search begins
CLAIMS = [  # optimizer, batch sizes, the slope's range
    ("SGD", 2, 16, 0.8, 1.2),
    ("SGD", 256, 1024, -math.inf, 0.2),
    ("Adam", 2, 1024, 0.35, 0.65),
]

Rates = dict[str, dict[int, dict[int, float]]]  # by optimizer, batch size and seed


def mlp() -> nn.Module:
    """images [batch, 1, 8, 8] -> logits [batch, 10]."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for summary.md, rates.csv and rates.png")
    options, overrides = parser.parse_known_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "rates.csv"
    for name, (mine, begin) in OPTIMIZERS.items():
        with contextlib.redirect_stdout(io.StringIO()):
            composed, _ = compose(["-m", "experiment=largest_rate", *mine, *overrides])
        for values, given in composed:
            p = prepare(*read(values, given), *start_device("cpu"))
            size, seed = p.config.batch.size, p.config.seed
            near = rates_in(file).get(name, {})
            if seed in near.get(size, {}):
                continue
            known = [mine[seed] for s, mine in sorted(near.items()) if s < size and seed in mine]
            rate, tries = bisected(p, known[-1] if known else begin)
            with file.open("a") as rows:
                rows.write(f"{name},{size},{seed},{rate:.4g},{tries}\n")
            print(f"{name} batch {size} seed {seed}: {rate:.4g} after {tries} trainings", flush=True)
    rates = rates_in(file)
    if len({frozenset((size, *seeds) for size, seeds in found.items()) for found in rates.values()}) > 1:
        sys.exit("the rest of the sweep is not bisected yet: no summary")
    write(options.out, rates, p)


def rates_in(file: Path) -> Rates:
    """What is bisected already: lines of optimizer, batch size, seed, rate, trainings."""
    found: Rates = {}
    lines = file.read_text().splitlines() if file.exists() else []
    for name, size, seed, rate, _ in sorted(csv.reader(lines), key=lambda row: (row[0] == "Adam", *map(int, row[1:3]))):
        found.setdefault(name, {}).setdefault(int(size), {})[int(seed)] = float(rate)
    return found


def bisected(p: Prepared, begin: float) -> tuple[float, int]:
    """The largest stable rate, to within the factor WITHIN (the middle of what is left), and how many were tried."""
    tried: dict[float, bool] = {}

    def stable(rate: float) -> bool:
        tried[rate] = learns(p, rate)
        return tried[rate]

    factor = 2.0 if stable(begin) else 0.5
    rate = begin
    for _ in range(FURTHEST):
        rate *= factor
        if stable(rate) != (factor > 1):
            break
    else:
        sys.exit(f"{p.config.optimizer} at batch {p.config.batch.size}: no limit between {begin:g} and {rate:g}")
    low, high = sorted((rate, rate / factor))
    while high / low > WITHIN:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if stable(middle) else (low, middle)
    return math.sqrt(low * high), len(tried)


def learns(p: Prepared, rate: float) -> bool:
    """Whether a whole training at this constant rate is stable."""
    config = replace(p.config, lr=replace(p.config.lr, peak=rate))
    device, ranks = start_device("cpu")
    assert ranks == Ranks(), "one process only"
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        quiet = io.StringIO()
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            setup = set_up(config, p.data, p.splits, run, ranks, device)
            outcome = train(setup, None, lambda: False, lambda _: None)
        points = curve(read_rows(run.metrics), "live")
    return outcome.how == "done" and points[-1][1] < LEARNS * points[0][1]


def slope(found: dict[int, dict[int, float]], first: int, last: int) -> tuple[float, float]:
    """Of log(rate) against log(batch size), from `first` to `last`: mean over seeds, and half of its 95% interval."""
    seeds = sorted(next(iter(found.values())))
    sizes = [size for size in found if first <= size <= last]
    slopes = [
        statistics.linear_regression([math.log(s) for s in sizes], [math.log(found[s][n]) for s in sizes]).slope
        for n in seeds
    ]
    return statistics.fmean(slopes), t95(len(slopes) - 1) * statistics.stdev(slopes) / math.sqrt(len(slopes))


def verdict(name: str, first: int, last: int, low: float, high: float, found: dict[int, dict[int, float]]) -> str:
    mean, half = slope(found, first, last)
    inside = low <= mean <= high
    decided = (low <= mean - half and mean + half <= high) if inside else (mean + half < low or mean - half > high)
    expected = f"under {high:g}" if low == -math.inf else f"{low:g} to {high:g}"
    return (
        f"{name}, batch {first} to {last}: slope {mean:.2f} ± {half:.2f}. Expected: {expected}. "
        f"{'Holds' if inside else 'Fails'}{'' if decided else ', but the interval reaches over the border'}."
    )


def write(out: Path, rates: Rates, p: Prepared) -> None:
    def middle(values: dict[int, float]) -> str:
        low, high = min(values.values()), max(values.values())
        return f"{statistics.geometric_mean(values.values()):.3g} ({low:.3g} to {high:.3g})"

    trained = sum(int(row[4]) for row in csv.reader((out / "rates.csv").read_text().splitlines()))
    sizes = list(next(iter(rates.values())))
    lines = [["batch", *(f"{name}: rate" for name in rates), *(f"{name}: slope from the line above" for name in rates)]]
    for before, size in zip([None, *sizes], sizes, strict=False):
        local = ["" if before is None else "{:.2f} ± {:.2f}".format(*slope(rates[n], before, size)) for n in rates]
        lines.append([str(size), *(middle(rates[name][size]) for name in rates), *local])
    verdicts = [
        f"{i}. {verdict(name, first, last, low, high, rates[name])}"
        for i, (name, first, last, low, high) in enumerate(CLAIMS, 1)
    ]
    page = [
        "# The largest stable rate against the batch size",
        "",
        f"    {shlex.join(['python', 'benchmarks/largest_rate.py', *sys.argv[1:]])}",
        "",
        f"A multilayer perceptron on {p.config.dataset.name} ({p.data.sizes['train']:,} training images; data "
        f"fingerprint {p.data.fingerprint[:12]}), {p.config.steps} updates, constant rate, no momentum for SGD, no "
        "decay, no clipping; hypotheses and the rule for stable in conf/experiment/largest_rate.yaml (written before "
        f"the runs). Geometric mean over {len(next(iter(rates['SGD'].values())))} seeds (lowest to highest), bisected "
        f"to within {WITHIN:g}; {trained} trainings. Slopes: mean over seeds ± 95% interval. {cpu_name()}, one thread.",
        "",
        markdown(lines),
        "",
        "![rates](rates.png)",
        "",
        "## The hypotheses",
        "",
        *verdicts,
        "",
    ]
    (out / "summary.md").write_text("\n".join(page))
    figure, axes = pyplot().subplots(figsize=(6, 4.2), dpi=110)
    for i, (name, found) in enumerate(rates.items()):
        middles = [statistics.geometric_mean(found[s].values()) for s in sizes]
        axes.plot(sizes, middles, "o-", color=f"C{i}", label=f"{name}: mean over seeds")
        for s in sizes:
            axes.plot([s] * len(found[s]), list(found[s].values()), ".", color=f"C{i}", ms=4)
        power = 1.0 if name == "SGD" else 0.5
        guide = [middles[0] * (s / sizes[0]) ** power for s in sizes]
        axes.plot(sizes, guide, ":", color=f"C{i}", label=f"slope {power:g}")
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="largest stable rate")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, out / "rates.png")
    print("\n".join([markdown(lines), "", *verdicts]))


if __name__ == "__main__":
    main()
