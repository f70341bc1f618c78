"""The read-out itself: one pass over the snapshots, the choice on val, its report on test, and what is written."""

from __future__ import annotations

import argparse
import functools
import math
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lawa_exp.evaluation.read_out import ReadOut, evaluated, evaluations, live_row, read_out
from lawa_exp.evaluation.replay import Average, Stopped
from lawa_exp.readout.asked import readout_name
from lawa_exp.readout.findings import Findings, findings
from lawa_exp.readout.noise import paired
from lawa_exp.readout.progress import Revisiting
from lawa_exp.readout.report import Named, Test, chosen_line, measures_paragraph, savings_paragraph, write_summary
from lawa_exp.readout.revisions import HUB
from lawa_exp.readout.subject import Subject, folder, our_run
from lawa_exp.results.savings import Price
from lawa_exp.storage.rows import write_rows
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import locked

WRITTEN = ("metrics.jsonl", "summary.md", "curves.png", "heatmap.png")


def read(args: argparse.Namespace) -> int:
    """Reads out what the flags ask for; the exit code."""
    foreign = args.evaluate or args.model or args.dataset or args.revisions or args.run.startswith(HUB)
    if args.overrides and not (args.model or args.dataset or args.run.startswith(HUB)):
        raise UserError(f"{args.overrides[0]}: settings are for --model and --dataset; a run has its own")
    with ExitStack() as held:
        return read_subject(folder(args, held) if foreign else our_run(args), args, bool(foreign), held)


def read_subject(subject: Subject, args: argparse.Namespace, foreign: bool, held: ExitStack) -> int:
    """Evaluates, chooses, and writes the results; the exit code. held: locks, up to the end."""
    say = functools.partial(print, flush=True) if subject.is_main else lambda _: None
    averages: list[Average] = [*subject.replay.averages, *subject.kept]
    if not averages:
        raise UserError("none of these averages can be had: " + "; ".join(subject.left_out))
    for note in subject.notes:
        say(note)
    name = args.name or readout_name([average.id for average in averages]) + subject.suffix
    hub = args.run.startswith(HUB)
    of = args.run.removeprefix(HUB).replace("/", "--") if hub else Path(args.run).resolve().name
    prefix = f"{of}-" if foreign and not args.name else ""
    out = Path(args.out) if args.out else subject.root / f"{prefix}{name}"
    progress: Revisiting | None = None
    if subject.revisions:
        source, asked = subject.revisions
        if subject.is_main:
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(out / ".lock", f"--out={out}"))
        progress = Revisiting(out, asked, subject.replay, source, list(subject.live), subject.is_main)
        if progress.finished:
            say(f"this was read out already, into {out}\n\n{(out / 'summary.md').read_text()}")
            return 0
        if progress.done:
            say(f"going on behind step {max(progress.done):,}, of which the results are in {out}")
    tested = "" if subject.no_test else ", and the best and live on test"
    left = {s: row for s, row in subject.live.items() if progress is None or s not in progress.done}
    todo = evaluations(subject.replay, averages, left)
    say(f"{len(averages):,} averages at {len(left):,} steps: {todo:,} evaluations on val{tested}")
    try:
        found = read_out(subject.replay, averages, subject.score, subject.live, say, progress, subject.measure)
    except Stopped as stopped:
        if progress is None:
            raise
        saved = (
            f"saved up to step {progress.reached:,}" if progress.reached is not None else "nothing was evaluated yet"
        )
        say(f"{str(stopped).partition(':')[0]}, {saved}; the same command goes on")
        return 75
    rows = with_earlier(found.rows, subject)
    every_row = [*(r for r in subject.rows if r["weights"] == "live"), *rows]
    f = findings(found, every_row, [average.id for average in averages])
    test, test_rows = on_test(f, found, averages, subject)
    measures = [*subject.published, *found.measures]
    if subject.is_main:
        write_rows(out / "metrics.jsonl", [*rows, *test_rows, *measures])
        chosen = chosen_line(f, test, subject.no_test or f"the snapshot of step {found.step:,} is not there")
        notes = [*subject.notes, *(f"Not read out: {line}" for line in subject.left_out)]
        command = shlex.join(["python", "-m", "lawa_exp.readout", *sys.argv[1:]])
        more = [savings_paragraph(every_row, f, price_of(args, subject))]
        more += [measures_paragraph(measures, f.step)] if measures else []
        named = Named(subject.title, subject.unit, subject.measure)
        text = write_summary(out, f, every_row, named, chosen, notes, command, more)
        if progress:
            progress.finish()
        say(f"\n{text}\n\nin {out}: {', '.join(sorted(name for name in WRITTEN if (out / name).exists()))}")
    for line in subject.left_out:
        say(f"not read out: {line}")
    return 0


def price_of(args: argparse.Namespace, subject: Subject) -> Price:
    """What a step costs: as the flags say, an epoch else as the run has it."""
    each = args.gpu_hours / subject.last if args.gpu_hours is not None else None
    return Price(args.steps_per_epoch or subject.steps_per_epoch, each)


def with_earlier(found: list[dict[str, Any]], subject: Subject) -> list[dict[str, Any]]:
    """The rows found, and the training's own of attached averages at steps whose weights were not kept; by step."""
    have = {(r["step"], r["weights"]) for r in found}
    kept = {average.id for average in subject.kept}
    mine = [r for r in subject.rows if r["weights"] in kept and r.get("bn") == subject.replay.bn]
    return sorted([*found, *(r for r in mine if (r["step"], r["weights"]) not in have)], key=lambda r: r["step"])


def on_test(
    f: Findings, found: ReadOut, averages: Sequence[Average], subject: Subject
) -> tuple[Test | None, list[dict[str, Any]]]:
    """The live weights and the chosen average after the last step on the test split, and their rows."""
    live = subject.replay.live(found.step)
    if subject.no_test or live is None:
        return None, []
    row = subject.live[found.step] or {}
    best = next(average for average in averages if average.id == f.best)
    samples = row.get("eval_samples")
    both, bn = (("live", live), (best.id, best.weights(found.step))), subject.replay.bn
    scored = [evaluated(subject.score, weights, id, found.step, "test", samples, bn) for id, weights in both]
    seen: dict[str, Any] = {key: row[key] for key in ("trained_samples", "trained_tokens") if key in row}
    at = {"step": found.step, "split": "test"}
    rows = [
        live_row({**at, **scored[0].fields}, subject.score, live, bn, samples) | seen,
        {**at, **best.fields, **scored[1].fields, **seen},
    ]
    sums = [s.sums for s in scored]
    half = paired(sums[1], sums[0])[1] if sums[0] is not None and sums[1] is not None else math.nan
    losses = [s.fields["loss"] for s in scored]
    return Test(f.best, losses[1], losses[0], half, scored[0].fields["eval_samples"]), rows
