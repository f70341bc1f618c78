r"""Is `python -m lawa_exp.suggest` right? Its regret on the test split, over finished runs.

For each run the suggestion is made on val. Then every candidate, the live weights among them, is evaluated on the whole
test split after the same step. Regret: the test loss of the suggestion less the lowest test loss of all candidates (of
images: accuracy, in points). It may be the larger of 0.01 nats (0.2 points) and two standard errors of that difference,
paired by batch. The lowest of many test losses is too low by chance, so this regret is too high rather than too low.
The rule (lawa_exp/readout/choice.py) was fixed before any test loss was looked at.

    python benchmarks/suggest_regret.py RUN... --out results/suggest.md

The runs of results/suggest.md:

    python -m lawa_exp -m experiment=mini_lm lr=constant lr.peak=1e-3,2e-3,4e-3 seed=0,1
    python -m lawa_exp -m experiment=mini_lm lr=cosine,cosine_to_zero lr.peak=1e-3,4e-3,8e-3,4e-2 seed=0
    python -m lawa_exp -m experiment=mini_lm lr=inverse_sqrt lr.peak=4e-3 seed=0
    python -m lawa_exp -m model=resnet20 dataset=digits epochs=20 batch.size=64 k=[3,5] lr=constant,cosine_to_zero \
        lr.peak=0.1 trainer.threads=1
    python -m lawa_exp model=resnet20 dataset=digits epochs=6 batch.size=32 k=[3,5] spacing=15 evaluate.every=45 \
        lr=constant lr.peak=0.3 trainer.threads=1

Each run is copied first; nothing is written into it. Exit code 1: some regret is larger.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lawa_exp.evaluation.read_out import evaluated
from lawa_exp.readout.choice import standard_error
from lawa_exp.readout.request import Target
from lawa_exp.readout.suggestion import BATCHES, Suggestion, measured, number, suggest
from lawa_exp.results.tables import markdown
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.files import write_text_atomically

ALLOWED = {"loss": 0.01, "accuracy": 0.2}  # nats; points

LEGEND = (
    "Expected gain: over the live weights, measured on parts of val that had no vote in the choice, with half of its "
    "95% interval (the samples' noise). Gain on test: of the suggestion over the live weights. Best on test: of all "
    "candidates, the live weights among them; regret: how much the suggestion is worse than that. Losses are nats per "
    "token on the whole test split; images are chosen and judged by accuracy. Where val and test are different parts "
    "of a text, as in pydocs, the two gains differ by more than the samples' noise."
)


@dataclass(frozen=True)
class Regret:
    """In nats, or points of accuracy. gain: of the suggestion over the live weights, on test."""

    run: str
    schedule: str
    found: Suggestion
    gain: float
    best: str
    regret: float
    allowed: float
    samples: int

    @property
    def within(self) -> bool:
        return self.regret <= self.allowed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--processes", type=int, default=1, metavar="N")
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    regrets = []
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        for regret in pool.map(regret_of, options.runs):
            regrets.append(regret)
            print(table(regrets[-1:]), flush=True)
    page = page_of(regrets)
    print(page)
    if options.out:
        write_text_atomically(options.out, page)
    return 0 if all(r.within for r in regrets) else 1


def regret_of(run: Path) -> Regret:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / run.name
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns(".lock", "readouts"))
        found, subject, read = suggest(Target(str(copy)), lambda _: None)
        score = subject.score
        size = score.data.sizes["test"]  # type: ignore[attr-defined]
        score.batch_size = min(score.batch_size, max(1, size // BATCHES))  # type: ignore[attr-defined]
        live = subject.replay.live(found.step)
        assert live is not None
        sums = {"live": evaluated(score, live, "live", found.step, "test", size).sums}
        for average in [*subject.replay.averages, *subject.kept]:
            if average.id in read.sums:
                weights = average.weights(found.step)
                sums[average.id] = evaluated(score, weights, average.id, found.step, "test", size, average.bn).sums
    assert subject.task
    by, of = measured({id: s for id, s in sums.items() if s is not None}, subject.task)
    scale = by.scale
    best = min(of, key=lambda id: by.measure.value(of[id]))
    regret, error = standard_error(of[found.id], of[best], by.measure)
    gain = by.measure.value(of["live"]) - by.measure.value(of[found.id])
    allowed = max(ALLOWED[by], 2 * scale * error)
    return Regret(run.name, schedule_of(run), found, scale * gain, best, scale * regret, allowed, size)


def schedule_of(run: Path) -> str:
    """`constant 0.004`, `cosine to 0.1 of 0.004`."""
    lr = (RunDir(run).read_config() or {})["lr"]
    to = f" to {lr['final_ratio']:g} of" if "final_ratio" in lr else ""
    return f"{lr['kind']}{to} {lr['peak']:g}"


def table(regrets: list[Regret]) -> str:
    head = ["run", "rate", "suggestion", "expected gain", "gain on test", "best on test", "regret", "allowed", "within"]
    lines = [head]
    for r in regrets:
        s = r.found
        unit = " points" if s.by == "accuracy" else ""
        gains = ["0", "0"]
        if s.id != "live":
            gains = [f"{number(s.gain, s)} ± {number(s.half, s)}{unit}", number(r.gain, s) + unit]
        judged = [number(r.regret, s) + unit, number(r.allowed, s) + unit, "yes" if r.within else "NO"]
        lines.append([r.run, r.schedule, s.id, *gains, r.best, *judged])
    return markdown(lines)


def page_of(regrets: list[Regret]) -> str:
    """The page, with the command that made it."""
    names = [*(r.run for r in regrets), *(["--out", "results/suggest.md"])]
    within = sum(r.within for r in regrets)
    described = "\n".join(f"- {r.run}: {describe(r)}" for r in regrets)
    paragraphs = [
        "# The regret of `python -m lawa_exp.suggest`",
        f"    {shlex.join(['python', 'benchmarks/suggest_regret.py', *names])}",
        f"{within} of {len(regrets)} runs are within what is allowed: the larger of 0.01 nats (0.2 points of accuracy) "
        "and two standard errors of the regret, paired by batch.",
        table(regrets),
        LEGEND,
        described,
    ]
    return "\n\n".join(paragraphs) + "\n"


def describe(r: Regret) -> str:
    s = r.found
    overrides = json.dumps(" ".join(s.overrides))[1:-1]
    return f"`{overrides}`; after step {s.step:,}, {s.candidates} candidates, {s.samples} val, {r.samples} test samples"


if __name__ == "__main__":
    sys.exit(main())
