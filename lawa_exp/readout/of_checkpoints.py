"""Checkpoints with something that evaluates them: a folder of them, or revisions of a model on the hub."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from lawa_exp.averaging import AVERAGERS, AveragerSettings
from lawa_exp.averaging.flags import start_note
from lawa_exp.config.rules import setting_names
from lawa_exp.evaluation.replay import Replay, Snapshots
from lawa_exp.evaluation.views import views_named
from lawa_exp.readout.availability import defined, gaps, instead, missing, period_note, too_few
from lawa_exp.readout.averagers import combinations, typed
from lawa_exp.readout.checkpoints import Fitted
from lawa_exp.readout.evaluators.choose import evaluator_for
from lawa_exp.readout.request import Averages, Request
from lawa_exp.readout.revisions import Folder, Hub, Source, revision_steps
from lawa_exp.readout.subject import Revisions, Subject, Training
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import UserError
from lawa_exp.system.memory import return_freed_memory


def checkpoints(request: Request, locks: ExitStack) -> Subject:
    """The requested averages of the checkpoints in RUN, which are evaluated as the request says.

    locks: keep what is fetched for this process alone.
    """
    source, name = source_of(request, locks)
    by_revisions = request.target.repository is not None or request.revisions is not None
    steps = revision_steps(source, request.revisions)
    period = math.gcd(*steps) or 1
    every, start = (request.averages.settings.get(key) for key in ("every", "start"))
    requested = typed(combinations(of_averagers(request.averages, by_revisions), period))
    live = evaluated_at(every, requested, steps) if by_revisions else steps
    subject = of_source(request, source, name, steps, requested, live)
    replayed = [average.averager.settings for average in subject.replay.averages]
    notes = [*period_note(every, replayed, period), *start_note(start, {s.kind for s in replayed})]
    return replace(subject, notes=[*subject.notes, *notes])


def of_source(
    request: Request,
    source: Source,
    name: str,
    steps: Sequence[int],
    requested: Sequence[AveragerSettings],
    live: Sequence[int],
) -> Subject:
    """The averages `requested` of the checkpoints of `steps`, evaluated as the request says, and live ones at `live`.

    name: as the results call the checkpoints. UserError: none of the averages can be had.
    """
    target = request.target
    by_revisions = target.repository is not None or request.revisions is not None
    averages = Sources({s: source.paths[s] for s in steps}, requested, live, by_revisions)
    if not averages.replayed:
        unreadable = [f"{checkpoint} is left out, as it cannot be read: {why}" for checkpoint, why in source.unreadable]
        raise UserError("none of these averages can be had: " + "; ".join([*averages.left_out, *unreadable]))
    first = min(averages.paths)
    e = evaluator_for(request, name, lambda: source.fetch(first), source.folder_of(first))
    if by_revisions:
        return_freed_memory()
    read = e.fitted
    read.key = target.key
    if target.repository is None:
        for path in averages.paths.values():  # headers only: what does not fit is told before hours of evaluation
            read(path)
    notes = [*source.notes, *e.notes, *e.of_averages, *notes_on(read), *averages.gaps]
    steps_of = {path: step for step, path in source.paths.items()}
    snapshots = Snapshots(averages.paths, lambda path: read(source.fetch(steps_of[path])))
    identity = {"averages": [s.id for s in averages.replayed], "live": live, **source.identity, **e.identity}
    identity |= {"views": list(target.views)} if target.views else {}
    identity |= {"key": target.key} if target.key else {}
    return Subject(
        named=e.named,
        root=Path("readouts"),
        replay=Replay(averages.replayed, e.averaged, snapshots, e.device, live, e.statistics, e.bn),
        score=e.score,
        live=dict.fromkeys(live),
        training=Training(max(source.paths)),
        published=[row for row in e.published if row["step"] in live],
        left_out=averages.left_out,
        notes=notes,
        no_test=e.no_test,
        suffix=(f"-{e.label}" if e.label else "") + (f"-bn-{e.bn}" if target.bn else ""),
        is_main=e.ranks is None or e.ranks.is_main,
        revisions=Revisions(source, identity) if by_revisions else None,
        views=views_named(target.views),
        task=e.task,
    )


def source_of(request: Request, locks: ExitStack) -> tuple[Source, str]:
    """Where the checkpoints come from, and what the results call them. UserError: the results would go into RUN."""
    target = request.target
    if target.repository is not None:
        source = Hub(
            target.repository, Path(request.out or "readouts") / f".fetched-{target.repository.replace('/', '--')}"
        )
        if os.environ.get("RANK", "0") == "0":  # all ranks read what is fetched
            locks.enter_context(source.locked())
        return source, target.run.split("/")[-1]
    run = RunDir(Path(target.run))
    is_ours = bool(request.evaluation.how or request.evaluation.data) and run.config.exists()
    root = run.trajectory if is_ours else Path(target.run)
    folder = Folder(root, target.choice, target.verbose, only_readable=request.revisions is None)
    refuse_inside(request, root)
    return folder, (run.path if is_ours else root).resolve().name


def refuse_inside(request: Request, root: Path) -> None:
    """UserError: results would go into RUN, or a file is where their folder would be."""
    results = Path(request.out) if request.out else Path("readouts", request.name or "")
    if file := next((each for each in (results, *results.parents) if each.exists() and not each.is_dir()), None):
        raise UserError(f"{file} is a file, and the results would be in {results}/; --out names another folder")
    if results.resolve().is_relative_to(root.resolve()):
        what = (
            f"--out={results} is" if request.out else f"RUN={request.target.run}: the results, in {results}/, would be"
        )
        raise UserError(f"{what} inside RUN, where nothing is written; --out names another folder")


class Sources:
    """The requested averages that the checkpoints give, and of which checkpoints.

    replayed: their settings; left_out: why others cannot be had; gaps: where they are not there. paths: of the
    checkpoints by step; of a long trajectory of revisions those alone that are evaluated, or needed for that.
    """

    def __init__(
        self, paths: dict[int, Path], requested: Sequence[AveragerSettings], live: Sequence[int], by_revisions: bool
    ):
        last = max(live)
        problems = [(s, too_few(s, last) or missing(s, paths, last)) for s in requested]
        self.left_out = [f"{s.id}: {problem}{instead(s, paths, last)}" for s, problem in problems if problem]
        self.replayed = [s for s, problem in problems if not problem]
        if by_revisions:
            needed = {t for s in self.replayed for step in live if defined(s, step) for t in s.needed(step)} | set(live)
            paths = {step: path for step, path in paths.items() if step in needed}
        self.paths = paths
        self.gaps = [note for s in self.replayed if (note := gaps(s, paths, live))]


def notes_on(read: Fitted) -> list[str]:
    """What the checkpoints record of their model, and what of them is not in it."""
    notes = [read.note] if read.note else []
    if read.recorded and read.settings is not None:
        recorded = ", ".join(f"{key}={json.dumps(value)}" for key, value in read.recorded.items())
        notes.append(f"The model is as the checkpoints record it: {recorded}.")
    if read.left_out:
        notes.append(f"In the checkpoints, but not in {read.what}, and left out: {', '.join(sorted(read.left_out))}.")
    return notes


def of_averagers(requested: Averages, by_revisions: bool) -> Averages:
    """What is requested of averagers: with revisions --every may only say which are evaluated."""
    uses = {n for kind in requested.kinds if kind in AVERAGERS for n in setting_names(AVERAGERS[kind])}
    return requested.without("every") if by_revisions and "every" not in uses else requested


def evaluated_at(every: str | None, requested: Sequence[AveragerSettings], steps: list[int]) -> list[int]:
    """The multiples of `every`, a flag; without it the steps at which an average is new. The last one in any case."""
    if every is not None and (not every.isdigit() or not int(every)):
        raise UserError(f"--every={every}: expected a number of steps")
    periods = [int(every)] if every else [s.period for s in requested]
    return sorted({s for s in steps if any(s % period == 0 for period in periods)} | {steps[-1]})
