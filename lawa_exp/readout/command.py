"""The read-out itself: one pass over the snapshots, the choice on val, its report on test, and what is written."""

from __future__ import annotations

import functools
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from lawa_exp.evaluation.read_out import SEEN, ReadOut, evaluated, evaluations, live_row, read_out
from lawa_exp.evaluation.replay import Stopped
from lawa_exp.evaluation.result_files import FOLDER, remove_files, write_files
from lawa_exp.evaluation.score import Scored
from lawa_exp.evaluation.views import view_field, views_named
from lawa_exp.readout.averagers import readout_name
from lawa_exp.readout.comparison import Comparison, compare
from lawa_exp.readout.evaluators import EVALUATORS
from lawa_exp.readout.evaluators.settings import settings_from
from lawa_exp.readout.noise import paired, together
from lawa_exp.readout.of_checkpoints import checkpoints
from lawa_exp.readout.of_run import our_run
from lawa_exp.readout.of_single import is_single, read_single
from lawa_exp.readout.places import claimed
from lawa_exp.readout.progress import Revisiting
from lawa_exp.readout.report import (
    Test,
    chosen_line,
    measures_paragraph,
    savings_paragraph,
    views_paragraph,
    write_summary,
)
from lawa_exp.readout.request import Request
from lawa_exp.readout.subject import Subject
from lawa_exp.results.savings import Price
from lawa_exp.storage.metrics import FILE, own_metrics, write_metrics
from lawa_exp.storage.rows import Row, evaluation_row, fields_in, name_in_view, name_of, write_rows
from lawa_exp.system.cli import plain_name
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import check_output, in_turn, locked

MOVED = {"dataset.path": "path", "dataset.tokenizer_path": "tokenizer_path"}
WRITTEN = ("metrics.jsonl", FILE, "summary.md", "curves.png", "heatmap.png", f"{FOLDER}/")


def read(request: Request) -> int:
    """Does what is requested; the exit code."""
    e = request.evaluation
    if e.how is None:
        settings_from(EVALUATORS, None, e.flags)  # they are an evaluator's
    if request.name:
        plain_name("--name", request.name)
    if request.out:
        check_output("--out", Path(request.out))
    views_named(request.target.views)  # a wrong one is refused before anything is read
    if e.overrides and not (e.model or e.dataset or e.data or request.target.repository is not None):
        request = replace(request, target=replace(request.target, moved=moved_data(e.overrides)))
    choice, is_folder = request.target.choice, request.of_checkpoints and request.target.repository is None
    if (choice.step_from or choice.include_averages) and not is_folder:
        raise UserError("--step-from and --include-averages are for folders of checkpoints that are no run of ours")
    if request.target.key is not None and not request.of_checkpoints:
        raise UserError(
            f"--key={request.target.key}: is for --model, --dataset and --evaluate; a run has its own weights"
        )
    of_files = request.of_checkpoints and request.target.repository is None
    if of_files and is_single(Path(request.target.run), e.data or e.how):
        return read_single(request)
    with ExitStack() as locks:
        subject = checkpoints(request, locks) if request.of_checkpoints else our_run(request)
        return read_subject(subject, request, locks)


def moved_data(overrides: Sequence[str]) -> dict[str, str]:
    """Where a run's data are now, by setting; their fingerprint is checked when they are opened."""
    pairs = [override.partition("=")[::2] for override in overrides]
    for override, (key, value) in zip(overrides, pairs, strict=True):
        if key not in MOVED or not value:
            raise UserError(
                f"{override}: a run has its own settings; {' and '.join(MOVED)} may say where its data are now, "
                "others are for --model and --dataset"
            )
    return {MOVED[key]: str(Path(value).expanduser().resolve()) for key, value in pairs}


def read_subject(subject: Subject, request: Request, locks: ExitStack) -> int:
    """Evaluates, chooses, and writes the results; the exit code. locks: stay up to the end."""
    say: Callable[[str], None] = functools.partial(print, flush=True) if subject.is_main else lambda _: None
    averages = subject.averages
    if not averages:
        raise UserError("none of these averages can be had: " + "; ".join(subject.left_out))
    for note in subject.notes:
        say(note)
    name = name_of_results(subject, request)
    progress: Revisiting | None = None
    if subject.revisions:
        out = Path(request.out) if request.out else subject.root / (request.name or name)
        if subject.is_main:
            out.mkdir(parents=True, exist_ok=True)
            locks.enter_context(locked(out / ".lock", f"--out={out}"))
        progress = Revisiting(out, subject.revisions, subject.replay, list(subject.live), subject.is_main)
        if progress.finished:
            say(f"this was read out already, into {out}\n\n{(out / 'summary.md').read_text()}")
            return 0
        if progress.done:
            say(f"going on behind step {max(progress.done):,}, of which the results are in {out}")
    tested = "" if subject.no_test else ", and the best and live on test"
    left = {s: row for s, row in subject.live.items() if progress is None or s not in progress.done}
    todo = evaluations(subject.replay, averages, left, subject.views)
    through = f", as they are and as {' and '.join(subject.views)}" if subject.views else ""
    say(f"{len(averages):,} averages at {len(left):,} steps{through}: {todo:,} evaluations on val{tested}")
    try:
        result = read_out(
            subject.replay,
            averages,
            subject.score,
            subject.live,
            say,
            progress,
            subject.named.measure,
            subject.views,
            subject.metrics,
        )
    except Stopped as stopped:
        if progress is None:
            raise
        saved = (
            f"saved up to step {progress.reached:,}" if progress.reached is not None else "nothing was evaluated yet"
        )
        say(f"{str(stopped).partition(':')[0]}, {saved}; the same command goes on")
        return 75
    if written := write_results(result, subject, name, request):
        text, out = written
        if progress:
            progress.finish()
        say(f"\n{text}\n\nin {out}: {', '.join(sorted(name for name in WRITTEN if (out / name).exists()))}")
    for line in subject.left_out:
        say(f"not read out: {line}")
    return 0


def name_of_results(subject: Subject, request: Request) -> str:
    """By the averages' ids; these follow what RUN is called where it is no run."""
    through = f"-view-{'+'.join(subject.views)}" if subject.views else ""  # never in place of a plain read-out
    name = readout_name([average.id for average in subject.averages]) + subject.suffix + through
    if not request.of_checkpoints:
        return name
    repository = request.target.repository
    of = Path(request.target.run).resolve().name if repository is None else repository.replace("/", "--")
    return f"{of}-{name}"


@contextmanager
def place_of_results(subject: Subject, name: str, request: Request) -> Iterator[Path]:
    """The folder, in which no other process writes inside."""
    if request.of_checkpoints:
        with claimed(request, subject.root, name, is_fixed=subject.revisions is not None) as out:
            yield out
    else:
        out = Path(request.out) if request.out else subject.root / (request.name or name)
        with in_turn(out):
            yield out


def write_results(result: ReadOut, subject: Subject, name: str, request: Request) -> tuple[str, Path] | None:
    """Chooses on val, evaluates the choice on test, and writes all that.

    name: of the folder, unless the request names one. Returns the text for the terminal and that folder;
    None on other ranks.
    """
    rows = with_earlier(result.rows, subject)
    every_row = [*(r for r in subject.rows if name_of(r) == "live"), *rows]
    f = compare(result, every_row, [average.id for average in subject.averages], subject.task)
    test, test_rows = on_test(f, result, subject)
    if not subject.is_main:
        return None
    measures = [*subject.published, *result.measures]
    chosen = chosen_line(f, test, subject.no_test or f"the snapshot of step {result.step:,} is not there")
    notes = [*subject.notes, *(f"Not read out: {line}" for line in subject.left_out)]
    command = shlex.join(["python", "-m", "lawa_exp.readout", *sys.argv[1:]])
    more = [savings_paragraph(every_row, f, price_of(request, subject))]
    if subject.views:
        more += [views_paragraph(f, result, [*rows, *test_rows], subject.views, subject.named.measure, subject.task)]
    more += [measures_paragraph(measures, f.step)] if measures else []
    with place_of_results(subject, name, request) as out:
        write_rows(out / "metrics.jsonl", [*rows, *test_rows, *measures])
        write_metrics(out, subject.metrics)
        if subject.revisions is None:  # else they were written after each step
            remove_files(out)
            write_files(out, result.files)
        return write_summary(out, f, every_row, subject.named, chosen, notes, command, more), out


def price_of(request: Request, subject: Subject) -> Price:
    """What a step costs: as requested, an epoch else as the run has it."""
    training = subject.training
    each = request.gpu_hours / training.last if request.gpu_hours is not None else None
    return Price(request.steps_per_epoch or training.steps_per_epoch, each)


def with_earlier(rows: list[Row], subject: Subject) -> list[Row]:
    """The rows, and the training's own of attached averages at steps whose weights were not kept; by step."""
    have = {(r["step"], name_of(r)) for r in rows}
    kept = {average.id for average in subject.kept}
    own = [r for r in subject.rows if name_of(r) in kept and r.get("bn") == subject.replay.bn]
    return sorted([*rows, *(r for r in own if (r["step"], name_of(r)) not in have)], key=lambda r: r["step"])


def on_test(f: Comparison, result: ReadOut, subject: Subject) -> tuple[Test | None, list[Row]]:
    """The live weights and the best average after the last step on the test split, and their rows, also of views."""
    live = subject.replay.live(result.step)
    if subject.no_test or live is None:
        return None, []
    row = subject.live[result.step]
    best = next(average for average in subject.averages if average.id == f.lowest)
    samples = row.get("eval_samples") if row else None
    average, bn = best.weights(result.step), subject.replay.bn
    seen = fields_in(row, SEEN) if row else {}

    def both(
        view: str | None, live: Mapping[str, Tensor], average: Mapping[str, Tensor]
    ) -> tuple[list[Scored], list[Row]]:
        named = ((name_in_view("live", view), live), (name_in_view(best.id, view), average))
        scored = [evaluated(subject.score, weights, name, result.step, "test", samples, bn) for name, weights in named]
        of_average = {**best.fields, **view_field(view)}
        return scored, [
            live_row(result.step, "test", scored[0].fields, subject.score, live, bn, samples, seen, view),
            evaluation_row(result.step, "test", of_average, scored[1].fields, seen),
        ]

    scored, rows = both(None, live, average)
    for name, view in subject.views.items():
        rows += both(name, *(view(weights, subject.replay.averaged) for weights in (live, average)))[1]
    sums = [s.sums for s in scored]
    half = paired(sums[1], sums[0])[1] if sums[0] is not None and sums[1] is not None else math.nan
    half = together(half, 1.96 * f.scatter)  # as on val
    losses = [s.fields["loss"] for s in scored]
    own = [name for name in own_metrics(subject.metrics) if name in scored[0].fields]  # an evaluator may have fewer
    others = {name: (scored[1].fields[name], scored[0].fields[name]) for name in own}
    return Test(f.lowest, losses[1], losses[0], half, int(scored[0].fields["eval_samples"]), others), rows
