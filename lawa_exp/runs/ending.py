"""What the end of a training says and writes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable

from lawa_exp.axes.dataset.places import SOLE
from lawa_exp.results.report import write_report
from lawa_exp.results.tables import SAVING, at_end, end_table
from lawa_exp.runs.done import shown_alike
from lawa_exp.runs.prepare import Prepared
from lawa_exp.storage.commit import steps_in
from lawa_exp.storage.metrics import Metrics, shown_metrics
from lawa_exp.storage.rows import Row, number_in, read_rows, write_rows
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.cli import Parser, command
from lawa_exp.training.train import Outcome


def in_brackets(row: Row, metrics: Metrics) -> str:
    """` (accuracy 0.9750)`: those of the metrics that the row has."""
    found = [f"{name} {metric.text(number_in(row, name))}" for name, metric in metrics.items() if name in row]
    return f" ({', '.join(found)})" if found else ""


def write_results(p: Prepared, run: RunDir, outcome: Outcome, say: Callable[[str], None], alone: bool) -> None:
    """The table on the terminal, report.md and curves.png, and the marker last. alone: no entry of a multirun."""
    rows, left_out = shown_alike(read_rows(run.metrics, trained=False), p.config.evaluate.bn)
    say(f"\n{end_table(rows)}\n{SAVING}")
    if left_out:
        say(left_out)
    facts = [
        f"run directory `{run.path.name}`, trajectory {p.trajectory}, {outcome.step:,} steps"
        + (", DIVERGED after the last of them" if outcome.how == "diverged" else ""),
        f"model {p.config.model.name}, data set {p.config.dataset.name} (fingerprint {p.data.fingerprint[:12]})"
        + (f"; {p.data.note}" if p.data.note else ""),
        f"{p.config.lr.word} rate, peak {p.config.lr.peak:g}; "
        f"batch {' to '.join(map(str, p.splits))}; seed {p.config.seed}",
        *([left_out] if left_out else []),
    ]
    title = f"{p.config.model.name} on {p.config.dataset.name}"
    if outcome.test:
        folder = run.readouts / "test"
        others = [r for r in read_rows(folder / "metrics.jsonl") if r["step"] != outcome.step]
        write_rows(folder / "metrics.jsonl", sorted([*others, *outcome.test], key=lambda row: row["step"]))
    metrics = p.data.task.metrics
    write_report(run.path, rows, outcome.test, title, facts, command(), metrics["loss"].unit, metrics)
    run.remember()
    run.mark("DIVERGED" if outcome.how == "diverged" else "DONE", step=outcome.step)
    if outcome.test:
        in_row = shown_metrics(metrics)
        shown = "  ".join(f"{r['weights']} {r['loss']:.4f}{in_brackets(r, in_row)}" for r in outcome.test)
        held_out = " (of val, which serves as test)" if SOLE in p.data.note else ""
        say(f"test loss after step {outcome.step:,}{held_out}: {shown}")
    say(f"\n{outcome.how}; report: {run.path / 'report.md'}, plot: {run.path / 'curves.png'}")
    if alone and outcome.how == "done":
        say("\n".join(["next:", *next_lines(run, rows)]))


def next_lines(run: RunDir, rows: list[Row]) -> list[str]:
    """What to do with a finished run: a command each, and what it answers."""
    (end, found), folder = at_end(rows), shlex.quote(str(run.path))
    best = next((line.weights for line in found if line.best), "live")
    lines = []
    if (snapshots := len(steps_in(run.trajectory))) > 2:
        ks = ",".join(str(k) for k in (2, 3, 5, 10) if k < snapshots)
        lines += [
            (f"{Parser.prefix}suggest {folder}", "which average, k and spacing; is the gain above its noise"),
            (f"{Parser.prefix}readout {folder} --avg lawa,swa --k {ks}", "other averages, without training"),
        ]
    if end in steps_in(run.trajectory if best == "live" else run.averages / best):
        loaded = f"import lawa_exp; weights = lawa_exp.load({json.dumps(str(run.path))}).weights({json.dumps(best)})"
        lines.append((f"python -ic {shlex.quote(loaded)}", f"the best weights, {best}, in Python"))
    return [f"  {line}  # {said}" for line, said in lines]
